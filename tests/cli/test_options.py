"""One settings record is the command's options, the config file's keys and Python's keywords."""

from __future__ import annotations

import inspect
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

import gapbench
from gapbench.cli.main import app
from gapbench.fix.settings import FixSettings
from gapbench.runs.settings import RunSettings, SettingError

Cli = Callable[..., subprocess.CompletedProcess[str]]


def options(command: str) -> set[str]:
    shown = CliRunner().invoke(app, [command, "--help"]).output
    return set(re.findall(r"^  --([a-z0-9-]+)", shown, flags=re.M)) - {"help"}


def test_options_are_keys_and_keywords(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("tempo: 1\n")
    keys = cli("run", "--config", "c.yaml").stderr.strip().partition("keys are ")[2].split(", ")
    assert {key.replace("_", "-") for key in keys} | {"config"} == options("run")
    keywords = set(inspect.signature(gapbench.run).parameters) - {"only", "progress"}
    own = {"set", "judge", "offline", "dry_run", "calibrate", "format", "report_to"}
    assert keywords - {"recipe", "judges"} == {*keys} - own
    assert vars(RunSettings()).keys() == {*inspect.signature(gapbench.run).parameters}


def test_a_fix_is_told_all_by_options() -> None:
    made = FixSettings(method="sft", out=Path("x"))
    fields = {name.replace("_", "-") for name in vars(made)} - {"method"}
    assert fields | {"offline"} == options("fix")


def test_values_are_converted_and_lists_split() -> None:
    made = RunSettings(tasks="shapes, geneval/colors", batch_size="7", recipe=["a=1", "b = x=2"])  # type: ignore[arg-type]
    assert made.tasks == ["shapes", "geneval/colors"]
    assert made.batch_size == 7
    assert made.recipe == {"a": "1", "b": "x=2"}
    assert RunSettings(recipe="a=1").recipe == {"a": "1"}  # type: ignore[arg-type]
    fix = FixSettings(method="c-sft", out="x", replay_at="4,2", epochs="5")  # type: ignore[arg-type]
    assert (fix.replay_at, fix.epochs, fix.out) == ([2, 4], 5, Path("x"))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"samples": 0}, "samples must be at least 1, not 0"),
        ({"batch_size": "many"}, "batch_size must be a whole number or 'auto', not 'many'"),
        ({"device": "tpu"}, "device must be auto, cpu, cuda, cuda:1 or mps, not 'tpu'"),
        ({"tasks": "shapes,"}, "tasks must be a list with commas, each item once, not 'shapes,'"),
        ({"samples": True}, "samples must be a number, not True"),
        ({"tasks": 5}, "tasks must be a list with commas, not 5"),
        ({"recipe": 3}, "recipe must be lines of the form `key: value`, not 3"),
        ({"recipe": "guidance"}, "recipe must be KEY=VALUE, such as guidance=4, not 'guidance'"),
        ({"recipe": ["guidance"]}, "recipe must be KEY=VALUE, such as guidance=4, not 'guidance'"),
    ],
)
def test_a_wrong_value_is_named(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(SettingError) as caught:
        gapbench.run(**wrong)  # type: ignore[arg-type]
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("batch-size: 0", "c.yaml: batch-size must be at least 1, not 0"),
        ("offline: perhaps", "c.yaml: offline must be true or false, not 'perhaps'"),
        ("set: {guidance: }", "--set guidance must be a number, not None"),
        ("config: d.yaml", "c.yaml: unknown key 'config'"),
    ],
)
def test_a_wrong_value_of_a_file_is_named(cli: Cli, tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    done = cli("run", "--config", "c.yaml", "--tasks", "shapes/colors", "--limit", "1")
    assert done.returncode == 2
    assert done.stderr.startswith("gapbench: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
