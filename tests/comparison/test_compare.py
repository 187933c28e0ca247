"""`gapbench compare` and `gapbench power` on true runs of janus-mini and of altered copies."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import gapbench
from gapbench import GapbenchError, open_run
from gapbench.comparison import compare as comparison
from gapbench.comparison.compare import WORDS, compare
from gapbench.comparison.words import finding, render
from gapbench.files import without_checksum
from gapbench.fix.check import predicted
from gapbench.metrics.verification import points, record
from gapbench.models.registry import MODELS

Cli = Callable[..., subprocess.CompletedProcess[str]]


def altered(folder: Path, noise: float) -> Path:
    """A copy of janus-mini; the language model's matrices get noise of so many spreads."""
    shutil.copytree(MODELS["janus-mini"].folder, folder)
    weights = load_file(folder / "model.safetensors")
    stream = torch.Generator().manual_seed(0)
    for name, weight in weights.items():
        if "language_model" in name and weight.ndim == 2:
            step = torch.randn(weight.shape, generator=stream) * weight.float().std() * noise
            weights[name] = weight + step.to(weight.dtype)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of janus-mini, a slightly altered copy and a broken one; 22 prompts, 2 images each."""
    folder = tmp_path_factory.mktemp("compare")
    models = [
        "janus-mini",
        str(altered(folder / "slight", 0.5)),
        str(altered(folder / "broken", 2)),
    ]
    for model in models:
        gapbench.run(model, limit=22, samples=2, out=folder / "runs")
    return folder


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> dict[str, Path]:
    """Copies of those runs, in the folder that `cli` runs in."""
    shutil.copytree(made / "runs", tmp_path / "runs")
    return {run.name.rsplit("-", 1)[0]: run for run in (tmp_path / "runs").iterdir()}


def short(run: Path) -> str:
    return f"runs/{run.name}"


def refused(done: subprocess.CompletedProcess[str], *culprits: str) -> None:
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("gapbench: ")]
    assert len(lines) == 1 == len(done.stderr.splitlines())
    assert all(culprit in lines[0] for culprit in culprits), lines[0]


def test_a_broken_model_is_told_from_its_base(cli: Cli, runs: dict[str, Path]) -> None:
    before, after = runs["janus-mini"], runs["broken"]
    verdicts = (before / "verdicts.jsonl").read_bytes()
    args = ("compare", short(before), short(after))
    done = cli(*args, "--format", "json", "--gate")
    assert done.returncode == 1, done.stderr
    told = json.loads(done.stdout)
    [found] = told["comparisons"]
    assert (found["images"], found["prompts"], found["left_out"]) == (44, 22, [])
    figures = {c["metric"]: c for c in found["changes"]}
    assert list(figures) == [
        "generation", "non_unification", "false_positive", "self_accuracy", "understanding",
    ]  # fmt: skip
    assert figures["generation"]["difference"] < -0.3
    assert figures["generation"]["p_holm"] < 0.03
    assert {"generation", "self_accuracy"} <= set(found["worse"])
    assert found["verdict"].startswith(("generation worse", "co-degradation"))

    # The figures are the runs' own.
    for side, run in (("before", before), ("after", after)):
        own = {r.metric: r.value for r in open_run(run).rates() if r.level == "overall"}
        for metric in ("generation", "non_unification", "false_positive", "self_accuracy"):
            assert figures[metric][side] == pytest.approx(own[metric])

    for side, run in (("before", before), ("after", after)):
        worth = open_run(run).verification()
        assert worth is not None
        assert found[f"worth_{side}"] == record(worth)
    assert found["worth_before"]["auroc"]["value"] > 0.5
    assert not found["is_fix"]

    # AFTER's verdicts on BEFORE's images were added to BEFORE's folder, and are what it would say.
    added = (before / "verdicts.jsonl").read_bytes()
    assert added.startswith(verdicts)
    lines = [json.loads(line) for line in added[len(verdicts) :].splitlines()]
    frame, judge = open_run(before).frame(), open_run(after).plan.own_fingerprint
    assert [line["image"] for line in lines] == frame["image"].tolist()
    assert {line["fingerprint"] for line in lines} == {judge}
    crossed = [line["verdict"] for line in lines]
    triples = list(zip(frame["outside"], frame["own"], crossed, strict=True))
    won = found["win_rate"]
    assert won["wins"] == sum(old != new == real for real, old, new in triples)
    assert won["losses"] == sum(new != old == real for real, old, new in triples)
    assert won["wins"] + won["losses"] + won["ties"] == 44
    assert found["groups"]["010"] == triples.count((0.0, 1.0, 0))
    assert sum(found["groups"].values()) == 44

    # Again: nothing is judged anew, and no other form tells another story.
    again = cli(*args, "--format", "markdown", "--by", "tier")
    assert (again.returncode, again.stderr) == (0, "")
    assert (before / "verdicts.jsonl").read_bytes() == added
    assert f"**Verdict: {found['verdict']}." in again.stdout
    assert "| hard: generation" in again.stdout
    text = cli(*args, "--verbose").stdout
    assert text.startswith(f"Verdict: {found['verdict']}.")
    grouped = [
        f"{judge} {own}" for judge in ("accepts", "rejects") for own in ("accepts", "rejects")
    ]
    rows = [
        " ".join(line.split()) for line in text.splitlines() if "jects" in line or "cepts" in line
    ]
    for name, code in zip(grouped, ("11", "10", "01", "00"), strict=True):
        counts = " ".join(str(found["groups"][code + now]) for now in "10")
        assert f"{name} {counts}" in rows
    assert f"({won['wins']} wins, {won['losses']} losses, {won['ties']} ties)" in text
    assert told["rule"] in text


def test_a_comparison_that_was_cut_off_goes_on(runs: dict[str, Path]) -> None:
    before, after = runs["janus-mini"], runs["slight"]
    [whole] = compare(before, [after])
    file = before / "verdicts.jsonl"
    complete = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(complete[:-10]) + b'{"torn')
    assert compare(before, [after]) == [whole]
    assert sorted(file.read_bytes().splitlines(keepends=True)) == sorted(complete)


def test_a_small_change_is_not_called_one(cli: Cli, runs: dict[str, Path]) -> None:
    done = cli("compare", short(runs["janus-mini"]), short(runs["slight"]), "--gate")
    assert done.returncode == 0, done.stderr
    assert (
        "Verdict: no detectable change. The smallest change this run could have seen" in done.stdout
    )
    assert "Significantly worse" not in done.stdout


def test_several_runs_get_a_table(cli: Cli, runs: dict[str, Path]) -> None:
    afters = (short(runs["slight"]), short(runs["broken"]))
    done = cli("compare", short(runs["janus-mini"]), *afters, "--gate")
    assert done.returncode == 1, done.stderr
    summary = done.stdout.partition("\n\nVerdict: ")[0]
    assert "win rate" in summary
    assert "gap-gain rho" in summary
    table = summary.split("\n\n")[1].splitlines()
    assert [row.split()[0] for row in table[2:]] == list(afters)
    assert done.stdout.count("Verdict: ") == 2


@pytest.mark.parametrize("width", [80, 120])
def test_tables_fit_the_terminal(
    cli: Cli, runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    meta = without_checksum(json.loads((runs["slight"] / "run.json").read_text()))
    meta["model_about"]["changed"] = {"guidance": 4.0}
    (runs["slight"] / "run.json").write_text(json.dumps(meta))
    monkeypatch.setenv("COLUMNS", str(width))
    places = [short(runs[name]) for name in ("janus-mini", "slight", "broken")]
    done = cli("compare", *places, "--by", "category", "--verbose")
    assert done.returncode == 0, done.stderr
    assert f"\nAFTER  slight (guidance=4): {places[1]}\n" in done.stdout
    lines = done.stdout.splitlines()
    prose = (
        "44 images",
        "Understanding",
        "Correlation",
        "Verdict",
        "Significantly",
        "Changes",
        "What each",
        "- ",
    )
    assert [x for x in lines if len(x) > width and not x.startswith(prose)] == []
    for head in ("detectable", "images (clusters)", "Holm p", "gap-gain rho", "AFTER rejects"):
        assert head in done.stdout
    rows = [line for line in lines if line.startswith("understanding ")]
    assert len(rows) == 2 * (2 if width == 80 else 1)  # two comparisons, in two parts or one


def test_no_share_can_change_by_more_than_100_points(runs: dict[str, Path]) -> None:
    [found] = compare(runs["janus-mini"], [runs["broken"]])
    wide = replace(found, changes=[replace(c, detectable=1.5) for c in found.changes])
    assert " >100 " in render([wide], "text", verbose=True)
    assert " 150" not in render([wide], "text", verbose=True)


def test_what_a_fix_was_predicted_to_gain_stands_beside_what_it_gained(
    runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    [found] = compare(runs["janus-mini"], [runs["slight"]])
    gain = found.worth_before and found.worth_before.gain
    assert gain is not None
    told = "predicted before the fix by what choosing by BEFORE's own verdict adds: "
    assert told not in render([found], "text")
    gained = next(change for change in found.changes if change.metric == "generation")
    assert gained.difference is not None
    assert f"{told}{points(gain)}; measured: {100 * gained.difference:+.1f} [" in render(
        [replace(found, is_fix=True)], "text"
    )
    # `gapbench fix` finds the same in the folder that it is called in.
    fingerprint = open_run(runs["janus-mini"]).folder.meta["identity"]["model"]
    monkeypatch.chdir(runs["janus-mini"].parents[1])
    line = predicted(fingerprint)
    assert line.startswith(f"runs/{runs['janus-mini'].name}: Choosing by its own verdict adds ")
    assert points(gain) in line
    assert predicted("another") == ""
    (runs["janus-mini"] / "verdicts.jsonl").write_text("[]\n")  # costs the fix nothing
    assert predicted(fingerprint).startswith("No prediction of what the fix can gain: runs/")


def test_a_model_that_was_moved_is_named(cli: Cli, made: Path, runs: dict[str, Path]) -> None:
    before, after = runs["janus-mini"], runs["broken"]
    meta = without_checksum(json.loads((after / "run.json").read_text()))
    meta["model_about"]["given"] = str(made / "gone")
    (after / "run.json").write_text(json.dumps(meta))
    args = ("compare", short(before), short(after))
    files = (before / "verdicts.jsonl").read_bytes()
    refused(cli(*args), "has to judge BEFORE's images", "there is no such folder", "--model")
    refused(cli(*args, "--model", str(made / "slight")), "holds other weights", "--model")
    assert (before / "verdicts.jsonl").read_bytes() == files
    done = cli(*args, "--model", str(made / "slight"), "--model", str(made / "broken"))
    assert done.returncode == 0, done.stderr


def edit(run: Path, change: Callable[[dict[str, Any]], None]) -> None:
    plan = without_checksum(json.loads((run / "plan.json").read_text()))
    change(plan)
    (run / "plan.json").write_text(json.dumps(plan))


def drop_prompts(plan: dict[str, Any]) -> None:
    for key in ("prompts", "partner", "asks", "partner_asks"):
        plan[key] = plan[key][:15]
    plan["partner"] = [None] * 15


@pytest.mark.parametrize(
    ("change", "culprits", "left"),
    [
        (drop_prompts, ("only BEFORE has 7 prompts, such as shapes/",), 30),
        (
            lambda plan: plan["samples"].update(shapes=1),
            ("of shared prompts are only in BEFORE",),
            22,
        ),
        (
            lambda plan: plan.update(tasks={"shapes": "3.0"}),
            ("shapes is of version 2.0 and 3.0",),
            0,
        ),
        (
            lambda plan: plan["judges"].update(pixel="pixel-9"),
            ("judge is pixel of two versions",),
            0,
        ),
        (lambda plan: plan.update(seed=7), ("holds no image of its plan",), None),
        (
            lambda plan: plan["prompts"][3].update(question="?"),
            ("the texts of 1 prompt differ",),
            42,
        ),
        (lambda plan: plan.update(own="self-text"), ("own verdicts are logits and text",), None),
    ],
    ids=["prompts", "samples", "version", "judge", "seed", "text", "verdict"],
)
def test_only_what_both_runs_have_is_compared(
    runs: dict[str, Path], change: Any, culprits: tuple[str, ...], left: int | None
) -> None:
    before, after = runs["janus-mini"], runs["slight"]
    edit(after, change)
    if left:
        [shared] = compare(before, [after])
        assert shared.images == left
        [left_out] = shared.left_out
        assert culprits[0] in left_out
        assert f"Left out: {left_out}\n" in render([shared], "text")
        assert finding(shared).endswith(f" Left out: {left_out}.")
    else:
        with pytest.raises(GapbenchError) as told:
            compare(before, [after])
        for culprit in culprits:
            assert culprit in str(told.value)
        assert "\n" not in str(told.value)


def test_a_gate_takes_no_unfinished_run(cli: Cli, runs: dict[str, Path]) -> None:
    before, after = runs["janus-mini"], runs["slight"]
    edit(after, drop_prompts)
    (after / "checks.json").write_text('{"the GPU": "another"}')
    args = ("compare", short(before), short(after), "--gate")
    done = cli(*args)
    assert done.returncode == 0, done.stderr
    assert f"\nWARNING: {short(after)}: the GPU failed the check: another\n" in done.stdout
    assert "Left out: only BEFORE has 7 prompts" in done.stdout
    judging = (after / "verdicts.jsonl").read_text()
    another = (
        "from gapbench.judges.pixel import PixelJudge\n"
        "class Another(PixelJudge):\n    name = 'another'\n    fingerprint = 'another-1'\n"
    )
    (after.parents[1] / "another.py").write_text(another)
    more = cli("judge", short(after), "--judge", "./another.py:Another")
    assert more.returncode == 0, more.stderr
    lines = (after / "verdicts.jsonl").read_text().splitlines(keepends=True)
    (after / "verdicts.jsonl").write_text("".join(lines[: judging.count("\n") + 5]))
    assert cli(*args).returncode == 0  # another judge is not done, and not concerned
    refused(cli(*args, "--judge", "another"), "--gate: ", "UNFINISHED: ", "verdicts of another")
    drawn = (after / "generations.jsonl").read_text().splitlines(keepends=True)
    (after / "generations.jsonl").write_text("".join(drawn[::3]))
    refused(cli(*args), "--gate: ", "UNFINISHED: ")


def test_own_verdicts_by_older_rules_are_refused(runs: dict[str, Path]) -> None:
    before, after = runs["janus-mini"], runs["slight"]
    fingerprint = open_run(after).plan.own_fingerprint
    for name in ("plan.json", "verdicts.jsonl"):
        file = after / name
        older = file.read_text().replace(fingerprint, fingerprint.replace("-1-", "-0-", 1))
        file.write_text(re.sub(r',\s*"checksum": "\w+"', "", older))
    with pytest.raises(GapbenchError, match=r"slight.* older rules of reading; run its .* again"):
        compare(before, [after])


def test_other_seeds_share_no_image(cli: Cli, runs: dict[str, Path], made: Path) -> None:
    gapbench.run(str(made / "slight"), limit=22, samples=2, seed=5, out=made / "others")
    [other] = (made / "others").iterdir()
    done = cli("compare", short(runs["janus-mini"]), str(other))
    refused(done, "44 images of shared prompts are only in BEFORE", "share no image")


@pytest.mark.parametrize(
    ("args", "culprits"),
    [
        (("compare", "BEFORE", "BEFORE"), ("is given as BEFORE and as AFTER",)),
        (("compare", "BEFORE", "nowhere"), ("nowhere/run.json", "a run folder?")),
        (("compare", "BEFORE", "AFTER", "--format", "csv"), ("--format must be", "markdown")),
        (("compare", "BEFORE", "AFTER", "--by", "prompt"), ("--by must be", "category")),
        (("compare", "BEFORE", "AFTER", "--judge", "owl"), ("no verdicts of judge 'owl'", "pixel")),
        (("power", "BEFORE", "--detect", "0"), ("--detect 0",)),
        (("power", "BEFORE", "--metric", "speed"), ("no metric 'speed'", "generation")),
        (("power", "nowhere"), ("nowhere/run.json",)),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_mistakes_take_one_line(
    cli: Cli, runs: dict[str, Path], args: tuple[str, ...], culprits: tuple[str, ...]
) -> None:
    places = {"BEFORE": short(runs["janus-mini"]), "AFTER": short(runs["slight"])}
    refused(cli(*(places.get(arg, arg) for arg in args)), *culprits)


def test_runs_without_own_verdicts_compare_what_they_have(made: Path) -> None:
    for model in ("janus-mini", str(made / "slight")):
        gapbench.run(model, limit=11, samples=1, verdict="none", out=made / "silent")
    [found] = compare(*_sides(made / "silent"))
    assert [c.metric for c in found.changes] == ["generation"]
    assert (found.win_rate, found.groups) == (None, None)
    assert found.verdict == "no detectable change (understanding was not measured)"
    assert "understanding was not measured" in render([found], "text")


@pytest.mark.parametrize("own", ["logits", "none"])
@pytest.mark.parametrize("side", [0, 1])
def test_an_outside_judge_that_abstained_everywhere_gives_no_verdict(
    made: Path, tmp_path: Path, own: str, side: int
) -> None:
    for model in ("janus-mini", str(made / "slight")):
        gapbench.run(model, limit=2, samples=1, verdict=own, out=tmp_path / own)
    before, [after] = _sides(tmp_path / own)
    file = (before, after)[side] / "verdicts.jsonl"
    rows = [without_checksum(json.loads(line)) for line in file.read_text().splitlines()]
    for row in rows:
        row["verdict"] = None if row["judge"] == "pixel" else row["verdict"]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    [said] = compare(before, [after])
    if own == "logits" and side == 1:  # BEFORE's images have outside verdicts for understanding
        assert said.verdict.endswith(" (generation was not measured)")
    else:
        assert said.verdict.startswith("none: in one of the runs there is no verdict")


def _sides(folder: Path) -> tuple[Path, list[Path]]:
    before, *afters = sorted(folder.iterdir())
    return before, list(afters)


def test_power_plans_from_a_run(cli: Cli, runs: dict[str, Path]) -> None:
    done = cli("power", short(runs["janus-mini"]), "--detect", "10")
    assert (done.returncode, done.stderr) == (0, "")
    assert "To detect a change of 10 points with a probability of 80 %" in done.stdout
    rows = [line.split() for line in done.stdout.splitlines() if line.strip()[:1].isdigit()]
    assert [row[0] for row in rows] == ["1", "2", "4", "8", "16"]
    best = [int(row[1]) for row in rows]
    assert best == sorted(best, reverse=True)
    assert all(int(row[1]) <= int(row[2]) for row in rows)
    assert "This run, with 22 clusters of prompts and 2 images each, detects" in done.stdout


def test_every_verdict_has_its_words(
    runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rule, on figures whose signs are set by hand."""
    [real] = compare(runs["janus-mini"], [runs["slight"]])

    def signed(metric: str, sign: int) -> Any:
        [change] = [c for c in real.changes if c.metric == metric]
        return replace(change, difference=0.1 * (sign or 1), p=1e-4 if sign else 0.5)

    for (generation, understanding), words in WORDS.items():
        signs = {"generation": generation, "understanding": understanding}
        first, second = ([signed(metric, sign)] for metric, sign in signs.items())
        monkeypatch.setattr(comparison, "changes", lambda *_, _first=first: _first)
        monkeypatch.setattr(comparison, "understanding", lambda *_, _second=second: _second)
        [found] = compare(runs["janus-mini"], [runs["slight"]])
        assert found.verdict == words
        assert found.worse == [metric for metric, sign in signs.items() if sign < 0]
    assert {"co-improvement", "generation better, understanding unchanged",
            "no detectable change", "co-degradation"} <= set(WORDS.values())  # fmt: skip
    with pytest.raises(GapbenchError, match="no format 'xml'"):
        render([real], "xml")
