"""`gapbench fix` of a tiny BAGEL, from end to end, and what training does to it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bagels
import numpy as np
import pytest
import torch
from datasets import load_from_disk
from safetensors.torch import load_file
from training import trained

from gapbench import GapbenchError, load_model, open_run
from gapbench.explain.sides import _require
from gapbench.fix.losses import ImageLoss
from gapbench.fix.network import prepare
from gapbench.fix.settings import FixSettings
from gapbench.models.bagel import checkpoint

Cli = Callable[..., subprocess.CompletedProcess[str]]
DRAW = ("--set", "steps=3", "--device", "cpu")
RUN = ("--tasks", "shapes/colors", "--limit", "3", "--samples", "1", *DRAW)
FIX = (
    "--prompts", "shapes:train/colors", "--limit", "4", "--samples", "3", "--check", "4",
    "--despite-check", "--accept", "above:0", "--margin", "0", "--epochs", "2", "--batch-size", "4",
    "--learning-rate", "1e-3", "--save-steps", "1", *DRAW,
)  # fmt: skip
LATENTS = (bagels.CHANNELS, 8, 8)


@pytest.fixture(scope="module")
def fixed(fix: Any, tiny_bagel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished, undisturbed dpo of all weights in `fixed`."""
    folder = tmp_path_factory.mktemp("fixed")
    shutil.copytree(tiny_bagel, folder / "base")
    code = fix(folder, "dpo", "--model", "base", "--out", "fixed", "--lora", "0", *FIX)
    assert code == 0, (folder / "err").read_text()
    return folder


def test_what_dpo_saves_is_a_bagel_in_the_published_layout(fixed: Path, cli: Cli) -> None:
    record = json.loads((fixed / "fixed/fix.json").read_text())
    assert record["done"]
    assert record["curves"][0]["dpo"] == pytest.approx(np.log(2), abs=1e-4)
    before, after = (load_file(fixed / name / checkpoint.WEIGHTS) for name in ("base", "fixed"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.startswith("language_model.model.") for name in changed} == {True}
    assert any("_moe_gen" in name for name in changed)
    for command in (("run", "--model", "base", *RUN), ("run", "--model", "fixed", *RUN)):
        done = cli(*command, cwd=fixed)
        assert done.returncode == 0, done.stderr
    done = cli("compare", "base", "fixed", cwd=fixed)
    assert done.returncode == 0, done.stderr
    assert "## Before and after\n\nNot compared" not in (fixed / "fixed/README.md").read_text()


def test_the_training_set_holds_the_latents_that_were_drawn(fixed: Path) -> None:
    rows = load_from_disk(fixed / "fixed/data")
    [path] = [p for p in (fixed / "candidates").iterdir() if (p / "run.json").exists()]
    run = open_run(path).folder
    drawn = {
        (text, seed): run.latents(generation.latents)
        for (text, seed), generation in run.generations().items()
        if generation.latents
    }
    assert len(rows) == 4
    for row in rows.with_format("numpy"):
        for end in ("_chosen", "_rejected"):
            found = row[f"latents{end}"]
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, drawn[row["prompt"], int(row[f"seed{end}"])])
    card = (fixed / "fixed/data/README.md").read_text()
    assert "| latents_chosen, latents_rejected | what the picture was decoded from, (ch" in card
    assert "tokens" not in card


def test_a_fix_that_was_killed_ends_in_the_same_weights(
    fixed: Path, fix: Any, start: Any, end: Any, wait_until: Any, tmp_path: Path
) -> None:
    for name in ("base", "candidates"):
        shutil.copytree(fixed / name, tmp_path / name)
    command = ("dpo", "--model", "base", "--out", "fixed", "--lora", "0", *FIX)
    process = start(tmp_path, "fix", *command)
    trained = tmp_path / "fixed/work/phase-0/checkpoint-1/trainer_state.json"
    wait_until(trained.exists, process)
    process.kill()
    assert end(process) == -signal.SIGKILL
    assert fix(tmp_path, *command) == 0, (tmp_path / "err").read_text()
    one, other = (load_file(f / "fixed" / checkpoint.WEIGHTS) for f in (fixed, tmp_path))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_an_adapter_draws_as_the_merged_model(fixed: Path, fix: Any, tmp_path: Path) -> None:
    """Of c-sft, on the candidates that were drawn for another fix."""
    for name in ("base", "candidates"):
        shutil.copytree(fixed / name, tmp_path / name)
    more = ("--lora", "4", "--replay-at", "1", "--accept", "above:0.235")
    code = fix(tmp_path, "c-sft", "--model", "base", "--out", "low", *FIX, *more)
    assert code == 0, (tmp_path / "err").read_text()
    [replay] = json.loads((tmp_path / "low/fix.json").read_text())["replays"]
    assert replay["pool"] > 0
    names = ("low/adapter", "low", "base")
    adapted, merged, base = (
        load_model(str(tmp_path / name), "cpu", "float64", {"steps": 3}) for name in names
    )
    assert len({model.fingerprint for model in (adapted, merged, base)}) == 3
    drawn = [m.generate(["a red circle"], [3])[0].latents for m in (adapted, merged, base)]
    np.testing.assert_allclose(drawn[0], drawn[1], atol=1e-4)
    assert not np.allclose(drawn[0], drawn[2], atol=1e-3)


