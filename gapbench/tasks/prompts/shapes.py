"""Prompts of the task `shapes`: fourteen categories over the three tiers, after the benchmarks they
stand for (easy: GenEval, medium: T2I-CompBench++, hard: Science-T2I).

A prompt is a wording around a content. Splits differ by what is asked for, not by words: two
contents with one requirement (in another order, from the other side of a relation, by a fact) are
always on one side, and the test split asks for each of its requirements once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cache
from itertools import permutations, product
from typing import Any, Final, Literal, NamedTuple

import numpy as np

from gapbench.tasks.content import content_of
from gapbench.tasks.prompts.words import (
    COLOR_FACTS,
    COUNT_FACTS,
    NUMBERS,
    SHAPE_FACTS,
    WORDINGS,
    article,
    plural,
)
from gapbench.tasks.world import COLORS, RELATIONS, SHAPES, TEXTURES
from gapbench.types import Tier

SEED: Final = 20261124
Side = Literal["test", "validation", "train"]


class Category(NamedTuple):
    """A category's tier and the sizes of its splits; training has more of what is seldom drawn."""

    tier: Tier
    test: int
    train: int

    @property
    def validation(self) -> int:
        return self.test // 2


CATEGORIES: Final[dict[str, Category]] = {
    "colors": Category("easy", 10, 60),
    "attributes": Category("easy", 22, 140),
    "counting": Category("easy", 28, 240),
    "two_object": Category("easy", 40, 140),
    "three_object": Category("easy", 40, 140),
    "color_attr": Category("medium", 44, 200),
    "position": Category("medium", 44, 200),
    "texture": Category("medium", 12, 160),
    "numeracy": Category("medium", 26, 440),
    "three_attr": Category("medium", 24, 120),
    "color_fact": Category("hard", 44, 140),
    "shape_fact": Category("hard", 44, 140),
    "count_fact": Category("hard", 18, 160),
    "compound_fact": Category("hard", 44, 120),
}
_SIDES: Final[tuple[Side, ...]] = (*("test",) * 3, "validation", *("train",) * 5)


class Content(NamedTuple):
    """What a prompt says, without its wording, and what a judge checks."""

    text: str
    requirement: dict[str, Any]


def side(requirement: dict[str, Any]) -> Side:
    """The only split that may ask for this, in whatever words."""
    digest = hashlib.sha256(f"{SEED} {content_of(requirement)}".encode()).digest()
    return _SIDES[int.from_bytes(digest[:8]) % len(_SIDES)]


def _one(shape: str, color: str = "", texture: str = "") -> dict[str, Any]:
    more = {"color": color, "texture": texture}
    return {"shape": shape, "count": 1, **{key: value for key, value in more.items() if value}}


def _named(item: dict[str, Any]) -> str:
    return " ".join(item[key] for key in ("texture", "color", "shape") if key in item)


def _exactly(*counted: tuple[dict[str, Any], int]) -> dict[str, Any]:
    return {
        "include": [{**item, "count": count} for item, count in counted],
        "exclude": [{**item, "count": count + 1} for item, count in counted],
    }


def _all(*items: dict[str, Any]) -> Content:
    """Things named one after another: "a circle, a heart and a cross"."""
    *most, last = [article(_named(item)) for item in items]
    return Content(f"{', '.join(most)} and {last}" if most else last, {"include": [*items]})


def _placed(a: dict[str, Any], relation: str, b: dict[str, Any]) -> dict[str, Any]:
    return {"include": [b, {**a, "position": [relation, 0]}]}


def _colored_once(shapes: tuple[str, ...]) -> Iterator[list[dict[str, Any]]]:
    """The shapes plain, and with one of them in each colour."""
    yield [_one(shape) for shape in shapes]
    for at, color in product(range(len(shapes)), COLORS):
        yield [_one(shape, color if i == at else "") for i, shape in enumerate(shapes)]


def _counted() -> Iterator[tuple[dict[str, Any], str, int]]:
    for shape, color, number in product(SHAPES, ("", *COLORS), NUMBERS):
        yield _one(shape, color), f"{color} {plural(shape)}".strip(), number


def _related() -> Iterator[tuple[dict[str, Any], str, dict[str, Any]]]:
    for pair, relation in product(permutations(SHAPES, 2), RELATIONS):
        for a, b in _colored_once(pair):
            yield a, relation, b


def _fact(item: dict[str, Any], fact: str, thing: str = "") -> str:
    """A thing whose shape, and with `thing` its colour too, is told by a fact."""
    if thing:
        return f"the {fact} in the colour of {thing}"
    return f"the {item['color']} {fact}" if "color" in item else f"the {fact}"


