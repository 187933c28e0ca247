"""LoRA adapter folders (peft's layout) merged into a loaded model.

W + scale * B A for each pair of matrices; scale is alpha / r, or alpha / sqrt(r) with use_rslora
(arXiv 2106.09685, 2312.03732). What peft saved whole (modules_to_save) replaces the weight.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import torch

from gapbench.models.checkpoint import digest, read_object
from gapbench.models.registry import HUB
from gapbench.types import GapbenchError

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"
UNKNOWN: Final = (
    "use_dora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "trainable_token_indices",
    "lora_bias",
)  # fmt: skip
"""Settings of peft's that change what its tensors mean."""
_PAIR: Final = re.compile(r"(.+)\.lora_([AB])\.weight")


def base_of(folder: Path) -> str:
    """The model that an adapter was trained on, as `load_model` takes it: a folder or a name.

    Raises GapbenchError where it is neither a folder that is here nor a known model.
    """
    given = read_object(folder / CONFIG).get("base_model_name_or_path")
    if isinstance(given, str) and (given in HUB or given == "janus-mini"):
        return given
    for name, entry in HUB.items():
        if any(given == item.repo for item in entry.needs.values()):
            return name
    for place in (folder / str(given), Path(str(given))):
        if given and (place / "config.json").is_file():
            return str(place)
    raise GapbenchError(
        f"{folder / CONFIG}: its base is {given!r}, no folder here and no known model; put the "
        "base's folder, name or hub id into base_model_name_or_path"
    )


def fingerprint(base: str, folder: Path) -> str:
    """Of a base with an adapter on it. Raises GapbenchError where its weights are missing."""
    if not (folder / WEIGHTS).is_file():
        raise GapbenchError(f"{folder} holds {CONFIG} but no {WEIGHTS}")
    return digest(f"lora-1 {base}\n", [folder / CONFIG, folder / WEIGHTS])


@torch.no_grad()
def merge(who: str, model: Any, folder: Path) -> None:
    """Add an adapter to a model's weights, in place.

    Raises GapbenchError where it is of a kind that is not known or does not fit the model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = read_object(folder / CONFIG)
    for key in (
        "use_dora",
        "fan_in_fan_out",
        "rank_pattern",
        "alpha_pattern",
        "trainable_token_indices",
    ):
        if config.get(key):
            raise GapbenchError(f"{who}: {folder / CONFIG} sets {key}, which is not known here")
    if config.get("peft_type", "LORA") != "LORA":
        raise GapbenchError(
            f"{who}: {folder} is a {config['peft_type']} adapter, only LORA is known"
        )
    try:
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
        tensors = load_file(folder / WEIGHTS)
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        raise GapbenchError(f"{who}: {folder} is a broken adapter ({error})") from error
    scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
    weights = dict(model.named_parameters())
    for name, tensor in tensors.items():
        place = name.removeprefix("base_model.model.")
        pair = _PAIR.fullmatch(place)
        if pair and pair[2] == "B":
            continue
        weight = weights.get(f"{pair[1]}.weight" if pair else place)
        try:
            if weight is None:
                raise KeyError(place)
            if pair:
                wide = torch.promote_types(weight.dtype, torch.float32)
                up = tensors[name.replace(".lora_A.", ".lora_B.")].to(weight.device, wide)
                weight.copy_(weight.to(wide) + scale * up @ tensor.to(weight.device, wide))
            else:
                weight.copy_(tensor.expand_as(weight))
        except (KeyError, RuntimeError) as error:
            raise GapbenchError(
                f"{who}: {name} of {folder} does not fit the base; was it trained on another model?"
            ) from error
