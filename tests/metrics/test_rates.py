"""Rates against a twin in plain loops, and what must not change them."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gapbench.metrics import METRICS, rates
from gapbench.types import GapbenchError, Rates

NAN = math.nan
Row = dict[str, Any]
CATEGORIES = (
    ("g", "two", "easy"),
    ("t", "two", "medium"),
    ("t", "a", "medium"),
    ("g", "x", "hard"),
)
VERDICT = st.sampled_from([0.0, 1.0, 1.0, NAN])


def keys(task: str, category: str, tier: str, prompt: str, sample: int) -> Row:
    return {"task": task, "category": category, "tier": tier, "prompt": prompt, "sample": sample}


@st.composite
def frames(draw: st.DrawFn, scores: bool = True) -> pd.DataFrame:
    """Up to four categories, five prompts each, three samples each, in any order."""
    rows = []
    for task, category, tier in draw(st.lists(st.sampled_from(CATEGORIES), unique=True)):
        for prompt in range(draw(st.integers(1, 5))):
            for sample in range(draw(st.integers(1, 3))):
                outside = draw(VERDICT)
                asked = draw(st.booleans())
                scored = scores and draw(st.booleans())
                verdicts = {
                    "own": draw(VERDICT),
                    "outside": outside,
                    "score": draw(st.floats(-2, 5, width=32)) if scored else outside,
                    "mismatched": draw(VERDICT) if asked else NAN,
                    "mismatched_asked": asked,
                }
                rows.append(keys(task, category, tier, f"{category}-{prompt}", sample) | verdicts)
    return pd.DataFrame(draw(st.permutations(rows)))


def term(metric: str, row: Row) -> tuple[float, float] | str | None:
    """(numerator, denominator) of an image; None: abstained; "unasked": no part of the metric."""
    own, outside = row["own"], row["outside"]
    if metric == "mismatch_acceptance":
        if not row["mismatched_asked"]:
            return "unasked"
        return None if math.isnan(row["mismatched"]) else (row["mismatched"], 1)
    if metric == "geometric":
        return "unasked"  # the judge asked no lists of questions
    if metric == "non_unification":
        return None if math.isnan(own) else (1 - own, 1)
    if metric == "generation":
        return None if math.isnan(row["score"]) else (row["score"], 1)
    if math.isnan(outside) and not math.isnan(row["score"]):
        return "unasked"  # a judge that gives scores alone
    if math.isnan(own) or math.isnan(outside):
        return None
    if metric == "weak_generation":
        return (1 - outside, 1) if own == 0 else (0, 0)
    if metric == "misunderstanding":
        return (outside, 1) if own == 0 else (0, 0)
    if metric == "false_positive":
        return (own, 1) if outside == 0 else (0, 0)
    assert metric == "self_accuracy"
    return (float(own == outside), 1)


def twin(rows: list[Row], metric: str) -> dict[str, float | None]:
    """One figure over the rows of a level."""
    numerator = denominator = abstained = 0.0
    prompts = set()
    categories: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        found = term(metric, row)
        if found == "unasked":
            continue
        if found is None:
            abstained += 1
            continue
        n, d = float(found[0]), float(found[1])
        numerator, denominator = numerator + n, denominator + d
        if d:
            prompts.add((row["task"], row["prompt"]))
        sums = categories.setdefault((row["task"], row["category"]), [0.0, 0.0, 0.0])
        sums[0], sums[1], sums[2] = sums[0] + n, sums[1] + d, sums[2] + 1
    value = None
    if denominator:
        value = sum(n / v for n, _, v in categories.values())
        value /= sum(d / v for _, d, v in categories.values())
    return {
        "value": value,
        "numerator": numerator,
        "denominator": denominator,
        "n_prompts": len(prompts),
        "abstained": abstained,
    }


def levels_of(row: Row) -> list[tuple[str, str]]:
    category = f"{row['task']}/{row['category']}"
    tier = ("tier", row["tier"])
    return [("category", category), ("task", row["task"]), tier, ("overall", "overall")]


def keyed(figures: list[Rates]) -> dict[tuple[str, str, str], Rates]:
    return {(f.level, f.name, f.metric): f for f in figures}


@settings(derandomize=True, deadline=None, max_examples=60)
@given(frames())
def test_figures_are_the_twins(frame: pd.DataFrame) -> None:
    rows = frame.to_dict("records")
    figures = rates(frame)
    wanted = {(level, name) for row in rows for level, name in levels_of(row)}
    assert set(keyed(figures)) == {(*level, metric) for level in wanted for metric in METRICS}
    assert len(figures) == len(wanted) * len(METRICS)
    for figure in figures:
        level = (figure.level, figure.name)
        expected = twin([row for row in rows if level in levels_of(row)], figure.metric)
        found = {key: asdict(figure)[key] for key in expected}
        assert found == pytest.approx(expected), figure
        empty = figure.value is None
        assert (figure.low is None, figure.high is None, figure.deff is None) == (empty,) * 3
        assert figure.value is None or figure.low <= figure.value <= figure.high
        assert figure.deff is None or figure.deff >= 0


@settings(derandomize=True, deadline=None, max_examples=30)
@given(frames(), st.randoms(use_true_random=False))
def test_row_order_changes_no_figure(frame: pd.DataFrame, random: Any) -> None:
    order = list(range(len(frame)))
    random.shuffle(order)
    assert keyed(rates(frame.iloc[order])) == keyed(rates(frame))


def correlated(prompts: int, samples: int = 2, seed: int = 0) -> pd.DataFrame:
    """Three categories of two tasks, a prompt's ease behind all its verdicts."""
    rng = np.random.default_rng(seed)
    rows = []
    for task, category, tier in CATEGORIES[:3]:
        for prompt in range(prompts):
            ease = rng.beta(2, 1)
            for sample in range(samples):
                own, outside, mismatched = (rng.random(3) < (ease, ease, 0.2)).astype(float)
                verdicts = {
                    "own": own,
                    "outside": outside if rng.random() < 0.9 else NAN,
                    "score": float(rng.normal()),
                    "mismatched": mismatched,
                    "mismatched_asked": True,
                }
                rows.append(keys(task, category, tier, f"{category}{prompt}", sample) | verdicts)
    return pd.DataFrame(rows)


