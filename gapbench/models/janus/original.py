"""Janus checkpoints in DeepSeek's own layout (model_type multi_modality), as transformers' Janus.

Names and shapes: deepseek-ai/Janus 1daa72f, janus/models (modeling_vlm.py, siglip_vit.py,
vq_model.py, projector.py). The layout says little about its sizes; they are read off the tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from gapbench.files import first_line, read_object
from gapbench.models import torchvision_shim
from gapbench.models.checkpoint import load_pretrained, model_type, tensors_of, weight_files
from gapbench.types import GapbenchError

MODEL_TYPE: Final = "multi_modality"
HEADS: Final = 16
"""Of every SigLIP tower that upstream knows (siglip_vit.py, SIGLIP_MODEL_CONFIG)."""
SPECIAL: Final = {
    "image_token": "<image_placeholder>",
    "boi_token": "<begin_of_image>",
    "eoi_token": "<end_of_image>",
}
TEMPLATE: Final = (
    "{% for message in messages %}"
    "{{ '<|User|>: ' if message.role == 'user' else '<|Assistant|>: ' }}"
    "{% set content %}{% for part in message.content %}"
    "{{ '<image_placeholder>\n' if part.type == 'image' else part.text }}"
    "{% endfor %}{% endset %}{{ content | trim }}"
    "{{ '\n\n' if message.role == 'user' else '<｜end▁of▁sentence｜>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|>:' }}{% endif %}"
)
"""The conversation format "deepseek" (conversation.py), as a chat template."""
_DROPPED: Final = re.compile(r"vision_model\.vision_tower\.attn_pool\.|.*\.codebook_used$")
_QKV: Final = re.compile(r"(.*)\.qkv\.(weight|bias)$")
_SEES: Final = "model.vision_model"
_CODES: Final = "model.vqmodel"
_RENAMED: Final = (
    (r"^language_model\.model\.", "model.language_model."),
    (r"^language_model\.lm_head\.", "lm_head."),
    (r"^gen_embed\.", "model.generation_embeddings."),
    (r"^gen_head\.output_mlp_projector\.", "model.generation_head.proj_out."),
    (r"^gen_head\.", "model.generation_head."),
    (r"^vision_model\.vision_tower\.", f"{_SEES}."),
    (rf"^{_SEES}\.pos_embed$", f"{_SEES}.embeddings.position_embedding.weight"),
    (rf"^{_SEES}\.patch_embed\.proj\.", f"{_SEES}.embeddings.patch_embedding."),
    (rf"^{_SEES}\.norm\.", f"{_SEES}.post_layernorm."),
    (rf"^{_SEES}\.blocks\.", f"{_SEES}.encoder.layers."),
    (r"(\.layers\.\d+)\.norm([12])\.", r"\1.layer_norm\2."),
    (r"(\.layers\.\d+)\.attn\.proj\.", r"\1.self_attn.projection_layer."),
    (r"(\.layers\.\d+)\.attn\.", r"\1.self_attn."),
    (r"^gen_vision_model\.", f"{_CODES}."),
    (rf"^({_CODES}\.encoder)\.conv_blocks\.(\d+)\.", r"\1.down.\2."),
    (rf"^({_CODES}\.decoder)\.conv_blocks\.(\d+)\.", r"\1.up.\2."),
    (rf"^({_CODES}\.\w+\.(?:up|down)\.\d+)\.res\.", r"\1.block."),
    (rf"^({_CODES}\.\w+\.mid)\.0\.", r"\1.block_1."),
    (rf"^({_CODES}\.\w+\.mid)\.1\.", r"\1.attn_1."),
    (rf"^({_CODES}\.\w+\.mid)\.2\.", r"\1.block_2."),
)
_ALIGNER: Final = re.compile(r"^(gen_)?aligner\.layers\.(\d+)\.(weight|bias)$")


def is_original(folder: Path) -> bool:
    """Whether a folder is in this layout; one whose settings cannot be read is not."""
    try:
        return model_type(folder) == MODEL_TYPE
    except GapbenchError:
        return False


def rename(name: str) -> str:
    """A tensor's name in transformers, for one that is kept whole."""
    if aligner := _ALIGNER.match(name):
        # Its odd places are activations, which have no tensors.
        part = "generation_aligner" if aligner[1] else "aligner"
        place = int(aligner[2]) // 2
        inner = f"hidden_layers.{place - 1}" if place else "fc1"
        return f"model.{part}.{inner}.{aligner[3]}"
    for old, new in _RENAMED:
        name = re.sub(old, new, name)
    return name


