"""The figure a board ranks by, ranks with their intervals, and ties."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest

from gapbench import GapbenchError
from gapbench.leaderboard.board import baselines
from gapbench.metrics import rates
from gapbench.metrics.ranking import standings


def frame(
    right: float, fooled: float, seed: int = 0, prompts: int = 40, samples: int = 2
) -> pd.DataFrame:
    """A model whose images pass and are accepted with probability `right`, and that accepts a
    mismatched pair with probability `fooled`; where it is not right, chance says how."""
    rng = np.random.default_rng(seed)
    rows = []
    for category, prompt, sample in itertools.product("ab", range(prompts), range(samples)):
        both = rng.random() < right
        wrong = [(0, 0), (1, 0), (0, 1)][rng.integers(3)]
        own, outside = (1, 1) if both else wrong
        asked = sample == 0
        rows.append(
            {
                "task": "t", "category": category, "tier": "easy", "prompt": f"{category}{prompt}",
                "sample": sample, "own": float(own), "outside": float(outside),
                "score": float(outside), "mismatched_asked": asked,
                "mismatched": float(rng.random() < fooled) if asked else np.nan,
                "image": f"{seed}-{category}-{prompt}-{sample}",
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def test_the_figure_is_the_difference_of_two_shares() -> None:
    made = frame(0.6, 0.2)
    found = standings({"m": made})["m"]
    right = ((made["own"] == 1) & (made["outside"] == 1)).groupby(made["category"]).mean().mean()
    asked = made[made["mismatched_asked"]]
    fooled = (asked["mismatched"] == 1).groupby(asked["category"]).mean().mean()
    assert found.value == pytest.approx(right - fooled)
    assert found.low < found.value < found.high
    assert (found.place, found.best, found.worst) == (1, 1, 1)


def test_its_interval_is_about_that_of_a_plain_bootstrap() -> None:
    made = frame(0.6, 0.2, prompts=30, samples=1)
    found = standings({"m": made})["m"]
    rng = np.random.default_rng(5)
    groups = [part for _, part in made.groupby("category")]
    drawn = []
    for _ in range(2000):
        parts = [part.iloc[rng.integers(len(part), size=len(part))] for part in groups]
        drawn.append(
            np.mean(
                [((p["own"] + p["outside"] == 2).mean() - p["mismatched"].mean()) for p in parts]
            )
        )
    assert (found.low, found.high) == pytest.approx(np.quantile(drawn, (0.025, 0.975)), abs=0.05)


def test_verdicts_that_look_at_nothing_get_nothing() -> None:
    """Whatever was drawn, though non-unification alone puts the one that accepts all first."""
    for right in (0.0, 0.5, 0.95, 1.0):
        made = frame(right, 0.1, prompts=200)
        null = baselines(made)
        found = standings({"m": made, **null}, unranked=list(null))
        assert found["accepts everything"].value <= 0
        assert found["rejects everything"].value == 0
        assert found["tosses a coin"].low <= 0
        assert all(found[name].place is None for name in null)
        assert found["m"].place == 1
        assert found["m"].worst == 1  # baselines take no ranks
    accepting = {
        r.metric: r.value for r in rates(null["accepts everything"]) if r.level == "overall"
    }
    assert accepting["non_unification"] == 0
    assert accepting["mismatch_acceptance"] == 1


def test_a_coin_falls_alike_each_time_and_about_half() -> None:
    made = frame(0.5, 0.1, prompts=300)
    first, again = baselines(made)["tosses a coin"], baselines(made)["tosses a coin"]
    pd.testing.assert_frame_equal(first, again)
    assert first["own"].mean() == pytest.approx(0.5, abs=0.06)
    assert first["mismatched"].isna().equals(made["mismatched"].isna())


def test_models_that_differ_are_told_apart_and_equals_tie() -> None:
    frames = {"low": frame(0.2, 0.1, 1), "high": frame(0.9, 0.0, 2), "twin": frame(0.9, 0.0, 2)}
    found = standings(frames)
    assert {name: s.place for name, s in found.items()} == {"high": 1, "twin": 1, "low": 3}
    assert (found["low"].best, found["low"].worst) == (3, 3)
    assert (found["high"].best, found["high"].worst) == (1, 2)


def test_close_models_tie_and_their_ranks_overlap() -> None:
    found = standings({"a": frame(0.6, 0.1, 1, 20), "b": frame(0.62, 0.1, 2, 20)})
    assert [s.place for s in found.values()] == [1, 1]
    assert all((s.best, s.worst) == (1, 2) for s in found.values())


def test_models_are_compared_on_the_same_draws_of_prompts() -> None:
    """A small difference on every prompt is certain, however much prompts differ."""
    base = frame(0.5, 0.1, 3, prompts=60, samples=1)
    better = base.copy()
    lost = better[(better["own"] == 0) | (better["outside"] == 0)].index[::6]
    better.loc[lost, ["own", "outside", "score"]] = 1.0
    found = standings({"base": base, "better": better})
    assert found["better"].low < found["base"].high  # their intervals overlap
    assert (found["better"].place, found["base"].place) == (1, 2)
    assert (found["base"].best, found["base"].worst) == (2, 2)


def test_neither_the_order_of_rows_nor_of_models_matters() -> None:
    frames = {"a": frame(0.6, 0.1, 1), "b": frame(0.5, 0.2, 2)}
    shuffled = {
        name: frames[name].sample(frac=1, random_state=7).reset_index(drop=True)
        for name in reversed(frames)
    }
    first, again = standings(frames), standings(shuffled)
    assert list(first) == list(again)
    for name, standing in first.items():
        assert again[name].value == pytest.approx(standing.value)
        assert again[name].place == standing.place
        assert again[name].low == pytest.approx(standing.low)


def test_abstaining_does_not_pay() -> None:
    made = frame(0.6, 0.3)
    silent = made.copy()
    silent.loc[(silent["own"] == 0), "own"] = np.nan
    silent.loc[silent["mismatched"] == 1, "mismatched"] = np.nan
    found = standings({"m": made, "silent": silent})
    assert found["silent"].value == pytest.approx(found["m"].value)


def test_without_an_outside_verdict_or_a_pair_there_is_no_figure() -> None:
    unjudged, unpaired = frame(0.5, 0.1), frame(0.5, 0.1)
    unjudged[["outside", "score"]] = np.nan
    unpaired["mismatched"], unpaired["mismatched_asked"] = np.nan, False
    found = standings({"unjudged": unjudged, "unpaired": unpaired, "m": frame(0.5, 0.1)})
    assert list(found) == ["m"]
    with pytest.raises(GapbenchError, match="no frame"):
        standings({"m": frame(0.5, 0.1)}, unranked=["other"])


def test_equal_models_stay_together() -> None:
    """Of ten models alike in everything, in at most 5 % of boards and three standard errors of 10
    is one parted from another; each against the first alone would part 7 in 10."""
    parted = 0
    for board in range(10):
        made = {f"m{i}": frame(0.6, 0.1, 100 * board + i, 20, 1) for i in range(10)}
        parted += any(s.place != 1 for s in standings(made).values())
    assert parted <= 2


def test_the_interval_of_one_small_category_covers() -> None:
    covered = 0
    for seed in range(150):
        made = frame(0.9, 0.1, seed, 20, 1)
        made = made[made["category"] == "a"]
        found = standings({"m": made})["m"]
        covered += found.low <= 0.8 <= found.high
    assert covered >= 135  # 142 expected, 3 standard errors
