"""The benchmark for a borrowed GPU runs whole without one."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "gpu.py"
TABLES = {
    "Targets": 12,
    "kernels": 10,
    "drawing": 5,
    "transformers": 3,
    "step": 5,
    "verdicts": 3,
    "invariance": 6,
    "run": 6,
    "killed": 1,
    "fix": 2,
    "detector": 2,
    "vlm": 2,
    "large": 3,
}
"""Sections of the page, and how many rows their tables have at least."""


def test_every_part_gives_its_tables(tmp_path: Path) -> None:
    out = tmp_path / "page.md"
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), "--tiny", "--out", str(out)],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    page = out.read_text()
    assert done.returncode == 0, page + done.stderr
    _, *sections = re.split(r"^## ", page, flags=re.MULTILINE)
    rows = {}
    for section in sections:
        title, *lines = section.splitlines()
        tables = sum(line.startswith("|---") for line in lines)
        rows[title] = sum(line.startswith("|") for line in lines) - 2 * tables
    assert rows.keys() == TABLES.keys()
    assert {title: rows[title] for title in TABLES if rows[title] < TABLES[title]} == {}
    equal = re.findall(r"\| (\d+) of (\d+) \|", page[page.index("## invariance") :])
    assert len(equal) == 7
    assert all(some == every for some, every in equal)
    assert "not measured" not in page[: page.index("## kernels")]