@pytest.mark.parametrize("lora", [0, 4])
@pytest.mark.parametrize("part", ["language-model", "generation"])
def test_all_that_is_trained_has_a_gradient(tiny_bagel: Path, lora: int, part: Any) -> None:
    """As several processes require."""
    model = load_model(str(tiny_bagel), "cpu", "float32")
    settings = FixSettings(method="sft", out=Path("unused"), lora=lora, train=part)
    loss = ImageLoss(model, prepare(model, settings))
    drawings = np.ones((2, *LATENTS), np.float32)
    given = torch.tensor([False, True]), torch.tensor([1, 2])
    loss(["a red circle", "a star"], drawings, *given)["loss"].backward()
    trained = {n: p.grad for n, p in loss.named_parameters() if p.requires_grad}
    assert [name for name, slope in trained.items() if slope is None] == []
    named = "\n".join(trained)
    assert ("vae2llm" in named) == (part == "generation")
    assert all(name in named for name in ("0.mlp.", "1.mlp_moe_gen.", "1.self_attn.k_proj."))


def test_explain_says_that_it_has_no_likelihood(tiny_bagel: Path) -> None:
    with pytest.raises(GapbenchError, match="is trained by a loss that is no likelihood"):
        _require(load_model(str(tiny_bagel), "cpu"))


PROMPTS = ["red", "blue", "green", "a circle", "two stars", "three dogs", "one", "score 0"]


@torch.no_grad()
def losses_of(model: Any, latents: Any) -> Any:
    """Mean losses at times and noises that no training saw, (B,)."""
    many = [model.generation_loss(PROMPTS, latents, range(s, s + 8)) for s in range(0, 320, 8)]
    return np.mean([losses.numpy() for losses in many], 0)


def test_training_on_eight_latents_lowers_their_loss_and_draws_them_back(
    tiny_bagel: Path, tmp_path: Path
) -> None:
    signs = [
        [2 if number >> bit & 1 else -2 for bit in range(bagels.CHANNELS)] for number in range(8)
    ]
    latents = np.array(signs, np.float32)[:, :, None, None] * np.ones(LATENTS[1:], np.float32)
    before = losses_of(load_model(str(tiny_bagel), "cpu", "float32"), latents)
    model = trained(
        tiny_bagel, tmp_path, PROMPTS, {"drawing": latents}, method="sft", epochs=240,
        learning_rate=1e-2, prompt_dropout=0.0, train="generation",
        set={"steps": 20, "cfg_text_scale": 1.0},
    )  # fmt: skip
    after = losses_of(model, latents)
    assert (after < 0.3 * before).all(), (before, after)
    drawn = np.stack([drawing.latents for drawing in model.generate(PROMPTS, range(8))])
    gaps = ((drawn[:, None] - latents[None]) ** 2).mean((2, 3, 4))
    assert gaps.argmin(1).tolist() == list(range(8))
    assert gaps.diagonal().max() < 0.5


def test_dpo_orders_a_planted_preference(tiny_bagel: Path, tmp_path: Path) -> None:
    chosen, rejected = np.random.default_rng(1).standard_normal((2, 8, *LATENTS), np.float32)
    start = load_model(str(tiny_bagel), "cpu", "float32")
    before = losses_of(start, rejected) - losses_of(start, chosen)
    model = trained(
        tiny_bagel, tmp_path, PROMPTS, {"drawing_chosen": chosen, "drawing_rejected": rejected},
        method="dpo", epochs=30, learning_rate=3e-3, samples=2, beta=0.1, prompt_dropout=0.0,
    )  # fmt: skip
    after = losses_of(model, rejected) - losses_of(model, chosen)
    assert (after - before > 5).all(), (before, after)