def _color_facts() -> Iterator[Content]:
    for (a, b), (c, d) in product(permutations(SHAPES, 2), permutations(COLORS, 2)):
        for first, second in product(COLOR_FACTS[c], COLOR_FACTS[d]):
            yield Content(
                f"{article(a)} in the colour of {first} and {article(b)} in the colour of {second}",
                {"include": [_one(a, c), _one(b, d)]},
            )


def _shape_facts() -> Iterator[Content]:
    for a, relation, b in _related():
        for one, other in product(SHAPE_FACTS[a["shape"]], SHAPE_FACTS[b["shape"]]):
            yield Content(f"{_fact(a, one)} {relation} {_fact(b, other)}", _placed(a, relation, b))


def _compound_facts() -> Iterator[Content]:
    turn = 0
    for a, relation, b in _related():
        if "color" not in a and "color" not in b:
            continue
        things = COLOR_FACTS[a.get("color") or b["color"]]
        for one, other in product(SHAPE_FACTS[a["shape"]], SHAPE_FACTS[b["shape"]]):
            thing, turn = things[turn % len(things)], turn + 1
            yield Content(
                f"{_fact(a, one, thing if 'color' in a else '')} {relation}"
                f" {_fact(b, other, thing if 'color' in b else '')}",
                _placed(a, relation, b),
            )


def _contents(category: str) -> Iterator[Content]:
    match category:
        case "colors":
            return (_all(_one(s, c)) for s, c in product(SHAPES, COLORS))
        case "attributes":
            return (_all(_one(s, c, t)) for s, c, t in product(SHAPES, COLORS, TEXTURES))
        case "counting":
            return (
                Content(f"{NUMBERS[number]} {several}", _exactly((item, number)))
                for item, several, number in _counted()
            )
        case "two_object" | "three_object":
            shapes = permutations(SHAPES, 2 if category == "two_object" else 3)
            return (_all(*items) for chosen in shapes for items in _colored_once(chosen))
        case "color_attr" | "three_attr":
            count = 2 if category == "color_attr" else 3
            return (
                _all(*map(_one, shapes, colors))
                for shapes in permutations(SHAPES, count)
                for colors in permutations(COLORS, count)
            )
        case "position":
            return (
                Content(
                    f"{article(_named(a))} {relation} {article(_named(b))}",
                    _placed(a, relation, b),
                )
                for a, relation, b in _related()
            )
        case "texture":
            return (
                _all(_one(a, texture=t), _one(b, texture=u))
                for (a, b), t, u in product(permutations(SHAPES, 2), TEXTURES, TEXTURES)
            )
        case "numeracy":
            numbers = tuple(n for n in NUMBERS if n < 5)  # two kinds of five do not fit
            return (
                Content(
                    f"{NUMBERS[n]} {plural(a)} and {NUMBERS[m]} {plural(b)}",
                    _exactly((_one(a), n), (_one(b), m)),
                )
                for (a, b), n, m in product(permutations(SHAPES, 2), numbers, numbers)
            )
        case "color_fact":
            return _color_facts()
        case "shape_fact":
            return _shape_facts()
        case "count_fact":
            return (
                Content(f"as many {several} as there are {fact}", _exactly((item, number)))
                for item, several, number in _counted()
                for fact in COUNT_FACTS[number]
            )
        case _:
            return _compound_facts()


@cache
def _sides(category: str) -> dict[Side, list[Content]]:
    parts: dict[Side, list[Content]] = {part: [] for part in _SIDES}
    for content in _contents(category):
        parts[side(content.requirement)].append(content)
    return parts


@cache
def contents(category: str, part: Side) -> tuple[Content, ...]:
    """All contents of a category that are on one side, shuffled once."""
    made = _sides(category)[part]
    rng = np.random.default_rng([SEED, *category.encode()])
    return tuple(made[i] for i in rng.permutation(len(made)))


def _chosen(category: str, part: Side, size: int, seen: set[str]) -> Iterator[Content]:
    """Contents in wordings drawn at random; of `test` none whose requirement was seen before."""
    rng = np.random.default_rng([SEED, *part.encode(), *category.encode()])
    listed = contents(category, part)
    turns = range(len(WORDINGS)) if part != "test" else (0,)
    for content in (content for _ in turns for content in listed):
        if not size:
            return
        text = WORDINGS[rng.integers(len(WORDINGS))].format(content.text)
        key = content_of(content.requirement) if part == "test" else text
        if key not in seen:
            seen.add(key)
            size -= 1
            yield Content(text, content.requirement)


def make(split: Side) -> list[dict[str, Any]]:
    """Records {id, category, text, requirement} of a split."""
    seen: set[str] = set()
    return [
        {
            "id": f"{split}-{category}-{i:03d}",
            "category": category,
            "text": content.text,
            "requirement": content.requirement,
        }
        for category, sizes in CATEGORIES.items()
        for i, content in enumerate(_chosen(category, split, getattr(sizes, split), seen))
    ]
