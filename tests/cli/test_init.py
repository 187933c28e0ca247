"""`gapbench init`: what it writes passes its check and runs at once, and stands in the docs."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gapbench.cli.init import TEMPLATES
from gapbench.cli.main import main

Call = Callable[..., tuple[object, str, str]]
DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Call:
    """Run `gapbench ARGS` in this process, in a folder of its own: (exit code, out, err)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def run(*arguments: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["gapbench", *arguments])
        try:
            main()
            code: object = 0
        except SystemExit as stop:
            code = stop.code or 0
        said = capfd.readouterr()
        return code, said.out, said.err

    return run


@pytest.mark.parametrize(
    ("kind", "name", "written", "right"),
    [
        ("model", "red-grid_2", "red-grid_2.py", "red-grid_2 on shapes"),
        ("judge", "my_judge", "my_judge.py", "Outside judge: my_judge"),
        ("task", "fruit", "fruit/task.yaml", "janus-mini on fruit 1.0"),
    ],
)
def test_what_it_writes_passes_its_check_and_runs(
    call: Call, kind: str, name: str, written: str, right: str
) -> None:
    code, out, _ = call("init", kind, name)
    assert code == 0
    assert Path(written).is_file()
    checked, run = re.findall(r"^  gapbench (.+)$", out, re.MULTILINE)
    assert ("./red-grid_2.py:RedGrid2" in checked) == (kind == "model")
    code, out, err = call(*checked.split())
    assert (code, "FAIL" in out) == (0, False), out + err
    code, out, err = call(*run.split(), "--limit", "2")
    assert code == 0, err
    assert right in out
    code, _, err = call("init", kind, name)
    assert code == 2
    assert err.endswith("is there already; give another name, or move it away\n")


def test_a_name_that_cannot_be_is_refused(call: Call) -> None:
    for arguments, words in (
        (("model", "../x"), "NAME must be letters, digits, - and _"),
        (("thing", "x"), "KIND must be 'model', 'task' or 'judge', not 'thing'"),
        (("model", "none"), "NAME none: its class would be called None"),
        (("model", "drawing"), "NAME drawing: its class would be called Drawing"),
        (("judge", "answer"), "NAME answer: its class would be called Answer"),
    ):
        code, _, err = call("init", *arguments)
        assert code == 2
        assert err.startswith(f"gapbench: {words}")
    assert not list(Path.cwd().iterdir())


@pytest.mark.parametrize(
    ("page", "file"),
    [("model", "model.py.txt"), ("judge", "judge.py.txt"), ("task", "task.yaml")],
)
def test_the_guides_show_what_it_writes(page: str, file: str) -> None:
    assert f"\n{(TEMPLATES / file).read_text()}```" in (DOCS / f"own-{page}.md").read_text()
