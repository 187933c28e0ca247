"""Runs and fixes of tiny pipelines, from end to end, and what training does to them."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pipelines
import pytest
import torch
from safetensors.torch import load_file
from training import trained

import gapbench
from gapbench import GapbenchError, load_model
from gapbench.fix.losses import ImageLoss
from gapbench.fix.network import base_model, prepare
from gapbench.fix.settings import FixSettings
from gapbench.models.pipelines.adapter import PipelineModel
from gapbench.runs.run import Run

Cli = Callable[..., subprocess.CompletedProcess[str]]
Tiny = Mapping[str, Path]
each_kind = pytest.mark.parametrize("kind", pipelines.KINDS)
PROMPTS = list("01234567")  # one token each, so that they share a batch
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
FIX = (
    "--prompts", "shapes:train/colors", "--limit", "3", "--samples", "3", "--check", "3",
    "--despite-check", "--accept", "above:0", "--margin", "0", "--epochs", "2", "--batch-size", "3",
    "--learning-rate", "1e-2", "--lora", "4", "--train", "generation", "--device", "cpu",
)  # fmt: skip


def options(kind: str, **more: object) -> list[str]:
    known = pipelines.recipe(kind, **more).items()
    return [word for key, value in known for word in ("--set", f"{key}={json.dumps(value)}")]


def drawn(run: Run) -> dict[tuple[str, int], tuple[str, str | None]]:
    return {key: (g.image, g.latents) for key, g in run.folder.generations().items()}


def judged(run: Run) -> dict[tuple[str, str, str], float | None]:
    return {(v.image, v.question, v.judge): v.p_yes for v in run.folder.verdicts().values()}


# -- runs ----------------------------------------------------------------------------------------


@each_kind
def test_batches_order_and_resuming_change_nothing(
    tiny_pipelines: Tiny, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few: dict[str, Any] = {"tasks": "shapes/colors", "samples": 2, "recipe": pipelines.recipe(kind)}
    name = f"diffusers:{tiny_pipelines[kind]}"
    whole = gapbench.run(name, limit=3, out=tmp_path / "whole", **few)
    first = gapbench.run(name, limit=1, batch_size=1, out=tmp_path / "parts", **few)
    assert len(drawn(first)) == 2
    plain = PipelineModel.generate

    def generate(self: PipelineModel, prompts: Any, seeds: Any) -> Any:
        return plain(self, prompts[::-1], seeds[::-1])[::-1]

    monkeypatch.setattr(PipelineModel, "generate", generate)
    resumed = gapbench.run(name, limit=3, batch_size=4, out=tmp_path / "parts", **few)
    assert resumed.path == first.path
    assert drawn(resumed) == drawn(whole)
    assert len(drawn(whole)) == 6
    before, after = judged(whole), judged(resumed)
    assert before.keys() == after.keys()
    for key, odds in before.items():
        assert after[key] == pytest.approx(odds, abs=1e-9)
    assert whole.footnote == (
        "* a pair: it draws with one network, conditioned by the model that judges"
    )
    assert whole.folder.meta["model_about"]["versions"]["diffusers"]


# -- fixes ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fixed(fix: Any, tiny_pipelines: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished dpo of a pipeline in `fixed`."""
    folder = tmp_path_factory.mktemp("fixed")
    shutil.copytree(tiny_pipelines["qwen21"], folder / "base")
    command = ("dpo", "--model", "diffusers:base", "--out", "fixed")
    code = fix(folder, *command, *FIX, *options("qwen21"))
    assert code == 0, (folder / "err").read_text()
    return folder


