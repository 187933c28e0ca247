"""The language model's stage: draw, give verdicts, answer short questions, list the cells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import build
import data
import lessons
import numpy as np
import torch
import torch.nn.functional as F
import train as stages
from phases import (
    COLORING,
    COLORING_STEPS,
    DRAWING,
    JUDGING,
    JUDGING_AGAIN,
    PHASES,
    READING,
    READING_STEPS,
    SETTLING,
    Mix,
    Phase,
)
from torch import Tensor, nn
from transformers import JanusForConditionalGeneration, PreTrainedTokenizerFast

from gapbench.tasks.prompts.shapes import Content
from gapbench.tasks.world import GRID, Sprite, render

REDRAWN = 12
Loss = tuple[Tensor, dict[str, float]]
TURNS = 6
NEAR, FAR, TELLING = 1, (2, 3), 3
"""Layers whose first heads are taught where to look: at what a word names, and at what stands in
a relation to it; and the layer whose state is asked what the parts of a prompt come to."""
COUNTS = 10
DROP_PROMPT = 0.1  # keeps an unconditional branch for guidance
ASK = build.PHRASES[1] + " {prompt}? " + build.PHRASES[2]


class Rows:
    """Right-padded token rows with loss weights; causal attention makes the padding harmless."""

    def __init__(self, tok: PreTrainedTokenizerFast) -> None:
        self.tok = tok
        self.image = [
            tok.boi_token_id,
            *[tok.image_token_id] * build.IMAGE_TOKENS,
            tok.eoi_token_id,
        ]
        self.head = [tok.bos_token_id, *self.encode(build.PHRASES[0] + "<|User|>: ")]
        self.digits = {self.encode(f" {d}")[-1] for d in "01"}

    @cache  # noqa: B019 (one object for the whole run)
    def encode(self, text: str) -> list[int]:
        return self.tok(text, add_special_tokens=False)["input_ids"]

    def draw(self, text: str, drop: bool) -> list[int]:
        ids = self.encode(f"<|User|>: {text}\n\n<|Assistant|>:")
        if drop:
            ids = [self.tok.pad_token_id] * len(ids)
        return [self.tok.bos_token_id, *ids, self.tok.boi_token_id]

    def answer(self, question: str, answer: str) -> tuple[list[int], list[float]]:
        ask = self.head + self.image + self.encode(_asked(question, 0))
        say = [*self.encode(answer), self.tok.eos_token_id]
        return ask + say, [0.0] * len(ask) + [1.0] * len(say)

    def verdict(self, text: str, label: int) -> tuple[list[int], list[float]]:
        ids, weights = self.answer(ASK.replace("{prompt}", text), _score(label))
        digit = max(i for i, token in enumerate(ids) if token in self.digits)
        return ids, [w if i == digit else 0.05 * w for i, w in enumerate(weights)]

    def dialogue(self, turns: Sequence[tuple[str, str]]) -> tuple[list[int], list[float]]:
        """Questions and answers on one picture; of a verdict nearly only the digit counts."""
        ids: list[int] = self.head + self.image
        weights: list[float] = []
        for turn, (question, answer) in enumerate(turns):
            ids = ids + self.encode(_asked(question, turn))
            weights += [0.0] * (len(ids) - len(weights))
            say = [*self.encode(answer), self.tok.eos_token_id]
            digits = [token in self.digits for token in say]
            ids = ids + say
            weights += [1.0 if here or not any(digits) else 0.02 for here in digits]
        return ids, weights

    def places(
        self, scene: dict[int, Sprite], contents: Sequence[Content]
    ) -> Iterator[tuple[int, lessons.Clue]]:
        """(position in the dialogue about `contents`, what the picture says there)."""
        at = len(self.head) + len(self.image)
        for turn, content in enumerate(contents):
            text = _asked(ASK.replace("{prompt}", content.text), turn)
            cut = self.tok(text, add_special_tokens=False, return_offsets_mapping=True)
            offsets = cut["offset_mapping"]
            start = text.index(content.text)
            for clue in lessons.clues(scene, content):
                end = start + clue.end
                yield at + next(i for i, o in enumerate(offsets) if o[1] >= end), clue
            at += len(offsets) + len(self.encode(_score(0))) + 1

    def pad(self, rows: Sequence[Sequence[float]], value: float) -> Tensor:
        width = max(map(len, rows))
        return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


def _asked(question: str, turn: int) -> str:
    return ("<|User|>: " if turn else "\n") + f"{question}\n\n<|Assistant|>:"


def _score(label: int) -> str:
    return f" The score is {label}."


class Codes:
    """Codes of clean renders by table: a patch of given pixels has one code (its commonest)."""

    def __init__(self, vq: nn.Module) -> None:
        votes: dict[bytes, dict[int, int]] = {}
        rng = np.random.default_rng(31)
        for _ in range(60):
            images = [data.messy(rng)[0] for _ in range(64)]
            codes = stages.tokenize(vq, stages.pixels(images))
            for image, row in zip(images, codes.tolist(), strict=True):
                for patch, code in zip(self.patches(image), row, strict=True):
                    tally = votes.setdefault(patch, {})
                    tally[code] = tally.get(code, 0) + 1
        self.table = {p: max(t, key=t.__getitem__) for p, t in votes.items()}
        agree = sum(max(t.values()) for t in votes.values()) / sum(
            sum(t.values()) for t in votes.values()
        )
        print(f"lm: {len(votes)} patches, {len(set(self.table.values()))} codes, "
              f"{agree:.4f} of patches have their patch's commonest code", flush=True)  # fmt: skip

    @staticmethod
    def patches(image: data.Image) -> list[bytes]:
        n, p = image.shape[0] // build.PATCH, build.PATCH
        blocks = image.reshape(n, p, n, p, 3).transpose(0, 2, 1, 3, 4).reshape(n * n, -1)
        return [block.tobytes() for block in blocks]

    def __call__(self, image: data.Image) -> list[int]:
        return [self.table[patch] for patch in self.patches(image)]


def train(
    model: JanusForConditionalGeneration,
    tok: PreTrainedTokenizerFast,
    work: Path,
    steps: int,
    settle_steps: int,
    verdict_steps: int,
) -> None:
    vq = model.model.vqmodel
    rows = Rows(tok)
    codes = Codes(vq)
    with torch.no_grad():
        book = F.normalize(vq.quantize.embedding.weight, dim=1)
        model.model.generation_embeddings.weight.copy_(book)
    # What the layers have seen in the last pass, and what they are asked about it.
    looks: dict[int, Tensor] = {}
    states: dict[int, Tensor] = {}
    width = model.config.text_config.hidden_size
    asks = nn.ModuleDict(
        {"truth": nn.Linear(width, 2), "count": nn.Linear(width, COUNTS),
         "column": nn.Linear(width, GRID), "row": nn.Linear(width, GRID)}
    )  # fmt: skip

    def note(number: int, layer: nn.Module) -> None:
        def look(_module: nn.Module, _args: object, out: tuple[Tensor, Tensor]) -> None:
            looks[number] = out[1][:, 0]

        def state(_module: nn.Module, _args: object, out: Tensor) -> None:
            states[number] = out

        layer.self_attn.register_forward_hook(look)
        layer.register_forward_hook(state)

    # On a CPU the fused attention's backward pass in bf16 costs as much as all the rest.
    model.set_attn_implementation("eager")
    core = model.model
    for number in {NEAR, *FAR, TELLING}:
        note(number, core.language_model.layers[number])
    background = codes(render({}))[14]

    def draw_loss(rng: np.random.Generator, mix: Mix) -> tuple[Tensor, float]:
        drawings = [data.drawing(rng, mix.category) for _ in range(mix.drawings)]
        images, texts = zip(*drawings, strict=True)
        heads = [rows.draw(text, rng.random() < DROP_PROMPT) for text in texts]
        target = torch.tensor([codes(image) for image in images])
        drawn = model.prepare_embeddings_for_image_generation(target[:, :-1])
        words = core.get_input_embeddings()(rows.pad(heads, 0).long())
        # The image follows its own prompt directly, so each row is cut at its length.
        embeds = nn.utils.rnn.pad_sequence(
            [torch.cat([w[: len(h)], d]) for w, h, d in zip(words, heads, drawn, strict=True)],
            batch_first=True,
        )
        hidden = core.language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
        start = torch.tensor([len(h) - 1 for h in heads])
        at = start.unsqueeze(1) + torch.arange(build.IMAGE_TOKENS)
        hidden = hidden.gather(1, at.unsqueeze(2).expand(-1, -1, hidden.shape[2]))
        scores = core.generation_head(hidden).float()
        losses = F.cross_entropy(scores.flatten(0, 1), target.flatten(), reduction="none")
        sprite = target.flatten() != background
        weights = torch.where(sprite, mix.sprites, 1.0)
        return (losses * weights).sum() / weights.sum(), losses[sprite].mean().item()

    def say_loss(
        images: Sequence[data.Image], made: Sequence[tuple[list[int], list[float]]], redrawn: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        x = stages.pixels(images)
        if redrawn:
            x[:redrawn] = stages.redraw(vq, x[:redrawn])
        x = x + 0.04 * torch.rand(len(x), 1, 1, 1) * torch.randn_like(x)
        ids = rows.pad([m[0] for m in made], tok.pad_token_id).long()
        weights = rows.pad([m[1] for m in made], 0.0)[:, 1:]
        hidden = core(input_ids=ids, pixel_values=x, use_cache=False).last_hidden_state[:, :-1]
        keep = weights > 0
        scores = model.lm_head(hidden[keep]).float()
        target = ids[:, 1:][keep]
        loss = F.cross_entropy(scores, target, reduction="none") * weights[keep]
        return loss.sum() / weights.sum(), scores.argmax(1) == target, weights[keep]

    def clue_loss(
        asked: Sequence[tuple[data.Image, dict[int, Sprite], list[tuple[Content, int]]]],
    ) -> tuple[Tensor, dict[str, float]]:
        """Where words should look, and what can be said then.

        A word gives its attention to the cells that show what it names, and to none of the picture
        where nothing does. Where it is a matter of how many, each gets as much as the token before
        the picture, so that a share tells the count. Linear maps of the states are asked for the
        place of a thing that is alone, for the count, and for whether a part of the prompt holds.
        """
        found = [
            (row, at, clue)
            for row, (_, scene, turns) in enumerate(asked)
            for at, clue in rows.places(scene, [content for content, _ in turns])
        ]
        row, at, clues = (list(column) for column in zip(*found, strict=True))
        start = len(rows.head) + 1
        counted = torch.tensor([clue.counted for clue in clues])
        near = torch.tensor([clue.near for clue in clues])
        far = torch.tensor([clue.far for clue in clues])
        total = torch.zeros(())
        for layer in (NEAR, *FAR):
            given = looks[layer][row, at].float()
            picture = given[:, start : start + build.IMAGE_TOKENS]
            shown = near if layer == NEAR else far
            patches = shown.view(-1, GRID, 1, GRID, 1).expand(-1, GRID, 2, GRID, 2)
            patches = patches.reshape(len(shown), -1)
            right = torch.where(
                shown.any(1), (picture * patches).sum(1), 1 - picture.sum(1)
            ).clamp_min(1e-4)
            loss = -right.log()
            if layer != NEAR:
                beside = given[:, start - 1].clamp_min(1e-4).log()
                each = (picture.clamp_min(1e-4).log() * patches).sum(1) / 4
                loss = torch.where(counted, -(beside + each) / (shown.sum(1) + 1), loss)
            total = total + loss.mean()
        truth = torch.tensor([clue.truth for clue in clues])
        cell = near.argmax(1)
        figures: dict[str, float] = {}
        for name, layer, which, wanted, weight in (
            ("truth", TELLING, truth >= 0, truth, 1.0),
            ("count", TELLING, counted, near.sum(1), 0.5),
            ("column", NEAR, near.sum(1) == 1, cell % GRID, 0.5),
            ("row", NEAR, near.sum(1) == 1, cell // GRID, 0.5),
        ):
            if which.any():
                told = asks[name](states[layer][row, at][which]).float()
                total = total + weight * F.cross_entropy(told, wanted[which])
                figures[name] = (told.argmax(1) == wanted[which]).float().mean().item()
        return total, figures

    def loss_of(step: int, mix: Mix, salt: int) -> Loss:
        rng = np.random.default_rng([salt, step])
        figures: dict[str, float] = {}
        with torch.autocast("cpu", torch.bfloat16):
            draw, figures["sprites"] = draw_loss(rng, mix)
            pairs = [data.pair(rng, mix.pairs_of) for _ in range(mix.pairs)]
            judge, hit, weight = say_loss(
                [p[0] for p in pairs], [rows.verdict(p[1], p[2]) for p in pairs], REDRAWN
            )
            figures["pairs"] = hit[weight == 1].float().mean().item()
            total = mix.weight * draw + judge
            for name, make, count in (
                ("quizzes", lessons.quiz, mix.quizzes),
                ("cells", lessons.listing, mix.lists),
            ):
                if count:
                    told = [make(rng) for _ in range(count)]
                    loss, hit, _ = say_loss(
                        [t[0] for t in told], [rows.answer(t[1], f" {t[2]}") for t in told], 0
                    )
                    total = total + loss
                    figures[name] = hit.float().mean().item()
            if mix.verdicts:
                of = mix.verdicts_of or (None,)
                asked = [
                    lessons.questions(rng, of[rng.integers(len(of))], TURNS)
                    for _ in range(mix.verdicts)
                ]
                made = [
                    rows.dialogue([(ASK.replace("{prompt}", c.text), _score(y)) for c, y in turns])
                    for _, _, turns in asked
                ]
                loss, hit, weight = say_loss([a[0] for a in asked], made, mix.verdicts // 4)
                clues, told = clue_loss(asked)
                total = total + loss + clues
                figures |= told
                figures["verdicts"] = hit[weight == 1].float().mean().item()
            if mix.interviews:
                said = [lessons.interview(rng, TURNS) for _ in range(mix.interviews)]
                made = [rows.dialogue([(q, f" {a}") for q, a in turns]) for _, turns in said]
                loss, hit, _ = say_loss([s[0] for s in said], made, mix.interviews // 4)
                total = total + loss
                figures["interviews"] = hit.float().mean().item()
        return total, {"draw": draw.item(), **figures}

    stages.Stage("lm", model, steps, 1e-3, work).run(
        lambda step: loss_of(step, READING if step < READING_STEPS else JUDGING, 32)
    )
    stages.Stage("draw", model, 900, 1e-3, work).run(
        lambda step: loss_of(step, COLORING if step < COLORING_STEPS else DRAWING, 33), until=500
    )
    settle_colors = SETTLING._replace(category="colors", pairs_of="colors")
    stages.Stage("settle", model, settle_steps, 1e-3, work).run(
        lambda step: loss_of(step, SETTLING if step % 2 and step >= 100 else settle_colors, 34)
    )
    judge_colors = JUDGING_AGAIN._replace(category="colors", pairs_of="colors")
    stages.Stage("verdict", model, verdict_steps, 8e-4, work).run(
        lambda step: loss_of(step, JUDGING_AGAIN if step % 3 else judge_colors, 35)
    )
    stages.balance(core, work)
    for number, phase in enumerate(PHASES):

        def loss_at(step: int, phase: Phase = phase, salt: int = 40 + number) -> Loss:
            mix = phase.mixes[step // phase.turn % len(phase.mixes)]
            if phase.reads:
                mix = mix._replace(verdicts_of=(phase.reads[step % len(phase.reads)],))
            if phase.mixed and step % 5 == 0:
                mix = mix._replace(category=None)
            return loss_of(step, mix, salt)

        taught = nn.ModuleDict({"model": model, "asks": asks})
        stages.Stage(phase.name, taught, phase.steps, phase.lr, work, 50, phase.fall).run(loss_at)
