"""LoRA adapter folders (arXiv 2106.09685, in peft's layout) merged into a loaded model."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Final

from gapbench.files import digest, first_line, read_object
from gapbench.models import torchvision_shim
from gapbench.models.entry import DIFFUSERS
from gapbench.models.registry import MODELS
from gapbench.types import GapbenchError

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"


def base_of(folder: Path) -> str:
    """The model that an adapter was trained on, as `load_model` takes it: a folder or a name.

    Raises GapbenchError where it is neither a folder that is here nor a known model.
    """
    given = read_object(folder / CONFIG).get("base_model_name_or_path")
    if isinstance(given, str) and given in MODELS:
        return given
    for name, entry in MODELS.items():
        if any(given == item.repo for item in entry.needs.values()):
            return name
    if isinstance(given, str) and given.startswith(DIFFUSERS):
        return given
    for place in (folder / str(given), Path(str(given))):
        if given and any((place / file).is_file() for file in ("config.json", "model_index.json")):
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


def write_blank(network: Any, folder: Path) -> None:
    """Write an adapter on one linear layer of a network that changes nothing."""
    from peft import LoraConfig, get_peft_model

    linear = (n for n, part in network.named_modules() if type(part).__name__ == "Linear")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's, about transformers
        get_peft_model(network, LoraConfig(target_modules=[next(linear)])).save_pretrained(
            str(folder)
        )


def merge(who: str, model: Any, folder: Path) -> None:
    """Merge an adapter into a model's weights, in place.

    Raises GapbenchError where it is broken, is of another kind than LoRA, or does not fit the
    model tensor by tensor: peft itself would leave out what is over and fill in what is missing.
    """
    torchvision_shim.ensure()  # peft imports transformers, which imports torchvision
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import SafetensorError, safe_open

    kind = read_object(folder / CONFIG).get("peft_type", "LORA")
    if kind != "LORA":
        raise GapbenchError(f"{who}: {folder} is a {kind} adapter, only LORA is known")

    def misfit(what: str) -> GapbenchError:
        return GapbenchError(
            f"{who}: {folder} does not fit the base ({what}); was it trained on another model?"
        )

    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            names = set(file.keys())
        with warnings.catch_warnings():  # of what is refused below, and of names going away
            warnings.simplefilter("ignore")
            adapted = PeftModel.from_pretrained(model, folder, torch_device=str(model.device))
            wanted = set(get_peft_model_state_dict(adapted))
            if wrong := sorted(names ^ wanted):
                raise misfit(f"{wrong[0]} is {'missing' if wrong[0] in wanted else 'unknown'}")
            adapted.merge_and_unload()
    except RuntimeError as error:  # torch's, of tensors of another shape
        raise misfit(str(error).splitlines()[-1].strip()) from error
    except (KeyError, TypeError, ValueError, AttributeError, SafetensorError) as error:
        raise GapbenchError(f"{who}: {folder} is a broken adapter ({first_line(error)})") from error
