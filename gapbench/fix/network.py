"""A model made ready to be trained, and what training changed put back into one."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any, Final, cast

import torch
from torch import nn

from gapbench.fix.settings import FixSettings
from gapbench.models import from_anywhere, load_model
from gapbench.models.base import Model, require
from gapbench.types import GapbenchError

NEEDS: Final = ("generate", "judge_logits", "generation_loss", "train")
KEEPS: Final = ("image_tokens", "image_latents")
"""One of these is needed too."""
PREFIX: Final = "network."
"""Of names in ImageLoss."""
_STORED: Final = re.compile(r"\.(lora_[AB])\.weight$")
"""Of names in a file of peft's, which leaves out the adapter's."""


def base_model(settings: FixSettings, device: str, dtype: str) -> Model:
    """The model to fix, not loaded. Raises GapbenchError naming what it lacks."""
    model = load_model(settings.model, device, dtype, settings.set)
    require(model, NEEDS, "gapbench fix cannot train it")
    if not model.capabilities & set(KEEPS):
        raise GapbenchError(
            f"model {model.name} lacks {' and '.join(KEEPS)}: gapbench fix trains on the tokens or "
            "the latents of its drawings; an adapter that keeps them has to say so"
        )
    if settings.train not in model.parts:
        raise GapbenchError(
            f"--train {settings.train}: model {model.name} has {', '.join(model.parts)}"
        )
    if model.adapter_only and not settings.lora:
        raise GapbenchError(
            f"--lora 0: of model {model.name} only a LoRA adapter is trained; give --lora 32, or "
            "train all of it with diffusers' own scripts and give that folder to --model"
        )
    if model.adapter_only and settings.fsdp:
        raise GapbenchError(
            f"--fsdp: each process holds all of model {model.name} and trains its adapter; leave "
            "it out"
        )
    return model


def mixed(settings: FixSettings) -> bool:
    """Whether training computes in bfloat16."""
    return torch.cuda.is_available() if settings.bf16 is None else settings.bf16


def train_dtype(settings: FixSettings) -> str:
    """Of the weights: frozen ones under LoRA may be short, trained ones may not."""
    return "bfloat16" if mixed(settings) and settings.lora else "float32"


def prepare(model: Model, settings: FixSettings) -> nn.Module:
    """The model's network with all but what is trained frozen, and with LoRA where asked for.

    Dropout is off, also where a checkpoint's settings name some: losses would be random, the
    reference's too.
    """
    network, part = model.network, re.compile(model.parts[settings.train])
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if "attention_dropout" in vars(module):
            vars(module)["attention_dropout"] = 0.0
    network.requires_grad_(False)
    if settings.gradient_checkpointing:
        enable: Any = getattr(network, "activation_checkpointing_enable", None)
        enable = enable or getattr(network, "gradient_checkpointing_enable", None)
        if enable:
            enable({"use_reentrant": False})
        else:
            cast(Any, network).enable_gradient_checkpointing()  # diffusers' name; never reentrant
    if not settings.lora:
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(bool(part.fullmatch(name)))
        return network
    from peft import LoraConfig, get_peft_model

    linear = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and part.fullmatch(f"{name}.weight")
    ]
    torch.manual_seed(settings.seed)
    config = LoraConfig(
        r=settings.lora,
        lora_alpha=2 * settings.lora,
        target_modules="|".join(map(re.escape, linear)),
    )
    with warnings.catch_warnings():  # peft asks transformers by names that are going away
        warnings.simplefilter("ignore", FutureWarning)
        adapted: nn.Module = get_peft_model(network, config)
    config.base_model_name_or_path = from_anywhere(settings.model)
    return adapted


def load_trained(network: nn.Module, file: Path, mend: str = "") -> None:
    """Put what a phase trained, or peft stored, into a prepared network. Raises GapbenchError if it
    does not fit; it says to `mend`, or to train the phase again."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        named = {name.removeprefix(PREFIX): value for name, value in load_file(file).items()}
        state = {_STORED.sub(r".\1.default.weight", name): value for name, value in named.items()}
        loaded = network.load_state_dict(state, strict=False)
        if loaded.unexpected_keys:
            raise KeyError(loaded.unexpected_keys[0])
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        mend = mend or f"remove {file.parent.parent} and run the same command again"
        raise GapbenchError(f"{file}: cannot be put into the model ({error}); {mend}") from error


def export(settings: FixSettings, trained: Path, folder: Path, device: str) -> None:
    """Write the model with what was trained as a checkpoint into `folder`, and the adapter, where
    there is one, into `folder`/adapter."""
    model = base_model(settings, device, train_dtype(settings))
    network: Any = prepare(model, settings)
    load_trained(network, trained)
    folder.mkdir(parents=True, exist_ok=True)
    if settings.lora:
        network.save_pretrained(folder / "adapter", save_embedding_layers=False)
        (folder / "adapter" / "README.md").unlink(missing_ok=True)  # a template with blanks
        network.merge_and_unload()
    model.save(folder)
    model.release()
