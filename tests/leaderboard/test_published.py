"""`gapbench check-model NAME --published`: published figures held against a run here."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from here import end

from gapbench.leaderboard import published
from gapbench.leaderboard.published import commands, figures, figures_of
from gapbench.metrics.metric import METRICS
from gapbench.models.registry import MODELS
from gapbench.runs.settings import RunSettings
from gapbench.tasks.task import load_task

HEAD = "model,task,judge,verdict,samples,figure,value,source\n"


def test_the_tables_name_models_tasks_judges_and_figures_that_there_are() -> None:
    every = figures()
    for row in every:
        task = load_task(row.task)
        categories = [row.category] if row.category else [*task.tier_of]
        assert set(categories) <= set(task.tier_of)
        assert row.model in MODELS
        assert row.figure in METRICS
        assert 0 < row.value < 1 or row.figure == "non_unification"
        if row.judge:  # `commands` asks the task's own
            assert {task.judge(category) for category in categories} == {row.judge}
        assert row.judge or row.figure == "non_unification"
        assert (row.verdict == "none") <= (row.figure == "generation")
    assert max(Counter((r.model, r.place, r.figure, r.source) for r in every).values()) == 1
    assert Counter(r.source for r in every)["arXiv 2507.16663"] == 4 * (6 * 2 + 4 * 2 + 2)
    (counting,) = (
        row.value for row in figures_of("janus-pro")
        if (row.place, row.figure) == ("geneval/counting", "generation")
    )  # fmt: skip
    assert counting == 0.615


def test_figures_are_measured_as_they_were_published() -> None:
    planned = commands(figures_of("janus-pro"), RunSettings("janus-pro", limit=5))
    told = {(run.samples, run.verdict): (run.tasks, run.judges, len(of)) for run, of in planned}
    compbench = "t2i-compbench@before-2025-09"
    assert [run.limit for run, _ in planned] == [5, 5, 5]
    assert (4, "none") in told
    assert told[4, "none"] == (["geneval"], None, 1)
    (unjudged,) = (run for run, _ in planned if run.judges == [])
    assert unjudged.tasks == [f"{compbench}/spatial", f"{compbench}/complex"]
    assert (unjudged.samples, unjudged.verdict) == (1, "text")


def test_values_inside_and_outside(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("check-model", "janus-mini", "--published", "--limit", "14")
    code, said, told = end(capfd, *words)  # its model card
    assert code is None
    assert "2 of 2 published values in the 95 % interval here." in said
    assert "This is a part, 14 prompts a task at most: intervals are wider." in said
    before, _, _ = told.partition("images  ")
    assert "2 figures of shapes, 4 images a prompt. Left to do: 56 images, 70 own" in before

    rows = ["generation,52.9,its card", "generation,97,somebody", "non_unification,0.5,other"]
    table = tmp_path / "reported.csv"
    table.write_text(HEAD + "".join(f"janus-mini,shapes,pixel,logits,4,{row}\n" for row in rows))
    monkeypatch.setattr(published, "REPORTED", table)
    code, said, told = end(capfd, *words)
    assert code == 1
    assert "Nothing is left to do." in told
    assert "1 of 3 published values" in said
    lines = {line.split()[-1]: line for line in said.splitlines() if "shapes" in line}
    assert " yes " in lines["card"]
    assert " 97.0 " in lines["somebody"]
    assert " NO " in lines["somebody"]
    assert " NO " in lines["other"]
    assert "56 (14)" in lines["other"]
