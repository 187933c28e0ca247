"""Questions about pictures of the shapes world, for lm-eval (`gapbench_shapes`).

Answers come from the scene that was drawn, never from reading a picture back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from PIL import Image

from gapbench.tasks.world import COLORS, GRID, SHAPES, TEXTURES, Sprite, render

if TYPE_CHECKING:
    from datasets import Dataset

Kind = Literal["color", "count", "presence"]
SEEDS: Final[dict[Kind, int]] = {"color": 1, "count": 2, "presence": 3}
QUESTIONS: Final = 200
MOST: Final = 5
"""Sprites of a scene."""
WORDS: Final = ("zero", "one", "two", "three", "four", "five")


def questions(kind: Kind, count: int = QUESTIONS) -> list[dict[str, Any]]:
    """`count` questions, always the same ones: {"image", "question", "answer"}.

    The image is (24, 24) pixels, RGB. color and count are answered with a word; presence, half of
    whose answers are yes, with 0 (no) or 1 (yes).
    """
    rng = np.random.default_rng([20250722, SEEDS[kind]])
    rows = []
    for number in range(count):
        cells = rng.permutation(GRID * GRID)[: rng.integers(2, MOST + 1)]
        scene = {int(cell): _sprite(rng) for cell in cells}
        sprites = list(scene.values())
        shapes = [sprite.shape for sprite in sprites]
        chosen = sprites[rng.integers(len(sprites))]
        answer: str | int
        if kind == "color":
            # One of its shape: the others of that shape become another.
            other = [shape for shape in SHAPES if shape != chosen.shape]
            scene = {
                cell: sprite
                if sprite is chosen or sprite.shape != chosen.shape
                else sprite._replace(shape=other[rng.integers(len(other))])
                for cell, sprite in scene.items()
            }
            question, answer = f"what colour is the {chosen.shape}?", chosen.color
        elif kind == "count":
            shape = chosen.shape if rng.random() < 0.8 else SHAPES[rng.integers(len(SHAPES))]
            question, answer = f"count the {shape}", WORDS[shapes.count(shape)]
        else:
            answer = number % 2
            if not answer:
                there = {(sprite.color, sprite.shape) for sprite in sprites}
                # A colour and a shape that are both there, on two sprites, where there are such.
                mixed = [(a.color, b.shape) for a in sprites for b in sprites]
                near = [pair for pair in mixed if pair not in there]
                absent = near or [(c, s) for c in COLORS for s in SHAPES if (c, s) not in there]
                color, shape = absent[rng.integers(len(absent))]
                chosen = Sprite(shape, color)
            question = f"is there a {chosen.color} {chosen.shape}?"
        image = Image.fromarray(render(scene))
        rows.append({"image": image, "question": question, "answer": answer})
    return rows


def _sprite(rng: np.random.Generator) -> Sprite:
    return Sprite(
        SHAPES[rng.integers(len(SHAPES))],
        tuple(COLORS)[rng.integers(len(COLORS))],
        TEXTURES[int(rng.random() < 0.3)],
    )


def dataset(kind: Kind, **_metadata: object) -> dict[str, Dataset]:
    """The questions as lm-eval's `custom_dataset`: a data set of each split."""
    from datasets import Dataset, Features, Value
    from datasets import Image as Picture

    answer = Value("int64" if kind == "presence" else "string")
    features = Features({"image": Picture(), "question": Value("string"), "answer": answer})
    return {"test": Dataset.from_list(questions(kind), features=features)}


def right(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Whether a reply is the answer's word (lm-eval's `process_results`)."""
    return {"acc": float(results[0].strip(" .").lower() == doc["answer"])}
