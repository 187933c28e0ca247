"""BAGEL's published files: `ema.safetensors`, the autoencoder of FLUX in `ae.safetensors`, the
settings of its two towers, and a tokenizer.

They say little about their sizes, which are read off the tensors. Source: ByteDance-Seed/Bagel
056b5fd, inference.ipynb and modeling/autoencoder.py.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from gapbench.files import first_line, read_object
from gapbench.models.bagel.pictures import Geometry
from gapbench.models.checkpoint import settings_files
from gapbench.types import GapbenchError

if TYPE_CHECKING:
    from gapbench.models.bagel.network import Bagel

WEIGHTS: Final = "ema.safetensors"
AUTOENCODER: Final = "ae.safetensors"
TEXT, VISION = "llm_config.json", "vit_config.json"
SCALE, SHIFT = 0.3611, 0.1159
"""Of latents, for the language model: upstream's constants."""
MARKS: Final = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
"""Tokens before and after a text, before and after a picture."""
_RENAMED: Final = (
    (r"\.mid\.block_(\d)\.", lambda found: f".mid_block.resnets.{int(found[1]) - 1}."),
    (r"\.mid\.attn_1\.norm\.", r".mid_block.attentions.0.group_norm."),
    (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
    (r"\.mid\.attn_1\.proj_out\.", r".mid_block.attentions.0.to_out.0."),
    (r"\.down\.(\d+)\.block\.", r".down_blocks.\1.resnets."),
    (r"\.down\.(\d+)\.downsample\.", r".down_blocks.\1.downsamplers.0."),
    (r"\.up\.(\d+)\.block\.", r".up_blocks.\1.resnets."),
    (r"\.up\.(\d+)\.upsample\.", r".up_blocks.\1.upsamplers.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"\.norm_out\.", ".conv_norm_out."),
)
"""From FLUX's names to those of diffusers, but for the order of the decoder's levels."""


def files(who: str, folder: Path) -> list[Path]:
    """All that a folder's model consists of. Raises GapbenchError where one is missing."""
    needed = [folder / name for name in (WEIGHTS, AUTOENCODER, TEXT, VISION)]
    if missing := [file.name for file in needed if not file.is_file()]:
        raise GapbenchError(
            f"{who}: {folder} lacks {', '.join(missing)}; a checkpoint of BAGEL has "
            f"{', '.join(file.name for file in needed)} and the files of a tokenizer"
        )
    return needed + settings_files(folder)


def require_diffusers(who: str) -> None:
    """Raises GapbenchError where diffusers, whose autoencoder is used, is not installed."""
    if not find_spec("diffusers"):
        raise GapbenchError(
            f"{who}: its images are decoded with diffusers, which is not installed; "
            "pip install 'gapbench[diffusers]'"
        )


def geometry(who: str, folder: Path) -> Geometry:
    """The sizes of a folder's model. Raises GapbenchError where its files are not all there or do
    not tell them."""
    files(who, folder)
    shapes, latent = _shapes(who, folder / WEIGHTS), _shapes(who, folder / AUTOENCODER)
    vision, text = read_object(folder / VISION), read_object(folder / TEXT)
    try:
        channels = latent["decoder.conv_in.weight"][1]
        return Geometry(
            latent_side=math.isqrt(shapes["latent_pos_embed.pos_embed"][0]),
            latent_patch=math.isqrt(shapes["vae2llm.weight"][1] // channels),
            latent_channels=channels,
            latent_scale=2 ** (_levels(latent) - 1),
            vision_side=math.isqrt(shapes["vit_pos_embed.pos_embed"][0]),
            vision_patch=int(vision["patch_size"]),
            vision_pixels=int(vision["image_size"]),
            room=int(text["max_position_embeddings"]),
            layers=int(text["num_hidden_layers"]),
            layer_numbers=8 * int(text["hidden_size"]) + 3 * int(text["intermediate_size"]),
        )
    except KeyError as error:
        raise GapbenchError(
            f"{who}: {folder} holds no whole checkpoint of BAGEL: there is no {error.args[0]}"
        ) from error
    except (TypeError, ValueError) as error:
        raise GapbenchError(f"{who}: the settings in {folder}: {first_line(error)}") from error


def trained(layers: int) -> dict[str, str]:
    """Patterns for the parameters of a network with so many layers, as `Model.parts`.

    Of the weights that read, the last word is in the last layer's keys and values. No image depends
    on the rest, and several processes in training would wait for its gradients.
    """
    unread = (
        rf"norm\.|layers\.{layers - 1}\."
        r"(self_attn\.([qo]_proj|q_norm)|mlp|post_attention_layernorm)\."
    )
    language = rf"language_model\.model\.(?!{unread}).+"
    more = r"(time_embedder|vae2llm|llm2vae)\..+"
    return {"language-model": language, "generation": f"{language}|{more}"}


def load_network(who: str, folder: Path, sizes: Geometry, dtype: str, device: str) -> Bagel:
    """A folder's network, in eval mode. Raises GapbenchError unless its tensors are those of such a
    network, each one."""
    from gapbench.models.bagel.network import Bagel, Qwen2Config, SiglipVisionConfig

    vision = read_object(folder / VISION)
    try:
        # Upstream takes the features of the last layer but one, and saves no more.
        vision["num_hidden_layers"] -= 1
        with torch.device("meta"):
            network = Bagel(
                Qwen2Config(**read_object(folder / TEXT)),
                SiglipVisionConfig(**vision, attn_implementation="sdpa"),
                sizes,
            )
    except Exception as error:  # transformers raises many kinds, of odd settings
        raise GapbenchError(f"{who}: the settings in {folder}: {first_line(error)}") from error
    tensors = _tensors(who, folder / WEIGHTS, device)
    filled: Bagel = _filled(who, folder / WEIGHTS, network, tensors, dtype, device)
    return filled


def load_autoencoder(who: str, folder: Path, dtype: str, device: str) -> Any:
    """A folder's autoencoder, as diffusers' AutoencoderKL. Raises GapbenchError as `load_network`
    does, and where diffusers is missing."""
    require_diffusers(who)
    from diffusers import AutoencoderKL

    tensors = _tensors(who, folder / AUTOENCODER, device)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    levels = _levels(shapes)
    try:
        firsts = (f"encoder.down.{level}.block.0.conv1.weight" for level in range(levels))
        widths = [shapes[name][0] for name in firsts]
        blocks = {name.split(".")[4] for name in shapes if name.startswith("encoder.down.0.block.")}
        channels = shapes["decoder.conv_in.weight"][1]
    except LookupError as error:
        raise GapbenchError(
            f"{who}: {folder / AUTOENCODER} is no autoencoder in FLUX's layout ({error})"
        ) from error
    with torch.device("meta"):
        made = AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * levels,
            up_block_types=["UpDecoderBlock2D"] * levels,
            block_out_channels=widths,
            layers_per_block=len(blocks),
            latent_channels=channels,
            use_quant_conv=False,
            use_post_quant_conv=False,
            scaling_factor=SCALE,
            shift_factor=SHIFT,
        )
    renamed = {_renamed(name, levels): tensor for name, tensor in tensors.items()}
    # Upstream's attention has convolutions of one pixel where diffusers' has linear layers.
    renamed = {
        name: tensor.flatten(1) if ".to_" in name and tensor.ndim == 4 else tensor
        for name, tensor in renamed.items()
    }
    filled = _filled(who, folder / AUTOENCODER, made, renamed, dtype, device)
    return filled.requires_grad_(False)


def load_tokenizer(who: str, folder: Path) -> Any:
    """A folder's tokenizer. Raises GapbenchError where it is broken or lacks one of MARKS."""
    from transformers import Qwen2Tokenizer

    try:
        tokenizer = Qwen2Tokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # json and tokenizers raise many kinds
        raise GapbenchError(
            f"{who}: cannot load the tokenizer in {folder}: {first_line(error)}; copy the files of "
            "the model that the training began with"
        ) from error
    if missing := [mark for mark in MARKS if mark not in tokenizer.get_vocab()]:
        raise GapbenchError(f"{who}: the tokenizer in {folder} lacks {', '.join(missing)}")
    return tokenizer


def save(network: Bagel, source: Path, folder: Path) -> None:
    """Write a network's weights, and the other files of the checkpoint that it comes from."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in files("", source)[1:]:
        shutil.copyfile(file, folder / file.name)
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    save_file(state, folder / WEIGHTS, {"format": "pt"})


def _renamed(name: str, levels: int) -> str:
    for pattern, new in _RENAMED:
        name = re.sub(pattern, new, name)
    return re.sub(
        r"^decoder\.up_blocks\.(\d+)",
        lambda found: f"decoder.up_blocks.{levels - 1 - int(found[1])}",
        name,
    )


def _levels(shapes: Mapping[str, object]) -> int:
    return len({name.split(".")[2] for name in shapes if name.startswith("encoder.down.")})


def _shapes(who: str, file: Path) -> dict[str, Sequence[int]]:
    """Of a file's tensors, which are not read."""
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise _broken(who, file, error) from error


def _tensors(who: str, file: Path, device: str) -> dict[str, Tensor]:
    try:
        return load_file(file, device=device)
    except (SafetensorError, OSError, RuntimeError) as error:  # the last, of a full memory
        raise _broken(who, file, error) from error


def _broken(who: str, file: Path, error: Exception) -> GapbenchError:
    return GapbenchError(f"{who}: cannot load {file}: {first_line(error)}")


def _filled(
    who: str, file: Path, made: Any, tensors: Mapping[str, Tensor], dtype: str, device: str
) -> Any:
    """A network without values, with a file's."""
    wanted = {name: tuple(value.shape) for name, value in made.state_dict().items()}
    if wrong := sorted(wanted.keys() ^ tensors.keys()):
        how = "lacks" if wrong[0] in wanted else "has"
        raise GapbenchError(
            f"{who}: {file} is no whole checkpoint of this kind: it {how} {wrong[0]}"
            f"{f' and {len(wrong) - 1} more do not fit' if wrong[1:] else ''}"
        )
    for name, shape in wanted.items():
        if tuple(tensors[name].shape) != shape:
            raise GapbenchError(
                f"{who}: {name} in {file} has the shape {tuple(tensors[name].shape)}, and {shape} "
                "follows from the settings"
            )
    kind = getattr(torch, dtype)
    made.load_state_dict({name: value.to(kind) for name, value in tensors.items()}, assign=True)
    return made.to(device).eval()
