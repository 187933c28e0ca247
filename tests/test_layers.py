"""How the package is laid out: imports go downwards, and the light commands stay light."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

import gapbench

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "gapbench"
HEAVY = {"torch", "transformers", "matplotlib"}
MODULES = """
import json, sys
from gapbench.cli.main import main
try:
    main()
finally:
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""


def test_imports_go_downwards_and_in_no_circle(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order is in pyproject.toml, [tool.importlinter]."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", [*sys.path])  # lint_imports adds to it
    assert lint_imports(no_cache=True, no_logo=True) == 0


def test_the_root_is_short_and_so_is_every_file() -> None:
    at_the_root = [file.name for file in PACKAGE.iterdir() if file.is_file()]
    assert len(at_the_root) <= 8, at_the_root
    lengths = {
        str(file.relative_to(PACKAGE)): len(file.read_text(encoding="utf-8").splitlines())
        for file in PACKAGE.rglob("*.py")
    }
    assert {name: lines for name, lines in lengths.items() if lines > 400} == {}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository's submissions and board, and a run beside them."""
    made = tmp_path_factory.mktemp("light")
    for name in ("results", "leaderboard.md"):
        (made / name).symlink_to(ROOT / name)
    ran = gapbench.run("janus-mini", "shapes/colors", limit=2, samples=1, out=made)
    ran.path.rename(made / "finished")
    return made


@pytest.mark.parametrize(
    ("command", "heavy"),
    [
        ("--help", HEAVY | {"numpy", "pandas", "pydantic"}),
        *((light, HEAVY | {"pandas"}) for light in ("run --help", "tasks", "models")),
        *((light, HEAVY) for light in ("show finished", "leaderboard --check", "verify results/*")),
    ],
)
def test_light_commands_import_nothing_heavy(folder: Path, command: str, heavy: set[str]) -> None:
    args = [word for part in command.split() for word in sorted(folder.glob(part)) or [part]]
    done = subprocess.run(
        [sys.executable, "-c", MODULES, *map(str, args)],
        cwd=folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout
    assert not heavy & set(json.loads(done.stderr.splitlines()[-1]))
