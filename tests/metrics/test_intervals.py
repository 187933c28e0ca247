"""Intervals and tests: against scipy, variances against brute force."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from gapbench.metrics.intervals import (
    DENOMINATOR,
    Contrast,
    Figure,
    Floats,
    figure,
    influence,
    interval,
    ratio,
    variances,
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
                sum(not 0 <= n <= 1 for n, _, _ in images),
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


def contrast(before: list[Floats], after: list[Floats]) -> Contrast:
    return Contrast([figure(after, share_of(after))], [figure(before, share_of(before))])


def plain(value: float, trials: float, freedom: float = math.inf) -> tuple[float, float]:
    """The interval of a share of so many independent trials."""
    return Figure(value, 0.0, freedom, trials).ends()


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (0, 50), (3, 50), (25, 50), (50, 50), (7, 9)])
@pytest.mark.parametrize("tail", [0.025, 0.005])
def test_the_ends_of_a_share_are_mid_p(k: int, n: int, tail: float) -> None:
    """At either end half of what was seen and all beyond it have the probability `tail`."""
    low, high = Figure(k / n, 0.0, math.inf, n).ends(tail)
    for chance, count in ((low, k), (1 - high, n - k)):
        seen = scipy.stats.binom(n, chance)
        beyond = seen.sf(count) + seen.pmf(count) / 2
        assert (chance, count) == (0, 0) or beyond == pytest.approx(tail)


@settings(derandomize=True, deadline=None)
@given(st.floats(0, 1), st.floats(0.1, 1e6), st.floats(1, 500))
def test_a_share_s_ends_lie_in_0_1_around_it(value: float, trials: float, freedom: float) -> None:
    low, high = plain(value, trials, freedom)
    assert 0 <= low <= value <= high <= 1
    assert plain(1 - value, trials, freedom) == pytest.approx((1 - high, 1 - low), abs=1e-9)


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
        count = sum(any(d for _, d, _ in images) for images in rows)
        mean = sum(n - value * d for images in rows for n, d, _ in images) / valid
        mean = mean if sum(any(v for *_, v in images) for images in rows) > 1 else 0.0
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
    value = share_of(strata)
    drawn = [share_of([s[rng.integers(300, size=300)] for s in strata]) for _ in range(4000)]
    assert np.var(drawn) == pytest.approx(variances(strata, value)[0], rel=0.1)


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


def brute_figure(categories: list[list[int]], samples: int) -> tuple[float, float]:
    """Trials and degrees of freedom of a level's share, all prompts of `samples` images, by loops:
    what prompts keep of the variance of wholes, drawn to 1 by two prompts, at smoothed shares."""
    level = [np.array(positives) / samples for positives in categories]
    value = float(np.mean([c.mean() for c in level]))
    cluster = sum(c.var(ddof=1) / len(c) for c in level)
    images = sum((c * (1 - c) + (c - c.mean()) ** 2).sum() / samples / len(c) ** 2 for c in level)
    whole = sum(c.mean() * (1 - c.mean()) / len(c) for c in level)
    parts = np.concatenate([c / len(c) for c in level])
    rest = np.concatenate([(1 - c) / len(c) for c in level])
    evidence = min(x.sum() ** 2 / (x @ x) for x in (parts, rest))
    kept = (max(cluster, images) / whole) ** (evidence / (evidence + 2))
    smooth = [(c.sum() + 0.5) / (len(c) + 1) for c in level]
    each = [kept * s * (1 - s) / len(c) for s, c in zip(smooth, level, strict=True)]
    mean, variance = float(np.mean(smooth)), sum(each) / len(level) ** 2
    freedom = sum(each) ** 2 / sum(v * v / (len(c) - 1) for v, c in zip(each, level, strict=True))
    assert value == pytest.approx(share_of([shares(p, samples) for p in categories]))
    return mean * (1 - mean) / variance, freedom


@settings(derandomize=True, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 4), min_size=2, max_size=9), min_size=1, max_size=3).filter(
        lambda level: any(len({*positives, 0, 4}) > 2 for positives in level)
    )
)
def test_a_share_s_figure_is_the_brute_force_one(categories: list[list[int]]) -> None:
    strata = [shares(positives, 4) for positives in categories]
    found = figure(strata, share_of(strata))
    trials, freedom = brute_figure(categories, 4)
    assert (found.trials, found.freedom) == pytest.approx((trials, freedom))
    assert interval(strata, found.value)[:2] == pytest.approx(plain(found.value, trials, freedom))


def test_degrees_of_freedom_are_welch_s() -> None:
    """Of two categories' scores that weigh equally: those of the difference of two means."""
    rng = np.random.default_rng(8)
    one, two = rng.normal(5, 1, 40), rng.normal(7, 3, 6)
    strata = [stratum([[(float(x), 1.0, 1.0)] for x in side]) for side in (one, two)]
    found = figure(strata, share_of(strata))
    welch = scipy.stats.ttest_ind(one, two, equal_var=False)
    assert found.freedom == pytest.approx(welch.df)
    low, high = welch.confidence_interval()
    assert np.subtract(*found.ends()[::-1]) == pytest.approx((high - low) / 2)


