"""The language model's stage: draw what words say, and talk about pictures."""

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
import vq
from lessons import Content, Drawing
from stage import Stage
from torch import Tensor, nn
from transformers import JanusForConditionalGeneration, PreTrainedTokenizerFast

from gapbench.tasks.world import COLORS, GRID, SHAPES, TEXTURES, Scene, render

DRAWINGS, CAPTIONED, INTERVIEWS, TURNS = 36, 10, 3, 6
"""Of each step: pictures to draw, pictures with captions, pictures with questions; and how many
captions or questions a picture has."""
NEAR, FAR, TELLING = 1, (2, 3), 3
"""Layers whose first heads are taught where to look: at what a word names, and at what stands in
a relation to it; and the layer whose state is asked what comes next in a drawing."""
DROP_PROMPT = 0.05  # keeps an unconditional branch for guidance
ASK = build.PHRASES[1] + " {prompt}? " + build.PHRASES[2]
UNTOLD = -100
"""A class that no loss counts."""


class Rows:
    """Right-padded token rows with loss weights; causal attention makes the padding harmless."""

    def __init__(self, tok: PreTrainedTokenizerFast) -> None:
        self.tok = tok
        image = [tok.boi_token_id, *[tok.image_token_id] * build.IMAGE_TOKENS, tok.eoi_token_id]
        self.head = [tok.bos_token_id, *self.encode(build.PHRASES[0] + "<|User|>: "), *image]
        self.digits = {self.encode(f" {d}")[-1] for d in "01"}

    @cache  # noqa: B019 (one object for the whole run)
    def encode(self, text: str) -> list[int]:
        return self.tok(text, add_special_tokens=False)["input_ids"]

    def draw(self, text: str, drop: bool) -> list[int]:
        ids = self.encode(f"<|User|>: {text}\n\n<|Assistant|>:")
        if drop:
            ids = [self.tok.pad_token_id] * len(ids)
        return [self.tok.bos_token_id, *ids, self.tok.boi_token_id]

    def dialogue(self, turns: Sequence[tuple[str, str]]) -> tuple[list[int], list[float]]:
        """Questions and answers on one picture; of a verdict nearly only the digit counts."""
        ids, weights = [*self.head], [0.0] * len(self.head)
        for turn, (question, answer) in enumerate(turns):
            ask = self.encode(_asked(question, turn))
            say = [*self.encode(answer), self.tok.eos_token_id]
            digits = [token in self.digits for token in say]
            ids += ask + say
            weights += [0.0] * len(ask)
            weights += [1.0 if here or not any(digits) else 0.02 for here in digits]
        return ids, weights

    def places(
        self, scene: Scene, turns: Sequence[tuple[Content, int]]
    ) -> Iterator[tuple[int, lessons.Clue]]:
        """(position in the dialogue about the captions, what the picture says there)."""
        at = len(self.head)
        for turn, (content, _) in enumerate(turns):
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

    def __init__(self, model: nn.Module) -> None:
        votes: dict[bytes, dict[int, int]] = {}
        rng = np.random.default_rng(31)
        for _ in range(60):
            images = [data.messy(rng)[0] for _ in range(64)]
            codes = vq.tokenize(model, data.pixels(images))
            for image, row in zip(images, codes.tolist(), strict=True):
                for patch, code in zip(self.patches(image), row, strict=True):
                    tally = votes.setdefault(patch, {})
                    tally[code] = tally.get(code, 0) + 1
        self.table = {p: max(t, key=t.__getitem__) for p, t in votes.items()}
        self.background = self(render({}))[14]

    @staticmethod
    def patches(image: data.Image) -> list[bytes]:
        n, p = image.shape[0] // build.PATCH, build.PATCH
        blocks = image.reshape(n, p, n, p, 3).transpose(0, 2, 1, 3, 4).reshape(n * n, -1)
        return [block.tobytes() for block in blocks]

    def __call__(self, image: data.Image) -> list[int]:
        return [self.table[patch] for patch in self.patches(image)]


class Teacher(nn.Module):
    """Throw-away linear maps of the language model's states, which its losses ask: in a drawing
    what the next thing is and how many there are of each shape; in a caption whether what a name
    names is there, how often, and where."""

    def __init__(self) -> None:
        super().__init__()
        kinds = (len(SHAPES), len(COLORS), len(TEXTURES))
        self.next = nn.ModuleList(nn.Linear(build.WIDTH, kind) for kind in kinds)
        self.many = nn.Linear(build.WIDTH, len(SHAPES) * 6)
        self.there = nn.Linear(build.WIDTH, 2)
        self.count = nn.Linear(build.WIDTH, GRID * GRID + 1)
        self.place = nn.ModuleList(nn.Linear(build.WIDTH, GRID) for _ in range(2))


