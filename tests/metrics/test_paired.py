"""Paired changes against brute force and scipy, and the plan against simulation."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations, product
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from gapbench.metrics import rates
from gapbench.metrics.intervals import Contrast, figure, ratio
from gapbench.metrics.paired import (
    Change,
    adjusted,
    changes,
    detectable,
    gap_gain,
    groups,
    holm,
    understanding,
    win_rate,
)
from gapbench.metrics.power import Spread, spread
from gapbench.types import GapbenchError

NAN = math.nan
VERDICT = st.sampled_from([0.0, 1.0, 1.0, NAN])
CATEGORIES = (("g", "a", "easy"), ("t", "b", "hard"), ("t", "c", "hard"))


def frame_of(rows: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(rows).assign(mismatched=NAN, mismatched_asked=False)


@st.composite
def runs(draw: st.DrawFn) -> tuple[pd.DataFrame, pd.DataFrame, list[float]]:
    """Two frames over the same images, in different orders, and crossed verdicts."""
    one, two, crossed = [], [], []
    for task, category, tier in draw(
        st.lists(st.sampled_from(CATEGORIES), min_size=1, unique=True)
    ):
        for prompt in range(draw(st.integers(1, 4))):
            for sample in range(draw(st.integers(1, 3))):
                key = {"task": task, "category": category, "tier": tier,
                       "prompt": f"{category}{prompt}", "sample": sample}  # fmt: skip
                for rows in (one, two):
                    outside = draw(VERDICT)
                    rows.append(key | {"own": draw(VERDICT), "outside": outside, "score": outside})
                crossed.append(draw(VERDICT))
    return frame_of(one), frame_of(draw(st.permutations(two))), crossed


def brute(rows: list[tuple[Any, Any, Any]], metric: str) -> float | None:
    """One figure of (category, own, outside) rows: shares a category, then their plain means."""
    parts: dict[Any, list[float]] = {}
    for category, own, outside in rows:
        term = {
            "generation": (outside, 1.0),
            "non_unification": (1 - own, 1.0),
            "false_positive": (float(own == 1 and outside == 0), 1 - outside),
            "self_accuracy": (float(own == outside), 1.0),
        }[metric]
        sums = parts.setdefault(category, [0.0, 0.0, 0.0])
        for i, x in enumerate((*term, 1.0)):
            sums[i] += x
    below = sum(d / n for _, d, n in parts.values())
    return sum(u / n for u, _, n in parts.values()) / below if below else None


COMPARED = ("generation", "non_unification", "false_positive", "self_accuracy")
NEEDS = {"generation": ["outside"], "non_unification": ["own"]}


@settings(derandomize=True, deadline=None, max_examples=25)
@given(runs())
def test_changes_are_those_of_plain_counting(
    found: tuple[pd.DataFrame, pd.DataFrame, list[float]],
) -> None:
    before, after, _ = found
    keys = ["task", "category", "prompt", "sample"]
    both = before.merge(after, on=keys, suffixes=("_1", "_2"))
    for level, part in (("overall", both), ("category", both)):
        made = {(c.name, c.metric): c for c in changes(before, after, level)}
        names = ["overall"] if level == "overall" else [
            f"{t}/{c}" for t, c in dict.fromkeys(zip(both["task"], both["category"], strict=True))
        ]  # fmt: skip
        assert set(made) == {(name, metric) for name in names for metric in COMPARED}
        for (name, metric), change in made.items():
            mine = (
                part if name == "overall" else part[part["task"] + "/" + part["category"] == name]
            )
            needs = [f"{c}_{i}" for c in NEEDS.get(metric, ["own", "outside"]) for i in (1, 2)]
            mine = mine.dropna(subset=needs)
            one, two = (
                brute(list(zip(mine["category"], mine[f"own_{i}"], mine[f"outside_{i}"],
                               strict=True)), metric)
                for i in (1, 2)
            )  # fmt: skip
            assert change.before == (None if one is None else pytest.approx(one))
            assert change.after == (None if two is None else pytest.approx(two))
            assert change.images == len(mine)
            assert change.prompts == mine.groupby(["task", "prompt"]).ngroups
            if change.difference is None:
                assert None in (one, two)
                assert (change.low, change.high, change.p) == (None, None, None)
            else:
                assert change.low <= change.difference <= change.high
                assert 0 < change.p <= 1
                assert (change.p < 0.05) == (change.low > 0 or change.high < 0)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(runs())
def test_win_rate_and_groups_are_those_of_plain_counting(
    found: tuple[pd.DataFrame, pd.DataFrame, list[float]],
) -> None:
    before, _, crossed = found
    verdicts = list(zip(before["outside"], before["own"], crossed, strict=True))
    known = [v for v in verdicts if not any(math.isnan(x) for x in v)]
    counts = groups(before, crossed)
    assert counts == {
        "".join(key): sum("".join(str(int(x)) for x in v) == "".join(key) for v in known)
        for key in product("01", repeat=3)
    }
    won = win_rate(before, crossed)
    assert won.wins == sum(new == judge != old for judge, old, new in known)
    assert won.losses == sum(old == judge != new for judge, old, new in known)
    assert won.ties == sum(old == new for _, old, new in known)
    assert won.wins == counts["010"] + counts["101"]
    if not known:
        assert won.value is None
    elif not won.wins + won.losses:
        assert (won.value, won.low, won.high) == (0.5, None, None)
    else:
        assert won.low <= won.value <= won.high
        if before["category"].nunique() == 1:
            assert won.value == pytest.approx(won.wins / (won.wins + won.losses))
    [change] = understanding(before, crossed)
    assert change.metric == "understanding"
    if change.difference is not None and before["category"].nunique() == 1:
        assert change.difference == pytest.approx((won.wins - won.losses) / len(known))
        assert (change.difference == pytest.approx(0)) == (won.wins == won.losses)


def stratum(rows: np.ndarray) -> np.ndarray:
    """(prompts, 6) sums of (prompts, samples) verdicts, all valid."""
    hits, every = rows.sum(axis=1), np.full(len(rows), float(rows.shape[1]))
    zero = np.zeros(len(rows))
    return np.stack([hits, every, every, hits, zero, zero], axis=1)


def p_of(before: list[np.ndarray], after: list[np.ndarray]) -> float:
    one, two = (
        figure(side, float(ratio(np.stack([s.sum(axis=0) for s in side]))))
        for side in (before, after)
    )
    return Contrast([two], [one]).p()


def test_p_is_near_the_exact_tests() -> None:
    """McNemar's mid-p of images that changed, one a prompt; and a permutation of whole prompts."""
    for gained, lost in ((14, 4), (12, 6), (30, 12), (9, 9)):
        first = np.array([[x] for x in [0] * gained + [1] * lost + [1] * 40 + [0] * 50], float)
        later = np.array([[x] for x in [1] * gained + [0] * lost + [1] * 40 + [0] * 50], float)
        count = scipy.stats.binom(gained + lost, 0.5)
        exact = min(1, 2 * count.cdf(lost) - count.pmf(lost))  # mid-p
        assert p_of([stratum(first)], [stratum(later)]) == pytest.approx(exact, abs=0.02)
    rng = np.random.default_rng(0)
    one, two = rng.random((2, 60, 3)) < 0.4, rng.random((2, 60, 3)) < 0.46
    before, after = [stratum(x) for x in one], [stratum(x) for x in two]
    swings = (two.astype(float) - one).sum(axis=2).ravel()
    exact = scipy.stats.permutation_test(
        (swings,), lambda x, axis: x.sum(axis=axis), permutation_type="samples",
        vectorized=True, n_resamples=20_000, rng=np.random.default_rng(1),
    ).pvalue  # fmt: skip
    assert 0.001 < exact < 0.5
    assert p_of(before, after) == pytest.approx(exact, rel=0.3)


