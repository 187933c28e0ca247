"""Broken run folders: show and report tell what is wrong in one line."""

from __future__ import annotations

import json
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from corrupt import broken

import gapbench
from gapbench.cli.main import main
from gapbench.files import without_checksum
from gapbench.runs.run import Run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return gapbench.run(limit=2, samples=2, out=tmp_path_factory.mktemp("fuzz"))


def tell(capsys: pytest.CaptureFixture[str], *arguments: str) -> str | None:
    """What a command says is wrong, in its one line, or None where it did its work."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["gapbench", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
    said = capsys.readouterr()
    assert all(line.isprintable() for line in said.out.splitlines())
    if ended.value.code in (None, 0):
        return None
    assert ended.value.code == 2
    assert said.err.startswith("gapbench: ")
    assert said.err.count("\n") == 1
    assert said.err[:-1].isprintable()
    return said.err


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("plan.json", {"prompts": None}), ("plan.json", {"prompts": [7]}),
        ("plan.json", {"prompts": []}), ("plan.json", {"partner": [99] * 2}),
        ("plan.json", {"partner": ["x"] * 2}), ("plan.json", {"asks": [{"nobody": "?"}] * 2}),
        ("plan.json", {"asks": 3}), ("plan.json", {"samples": {}}),
        ("plan.json", {"samples": {"shapes": 10**12}}), ("plan.json", {"samples": {"shapes": -1}}),
        ("plan.json", {"judges": []}), ("plan.json", {"seed": "0"}), ("plan.json", {"more": 1}),
        ("plan.json", {"own": None}), ("run.json", {"model": 7}), ("run.json", {"identity": []}),
        ("run.json", {"model_about": "x"}), ("run.json", {"model_about": {"changed": 3}}),
        ("run.json", {"format": [1]}), ("generations.jsonl", {"image": 3}),
        ("generations.jsonl", {"seed": "x"}), ("verdicts.jsonl", {"verdict": "yes"}),
        ("verdicts.jsonl", {"verdict": 7}), ("verdicts.jsonl", {"p_yes": "0.5"}),
    ],
)  # fmt: skip
def test_a_record_of_another_form(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, change: dict[str, Any]
) -> None:
    folder = Path(shutil.copytree(run.path, tmp_path / "run"))
    first, *lines = (folder / file).read_text().split("\n") if file.endswith("l") else [
        (folder / file).read_text()
    ]  # fmt: skip
    record = without_checksum(json.loads(first)) | change
    (folder / file).write_text("\n".join([json.dumps(record), *lines]))
    for command in ("show", "report"):
        said = tell(capsys, command, str(folder))
        assert said is not None
        assert str(folder) in said


@pytest.mark.parametrize("line", ["[1, 2]", "7", "null", '"verdict"'])
def test_a_line_that_is_no_record(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    folder = Path(shutil.copytree(run.path, tmp_path / "run"))
    file = folder / "verdicts.jsonl"
    file.write_text(f"{line}\n{file.read_text()}")
    said = tell(capsys, "show", str(folder))
    assert said is not None
    assert f"{file}:1: broken record (it is no JSON object)" in said


def test_another_ones_words_do_not_command_the_terminal(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(run.path, tmp_path / "run"))
    meta = without_checksum(json.loads((folder / "run.json").read_text()))
    (folder / "run.json").write_text(json.dumps(meta | {"model": "a\x1b]0;owned\x07\u202eb"}))
    for form in ("text", "markdown", "csv", "json"):
        assert tell(capsys, "show", str(folder), "--format", form) is None
    (folder / "run.json").write_text(json.dumps(meta | {"format": "\x1b[2J"}))
    said = tell(capsys, "show", str(folder))
    assert said is not None
    assert "has run format \\x1b[2J" in said


def test_broken_run_folders(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], cases: int
) -> None:
    for number in range(cases):
        folder = tmp_path / str(number)
        shutil.copytree(run.path, folder)
        broken(folder, random.Random(number))
        tell(capsys, "show", str(folder), "--format", "json" if number % 2 else "text")
        if number % 10 == 0:
            tell(capsys, "report", str(folder))
        shutil.rmtree(folder)
