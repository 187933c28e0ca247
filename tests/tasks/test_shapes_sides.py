"""No prompt that trains, and no lesson of the bundled model, asks for what a test prompt asks for.

What is asked for is read here once more, by hand: a set of things, and of relations between them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, get_args

import lessons
import numpy as np
import pytest

from gapbench.tasks.content import content_of
from gapbench.tasks.prompts.shapes import CATEGORIES, Content, Side, contents, make, side
from gapbench.tasks.prompts.words import NUMBERS
from gapbench.tasks.world import COLORS, RELATIONS, SHAPES

Requirement = dict[str, Any]
Asked = tuple[frozenset[Any], frozenset[Any]]
OPPOSITE = {"right of": "left of", "below": "above"}


def asked(requirement: Requirement) -> Asked:
    """What a requirement asks for, whatever the order and the direction."""
    things, relations = [], []
    for item in requirement["include"]:
        thing = tuple(item.get(key) for key in ("shape", "color", "texture", "count"))
        exact = any(
            {**item, "count": item["count"] + 1} == other
            for other in requirement.get("exclude", ())
        )
        things.append((*thing, exact))
        if "position" in item:
            relation, other = item["position"]
            pair = (thing[:3], things[other][:3])
            if relation in OPPOSITE:
                relation, pair = OPPOSITE[relation], pair[::-1]
            relations.append((relation, pair))
    return frozenset(things), frozenset(relations)


@cache
def of_the_test() -> dict[Asked, str]:
    return {asked(record["requirement"]): record["text"] for record in make("test")}


def leaks(said: Iterable[tuple[str, Requirement]]) -> list[tuple[str, str]]:
    """(what was said, the test prompt that asks for it)."""
    tests = of_the_test()
    return [(text, tests[key]) for text, what in said if (key := asked(what)) in tests]


def trained() -> Iterator[tuple[str, Requirement]]:
    """All that training may be told: its splits, and every content that lessons draw from."""
    for split in ("validation", "train"):
        yield from ((record["text"], record["requirement"]) for record in make(split))
    for category in CATEGORIES:
        yield from contents(category, "train")


def said(question: str, answer: str) -> Requirement | None:
    """What a question says with its answer."""
    names = "|".join(SHAPES)
    if match := re.fullmatch(rf"what (colour|texture) is the ({names})\?", question):
        key = {"colour": "color"}.get(match[1], match[1])
        return {"include": [{"shape": match[2], "count": 1, key: answer}]}
    if match := re.fullmatch(rf"what shape is ({'|'.join(COLORS)})\?", question):
        return {"include": [{"shape": answer, "count": 1, "color": match[1]}]}
    if match := re.fullmatch(rf"count the ({names})(es|s)", question):
        number = next(n for n, word in NUMBERS.items() if word == answer)
        return {
            "include": [{"shape": match[1], "count": number}],
            "exclude": [{"shape": match[1], "count": number + 1}],
        }
    if match := re.fullmatch(rf"what is ({'|'.join(RELATIONS)}) the ({names})\?", question):
        one = {"shape": match[2], "count": 1}
        return {"include": [one, {"shape": answer, "count": 1, "position": [match[1], 0]}]}
    return None


def test_the_test_split_asks_for_each_of_its_things_once() -> None:
    assert len(of_the_test()) == 440


def test_nothing_that_trains_asks_for_what_is_tested() -> None:
    everything = list(trained())
    assert len(everything) > 20_000
    assert leaks(everything) == []


def test_no_lesson_says_what_is_tested() -> None:
    rng = np.random.default_rng(4)
    told: list[tuple[str, Requirement]] = []
    for _ in range(300):
        drawn = lessons.drawing(rng)
        told.append((drawn.content.text, drawn.content.requirement))
        told += [(c.text, c.requirement) for c, _ in lessons.captions(rng, 6).captions]
        for question, answer in lessons.interview(rng, 6)[1]:
            what = said(question, answer)
            assert what is not None, question
            told.append((f"{question} {answer}", what))
    assert len(told) == 300 * 13
    assert leaks(told) == []


def planted() -> Content:
    """What a test prompt asks for, told from the other side."""
    inverse = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    record = next(r for r in make("test") if r["category"] == "position")
    b, a = record["requirement"]["include"]
    relation, _ = a["position"]
    first = {key: value for key, value in a.items() if key != "position"}
    include = [first, {**b, "position": [inverse[relation], 0]}]
    return Content("planted", {"include": include})


def test_a_planted_leak_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    leak = planted()
    assert side(leak.requirement) == "test"
    rest = contents("position", "train")
    real = contents

    def leaky(category: str, part: Side) -> tuple[Content, ...]:
        return (leak, *rest) if (category, part) == ("position", "train") else real(category, part)

    monkeypatch.setattr(f"{__name__}.contents", leaky)
    assert [text for text, _ in leaks(trained())] == ["planted"]
    monkeypatch.setattr(lessons, "contents", lambda *_: (leak,))
    assert leaks([lessons.drawing(np.random.default_rng(5)).content])


def test_sides_follow_what_is_asked_for() -> None:
    names: dict[str, Asked] = {}
    for category in CATEGORIES:
        for part in get_args(Side):
            for content in contents(category, part):
                what = asked(content.requirement)
                assert side(content.requirement) == part
                assert names.setdefault(content_of(content.requirement), what) == what
    assert len(set(names.values())) == len(names)