def test_the_test_keeps_its_size_and_finds_what_is_there() -> None:
    rng = np.random.default_rng(4)
    rejected = [0, 0]
    for _ in range(300):
        ease = rng.beta(1, 1, (40, 1))
        base = stratum(rng.random((40, 3)) < ease)
        for i, gain in enumerate((0.0, 0.3)):
            later = stratum(rng.random((40, 3)) < np.minimum(ease + gain, 1))
            rejected[i] += p_of([base], [later]) < 0.05
    assert 3 <= rejected[0] <= 27  # 15 expected, 3 standard errors
    assert rejected[1] >= 295


def change_of(p: float | None) -> Change:
    return Change(
        level="overall", name="overall", metric="generation", before=0.5, after=0.6,
        difference=0.1, low=0.0, high=0.2, p=p, p_holm=None, detectable=None, images=9, prompts=9,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("ps", "by_hand"),
    [  # statsmodels 0.15: multipletests(p, method="holm")
        ([0.01, 0.04, 0.03, 0.005, 0.2], [0.04, 0.09, 0.09, 0.025, 0.2]),
        ([0.0001, 0.02, 0.02, 0.9, 0.4], [0.0005, 0.08, 0.08, 0.9, 0.8]),
        ([0.5, 0.5, 0.5], [1.0, 1.0, 1.0]),
    ],
)
def test_holm_is_statsmodels(ps: list[float], by_hand: list[float]) -> None:
    assert holm([None, *ps]) == [None, *map(pytest.approx, by_hand)]
    family = adjusted([change_of(p) for p in [*ps, None]])
    assert [c.p_holm for c in family] == [*map(pytest.approx, by_hand), None]
    assert family[-1].detectable is None
    # (z_(1 - 0.025 / m) + z_0.8) times the standard error behind the interval.
    z = scipy.stats.norm.ppf([1 - 0.025 / len(ps), 0.8]).sum()
    assert family[0].detectable == pytest.approx(z * 0.2 / (2 * 1.96))


