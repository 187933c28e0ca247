"""Scores of several scales, the overall figures that others form, and the two win rates."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gapbench.metrics.paired import changes, gap_gain, win_rate
from gapbench.metrics.power import spread
from gapbench.metrics.rates import overalls, rates
from gapbench.tasks.task import load_task
from gapbench.types import COSINE, SHARE, GapbenchError, Rates, Scale

SCISCORE = Scale("SciScore", -100.0, 100.0)
NAN = math.nan


def rows(
    task: str, category: str, scale: Scale, scores: list[float], own: float = 0.0
) -> list[dict[str, Any]]:
    """Two images a prompt; only shares come with verdicts."""
    return [
        {
            "task": task, "category": category, "tier": "hard", "prompt": f"{category}-{k // 2}",
            "sample": k % 2, "own": own, "score": score, "scale": scale, "mismatched": NAN,
            "outside": float(score >= 0.5) if scale == SHARE else NAN, "mismatched_asked": False,
        }
        for k, score in enumerate(scores)
    ]  # fmt: skip


MIXED = pd.DataFrame(
    rows("geneval", "colors", SHARE, [0, 0, 1, 1])
    + rows("science-t2i", "Physics-gravity", SCISCORE, [24.0, 25.0, 26.0, 27.0])
    + rows("science-t2i", "Physics-rust", SCISCORE, [20.0, 20.0])
    + rows("science-t2i", "Biology-ripeness", SCISCORE, [30.0, 31.0])
)


def at(figures: list[Rates], level: str, name: str, metric: str) -> Rates:
    return next(r for r in figures if (r.level, r.name, r.metric) == (level, name, metric))


def test_scores_of_two_scales_have_no_mean() -> None:
    made = rates(MIXED)
    overall = at(made, "overall", "overall", "generation")
    assert (overall.value, overall.low, overall.unit) == (None, None, "%, SciScore")
    science = at(made, "task", "science-t2i", "generation")
    assert science.value == pytest.approx((25.5 + 20 + 30.5) / 3)
    assert science.unit == "SciScore"
    assert at(made, "task", "geneval", "generation").value == 0.5
    assert at(made, "overall", "overall", "non_unification").value == 1


def test_a_score_without_a_verdict_is_no_abstention() -> None:
    made = rates(MIXED)
    for metric in ("weak_generation", "false_positive", "self_accuracy"):
        science = at(made, "task", "science-t2i", metric)
        assert (science.value, science.abstained) == (None, 0)
        overall = at(made, "overall", "overall", metric)
        assert overall.value == at(made, "task", "geneval", metric).value
        assert overall.abstained == 0


def test_a_category_has_one_scale() -> None:
    twice = pd.DataFrame(rows("t", "c", SHARE, [1, 0]) + rows("t", "c", COSINE, [0.3]))
    twice["prompt"] = ["a", "b", "c"]
    with pytest.raises(GapbenchError, match="scores of two scales"):
        rates(twice)


def test_official_and_paper_overalls() -> None:
    groups: Any = {
        "science-t2i": {"official": ["*"], "paper": ["Physics-*", "Biology-*"]},
        "geneval": {"official": ["colors", "counting"]},
    }
    made = overalls(MIXED, groups)
    # By rows, and by subjects; GenEval lacks a category, so its authors' overall is not there.
    assert [(r.level, r.name, r.metric) for r in made] == [
        ("official", "science-t2i", "generation"),
        ("paper", "science-t2i", "generation"),
        ("paper", "science-t2i", "non_unification"),
    ]
    assert made[0].value == pytest.approx((24 + 25 + 26 + 27 + 20 + 20 + 30 + 31) / 8)
    assert made[1].value == pytest.approx(((24 + 25 + 26 + 27 + 20 + 20) / 6 + 30.5) / 2)
    assert made[0].unit == "SciScore"


def test_an_official_mean_over_two_scales_is_the_authors() -> None:
    frame = pd.DataFrame(rows("t2i", "color", SHARE, [0, 1]) + rows("t2i", "non", COSINE, [0.3]))
    [made] = overalls(frame, {"t2i": {"official": ["color", "non"]}})
    assert made.value == pytest.approx((0.5 + 0.3) / 2)
    assert made.unit == "%, cosine"


def test_an_overall_may_have_weights() -> None:
    frame = pd.DataFrame(
        rows("w", "a", SHARE, [1, 1, 1, 0])
        + rows("w", "b", SHARE, [0, 0, 1])
        + rows("w", "c", SHARE, [1])
    )
    categories = ["a", "b", "c"]

    def overall(given: Any, kind: Any = "official") -> Rates:
        return overalls(frame, {"w": {kind: given}})[0]

    made = overall({"a": 0.4, "b": 0.12, "c": 0.48})
    assert made.value == pytest.approx(0.4 * 3 / 4 + 0.12 / 3 + 0.48)
    assert (made.numerator, made.denominator) == (5, 8)
    assert made.n_prompts == overall(categories).n_prompts
    assert made.low is not None
    assert made.high is not None
    assert made.low < made.value < made.high
    assert overall(dict.fromkeys(categories, 0.3)) == overall(categories)
    # As good as alone, its interval is its own.
    alone = overall({"a": 1 - 1e-9, "b": 1e-9 / 2, "c": 1e-9 / 2})
    own = at(rates(frame), "category", "w/a", "generation")
    for field in ("value", "low", "high"):
        assert getattr(alone, field) == pytest.approx(getattr(own, field), abs=1e-6)


def test_official_overalls_of_random_answers_are_their_authors() -> None:
    """WISE's weights, and GenEval 2's two means over prompts, on 1,000 random sets of answers."""
    rng, sets = np.random.default_rng(3), 1000
    weights = dict(zip("abcdef", (0.4, *[0.12] * 5), strict=True))
    prompts = {"a": 4, "b": 2, "c": 2, "d": 2, "e": 2, "f": 2}
    met = {c: rng.integers(0, 2, (sets, n)) for c, n in prompts.items()}
    wise = pd.DataFrame(
        {
            "task": f"wise-{k}", "category": c, "tier": "hard", "prompt": f"{c}{i}", "sample": 0,
            "own": NAN, "outside": met[c][k, i], "score": met[c][k, i], "mismatched": NAN,
            "mismatched_asked": False,
        }
        for k in range(sets) for c, n in prompts.items() for i in range(n)
    )  # fmt: skip
    made = overalls(wise, {f"wise-{k}": {"official": weights} for k in range(sets)})
    theirs = sum(weight * met[c].mean(axis=1) for c, weight in weights.items())
    assert [r.value for r in made] == pytest.approx(theirs)

    chances = [rng.random(rng.integers(1, 11)) for _ in range(sets)]
    gms = [np.prod(each) ** (1 / len(each)) for each in chances]
    two = pd.DataFrame(
        {
            "task": "geneval2", "category": str(len(each)), "tier": "hard", "prompt": str(k),
            "sample": 0, "own": NAN, "outside": 0.0, "score": each.mean(), "geometric": gm,
            "mismatched": NAN, "mismatched_asked": False,
        }
        for k, (each, gm) in enumerate(zip(chances, gms, strict=True))
    )  # fmt: skip
    two.loc[0, ["outside", "score", "geometric"]] = NAN  # an abstention is left out of both
    spec = load_task("geneval2").overalls
    gm, am = overalls(two, {"geneval2": spec})
    assert (gm.level, gm.metric, gm.unit) == ("official", "geometric", "%")
    assert (am.level, am.metric) == ("official", "generation")
    assert gm.value == pytest.approx(np.mean(gms[1:]))
    assert am.value == pytest.approx(np.mean([each.mean() for each in chances[1:]]))
    assert (gm.abstained, am.abstained) == (1, 1)
    assert gm.low is not None
    assert gm.low < gm.value < (gm.high or 0)
    by_atoms = [r for r in rates(two) if (r.level, r.metric) == ("category", "geometric")]
    for rate in by_atoms:
        count = int(rate.name.partition("/")[2])
        mine = [g for g, each in zip(gms[1:], chances[1:], strict=True) if len(each) == count]
        assert rate.value == pytest.approx(np.mean(mine))


def test_without_lists_there_is_no_geometric_mean_and_nothing_abstained() -> None:
    for made in rates(MIXED):
        if made.metric == "geometric":
            assert (made.value, made.denominator, made.abstained) == (None, 0, 0)
    assert overalls(MIXED, {"geneval": {"official_gm": ["*"]}}) == []


def test_changes_are_told_for_each_scale() -> None:
    after = MIXED.assign(score=MIXED["score"].mask(MIXED["scale"] == SCISCORE, MIXED["score"] + 1))
    made = [c for c in changes(MIXED, after) if c.metric == "generation"]
    assert [(c.unit, c.difference) for c in made] == [("%", 0.0), ("SciScore", pytest.approx(1.0))]
    assert [c.images for c in made] == [4, 8]
    assert gap_gain(MIXED, after) is None


def test_power_plans_in_the_unit_of_the_scores() -> None:
    science = MIXED[MIXED["task"] == "science-t2i"]
    assert spread(science, "generation").unit == "SciScore"
    with pytest.raises(GapbenchError, match="the run's scores are in several units"):
        spread(MIXED, "generation")


def test_the_win_rate_is_the_mean_over_categories_and_the_pooled_one_is_not() -> None:
    """20 wins in one of eight categories, no disagreement in the others."""
    before = pd.DataFrame(
        [row for c in range(8) for row in rows("t", f"c{c}", SHARE, [1.0] * 40, own=1.0)]
    )
    before.loc[:19, "own"] = 0.0
    won = win_rate(before, [1.0] * len(before))
    assert (won.wins, won.losses, won.ties) == (20, 0, 300)
    assert won.value == pytest.approx(0.5625)
    assert won.pooled == 1
    assert won.low is not None
    assert 0.5 < won.low < won.value <= (won.high or 0)
