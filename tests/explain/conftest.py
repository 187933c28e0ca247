"""A true pair: a tiny Janus, LoRA trained on its own images by `gapbench fix`, and both runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import gapbench
from gapbench.files import without_checksum

TASKS = "shapes/attributes"
Fixer = Callable[..., Path]


@dataclass(frozen=True)
class Pair:
    """Folders of a run before, a run after, and the fix between."""

    before: Path
    after: Path
    fix: Path


@pytest.fixture(scope="session")
def made(
    tiny_janus: Path, start: Callable[..., Any], end: Callable[..., int],
    tmp_path_factory: pytest.TempPathFactory,
) -> Pair:  # fmt: skip
    folder = tmp_path_factory.mktemp("explain")
    # The tiny model's own verdicts lie closely around this; none would be accepted at a half.
    code = end(
        start(
            folder, "fix", "sft", "--model", str(tiny_janus), "--out", "fixed", "--device", "cpu",
            "--prompts", "shapes:train/colors", "--limit", "4", "--samples", "3",
            "--check", "2", "--despite-check", "--accept", "above:0.4675", "--batch-size", "4",
            "--epochs", "3", "--lora", "4", "--learning-rate", "0.02",
        )
    )  # fmt: skip
    assert code == 0, (folder / "err").read_text()
    runs = [
        gapbench.run(str(model), tasks=TASKS, limit=6, samples=2, device="cpu", out=folder / "runs")
        for model in (tiny_janus, folder / "fixed")
    ]
    return Pair(runs[0].path, runs[1].path, folder / "fixed")


@pytest.fixture
def pair(made: Pair, tmp_path: Path) -> Pair:
    """Copies of the runs, in which all reject all; the fix stays where AFTER found its model."""
    for run in (made.before, made.after):
        shutil.copytree(run, tmp_path / run.name)
        plant(tmp_path / run.name, lambda _: False)
    return Pair(tmp_path / made.before.name, tmp_path / made.after.name, made.fix)


def plant(run: Path, accepted: Callable[[int], bool]) -> None:
    """Give a run's images verdicts: the outside judge, which cannot read the tiny model's pictures,
    rejects all, and the model, which rejects all, accepts some."""
    file = run / "verdicts.jsonl"
    lines = []
    for number, line in enumerate(file.read_text().splitlines()):
        record = without_checksum(json.loads(line))
        if record["judge"] == "pixel":
            record |= {"verdict": 0, "reason": None}
        elif accepted(number):
            record["verdict"] = 1
        lines.append(json.dumps(record))
    file.write_text("\n".join(lines) + "\n")
