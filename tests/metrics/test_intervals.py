"""Intervals: Wilson against scipy, the bootstrap and the variances against brute force."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from gapbench.metrics import intervals
from gapbench.metrics.intervals import (
    DENOMINATOR,
    NUMERATOR,
    VALID,
    Floats,
    bootstrap,
    difference,
    influence,
    interval,
    ratio,
    variances,
    wilson,
)

Rows = list[
    list[tuple[float, float, float]]
]  # per prompt, per image: numerator, denominator, valid


def stratum(prompts: Rows) -> Floats:
    """The (prompts, 6) sums of images given one by one."""
    return np.array(
        [
            [
                sum(n for n, _, _ in images),
                sum(d for _, d, _ in images),
                sum(v for _, _, v in images),
                sum(n * n for n, _, _ in images),
                sum(n not in (0, 1) for n, _, _ in images),
                0,
            ]
            for images in prompts
        ],
        dtype=float,
    )


def shares(positives: list[int], samples: int) -> Floats:
    """A category of prompts of which so many of `samples` images count."""
    return stratum([[(float(j < k), 1.0, 1.0) for j in range(samples)] for k in positives])


def estimate(strata: list[Floats]) -> tuple[float, float, float, float]:
    """Value, low, high and deff of a level."""
    value = share_of(strata)
    return (value, *interval(strata, value))


def share_of(strata: list[Floats]) -> float:
    return float(ratio(np.stack([s.sum(axis=0) for s in strata])))


def t(freedom: int) -> float:
    return float(scipy.stats.t.ppf(0.975, freedom))


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (0, 50), (3, 50), (25, 50), (50, 50), (7, 9)])
def test_wilson_is_scipys(k: int, n: int) -> None:
    theirs = scipy.stats.binomtest(k, n).proportion_ci(method="wilson")
    assert wilson(k / n, n, z=1.959963984540054) == pytest.approx((theirs.low, theirs.high))
    assert wilson(k / n, n) == pytest.approx((theirs.low, theirs.high), abs=1e-4)


@settings(derandomize=True, deadline=None)
@given(st.floats(0, 1), st.floats(0.1, 1e6))
def test_wilson_lies_in_0_1_around_its_share(value: float, n: float) -> None:
    low, high = wilson(value, n)
    assert 0 <= low <= value + 1e-12
    assert value - 1e-12 <= high <= 1


def brute_bootstrap(strata: list[Floats], draws: int, seed: int) -> Floats:
    """The level's ratio on resamples of prompts, each drawn one by one."""
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(draws):
        upper = lower = 0.0
        for s in strata:
            total = sum(s[rng.integers(len(s))] for _ in range(len(s)))
            upper += total[NUMERATOR] / total[VALID]
            lower += total[DENOMINATOR] / total[VALID]
        values.append(upper / lower)
    return np.array(values)


def test_bootstrap_is_resampling_prompts_one_by_one() -> None:
    rng = np.random.default_rng(5)
    strata = []
    for prompts, ease in ((60, 0.4), (30, 0.7)):
        chance = rng.beta(2 * ease, 2 * (1 - ease), prompts)
        rows = rng.random((prompts, 3)) < chance[:, None]
        kept = rng.random((prompts, 3)) < 0.6
        images = [
            [(float(n and d), float(d), 1.0) for n, d in zip(*pair, strict=True)]
            for pair in zip(rows, kept, strict=True)
        ]
        strata.append(stratum(images))
    draws = 4000
    ours = ratio(np.stack([bootstrap(s[:, :3], f"c{i}", draws) for i, s in enumerate(strata)]))
    theirs = brute_bootstrap(strata, draws, seed=1)
    spread = theirs.std()
    # Monte-Carlo error of a quantile q: sqrt(q (1 - q) / draws) / density, for two samples.
    for q, density in ((0.025, 0.0584), (0.25, 0.3178), (0.5, 0.3989), (0.975, 0.0584)):
        error = math.sqrt(2 * q * (1 - q) / draws) * spread / density
        assert abs(np.quantile(ours, q) - np.quantile(theirs, q)) < 3 * error
    assert ours.std() == pytest.approx(spread, rel=3 / math.sqrt(draws))


def test_bootstrap_of_continuous_sums_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    sums = np.random.default_rng(2).normal(3, 1, (40, 2))
    whole = bootstrap(sums, "c", 3000)
    monkeypatch.setattr(intervals, "BLOCK_CELLS", 40 * 700)
    assert bootstrap(sums, "c", 3000) == pytest.approx(whole)
    error = np.sqrt(40) * sums.std(axis=0)
    assert np.abs(whole.mean(axis=0) - sums.sum(axis=0)).max() < 4 * error.max() / math.sqrt(3000)
    expected = 40 * np.cov(sums.T, bias=True)
    assert np.cov(whole.T) == pytest.approx(expected, abs=0.1 * expected.max())