def test_what_a_fix_saves_is_a_pipeline_that_runs_and_compares(fixed: Path, cli: Cli) -> None:
    record = json.loads((fixed / "fixed/fix.json").read_text())
    assert record["curves"][0]["dpo"] == pytest.approx(np.log(2), abs=1e-4)
    before, after = (load_file(fixed / name / WEIGHTS) for name in ("base", "fixed"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("transformer_blocks.") for name in changed)
    said = (fixed / "out").read_text() + (fixed / "err").read_text()
    assert "only the weights that draw are trained, those that judge stay" in said
    for name in ("diffusers:base", "fixed"):
        done = cli("run", "--model", name, *RUN, *options("qwen21"), cwd=fixed)
        assert done.returncode == 0, done.stderr
    assert "conditioned by the model that judges" in done.stdout
    done = cli("compare", "base", "fixed", cwd=fixed)
    assert done.returncode == 0, done.stderr


def test_an_adapter_draws_as_the_merged_pipeline(fixed: Path) -> None:
    models = [
        load_model(str(fixed / name), "cpu", recipe=pipelines.recipe("qwen21"))
        for name in ("fixed/adapter", "fixed", "base")
    ]
    assert len({model.fingerprint for model in models}) == 3
    latents = [model.generate(["a red circle"], [3])[0].latents for model in models]
    assert latents[2] is not None
    np.testing.assert_allclose(latents[0], latents[1], atol=1e-4)  # type: ignore[arg-type]
    assert not np.allclose(latents[0], latents[2], atol=1e-3)  # type: ignore[arg-type]


RUN = ("--tasks", "shapes/colors", "--limit", "3", "--samples", "1", "--device", "cpu")


@pytest.mark.parametrize("kind", ["qwen", "longcat", "qwen21"])
def test_the_other_kinds_and_methods_end_in_a_comparison(
    tiny_pipelines: Tiny, kind: str, fix: Any, cli: Cli, tmp_path: Path
) -> None:
    shutil.copytree(tiny_pipelines[kind], tmp_path / "base")
    methods = ("sft",) if kind == "qwen21" else ("sft", "dpo")  # its dpo is the fixture's
    for method in methods:
        command = (method, "--model", "diffusers:base", "--out", method)
        code = fix(tmp_path, *command, *FIX, *options(kind), "--gradient-checkpointing")
        assert code == 0, (tmp_path / "err").read_text()
    for name in ("diffusers:base", *methods):
        done = cli("run", "--model", name, *RUN, *options(kind), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    done = cli("compare", "base", *methods, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Verdict: " in done.stdout


def test_what_is_not_trained_is_refused_before_anything_is_drawn(tiny_pipelines: Tiny) -> None:
    for more, words in (
        ({"lora": 0}, "only a LoRA adapter is trained; give --lora 32, or train all of it with"),
        ({"fsdp": True}, "--fsdp: each process holds all of model tiny-qwen"),
        ({"train": "language-model"}, "--train language-model: model tiny-qwen has generation"),
    ):
        given = {"train": "generation", **more}
        name = str(tiny_pipelines["qwen"])
        settings = FixSettings(method="sft", out=Path("unused"), model=name, **given)  # type: ignore[arg-type]
        with pytest.raises(GapbenchError) as caught:
            base_model(settings, "cpu", "float32")
        assert words in str(caught.value)


# -- training ------------------------------------------------------------------------------------


@each_kind
def test_all_that_is_trained_has_a_gradient(tiny_pipelines: Tiny, kind: str) -> None:
    """As several processes require."""
    model = load_model(str(tiny_pipelines[kind]), "cpu", "float32", pipelines.recipe(kind))
    (drawing,) = model.generate(["a star"], [1])
    settings = FixSettings(method="sft", out=Path("unused"), lora=4, train="generation")
    loss = ImageLoss(model, prepare(model, settings))
    given = torch.tensor([False, True]), torch.tensor([1, 2])
    assert drawing.latents is not None
    loss(["a red circle", "a star"], np.stack([drawing.latents] * 2), *given)["loss"].backward()
    slopes = {n: p.grad for n, p in loss.named_parameters() if p.requires_grad}
    assert [name for name, slope in slopes.items() if slope is None] == []
    assert all(".lora_" in name for name in slopes)


@torch.no_grad()
def losses_of(model: Any, latents: Any) -> Any:
    """Mean losses at times and noises that no training saw, (B,)."""
    many = [model.generation_loss(PROMPTS, latents, range(s, s + 8)) for s in range(0, 32, 8)]
    return np.mean([losses.numpy() for losses in many], 0)


def latents_for(model: Any, seed: int) -> Any:
    """(8, ...) of one value in each channel, as an image of one colour has them."""
    (drawing,) = model.generate(PROMPTS[:1], [1])
    *_, channels = drawing.latents.shape
    values = np.random.default_rng(seed).standard_normal((8, 1, 1, channels), np.float32)
    return 2 * values * np.ones_like(drawing.latents)


@pytest.mark.parametrize("kind", ["qwen", "qwen21"])
def test_training_on_eight_latents_lowers_their_loss(
    tiny_pipelines: Tiny, kind: str, tmp_path: Path
) -> None:
    start = load_model(str(tiny_pipelines[kind]), "cpu", "float32", pipelines.recipe(kind))
    latents = latents_for(start, 1)
    before = losses_of(start, latents)
    model = trained(
        tiny_pipelines[kind], tmp_path, PROMPTS, {"drawing": latents}, method="sft", epochs=20,
        learning_rate=2e-2, prompt_dropout=0.0, train="generation", lora=8,
        set=pipelines.recipe(kind),
    )  # fmt: skip
    after = losses_of(model, latents)
    assert after.mean() < 0.8 * before.mean(), (before, after)


@pytest.mark.parametrize("kind", ["qwen", "qwen21"])
def test_dpo_orders_a_planted_preference(tiny_pipelines: Tiny, kind: str, tmp_path: Path) -> None:
    start = load_model(str(tiny_pipelines[kind]), "cpu", "float32", pipelines.recipe(kind))
    chosen, rejected = (latents_for(start, seed) for seed in (1, 2))
    before = losses_of(start, rejected) - losses_of(start, chosen)
    model = trained(
        tiny_pipelines[kind], tmp_path, PROMPTS,
        {"drawing_chosen": chosen, "drawing_rejected": rejected}, method="dpo", epochs=12,
        learning_rate=1e-2, samples=2, prompt_dropout=0.0, train="generation", lora=8,
        set=pipelines.recipe(kind),
    )  # fmt: skip
    after = losses_of(model, rejected) - losses_of(model, chosen)
    assert (after > before).all(), (before, after)
