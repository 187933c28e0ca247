"""Which adapter a Show-o checkpoint takes, by name or by folder."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import Any

from gapbench.files import read_object
from gapbench.models.entry import Entry, changed, pick_device, weights
from gapbench.models.registry import MODELS
from gapbench.models.showo.adapter import ROLES, ShowoModel
from gapbench.models.showo.draw import Recipe
from gapbench.types import GapbenchError


def make(name: str, entry: Entry, recipe: Mapping[str, Any], device: str, dtype: str) -> ShowoModel:
    """The adapter of a named model, whose checkpoints are in the hub's cache."""
    device = pick_device(name, entry, device)
    folders = {role: weights(name, role, entry.needs[role]) for role in ROLES}
    origin = " ".join(f"{entry.needs[role].repo}@{f.name}" for role, f in folders.items())
    return ShowoModel(name, folders, Recipe(**recipe), device, dtype, origin)


def from_folder(
    name: str, folder: Path, recipe: Mapping[str, object], device: str, dtype: str
) -> ShowoModel:
    """The adapter of a checkpoint's folder, with some keys of its recipe changed.

    The picture tokenizer and the text tokenizer are in its vq/ and text/, as ShowoModel.save writes
    them, else where `gapbench prepare --model show-o` puts them. Raises GapbenchError without them.
    """
    config = read_object(folder / "config.json")
    count = config.get("num_vq_tokens")
    if not isinstance(count, int) or count < 1 or isqrt(count) ** 2 != count:
        raise GapbenchError(
            f"{folder / 'config.json'}: num_vq_tokens is {count!r}, must be a square number"
        )
    side = isqrt(count)
    known = MODELS["show-o-256" if side == 16 else "show-o"]
    folders = {
        role: folder / role if (folder / role).is_dir() else weights("show-o", role, item)
        for role, item in ((role, known.needs[role]) for role in ROLES[1:])
    }
    folders["model"] = folder
    whole = changed(name, {**known.recipe, "side": side}, recipe)
    return ShowoModel(name, folders, Recipe(**whole), device, dtype)