def test_bootstrap_depends_on_name_and_rows_not_on_their_order() -> None:
    sums = np.random.default_rng(3).integers(0, 4, (50, 3)).astype(float)
    assert np.array_equal(bootstrap(sums, "c", 100), bootstrap(sums[::-1], "c", 100))
    assert not np.array_equal(bootstrap(sums, "c", 100), bootstrap(sums, "d", 100))


def test_ratio_drops_an_empty_category_and_marks_an_empty_level() -> None:
    full, empty = [1.0, 2.0, 4.0], [0.0, 0.0, 0.0]
    assert ratio(np.array([full, empty])) == 0.5
    assert np.isnan(ratio(np.array([empty, empty])))
    assert np.isnan(ratio(np.array([empty])))
    assert ratio(np.array([full, [3.0, 3.0, 3.0]])) == pytest.approx((1 / 4 + 1) / (2 / 4 + 1))


def brute_variances(categories: list[Rows]) -> tuple[float, float]:
    """The two variances by loops, image by image, and the C/(C-1) rule for several prompts."""
    valids = [sum(v for images in rows for _, _, v in images) for rows in categories]
    weights = [1 / v for v in valids] if len(categories) > 1 else [1.0]
    upper = lower = 0.0
    for rows, w in zip(categories, weights, strict=True):
        upper += w * sum(n for images in rows for n, _, _ in images)
        lower += w * sum(d for images in rows for _, d, _ in images)
    value = upper / lower
    cluster = independent = 0.0
    for rows, w, valid in zip(categories, weights, valids, strict=True):
        count = sum(any(v for _, _, v in images) for images in rows)
        mean = sum(n - value * d for images in rows for n, d, _ in images) / valid
        mean = mean if count > 1 else 0.0
        for images in rows:
            residuals = [w * (n - value * d - mean * v) / lower for n, d, v in images]
            cluster += sum(residuals) ** 2 * (count / (count - 1) if count > 1 else 1)
            independent += sum(z * z for z in residuals)
    return cluster, independent


IMAGE = st.sampled_from([(0.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, 1.0, 1.0), (1.0, 1.0, 1.0)])
SCORED = IMAGE | st.floats(-3, 3).map(lambda score: (score, 1.0, 1.0))
CATEGORY = st.lists(st.lists(SCORED, min_size=1, max_size=3), min_size=1, max_size=5).filter(
    lambda rows: any(valid for images in rows for _, _, valid in images)
)


@settings(derandomize=True, deadline=None)
@given(st.lists(CATEGORY, min_size=1, max_size=3))
def test_variances_are_the_brute_force_ones(categories: list[Rows]) -> None:
    if not any(d for rows in categories for images in rows for _, d, _ in images):
        return
    strata = [stratum(rows) for rows in categories]
    value = float(ratio(np.stack([s.sum(axis=0) for s in strata])))
    assert variances(strata, value) == pytest.approx(brute_variances(categories), abs=1e-9)


@settings(derandomize=True, deadline=None)
@given(st.lists(CATEGORY, min_size=1, max_size=3))
def test_an_interval_contains_its_value(categories: list[Rows]) -> None:
    if not any(d for rows in categories for images in rows for _, d, _ in images):
        return
    value, low, high, deff = estimate([stratum(rows) for rows in categories])
    assert low <= value <= high
    assert deff >= 0


def test_deff_of_perfectly_correlated_samples_is_their_number() -> None:
    positives = [5] * 60 + [0] * 140
    assert estimate([shares(positives, 5)])[3] == pytest.approx(5 * 200 / 199)
    both = [shares(positives, 5), shares([0] * 100 + [5] * 100, 5)]
    assert estimate(both)[3] == pytest.approx(5 * 200 / 199)


def test_deff_of_independent_samples_is_about_1() -> None:
    rng = np.random.default_rng(4)
    category = shares([int(k) for k in rng.binomial(4, 0.3, 5000)], 4)
    assert estimate([category])[3] == pytest.approx(1, abs=0.06)  # 3 standard errors
    scores = rng.normal(0.6, 0.2, (5000, 4))
    rows = [[(float(s), 1.0, 1.0) for s in prompt] for prompt in scores]
    assert estimate([stratum(rows)])[3] == pytest.approx(1, abs=0.06)


