"""The language model's stage: draw, give verdicts, answer short questions, list the cells."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import build
import data
import numpy as np
import torch
import torch.nn.functional as F
import train as stages
from torch import Tensor, nn
from transformers import JanusForConditionalGeneration, PreTrainedTokenizerFast

from gapbench.shapes import render

REDRAWN = 12


class Mix(NamedTuple):
    """What a step is made of."""

    drawings: int
    pairs: int
    quizzes: int
    lists: int
    weight: float = 1.0
    """Of the drawing loss beside the others."""
    sprites: float = 1.0
    """Of tokens that are not the plain background; other than 1 it bends the probabilities."""
    category: str | None = None
    color_pairs: bool = False
    """Whether the pairs, too, are of the category "colors"."""


# First mostly how to read a picture, before pairs can be judged at all; then judging. By then
# drawing has settled the empty cells, shapes and counts, but does not hear the colours: their few
# tokens drown in the mean over 36. So colours are taught alone, then with everything else, and last
# without the weight on sprites, which draws too many of them.
READING, READING_STEPS = Mix(28, 12, 28, 20), 700
JUDGING = Mix(28, 44, 16, 8)
COLORING, COLORING_STEPS = Mix(48, 12, 0, 0, sprites=10.0, category="colors"), 250
DRAWING = Mix(48, 24, 0, 0, sprites=10.0)
SETTLING = Mix(40, 36, 0, 0, weight=8.0)
JUDGING_AGAIN = Mix(24, 60, 0, 0, weight=8.0)
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
        ask = self.head + self.image + self.encode(f"\n{question}\n\n<|Assistant|>:")
        say = [*self.encode(answer), self.tok.eos_token_id]
        return ask + say, [0.0] * len(ask) + [1.0] * len(say)

    def verdict(self, text: str, label: int) -> tuple[list[int], list[float]]:
        ids, weights = self.answer(ASK.replace("{prompt}", text), f" The score is {label}.")
        digit = max(i for i, token in enumerate(ids) if token in self.digits)
        return ids, [w if i == digit else 0.05 * w for i, w in enumerate(weights)]

    def pad(self, rows: Sequence[Sequence[float]], value: float) -> Tensor:
        width = max(map(len, rows))
        return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


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
    # On a CPU the fused attention's backward pass in bf16 costs as much as all the rest.
    model.set_attn_implementation("eager")
    core = model.model
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

    def loss_of(step: int, mix: Mix, salt: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng([salt, step])
        figures: dict[str, float] = {}
        with torch.autocast("cpu", torch.bfloat16):
            draw, figures["sprites"] = draw_loss(rng, mix)
            total = mix.weight * draw
            pairs = [
                data.pair(rng, "colors" if mix.color_pairs else None) for _ in range(mix.pairs)
            ]
            judge, hit, weight = say_loss(
                [p[0] for p in pairs], [rows.verdict(p[1], p[2]) for p in pairs], REDRAWN
            )
            total = total + judge
            figures["verdicts"] = hit[weight == 1].float().mean().item()
            for name, make, count in (
                ("quizzes", data.quiz, mix.quizzes),
                ("cells", data.listing, mix.lists),
            ):
                if count:
                    asked = [make(rng) for _ in range(count)]
                    loss, hit, _ = say_loss(
                        [a[0] for a in asked], [rows.answer(a[1], f" {a[2]}") for a in asked], 0
                    )
                    total = total + loss
                    figures[name] = hit.float().mean().item()
        return total, {"draw": draw.item(), "judge": judge.item(), **figures}

    stages.Stage("lm", model, steps, 1e-3, work).run(
        lambda step: loss_of(step, READING if step < READING_STEPS else JUDGING, 32)
    )
    stages.Stage("draw", model, 900, 1e-3, work).run(
        lambda step: loss_of(step, COLORING if step < COLORING_STEPS else DRAWING, 33), until=500
    )
    settle_colors = SETTLING._replace(category="colors", color_pairs=True)
    stages.Stage("settle", model, settle_steps, 1e-3, work).run(
        lambda step: loss_of(step, SETTLING if step % 2 and step >= 100 else settle_colors, 34)
    )
    judge_colors = JUDGING_AGAIN._replace(category="colors", color_pairs=True)
    stages.Stage("verdict", model, verdict_steps, 8e-4, work).run(
        lambda step: loss_of(step, JUDGING_AGAIN if step % 3 else judge_colors, 35)
    )