def test_row_order_changes_no_sum_of_scores() -> None:
    frame = correlated(20, samples=5)
    figures = keyed(rates(frame))
    for seed in range(5):
        assert keyed(rates(frame.sample(frac=1, random_state=seed))) == figures


def test_other_categories_change_no_category() -> None:
    frame = correlated(150)
    whole = keyed(rates(frame))
    alone = keyed(rates(frame[frame["task"] == "t"]))
    kept = [key for key in alone if key[0] in ("category", "task")]
    assert len(kept) == 3 * len(METRICS)
    assert all(alone[key] == whole[key] for key in kept)


def test_complements_have_complementary_intervals() -> None:
    figures = keyed(rates(correlated(300)))
    for level, name, _ in figures:
        weak = figures[level, name, "weak_generation"]
        other = figures[level, name, "misunderstanding"]
        expected = (1 - weak.value, 1 - weak.high, 1 - weak.low)
        assert (other.value, other.low, other.high) == pytest.approx(expected)
        assert other.deff == pytest.approx(weak.deff)


def test_intervals_keep_the_range_of_their_scores() -> None:
    frame = correlated(20)
    frame["score"] = 0.001 * np.arange(len(frame)) / len(frame)
    figure = keyed(rates(frame))["category", "g/two", "generation"]
    assert 0 <= figure.low < figure.value < figure.high < 0.01
    frame["score"] += 20  # no share: Student's, even on both sides
    figure = keyed(rates(frame))["category", "g/two", "generation"]
    assert figure.high - figure.value == pytest.approx(figure.value - figure.low)


