"""Fixtures: a tiny random Janus in DeepSeek's own layout, sharded as its upstream is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

WIDE, SEES, PATCH, SIDE, CODES, BASE = 64, 32, 8, 4, 128, 32
SPECIAL = (
    "<|pad|>", "<|bos|>", "<|eos|>", "<image_placeholder>", "<begin_of_image>", "<end_of_image>",
    "<|User|>", "<|Assistant|>", "<｜end▁of▁sentence｜>",
)  # fmt: skip


def _linear(name: str, out: int, into: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (out, into)
    yield f"{name}.bias", (out,)


def _conv(name: str, out: int, into: int, size: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (out, into, size, size)
    yield f"{name}.bias", (out,)


def _norm(name: str, size: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (size,)
    yield f"{name}.bias", (size,)


def _residual(name: str, into: int, out: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from _norm(f"{name}.norm1", into)
    yield from _conv(f"{name}.conv1", out, into, 3)
    yield from _norm(f"{name}.norm2", out)
    yield from _conv(f"{name}.conv2", out, out, 3)
    if into != out:
        yield from _conv(f"{name}.nin_shortcut", out, into, 1)


def _attention(name: str, size: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from _norm(f"{name}.norm", size)
    for part in ("q", "k", "v", "proj_out"):
        yield from _conv(f"{name}.{part}", size, size, 1)


def original_shapes(vocabulary: int) -> dict[str, tuple[int, ...]]:
    """Every tensor that upstream's MultiModalityCausalLM saves, at a tiny size.

    Written down from deepseek-ai/Janus 1daa72f: modeling_vlm.py, siglip_vit.py (global_pool "map"),
    vq_model.py (ch_mult, one residual block a level), projector.py, and transformers' Llama.
    """
    found: dict[str, tuple[int, ...]] = {}
    tower = "vision_model.vision_tower"
    found |= dict(_conv(f"{tower}.patch_embed.proj", SEES, 3, PATCH))
    found[f"{tower}.pos_embed"] = (1, SIDE * SIDE, SEES)
    for layer in range(2):
        block = f"{tower}.blocks.{layer}"
        found |= dict(_norm(f"{block}.norm1", SEES)) | dict(_norm(f"{block}.norm2", SEES))
        found |= dict(_linear(f"{block}.attn.qkv", 3 * SEES, SEES))
        found |= dict(_linear(f"{block}.attn.proj", SEES, SEES))
        found |= dict(_linear(f"{block}.mlp.fc1", 4 * SEES, SEES))
        found |= dict(_linear(f"{block}.mlp.fc2", SEES, 4 * SEES))
    found |= dict(_norm(f"{tower}.norm", SEES))
    pool = f"{tower}.attn_pool"  # upstream has it and never calls it
    found[f"{pool}.latent"] = (1, 1, SEES)
    found |= dict(_linear(f"{pool}.q", SEES, SEES)) | dict(_linear(f"{pool}.kv", 2 * SEES, SEES))
    found |= dict(_linear(f"{pool}.proj", SEES, SEES)) | dict(_norm(f"{pool}.norm", SEES))
    found |= dict(_linear(f"{pool}.mlp.fc1", 4 * SEES, SEES))
    found |= dict(_linear(f"{pool}.mlp.fc2", SEES, 4 * SEES))
    found |= dict(_linear("aligner.layers.0", WIDE, SEES))
    found |= dict(_linear("aligner.layers.2", WIDE, WIDE))

    codes, widths = "gen_vision_model", [BASE, BASE, BASE, 2 * BASE]
    encoder, decoder, most = f"{codes}.encoder", f"{codes}.decoder", widths[-1]
    found |= dict(_conv(f"{encoder}.conv_in", BASE, 3, 3))
    for level, (into, out) in enumerate(zip([BASE, *widths], widths, strict=False)):
        block = f"{encoder}.conv_blocks.{level}"
        found |= dict(_residual(f"{block}.res.0", into, out))
        if level == len(widths) - 1:
            found |= dict(_attention(f"{block}.attn.0", out))
        else:
            found |= dict(_conv(f"{block}.downsample.conv", out, out, 3))
    found |= dict(_conv(f"{encoder}.conv_out", BASE, most, 3))
    found |= dict(_conv(f"{decoder}.conv_in", most, BASE, 3))
    for half in (encoder, decoder):
        found |= dict(_residual(f"{half}.mid.0", most, most))
        found |= dict(_attention(f"{half}.mid.1", most))
        found |= dict(_residual(f"{half}.mid.2", most, most))
    into = most
    for level, out in enumerate(reversed(widths)):
        block = f"{decoder}.conv_blocks.{level}"
        for place in range(2):
            found |= dict(_residual(f"{block}.res.{place}", into if place == 0 else out, out))
            if level == 0:
                found |= dict(_attention(f"{block}.attn.{place}", out))
        if level != len(widths) - 1:
            found |= dict(_conv(f"{block}.upsample.conv", out, out, 3))
        into = out
    found |= dict(_norm(f"{encoder}.norm_out", most)) | dict(_norm(f"{decoder}.norm_out", BASE))
    found |= dict(_conv(f"{decoder}.conv_out", 3, BASE, 3))
    found[f"{codes}.quantize.embedding.weight"] = (CODES, 8)
    found[f"{codes}.quantize.codebook_used"] = (65536,)
    found |= dict(_conv(f"{codes}.quant_conv", 8, BASE, 1))
    found |= dict(_conv(f"{codes}.post_quant_conv", BASE, 8, 1))

    found |= dict(_linear("gen_aligner.layers.0", WIDE, 8))
    found |= dict(_linear("gen_aligner.layers.2", WIDE, WIDE))
    found |= dict(_linear("gen_head.output_mlp_projector", WIDE, WIDE))
    found |= dict(_linear("gen_head.vision_head", CODES, WIDE))
    found["gen_embed.weight"] = (CODES, 8)
    found["language_model.model.embed_tokens.weight"] = (vocabulary, WIDE)
    for layer in range(2):
        block = f"language_model.model.layers.{layer}"
        for part in ("q", "k", "v", "o"):
            found[f"{block}.self_attn.{part}_proj.weight"] = (WIDE, WIDE)
        for part, shape in (("gate", (128, WIDE)), ("up", (128, WIDE)), ("down", (WIDE, 128))):
            found[f"{block}.mlp.{part}_proj.weight"] = shape
        found[f"{block}.input_layernorm.weight"] = (WIDE,)
        found[f"{block}.post_attention_layernorm.weight"] = (WIDE,)
    found["language_model.model.norm.weight"] = (WIDE,)
    found["language_model.lm_head.weight"] = (vocabulary, WIDE)
    return found


def original_tensors(vocabulary: int) -> dict[str, Tensor]:
    """Random tensors; norms near one, and larger heads, so that greedy choices differ."""
    stream = torch.Generator().manual_seed(1)
    found = {}
    for name, shape in original_shapes(vocabulary).items():
        drawn = torch.randn(shape, generator=stream)
        if "norm" in name and name.endswith("weight"):
            found[name] = 1 + 0.1 * drawn
        elif "vision_head.weight" in name or "embed" in name or "lm_head" in name:
            found[name] = 0.4 * drawn
        else:
            found[name] = drawn / max(1, drawn[0].numel()) ** 0.5
    return found


def _words(folder: Path) -> int:
    """Write a tokenizer as upstream ships it; its vocabulary's size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    base = Tokenizer(models.BPE())
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    base.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    base.train_from_iterator(["a red circle and a blue square", " The score is 0 1"] * 20, trainer)
    base.save(str(folder / "tokenizer.json"))
    return int(base.get_vocab_size())