def test_the_linearised_variance_is_the_bootstraps() -> None:
    rng = np.random.default_rng(6)
    strata = [shares([int(4 * (u < p)) for u in rng.random(300)], 4) for p in (0.3, 0.6)]
    value = float(ratio(np.stack([s.sum(axis=0) for s in strata])))
    drawn = ratio(np.stack([bootstrap(s[:, :3], str(i), 4000) for i, s in enumerate(strata)]))
    assert drawn.var() == pytest.approx(variances(strata, value)[0], rel=0.1)


# Twelve prompts; the standard errors of statsmodels 0.15's OLS on a constant, cov_type="cluster".
COUNTS = [0, 1, 3, 4, 4, 2, 0, 1, 4, 3, 2, 2]
LATER = [1, 1, 4, 4, 3, 3, 0, 2, 4, 4, 1, 4]


def test_the_cluster_variance_is_statsmodels() -> None:
    even = shares(COUNTS, 4)
    assert share_of([even]) == pytest.approx(0.5416666666666669)
    assert math.sqrt(variances([even], share_of([even]))[0]) == pytest.approx(0.10585748948850102)
    later = shares(LATER, 4)
    change = influence([later], share_of([later])) - influence([even], share_of([even]))
    assert math.sqrt(change @ change) == pytest.approx(0.06497619999397145)
    # A share of some of a prompt's images: the rest is valid, but not in the denominator, and
    # then the prompts' mean residual is 0, so that both know the same variance.
    given, hits = [1, 2, 4, 3, 4, 1, 2, 4, 4, 2, 3, 1], [0, 1, 3, 2, 4, 0, 1, 2, 4, 1, 0, 1]
    ragged = stratum(
        [
            [(float(i < k), float(i < d), 1.0) for i in range(4)]
            for k, d in zip(hits, given, strict=True)
        ]
    )
    assert share_of([ragged]) == pytest.approx(0.6129032258064517)
    found = math.sqrt(variances([ragged], share_of([ragged]))[0])
    assert found == pytest.approx(0.10526216833424643)


def test_shares_get_wilson_on_the_effective_sample_size() -> None:
    value, low, high, deff = estimate([shares([4] * 20 + [0] * 60, 4)])
    assert deff == pytest.approx(4 * 80 / 79)
    assert (low, high) == pytest.approx(wilson(value, 320 / deff, t(79)))
    mixed = [shares([4] * 20 + [0] * 20, 4), shares([4] * 5 + [0] * 15, 4)]
    value, low, high, _ = estimate(mixed)
    cluster, _ = variances(mixed, value)
    assert (low, high) == pytest.approx(wilson(value, value * (1 - value) / cluster, t(58)))


def test_categories_of_one_prompt_share_their_degrees_of_freedom() -> None:
    alone = [shares([k], 4) for k in (1, 2, 4, 0)]
    value, low, high, deff = estimate(alone)
    assert (low, high) == pytest.approx(wilson(value, 16 / deff, t(3)))
    value, low, high, deff = estimate([*alone, shares([1, 3, 4], 4)])
    cluster, _ = variances([*alone, shares([1, 3, 4], 4)], value)
    assert (low, high) == pytest.approx(wilson(value, value * (1 - value) / cluster, t(5)))


@settings(derandomize=True, deadline=None)
@given(st.lists(st.tuples(st.floats(-2, 3), st.floats(-2, 3)), min_size=2, max_size=20))
def test_the_difference_of_scores_is_the_paired_t_interval(
    pairs: list[tuple[float, float]],
) -> None:
    """Against scipy's, where neither side is constant."""
    one, two = np.array(pairs).T
    if min(one.std(), two.std(), (two - one).std()) < 1e-3:
        return
    before, after = (stratum([[(float(x) + 5, 1.0, 1.0)] for x in side]) for side in (one, two))
    found = difference([before], [after], share_of([before]), share_of([after]))
    theirs = scipy.stats.ttest_rel(two, one).confidence_interval()
    assert found == pytest.approx((theirs.low, theirs.high), abs=1e-6)


