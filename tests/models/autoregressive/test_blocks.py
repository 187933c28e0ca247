"""How many images a block has."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import LlamaConfig

from gapbench import load_model
from gapbench.models.autoregressive.blocks import fitting, image_bytes, size_for

JANUS_7B = LlamaConfig(
    hidden_size=4096, num_hidden_layers=30, num_attention_heads=32, num_key_value_heads=32
)
GB = 10**9


@pytest.mark.parametrize(
    ("memory", "size"), [(141 * GB, 64), (80 * GB, 64), (48 * GB, 32), (24 * GB, 4), (8 * GB, 1)]
)
def test_a_block_is_as_large_as_the_memory_has_place_for(memory: int, size: int) -> None:
    """Janus-Pro-7B in bfloat16: 14.9 GB of weights, and 0.57 GB of keys and values an image."""
    image = 2 * image_bytes(JANUS_7B, 576, "bfloat16")
    assert image == pytest.approx(0.566 * GB, rel=0.01)
    assert fitting(64, memory, int(14.9 * GB), image) == size


@pytest.mark.parametrize(
    ("dtype", "size"), [("float64", 0), ("float32", 8), ("bfloat16", 8), ("auto", 0)]
)
def test_the_recipe_says_the_blocks_size(tiny_janus: Path, dtype: str, size: int) -> None:
    assert load_model(str(tiny_janus), dtype=dtype).recipe["block"] == size
    chosen = load_model(str(tiny_janus), dtype=dtype, recipe={"block": "3"})
    assert chosen.recipe["block"] == 3
    assert chosen.fingerprint == load_model(str(tiny_janus), dtype=dtype).fingerprint


def test_a_gpus_memory_is_asked_only_where_there_is_a_gpu() -> None:
    def never() -> int:
        raise AssertionError

    assert size_for("cpu", "bfloat16", 0, never) == 8
