"""Tiny random pipelines in diffusers' own layout: 16 x 16 pixels, whole vision-language models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import bagels

from gapbench.models import torchvision_shim

SPECIAL = (*bagels.SPECIAL, "<|image_pad|>", "<|video_pad|>")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT: Mapping[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}
ROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
NETWORK: Mapping[str, Any] = {
    "num_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "axes_dims_rope": (4, 6, 6),
}
KINDS = ("qwen", "qwen21", "longcat")


def write(kind: str, folder: Path, seed: int = 1) -> Path:
    """A pipeline of one of KINDS."""
    torchvision_shim.ensure()
    import torch

    torch.manual_seed(seed)
    pipeline = {"qwen": _qwen, "qwen21": _qwen21, "longcat": _longcat}[kind](folder)
    with torch.no_grad():
        for part in (pipeline.transformer, pipeline.text_encoder):
            for name, weight in part.named_parameters():
                if "embed_tokens" in name or "lm_head" in name:
                    weight.mul_(20)  # else all answers are as likely
                elif weight.ndim > 1:
                    weight.normal_(0, weight[0].numel() ** -0.5)
    pipeline.save_pretrained(folder)
    return folder


def _scheduler() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)


def _tokenizer(folder: Path, template: str | None) -> Any:
    from transformers import Qwen2Tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    place = folder / "tokenizer"
    place.mkdir()
    bagels.words(place, SPECIAL)
    tokenizer = Qwen2Tokenizer.from_pretrained(place)
    tokenizer.chat_template = template
    return tokenizer


def _ids(tokenizer: Any) -> dict[str, int]:
    names = {"image": "<|image_pad|>", "video": "<|video_pad|>",
             "vision_start": "<|vision_start|>", "vision_end": "<|vision_end|>"}  # fmt: skip
    return {f"{key}_token_id": tokenizer.convert_tokens_to_ids(name) for key, name in names.items()}


def _ends(tokenizer: Any) -> dict[str, Any]:
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    return {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": None, "eos_token_id": end}


def _eyes() -> Any:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    return Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=56 * 56)


def _encoder(tokenizer: Any) -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig(
        text_config={**TEXT, "vocab_size": len(tokenizer), "rope_parameters": ROPE,
                     **_ends(tokenizer)},
        vision_config={"depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2,
                       "out_hidden_size": 32, "window_size": 56, "fullatt_block_indexes": [0]},
        tie_word_embeddings=False,
        **_ids(tokenizer),
    )  # fmt: skip
    return Qwen2_5_VLForConditionalGeneration(config)


def _qwen(folder: Path) -> Any:
    """As Qwen/Qwen-Image: a tokenizer whose template knows no images, and no processor."""
    from diffusers import AutoencoderKLQwenImage, QwenImagePipeline, QwenImageTransformer2DModel

    tokenizer = _tokenizer(folder, "{{ messages[0].content }}")
    vae = AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    network = QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, joint_attention_dim=32, **NETWORK
    )
    encoder = _encoder(tokenizer)
    return QwenImagePipeline(_scheduler(), vae, encoder, tokenizer, network)


def _longcat(folder: Path) -> Any:
    """As meituan-longcat/LongCat-Image: a processor beside the tokenizer, FLUX's autoencoder."""
    from diffusers import AutoencoderKL, LongCatImagePipeline, LongCatImageTransformer2DModel
    from transformers import Qwen2VLProcessor, Qwen2VLVideoProcessor

    tokenizer = _tokenizer(folder, TEMPLATE)
    processor = Qwen2VLProcessor(_eyes(), tokenizer, Qwen2VLVideoProcessor(), TEMPLATE)
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
        block_out_channels=[8, 8], layers_per_block=1, latent_channels=16, norm_num_groups=4,
        use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1, scaling_factor=0.4,
    )  # fmt: skip
    network = LongCatImageTransformer2DModel(
        in_channels=64, num_single_layers=1, joint_attention_dim=32, pooled_projection_dim=32,
        **{**NETWORK, "num_layers": 1},
    )  # fmt: skip
    return LongCatImagePipeline(
        _scheduler(), vae, _encoder(tokenizer), tokenizer, processor, network
    )


def _qwen21(folder: Path) -> Any:
    """As Qwen/Qwen-Image-2.1: Qwen3-VL, with a processor alone."""
    from diffusers import (
        AutoencoderKLQwenImage21,
        QwenImage21Pipeline,
        QwenImage21Transformer2DModel,
    )
    from transformers import (
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
        Qwen3VLVideoProcessor,
    )

    tokenizer = _tokenizer(folder, TEMPLATE)
    (folder / "tokenizer").rename(folder / "processor")
    processor = Qwen3VLProcessor(_eyes(), tokenizer, Qwen3VLVideoProcessor(), TEMPLATE)
    config = Qwen3VLConfig(
        text_config={**TEXT, "vocab_size": len(tokenizer), "head_dim": 16,
                     "rope_parameters": ROPE, **_ends(tokenizer)},
        vision_config={"depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2,
                       "out_hidden_size": 32, "num_position_embeddings": 16,
                       "deepstack_visual_indexes": [0], "patch_size": 14},
        tie_word_embeddings=False,
        **_ids(tokenizer),
    )  # fmt: skip
    vae = AutoencoderKLQwenImage21(
        base_dim=8, decoder_base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1, 1], num_res_blocks=1,
        temperal_downsample=[False] * 4, latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    network = QwenImage21Transformer2DModel(
        in_channels=4, out_channels=4, context_in_dim=32, patch_size=1, **NETWORK
    )
    encoder = Qwen3VLForConditionalGeneration(config)
    return QwenImage21Pipeline(_scheduler(), vae, encoder, processor, network)


def recipe(kind: str, **more: Any) -> dict[str, Any]:
    """One that draws small images fast."""
    side = 32 if kind == "qwen21" else 16
    known: dict[str, Any] = {"height": side, "width": side, "num_inference_steps": 2}
    if kind == "longcat":
        known["enable_prompt_rewrite"] = False
    return known | more