@settings(derandomize=True, deadline=None, max_examples=50)
@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=5))
def test_holm_is_the_closed_bonferroni_test(ps: list[float]) -> None:
    for i, p_holm in enumerate(holm(ps)):
        sets = [s for k in range(1, len(ps) + 1) for s in combinations(range(len(ps)), k) if i in s]
        closed = max(min(1.0, len(s) * min(ps[j] for j in s)) for s in sets)
        assert p_holm == pytest.approx(closed)


def test_a_verdict_knows_which_way_is_better() -> None:
    better = replace(change_of(0.001), p_holm=0.01)
    assert better.verdict == 1
    assert replace(better, difference=-0.1).verdict == -1
    assert replace(better, lower_is_better=True).verdict == -1
    assert replace(better, difference=-0.1, lower_is_better=True).verdict == 1
    assert replace(better, p_holm=0.05).verdict == 0
    assert replace(better, p_holm=None).verdict == 0


def simulated(
    shares: dict[str, float], prompts: int = 30, gaps: dict[str, float] | None = None
) -> pd.DataFrame:
    rng = np.random.default_rng(len(shares))
    rows = []
    for category, share in shares.items():
        for prompt in range(prompts):
            for sample in range(4):
                own = float(rng.random() >= (gaps or {}).get(category, 0.2))
                outside = float(rng.random() < share)
                rows.append({"task": "t", "category": category, "tier": "easy",
                             "prompt": f"{category}{prompt}", "sample": sample, "own": own,
                             "outside": outside, "score": outside})  # fmt: skip
    return frame_of(rows)


def test_gap_gain_is_scipys_pearson_over_categories() -> None:
    gaps = {c: 0.1 * i for i, c in enumerate("abcdef", 1)}
    before = simulated(dict.fromkeys("abcdef", 0.4), gaps=gaps)
    after = simulated({c: 0.4 + 0.5 * gap for c, gap in gaps.items()}, gaps=gaps)
    found = gap_gain(before, after)
    assert found is not None
    old, new = ({(r.name, r.metric): r.value for r in rates(f)} for f in (before, after))
    x = [old[f"t/{c}", "non_unification"] for c in "abcdef"]
    y = [new[f"t/{c}", "generation"] - old[f"t/{c}", "generation"] for c in "abcdef"]
    theirs = scipy.stats.pearsonr(x, y)
    assert found.rho == pytest.approx(theirs.statistic)
    z = math.atanh(found.rho)  # Fisher's interval by hand
    ends = [math.tanh(z + sign * 1.959964 / math.sqrt(3)) for sign in (-1, 1)]
    assert [found.low, found.high] == pytest.approx(ends, abs=1e-6)
    assert found.categories == 6
    few = [f[f["category"].isin(list("abc"))] for f in (before, after)]
    assert gap_gain(*few) is None
    assert gap_gain(before, before) is None


def test_frames_of_other_images_are_refused() -> None:
    frame = simulated({"a": 0.5}, prompts=3)
    for other in (frame.iloc[1:], frame.assign(prompt=frame["prompt"] + "x")):
        with pytest.raises(GapbenchError, match="different images"):
            changes(frame, other)
    assert changes(frame.head(0), frame.head(0)) == []