def test_the_difference_of_shares_is_squared_and_added() -> None:
    """Newcombe's method 10 by hand, on the two rates' own intervals."""
    rng = np.random.default_rng(3)
    ease = rng.beta(1, 2, (80, 1))
    rows = [(rng.random((80, 3)) < ease) for _ in range(2)]
    one, two = (shares(r.sum(axis=1).tolist(), 3) for r in rows)
    (p, low1, high1, deff1), (q, low2, high2, deff2) = estimate([one]), estimate([two])
    r = np.corrcoef(*(row.mean(axis=1) for row in rows))[0, 1]
    sizes = (240 / deff1) * (240 / deff2)
    r -= 0.5 / sizes / math.sqrt(variances([one], p)[0] * variances([two], q)[0])
    below = (q - low2) ** 2 + (high1 - p) ** 2 - 2 * r * (q - low2) * (high1 - p)
    above = (high2 - q) ** 2 + (p - low1) ** 2 - 2 * r * (high2 - q) * (p - low1)
    expected = (q - p - math.sqrt(below), q - p + math.sqrt(above))
    assert difference([one], [two], p, q) == pytest.approx(expected)


@settings(derandomize=True, deadline=None)
@given(st.lists(st.lists(st.tuples(IMAGE, IMAGE), min_size=1, max_size=3), min_size=1, max_size=8))
def test_a_difference_turns_round_with_its_sides(rows: list[list[tuple[Any, Any]]]) -> None:
    one, two = (stratum([[(*pair[i][:2], 1.0) for pair in r] for r in rows]) for i in (0, 1))
    if not one[:, DENOMINATOR].any() or not two[:, DENOMINATOR].any():
        return
    p, q = share_of([one]), share_of([two])
    low, high = difference([one], [two], p, q)
    assert low <= q - p <= high
    assert difference([two], [one], q, p) == pytest.approx((-high, -low))
    assert high > low


def test_nothing_seen_to_change_is_not_nothing_to_see() -> None:
    """Equal verdicts throughout: about what 2 images of n, one each way, would give."""
    rows = shares([1, 0] * 100, 1)
    low, high = difference([rows], [rows], 0.5, 0.5)
    assert low == pytest.approx(-high)
    assert 1.96 / 200 < high < 1.96 * math.sqrt(2) / 200


@pytest.mark.parametrize("count", [0, 4])
def test_a_constant_category_counts_its_prompts(count: int) -> None:
    value, low, high, deff = estimate([shares([count] * 120, 4)])
    assert deff == pytest.approx(4)
    assert (low, high) == pytest.approx(wilson(value, 120))


def test_constant_categories_of_unequal_size_count_as_their_weights_let_them() -> None:
    *_, deff = estimate([shares([0] * 10, 2), shares([0] * 1000, 2)])
    assert 2020 / deff == pytest.approx(4 / (1 / 10 + 1 / 1000))
    value, low, high, _ = estimate([shares([0] * 30, 2), shares([2] * 30, 2)])
    assert (low, high) == pytest.approx(wilson(value, 60))


def test_a_single_prompt_counts_as_one() -> None:
    value, low, high, deff = estimate([shares([1], 4)])
    assert (value, deff) == (0.25, 4)
    assert (low, high) == pytest.approx(wilson(0.25, 1))


def test_the_effective_sample_size_never_exceeds_the_denominator() -> None:
    value, low, high, deff = estimate([shares([2] * 20, 4)])
    assert (value, deff) == (0.5, 0)
    assert (low, high) == pytest.approx(wilson(0.5, 80, t(19)))


def test_a_level_of_unlike_categories_is_surer_than_its_share_looks() -> None:
    """What categories differ by is no noise: the variance is the mean of theirs."""
    strata = [shares([1] * k + [0] * (200 - k), 1) for k in (20, 180)]
    value, low, high, _ = estimate(strata)
    error = math.sqrt(2 * 0.1 * 0.9 / 199) / 2
    assert value == pytest.approx(0.5)
    assert (high - low) / 2 == pytest.approx(t(398) * error, rel=0.01)
    low, high = difference(strata, strata, value, value)
    assert 1.96 / 400 * 0.99 < high < 1.96 * math.sqrt(2) / 400


def test_scores_off_the_0_1_scale_get_students_interval() -> None:
    value, low, high, deff = estimate([stratum([[(1.5, 1.0, 1.0)], [(2.5, 1.0, 1.0)]] * 5)])
    theirs = scipy.stats.ttest_1samp([1.5, 2.5] * 5, 0).confidence_interval()
    assert (low, value, high) == pytest.approx((theirs.low, 2.0, theirs.high))
    assert deff == pytest.approx(10 / 9)


@pytest.mark.parametrize("score", [0.1, 0.3, 1 / 3, 0.7, 12.34])
def test_constant_scores_count_their_prompts(score: float) -> None:
    """Rounding in their sums is no variance."""
    for prompts in range(2, 40):
        category = stratum([[(score, 1.0, 1.0)] * 3] * prompts)
        assert estimate([category])[1:] == pytest.approx((score, score, 3))
        assert estimate([category, category])[3] == pytest.approx(3)
