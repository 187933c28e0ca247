"""What a run folder says of itself: what is missing, what was ever asked of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import gapbench
from gapbench.cli.main import main
from gapbench.runs.run import Run

Said = Callable[..., str]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Said:
    """Runs a command; gives what it printed."""

    def call(*arguments: object, code: int | None = None) -> str:
        monkeypatch.setattr(sys, "argv", ["gapbench", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        assert ended.value.code in (code, code or 0), printed.err
        return printed.err if code else printed.out

    return call


@pytest.fixture
def done(tmp_path: Path) -> Run:
    return gapbench.run(tasks="shapes/color_attr", limit=2, samples=2, out=tmp_path / "runs")


def drop(run: Run, name: str, keep: Callable[[dict[str, object]], bool]) -> None:
    """Take records out of a file of the run, as if the run had been stopped."""
    file = run.path / name
    lines = [line for line in file.read_text().splitlines(True) if keep(json.loads(line))]
    file.write_text("".join(lines))


def test_what_is_missing_is_said_and_is_no_abstention(done: Run, said: Said) -> None:
    assert done.unfinished == ""
    assert done.stages() == {
        "images": (4, 4), "own verdicts": (6, 6), "verdicts of pixel": (6, 6),
    }  # fmt: skip
    first, *_, last = done.frame()["image"]
    drop(done, "generations.jsonl", lambda g: g["image"] != last)
    drop(done, "verdicts.jsonl", lambda v: v["judge"] != "self" or v["image"] != first)
    told = (
        "UNFINISHED: 3 of 4 images drawn, 2 of 5 own verdicts missing; run the same command again."
    )
    text = said("show", done.path)
    assert text.startswith(told)
    assert "abst" not in text
    assert said("show", done.path, "--format", "markdown").startswith(f"**{told}**")
    rows = json.loads(said("show", done.path, "--format", "json"))
    assert {row["unfinished"] for row in rows} == {told}
    overall = {row["metric"]: row for row in rows if row["level"] == "overall"}
    assert overall["non_unification"]["denominator"] == 2
    assert overall["mismatch_acceptance"]["denominator"] == 1
    assert {row["abstained"] for row in rows} == {0}

    other = gapbench.run(
        tasks="shapes/color_attr", limit=2, samples=2, seed=0, recipe={"guidance": 2},
        out=done.path.parent,
    )  # fmt: skip
    compared = said("compare", other.path, done.path)
    assert f"{done.path}: {told}" in compared
    said("report", done.path)
    assert told in (done.path / "report.html").read_text()


def test_own_verdicts_that_nobody_made_leave_their_figures_empty(done: Run, said: Said) -> None:
    drop(done, "verdicts.jsonl", lambda v: v["judge"] != "self")
    overall = next(r for r in done.rates() if (r.level, r.metric) == ("overall", "self_accuracy"))
    assert (overall.value, overall.denominator, overall.abstained) == (None, 0, 0)
    assert "abst" not in said("show", done.path)


def test_a_folder_is_all_that_was_asked_of_it(done: Run, said: Said) -> None:
    out = ("--out", done.path.parent, "--limit", 2, "--samples", 1)
    mine = said("run", "--tasks", "shapes/texture", *out)
    assert "2 images of 2 prompts" in mine
    text = said("show", done.path)
    assert "color_attr" in text
    assert "texture" in text
    assert "6 images of 4 prompts" in text
    assert "UNFINISHED" not in text  # texture has one image a prompt, as it was asked
    plan = (done.path / "plan.json").read_bytes()
    said("run", "--tasks", "shapes/color_attr", *out)  # asks for nothing new
    assert (done.path / "plan.json").read_bytes() == plan

    part = said("show", done.path, "--tasks", "shapes/color_attr", "--samples", 1)
    assert "2 images of 2 prompts" in part
    assert "shapes/texture" not in part
    assert "nobody asked for it" in said("show", done.path, "--tasks", "shapes/colors", code=2)
    only = gapbench.open_run(done.path, tasks=["shapes/color_attr"])
    assert only.frame().equals(done.frame())

    assert "there are: logits" in said("show", done.path, "--own", "text", code=2)
    said("run", "--tasks", "shapes/texture", *out, "--verdict", "text")
    assert "own verdicts: logits" in said("show", done.path)
    words = said("show", done.path, "--own", "text")
    assert "own verdicts: text" in words
    assert words.startswith("janus-mini (verdict=text) on")
    assert "UNFINISHED" not in words  # nobody asked for text on the images of shapes/color_attr
    rows = json.loads(said("show", done.path, "--own", "text", "--format", "json"))
    overall = {row["metric"]: row for row in rows if row["level"] == "overall"}
    assert overall["non_unification"]["denominator"] + overall["non_unification"]["abstained"] == 2
    assert overall["generation"]["denominator"] == 6


def test_runs_are_listed_and_go_by_short_names(
    done: Run, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = done.path.parent
    monkeypatch.chdir(out.parent)
    monkeypatch.setenv("COLUMNS", "80")
    other = gapbench.run(
        tasks="shapes/color_attr", limit=2, samples=2, seed=3, recipe={"guidance": 2}, out=out
    )
    assert other.path.name.startswith("janus-mini-guidance2-seed3-")
    (other.path / "results.json").unlink()  # as if it had been stopped, or were older
    assert json.loads(said("runs", "--format", "json"))[0]["finished"] is None
    assert "UNFINISHED" not in said("runs")
    last = other.frame()["image"].iloc[-1]
    drop(other, "generations.jsonl", lambda g: g["image"] != last)
    listed = json.loads(said("runs", "--format", "json"))
    assert [run["run"] for run in listed] == [other.path.name, done.path.name]
    assert [run["finished"] for run in listed] == [False, True]
    assert (listed[0]["changed"], listed[0]["seed"]) == ({"guidance": 2.0}, 3)
    rates = {r.metric: r.value for r in done.rates() if r.level == "overall"}
    for metric in ("generation", "non_unification"):
        assert listed[1][metric] == rates[metric]
    text = said("runs")
    assert max(map(len, text.splitlines())) <= 80
    assert "UNFINISHED" in text

    results = done.path / "results.json"
    whole, written = results.read_text(), json.loads(results.read_text())
    for key, wrong in (
        ("groups", []), ("groups", {"overall": 3}), ("n-samples", {"shapes": 3}),
        ("groups", {"overall": {"generation,pixel": "x"}}), ("finished", "x"),
    ):  # fmt: skip
        results.write_text(json.dumps(written | {key: wrong}))
        assert [run["run"] for run in json.loads(said("runs", "--json"))] == [other.path.name]
        said("runs")
    results.write_text(whole)
    assert "there is no such folder" in said("runs", "nowhere", code=2)
    assert "holds no run folder" in said("runs", done.path / "images")

    for name, path in (
        ("@last", other.path), ("janus-mini", other.path), (done.path.name[:-6], done.path),
    ):  # fmt: skip
        Path(name).mkdir()  # as a checkpoint that a fix wrote, with its run's name
        assert gapbench.open_run(name).path.resolve() == path
    (done.path / "plan.json").write_text("{")  # one that is broken costs no other
    assert [run["run"] for run in json.loads(said("runs", "--json"))] == [other.path.name]
    (done.path / "run.json").write_text("{")
    assert gapbench.open_run("janus-mini").path.resolve() == other.path
    wrong = said("show", "janus-mini-", code=2)
    assert other.path.name in wrong
    assert done.path.name in wrong


def test_results_json_is_as_the_docs_say(done: Run) -> None:
    page = (Path(__file__).parents[2] / "docs" / "results.md").read_text()
    example = json.loads(page.split("```json")[1].split("```")[0])
    made = done.folder.read("results.json")

    def holds(real: object, shown: object) -> None:
        if isinstance(shown, dict):
            assert isinstance(real, dict)
            assert shown.keys() <= real.keys()
            for key in shown:
                holds(real[key], shown[key])
        elif not isinstance(shown, float):
            assert type(real) is type(shown)

    assert example.keys() == made.keys()
    holds(made, example)
    [rate] = [r for r in done.rates() if (r.level, r.metric) == ("overall", "generation")]
    assert made["groups"]["overall"]["generation,pixel"] == rate.value
    assert made["n-samples"] == {"shapes": {"original": 4, "effective": 4}}
    assert (made["finished"], made["missing"]) == (True, {})
