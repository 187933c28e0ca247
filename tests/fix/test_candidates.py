"""Acceptance, pairs, the discard pool and the data check, on frames written by hand."""

from __future__ import annotations

import pandas as pd
import pytest

from gapbench import GapbenchError
from gapbench.fix.candidates import accepted, counts, discarded, pairs, parse
from gapbench.fix.check import check

# prompt -> p_yes of its samples; a verdict is 1 above a half
WORLD = {"a": [0.2, 0.9, 0.95], "b": [0.1, 0.3, 0.2], "c": [0.6, 0.62, 0.61], "d": [0.5, 0.7, 0.7]}


def frame(world: dict[str, list[float]] | None = None) -> pd.DataFrame:
    rows = [
        {
            "text": text, "sample": sample, "seed": 10 * place + sample, "p_yes": p,
            "own": float(p > 0.5), "image": f"{text}{sample}", "task": "t", "category": "k",
        }
        for place, (text, found) in enumerate((world or WORLD).items())
        for sample, p in enumerate(found)
    ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("rule", "images"),
    [
        ("all", ["a1", "a2", "c0", "c1", "c2", "d1", "d2"]),
        ("mixed", ["a1", "a2", "d1", "d2"]),
        ("best:1", ["a2", "c1", "d1"]),
        ("best:2", ["a1", "a2", "c1", "c2", "d1", "d2"]),
        ("above:0.65", ["a1", "a2", "d1", "d2"]),
        ("above:.25", ["a1", "a2", "b1", "c0", "c1", "c2", "d0", "d1", "d2"]),
    ],
)
def test_rules(rule: str, images: list[str]) -> None:
    assert accepted(frame(), parse(rule))["image"].tolist() == images


def test_an_abstention_is_no_acceptance_and_one_image_counts_once() -> None:
    given = frame()
    given.loc[given["image"] == "c0", ["own", "p_yes"]] = float("nan")
    twice = pd.concat([given, given], ignore_index=True)
    assert accepted(twice, parse("all"))["image"].tolist() == ["a1", "a2", "c1", "c2", "d1", "d2"]


def test_the_pool_is_what_nothing_was_accepted_of() -> None:
    assert discarded(frame(), parse("all")) == ["b"]
    assert discarded(frame(), parse("mixed")) == ["b"]  # c needs no second chance
    assert discarded(frame(), parse("above:0.65")) == ["b", "c"]


def test_pairs_are_the_extremes_with_a_real_difference() -> None:
    found = pairs(frame(), parse("all"), 0.1)
    assert found[["image_chosen", "image_rejected"]].values.tolist() == [["a2", "a0"], ["d1", "d0"]]
    assert pairs(frame(), parse("all"), 0.0)["text"].tolist() == ["a", "c", "d"]
    assert pairs(frame({"e": [0.7, 0.7]}), parse("all"), 0.0).empty


def test_counts_show_every_rule_beside_the_one_asked_for() -> None:
    table = counts(frame(), "best:3", 0.1).set_index("rule")
    assert table.loc["all"].tolist() == [7, 3, 2, 1]
    assert table.loc["best:3"].tolist() == [7, 3, 2, 1]
    assert table.loc["above:0.9"].tolist() == [1, 1, 1, 3]


@pytest.mark.parametrize("rule", ["", "some", "best:0", "best:x", "above:1", "above:2"])
def test_unknown_rules_are_refused(rule: str) -> None:
    with pytest.raises(GapbenchError, match="best:K"):
        parse(rule)


def judged(own: list[int], outside: list[int], mismatched: list[int]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "task": "t", "category": "k", "tier": "easy", "sample": 0,
            "prompt": [f"p{i}" for i in range(len(own))],
            "own": own, "outside": outside, "score": outside, "judge": "pixel",
            "mismatched": mismatched, "mismatched_asked": True,
        }
    ).astype({"own": float, "outside": float, "score": float, "mismatched": float})  # fmt: skip


GOOD = [1, 1, 1, 0] * 25  # what is right: three of four


def test_a_good_judge_passes() -> None:
    found = check(judged(GOOD, GOOD, [0] * 100))
    assert found.stop is None
    assert (found.acceptance, found.mismatched, found.precision, found.base) == (0.75, 0, 1.0, 0.75)
    assert "100.0 % (75/75)" in found.lines[2]


@pytest.mark.parametrize(
    ("own", "mismatched", "why"),
    [
        ([1] * 100, [1] * 100, "as readily"),
        ([1] * 100, [1] * 60 + [0] * 40, "nearly everything"),
        ([0] * 100, [0] * 100, "nearly nothing"),
        ([1 - right for right in GOOD], [1] * 100, "as readily"),  # inverted
        ([1 - right for right in GOOD], [0] * 100, "right no more often"),
        ([0, 1, 0, 1, 1] * 20, [1, 0] * 50, "as readily"),  # random
        (([1] * 4 + [0] * 4) * 12 + [0] * 4, [0] * 100, "right no more often"),  # three of four
    ],
)
def test_a_judge_that_says_nothing_is_stopped(
    own: list[int], mismatched: list[int], why: str
) -> None:
    found = check(judged(own, GOOD, mismatched))
    assert found.stop is not None
    assert why in found.stop


def test_without_an_outside_judge_the_precision_is_said_to_be_unknown() -> None:
    alone = judged(GOOD, GOOD, [0] * 100)
    alone[["outside", "score", "judge"]] = float("nan")
    found = check(alone)
    assert found.stop is None
    assert "not known" in found.lines[2]
