"""How the package is laid out: imports go downwards, and the light commands stay light."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

import gapbench

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "gapbench"
MODULE = re.compile(r"gapbench\.(\w+)[\w.]*(:\w+)?\Z")
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
    monkeypatch.setattr("logging.config.dictConfig", lambda _: None)  # would silence our loggers
    assert lint_imports(no_cache=True, no_logo=True) == 0


def upwards(package: str, source: str) -> list[str]:
    """Modules of higher layers, or beside it, that a package's source names in texts, such as
    "gapbench.models.emu3:make" and what is given to import_module: no import statement tells."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
    height = {name: -n for n, layer in enumerate(layers) for name in layer.split(" | ")}
    texts = [n.value for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Constant)]
    named = [MODULE.match(text) for text in texts if isinstance(text, str)]
    return [
        module[0]
        for module in named
        if module and module[1] != package and height.get(module[1], 0) >= height[package]
    ]


def test_modules_that_are_named_in_texts_are_lower_too() -> None:
    wrong = {}
    for file in PACKAGE.rglob("*.py"):
        package = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if not package.startswith("__"):  # __init__.py names the public parts of all layers
            wrong[str(file.relative_to(ROOT))] = upwards(package, file.read_text(encoding="utf-8"))
    assert len(wrong) > 100
    assert {name: modules for name, modules in wrong.items() if modules} == {}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('import_module("gapbench.runs.flow")', ["gapbench.runs.flow"]),
        ('MAKE = {"a": "gapbench.judges.vqa:VqaJudge"}', ["gapbench.judges.vqa:VqaJudge"]),
        ('import_module(f"gapbench.cli.{name}")', ["gapbench.cli."]),
        ('import_module("gapbench.models.emu3")', []),
        ('import_module("gapbench.tasks.task")', []),
        ('"gapbench.runs is above this"', []),
    ],
)
def test_texts_that_name_modules_are_seen(source: str, expected: list[str]) -> None:
    assert upwards("models", source) == expected


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
