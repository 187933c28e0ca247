"""Prompts of `shapes@1.1`, as they were before a split by what is asked for; see shapes.py.

A prompt is a wording around a content. In the medium and hard tiers the test split holds contents
that the train split has in no wording around it, though it may have them in another order or with
other facts for the same shapes; the easy tier has too few contents for that, so there only the
wording is new.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np

from gapbench.tasks.prompts import words
from gapbench.tasks.prompts.words import (
    COLOR_FACTS,
    COUNT_FACTS,
    SHAPE_FACTS,
    WORDINGS,
    article,
    plural,
)
from gapbench.tasks.world import COLORS, RELATIONS, SHAPES, TEXTURES
from gapbench.types import Tier

SEED: Final = 20250716

NUMBERS: Final = {number: word for number, word in words.NUMBERS.items() if number < 5}


class Category(NamedTuple):
    """Sizes of a category's splits; `held_out` contents (0: none) are the test split's alone."""

    tier: Tier
    test: int
    train: int
    held_out: int


CATEGORIES: Final[dict[str, Category]] = {
    "single_object": Category("easy", 20, 40, 0),
    "colors": Category("easy", 40, 220, 0),
    "counting": Category("easy", 40, 140, 0),
    "two_object": Category("easy", 40, 200, 0),
    "color_attr": Category("medium", 50, 300, 60),
    "position": Category("medium", 50, 300, 10),
    "texture": Category("medium", 40, 240, 6),
    "color_fact": Category("hard", 40, 240, 60),
    "shape_fact": Category("hard", 40, 240, 60),
    "count_fact": Category("hard", 40, 240, 10),
    "compound_fact": Category("hard", 40, 240, 60),
}


class Content(NamedTuple):
    """What a prompt says, without its wording, and what a judge checks."""

    text: str
    requirement: dict[str, Any]


def _pairs(values: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    return ((a, b) for a in values for b in values if a != b)


def _bound() -> Iterator[tuple[str, str, str, str]]:
    """Two shapes and their colours, all different."""
    return ((a, b, c, d) for a, b in _pairs(SHAPES) for c, d in _pairs(tuple(COLORS)))


def _of(facts: tuple[str, ...], turn: int) -> str:
    return facts[turn % len(facts)]


def _one(shape: str, **more: Any) -> dict[str, Any]:
    return {"shape": shape, "count": 1, **more}


def _exactly(shape: str, count: int) -> dict[str, Any]:
    return {
        "include": [{"shape": shape, "count": count}],
        "exclude": [{"shape": shape, "count": count + 1}],
    }


def _position(a: str, b: str, relation: str) -> dict[str, Any]:
    return {"include": [_one(b), _one(a, position=[relation, 0])]}


@cache
def contents(category: str) -> tuple[Content, ...]:
    """All contents of a category, in a fixed order."""
    colors = tuple(COLORS)
    made: dict[str, Iterator[Content]] = {
        "single_object": (Content(article(s), {"include": [_one(s)]}) for s in SHAPES),
        "colors": (
            Content(article(f"{c} {s}"), {"include": [_one(s, color=c)]})
            for s in SHAPES
            for c in colors
        ),
        "counting": (
            Content(f"{word} {plural(s)}", _exactly(s, n))
            for s in SHAPES
            for n, word in NUMBERS.items()
        ),
        "two_object": (
            Content(f"{article(a)} and {article(b)}", {"include": [_one(a), _one(b)]})
            for a, b in _pairs(SHAPES)
        ),
        "color_attr": (
            Content(
                f"{article(f'{c} {a}')} and {article(f'{d} {b}')}",
                {"include": [_one(a, color=c), _one(b, color=d)]},
            )
            for a, b in _pairs(SHAPES)
            for c, d in _pairs(colors)
        ),
        "position": (
            Content(f"{article(a)} {relation} {article(b)}", _position(a, b, relation))
            for a, b in _pairs(SHAPES)
            for relation in RELATIONS
        ),
        "texture": (
            Content(
                f"{article(f'{t} {a}')} and {article(f'{u} {b}')}",
                {"include": [_one(a, texture=t), _one(b, texture=u)]},
            )
            for a, b in _pairs(SHAPES)
            for t, u in _pairs(TEXTURES)
        ),
        "color_fact": (
            Content(
                f"{article(a)} in the colour of {_of(COLOR_FACTS[c], i)}"
                f" and {article(b)} in the colour of {_of(COLOR_FACTS[d], i // 5)}",
                {"include": [_one(a, color=c), _one(b, color=d)]},
            )
            for i, (a, b, c, d) in enumerate(_bound())
        ),
        "shape_fact": (
            Content(f"the {fact} {relation} the {other}", _position(a, b, relation))
            for a, b in _pairs(SHAPES)
            for relation in RELATIONS
            for fact in SHAPE_FACTS[a]
            for other in SHAPE_FACTS[b]
        ),
        "count_fact": (
            Content(f"as many {plural(s)} as there are {fact}", _exactly(s, n))
            for s in SHAPES
            for n in NUMBERS
            for fact in COUNT_FACTS[n]
        ),
        "compound_fact": (
            Content(
                f"the {_of(SHAPE_FACTS[a], i)} in the colour of {_of(COLOR_FACTS[c], i // 3)}"
                f" and the {_of(SHAPE_FACTS[b], i // 7)} in the colour of"
                f" {_of(COLOR_FACTS[d], i // 5)}",
                {"include": [_one(a, color=c), _one(b, color=d)]},
            )
            for i, (a, b, c, d) in enumerate(_bound())
        ),
    }
    return tuple(made[category])


@cache
def universe(category: str) -> tuple[tuple[Content, ...], tuple[Content, ...]]:
    """Every prompt a category can have, shuffled once: (those open to training, those of test)."""
    sizes = CATEGORIES[category]
    rng = np.random.default_rng([SEED, *category.encode()])
    bare = [contents(category)[i] for i in rng.permutation(len(contents(category)))]
    if not sizes.held_out:
        worded = _worded(bare, rng)
        return tuple(worded[sizes.test :]), tuple(worded[: sizes.test])
    held, rest = bare[: sizes.held_out], bare[sizes.held_out :]
    return tuple(_worded(rest, rng)), tuple(_worded(held, rng)[: sizes.test])


def _worded(bare: list[Content], rng: np.random.Generator) -> list[Content]:
    full = [Content(wording.format(c.text), c.requirement) for c in bare for wording in WORDINGS]
    return [full[i] for i in rng.permutation(len(full))]


def make(split: str) -> list[dict[str, Any]]:
    """Records {id, category, text, requirement} of a split, "test" or "train"."""
    records = []
    for category, sizes in CATEGORIES.items():
        train, test = universe(category)
        chosen = test if split == "test" else train[: sizes.train]
        records += [
            {
                "id": f"{split}-{category}-{i:03d}",
                "category": category,
                "text": content.text,
                "requirement": content.requirement,
            }
            for i, content in enumerate(chosen)
        ]
    return records