class Lessons:
    """A step's losses."""

    def __init__(self, model: JanusForConditionalGeneration, tok: PreTrainedTokenizerFast) -> None:
        self.model, self.core, self.tok = model, model.model, tok
        self.rows, self.codes, self.teacher = Rows(tok), Codes(model.model.vqmodel), Teacher()
        # What the layers have seen in the last pass, and what they are asked about it.
        self.looks: dict[int, Tensor] = {}
        self.states: dict[int, Tensor] = {}
        for number in {NEAR, *FAR, TELLING}:
            layer = self.core.language_model.layers[number]
            layer.self_attn.register_forward_hook(
                lambda _m, _a, out, n=number: self.looks.__setitem__(n, out[1][:, 0])
            )
            layer.register_forward_hook(
                lambda _m, _a, out, n=number: self.states.__setitem__(n, out)
            )

    def __call__(self, step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng([32, step])
        with torch.autocast("cpu", torch.bfloat16):
            draw, figures = self.draw([lessons.drawing(rng) for _ in range(DRAWINGS)], rng)
            told = [lessons.captions(rng, TURNS) for _ in range(CAPTIONED)]
            made = [
                self.rows.dialogue(
                    [(ASK.replace("{prompt}", c.text), _score(y)) for c, y in one.captions]
                )
                for one in told
            ]
            read, hit = self.say([one.image for one in told], made)
            look, more = self.look(told)
            figures |= {"captions": hit} | more
            talks = [lessons.interview(rng, TURNS) for _ in range(INTERVIEWS)]
            made = [self.rows.dialogue([(q, f" {a}") for q, a in turns]) for _, turns in talks]
            talk, figures["interviews"] = self.say([render(scene) for scene, _ in talks], made)
        return draw + read + look + talk, figures

    def draw(
        self, drawings: list[Drawing], rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Whether a thing begins is learned apart from what it is. So what it is can weigh more,
        which its few tokens need, and as many things are drawn as there should be."""
        heads = [self.rows.draw(d.content.text, rng.random() < DROP_PROMPT) for d in drawings]
        target = torch.tensor([self.codes(render(d.scene)) for d in drawings])
        drawn = self.model.prepare_embeddings_for_image_generation(target[:, :-1])
        words = self.core.get_input_embeddings()(self.rows.pad(heads, 0).long())
        # The image follows its own prompt directly, so each row is cut at its length.
        embeds = nn.utils.rnn.pad_sequence(
            [torch.cat([w[: len(h)], d]) for w, h, d in zip(words, heads, drawn, strict=True)],
            batch_first=True,
        )
        hidden = self.core.language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
        start = torch.tensor([len(h) - 1 for h in heads])
        at = start.unsqueeze(1) + torch.arange(build.IMAGE_TOKENS)

        def here(states: Tensor) -> Tensor:
            return states.gather(1, at.unsqueeze(2).expand(-1, -1, states.shape[2]))

        scores = self.core.generation_head(here(hidden)).float()
        background = self.codes.background
        thing = target != background
        rest = torch.arange(scores.shape[2]) != background
        begin = torch.logsumexp(scores[..., rest], 2) - scores[..., background]
        begins = F.binary_cross_entropy_with_logits(begin, thing.float())
        only = scores.masked_fill(~rest, float("-inf"))
        what = F.cross_entropy(only[thing], target[thing], reduction="none")
        corner = torch.zeros(GRID, 2, GRID, 2, dtype=torch.bool)
        corner[:, 0, :, 0] = True
        first = corner.flatten().expand_as(thing)[thing]
        loss = 3 * begins + what[first].mean() + what[~first].mean()
        facets = torch.tensor([_facets(d) for d in drawings])[thing & corner.flatten()]
        states = here(self.states[TELLING]).float()
        figures = {"begins": begins.item(), "first": what[first].mean().item(),
                   "others": what[~first].mean().item()}  # fmt: skip
        for name, ask, wanted in zip(
            ("shape", "color", "texture"), self.teacher.next, facets.T, strict=True
        ):
            told = ask(states[thing & corner.flatten()]).float()
            loss = loss + F.cross_entropy(told, wanted, ignore_index=UNTOLD)
            known = wanted != UNTOLD
            figures[name] = (told.argmax(1) == wanted)[known].float().mean().item()
        many = self.teacher.many(states[:, 0]).float().view(len(drawings), len(SHAPES), -1)
        number = torch.tensor([_numbers(d) for d in drawings])
        figures["many"] = (many.argmax(2) == number).all(1).float().mean().item()
        return loss + F.cross_entropy(many.flatten(0, 1), number.flatten()), figures

    def say(
        self, images: Sequence[data.Image], made: Sequence[tuple[list[int], list[float]]]
    ) -> tuple[Tensor, float]:
        """The loss of what is said about pictures, a quarter of them redrawn by the VQ model, and
        the share of its tokens that are right."""
        x = data.pixels(images)
        redrawn = len(x) // 4
        x[:redrawn] = vq.redraw(self.core.vqmodel, x[:redrawn])
        x = x + 0.04 * torch.rand(len(x), 1, 1, 1) * torch.randn_like(x)
        ids = self.rows.pad([m[0] for m in made], self.tok.pad_token_id).long()
        weights = self.rows.pad([m[1] for m in made], 0.0)[:, 1:]
        hidden = self.core(input_ids=ids, pixel_values=x, use_cache=False).last_hidden_state
        keep = weights > 0
        scores = self.model.lm_head(hidden[:, :-1][keep]).float()
        target, weights = ids[:, 1:][keep], weights[keep]
        loss = F.cross_entropy(scores, target, reduction="none") * weights
        right = (scores.argmax(1) == target)[weights == 1]
        return loss.sum() / weights.sum(), right.float().mean().item()

    def look(self, told: Sequence[lessons.Captioned]) -> tuple[Tensor, dict[str, float]]:
        """Where words should look, and what can be said then.

        A word gives its attention to the cells that show what it names, and to none of the picture
        where nothing does. Where it is a matter of how many, each gets as much as the token before
        the picture, so that a share tells the count.
        """
        found = [
            (row, at, clue)
            for row, one in enumerate(told)
            for at, clue in self.rows.places(one.scene, one.captions)
        ]
        row, at, clues = (list(column) for column in zip(*found, strict=True))
        start = len(self.rows.head) - build.IMAGE_TOKENS - 1
        counted = torch.tensor([clue.counted for clue in clues])
        near = torch.tensor([clue.near for clue in clues])
        far = torch.tensor([clue.far for clue in clues])
        total = torch.zeros(())
        for layer in (NEAR, *FAR):
            given = self.looks[layer][row, at].float()
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
        last = torch.tensor([clue.last for clue in clues])
        alone, cell, number = near.sum(1) == 1, near.argmax(1), near.sum(1)
        figures: dict[str, float] = {}
        for name, ask, layer, which, wanted in (
            ("there", self.teacher.there, TELLING, last & ~counted, near.any(1).long()),
            ("count", self.teacher.count, TELLING, last & counted, number),
            ("row", self.teacher.place[0], NEAR, alone, cell // GRID),
            ("column", self.teacher.place[1], NEAR, alone, cell % GRID),
        ):
            if which.any():
                answer = ask(self.states[layer][row, at][which].float()).float()
                total = total + 0.5 * F.cross_entropy(answer, wanted[which])
                figures[name] = (answer.argmax(1) == wanted[which]).float().mean().item()
        return total, figures


def _facets(drawing: Drawing) -> list[list[int]]:
    """(36, 3) class ids of the shape, colour and texture that words give a patch's thing."""
    cells = []
    for cell in range(GRID * GRID):
        item = drawing.items.get(cell, {})
        named = zip(("shape", "color", "texture"), (SHAPES, tuple(COLORS), TEXTURES), strict=True)
        cells.append([v.index(item[k]) if k in item else UNTOLD for k, v in named])
    patches = np.array(cells).reshape(GRID, 1, GRID, 1, 3)
    return np.broadcast_to(patches, (GRID, 2, GRID, 2, 3)).reshape(-1, 3).tolist()


def _numbers(drawing: Drawing) -> list[int]:
    shapes = [s.shape for s in drawing.scene.values()]
    return [shapes.count(shape) for shape in SHAPES]


def train(
    model: JanusForConditionalGeneration, tok: PreTrainedTokenizerFast, work: Path, steps: int
) -> None:
    with torch.no_grad():
        book = F.normalize(model.model.vqmodel.quantize.embedding.weight, dim=1)
        model.model.generation_embeddings.weight.copy_(book)
    # On a CPU the fused attention's backward pass in bf16 costs as much as all the rest.
    model.set_attn_implementation("eager")
    loss_of = Lessons(model, tok)
    taught = nn.ModuleDict({"model": model, "teacher": loss_of.teacher})
    Stage("lm", taught, steps, 1e-3, work, fall=0.3, floor=0.1).run(loss_of)