def test_the_order_of_the_figures() -> None:
    frame = correlated(2)
    hard = frame.head(2).assign(category="x", tier="hard", prompt="x0")
    figures = rates(pd.concat([hard, frame.iloc[::-1]]))
    assert [figure.metric for figure in figures[: len(METRICS)]] == list(METRICS)
    assert [(figure.level, figure.name) for figure in figures[:: len(METRICS)]] == [
        ("category", "g/two"),
        ("category", "t/a"),
        ("category", "t/two"),
        ("category", "g/x"),
        ("task", "g"),
        ("task", "t"),
        ("tier", "easy"),
        ("tier", "medium"),
        ("tier", "hard"),
        ("overall", "overall"),
    ]


def test_the_papers_denominators() -> None:
    """VILA-U on physics: 69 of 118 images rejected are its printed 58.47."""
    verdicts = {"own": [0.0] * 69 + [1.0] * 49, "outside": NAN, "score": NAN}
    unasked = {"mismatched": None, "mismatched_asked": False}
    prompts = {"prompt": [f"p{i}" for i in range(118)]}
    image = keys("science-t2i", "physics", "hard", "", 0)
    frame = pd.DataFrame(image | prompts | verdicts | unasked)
    figures = keyed(rates(frame))
    figure = figures["category", "science-t2i/physics", "non_unification"]
    assert (figure.numerator, figure.denominator, figure.n_prompts) == (69, 118, 118)
    assert round(100 * figure.value, 2) == 58.47
    weak = figures["overall", "overall", "weak_generation"]
    assert (weak.value, weak.denominator, weak.abstained) == (None, 0, 118)
    mismatch = figures["overall", "overall", "mismatch_acceptance"]
    assert (mismatch.value, mismatch.denominator, mismatch.abstained) == (None, 0, 0)


def test_no_rows_no_figures() -> None:
    assert rates(pd.DataFrame()) == []
    assert rates(correlated(1).head(0)) == []


def test_figures_do_not_depend_on_how_pandas_stores_the_frame() -> None:
    frame = correlated(4)
    plain = rates(frame)
    nullable = frame.convert_dtypes().astype({"task": "category", "prompt": object})
    assert rates(nullable.set_index("sample", drop=False)) == plain
    none = frame.astype({"own": object, "outside": object, "mismatched_asked": object})
    assert rates(none.where(none.notna(), None)) == plain


def test_the_frame_is_left_alone() -> None:
    frame = correlated(3)
    before = frame.copy(deep=True)
    rates(frame)
    pd.testing.assert_frame_equal(frame, before)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("tier", "brutal", "tier is 'brutal', not easy, medium or hard (task 'g', prompt 'two1'"),
        ("own", 0.5, "own is 0.5, not 1, 0 or NaN (task 'g', prompt 'two1', sample 1)"),
        ("outside", 2.0, "outside is 2.0, not 1, 0 or NaN"),
        ("mismatched", -1.0, "mismatched is -1.0, not 1, 0 or NaN"),
        ("score", math.inf, "score is inf, not a number"),
        ("score", "good", "score is 'good', not a number"),
        ("prompt", None, "prompt is empty (task 'g'"),
        ("sample", 0.5, "column 'sample' must hold whole numbers"),
        ("sample", 0, "the image is given twice (task 'g', prompt 'two1', sample 0)"),
        ("mismatched_asked", None, "mismatched_asked is neither true nor false"),
        ("mismatched_asked", False, "mismatched is given but not asked"),
        ("category", "other", "the prompt is in two categories (task 'g', prompt 'two1'"),
        ("tier", "hard", "the prompt's category is in two tiers (task 'g', prompt 'two1'"),
    ],
)
def test_a_bad_frame_is_refused_by_name(column: str, value: object, message: str) -> None:
    frame = correlated(2)
    values = frame[column].tolist()
    frame[column] = [*values[:3], value, *values[4:]]
    with pytest.raises(GapbenchError) as caught:
        rates(frame)
    assert str(caught.value).startswith(f"metrics: {message}")
    assert "\n" not in str(caught.value)


def test_a_missing_column_is_refused() -> None:
    frame = correlated(2)
    with pytest.raises(GapbenchError, match="the frame has no column 'outside'"):
        rates(frame.drop(columns="outside"))
