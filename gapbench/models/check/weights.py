"""Rules about weights: trained, saved, adapted, released."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from gapbench.models import lora, saved_name
from gapbench.models.base import Model
from gapbench.models.check.drawing import PROMPTS, SEEDS, Load, draw, pixels, tolerance
from gapbench.models.check.judging import scores
from gapbench.models.check.rules import Skip, expect


def uses(model: Model) -> None:
    names = [name for name, _ in model.network.named_parameters()]
    for part, pattern in model.parts.items():
        fits = any(re.fullmatch(pattern, name) for name in names)
        expect(fits, f"no parameter's name fits its part {part!r}")
    if model.pair:
        raise Skip("it is a pair")
    before = pixels(draw(model, PROMPTS[:1], SEEDS[:1]))
    model.use(model.network)
    after = pixels(draw(model, PROMPTS[:1], SEEDS[:1]))
    model.release()
    expect(before == after, "with its own network given to use() it draws other images")


def adapts(name: str, load: Load, model: Model) -> None:
    made, adapted = load(name, {}), load(name, {})
    with tempfile.TemporaryDirectory() as folder:
        lora.write_blank(made.network, Path(folder))
        made.release()
        adapted.adapt(Path(folder))
        expect(adapted.fingerprint != model.fingerprint, "an adapter leaves its fingerprint")
        before, after = (pixels(draw(m, PROMPTS, SEEDS)) for m in (model, adapted))
        expect(before == after, "with an adapter that changes nothing it draws other images")
        adapted.release()


def saves(name: str, model: Model, load: Load, pictures: list[Image.Image]) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "saved"
        folder.mkdir()
        model.save(folder)
        for file in folder.rglob("*"):
            pickled = file.suffix in (".bin", ".pt", ".pth", ".pkl")
            expect(not pickled, f"it saved {file.name}, which is pickled: write safetensors")
        saved = saved_name(name, folder)
        again = load(saved, {})
        if dict(again.recipe) != dict(model.recipe):
            again = load(saved, dict(model.recipe))
        before, after = (pixels(draw(m, PROMPTS, SEEDS)) for m in (model, again))
        expect(before == after, "the saved model draws other images")
        if "judge_logits" in model.capabilities:
            apart = np.abs(scores(model, [0, 1], pictures) - scores(again, [0, 1], pictures))
            expect(float(apart.max()) <= tolerance(model), "the saved model judges otherwise")
        again.release()


def returns(model: Model) -> None:
    model.load()
    model.release()
    model.release()
    if "generate" in model.capabilities:
        first = pixels(draw(model, PROMPTS[:1], SEEDS[:1]))
        model.release()
        again = pixels(draw(model, PROMPTS[:1], SEEDS[:1]))
        expect(first == again, "after release() it draws other images")