def convert(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under transformers' names: the fused attention is split, what Janus never uses
    (the vision tower's pooling, a count of used codes) is left out."""
    converted: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if _DROPPED.match(name):
            continue
        if fused := _QKV.match(name):
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                converted[rename(f"{fused[1]}.{part}_proj.{fused[2]}")] = piece
        elif name.endswith("pos_embed"):
            converted[rename(name)] = tensor.squeeze(0)
        else:
            converted[rename(name)] = tensor
    return converted


def load(who: str, folder: Path, dtype: str, device: str) -> Any:
    """A folder in DeepSeek's layout as transformers' JanusForConditionalGeneration.

    Raises GapbenchError where weights are broken, of another architecture, or incomplete.
    """
    files = weight_files(who, folder)
    try:
        tensors = convert(tensors_of(files))
        config = _config(folder, tensors)
    except GapbenchError as error:
        raise GapbenchError(f"{who}: {error}") from error
    except Exception as error:  # torch, safetensors and transformers raise many kinds
        raise GapbenchError(f"{who}: cannot load {folder}: {first_line(error)}") from error
    kind = "JanusForConditionalGeneration"
    model = load_pretrained(who, kind, folder, dtype, device, config=config, tensors=tensors)
    if left := sorted(tensors.keys() - model.state_dict().keys()):
        raise GapbenchError(
            f"{who}: {folder} holds {len(left)} tensors that Janus does not have, {left[0]} among "
            "them; is it another architecture?"
        )
    model.generation_config = _generation(processor(folder).tokenizer)
    return model


def processor(folder: Path) -> Any:
    """transformers' JanusProcessor from the files of DeepSeek's layout."""
    torchvision_shim.ensure()
    from tokenizers.processors import TemplateProcessing
    from transformers import JanusImageProcessorPil, JanusProcessor, PreTrainedTokenizerFast

    names = read_object(folder / "special_tokens_map.json")
    marks = {k: _text(names.get(k)) for k in ("bos_token", "eos_token", "pad_token")}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), extra_special_tokens=SPECIAL, **marks
    )
    if tokenizer("a")["input_ids"][0] != tokenizer.bos_token_id:
        start = (marks["bos_token"], tokenizer.bos_token_id)
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{start[0]} $A", special_tokens=[start]
        )
    pictures = read_object(folder / "preprocessor_config.json")
    shape = {"height": pictures["image_size"], "width": pictures["image_size"]}
    kept = ("image_mean", "image_std", "min_size", "rescale_factor", "do_normalize")
    return JanusProcessor(
        JanusImageProcessorPil(size=shape, **{k: pictures[k] for k in kept if k in pictures}),
        tokenizer,
        chat_template=TEMPLATE,
        num_image_tokens=read_object(folder / "processor_config.json").get("num_image_tokens", 576),
        use_default_system_prompt=True,
    )


def language_config(folder: Path) -> Any:
    """The language model's settings, as transformers' LlamaConfig."""
    from transformers import LlamaConfig

    given = read_object(folder / "config.json").get("language_config", {})
    return LlamaConfig(**{k: v for k, v in given.items() if not k.startswith(("_", "torch_"))})


def _generation(tokenizer: Any) -> Any:
    """What transformers' own loop needs to know, for those who use a saved copy with it."""
    from transformers import GenerationConfig

    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        generation_kwargs={"boi_token_id": tokenizer.boi_token_id},
    )


def _text(token: Any) -> Any:
    """A special token's text, which may stand in an object with how to strip around it."""
    return token["content"] if isinstance(token, dict) else token


def _config(folder: Path, tensors: Mapping[str, Tensor]) -> Any:
    """transformers' JanusConfig for tensors under transformers' names."""
    from transformers import JanusConfig, JanusVisionConfig, JanusVQVAEConfig

    raw, marks = read_object(folder / "config.json"), processor(folder).tokenizer
    for part in ("aligner_config", "gen_aligner_config"):
        kind = raw.get(part, {}).get("params", {}).get("projector_type", "mlp_gelu")
        if kind != "mlp_gelu":
            raise GapbenchError(f"{folder}: {part} is of type {kind!r}, only mlp_gelu is known")

    def shape(name: str) -> list[int]:
        if name not in tensors:
            raise GapbenchError(f"{folder} lacks {name}; is it a Janus checkpoint?")
        return list(tensors[name].shape)

    def count(pattern: str) -> int:
        return len({m[1] for name in tensors if (m := re.match(pattern, name))})

    width, _, patch, _ = shape(f"{_SEES}.embeddings.patch_embedding.weight")
    patches, _ = shape(f"{_SEES}.embeddings.position_embedding.weight")
    side = round(patches**0.5)
    base = shape(f"{_CODES}.encoder.conv_in.weight")[0]
    levels = count(rf"{_CODES}\.encoder\.down\.(\d+)\.")
    blocks = count(rf"{_CODES}\.encoder\.down\.0\.block\.(\d+)\.")
    widths = [
        shape(f"{_CODES}.encoder.down.{level}.block.{blocks - 1}.conv2.weight")[0]
        for level in range(levels)
    ]
    entries, inner = shape(f"{_CODES}.quantize.embedding.weight")
    text = language_config(folder)
    text.pad_token_id = marks.pad_token_id
    text.bos_token_id, text.eos_token_id = marks.bos_token_id, marks.eos_token_id
    return JanusConfig(
        text_config=text,
        vision_config=JanusVisionConfig(
            hidden_size=width,
            num_hidden_layers=count(rf"{_SEES}\.encoder\.layers\.(\d+)\."),
            num_attention_heads=HEADS,
            image_size=side * patch,
            patch_size=patch,
            mlp_ratio=shape(f"{_SEES}.encoder.layers.0.mlp.fc1.weight")[0] / width,
            projection_dim=shape("model.aligner.fc1.weight")[0],
            depth=1 + count(r"model\.aligner\.hidden_layers\.(\d+)\."),
            num_image_tokens=patches,
        ),
        vq_config=JanusVQVAEConfig(
            embed_dim=inner,
            num_embeddings=entries,
            latent_channels=shape(f"{_CODES}.encoder.conv_out.weight")[0],
            base_channels=base,
            channel_multiplier=[wide // base for wide in widths],
            num_res_blocks=blocks,
            num_patches=side,
            projection_dim=shape("model.generation_head.proj_out.weight")[0],
            image_token_embed_dim=shape("model.generation_head.proj_out.weight")[1],
            num_hidden_layers=1 + count(r"model\.generation_aligner\.hidden_layers\.(\d+)\."),
        ),
        image_token_id=marks.image_token_id,
        tie_word_embeddings=False,
    )
