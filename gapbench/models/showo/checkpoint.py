"""Show-o's checkpoints: Phi and the picture tokenizer, read and written in the published layout.

The core is transformers' Phi with the norms of queries and keys that upstream always switches on
(showlab/Show-o 45a5a2d, models/phi.py, PhiForCausalLM), under names that begin with "showo.", as in
models/modeling_showo.py. Its sizes are those of Phi-1.5's own config.json, beside the tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from gapbench.files import first_line
from gapbench.models.checkpoint import load_pretrained, tensors_of
from gapbench.models.showo.vq import MagvitV2, built
from gapbench.types import GapbenchError

PREFIX: Final = "showo."
WEIGHTS: Final = "pytorch_model.safetensors"
"""What upstream's own code looks for first (models/modeling_utils.py)."""


def load_magvit(who: str, folder: Path, files: Sequence[Path], dtype: str, device: str) -> MagvitV2:
    """The picture tokenizer, frozen. Raises GapbenchError where it is broken or something else."""
    tensors = _tensors(who, folder, files)
    try:
        made = built(tensors)
    except (KeyError, ValueError, IndexError) as error:
        raise GapbenchError(
            f"{who}: {folder} does not hold the MAGVIT-v2 of Show-o ({first_line(error)})"
        ) from error
    return made.requires_grad_(False).eval().to(device, getattr(torch, dtype))


def load_phi(
    who: str, folder: Path, files: Sequence[Path], text: Path, size: int, dtype: str, device: str
) -> Any:
    """transformers' PhiForCausalLM for a vocabulary of `size`; `text` holds its other settings.

    Raises GapbenchError where the weights are broken, incomplete, or of another model.
    """
    from transformers import PhiConfig

    tensors = _tensors(who, folder, files)
    rows = tensors.get(f"{PREFIX}lm_head.bias")
    if rows is None or len(rows) != size:
        raise GapbenchError(
            f"{who}: {folder} holds {'no' if rows is None else len(rows)} tokens, and text, marks, "
            f"codes and mask are {size}: they do not belong together"
        )
    config = PhiConfig.from_pretrained(text, local_files_only=True)
    config.update({"vocab_size": size, "qk_layernorm": True, "tie_word_embeddings": False})
    phi = {n.removeprefix(PREFIX): t for n, t in tensors.items() if n.startswith(PREFIX)}
    kind = "PhiForCausalLM"
    network = load_pretrained(who, kind, folder, dtype, device, config=config, tensors=phi)
    own = {f"{PREFIX}{name}" for name in network.state_dict()}
    if left := sorted(tensors.keys() - own):
        raise GapbenchError(
            f"{who}: {folder} holds {len(left)} tensors that Show-o does not have, {left[0]} among "
            "them; is it another model?"
        )
    return network


def write(folder: Path, config: Mapping[str, Any], network: Any, magvit: MagvitV2) -> None:
    """Write both, the picture tokenizer into vq/."""
    from safetensors.torch import save_file

    weights = {f"{PREFIX}{name}": tensor for name, tensor in network.state_dict().items()}
    for place, tensors, facts in (
        (folder, weights, config),
        (folder / "vq", magvit.state_dict(), {"_class_name": "MAGVITv2"}),
    ):
        place.mkdir(parents=True, exist_ok=True)
        (place / "config.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        kept = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        save_file(kept, place / WEIGHTS, metadata={"format": "pt"})


def _tensors(who: str, folder: Path, files: Sequence[Path]) -> dict[str, Tensor]:
    try:
        return tensors_of(files)
    except Exception as error:  # torch and safetensors raise many kinds
        raise GapbenchError(f"{who}: cannot load {folder}: {first_line(error)}") from error
