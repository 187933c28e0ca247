"""Corrected rates against closed forms, identities and simulated judges."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from gapbench import GapbenchError
from gapbench.metrics import rates
from gapbench.metrics.calibration import error, reliability
from gapbench.metrics.corrected import FEWEST, Corrected, Estimate, corrected
from gapbench.metrics.intervals import Figure

METHODS = ("sample", "rogan_gladen", "ppi")


def frame(
    own: Any, judge: Any, human: Any, prompts: Any = None, categories: int = 1
) -> pd.DataFrame:
    n = len(judge)
    prompt = np.arange(n) if prompts is None else np.asarray(prompts)
    return pd.DataFrame(
        {
            "task": "t", "category": [f"c{p % categories}" for p in prompt], "tier": "easy",
            "prompt": prompt.astype(str), "own": np.asarray(own, float),
            "outside": np.asarray(judge, float), "human": np.asarray(human, float),
        }
    )  # fmt: skip


def overall(found: list[Corrected]) -> dict[str, Corrected]:
    return {each.metric: each for each in found if each.level == "overall"}


def world(seed: int, labels: int, se: float, sp: float, prompts: int = 150, samples: int = 2,
          categories: int = 3) -> pd.DataFrame:  # fmt: skip
    """A judge that errs at random, and prompts of different ease; 55 % of images are right, the
    model is right about 80 %."""
    rng = np.random.default_rng(seed)
    prompt = np.repeat(np.arange(prompts), samples)
    ease = rng.beta(1.1, 0.9, prompts)[prompt]
    truth = (rng.random(len(prompt)) < ease).astype(float)
    judge = np.where(truth == 1, rng.random(len(prompt)) < se, rng.random(len(prompt)) >= sp)
    own = np.where(rng.random(len(prompt)) < 0.8, truth, 1 - truth)
    human = np.full(len(prompt), np.nan)
    picked = rng.permutation(len(prompt))[:labels]
    human[picked] = truth[picked]
    return frame(own, judge, human, prompt, categories)


TRUTH = {
    "generation": 0.55,
    "weak_generation": 0.45 * 0.8 / (0.45 * 0.8 + 0.55 * 0.2),
    "false_positive": 0.2,
}


def test_rogan_gladen_s_closed_form() -> None:
    # 200 images, of which the first 40 are labelled: se = 18/20, sp = 16/20, q = 110/200.
    human = [1] * 20 + [0] * 20 + [np.nan] * 160
    judge = [1] * 18 + [0] * 2 + [0] * 16 + [1] * 4 + [1] * 88 + [0] * 72
    found = overall(corrected(frame([1] * 200, judge, human)))["generation"]
    assert found.judge == pytest.approx(0.55)
    assert found.rogan_gladen is not None
    assert found.rogan_gladen.value == pytest.approx((0.55 + 0.8 - 1) / (0.9 + 0.8 - 1))


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_ppi_s_closed_form(seed: int) -> None:
    """The tuned estimate is the regression estimator, and its variance the textbook's."""
    rng = np.random.default_rng(seed)
    n, m = 400, 60
    judge = (rng.random(n) < 0.6).astype(float)
    human = np.where(rng.random(n) < 0.85, judge, 1 - judge)
    human[m:] = np.nan
    found = overall(corrected(frame([1] * n, judge, human)))["generation"].ppi
    here, all_of_it = judge[:m], judge - judge.mean()
    # The shift's sum of squares, labelled and unlabelled parts, is what k is tuned on.
    weight = np.r_[np.full(m, 1 / n) * all_of_it[:m] - (here - here.mean()) / m, all_of_it[m:] / n]
    errors = np.r_[(human[:m] - human[:m].mean()) / m, np.zeros(n - m)]
    k = float(np.clip(-errors @ weight / (weight @ weight), 0, 1))
    value = human[:m].mean() + k * (judge.mean() - here.mean())
    spread = max(np.sum((errors + k * weight) ** 2) * m / (m - 1), 2 / m**2)
    trials = value * (1 - value) / spread
    low, high = Figure(value, spread**0.5, m - 1, trials).ends()
    assert found == pytest.approx((value, low, high))


