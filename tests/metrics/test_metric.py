"""A figure is one entry of the table: every place that shows figures then shows it."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import gapbench
from gapbench.cli.main import app
from gapbench.leaderboard.board import boards, markdown, page
from gapbench.leaderboard.submission import submissions
from gapbench.leaderboard.verify import check
from gapbench.metrics import METRICS
from gapbench.metrics.corrected import corrected
from gapbench.metrics.metric import Metric, shown_in
from gapbench.runs.run import Run

RESULTS = Path(__file__).parents[2] / "results"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """Runs of janus-mini with two recipes, 12 prompts each."""
    out = tmp_path_factory.mktemp("metric") / "runs"
    asked: dict[str, Any] = {"tasks": "shapes/color_attr", "limit": 12, "samples": 2, "out": out}
    return [gapbench.run("janus-mini", recipe=r, **asked) for r in (None, {"guidance": 2})]


@pytest.fixture
def both_right(monkeypatch: pytest.MonkeyPatch) -> Metric:
    metric = Metric(
        name="both_right",
        heading="right and known",
        about="share of images that the model and the outside judge accept",
        reads=("own", "outside"),
        numerator=lambda v: (v.own == 1) & (v.outside == 1),
        better="higher",
        places=("tables", "compare", "board", "labels", "training"),
    )
    monkeypatch.setitem(METRICS, metric.name, metric)
    return metric


def said(*args: object) -> str:
    done = CliRunner().invoke(app, [str(arg) for arg in args], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_show_and_report_have_it(both_right: Metric, pair: list[Run], tmp_path: Path) -> None:
    frame = pair[0].frame()
    right = int(((frame["own"] == 1) & (frame["outside"] == 1)).sum())
    assert 0 < right < len(frame) == 24
    figure = f"{100 * right / 24:.1f} ["
    path = pair[0].path
    for form in ("text", "markdown"):
        shown = said("show", path, "--format", form)
        assert both_right.heading in shown
        assert figure in shown
    records = [
        *json.loads(said("show", path, "--format", "json")),
        *csv.DictReader(io.StringIO(said("show", path, "--format", "csv"))),
    ]
    mine = [r for r in records if (r["level"], r["metric"]) == ("overall", both_right.name)]
    assert [float(r["value"]) for r in mine] == pytest.approx([right / 24] * 2)
    said("report", *(run.path for run in pair), "--out", tmp_path / "report.html")
    written = (tmp_path / "report.html").read_text()
    assert both_right.heading in written
    assert figure in written


def test_compare_and_power_have_it(both_right: Metric, pair: list[Run]) -> None:
    paths = [run.path for run in pair]
    compared = json.loads(said("compare", *paths, "--format", "json"))
    [change] = [c for c in compared["comparisons"][0]["changes"] if c["metric"] == both_right.name]
    values = [((f["own"] == 1) & (f["outside"] == 1)).mean() for f in (r.frame() for r in pair)]
    assert [change["before"], change["after"]] == pytest.approx(values)
    assert not change["lower_is_better"]
    assert both_right.heading in said("compare", *paths)
    assert both_right.heading in said("power", paths[0], "--metric", both_right.name)


def test_the_leaderboard_has_it_and_older_submissions_stay_whole(both_right: Metric) -> None:
    entries = submissions(RESULTS)
    assert f"| {both_right.heading}" in markdown(entries)
    assert both_right.heading in page(entries)
    for board in boards(entries):
        for row in board.rows:
            assert len(row.cells) == len(row.values) == 3 + len(shown_in("board"))
    assert check(entries[0].folder) == []


def test_labels_correct_it(both_right: Metric, pair: list[Run]) -> None:
    """With every image labelled, each estimate is the figure by people."""
    human = np.arange(24) % 3 > 0
    frame = pair[0].frame().assign(human=human.astype(float))
    [mine] = [c for c in corrected(frame) if (c.level, c.metric) == ("overall", both_right.name)]
    wanted = float(((frame["own"] == 1) & human).mean())
    assert mine.judge == pytest.approx(((frame["own"] == 1) & (frame["outside"] == 1)).mean())
    assert mine.sample is not None
    assert mine.sample.value == pytest.approx(wanted)


def test_a_figure_of_another_unit_is_printed_in_it(
    monkeypatch: pytest.MonkeyPatch, pair: list[Run], tmp_path: Path
) -> None:
    score = replace(
        METRICS["generation"], name="raw", heading="raw score", unit="points",
        numerator=lambda v: 25 * v.score, places=("tables", "compare"),
    )  # fmt: skip
    monkeypatch.setitem(METRICS, "raw", score)
    frame = pair[0].frame()
    figure = f"{25 * frame['outside'].mean():.3f}"
    shown = said("show", pair[0].path, "--format", "markdown").splitlines()
    assert shown[0].split("|")[3].strip() == "raw score (points)"
    assert shown[-1].split("|")[3].strip().startswith(figure)
    [row] = [
        line for line in said("compare", *(run.path for run in pair)).splitlines()
        if line.startswith("raw score (points)")
    ]  # fmt: skip
    assert row.removeprefix("raw score (points)").split()[0] == figure
    said("report", *(run.path for run in pair), "--out", tmp_path / "report.html")
    with pytest.raises(gapbench.GapbenchError, match="no metric 'raw'"):
        said("power", pair[0].path, "--metric", "raw")


def test_a_figure_that_is_compared_says_which_way_is_better() -> None:
    with pytest.raises(ValueError, match="weak_generation is compared: say which"):
        replace(METRICS["weak_generation"], places=("compare",))


def test_columns_start_with_what_needs_no_own_verdict() -> None:
    names = [metric.name for metric in shown_in("tables")]
    order = ["generation", "non_unification", "weak_generation", "false_positive", "self_accuracy"]
    assert [name for name in names if name in order] == order
    alone = {name for name, metric in METRICS.items() if not {"outside", "score"} & {*metric.reads}}
    assert {"non_unification", "mismatch_acceptance"} <= alone
