"""Making a submission: what is refused, and that it is there whole or not at all."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import gapbench
from gapbench import GapbenchError, open_run
from gapbench.files import without_checksum
from gapbench.leaderboard.submit import submit
from gapbench.leaderboard.verify import check
from gapbench.models.registry import MODELS
from gapbench.runs.folder import RunFolder

Cli = Callable[..., subprocess.CompletedProcess[str]]

KILLED = """
import json, os, signal, sys
from pathlib import Path
from gapbench.runs.run import open_run
from gapbench.leaderboard.submission import read
from gapbench.leaderboard.submit import submit

run, results = open_run(Path(sys.argv[1])), Path(sys.argv[2])
submit(run, results.with_name("warm"), test_model=True)  # imports, once for all children
states, ended = [], False
for step in range(1, 100):
    child = os.fork()
    if child == 0:
        left = [step]
        def dying(call):
            def counted(*args, **more):
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args, **more)
            return counted
        for name in ("mkdir", "fsync", "replace", "rename"):
            setattr(os, name, dying(getattr(os, name)))
        submit(run, results, test_model=True)
        os._exit(0)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    seen = [f.name for f in results.glob("*") if not f.name.startswith(".")]
    states.append(seen)
    if seen:
        break
print(json.dumps({"states": states, "ended": ended}))
"""


def test_a_card_says_what_was_measured(made: Any) -> None:
    card = json.loads((made.folder / "card.json").read_text())
    assert card["name"] == card["model"] == "janus-mini"
    assert card["fingerprint"] == made.model.fingerprint
    entry = MODELS["janus-mini"]
    assert card["checkpoints"] == [{"role": "model", "repo": "gapbench", "revision": entry.sha256}]
    assert card["test_model"] is True
    assert card["recipe"] == dict(made.model.recipe)
    assert card["tasks"]["few-shapes"]["judges"] == {
        "colors": "pixel", "three_attr": "pixel", "color_fact": "pixel",
    }  # fmt: skip
    assert set(card["judges"]) == {"pixel"}
    assert {"python", "torch", "gapbench"} <= set(card["versions"])
    rates = json.loads((made.folder / "rates.json").read_text())["ranked"]
    assert rates == json.loads(json.dumps([asdict(rate) for rate in made.run.rates()]))


def test_prompts_and_images_are_not_in_it(made: Any) -> None:
    assert sorted(f.name for f in made.folder.iterdir()) == [
        "card.json", "rates.json", "verdicts.parquet",
    ]  # fmt: skip
    table = pq.read_table(made.folder / "verdicts.parquet")
    text = made.run.plan.prompts[0].text
    assert all(text not in str(column.to_pylist()) for column in table.columns)


def test_another_judge_beside_the_tasks_own(made: Any, tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    images = sorted({g.image for g in made.run.folder.generations().values()})
    labels.write_text("image,label\n" + "".join(f"{image},yes\n" for image in images))
    runs = shutil.copytree(made.run.path.parent, tmp_path / "runs")
    run = gapbench.run(made.model, "few-shapes", judges=[f"human:{labels}", "pixel"], out=runs)
    place = submit(run, tmp_path / "results", test_model=True)
    rates = json.loads((place / "rates.json").read_text())
    assert set(rates) == {"ranked", "human-labels"}
    assert rates["ranked"] == json.loads((made.folder / "rates.json").read_text())["ranked"]
    [yes] = [
        r for r in rates["human-labels"] if (r["level"], r["metric"]) == ("overall", "generation")
    ]
    assert (yes["numerator"], yes["denominator"]) == (24, 24)
    assert check(place) == []


def test_the_command_writes_and_refuses(made: Any, board_cli: Cli, tmp_path: Path) -> None:
    run = str(made.run.path)
    refused = board_cli("submit", run)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "janus-mini is a test model; --allow-test-model" in refused.stderr
    assert not (tmp_path / "results").exists()
    done = board_cli("submit", run, "--allow-test-model", "--contact", "someone <a@b.c>")
    assert (done.returncode, done.stderr) == (0, "")
    card = json.loads((tmp_path / "results/janus-mini/card.json").read_text())
    assert card["contact"] == "someone <a@b.c>"
    long = board_cli("submit", run, "--allow-test-model", "--results", "x", "--contact", "x" * 201)
    assert (long.returncode, long.stdout) == (2, "")
    assert "makes no card: contact: " in long.stderr
    again = board_cli("submit", run, "--allow-test-model")
    assert again.returncode == 2
    assert "results/janus-mini is there already" in again.stderr
    named = board_cli("submit", run, "--allow-test-model", "--name", "mini, again")
    assert (named.returncode, named.stderr) == (0, "")
    card = json.loads((tmp_path / "results/mini-again/card.json").read_text())
    assert (card["name"], card["model"]) == ("mini-again", "janus-mini")
    other = board_cli("submit", run, "--allow-test-model", "--name", "janus-pro")
    assert "the card calls janus-mini janus-pro, the name of another model" in other.stderr


def tampered(made: Any, tmp_path: Path) -> RunFolder:
    """A copy of the run, whose files a test changes."""
    return RunFolder.open(Path(shutil.copytree(made.run.path, tmp_path / "copied")))


def refuses(folder: RunFolder, tmp_path: Path, match: str, **more: Any) -> None:
    options = {"test_model": True, **more}
    with pytest.raises(GapbenchError, match=match) as caught:
        submit(open_run(folder.path), tmp_path / "results", **options)
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "results").glob("*")) == []


def edit(folder: RunFolder, name: str, change: Callable[[Any], Any]) -> None:
    raw = without_checksum(folder.read(name))
    change(raw)
    folder.write(name, raw)


def test_a_run_of_fewer_prompts(made: Any, tmp_path: Path) -> None:
    run = gapbench.run(made.model, "few-shapes", limit=3, out=tmp_path / "runs")
    refuses(run.folder, tmp_path, "lacks 9 of the 12 prompts of task few-shapes")


def test_a_run_of_fewer_samples(made: Any, tmp_path: Path) -> None:
    folder = tampered(made, tmp_path)
    edit(folder, "plan.json", lambda plan: plan["samples"].update({"few-shapes": 1}))
    refuses(folder, tmp_path, "1 image a prompt, task few-shapes has 2")


@pytest.mark.parametrize("name", ["verdicts.jsonl", "generations.jsonl"])
def test_a_run_that_was_stopped(made: Any, tmp_path: Path, name: str) -> None:
    folder = tampered(made, tmp_path)
    lines = (folder.path / name).read_bytes().splitlines(keepends=True)
    (folder.path / name).write_bytes(b"".join(lines[:-1]))
    refuses(folder, tmp_path, r"is not complete: .* has no (image|verdict)")


def test_changed_task_versions_and_prompts(made: Any, tmp_path: Path) -> None:
    folder = tampered(made, tmp_path)
    edit(folder, "plan.json", lambda plan: plan["prompts"][0].update(text="a red dot"))
    refuses(folder, tmp_path, "its prompts are not those of task few-shapes 1.0")
    edit(folder, "plan.json", lambda plan: plan["tasks"].update({"few-shapes": "0.9"}))
    refuses(folder, tmp_path, "ran task few-shapes 0.9, installed is 1.0")


def test_tasks_that_nobody_else_can_load(made: Any, user_task: Any, tmp_path: Path) -> None:
    records: list[object] = [{"text": "a red circle"}]
    folder = user_task(records, judge=None)
    run = gapbench.run(made.model, str(folder), out=tmp_path / "runs")
    refuses(run.folder, tmp_path, "task mine is not installed")


def without_pixel(plan: dict[str, Any]) -> None:
    asks = [{} for _ in plan["asks"]]
    plan.update(own="self", judges={"other": "x"}, asks=asks, partner_asks=[])


@pytest.fixture
def own_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """janus-mini's weights pass for somebody's own."""
    monkeypatch.setattr("gapbench.leaderboard.verify._test_fingerprints", frozenset)


def test_runs_without_the_verdicts_that_rank(made: Any, tmp_path: Path) -> None:
    folder = tampered(made, tmp_path)
    edit(folder, "plan.json", lambda plan: plan.update(own=""))
    refuses(folder, tmp_path, "no own verdicts")
    edit(folder, "plan.json", without_pixel)
    refuses(folder, tmp_path, "no verdicts of pixel")


def test_the_card_says_what_a_fix_trained_on(made: Any, tmp_path: Path) -> None:
    assert json.loads((made.folder / "card.json").read_text())["training"] is None
    folder = tampered(made, tmp_path)
    leaks = {"test_splits": ["geneval"], "same": 1, "reordered": 2, "near": 3, "reworded": 4}
    settings = {"model": "janus-mini", "method": "sft", "prompts": ["geneval"], "lora": 32}
    (tmp_path / "fix.json").write_text(json.dumps({"settings": settings, "leaks": leaks}))
    edit(folder, "run.json", lambda meta: meta["model_about"].update(given=str(tmp_path)))
    place = submit(open_run(folder.path), tmp_path / "fixed", test_model=True)
    assert json.loads((place / "card.json").read_text())["training"] == {
        "base": "janus-mini", "method": "sft", "prompts": ["geneval"], "leaks": leaks,
    }  # fmt: skip
    assert check(place) == []


def test_other_mismatched_pairs_are_refused(made: Any, tmp_path: Path) -> None:
    folder = tampered(made, tmp_path)
    edit(folder, "plan.json", lambda plan: plan.update(mismatched="near"))
    refuses(folder, tmp_path, "again with --mismatched far")


@pytest.mark.usefixtures("own_weights")
def test_weights_that_nothing_pins(made: Any, tmp_path: Path) -> None:
    """A folder of weights, and one that is called like a model that ships."""
    folder = tampered(made, tmp_path)
    edit(folder, "run.json", lambda meta: meta.update(model="mine"))
    refuses(folder, tmp_path, "nothing pins its weights", test_model=False)
    refuses(folder, tmp_path, "give OWNER/NAME@COMMIT", checkpoint="me/mine@main")
    named = submit(open_run(folder.path), tmp_path / "named", checkpoint="me/mine@" + "c" * 40)
    card = json.loads((named / "card.json").read_text())
    assert card["checkpoints"] == [{"role": "model", "repo": "me/mine", "revision": "c" * 40}]
    assert card["test_model"] is False
    tested = submit(open_run(folder.path), tmp_path / "tested", test_model=True)
    assert json.loads((tested / "card.json").read_text())["checkpoints"] == []
    edit(folder, "run.json", lambda meta: meta.update(model="janus-mini"))
    edit(folder, "run.json", lambda meta: meta["identity"].update(model="d" * 64))
    refuses(folder, tmp_path, "other weights than those of janus-mini here")


@pytest.mark.usefixtures("own_weights")
def test_a_name_that_is_a_path_stays_in_the_folder(made: Any, tmp_path: Path) -> None:
    folder = tampered(made, tmp_path)
    edit(folder, "run.json", lambda meta: meta.update(model="../../etc/x"))
    made_at = submit(open_run(folder.path), tmp_path / "results", test_model=True)
    assert made_at.parent == tmp_path / "results"
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", made_at.name)
    edit(folder, "run.json", lambda meta: meta.update(model="../.."))
    with pytest.raises(GapbenchError, match="makes no name"):
        submit(open_run(folder.path), tmp_path / "results", test_model=True)


def test_killed_at_any_step_it_is_there_whole_or_not_at_all(made: Any, tmp_path: Path) -> None:
    results = tmp_path / "results"
    path = os.pathsep.join([str(made.site), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(made.run.path), str(results)],
        capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found["states"]) > 6
    assert found["states"] == [[]] * (len(found["states"]) - 1) + [["janus-mini"]]
    assert check(results / "janus-mini") == []
    # The last one swept the hidden folders of those that were killed.
    assert [file.name for file in results.iterdir()] == ["janus-mini"]


def test_a_folder_that_cannot_be_written(made: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(GapbenchError, match=r"cannot be written .* nothing was"):
        submit(made.run, tmp_path / "file" / "results", test_model=True)


def test_a_wider_plan_is_submitted_with_what_it_asked(made: Any, tmp_path: Path) -> None:
    run = gapbench.run(made.model, "few-shapes", samples=3, out=tmp_path / "runs")
    place = submit(run, tmp_path / "results", test_model=True)
    assert json.loads((place / "card.json").read_text())["tasks"]["few-shapes"]["samples"] == 3