def test_a_small_category_in_which_nothing_was_seen_is_not_certain() -> None:
    large, small = shares([1] * 6 + [0] * 294, 1), shares([0] * 20, 1)
    *_, high, _ = estimate([large, small])
    # What 6 of 300 alone would leave open is 0.02; nothing seen of 20 leaves 3 of 20 open.
    assert 0.05 < high < 0.5 * (0.02 + 3 / 20)


def test_categories_of_one_prompt_count_as_one_together() -> None:
    alone = [shares([k], 4) for k in (1, 2, 4, 0)]
    assert figure(alone, share_of(alone)).freedom == pytest.approx(3)
    more = [*alone, shares([1, 3, 4], 4)]
    assert 3 < figure(more, share_of(more)).freedom <= 5


@settings(derandomize=True, deadline=None)
@given(st.lists(st.tuples(st.floats(-2, 3), st.floats(-2, 3)), min_size=2, max_size=20))
def test_the_difference_of_scores_off_0_1_is_the_paired_t_test(
    pairs: list[tuple[float, float]],
) -> None:
    """Against scipy's, where neither side is constant."""
    one, two = np.array(pairs).T
    if min(one.std(), two.std(), (two - one).std()) < 1e-3:
        return
    before, after = (stratum([[(float(x) + 5, 1.0, 1.0)] for x in side]) for side in (one, two))
    found = contrast([before], [after])
    theirs = scipy.stats.ttest_rel(two, one)
    assert found.ends() == pytest.approx(tuple(theirs.confidence_interval()), abs=1e-6)
    assert found.p() == pytest.approx(theirs.pvalue, abs=1e-4)


def test_the_difference_of_shares_is_squared_and_added() -> None:
    """Newcombe's method 10 by hand, on the two rates' own intervals, and one more change."""
    rng = np.random.default_rng(3)
    ease = rng.beta(1, 2, (80, 1))
    rows = [(rng.random((80, 3)) < ease) for _ in range(2)]
    one, two = (shares(r.sum(axis=1).tolist(), 3) for r in rows)
    (p, low1, high1, _), (q, low2, high2, _) = estimate([one]), estimate([two])
    r = np.corrcoef(*(row.mean(axis=1) for row in rows))[0, 1]
    moved = influence([two], q) - influence([one], p)
    freedom = min(figure([side], share_of([side])).freedom for side in (one, two))
    more = (moved**4).sum() / (moved**2).sum() * scipy.stats.t.ppf(0.975, freedom) ** 2
    below = (q - low2) ** 2 + (high1 - p) ** 2 - 2 * r * (q - low2) * (high1 - p)
    above = (high2 - q) ** 2 + (p - low1) ** 2 - 2 * r * (high2 - q) * (p - low1)
    expected = (q - p - math.sqrt(below + more), q - p + math.sqrt(above + more))
    assert contrast([one], [two]).ends() == pytest.approx(expected)


PAIRS = st.lists(st.lists(st.tuples(IMAGE, IMAGE), min_size=1, max_size=3), min_size=1, max_size=12)


@settings(derandomize=True, deadline=None)
@given(PAIRS)
def test_a_difference_turns_round_with_its_sides(rows: list[list[tuple[Any, Any]]]) -> None:
    one, two = (stratum([[(*pair[i][:2], 1.0) for pair in r] for r in rows]) for i in (0, 1))
    if not one[:, DENOMINATOR].any() or not two[:, DENOMINATOR].any():
        return
    found, turned = contrast([one], [two]), contrast([two], [one])
    low, high = found.ends()
    assert -1 <= low <= found.value <= high <= 1
    assert high > low
    assert turned.ends() == pytest.approx((-high, -low))
    assert turned.p() == pytest.approx(found.p())


@settings(derandomize=True, deadline=None, max_examples=200)
@given(PAIRS, st.integers(1, 8))
def test_p_and_the_interval_never_contradict_each_other(
    rows: list[list[tuple[Any, Any]]], times: int
) -> None:
    one, two = (stratum([[(*pair[i][:2], 1.0) for pair in r] for r in rows]) for i in (0, 1))
    if not one[:, DENOMINATOR].any() or not two[:, DENOMINATOR].any():
        return
    found = contrast([np.tile(one, (times, 1))], [np.tile(two, (times, 1))])
    p = found.p()
    assert 0 < p <= 1
    for level in (0.05, 0.01):
        low, high = found.ends(level / 2)
        assert (p < level) == (low > 0 or high < 0)