# -- power ---------------------------------------------------------------------------------------


def drawn(rng: np.random.Generator, ease: np.ndarray, samples: int) -> np.ndarray:
    return rng.random((*ease.shape, samples)) < ease[..., None]


def run_of(verdicts: np.ndarray) -> pd.DataFrame:
    """A frame of (categories, prompts, samples) outside verdicts; own verdicts agree."""
    index = np.indices(verdicts.shape).reshape(3, -1)
    names = [f"c{c}" for c in index[0]]
    values = verdicts.reshape(-1).astype(float)
    return pd.DataFrame(
        {
            "task": "t", "category": names, "tier": "easy",
            "prompt": [f"c{c}-{p}" for c, p in index[:2].T], "sample": index[2],
            "own": values, "outside": values, "score": values,
            "mismatched": NAN, "mismatched_asked": False,
        }
    )  # fmt: skip


def test_spread_finds_the_variances_that_were_put_in() -> None:
    rng = np.random.default_rng(0)
    ease = rng.beta(2, 2, (3, 2000))  # variance 1/20, and 1/4 - 1/20 within a prompt
    found = spread(run_of(drawn(rng, ease, 3)), "generation")
    assert found.value == pytest.approx(0.5, abs=0.01)
    assert found.between == pytest.approx(0.05, rel=0.1)
    assert found.within == pytest.approx(0.2, rel=0.05)
    assert (found.prompts, found.samples) == (6000, 3)


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("sizes", [(100, 100), (300, 30, 30)])
def test_the_planned_prompts_detect_what_was_wished_for(
    alike: bool, sizes: tuple[int, ...]
) -> None:
    """80 % of simulated comparisons of the planned size, each at the family's first level."""
    rng = np.random.default_rng(1)
    low, high, gain, samples = 0.2, 0.6, 0.15, 3
    parts = [run_of(drawn(rng, rng.uniform(low, high, (1, 8 * n)), 4)) for n in sizes]
    for number, part in enumerate(parts):
        part["category"] = f"c{number}"
        part["prompt"] = f"{number}-" + part["prompt"]
    pilot = spread(pd.concat(parts), "generation")
    scale = pilot.needed(gain, samples, alike) / sum(sizes)
    found = 0
    for _ in range(400):
        sides: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        for size in sizes:
            ease = rng.uniform(low, high, round(size * scale))
            other = ease if alike else rng.uniform(low, high, ease.shape)
            for side, chance in zip(sides, (ease, other + gain), strict=True):
                side.append(stratum(drawn(rng, chance, samples)))
        found += p_of(*sides) < 0.01
    # 3 standard errors of 400 comparisons, and 2 points for the pilot's error.
    assert 0.72 <= found / 400 <= 0.88


def test_more_samples_take_fewer_prompts_down_to_what_prompts_differ_by() -> None:
    known = Spread(0.5, between=0.05, within=0.2, prompts=100, samples=4)
    best = [known.needed(0.05, m, True) for m in (1, 2, 4)]
    assert best[0] > best[1] > best[2]
    z = scipy.stats.norm.ppf([0.995, 0.8])  # 0.05 / 5 two-sided; by hand, with Guenther's z^2 / 2
    assert best == [
        math.ceil(z.sum() ** 2 * 0.4 / m / 0.05**2 + z[0] ** 2 / 2 + 6) for m in (1, 2, 4)
    ]
    error = math.sqrt((2 * 0.2 / 4 + 2 * 0.05) / 100)
    assert known.error(100, 4, False) == pytest.approx(error)
    needed = known.needed(0.1, 4, False)
    assert detectable(known.error(needed, 4, False), 5) <= 0.1
    assert detectable(known.error(needed - 11, 4, False), 5) > 0.1


def test_a_run_that_cannot_be_planned_from_is_refused() -> None:
    frame = run_of(np.ones((1, 5, 1)))
    with pytest.raises(GapbenchError, match="--samples 2 or more"):
        spread(frame, "generation")
    with pytest.raises(GapbenchError, match="no verdicts that false_positive needs"):
        spread(run_of(np.ones((1, 5, 2))), "false_positive")
    with pytest.raises(GapbenchError, match="no metric 'speed'; there are generation"):
        spread(frame, "speed")
