"""The command line as processes: what it prints, what it loads, and one line for every mistake."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from gapbench import GapbenchError, load_model, open_run
from gapbench.files import without_checksum
from gapbench.models import model_names
from gapbench.models.registry import MODELS
from gapbench.tasks.task import task_folders

Cli = Callable[..., subprocess.CompletedProcess[str]]
SMALL = ("--tasks", "shapes/colors", "--limit", "3", "--samples", "1")
MODULES = """
import json, sys
from gapbench.cli.main import main
try:
    main()
finally:
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `gapbench run` ran once; its output is in `out`."""
    folder = tmp_path_factory.mktemp("made")
    code = "from gapbench.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "run", *SMALL],
        cwd=folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    (folder / "out").write_text(done.stdout)
    return folder


@pytest.fixture
def ran(made: Path, tmp_path: Path) -> Path:
    """A copy of that run's folder, in the folder that `cli` runs in."""
    shutil.copytree(made / "runs", tmp_path / "runs")
    return next((tmp_path / "runs").iterdir())


def loaded(folder: Path, *args: str) -> tuple[set[str], str]:
    """Modules that a command has imported at its end, and what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", MODULES, *args],
        cwd=folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return set(json.loads(done.stderr.splitlines()[-1])), done.stdout


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and file.name != ".lock"
    }


def assert_refused(done: subprocess.CompletedProcess[str], *culprits: str) -> None:
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("gapbench: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.endswith("\n")
    for culprit in culprits:
        assert culprit in done.stderr


# -- what works ----------------------------------------------------------------------------------


def test_on_a_terminal_a_run_ends_with_a_few_lines(
    ran: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")  # rich takes any output for a terminal
    monkeypatch.setenv("COLUMNS", "80")
    shown = re.sub(r"\x1b\[[0-9;]*m", "", cli("run", *SMALL).stdout)
    lines = [line for line in shown.splitlines() if line.strip()]
    assert len(lines) <= 13
    assert "/3)" not in shown
    [heads] = [line.split() for line in lines if line.startswith("%")]
    assert heads[:2] == ["%", "overall"]
    assert f"gapbench show runs/{ran.name}" in lines[-2]
    assert f"gapbench report runs/{ran.name}" in lines[-1]


def test_a_run_prints_its_table(made: Path) -> None:
    shown = (made / "out").read_text()
    [folder] = (made / "runs").iterdir()
    assert "janus-mini on shapes 2.0: 3 images of 3 prompts, own verdicts: logits" in shown
    assert "Outside judge: pixel" in shown
    assert f"gapbench show runs/{folder.name}" in shown
    assert "/3)" in shown  # in a pipe or a log, counts stand below the figures
    for rate in open_run(folder).rates():
        if rate.level in ("overall", "tier"):
            assert rate.name in shown
    assert (folder / "sheets" / "shapes-colors.png").exists()
    assert {file.name for file in folder.iterdir()} >= {
        "run.json", "plan.json", "generations.jsonl", "verdicts.jsonl", "results.json", "images",
        "tokens", "sheets",
    }  # fmt: skip


def test_the_same_run_again_loads_no_model(made: Path, ran: Path, tmp_path: Path) -> None:
    before = files(ran)
    modules, shown = loaded(tmp_path, "run", *SMALL)
    assert "transformers.models.janus.modeling_janus" not in modules
    assert "gapbench.models.janus.adapter" in modules
    assert shown == (made / "out").read_text()
    assert files(ran) == before


def test_dry_runs_write_nothing(cli: Cli, ran: Path, tmp_path: Path) -> None:
    before = files(tmp_path)
    done = cli("run", *SMALL, "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Nothing is left to do" in done.stdout
    more = ("run", *SMALL[:-1], "2")
    left = "Left to do: 3 images, 3 own verdicts, 3 outside verdicts"
    modules, shown = loaded(tmp_path, *more, "--dry-run")
    assert "transformers.models.janus.modeling_janus" not in modules
    assert re.search(
        rf"{left}; about \d+ s and 0\.\d MB, by the speeds recorded in runs/{ran.name}\.", shown
    )
    (ran / "speeds.json").unlink()
    before.pop(f"runs/{ran.name}/speeds.json")
    unknown = cli(*more, "--dry-run").stdout
    assert (
        f"{left}. Nothing was written.\nTime not known: images, own verdicts, verdicts" in unknown
    )
    assert re.search(
        rf"{left}; about \d+ s and .* from a short cal", cli(*more, "--calibrate").stdout
    )
    assert files(tmp_path) == before


def test_show_prints_the_run_again(cli: Cli, made: Path, ran: Path, tmp_path: Path) -> None:
    before = files(ran)
    rates = open_run(ran).rates()
    done = cli("show", str(ran))
    assert (done.returncode, done.stderr) == (0, "")
    head = (made / "out").read_text().partition("Outside judge:")[0]
    assert done.stdout.startswith(head)
    assert "Tasks, tiers and overall are means over categories.\n" in done.stdout
    assert all(rate.name.partition("/")[2] in done.stdout for rate in rates)
    assert "/3)" not in done.stdout
    assert "/3)" in cli("show", str(ran), "-v").stdout
    assert cli("run", *SMALL, "--json").stdout == cli("show", str(ran), "--json").stdout
    (tmp_path / "wandb.py").write_text(
        "import json\n"
        "def init(name, **given): open('told', 'a').write(name + ' ')\n"
        "def log(figures): open('told', 'a').write(json.dumps(figures))\n"
        "def finish(): pass\n"
    )
    assert "Pictures" not in cli("run", *SMALL, "--quiet", "--report-to", "wandb").stdout
    name, _, logged = (tmp_path / "told").read_text().partition(" ")
    [drawn] = [r.value for r in rates if (r.level, r.metric) == ("overall", "generation")]
    assert (name, json.loads(logged)["gap/generation"]) == (ran.name, drawn)
    as_json = cli("show", str(ran), "--format", "json", "--judge", "pixel")
    assert json.loads(as_json.stdout) == [asdict(rate) for rate in rates]
    rows = list(csv.DictReader(io.StringIO(cli("show", str(ran), "--format", "csv").stdout)))
    assert [row["metric"] for row in rows] == [rate.metric for rate in rates]
    markdown = cli("show", str(ran), "--format", "markdown").stdout.splitlines()
    assert all(line.startswith("|") and line.endswith("|") for line in markdown)
    assert "| **overall** " in markdown[-1]
    assert files(ran) == before


def test_a_run_is_named_with_what_was_changed(cli: Cli) -> None:
    changed = ("--set", "guidance=2", "--seed", "1", "--dtype", "float32", "--verdict", "none")
    done = cli("run", "--tasks", "shapes/colors", "--limit", "1", "--samples", "1", *changed)
    name = "janus-mini (guidance=2, dtype=float32, seed=1)"
    assert f"{name} on shapes 2.0: 1 image of 1 prompt, own verdicts: none" in done.stdout
    assert "(1 contact sheet)" in done.stdout


def test_a_tier_takes_the_tasks_that_are_here(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cache in ("HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(cache, str(tmp_path / "cache"))
    asked = ("run", "--tasks", "easy", "--limit", "2", "--samples", "1", "--verdict", "none")
    told = (
        "Skipped geneval: judge detector (2.0 GB): not here (offline); `gapbench prepare --tasks "
        "geneval` brings it.\nSkipped geneval2: judge vlm (18 GB): Qwen"
    )
    for more in ((), ("--dry-run",)):
        done = cli(*asked, "--offline", *more)
        assert done.returncode == 0, done.stderr
        assert told in done.stdout
        assert "(offline); with a network, run `gapbench prepare`, or give" in done.stdout
    run = open_run(next((tmp_path / "runs").iterdir()))
    # Beside it a task that another test installed, if that test came first in this process.
    assert {prompt.task for prompt in run.plan.prompts} - {"few-shapes"} == {"shapes"}
    assert told in cli("show", str(run.path)).stdout
    strict = cli(*asked, "--offline", "--strict", "--seed", "1")
    assert_refused(strict, "task geneval: judge detector (2.0 GB): not here (offline)")
    named = cli(*asked[:2], "geneval2", *asked[3:], "--offline")
    assert_refused(named, "task geneval2: offline", "gapbench prepare --data FOLDER")
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_tasks_and_models_are_described(
    cli: Cli, user_task: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = user_task([{"text": "[bold]x[/bold] {prompt}"}])
    for args, words in (
        (("tasks",), ("shapes", "440", "pixel")),
        (("tasks", "shapes"), ("Apache-2.0", "compound_fact", "hard", "{your score}")),
        (("tasks", str(folder)), ("[bold]x[/bold] {prompt}", "only")),
        (("models",), ("janus-mini", "Apache-2.0")),
        (("models", "--json"), ('"model": "show-o"', '"judge_text"', '"license": "MIT')),
        (("tasks", "shapes", "--json"), ('"category": "two_object"', '"prompts": 440')),
        (("models", "janus-mini"), (load_model("janus-mini").fingerprint, "guidance")),
    ):
        done = cli(*args)
        assert (done.returncode, done.stderr) == (0, "")
        for word in words:
            assert word in done.stdout
    monkeypatch.setenv("COLUMNS", "80")
    for listed, names in (("models", model_names()), ("tasks", task_folders())):
        shown = cli(listed).stdout
        assert set(names) <= {word.strip("*") for word in shown.split()}
        assert "…" not in shown
        assert max(map(len, shown.splitlines())) <= 80


def test_config_files_are_overridden_by_options(cli: Cli, ran: Path, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "tasks: shapes/counting, shapes/colors\nlimit: 3\nsamples: 1\nbatch-size: 7\n"
    )
    done = cli("run", "--config", "c.yaml", "--tasks", "shapes/colors", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "Nothing is left to do" in done.stdout


# -- what does not -------------------------------------------------------------------------------


def test_no_command_prints_the_help(cli: Cli) -> None:
    assert cli().stdout == cli("--help").stdout
    assert "compare" in cli().stdout


def test_help_names_what_an_argument_is(cli: Cli) -> None:
    shown = cli("compare", "--help").stdout
    assert "compare [OPTIONS] {BEFORE} {AFTER}..." in shown
    assert "AFTER <path>" in shown


@pytest.mark.parametrize(
    ("key", "value", "culprit"),
    [
        ("identity", {"model": "other"}, "holds a run of another identity"),
        ("format", 99, "has run format 99"),
    ],
)
def test_a_folder_of_another_run_is_left_alone(
    cli: Cli, ran: Path, key: str, value: object, culprit: str
) -> None:
    meta = without_checksum(json.loads((ran / "run.json").read_text()))
    (ran / "run.json").write_text(json.dumps(meta | {key: value}))
    before = files(ran)
    assert_refused(cli("run", *SMALL), f"runs/{ran.name} {culprit}")
    assert files(ran) == before


def test_show_names_an_unknown_judge(cli: Cli, ran: Path) -> None:
    assert_refused(cli("show", str(ran), "--judge", "owl"), "no verdicts of judge 'owl'", "pixel")


def test_truncated_weights_are_refused(cli: Cli, tmp_path: Path) -> None:
    shutil.copytree(MODELS["janus-mini"].folder, tmp_path / "copy")
    with (tmp_path / "copy" / "model.safetensors").open("r+b") as weights:
        weights.truncate(100_000)
    assert_refused(cli("run", *SMALL, "--model", "copy"), "model copy: cannot load copy")
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_edited_weights_are_not_the_bundled_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = MODELS["janus-mini"]
    copy = tmp_path / "copy"
    shutil.copytree(entry.folder, copy)
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    monkeypatch.setitem(MODELS, "janus-mini", replace(entry, folder=copy))
    with pytest.raises(GapbenchError, match="is not the one that ships"):
        load_model("janus-mini")
    assert load_model(str(copy)).fingerprint  # under its own name it is a model like any other
    weights.unlink()
    with pytest.raises(GapbenchError, match="cannot be read; install gapbench again"):
        load_model("janus-mini")


def test_a_prompt_that_cannot_be_drawn_costs_no_other(
    cli: Cli, user_task: Callable[..., Path], tmp_path: Path
) -> None:
    folder = user_task([{"text": "a circle"}, {"text": "a <begin_of_image> circle"}], judge=None)
    assert "Left to do: 2 images" in cli("run", "--tasks", str(folder), "--dry-run").stdout
    for more in ((), ("--retry-refused",)):
        done = cli("run", "--tasks", str(folder), *more)
        assert done.returncode == 0, done.stderr
        assert "2 images of 4 refused by the model are left out: it contains" in done.stdout
        assert "'<begin_of_image>'" in done.stdout
    run = open_run(next((tmp_path / "runs").iterdir()))
    assert set(run.frame()["text"]) == {"a circle"}


def test_a_run_of_which_every_prompt_is_refused_says_so(
    cli: Cli, user_task: Callable[..., Path], tmp_path: Path
) -> None:
    folder = user_task([{"text": "a <begin_of_image> circle"}], judge=None)
    done = cli("run", "--tasks", str(folder))
    assert (done.returncode, "2 images of 2 refused" in done.stdout) == (0, True), done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    assert cli("show", str(run)).returncode == 0
