"""Clusters and partners of prompts."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import pytest

from gapbench import Prompt, load_task
from gapbench.tasks.content import Difficulty, _sampled, cluster, partners


def prompt(text: str, requirement: dict[str, Any] | None = None) -> Prompt:
    return Prompt(
        id=text, task="t", category="c", tier="easy", text=text, question="?",
        requirement=requirement or {},
    )  # fmt: skip


def scene(*include: dict[str, Any]) -> dict[str, Any]:
    return {"include": list(include)}


CAR, DOG = {"class": "car", "count": 1}, {"class": "dog", "count": 1}


def test_wordings_of_one_requirement_are_one_cluster() -> None:
    left = prompt("a car left of a dog", scene(DOG, {**CAR, "position": ["left of", 0]}))
    right = prompt("a dog right of a car", scene(CAR, {**DOG, "position": ["right of", 0]}))
    turned = prompt("a dog left of a car", scene(CAR, {**DOG, "position": ["left of", 0]}))
    both, order = prompt("a car and a dog", scene(CAR, DOG)), prompt("x", scene(DOG, CAR))
    assert cluster(left) == cluster(right)
    assert cluster(both) == cluster(order)
    assert len({cluster(p) for p in (left, turned, both)}) == 3
    assert cluster(prompt("a", {"list": ["q"]})) == cluster(prompt("b", {"list": ["q"]}))
    assert cluster(prompt("a car")) == cluster(prompt("A car.")) != cluster(prompt("a bus"))
    three, two = {**CAR, "count": 3}, {**DOG, "count": 2}
    counted = scene({**CAR, "count": 2}, DOG)
    first, second = ({**counted, "exclude": each} for each in ([three, two], [two, three]))
    assert cluster(prompt("a", first)) == cluster(prompt("b", second))
    for name, clusters in (("shapes", 440), ("shapes@1.1", 194)):
        prompts = load_task(name).prompts()
        assert len({(p.category, cluster(p)) for p in prompts}) == clusters


def chosen(texts: list[str], difficulty: Difficulty, seed: int = 0) -> dict[str, str | None]:
    prompts = [prompt(text) for text in texts]
    found = partners(prompts, prompts, difficulty, seed)
    return {p.text: other.text if other else None for p, other in zip(prompts, found, strict=True)}


def test_far_shares_no_word_and_near_changes_one() -> None:
    texts = ["a photo of a red car", "a photo of a red bus", "two blue birds"]
    assert chosen(texts, "far") == {
        texts[0]: texts[2], texts[1]: texts[2], texts[2]: chosen(texts, "far")[texts[2]],
    }  # fmt: skip
    assert chosen(texts, "near")[texts[0]] == texts[1]


@pytest.mark.parametrize("difficulty", ["far", "near"])
def test_what_may_match_is_no_partner(difficulty: Difficulty) -> None:
    order = ["a red car and a blue bus", "a blue bus and a red car.", "a red car"]
    assert set(chosen(order, difficulty).values()) == {None}
    known = ["a cat", "cats"]
    assert set(chosen(known, difficulty).values()) == {None}
    places = ["a giraffe near a wallet", "a giraffe on the right of a wallet"]
    turned = ["a boy on the bottom of a bee", "a bee on the top of a boy", "a bee next to a boy"]
    assert set(chosen(places, difficulty).values()) == {None}
    assert set(chosen(turned, difficulty).values()) == {None}
    asked = {"vqa_list": [["Is there an apple?", "Yes"]]}
    alike = [prompt("a red apple", asked), prompt("one crimson fruit", asked)]
    assert partners(alike, alike, difficulty, 0) == [None, None]
    assert chosen(["!", "?"], difficulty) == {"!": "?", "?": "!"}


def test_the_seed_chooses_among_equals() -> None:
    texts = [f"{word}{word}" for word in "abcdefghij"]
    assert chosen(texts, "far") == chosen(texts, "far")
    assert chosen(texts, "far") != chosen(texts, "far", seed=1)


@pytest.mark.parametrize("difficulty", ["far", "near"])
def test_neither_order_nor_ids_change_a_partner(difficulty: Difficulty) -> None:
    known = [p for p in load_task("shapes").prompts() if p.category == "colors"]
    moved = [replace(p, id=f"{number}") for number, p in enumerate(reversed(known))]

    def texts(category: list[Prompt]) -> dict[str, str | None]:
        others = partners(category, category, difficulty, 0)
        return {p.text: o.text if o else None for p, o in zip(category, others, strict=True)}

    assert texts(moved) == texts(known)


def test_shapes_has_partners_that_share_nothing() -> None:
    prompts = [p for p in load_task("shapes").prompts() if p.category == "two_object"]
    for one, other in zip(prompts, partners(prompts, prompts, "far", 0), strict=True):
        assert other is not None
        shapes = [{item["shape"] for item in p.requirement["include"]} for p in (one, other)]
        assert not shapes[0] & shapes[1]


@pytest.mark.parametrize("of", [1, 5, 22, 300, 1000, 1001, 4117, 4118, 9000])
@pytest.mark.parametrize("count", [1, 5, 6, 1000])
def test_prompts_are_drawn_one_by_one_as_python_samples_them(of: int, count: int) -> None:
    """The pairs of older runs depend on it."""
    count = min(of, count)
    drawn = [*_sampled(Random(count), range(of), count)]
    assert drawn == Random(count).sample(range(of), count)
