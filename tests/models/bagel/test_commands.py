"""Commands on a tiny BAGEL in the published layout, from end to end."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bagels
import numpy as np
import pytest
import torch

import gapbench
from gapbench.models.bagel.adapter import BagelModel
from gapbench.runs.merge import merge
from gapbench.runs.run import Run

Cli = Callable[..., subprocess.CompletedProcess[str]]
FEW: dict[str, Any] = {"tasks": "shapes/colors", "samples": 2, "recipe": {"steps": 3}}


def drawn(run: Run) -> dict[tuple[str, int], tuple[str, str | None, str]]:
    known = run.folder.generations()
    return {key: (g.image, g.latents, g.effective_prompt) for key, g in known.items()}


def judged(run: Run) -> dict[tuple[str, str, str], float | None]:
    return {(v.image, v.question, v.judge): v.p_yes for v in run.folder.verdicts().values()}


@pytest.fixture(scope="module")
def whole(tiny_bagel: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return gapbench.run(str(tiny_bagel), limit=4, out=tmp_path_factory.mktemp("whole"), **FEW)


def test_run_compare_and_check_model_pass(tiny_bagel: Path, cli: Cli, tmp_path: Path) -> None:
    options = ("--tasks", "shapes/colors", "--limit", "4", "--samples", "1", "--set", "steps=3")
    for more in ((), ("--set", "cfg_text_scale=1")):
        done = cli("run", "--model", str(tiny_bagel), *options, *more)
        assert done.returncode == 0, done.stderr
    after, before = sorted((tmp_path / "runs").iterdir(), key=lambda path: len(path.name))[::-1]
    compared = cli("compare", str(before), str(after))
    assert compared.returncode == 0, compared.stderr
    assert "cfg_text_scale" in compared.stdout
    checked = cli("check-model", str(tiny_bagel), "--set", "steps=3")
    assert checked.returncode == 0, checked.stdout
    assert "fail" not in checked.stdout


def test_a_run_keeps_the_latents_of_its_images(whole: Run, tiny_bagel: Path) -> None:
    model = gapbench.load_model(str(tiny_bagel))
    assert isinstance(model, BagelModel)
    generations = whole.folder.generations().values()
    assert len(generations) == 8
    for generation in generations:
        assert generation.latents is not None
        assert generation.tokens is None
        latents = whole.folder.latents(generation.latents)
        assert latents.shape == (bagels.CHANNELS, 8, 8)
        again = model.decode(torch.from_numpy(latents)[None])
        image = whole.folder.image(generation.image)
        gaps = np.abs(np.asarray(again).astype(int) - np.asarray(image))
        assert gaps.max() <= 1  # they were rounded to float32
        assert generation.effective_prompt == f"<|im_start|>{generation.prompt}<|im_end|>"


def test_batches_order_and_resuming_change_nothing(
    whole: Run, tiny_bagel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = tmp_path / "parts"
    first = gapbench.run(str(tiny_bagel), limit=2, batch_size=1, out=parts, **FEW)
    assert len(drawn(first)) == 4
    resumed = gapbench.run(str(tiny_bagel), limit=4, batch_size=3, out=parts, **FEW)
    assert resumed.path == first.path
    plain, spoken = BagelModel.generate, BagelModel.judge

    def generate(self: BagelModel, prompts: Any, seeds: Any) -> Any:
        return plain(self, prompts[::-1], seeds[::-1])[::-1]

    def judge(self: BagelModel, images: Any, questions: Any, answers: Any) -> Any:
        return spoken(self, images[::-1], questions[::-1], answers)[::-1]

    monkeypatch.setattr(BagelModel, "generate", generate)
    monkeypatch.setattr(BagelModel, "judge", judge)
    turned = gapbench.run(str(tiny_bagel), limit=4, batch_size=8, out=tmp_path / "turned", **FEW)
    for other in (resumed, turned):
        assert drawn(other) == drawn(whole)
        found, wanted = judged(other), judged(whole)
        assert found.keys() == wanted.keys()
        for key, odds in wanted.items():
            assert found[key] == (None if odds is None else pytest.approx(odds, abs=1e-6))


def test_an_image_without_its_latents_is_drawn_again(tiny_bagel: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {**FEW, "samples": 1, "limit": 2, "verdict": "none", "out": tmp_path}
    run = gapbench.run(str(tiny_bagel), **given)
    before = drawn(run)
    [place, _] = sorted((run.path / "latents").rglob("*.safetensors"))
    data = place.read_bytes()
    place.unlink()
    assert drawn(gapbench.run(str(tiny_bagel), **given)) == before
    assert place.read_bytes() == data


def test_merged_runs_have_the_latents_of_both(tiny_bagel: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {**FEW, "samples": 1, "limit": 2, "verdict": "none"}
    halves = [
        gapbench.run(str(tiny_bagel), shard=f"{number}/2", out=tmp_path / "halves", **given)
        for number in (1, 2)
    ]
    merged = merge([half.path for half in halves], tmp_path / "merged")
    assert drawn(merged) == drawn(halves[0]) | drawn(halves[1])
    assert len(list((merged.path / "latents").rglob("*.safetensors"))) == 2
