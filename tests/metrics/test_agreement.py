"""Agreement of two judges against plain counting."""

from __future__ import annotations

import math
from dataclasses import asdict
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from gapbench.metrics.agreement import agreement, alpha
from gapbench.types import GapbenchError

NAN = math.nan
VERDICT = st.sampled_from([0.0, 1.0, NAN])


@st.composite
def frames(draw: st.DrawFn) -> pd.DataFrame:
    rows = [
        {
            "task": "t",
            "category": category,
            "prompt": f"{category}{prompt}",
            "a": draw(VERDICT),
            "b": draw(VERDICT),
        }
        for category in "xy"
        for prompt in range(draw(st.integers(1, 5)))
        for _ in range(draw(st.integers(1, 3)))
    ]
    return pd.DataFrame(draw(st.permutations(rows)))


def twin(frame: pd.DataFrame) -> tuple[Fraction | None, Fraction | None, int]:
    """Raw agreement, kappa and n by counting pairs one by one, exactly."""
    pairs = [
        (int(a), int(b))
        for a, b in frame[["a", "b"]].to_numpy(float).tolist()
        if not (math.isnan(a) or math.isnan(b))
    ]
    n = len(pairs)
    if not n:
        return None, None, 0
    raw = Fraction(sum(a == b for a, b in pairs), n)
    # Chance: every first verdict against every second one.
    chance = Fraction(sum(a == b for a, _ in pairs for _, b in pairs), n * n)
    return raw, None if chance == 1 else (raw - chance) / (1 - chance), n


@settings(max_examples=60, deadline=None)
@given(frames(), st.integers(0, 99))
def test_figures_are_those_of_plain_counting(frame: pd.DataFrame, seed: int) -> None:
    got = agreement(frame, "a", "b")
    raw, kappa, n = twin(frame)
    assert got.n == n
    assert got.abstained == len(frame) - n
    both = frame.dropna(subset=["a", "b"])
    assert got.n_prompts == both.groupby(["category", "prompt"]).ngroups
    assert got.raw == (None if raw is None else pytest.approx(float(raw)))
    assert got.kappa == (None if kappa is None else pytest.approx(float(kappa)))
    for value, low, high in (
        (got.raw, got.raw_low, got.raw_high),
        (got.kappa, got.kappa_low, got.kappa_high),
    ):
        assert (low is None) == (high is None)
        if low is not None and high is not None:
            assert value is not None
            assert -1 <= low <= value <= high <= 1
            assert got.n_prompts > 1
    mixed = frame.sample(frac=1, random_state=seed)
    assert asdict(agreement(mixed, "a", "b")) == pytest.approx(asdict(got))
    swapped = asdict(agreement(frame, "b", "a"))
    assert {k: swapped[k] for k in ("raw", "kappa", "n")} == pytest.approx(
        {"raw": got.raw, "kappa": got.kappa, "n": got.n}
    )


def frame_of(pairs: list[tuple[float, float]], samples: int = 1) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "task": "t",
            "category": "c",
            "prompt": [f"p{i // samples}" for i in range(len(pairs))],
            "a": [a for a, _ in pairs],
            "b": [b for _, b in pairs],
        }
    )


def test_a_known_table() -> None:
    """Both yes 20, both no 15, only the first 5, only the second 10: kappa 0.4 (raw 0.7)."""
    pairs = [(1.0, 1.0)] * 20 + [(0.0, 0.0)] * 15 + [(1.0, 0.0)] * 5 + [(0.0, 1.0)] * 10
    got = agreement(frame_of(pairs), "a", "b")
    assert got.raw == pytest.approx(0.7)
    assert got.kappa == pytest.approx(0.4)
    assert got.kappa_low is not None
    assert got.kappa_high is not None
    assert got.raw_low is not None
    assert got.raw_low < 0.7
    assert 0.1 < got.kappa_low < 0.25 < 0.55 < got.kappa_high < 0.7


def test_full_agreement_is_as_certain_as_its_share() -> None:
    few, many = (
        agreement(frame_of([(1.0, 1.0), (0.0, 0.0)] * times), "a", "b") for times in (3, 100)
    )
    assert (few.kappa, few.kappa_high, many.kappa, many.kappa_high) == (1, 1, 1, 1)
    for got in (few, many):
        assert got.raw_low is not None
        assert got.kappa_low == pytest.approx(2 * got.raw_low - 1)  # chance is a half
    assert few.kappa_low is not None
    assert many.kappa_low is not None
    assert few.kappa_low < 0.6 < 0.9 < many.kappa_low


def test_undefined_figures_are_none() -> None:
    same = agreement(frame_of([(1.0, 1.0)] * 4), "a", "b")
    assert (same.raw, same.kappa, same.kappa_low) == (1.0, None, None)
    assert same.raw_low is not None
    one = agreement(frame_of([(1.0, 1.0), (0.0, 1.0), (0.0, 0.0)], samples=3), "a", "b")
    assert (one.n, one.n_prompts, one.raw_low, one.kappa_low) == (3, 1, None, None)
    assert one.kappa is not None
    for frame in (frame_of([(NAN, 1.0)] * 3), frame_of([])):
        none = agreement(frame, "a", "b")
        assert (none.n, none.raw, none.kappa, none.raw_low) == (0, None, None, None)
        assert none.abstained == len(frame)


