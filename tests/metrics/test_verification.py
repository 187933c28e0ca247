"""What own verdicts are worth, against a twin in plain loops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gapbench.metrics.verification import CHOICES, Verification, prediction, record, verification

NAN = math.nan
Row = dict[str, Any]


def image(prompt: str, sample: int, p_yes: float, outside: float, category: str = "a") -> Row:
    own = NAN if math.isnan(p_yes) else float(p_yes >= 0.5)
    return {
        "task": "t", "category": category, "prompt": prompt, "sample": sample,
        "own": own, "p_yes": p_yes, "outside": outside,
    }  # fmt: skip


@st.composite
def frames(draw: st.DrawFn) -> pd.DataFrame:
    p_yes = st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.5, 0.8, 0.9, 1.0, NAN])
    verdict = st.sampled_from([0.0, 1.0, 1.0, NAN])
    rows = [
        image(f"{category}-{prompt}", sample, draw(p_yes), draw(verdict), category)
        for category in draw(st.sampled_from([("a",), ("a", "b")]))
        for prompt in range(draw(st.integers(1, 4)))
        for sample in range(draw(st.integers(1, 4)))
    ]
    return pd.DataFrame(draw(st.permutations(rows)))


def worth(rows: list[Row]) -> Verification:
    made = verification(pd.DataFrame(rows))
    assert made is not None
    return made


def numbers(told: Any) -> list[float]:
    """All numbers of a record, in order; -1 for what is not there."""
    if isinstance(told, dict | list):
        return [
            n for each in (told.values() if isinstance(told, dict) else told) for n in numbers(each)
        ]
    return [-1.0 if told is None else float(told)]


def first_accepted(order: Sequence[Row], best: Sequence[Row]) -> tuple[float, int]:
    """(whether it is right, how many were drawn) of the first image that is accepted."""
    for drawn, row in enumerate(order, 1):
        if row["own"]:
            return row["outside"], drawn
    return sum(r["outside"] for r in best) / len(best), len(order)


@given(frames(), st.randoms(use_true_random=False))
def test_figures_are_those_of_plain_loops_in_any_order(frame: pd.DataFrame, lots: Any) -> None:
    rows = [
        row
        for row in frame.to_dict("records")
        if not math.isnan(row["own"]) and not math.isnan(row["outside"])
    ]
    order = list(range(len(frame)))
    lots.shuffle(order)
    made, shuffled = verification(frame), verification(frame.iloc[order])
    if not rows:
        assert made is shuffled is None
        return
    assert made is not None
    assert shuffled is not None
    assert numbers(record(made)) == pytest.approx(numbers(record(shuffled)))
    assert made.images == len(rows)
    right = [row["p_yes"] for row in rows if row["outside"]]
    wrong = [row["p_yes"] for row in rows if not row["outside"]]
    if right and wrong:
        wins = [(a > b) + 0.5 * (a == b) for a in right for b in wrong]
        assert made.auroc is not None
        assert made.auroc.value == pytest.approx(sum(wins) / len(wins))
        assert 0 <= made.auroc.low <= made.auroc.value <= made.auroc.high <= 1
    else:
        assert made.auroc is None
    sure = [(max(r["p_yes"], 1 - r["p_yes"]), r["own"] == r["outside"]) for r in rows]
    for each in made.confidence:
        tenth = min(int((each.expected - 0.5) * 10), 4)
        mine = [ok for p, ok in sure if min(int((p - 0.5) * 10), 4) == tenth]
        assert (each.images, each.value) == (len(mine), pytest.approx(sum(mine) / len(mine)))
    assert sum(each.images for each in made.confidence) == len(rows)

    means: dict[str, dict[str, list[float]]] = {}
    for prompt in {row["prompt"] for row in rows}:
        mine = [row for row in rows if row["prompt"] == prompt]
        if len(mine) < 2:
            continue
        best = [row for row in mine if row["p_yes"] == max(r["p_yes"] for r in mine)]
        told = means.setdefault(mine[0]["category"], {name: [] for name in (*CHOICES, "images")})
        told["random"].append(sum(r["outside"] for r in mine) / len(mine))
        told["own"].append(sum(r["outside"] for r in best) / len(best))
        orders = [first_accepted(order, best) for order in permutations(mine)]
        told["again"].append(sum(right for right, _ in orders) / len(orders))
        told["images"].append(sum(drawn for _, drawn in orders) / len(orders))
        told["judge"].append(max(r["outside"] for r in mine))
    if means:
        drawn = [sum(told["images"]) / len(told["images"]) for told in means.values()]
        assert made.again_images == pytest.approx(sum(drawn) / len(drawn))
    for by in CHOICES:
        mine = [sum(told[by]) / len(told[by]) for told in means.values()]
        found = getattr(made, by)
        if not mine:
            assert found is None
            assert made.gain is None
            continue
        assert found.value == pytest.approx(sum(mine) / len(mine))
        assert 0 <= found.low <= found.value + 1e-12
        assert found.value - 1e-12 <= found.high <= 1
    if made.gain is not None and made.own is not None and made.random is not None:
        assert made.gain.value == pytest.approx(made.own.value - made.random.value)
        assert made.gain.low <= made.gain.value <= made.gain.high


def test_a_judge_that_knows_chooses_as_the_outside_judge_does() -> None:
    rows = [
        image(f"p{i}", s, 0.9 if s == i % 4 else 0.2, s == i % 4)
        for i in range(40)
        for s in range(4)
    ]
    made = worth(rows)
    assert made.auroc is not None
    assert made.auroc.value == 1
    assert 0.85 < made.auroc.low < 1  # 40 prompts are no proof
    assert made.random is not None
    assert made.own is not None
    assert made.gain is not None
    assert (made.random.value, made.own.value, made.own) == (0.25, 1, made.judge)
    assert made.gain.low > 0.5
    assert "adds +75.0 [" in prediction(made)
    assert "expect generation to rise" in prediction(made)
    fooled = worth([row | {"p_yes": 1 - row["p_yes"], "own": 1 - row["own"]} for row in rows])
    assert "adds -25.0 [" in prediction(fooled)
    assert "do not fix the model by these verdicts" in prediction(fooled)


def test_a_judge_that_says_the_same_of_all_images_chooses_by_lot() -> None:
    made = worth([image(f"p{i}", s, 0.7, s < 2) for i in range(30) for s in range(4)])
    assert made.auroc is not None
    assert made.auroc.value == 0.5
    assert made.own == made.random
    assert made.gain is not None
    assert made.gain.value == 0
    assert made.gain.low < 0 < made.gain.high
    assert "No gain is shown" in prediction(made)


def test_verdicts_in_words_choose_by_lot_among_the_accepted() -> None:
    rows = [image(f"p{i}", s, 0.9 if s < 2 else 0.1, s == 0) for i in range(20) for s in range(4)]
    for row in rows:
        row["p_yes"] = NAN
    made = worth(rows)
    assert made.own is not None
    assert made.own.value == 0.5
    assert made.auroc is not None
    assert made.auroc.value == pytest.approx((1 + 2 / 3) / 2)
    assert made.confidence == []


def test_the_interval_of_auroc_holds_as_often_as_it_says() -> None:
    """Prompts whose images are alike, so that images are worth less than their number."""
    lots, held, runs = np.random.default_rng(5), 0, 60
    truth = 0.7602  # of two normal scores one apart, each of variance 1: Phi(1 / sqrt 2)
    for _ in range(runs):
        rows = []
        for prompt in range(60):
            right, shared = prompt % 2, lots.normal() * 0.7
            for sample in range(4):
                score = right + shared + lots.normal() * math.sqrt(1 - 0.49)
                rows.append(image(f"p{prompt}", sample, 1 / (1 + math.exp(-score)), right))
        made = worth(rows).auroc
        assert made is not None
        held += made.low <= truth <= made.high
    assert held >= 0.9 * runs
