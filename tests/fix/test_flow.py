"""The flow model of docs/own-model.md: copied out of the page, checked, fixed, and drawn with."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs/own-model.md"
Fix = Callable[..., int | None]
FIX = (
    "--lora", "0", "--limit", "8", "--samples", "3", "--check", "4", "--despite-check",
    "--epochs", "6", "--learning-rate", "1e-2", "--batch-size", "8", "--accept", "above:0",
    "--margin", "0", "--device", "cpu",
)  # fmt: skip


@pytest.fixture
def flow(tmp_path: Path) -> str:
    """The page's code, in a folder."""
    code = re.findall("```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S)[-1]
    assert len(code.splitlines()) <= 60
    (tmp_path / "flow.py").write_text(code)
    return code


def said(folder: Path) -> str:
    return (folder / "err").read_text()


def test_the_flow_of_the_page_is_checked_and_fixed(
    flow: str, cli: Any, fix: Fix, tmp_path: Path
) -> None:
    assert flow
    checked = cli("check-model", "./flow.py:Flow")
    assert checked.returncode == 0, checked.stdout
    assert "ok    latents and images belong together" in checked.stdout
    for method in ("sft", "dpo"):
        given = ("--model", "./flow.py:Flow", "--out", f"flow-{method}", *FIX)
        assert fix(tmp_path, method, *given) == 0, said(tmp_path)
        curves = json.loads((tmp_path / f"flow-{method}/fix.json").read_text())["curves"]
        assert curves[-1]["loss"] < curves[0]["loss"]
    out = (tmp_path / "out").read_text()
    assert "Next: gapbench run --model ./flow.py:Flow@flow-dpo\n" in out
    assert "Then: gapbench compare BEFORE AFTER, the runs" in out
    run = ("--tasks", "shapes", "--limit", "2", "--samples", "1")
    done = cli("run", "--model", "./flow.py:Flow@flow-sft", *run)
    assert done.returncode == 0, done.stderr


KEPT = "latents=latents[0].numpy())"


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (" image_latents", "", "model flow lacks image_tokens and image_latents: gapbench fix"),
        ('device="auto", dtype="auto", ', "", "its adapter takes no device"),
        (f", {KEPT}", ")", "was kept without tokens and without latents, so nothing can be"),
        (
            KEPT,
            "latents=latents[0, :, : 5 + (pixels[0, 0, 0] > 128)].numpy())",
            "kept as latents of 3 x 5 x 6 and as latents of 3 x 6 x 6; training takes one size",
        ),
    ],
    ids=["not declared", "no device", "nothing kept", "two sizes"],
)
def test_what_cannot_be_trained_is_told_in_one_line(
    flow: str, fix: Fix, tmp_path: Path, old: str, new: str, told: str
) -> None:
    assert flow.count(old) == 1
    (tmp_path / "flow.py").write_text(flow.replace(old, new))
    assert fix(tmp_path, "sft", *FIX, "--model", "./flow.py:Flow", "--out", "fixed") == 2
    assert told in said(tmp_path).splitlines()[-1]
    assert "Traceback" not in said(tmp_path)
    drawn = list(tmp_path.glob("candidates/*/latents/*/*"))
    assert len(drawn) == (24 if "two" in told or "one size" in told else 0)
    assert not (tmp_path / "fixed/data").exists()


def test_lost_latents_are_drawn_again_and_damaged_ones_named(
    flow: str, fix: Fix, tmp_path: Path
) -> None:
    given = ("sft", *FIX, "--model", "./flow.py:Flow", "--out", "fixed")
    assert flow
    assert fix(tmp_path, *given) == 0, said(tmp_path)
    lost, altered = sorted(tmp_path.glob("candidates/*/latents/*/*"))[:2]
    lost.unlink()
    altered.write_bytes(altered.read_bytes()[:-1] + b"x")
    shutil.rmtree(tmp_path / "fixed")
    assert fix(tmp_path, *given) == 2
    last = said(tmp_path).splitlines()[-1]
    assert f"{altered.name} was altered (its sha256 is not its name); delete it and run" in last
    assert "Traceback" not in said(tmp_path)
    assert lost.exists()


def test_a_finished_fix_whose_weights_are_gone_says_so(flow: str, fix: Fix, tmp_path: Path) -> None:
    given = ("sft", *FIX, "--model", "./flow.py:Flow", "--out", "fixed")
    assert flow
    assert fix(tmp_path, *given) == 0, said(tmp_path)
    (tmp_path / "fixed/flow.safetensors").unlink()
    assert fix(tmp_path, *given) == 2
    assert "its model does not load any more" in said(tmp_path)
    assert "delete the folder" in said(tmp_path)
