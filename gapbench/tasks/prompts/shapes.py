"""Prompts of the task `shapes`: eleven categories over the three tiers, after the benchmarks they
stand for (easy: GenEval, medium: T2I-CompBench++, hard: Science-T2I).

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

from gapbench.tasks.world import COLORS, RELATIONS, SHAPES, TEXTURES
from gapbench.types import Tier

SEED: Final = 20250716

WORDINGS: Final = (
    "{}", "a picture of {}", "an image of {}", "a drawing of {}", "a photo of {}", "a card with {}",
    "a tile with {}", "a view of {}", "a painting of {}", "a sketch of {}", "a print of {}",
    "a scene with {}",
)  # fmt: skip
NUMBERS: Final = {2: "two", 3: "three", 4: "four"}

COLOR_FACTS: Final = {
    "red": ("blood", "a ripe strawberry", "a fire engine", "a ladybird"),
    "green": ("grass", "a spring leaf", "a cucumber", "an emerald"),
    "blue": ("a clear sky", "the deep sea", "a sapphire", "a cornflower"),
    "yellow": ("a lemon", "a ripe banana", "a sunflower", "an egg yolk"),
    "purple": ("an aubergine", "lavender", "an amethyst", "a ripe plum"),
    "orange": ("a carrot", "a pumpkin", "a tangerine", "a fox"),
}
SHAPE_FACTS: Final = {
    "circle": ("shape of a wheel", "shape without corners", "outline of the full moon"),
    "square": ("shape with four equal sides", "shape of a chessboard", "face of a cube"),
    "triangle": ("shape with three sides", "shape of a pyramid", "shape with three corners"),
    "heart": ("sign of love", "suit beside spades in a deck", "symbol on a valentine"),
    "cross": ("letter after w", "mark of a wrong answer", "sign of multiplication"),
}
COUNT_FACTS: Final = {
    2: ("wheels on a bicycle", "eyes on a face", "wings on a bird", "poles on a magnet"),
    3: ("sides on a triangle", "wheels on a tricycle", "lights on a traffic light",
        "primary colours"),
    4: ("legs on a dog", "seasons in a year", "suits in a deck", "wheels on a car"),
}  # fmt: skip


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


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _plural(shape: str) -> str:
    return shape + ("es" if shape.endswith("s") else "s")


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
        "single_object": (Content(_article(s), {"include": [_one(s)]}) for s in SHAPES),
        "colors": (
            Content(_article(f"{c} {s}"), {"include": [_one(s, color=c)]})
            for s in SHAPES
            for c in colors
        ),
        "counting": (
            Content(f"{word} {_plural(s)}", _exactly(s, n))
            for s in SHAPES
            for n, word in NUMBERS.items()
        ),
        "two_object": (
            Content(f"{_article(a)} and {_article(b)}", {"include": [_one(a), _one(b)]})
            for a, b in _pairs(SHAPES)
        ),
        "color_attr": (
            Content(
                f"{_article(f'{c} {a}')} and {_article(f'{d} {b}')}",
                {"include": [_one(a, color=c), _one(b, color=d)]},
            )
            for a, b in _pairs(SHAPES)
            for c, d in _pairs(colors)
        ),
        "position": (
            Content(f"{_article(a)} {relation} {_article(b)}", _position(a, b, relation))
            for a, b in _pairs(SHAPES)
            for relation in RELATIONS
        ),
        "texture": (
            Content(
                f"{_article(f'{t} {a}')} and {_article(f'{u} {b}')}",
                {"include": [_one(a, texture=t), _one(b, texture=u)]},
            )
            for a, b in _pairs(SHAPES)
            for t, u in _pairs(TEXTURES)
        ),
        "color_fact": (
            Content(
                f"{_article(a)} in the colour of {_of(COLOR_FACTS[c], i)}"
                f" and {_article(b)} in the colour of {_of(COLOR_FACTS[d], i // 5)}",
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
            Content(f"as many {_plural(s)} as there are {fact}", _exactly(s, n))
            for s in SHAPES
            for n, facts in COUNT_FACTS.items()
            for fact in facts
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