def test_an_interval_covers_at_its_rate() -> None:
    """Kappa of 60 prompts with three images each; prompts differ in how hard they are."""
    rng = np.random.default_rng(0)

    def drawn(prompts: int) -> pd.DataFrame:
        hard = np.repeat(rng.random(prompts) < 0.5, 3)
        a = (rng.random(prompts * 3) < 0.5).astype(float)
        b = np.where(rng.random(prompts * 3) < np.where(hard, 0.35, 0.05), 1 - a, a)
        return frame_of(list(zip(a.tolist(), b.tolist(), strict=True)), samples=3)

    truth = 1 - 2 * 0.2  # acceptance is even, so kappa is raw agreement stretched about one half
    hits = 0
    for _ in range(100):
        got = agreement(drawn(60), "a", "b")
        assert got.kappa_low is not None
        assert got.kappa_high is not None
        hits += got.kappa_low <= truth <= got.kappa_high
    assert hits >= 88


def test_kappa_s_variance_is_the_jackknife_s() -> None:
    rng = np.random.default_rng(1)
    a = rng.random(300) < 0.6
    b = np.where(rng.random(300) < 0.8, a, ~a)
    frame = frame_of(list(zip(a.astype(float), b.astype(float), strict=True)), samples=3)
    got = agreement(frame, "a", "b")
    left = [agreement(part, "a", "b").kappa for part in
            (frame[frame["prompt"] != name] for name in frame["prompt"].unique())]  # fmt: skip
    spread = 99 / 100 * sum((k - np.mean(left)) ** 2 for k in left)
    half = scipy.stats.t.ppf(0.975, 99) * spread**0.5
    assert got.kappa is not None
    assert (got.kappa_high - got.kappa_low) / 2 == pytest.approx(half, rel=0.03)


def test_more_images_of_the_same_prompts_narrow_nothing() -> None:
    pairs = [(1.0, 1.0), (0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.0, 0.0)] * 4
    once = agreement(frame_of(pairs), "a", "b")
    copies = agreement(frame_of([p for p in pairs for _ in range(5)], samples=5), "a", "b")
    assert once.kappa == pytest.approx(copies.kappa)
    assert once.kappa_low == pytest.approx(copies.kappa_low)
    assert once.kappa_high == pytest.approx(copies.kappa_high)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"a": 0.5}, "a is 0.5"),
        ({"b": "yes"}, "b is 'yes'"),
        ({"prompt": None}, "no task, category or prompt"),
    ],
)
def test_bad_frames(change: dict[str, Any], why: str) -> None:
    frame = frame_of([(1.0, 1.0)] * 2).assign(**change)
    with pytest.raises(GapbenchError, match=why):
        agreement(frame, "a", "b")
    with pytest.raises(GapbenchError, match="no column 'c'"):
        agreement(frame_of([(1.0, 1.0)]), "a", "c")


def plain_alpha(rows: list[list[float]]) -> tuple[Fraction | None, int, int]:
    """Alpha by its coincidences, pair by pair: each pair of labels of an image weighs
    1 / (its labels - 1)."""
    units = [[int(v) for v in row if not math.isnan(v)] for row in rows]
    units = [unit for unit in units if len(unit) > 1]
    labels = [value for unit in units for value in unit]
    seen = sum(
        Fraction(sum(a != b for i, a in enumerate(unit) for j, b in enumerate(unit) if i != j),
                 len(unit) - 1)
        for unit in units
    )  # fmt: skip
    chance = sum(a != b for i, a in enumerate(labels) for j, b in enumerate(labels) if i != j)
    if not chance:
        return None, len(units), len(labels)
    return 1 - seen * (len(labels) - 1) / chance, len(units), len(labels)


@settings(max_examples=60, deadline=None)
@given(frames(), st.data())
def test_alpha_is_that_of_plain_counting(frame: pd.DataFrame, data: st.DataObject) -> None:
    third = st.lists(VERDICT, min_size=len(frame), max_size=len(frame))
    frame = frame.assign(c=data.draw(third))
    got = alpha(frame, ["a", "b", "c"])
    value, images, labels = plain_alpha(frame[["a", "b", "c"]].to_numpy(float).tolist())
    assert (got.images, got.labels) == (images, labels)
    assert got.value == (None if value is None else pytest.approx(float(value)))
    if got.low is not None and got.high is not None and got.value is not None:
        assert -1 <= got.low <= got.value + 1e-9
        assert got.value - 1e-9 <= got.high <= 1
    for raters in (["c", "a", "b"], ["b", "c", "a"]):
        assert asdict(alpha(frame, raters)) == pytest.approx(asdict(got))


def test_alpha_s_interval_covers_at_its_rate() -> None:
    """Three raters who each mistake one image in ten, on 40 even prompts of two images."""
    rng = np.random.default_rng(0)
    truth, hits = 1 - 2 * 2 * 0.1 * 0.9, 0
    for _ in range(100):
        real = np.repeat(rng.random(40) < 0.5, 2)
        said = np.where(rng.random((3, 80)) < 0.1, ~real, real).astype(float)
        frame = frame_of(list(zip(said[0], said[1], strict=True)), samples=2).assign(c=said[2])
        got = alpha(frame, ["a", "b", "c"])
        assert got.low is not None
        assert got.high is not None
        hits += got.low <= truth <= got.high
    assert hits >= 88


def test_alpha_without_pairs_is_none() -> None:
    for frame in (frame_of([(NAN, 1.0), (0.0, NAN)]), frame_of([(1.0, 1.0)] * 3), frame_of([])):
        got = alpha(frame, ["a", "b"])
        assert (got.value, got.low, got.high) == (None, None, None)
