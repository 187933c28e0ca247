"""Several judges: the majority against plain counting, and what holds under each of them."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Sequence
from functools import partial
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judged import PROMPTS, TRUE, made

from gapbench import Answer, GapbenchError
from gapbench.comparison.compare import compare
from gapbench.comparison.judges import order, under_judges
from gapbench.comparison.words import render
from gapbench.runs.frame import SILENT, TIE, majority
from gapbench.runs.run import Run

Cli = Callable[..., subprocess.CompletedProcess[str]]


def counted(verdicts: Sequence[int | None]) -> int | None:
    """The majority, by trying both answers."""
    there = [verdict for verdict in verdicts if verdict is not None]
    won = [answer for answer in (0, 1) if 2 * there.count(answer) > len(there)]
    return won[0] if won else None


@settings(max_examples=60)
@given(st.lists(st.sampled_from([0, 1, None]), max_size=6))
def test_a_majority_is_more_than_half(verdicts: list[int | None]) -> None:
    answers = [Answer(verdict=verdict) for verdict in verdicts]
    said = majority([*answers, None])  # one was not made
    if not verdicts:
        assert said is None
        return
    assert said is not None
    assert said.verdict == counted(verdicts)
    assert said.score is None
    assert (said.reason == TIE) == (0 < verdicts.count(1) == verdicts.count(0))
    assert (said.reason == SILENT) == (verdicts.count(None) == len(verdicts))
    assert all(majority(each) == said for each in permutations(answers))


def drawn(rng: np.random.Generator, rate: float, silent: float = 0.2) -> list[int | None]:
    """Verdicts of a judge that accepts so often and abstains so often."""
    return [None if rng.random() < silent else int(rng.random() < rate) for _ in range(PROMPTS)]


def test_a_frame_of_several_judges_is_their_majority(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    judges = {name: drawn(rng, 0.5) for name in "abcd"}
    run = made(tmp_path, "m", drawn(rng, 0.7), judges)
    for names in (("a", "b"), ("a", "b", "c"), tuple("abcd")):
        frame = run.frame(names)
        for i, row in enumerate(frame.to_dict("records")):
            said = counted([judges[name][i] for name in names])
            assert row["outside"] == said if said is not None else np.isnan(row["outside"])
            fits = counted([judges[name][(i + 1) % PROMPTS] for name in names])
            assert row["mismatched_asked"] == (fits != 1)
        rates = run.rates(names)
        [generation] = [r for r in rates if (r.level, r.metric) == ("overall", "generation")]
        votes = [counted([judges[name][i] for name in names]) for i in range(PROMPTS)]
        assert generation.numerator == votes.count(1)
        assert generation.denominator == PROMPTS - votes.count(None)
        assert generation.abstained == votes.count(None)
        for again in permutations(names):
            assert run.frame(again).equals(frame)
            assert run.rates(again) == rates
    with pytest.raises(GapbenchError, match="no verdicts of judge 'z'; it has a, b, c, d"):
        run.frame(("a", "z"))


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """BEFORE, one AFTER that is better by a and b and the same by c, one that is worse by all."""
    folder = tmp_path_factory.mktemp("judged")
    poor, good, bad = [int(i % 4 == 0) for i in range(PROMPTS)], [1] * PROMPTS, [0] * PROMPTS
    return [
        made(folder, "before", TRUE, {"a": poor, "b": poor, "c": poor}),
        made(folder, "better", TRUE, {"a": good, "b": good, "c": poor}),
        made(folder, "broken", TRUE, {"a": bad, "b": bad, "c": bad}),
    ]


def test_what_holds_under_each_judge(three: list[Run]) -> None:
    measure = partial(compare, three[0], three[1:])
    better, broken = judged = under_judges(measure, ("a", "b", "c"))
    assert better.majority.verdict == "generation better, understanding unchanged"
    verdict, generation = better.conclusions[:2]
    assert (verdict.about, verdict.against) == ("verdict", ["c"])
    assert verdict.judges["c"] == "no detectable change"
    assert generation.judges == {"a": "better", "b": "better", "c": "unchanged"}
    assert generation.holds == "2 of 3: not under c"
    assert all(not each.against for each in broken.conclusions)
    assert broken.conclusions[0].holds == "every judge"
    # Each is what a comparison under that judge alone says.
    for name, comparison in better.judges.items():
        assert comparison == measure(judge=name)[0]
    ranks = order(judged)
    assert ranks is not None
    assert (ranks.majority, ranks.judges["c"], ranks.against) == ("1, 2", "1, 2", [])
    assert order(judged[:1]) is None

    again, _ = under_judges(measure, ("c", "b", "a"))
    assert again.majority == better.majority
    assert again.judges == better.judges
    for old, new in zip(better.conclusions, again.conclusions, strict=True):
        assert (old.majority, old.judges, set(old.against)) == (
            new.majority, new.judges, set(new.against)
        )  # fmt: skip


def test_an_order_may_hang_on_the_judge(tmp_path: Path) -> None:
    low, high = [0] * PROMPTS, [1] * PROMPTS
    runs = [
        made(tmp_path, name, TRUE, {"a": a, "b": b, "c": c})
        for name, a, b, c in (
            ("start", low, low, low), ("one", high, low, low), ("second", low, high, high),
        )
    ]  # fmt: skip
    ranks = order(under_judges(partial(compare, runs[0], runs[1:]), ("a", "b", "c")))
    assert ranks is not None
    assert (ranks.majority, ranks.judges["a"], ranks.judges["b"]) == ("2, 1", "1, 2", "2, 1")
    assert ranks.holds == "2 of 3: not under a"
    same = order(under_judges(partial(compare, runs[0], [runs[1], runs[1]]), ("b", "c")))
    assert same is not None
    assert (same.majority, same.holds) == ("1 = 2", "every judge")
    # Where the two judges never agree, there is no majority and no order.
    apart = order(under_judges(partial(compare, runs[0], [runs[1], runs[2]]), ("a", "b")))
    assert apart is not None
    assert (apart.majority, apart.holds) == ("n/a", "n/a")


def test_power_has_a_line_for_each_judge(cli: Cli, tmp_path: Path) -> None:
    half, most = [i % 4 < 2 for i in range(PROMPTS)], [i % 4 < 3 for i in range(PROMPTS)]
    all_of_them = [1] * PROMPTS
    said = {"a": [*map(int, half)], "b": [*map(int, most)], "c": all_of_them}
    run = made(tmp_path, "m", TRUE, said, samples=2)
    done = cli("power", str(run.path), "--judge", "a,b,c", "--detect", "10")
    assert (done.returncode, done.stderr) == (0, "")
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
    alone = cli("power", str(run.path), "--judge", "b", "--detect", "10").stdout
    [two] = [line.split() for line in alone.splitlines() if line.split()[:1] == ["2"]]
    assert f"{two[1]} to {two[2]}" in rows["b"]
    assert rows["a"].split()[1:3] == ["50.0", "%"]
    assert rows["majority"].split()[1:3] == ["75.0", "%"]
    assert "c: generation does not vary in this run" in done.stdout
    refused = cli("power", str(run.path), "--judge", "a,b", "--metric", "speed")
    assert refused.stderr.count("no metric 'speed'") == 1
    assert refused.returncode == 2


def test_the_command_line_says_it_in_all_forms(cli: Cli, three: list[Run]) -> None:
    folders = [str(run.path) for run in three]
    done = cli("compare", *folders[:2], "--judge", "a,b,c", "--gate")
    assert (done.returncode, done.stderr) == (0, "")
    first, *lines = done.stdout.splitlines()
    assert first.startswith("Verdict: generation better, understanding unchanged. It is the majori")
    assert "holds under 2 of 3: not under c." in first
    rows = {line.split()[0]: line for line in lines if line.strip()}
    assert "no detectable change" in rows["c"]
    assert "better (+75.0)" in rows["majority"]
    assert "every judge" in rows["holds"]
    assert "outside judge majority of a, b, c" in done.stdout
    several = cli("compare", *folders, "--judge", "a,b,c", "--json", "--gate")
    assert several.returncode == 1  # the second is worse by the majority
    told = json.loads(several.stdout)
    assert [c["judges"] for c in told["comparisons"]] == [["majority of a, b, c"]] * 2
    assert told["judges"][0]["conclusions"][0]["against"] == ["c"]
    assert told["judges"][0]["under"]["c"]["verdict"] == "no detectable change"
    assert told["order"]["majority"] == "1, 2"
    bad = cli("compare", *folders[:2], "--judge", "a,z")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert "no verdicts of judge 'z'; it has a, b, c" in bad.stderr


def test_markdown_has_the_same_and_one_judge_names_the_others(three: list[Run]) -> None:
    judged = under_judges(partial(compare, three[0], three[1:]), ("b", "a"))
    page = render([each.majority for each in judged], "markdown", judged=judged)
    assert "**Verdict: generation better, understanding unchanged.** It is the majority" in page
    assert "| majority" in page
    assert "by change in generation, the best first:" in page
    assert re.search(r"majority +\| +1, 2 \|", page)
    [alone], [named] = compare(three[0], three[1:2]), compare(three[0], three[1:2], judge="a")
    note = "Other judges are there: --judge a,b,c says if the verdict holds under each."
    assert note in alone.notes
    assert note not in named.notes


def test_ties_are_told(tmp_path: Path) -> None:
    half = [1] * 10 + [0] * 30
    runs = [
        made(tmp_path, name, TRUE, {"a": [1] * PROMPTS, "b": half, "c": [None] * PROMPTS})
        for name in ("one", "second")
    ]
    [told] = compare(runs[0], runs[1:], judge=("c", "b", "a"))
    assert f"No majority of AFTER on 30 of 40 images: {TIE} (30)" in told.notes
    [told] = compare(runs[0], runs[1:], judge=("a", "c"))
    assert not any("No majority" in note for note in told.notes)
