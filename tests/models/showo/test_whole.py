"""Show-o through whole commands, and what training does to it."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training import trained

import gapbench
from gapbench import load_model

Cli = Callable[..., subprocess.CompletedProcess[str]]
DRAW = ("--set", "steps=4", "--device", "cpu")
RUN = ("--tasks", "shapes", "--limit", "3", "--samples", "2", *DRAW)
FIX = (
    "--prompts", "shapes:train/colors", "--limit", "4", "--samples", "3", "--check", "4",
    "--despite-check", "--accept", "above:0", "--margin", "0", "--epochs", "2", "--batch-size", "4",
    "--learning-rate", "1e-3", *DRAW,
)  # fmt: skip


def test_run_fix_run_and_compare(cli: Cli, tiny_showo: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_showo, base)
    commands = [("run", "--model", "base", *RUN)]
    for method, lora in (("sft", "4"), ("dpo", "0")):
        commands += [
            ("fix", method, "--model", "base", "--out", method, "--lora", lora, *FIX),
            ("run", "--model", method, *RUN),
            ("compare", "base", method),
        ]
    for command in commands:
        done = cli(*command)
        assert done.returncode == 0, done.stderr
    before: Any = load_model(str(base), "cpu", "float64")
    old = before.network.state_dict()
    for method in ("sft", "dpo"):
        record = json.loads((tmp_path / method / "fix.json").read_text())
        assert record["done"]
        assert all(np.isfinite(point["loss"]) for point in record["curves"])
        after: Any = load_model(str(tmp_path / method), "cpu", "float64")
        assert after.fingerprint != before.fingerprint
        new = after.network.state_dict()
        changed = {name for name in old if not torch.equal(old[name], new[name])}
        assert changed
        assert all(name.startswith("model.") for name in changed)
    adapted = load_model(str(tmp_path / "sft/adapter"), "cpu", "float64", {"steps": 4})
    merged = load_model(str(tmp_path / "sft"), "cpu", "float64", {"steps": 4})
    one, two = (m.generate(["a red circle"], [3])[0].tokens for m in (adapted, merged))
    assert np.array_equal(one, two)


def test_check_model_finds_nothing(cli: Cli, tiny_showo: Path) -> None:
    done = cli("check-model", str(tiny_showo), *DRAW)
    assert done.returncode == 0, done.stdout
    assert "FAIL" not in done.stdout
    skipped = [line.split(": ")[1] for line in done.stdout.splitlines() if "skip" in line]
    lacks = {f"it lacks {name}" for name in ("text", "gradients", "embeddings", "image_latents")}
    assert set(skipped) == {*lacks, "its recipe has no temperature"}


def test_a_run_that_was_stopped_ends_as_one_that_was_not(tiny_showo: Path, tmp_path: Path) -> None:
    def run(out: str, limit: int, batch: int) -> Any:
        model = load_model(str(tiny_showo), "cpu", recipe={"steps": 4})
        return gapbench.run(
            model, "shapes", limit=limit, samples=2, batch_size=batch, out=tmp_path / out
        )

    run("parts", 2, 3)
    grown, whole = run("parts", 5, 4), run("whole", 5, 1)
    images = [
        {key: (g.image, g.tokens) for key, g in each.folder.generations().items()}
        for each in (grown, whole)
    ]
    assert images[0] == images[1]
    assert len(images[0]) == 10
    odds = [{key: v.p_yes for key, v in each.folder.verdicts().items()} for each in (grown, whole)]
    assert odds[0].keys() == odds[1].keys()
    for key, p_yes in odds[0].items():
        assert p_yes == pytest.approx(odds[1][key], abs=1e-9)


def test_explain_says_what_it_lacks(tiny_showo: Path) -> None:
    from gapbench.explain.sides import _require

    with pytest.raises(gapbench.GapbenchError, match="is trained by a loss that is no likelihood"):
        _require(load_model(str(tiny_showo), "cpu"))


# -- training ----------------------------------------------------------------------------------

NAMED = [f"a {color} {shape}" for color in ("red", "blue") for shape in ("star", "circle")]
EIGHT = [*NAMED, *(f"two {text[2:]}s" for text in NAMED)]


@torch.no_grad()
def losses_of(model: Any, tokens: Any) -> Any:
    """Mean losses over masks that no training saw, (B,), of the first prompts."""
    many = len(tokens)
    found = [
        model.generation_loss(EIGHT[:many], tokens, range(s, s + many))
        for s in range(0, 40 * many, many)
    ]
    return np.mean(found, 0)


def test_sft_on_four_images_draws_them_back(tiny_showo: Path, tmp_path: Path) -> None:
    recipe = {"guidance": 0.0, "steps": 12}
    wanted = np.random.default_rng(0).integers(0, 64, (4, 36)).astype(np.int32)
    before = losses_of(load_model(str(tiny_showo), "cpu", "float32"), wanted)
    model = trained(
        tiny_showo, tmp_path, NAMED, {"drawing": wanted}, method="sft", epochs=300,
        learning_rate=1e-2, prompt_dropout=0.0, set=recipe,
    )  # fmt: skip
    after = losses_of(model, wanted)
    assert (after < 0.1 * before).all(), (before, after)
    drawn = np.stack([drawing.tokens for drawing in model.generate(NAMED, range(4))])
    assert (drawn == wanted).mean() > 0.9


def test_dpo_orders_a_planted_preference(tiny_showo: Path, tmp_path: Path) -> None:
    chosen, rejected = np.random.default_rng(1).integers(0, 64, (2, 8, 36)).astype(np.int32)
    start = load_model(str(tiny_showo), "cpu", "float32")
    before = losses_of(start, rejected) - losses_of(start, chosen)
    model = trained(
        tiny_showo, tmp_path, EIGHT,
        {"drawing_chosen": chosen, "drawing_rejected": rejected},
        method="dpo", epochs=12, learning_rate=1e-3, samples=2, beta=0.1, prompt_dropout=0.0,
    )  # fmt: skip
    after = losses_of(model, rejected) - losses_of(model, chosen)
    assert (after - before > 5).all(), (before, after)