def test_labels_alone_are_the_interval_of_their_share() -> None:
    human = np.r_[np.ones(30), np.zeros(20), np.full(50, np.nan)]
    found = overall(corrected(frame([1] * 100, [1] * 100, human)))["generation"].sample
    assert found is not None
    low, high = Figure(0.6, 0.0, 49, 50 * 49 / 50).ends()
    assert (found.low, found.high) == pytest.approx((low, high))
    wilson = stats.binomtest(30, 50).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((wilson.low, wilson.high), abs=0.01)


@pytest.mark.parametrize("sizes", [(300, 30, 30)])
def test_intervals_cover_where_categories_are_unequal(sizes: tuple[int, ...]) -> None:
    """40 labels, of which the two small categories, two thirds of the figure, hold seven."""
    held: dict[str, list[bool]] = {method: [] for method in METHODS}
    for seed in range(100):
        made = world(seed, 40, 0.9, 0.8, prompts=sum(sizes))
        made["category"] = np.repeat(np.repeat(["a", "b", "c"], sizes), 2)
        found = overall(corrected(made))["generation"]
        for method in METHODS:
            estimate = getattr(found, method)
            if estimate is not None:
                held[method].append(estimate.low <= TRUTH["generation"] <= estimate.high)
    for method, hits in held.items():
        assert np.mean(hits) >= 0.88, method


