"""Verdicts that are wrong on purpose: the data check stops them before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

PLANTED = '''
"""janus-mini with its verdicts turned round, or drawn by lot."""
import hashlib
import numpy as np
from pathlib import Path
from gapbench.models.registry import MODELS
from gapbench.models.janus.adapter import JanusModel

class Planted(JanusModel):
    def __init__(self, device="auto", dtype="auto", folder=None):
        home = folder or MODELS["janus-mini"].folder
        super().__init__(type(self).__name__.lower(), Path(home), None, device, "float32")
        self.fingerprint += type(self).__name__

class Inverted(Planted):
    def judge(self, images, questions, answers):
        return super().judge(images, questions, answers)[:, ::-1]

class Random(Planted):
    def judge(self, images, questions, answers):
        lots = [
            hashlib.sha256(image.tobytes() + question.encode()).digest()[0] / 256
            for image, question in zip(images, questions)
        ]
        yes = np.clip(np.array(lots), 0.01, 0.99)
        return np.log(np.stack([1 - yes, yes], 1))
'''
CODE = """
import sys
sys.path.insert(0, ".")
sys.argv = ["gapbench", *arguments]
from gapbench.cli.main import main
main()
"""


@pytest.mark.parametrize("kind", ["Inverted", "Random"])
def test_planted_verdicts_are_stopped(kind: str, start: Any, end: Any, tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text(PLANTED)
    process = start(
        tmp_path, "fix", "sft", "--model", f"planted:{kind}", "--out", "fixed", "--check", "60",
        "--samples", "4",
        code=CODE,
    )  # fmt: skip
    assert end(process) == 2, (tmp_path / "err").read_text()
    last = (tmp_path / "err").read_text().splitlines()[-1]
    assert last.startswith("gapbench: the data check stops the fix: ")
    assert not (tmp_path / "fixed" / "data").exists()
    said = (tmp_path / "out").read_text()
    assert "precision of its verdicts by judge pixel" in said


def test_an_adapter_of_ones_own_is_fixed_and_comes_back(
    start: Any, end: Any, tmp_path: Path
) -> None:
    (tmp_path / "planted.py").write_text(PLANTED)
    process = start(
        tmp_path, "fix", "c-sft", "--model", "planted:Random", "--out", "fixed", "--limit", "16",
        "--samples", "1", "--check", "4", "--despite-check", "--epochs", "2", "--replay-at", "1",
        "--batch-size", "8", "--lora", "2",
        code=CODE,
    )  # fmt: skip
    assert end(process) == 0, (tmp_path / "err").read_text()
    process = start(
        tmp_path, "run", "--model", "planted:Random@fixed", "--limit", "1", "--samples", "1",
        "--tasks", "shapes",
        code=CODE,
    )  # fmt: skip
    assert end(process) == 0, (tmp_path / "err").read_text()
