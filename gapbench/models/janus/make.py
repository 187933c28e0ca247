"""Which adapter a Janus checkpoint takes, by name or by folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gapbench.files import read_object
from gapbench.models.autoregressive.sampling import Recipe, recipe_of
from gapbench.models.entry import Entry, changed, pick_device, weights
from gapbench.models.janus.adapter import JanusModel
from gapbench.models.janus.t2i_r1 import Reasoning, T2IR1Model
from gapbench.models.registry import JANUS_RECIPE, MODELS


def make(name: str, entry: Entry, recipe: Mapping[str, Any], device: str, dtype: str) -> JanusModel:
    """The adapter of a named model, whose checkpoint is in the hub's cache."""
    device = pick_device(name, entry, device)
    checkpoint = entry.needs["model"]
    folder = weights(name, "model", checkpoint)
    return _made(name, folder, recipe, device, dtype, f"{checkpoint.repo}@{folder.name}")


def from_folder(
    name: str, folder: Path, recipe: Mapping[str, object], device: str, dtype: str
) -> JanusModel:
    """The adapter of a checkpoint's folder, with some keys of its own recipe changed.

    A model that plans says so in its generation_config.json (T2IR1Model.save writes it).
    """
    file = folder / "generation_config.json"
    kept = (read_object(file) if file.exists() else {}).get("generation_kwargs") or {}
    own = asdict(recipe_of(folder)) | kept.get("reasoning", {})
    kinds = MODELS["t2i-r1"].recipe if "reasoning" in kept else JANUS_RECIPE
    new = changed(name, kinds, recipe)
    return _made(name, folder, own | {key: new[key] for key in recipe}, device, dtype, None)


def _made(
    name: str, folder: Path, recipe: Mapping[str, Any], device: str, dtype: str, origin: str | None
) -> JanusModel:
    drawing = {key: value for key, value in recipe.items() if key in JANUS_RECIPE}
    plan = {key: value for key, value in recipe.items() if key not in drawing}
    if not plan:
        return JanusModel(name, folder, Recipe(**drawing), device, dtype, origin)
    return T2IR1Model(name, folder, Recipe(**drawing), Reasoning(**plan), device, dtype, origin)
