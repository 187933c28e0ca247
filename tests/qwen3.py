"""A small Qwen3-VL in the layout of the hub, with random weights."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from gapbench.models import torchvision_shim

ROOT = Path(__file__).parents[1]


def load_benchmark() -> ModuleType:
    """benchmarks/bench_vlm.py, for its tokenizer, which knows few words whole."""
    spec = importlib.util.spec_from_file_location("bench_vlm", ROOT / "benchmarks/bench_vlm.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(folder: Path, words: Any) -> Path:
    """A checkpoint around a tokenizer with Qwen's special tokens."""
    torchvision_shim.ensure()
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    special = load_benchmark().SPECIAL
    ids = dict(zip(special, words.convert_tokens_to_ids(list(special)), strict=True))
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(words), "hidden_size": 64, "intermediate_size": 128,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
            "head_dim": 32, "max_position_embeddings": 4096, "pad_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 1e6, "mrope_section": [6, 5, 5],
            },
        },
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2,
            "out_hidden_size": 64, "num_position_embeddings": 64, "deepstack_visual_indexes": [0],
        },
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen3VLForConditionalGeneration(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(8)
        model.model.language_model.embed_tokens.weight.mul_(8)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    Qwen2VLImageProcessorPil(
        patch_size=16, min_pixels=64 * 64, max_pixels=128 * 128
    ).save_pretrained(folder)
    return folder
