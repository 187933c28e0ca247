"""Figures, groups and similarity on their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from gapbench import GapbenchError, Prompt
from gapbench.explain import similarity
from gapbench.explain.figures import correlation, effective_rank, mean, word
from gapbench.explain.groups import ALTERNATIVES, choose, coded
from gapbench.files import Journal


def prompt(number: int, category: str) -> Prompt:
    return Prompt(
        id=str(number), task="t", category=category, tier="easy", text=f"{category} {number}",
        question=f"Is it {category} {number}?", requirement={},
    )  # fmt: skip


PROMPTS = [prompt(n, c) for c in ("one", "two") for n in range(6)]


def frame(groups: list[str]) -> pd.DataFrame:
    """An image for each prompt and sample; `groups` in that order."""
    rows = [(p, sample) for p in PROMPTS for sample in range(2)]
    found = [
        {
            "task": p.task, "category": p.category, "prompt": p.id, "text": p.text,
            "sample": sample, "image": f"{p.text} {sample}", "tokens": "",
            "outside": float(group[0]), "own": float(group[1]), "new": float(group[2]),
        }
        for (p, sample), group in zip(rows, groups, strict=True)
    ]  # fmt: skip
    # Prompt ids repeat over categories in PROMPTS: keep them apart.
    for row in found:
        row["prompt"] = f"{row['category']}-{row['prompt']}"
    return pd.DataFrame(found)


NAMED = [
    Prompt(
        id=f"{p.category}-{p.id}", task=p.task, category=p.category, tier=p.tier, text=p.text,
        question=p.question, requirement={},
    )
    for p in PROMPTS
]  # fmt: skip


def test_means_are_over_prompts() -> None:
    values, prompts = [1.0, 3.0, 5.0, 7.0, float("nan")], ["a", "a", "b", "c", "c"]
    found = mean(values, prompts)
    each = np.array([2.0, 5.0, 7.0])
    assert found["value"] == pytest.approx(each.mean())
    low, high = stats.t.interval(0.95, 2, each.mean(), stats.sem(each))
    assert (found["low"], found["high"]) == (pytest.approx(low), pytest.approx(high))
    assert found["p"] == pytest.approx(stats.ttest_1samp(each, 0).pvalue)
    assert (found["images"], found["prompts"]) == (4, 3)
    alone = mean([1.0], ["a"])
    assert (alone["value"], alone["low"], alone["p"]) == (1.0, None, None)
    assert mean([], [])["value"] is None


def test_the_test_keeps_its_level() -> None:
    stream = np.random.default_rng(0)
    found = [mean(stream.normal(size=12), [str(n) for n in range(12)])["p"] for _ in range(60)]
    assert 0 <= np.mean(np.array(found) < 0.05) < 0.15


def test_correlations_are_over_prompts() -> None:
    stream = np.random.default_rng(0)
    one = stream.normal(size=40)
    two = one + stream.normal(size=40)
    prompts = [str(n // 2) for n in range(40)]
    found = correlation(one.tolist(), two.tolist(), prompts)
    assert found is not None
    wanted = stats.pearsonr(one.reshape(-1, 2).mean(1), two.reshape(-1, 2).mean(1))
    assert found["rho"] == pytest.approx(wanted.statistic)
    assert found["prompts"] == 20
    assert found["low"] < found["rho"] < found["high"]
    assert correlation([1, 2, 3], [1, 2, 3], ["a", "b", "c"]) is None
    assert correlation([1, 1, 1, 1], [1, 2, 3, 4], ["a", "b", "c", "d"]) is None


def test_effective_rank_counts_directions() -> None:
    equal = np.vstack([np.eye(3), -np.eye(3)]) + 5
    assert effective_rank(equal) == pytest.approx(3)
    assert effective_rank(np.outer([1.0, 2.0, 4.0], [1.0, 1.0])) == pytest.approx(1)
    skewed = np.vstack([np.diag([3.0, 1.0]), -np.diag([3.0, 1.0])])
    assert effective_rank(skewed) == pytest.approx(
        np.exp(-0.75 * np.log(0.75) - 0.25 * np.log(0.25))
    )
    assert effective_rank(np.ones((4, 2))) is None


def test_words() -> None:
    assert [word(1, 0.01), word(-1, 0.01), word(1, 0.2), word(None, None)] == [
        "holds", "reversed", "not shown", "n/a",
    ]  # fmt: skip


def test_members_have_controls_of_their_category() -> None:
    groups = ["010", "111", "011", "010", *["111"] * 8, *["010", "011"] * 6]
    known = frame(groups)
    known = coded(known, known["new"].tolist())
    assert known["group"].tolist() == groups
    found = choose(known, NAMED, 5, seed=3)
    members = {t.key: t for t in found if t.matched is None}
    assert len(members) == 5
    controls = [t for t in found if t.matched is not None]
    assert len({t.key for t in controls}) == len(controls) == 5
    for control in controls:
        member = members[str(control.matched)]
        assert member.group == "010" != control.group
        assert member.category == control.category
        assert member.text != control.text
    for t in found:
        assert t.question == f"Is it {t.text}?"
        assert len(set(t.alternatives)) == ALTERNATIVES
        assert all(a.startswith(t.category) and a != t.text for a in t.alternatives)
    # Prompts come in turn, the choice is the seed's, and more pairs begin with the same ones.
    assert len({t.text for t in members.values()}) == 5
    for seed in range(20):
        own = {t.key: t.text for t in choose(known, NAMED, 5, seed)}
        assert all(
            t.matched is None or own[t.matched] != t.text for t in choose(known, NAMED, 5, seed)
        )
    assert choose(known, NAMED, 5, seed=3) == found
    assert choose(known, NAMED, 5, seed=4) != found
    assert choose(known, NAMED, 7, seed=3)[: len(found)] == found


def test_a_small_group_is_filled_up() -> None:
    known = frame(["010", *["111"] * 23])
    known = coded(known, known["new"].tolist())
    found = choose(known, NAMED, 4, seed=0)
    assert [(t.group, t.matched is None) for t in found] == [
        ("010", True), ("111", False), *[("111", True)] * 3,
    ]  # fmt: skip
    assert len({t.key for t in found}) == 5
    assert choose(known, NAMED, 6, seed=0)[:5] == found


def test_an_empty_group_gives_random_images() -> None:
    known = frame(["111", "011"] * 12)
    known = coded(known, known["new"].tolist())
    found = choose(known, NAMED, 6, seed=0)
    assert len(found) == 6
    assert all(t.matched is None and t.group != "010" for t in found)
    known = coded(known, [float("nan")] * len(known))
    assert known["group"].isna().all()
    assert choose(known, NAMED, 6, seed=0) == []


def test_the_nearest_pair_is_found() -> None:
    prompts = np.array([[1.0, 0], [0, 1], [-1, 0]])
    images = np.array([[0, 1.0], [0.6, 0.8], [1, 0]])
    found = similarity.TrainingSet(prompts, images, False).nearest(
        np.array([0.0, 3.0]), np.array([4.0, 0.0])
    )
    assert (found.prompt, found.image) == (1.0, 1.0)
    assert (found.row, found.row_prompt, found.row_image) == (1, 1.0, pytest.approx(0.6))
    # Centred, a part that all share counts for nothing.
    shared = np.array([[100.0, 1.0], [100.0, -1.0]])
    centred = similarity.TrainingSet(shared, shared, True)
    assert centred.nearest(np.array([100.0, 3.0]), np.array([100.0, -2.0])).prompt == 1.0
    plain = similarity.TrainingSet(shared, shared, False)
    assert plain.nearest(np.array([100.0, 3.0]), np.array([100.0, -2.0])).image > 0.999


@pytest.mark.parametrize("asked", ["magic", "model:folder", "clip:/nowhere"])
def test_an_encoder_that_there_is_not(asked: str) -> None:
    with pytest.raises(GapbenchError, match="--encoder"):
        similarity.check(asked)


def test_a_torn_line_is_dropped(tmp_path: Path) -> None:
    file = tmp_path / "work" / "some.jsonl"
    Journal(file).add({"a": 1, "b": [2.5]})
    with file.open("ab") as opened:
        opened.write(b'["c", 3')
    again = Journal(file)
    assert again.there == {"a": 1, "b": [2.5]}
    again.add({"c": 3})
    assert Journal(file).there == {"a": 1, "b": [2.5], "c": 3}
    file.write_text("no JSON\n")
    with pytest.raises(GapbenchError, match=r"some.jsonl:1: broken record .* delete the line"):
        Journal(file)
