"""A tiny BAGEL against numbers that its authors' code gives for the same files and noise.

`scripts/parity_bagel.py` writes upstream.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bagels
import numpy as np
import pytest
import torch
from PIL import Image

from gapbench import load_model
from gapbench.models.bagel.adapter import BagelModel

UPSTREAM: dict[str, Any] = json.loads((Path(__file__).parent / "upstream.json").read_text())
PROMPT, QUESTION = "a red circle and a blue square", "is the circle red?"
ANSWERS = (" The score is 0", " The score is 1")
RECIPES: dict[str, dict[str, object]] = {
    "plain": {"cfg_text_scale": 1.0},
    "global": {},
    "channel": {"cfg_img_scale": 1.5, "cfg_renorm_type": "channel"},
    "text_channel": {"cfg_img_scale": 2.0, "cfg_renorm_type": "text_channel"},
    "think": {"cfg_img_scale": 1.5, "think": True, "think_tokens": 8},
}


def made(folder: Path, dtype: str = "float32", **recipe: object) -> BagelModel:
    model = load_model(str(folder), device="cpu", dtype=dtype, recipe=recipe)
    assert isinstance(model, BagelModel)
    return model


def picture(wide: int, high: int) -> Image.Image:
    levels = np.arange(high * wide * 3, dtype=np.uint32) * 2654435761 >> 24 & 255
    return Image.fromarray(levels.astype(np.uint8).reshape(high, wide, 3))


@pytest.mark.parametrize("way", RECIPES)
def test_latents_and_pixels_of_a_whole_drawing_are_upstreams(tiny_bagel: Path, way: str) -> None:
    wanted = UPSTREAM["drawn"][way]
    model = made(tiny_bagel, steps=10, **RECIPES[way])
    # Others are in its block: upstream draws it alone.
    drawing = model.generate(["a", PROMPT, f"{PROMPT} " * 12], [1, 7, 2])[1]
    assert drawing.latents is not None
    side, patch = bagels.SIDE, bagels.LATENT
    cut = torch.tensor(wanted["latents"]).view(side, side, patch, patch, -1)
    latents = cut.permute(4, 0, 2, 1, 3).reshape(-1, side * patch, side * patch).numpy()
    np.testing.assert_allclose(drawing.latents, latents, rtol=0, atol=1e-5)
    pixels = np.array(wanted["pixels"]).reshape(bagels.SIZE, bagels.SIZE, 3)
    gaps = np.abs(np.asarray(drawing.image).astype(int) - pixels)
    assert gaps.max() <= 1  # a rounding may cross a level
    assert (gaps > 0).mean() < 0.01
    assert ((pixels > 0) & (pixels < 255)).mean() > 0.05
    if way == "think":
        assert model.plan([PROMPT])[PROMPT] == wanted["plan"]
        assert drawing.effective_prompt is not None
        assert drawing.effective_prompt.endswith(
            f"{PROMPT}<|im_end|><|im_start|>{wanted['plan']}<|im_end|>"
        )
    else:
        assert drawing.effective_prompt == f"<|im_start|>{PROMPT}<|im_end|>"


def test_log_probabilities_and_replies_are_upstreams(tiny_bagel: Path) -> None:
    model = made(tiny_bagel)
    images = [picture(*case["size"]) for case in UPSTREAM["asked"]]
    questions = [QUESTION] * len(images)
    found = model.judge(images, questions, ANSWERS)
    wanted = [case["odds"] for case in UPSTREAM["asked"]]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5)
    said = model.reply(images, questions)
    for text, case in zip(said, UPSTREAM["asked"], strict=True):
        assert text.startswith(case["reply"].strip())


def test_the_training_loss_is_upstreams(tiny_bagel: Path) -> None:
    model = made(tiny_bagel)
    drawing = made(tiny_bagel, steps=10, cfg_text_scale=1.0).generate([PROMPT], [7])[0]
    assert drawing.latents is not None
    seeds = [int(seed) for seed in UPSTREAM["losses"]]
    both = np.stack([drawing.latents] * len(seeds))
    found = model.generation_loss([PROMPT] * len(seeds), both, seeds)
    wanted = list(UPSTREAM["losses"].values())
    np.testing.assert_allclose(found.detach().numpy(), wanted, rtol=1e-5)