@pytest.fixture(scope="session")
def tiny_original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Janus in DeepSeek's layout: settings, a tokenizer, two pickled shards, an index."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny-original"
    folder.mkdir()
    vocabulary = _words(folder)
    tensors = original_tensors(vocabulary)
    names = list(tensors)
    shards = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}  # fmt: skip  # noqa: E501
    for shard, mine in shards.items():
        torch.save({name: tensors[name] for name in mine}, folder / shard)
    index = {"weight_map": {name: shard for shard, mine in shards.items() for name in mine}}
    settings: dict[str, object] = {
        "pytorch_model.bin.index.json": index,
        "config.json": {
            "model_type": "multi_modality",
            "architectures": ["MultiModalityCausalLM"],
            "vision_config": {"cls": "CLIPVisionTower", "params": {"image_size": SIDE * PATCH}},
            "aligner_config": {"params": {"projector_type": "mlp_gelu", "depth": 2}},
            "gen_aligner_config": {"params": {"projector_type": "mlp_gelu", "depth": 2}},
            "language_config": {
                "model_type": "llama",
                "vocab_size": vocabulary,
                "hidden_size": WIDE,
                "intermediate_size": 128,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 4,
                "max_position_embeddings": 2048,
                "torch_dtype": "bfloat16",
            },
        },
        "preprocessor_config.json": {
            "image_processor_type": "VLMImageProcessor",
            "image_size": SIDE * PATCH,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "min_size": 8,
            "do_normalize": True,
        },
        "processor_config.json": {"processor_class": "VLChatProcessor", "num_image_tokens": 16},
        "special_tokens_map.json": {
            "bos_token": {"content": "<|bos|>", "lstrip": False},
            "eos_token": "<|eos|>",
            "pad_token": "<|pad|>",
        },
        "tokenizer_config.json": {"tokenizer_class": "LlamaTokenizerFast"},
    }
    for name, value in settings.items():
        (folder / name).write_text(json.dumps(value))
    return folder