def test_nothing_seen_to_change_is_not_nothing_to_see() -> None:
    """Equal verdicts throughout: what one image of n would bring."""
    rows = shares([1, 0] * 100, 1)
    found = contrast([rows], [rows])
    low, high = found.ends()
    assert low == pytest.approx(-high)
    assert 1.96 / 200 < high < 2 / 200
    assert found.p() == 1


@pytest.mark.parametrize("count", [0, 4])
def test_a_constant_category_counts_its_prompts(count: int) -> None:
    value, low, high, deff = estimate([shares([count] * 120, 4)])
    assert deff == pytest.approx(4)
    assert (low, high) == pytest.approx(plain(value, 120, 119))


def test_constant_categories_of_unequal_size_count_as_their_weights_let_them() -> None:
    *_, deff = estimate([shares([0] * 100, 2), shares([0] * 1000, 2)])
    assert 2 * 100 < 2200 / deff < 4 / (1 / 100 + 1 / 1000)
    _, low, high, _ = estimate([shares([0] * 30, 2), shares([2] * 30, 2)])
    assert low < 0.49
    assert high > 0.51


def test_one_prompt_says_nearly_nothing() -> None:
    value, low, high, _ = estimate([shares([1], 4)])
    assert value == 0.25
    assert low < 0.01
    assert high > 0.99


def test_even_prompts_are_worth_no_more_than_their_images() -> None:
    strata = [shares([2] * 20, 4)]
    found = figure(strata, share_of(strata))
    assert found.trials == pytest.approx(20 * 4 ** (20 / 22))
    assert interval(strata, 0.5)[2] == 0


def test_a_level_of_unlike_categories_is_surer_than_its_share_looks() -> None:
    """What categories differ by is no noise: the variance is the mean of theirs."""
    strata = [shares([1] * k + [0] * (200 - k), 1) for k in (20, 180)]
    value, low, high, _ = estimate(strata)
    error = math.sqrt(2 * 0.1 * 0.9 / 199) / 2
    assert value == pytest.approx(0.5)
    assert (high - low) / 2 == pytest.approx(1.966 * error, rel=0.02)


def test_scores_off_the_0_1_scale_get_students_interval() -> None:
    value, low, high, deff = estimate([stratum([[(1.5, 1.0, 1.0)], [(2.5, 1.0, 1.0)]] * 5)])
    theirs = scipy.stats.ttest_1samp([1.5, 2.5] * 5, 0).confidence_interval()
    assert (low, value, high) == pytest.approx((theirs.low, 2.0, theirs.high))
    assert deff == pytest.approx(10 / 9)


@pytest.mark.parametrize("score", [0.1, 0.3, 1 / 3, 0.7])
def test_constant_scores_are_nearly_certain(score: float) -> None:
    """Rounding in their sums is no variance."""
    for prompts in range(2, 40):
        category = stratum([[(score, 1.0, 1.0)] * 3] * prompts)
        value, low, high, _ = estimate([category, category])
        assert value == pytest.approx(score)
        assert low < value < high
    assert high - low < 0.01


@pytest.mark.parametrize(("a", "b", "least"), [(0.1, 3.0, 91), (1.0, 30.0, 93), (8.0, 4.0, 93)])
def test_intervals_of_scores_near_an_edge_cover_and_keep_the_range(
    a: float, b: float, least: float
) -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        scores = [[(float(x), 1.0, 1.0)] for x in rng.beta(a, b, 20)]
        value, low, high, _ = estimate([stratum(scores)])
        assert 0 <= low <= value <= high <= 1
        covered += low <= a / (a + b) <= high
    assert covered / 4 > least


@pytest.mark.parametrize("after", [0.5, 0.1])
def test_a_change_of_false_positives_that_is_none_is_rarely_seen(after: float) -> None:
    """However few images fail after: at most 6 % and three standard errors of 400 runs."""
    rng = np.random.default_rng(2)
    seen = 0
    for _ in range(400):
        sides = []
        for share in (0.5, after):
            failed, accepts = rng.random((118, 1)) < share, rng.random((118, 1)) < 0.4
            images = np.stack([failed & accepts, failed, np.ones_like(failed)], axis=2)
            sides.append(stratum([[tuple(map(float, x)) for x in prompt] for prompt in images]))
        low, high = contrast([sides[0]], [sides[1]]).ends()
        seen += low > 0 or high < 0
    assert 2 <= seen / 4 + 2 <= 11.6


def test_unequal_categories_cover() -> None:
    """300/30/30 prompts at one rate; the sum of degrees of freedom would give 68 % here."""
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(200):
        chances = [rng.beta(0.005 / 0.4, 0.995 / 0.4, size) for size in (300, 30, 30)]
        strata = [shares(rng.binomial(4, c).tolist(), 4) for c in chances]
        _, low, high, _ = estimate(strata)
        covered += low <= 0.005 <= high
    assert covered / 2 > 90
