"""CONTRIBUTING's map of the code is the tree: nothing is missing and nothing is gone."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
CODE = re.compile(r"`([^`\n]+)`")


def mapped() -> dict[str, list[str]]:
    """The map: each package or file with the files that its row names."""
    rows = re.findall(r"^\| `(gapbench/[^`]*)` \|[^|]*\|([^|]*)\|$", GUIDE, flags=re.M)
    return {path: CODE.findall(files) for path, files in rows}


def test_the_map_names_every_package_and_every_file_of_the_root() -> None:
    package = ROOT / "gapbench"
    homes = {file.parent for file in package.rglob("*.py")} - {package}
    there = {f"{home.relative_to(ROOT).as_posix()}/" for home in homes}
    there |= {file.relative_to(ROOT).as_posix() for file in package.glob("*.py")}
    assert there - mapped().keys() == set()


def test_every_path_of_the_guide_exists() -> None:
    """Those of the rows within their package, the others from the repository's root."""
    named = [f"{path}{file}" for path, files in mapped().items() for file in files]
    tops = {entry.name for entry in ROOT.iterdir()}
    named += [path for path in CODE.findall(GUIDE) if path.partition("/")[0] in tops]
    assert [path for path in named if not (ROOT / path).exists()] == []
