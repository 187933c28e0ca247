"""A tiny random BAGEL in the published layout."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from gapbench.models.autoregressive.noise import keys, normal

Shapes = dict[str, tuple[int, ...]]
WIDE, HEADS, GROUPS, DEEP, INNER = 32, 4, 2, 2, 48
SEES, SEEN_LAYERS, PATCH, PICTURE = 24, 2, 4, 16
LATENT, CHANNELS, SIDE = 2, 4, 4
BASE, LEVELS, BLOCKS = 32, 2, 1
"""Of the autoencoder: two levels, so that a latent is 2 pixels wide and a token 4."""
SIZE = SIDE * LATENT * 2 ** (LEVELS - 1)
CUT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Where Qwen2 cuts a text before it makes tokens."""
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")


def _linear(name: str, out: int, into: int) -> Shapes:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def _conv(name: str, out: int, into: int, size: int) -> Shapes:
    return {f"{name}.weight": (out, into, size, size), f"{name}.bias": (out,)}


def _norm(name: str, wide: int) -> Shapes:
    return {f"{name}.weight": (wide,), f"{name}.bias": (wide,)}


def published(vocabulary: int) -> Shapes:
    """Every tensor of ema.safetensors at a tiny size, written down from ByteDance-Seed/Bagel
    056b5fd: modeling/bagel, with the settings of inference.ipynb."""
    found: Shapes = {
        "language_model.model.embed_tokens.weight": (vocabulary, WIDE),
        "language_model.lm_head.weight": (vocabulary, WIDE),
        "latent_pos_embed.pos_embed": (SIDE**2, WIDE),
        "vit_pos_embed.pos_embed": ((PICTURE // PATCH) ** 2, WIDE),
    }
    head = WIDE // HEADS
    for end in ("", "_moe_gen"):
        found[f"language_model.model.norm{end}.weight"] = (WIDE,)
        for layer in range(DEEP):
            block = f"language_model.model.layers.{layer}"
            for part, out in (("q", WIDE), ("k", GROUPS * head), ("v", GROUPS * head)):
                found |= _linear(f"{block}.self_attn.{part}_proj{end}", out, WIDE)
            found[f"{block}.self_attn.o_proj{end}.weight"] = (WIDE, WIDE)
            for part in ("q_norm", "k_norm"):
                found[f"{block}.self_attn.{part}{end}.weight"] = (head,)
            for part, shape in (("gate", (INNER, WIDE)), ("up", (INNER, WIDE)), ("down", (WIDE, INNER))):  # fmt: skip  # noqa: E501
                found[f"{block}.mlp{end}.{part}_proj.weight"] = shape
            for part in ("input_layernorm", "post_attention_layernorm"):
                found[f"{block}.{part}{end}.weight"] = (WIDE,)
    tower = "vit_model.vision_model"
    found |= _linear(f"{tower}.embeddings.patch_embedding", SEES, 3 * PATCH**2)
    found[f"{tower}.embeddings.position_embedding.weight"] = ((PICTURE // PATCH) ** 2, SEES)
    for layer in range(SEEN_LAYERS):
        block = f"{tower}.encoder.layers.{layer}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            found |= _linear(f"{block}.self_attn.{part}", SEES, SEES)
        found |= _linear(f"{block}.mlp.fc1", 2 * SEES, SEES)
        found |= _linear(f"{block}.mlp.fc2", SEES, 2 * SEES)
        found |= _norm(f"{block}.layer_norm1", SEES) | _norm(f"{block}.layer_norm2", SEES)
    found |= _norm(f"{tower}.post_layernorm", SEES)
    found |= _linear("connector.fc1", WIDE, SEES) | _linear("connector.fc2", WIDE, WIDE)
    found |= _linear("time_embedder.mlp.0", WIDE, 256)
    found |= _linear("time_embedder.mlp.2", WIDE, WIDE)
    drawn = CHANNELS * LATENT**2
    return found | _linear("vae2llm", WIDE, drawn) | _linear("llm2vae", drawn, WIDE)


def autoencoder() -> Shapes:
    """Every tensor of ae.safetensors at a tiny size: modeling/autoencoder.py."""
    widths = [BASE * 2**level for level in range(LEVELS)]
    most, found = widths[-1], {}
    found |= _conv("encoder.conv_in", BASE, 3, 3) | _norm("encoder.norm_out", most)
    found |= _conv("encoder.conv_out", 2 * CHANNELS, most, 3)
    found |= _conv("decoder.conv_in", most, CHANNELS, 3) | _norm("decoder.norm_out", BASE)
    found |= _conv("decoder.conv_out", 3, BASE, 3)
    for half in ("encoder", "decoder"):
        found |= dict(_residual(f"{half}.mid.block_1", most, most))
        found |= dict(_residual(f"{half}.mid.block_2", most, most))
        found |= _norm(f"{half}.mid.attn_1.norm", most)
        for part in ("q", "k", "v", "proj_out"):
            found |= _conv(f"{half}.mid.attn_1.{part}", most, most, 1)
    into = BASE
    for level, out in enumerate(widths):
        for block in range(BLOCKS):
            found |= dict(_residual(f"encoder.down.{level}.block.{block}", into, out))
            into = out
        if level < LEVELS - 1:
            found |= _conv(f"encoder.down.{level}.downsample.conv", out, out, 3)
    into = most
    for level in reversed(range(LEVELS)):
        for block in range(BLOCKS + 1):
            found |= dict(_residual(f"decoder.up.{level}.block.{block}", into, widths[level]))
            into = widths[level]
        if level:
            found |= _conv(f"decoder.up.{level}.upsample.conv", into, into, 3)
    return found


def _residual(name: str, into: int, out: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from (_norm(f"{name}.norm1", into) | _norm(f"{name}.norm2", out)).items()
    yield from (_conv(f"{name}.conv1", out, into, 3) | _conv(f"{name}.conv2", out, out, 3)).items()
    if into != out:
        yield from _conv(f"{name}.nin_shortcut", out, into, 1).items()


def tensors(shapes: Shapes, seed: int) -> dict[str, Tensor]:
    """Random values in float32, the same everywhere: norms near one, larger heads."""
    found = {}
    for number, (name, shape) in enumerate(sorted(shapes.items())):
        drawn = normal(keys([seed * 10_000 + number]), math.prod(shape)).float().view(shape)
        if "norm" in name and name.endswith("weight"):
            found[name] = 1 + 0.1 * drawn
        elif name.startswith("decoder.conv_out"):
            found[name] = 0.2 * drawn / max(1, drawn[0].numel()) ** 0.5  # few pixels at an end
        elif "embed" in name or "lm_head" in name:
            found[name] = 0.4 * drawn
        else:
            found[name] = drawn / max(1, drawn[0].numel()) ** 0.5
    return found


def words(folder: Path, special: Sequence[str] = SPECIAL) -> int:
    """Write a tokenizer of Qwen2's kind; its vocabulary's size."""
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        trainers,
    )

    base = Tokenizer(models.BPE())
    base.normalizer = normalizers.NFC()
    base.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CUT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    base.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    base.train_from_iterator(["a red circle and a blue square", "The score is 0 1"] * 20, trainer)
    base.add_special_tokens([AddedToken(mark, normalized=False) for mark in special])
    base.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "additional_special_tokens": list(special[1:]),
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "add_prefix_space": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return int(base.get_vocab_size())


def write(folder: Path, seed: int = 1) -> Path:
    """The published files: 16 x 16 pixels, 16 tokens an image."""
    folder.mkdir(parents=True)
    vocabulary = words(folder)
    save_file(tensors(published(vocabulary), seed), folder / "ema.safetensors")
    save_file(tensors(autoencoder(), seed + 1), folder / "ae.safetensors")
    settings = {
        "config.json": {"model_type": "bagel", "architectures": ["BagelForConditionalGeneration"]},
        "llm_config.json": {
            "model_type": "qwen2",
            "vocab_size": vocabulary,
            "hidden_size": WIDE,
            "intermediate_size": INNER,
            "num_hidden_layers": DEEP,
            "num_attention_heads": HEADS,
            "num_key_value_heads": GROUPS,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
        },
        "vit_config.json": {
            "model_type": "siglip_vision_model",
            "hidden_size": SEES,
            "intermediate_size": 2 * SEES,
            "num_hidden_layers": SEEN_LAYERS + 1,
            "num_attention_heads": 4,
            "image_size": PICTURE,
            "patch_size": PATCH,
        },
    }
    for name, value in settings.items():
        (folder / name).write_text(json.dumps(value))
    return folder
