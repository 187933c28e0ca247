"""A checkpoint's folder: its files, and its weights in a class of transformers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import torch

from gapbench.files import first_line, read_object
from gapbench.models import torchvision_shim
from gapbench.types import GapbenchError


def model_type(folder: Path) -> str | None:
    """What a folder's config.json says it holds."""
    found = read_object(folder / "config.json").get("model_type")
    return found if isinstance(found, str) else None


def hub_weights(folder: Path) -> list[Path]:
    """A folder's safetensors files."""
    return sorted(folder.glob("*.safetensors"))


def require_weights(who: str, folder: Path) -> list[Path]:
    """`hub_weights`. Raises GapbenchError where there are none."""
    files = hub_weights(folder)
    if not files:
        raise GapbenchError(
            f"{who}: no .safetensors file in {folder}; other weight formats are not loaded, save "
            "the checkpoint with save_pretrained first"
        )
    return files


FIX_RECORD: Final = "fix.json"
"""How `gapbench fix` made a checkpoint: beside the weights, and no part of the model."""


def settings_files(folder: Path) -> list[Path]:
    """A folder's settings: what is not weights and changes what a model does."""
    return sorted(
        file
        for file in folder.iterdir()
        if file.suffix in {".json", ".jinja"} and file.is_file() and file.name != FIX_RECORD
    )


def load_pretrained(who: str, kind: str, folder: Path, dtype: str, device: str) -> Any:
    """The class `kind` of transformers with a folder's safetensors, in eval mode on a device.

    Raises GapbenchError where the weights are broken, of another shape, or incomplete.
    """
    torchvision_shim.ensure()  # transformers imports torchvision where it is installed
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model, info = getattr(transformers, kind).from_pretrained(
            folder, dtype=getattr(torch, dtype), local_files_only=True, output_loading_info=True
        )
        model = model.to(device).eval()
    except Exception as error:  # safetensors, torch and transformers raise many kinds
        raise GapbenchError(f"{who}: cannot load {folder}: {first_line(error)}") from error
    refuse_missing(who, folder, info["missing_keys"])
    return model


def refuse_missing(who: str, folder: Path, missing: Iterable[str]) -> None:
    """Raises GapbenchError where tensors are missing: they would be filled with random numbers."""
    if names := sorted(missing):
        raise GapbenchError(
            f"{who}: the weights in {folder} lack {len(names)} tensors, {names[0]} among them"
        )
