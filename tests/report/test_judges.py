"""`gapbench show --judge a,b` and `gapbench label --sheet`, beside labels of people."""

from __future__ import annotations

import csv
import io
import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from judged import PROMPTS, TRUE, made
from rich.console import Console

from gapbench import GapbenchError
from gapbench.report import judges
from gapbench.report.label import Labels
from gapbench.report.study import study
from gapbench.report.summary import show_run
from gapbench.runs.run import Run

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Of the judges, b errs on every fifth image; people labelled 30 of the 40."""
    wrong = [1 - said if place % 5 == 0 else said for place, said in enumerate(TRUE)]
    labels = [said if place < 30 else None for place, said in enumerate(TRUE)]
    silent = [None if place % 7 == 0 else said for place, said in enumerate(TRUE)]
    said = {"a": silent, "b": wrong, "human-labels": labels}
    return made(tmp_path, "m", [1] * PROMPTS, said)


def test_each_judge_and_the_majority_are_shown(run: Run, cli: Cli) -> None:
    assert run.people_judges() == ["human-labels"]
    assert run.corrected("human-labels") == run.corrected(("a", "human-labels")) == []
    shown = cli("show", str(run.path), "--judge", "a,b").stdout
    for who in ("a", "b", "majority of a, b"):
        assert f"Outside judge: {who}\n" in shown
        assert f"Corrected for the errors of {who} by the labels of human-labels" in shown
    assert shown.count("The labels are taken for the truth") == 1
    assert "a and b agree on" in shown
    assert "majority of a, b and human-labels agree on" in shown
    assert "No majority on" in shown
    assert "--judge a,b" in cli("show", str(run.path), "--format", "csv").stderr

    told = json.loads(cli("show", str(run.path), "--judge", "a,b", "--json").stdout)
    assert list(told["judges"]) == ["a", "b", "majority"]
    whole = run.frame(("a", "b"))
    [generation] = [
        rate for rate in told["judges"]["majority"]
        if (rate["level"], rate["metric"]) == ("overall", "generation")
    ]  # fmt: skip
    assert generation["denominator"] == whole["outside"].notna().sum()
    assert sum(told["no_majority"].values()) == whole["outside"].isna().sum()
    pairs = {(each["first"], each["second"]): each for each in told["agreement"]}
    assert pairs["a", "human-labels"]["raw"] == 1
    assert pairs["b", "human-labels"]["raw"] == 24 / 30
    by = {name: rates[0] for name, rates in told["corrected"].items()}
    assert list(by) == ["a", "b", "majority"]
    # Six of 30 labelled are wrong by b, half of them each way; the rest errs alike.
    assert by["b"]["rogan_gladen"]["value"] == pytest.approx(0.5, abs=0.02)

    other = json.loads(judges.render(run, ("b", "a"), "json"))
    assert (other["judges"], other["corrected"]) == (told["judges"], told["corrected"])
    assert other["no_majority"] == told["no_majority"]


def test_the_report_says_what_holds_under_each_judge(tmp_path: Path, cli: Cli) -> None:
    low, high = [int(i % 4 == 0) for i in range(PROMPTS)], [1] * PROMPTS
    folders = [
        str(made(tmp_path, name, TRUE, {"a": a, "b": b, "c": c}).path)
        for name, a, b, c in (
            ("one", low, low, low),
            ("two", high, high, low),
            ("3", low, low, low),
        )
    ]
    file, figures = tmp_path / "r.html", tmp_path / "figures"
    asked = ("--out", str(file), "--figures", str(figures), "--judge", "a,b,c")
    done = cli("report", *folders[:2], *asked)
    assert done.returncode == 0, done.stderr
    page = file.read_text()
    assert "Verdict: generation better" in page
    assert "by the majority of a, b, c; the frames of the images are by a until" in page
    told = (figures / "conclusions.tex").read_text()
    rows = {line.split(" & ")[0]: line.split(" & ")[1:] for line in told.splitlines()}
    assert rows["verdict"][2] == "no detectable change"
    assert rows["generation"][:4] == ["better", "better", "unchanged", "better"]
    assert rows["generation"][4].startswith("2 of 3: not under c")
    told = (figures / "judges.tex").read_text()
    assert [line.split(" & ")[1] for line in told.splitlines() if line.startswith("two")] == [
        "a", "b", "c", "majority",
    ]  # fmt: skip

    assert cli("report", *folders, *asked).returncode == 0  # of three, their order
    told = (figures / "conclusions.tex").read_text().replace(" (verdict=text)", "")
    (row,) = [line.split(" & ") for line in told.splitlines() if line.startswith("runs")]
    assert row[1:5] == ["two, one = 3"] * 2 + ["one = two = 3", "two, one = 3"]
    assert row[5].startswith("2 of 3: not under c")
    assert cli("report", folders[0], "--judge", "a,z", "--out", str(file)).returncode == 2


def test_tasks_have_an_order_under_each_judge(tmp_path: Path) -> None:
    run = made(tmp_path, "m", TRUE, {"a": TRUE, "b": [int(i >= 20) for i in range(PROMPTS)]})
    prompts = [replace(p, task="old" if i < 20 else "new") for i, p in enumerate(run.plan.prompts)]
    tasks = {"tasks": {"old": "1", "new": "1"}, "samples": {"old": 1, "new": 1}}
    plan = replace(run.plan, prompts=prompts, partner=[None] * PROMPTS, **tasks)
    run = Run(run.folder, plan)
    heads, rows = judges.judge_tables([run], ["m"], ("a", "b"), None)["conclusions"]
    assert list(heads) == ["conclusion", "a", "b", "majority", "holds under"]
    assert [*map(list, rows)] == [
        ["tasks, by generation", "old = new", "new, old", "new, old", "1 of 2: not under a"]
    ]


def test_other_forms_name_the_judge(run: Run) -> None:
    table = list(csv.DictReader(io.StringIO(judges.render(run, ("a", "b"), "csv"))))
    assert {row["judge"] for row in table} == {"a", "b", "majority"}
    page = judges.render(run, ("a", "b"), "markdown")
    assert page.count("| **overall** ") == 3
    assert page.count("Corrected by the labels of human-labels, in percent:") == 3
    assert "- a and b agree on" in page
    latex = judges.render(run, ("a", "b"), "latex")
    assert latex.count(r"\begin{tabular}") == 3
    assert "% outside judge: majority of a, b" in latex


def test_without_a_name_people_are_no_part_of_the_majority(run: Run) -> None:
    text = io.StringIO()
    show_run(run, (), Console(file=text, width=200, markup=False, highlight=False))
    heads = [line for line in text.getvalue().splitlines() if line.startswith("Outside judge")]
    assert [head.partition(": ")[2] for head in heads] == [
        "a", "b", "human-labels", "majority of a, b",
    ]  # fmt: skip


def test_the_sheet_of_a_study(run: Run, cli: Cli) -> None:
    with pytest.raises(GapbenchError, match="nobody has labelled an image"):
        study(run)
    for name, shift in (("Ada", 0), ("B|o", 4)):
        labels = Labels(run, name)
        for place in range(20):
            labels.add(place, "yes" if place < 12 or (place == 19 and shift) else "no")
        labels.add(20, "unsure")
    sheet = cli("label", str(run.path), "--sheet").stdout
    for words in (
        "| labelled images              | 21 of 40",
        "| labels                       | 42 by 2 raters",
        "Does the image show this?", "Yes (key y), No (key n), Unsure (key u)",
        "The labelled images are the first 21 of it: a random sample.", "human:Ada and human:B\\|o",
        "a and human agree on", "over 20 images with two or more labels (40 labels)",
        "12 are a yes, 7 a no, and 2 have", "## To be added by hand",
    ):  # fmt: skip
        assert words in sheet
    [ada] = [line.split() for line in sheet.splitlines() if line.startswith("| Ada")]
    assert ada[3:11:2] == ["21", "12", "8", "1"]
    unequal, yes = 1, 25  # labels: 40, of one image two unlike
    alpha = 1 - 39 * unequal / (yes * (40 - yes))
    assert f"Krippendorff's alpha (yes and no): {alpha:.2f} [" in sheet
    labels.add(25, "yes")
    assert "got to number 26 of it and passed over 4" in study(run)
    both = cli("label", str(run.path), "--sheet", "--rater", "Ada")
    assert (both.returncode, both.stdout) == (2, "")
    assert "--sheet is of all raters" in both.stderr


def test_raters_may_be_called_as_a_column_and_never_break_the_sheet(run: Run) -> None:
    for name, said in (("task", "yes"), ("<b>[x](y)", "no")):
        Labels(run, name).add(0, said)
    sheet = study(run)
    assert "human:task and human:\\<b\\>\\[x\\](y) agree on 0.0" in sheet
    assert "<b>" not in sheet
    with pytest.raises(GapbenchError, match="without a comma"):
        Labels(run, "Doe, Jane")
    with pytest.raises(GapbenchError, match="human:task among them; leave one out"):
        run.frame(("human", "human:task"))