@given(st.integers(0, 10_000), st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_where_all_is_labelled_all_agree_with_the_rates(seed: int, categories: int) -> None:
    """With every image labelled each method gives the rates by people."""
    made = world(seed, 300, 0.9, 0.8, categories=categories)
    by_people = made.assign(
        outside=made["human"], score=made["human"], sample=made.groupby("prompt").cumcount(),
        mismatched=np.nan, mismatched_asked=False,
    )  # fmt: skip
    wanted = {r.metric: r.value for r in rates(by_people) if r.level == "overall"}
    by_judge = by_people.assign(outside=made["outside"], score=made["outside"])
    judged = {r.metric: r.value for r in rates(by_judge) if r.level == "overall"}
    for metric, found in overall(corrected(made)).items():
        assert found.judge == pytest.approx(judged[metric])
        for method in METHODS:
            estimate = getattr(found, method)
            assert estimate is not None
            assert estimate.value == pytest.approx(wanted[metric]), method


@given(st.integers(0, 10_000), st.integers(0, 300))
@example(288, 14)  # a judge that the labels show to be right by chance alone, but for rounding
@settings(max_examples=40, deadline=None)
def test_estimates_are_shares_and_order_does_not_matter(seed: int, labels: int) -> None:
    made = world(seed, labels, 0.7, 0.6)
    found = corrected(made)
    for each in found:
        for method in METHODS:
            estimate = getattr(each, method)
            assert estimate is None or 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    for one, two in zip(found, corrected(made.sample(frac=1, random_state=seed)), strict=True):
        for method in METHODS:
            mine, other = getattr(one, method), getattr(two, method)
            assert (mine is None) == (other is None)
            assert mine is None or mine == pytest.approx(other)


@pytest.mark.parametrize(
    ("labels", "se", "sp"), [(120, 0.9, 0.8), (60, 0.95, 0.7), (40, 0.98, 0.97)]
)
def test_intervals_cover_the_truth(labels: int, se: float, sp: float) -> None:
    """Over simulated judges, of 95 % intervals at least 90 % hold the truth; and the judge's own
    figure is further off than either correction."""
    draws = 120
    held = {(metric, method): [] for metric in TRUTH for method in METHODS}  # type: ignore[var-annotated]
    off: dict[str, list[float]] = {}
    for seed in range(draws):
        for metric, found in overall(corrected(world(seed, labels, se, sp))).items():
            for method in METHODS:
                estimate: Estimate | None = getattr(found, method)
                if estimate is None:
                    continue
                held[metric, method].append(estimate.low <= TRUTH[metric] <= estimate.high)
                if metric == "generation":
                    off.setdefault(method, []).append(estimate.value - TRUTH[metric])
            if metric == "generation":
                off.setdefault("judge", []).append((found.judge or 0) - TRUTH[metric])
    for (metric, method), hits in held.items():
        # The sample alone has a dozen labels of rejected images in the last case.
        least = 0.85 if method == "sample" and labels == 40 else 0.9
        assert len(hits) > draws / 2, (metric, method)
        assert np.mean(hits) >= least, (metric, method)
    bias = {name: abs(np.mean(values)) for name, values in off.items()}
    true_bias = abs(0.55 * se + 0.45 * (1 - sp) - 0.55)
    if true_bias > 0.03:
        assert bias["rogan_gladen"] < bias["judge"]
        assert bias["ppi"] < bias["judge"]
    assert np.std(off["ppi"]) < np.std(off["sample"])


def test_a_judge_without_a_mistake_is_not_called_perfect() -> None:
    judge = np.r_[np.ones(5000), np.zeros(5000)]
    human = np.full(10_000, np.nan)
    human[:20] = human[-20:] = 0
    human[:20] = 1
    found = overall(corrected(frame(judge, judge, human)))["generation"]
    assert found.ppi is not None
    assert found.rogan_gladen is not None
    for estimate in (found.ppi, found.rogan_gladen):
        assert estimate.value == pytest.approx(0.5)
        assert estimate.high - estimate.low > 0.05


def test_what_labels_do_not_carry_is_none() -> None:
    few = world(0, 300, 0.9, 0.8)
    few.loc[few["prompt"].astype(int) >= FEWEST - 1, "human"] = np.nan
    assert all(getattr(each, m) is None for each in corrected(few) for m in METHODS)
    one_class = frame([1, 0] * 20, [1, 0] * 20, [1] * 40)
    found = overall(corrected(one_class))
    assert found["generation"].rogan_gladen is None
    assert found["generation"].ppi is not None
    assert found["false_positive"].sample is None
    upside_down = frame([1] * 40, [0, 1] * 20, [1, 0] * 20)
    assert overall(corrected(upside_down))["generation"].rogan_gladen is None
    assert corrected(frame([1], [1], [np.nan])) == []
    assert corrected(frame([1], [np.nan], [1])) == []


def test_bad_frames_are_named() -> None:
    good = frame([1], [1], [1])
    with pytest.raises(GapbenchError, match="no column 'human'"):
        corrected(good.drop(columns="human"))
    with pytest.raises(GapbenchError, match=r"own is .*2\.0"):
        corrected(good.assign(own=2.0))


def test_reliability() -> None:
    p = [0.0, 0.05, 0.95, 1.0, 0.55, np.nan, 0.5]
    outside = [0, 0, 1, 0, 1, 1, np.nan]
    rows = pd.DataFrame({"task": "t", "prompt": list("abcdefg"), "p_yes": p, "outside": outside})
    bins = reliability(rows)
    assert [b.images for b in bins] == [2, 1, 2]
    assert [b.value for b in bins] == [0, 1, 0.5]
    assert [b.expected for b in bins] == pytest.approx([0.025, 0.55, 0.975])
    assert all(0 <= b.low <= b.value <= b.high <= 1 for b in bins)
    assert error(bins) == pytest.approx((2 * 0.025 + 0.45 + 2 * 0.475) / 5)
    assert error(reliability(rows.iloc[:0])) is None


def test_images_of_one_prompt_say_less() -> None:
    rows = pd.DataFrame(
        {"task": "t", "prompt": [str(n // 10) for n in range(100)], "p_yes": 0.5,
         "outside": [float(n // 10 % 2) for n in range(100)]}
    )  # fmt: skip
    apart = rows.assign(prompt=[str(n) for n in range(100)])
    (together,), (each,) = reliability(rows), reliability(apart)
    assert together.value == each.value == 0.5
    assert together.high - together.low > 2 * (each.high - each.low)
