"""BAGEL's adapter, by name or by folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gapbench.models.bagel import checkpoint
from gapbench.models.bagel.adapter import BagelModel
from gapbench.models.bagel.flow import Recipe
from gapbench.models.entry import Entry, changed, pick_device, weights
from gapbench.models.registry import MODELS


def make(name: str, entry: Entry, recipe: Mapping[str, Any], device: str, dtype: str) -> BagelModel:
    """The adapter of the named model, whose checkpoint is in the hub's cache."""
    device, needed = pick_device(name, entry, device), entry.needs["model"]
    folder = weights(name, "model", needed)
    return BagelModel(name, folder, Recipe(**recipe), device, dtype, f"{needed.repo}@{folder.name}")


def from_folder(
    name: str, folder: Path, recipe: Mapping[str, object], device: str, dtype: str
) -> BagelModel:
    """The adapter of a folder with the published files; a small model draws as large as it can."""
    whole = changed(name, MODELS["bagel"].recipe, recipe)
    if "size" not in recipe:
        largest = checkpoint.geometry(f"model {name}", folder).latent_pixels
        whole["size"] = min(whole["size"], largest)
    return BagelModel(name, folder, Recipe(**whole), device, dtype)
