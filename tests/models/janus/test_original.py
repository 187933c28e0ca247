"""Janus in DeepSeek's own layout: every tensor in its place, and a model like any other."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from gapbench import GapbenchError, load_model
from gapbench.models.autoregressive.sampling import Recipe
from gapbench.models.janus.adapter import JanusModel
from gapbench.verdict import ANSWERS

Cli = Callable[..., subprocess.CompletedProcess[str]]
TOWER, SEES = "vision_model.vision_tower", "model.vision_model"
KNOWN = {
    # One of each kind, by hand; the fused attention is looked at on its own.
    f"{TOWER}.patch_embed.proj.weight": f"{SEES}.embeddings.patch_embedding.weight",
    f"{TOWER}.blocks.1.norm1.bias": f"{SEES}.encoder.layers.1.layer_norm1.bias",
    f"{TOWER}.blocks.1.norm2.weight": f"{SEES}.encoder.layers.1.layer_norm2.weight",
    f"{TOWER}.blocks.0.attn.proj.bias": f"{SEES}.encoder.layers.0.self_attn.projection_layer.bias",
    f"{TOWER}.blocks.0.mlp.fc2.weight": f"{SEES}.encoder.layers.0.mlp.fc2.weight",
    f"{TOWER}.norm.weight": f"{SEES}.post_layernorm.weight",
    "aligner.layers.0.weight": "model.aligner.fc1.weight",
    "aligner.layers.2.bias": "model.aligner.hidden_layers.0.bias",
    "gen_aligner.layers.0.bias": "model.generation_aligner.fc1.bias",
    "gen_aligner.layers.2.weight": "model.generation_aligner.hidden_layers.0.weight",
    "gen_embed.weight": "model.generation_embeddings.weight",
    "gen_head.output_mlp_projector.weight": "model.generation_head.proj_out.weight",
    "gen_head.vision_head.bias": "model.generation_head.vision_head.bias",
    "gen_vision_model.encoder.conv_blocks.2.res.0.conv1.weight": (
        "model.vqmodel.encoder.down.2.block.0.conv1.weight"
    ),
    "gen_vision_model.encoder.conv_blocks.3.attn.0.proj_out.bias": (
        "model.vqmodel.encoder.down.3.attn.0.proj_out.bias"
    ),
    "gen_vision_model.encoder.conv_blocks.0.downsample.conv.weight": (
        "model.vqmodel.encoder.down.0.downsample.conv.weight"
    ),
    "gen_vision_model.encoder.mid.0.norm1.weight": "model.vqmodel.encoder.mid.block_1.norm1.weight",
    "gen_vision_model.decoder.mid.1.q.weight": "model.vqmodel.decoder.mid.attn_1.q.weight",
    "gen_vision_model.decoder.mid.2.conv2.bias": "model.vqmodel.decoder.mid.block_2.conv2.bias",
    "gen_vision_model.decoder.conv_blocks.1.res.1.norm2.bias": (
        "model.vqmodel.decoder.up.1.block.1.norm2.bias"
    ),
    "gen_vision_model.decoder.conv_blocks.1.res.0.nin_shortcut.weight": (
        "model.vqmodel.decoder.up.1.block.0.nin_shortcut.weight"
    ),
    "gen_vision_model.decoder.conv_blocks.2.upsample.conv.bias": (
        "model.vqmodel.decoder.up.2.upsample.conv.bias"
    ),
    "gen_vision_model.decoder.norm_out.weight": "model.vqmodel.decoder.norm_out.weight",
    "gen_vision_model.quantize.embedding.weight": "model.vqmodel.quantize.embedding.weight",
    "gen_vision_model.post_quant_conv.weight": "model.vqmodel.post_quant_conv.weight",
    "language_model.model.embed_tokens.weight": "model.language_model.embed_tokens.weight",
    "language_model.model.layers.1.mlp.up_proj.weight": (
        "model.language_model.layers.1.mlp.up_proj.weight"
    ),
    "language_model.model.norm.weight": "model.language_model.norm.weight",
    "language_model.lm_head.weight": "lm_head.weight",
}


@pytest.fixture(scope="module")
def tensors(tiny_original: Path) -> dict[str, Tensor]:
    """What the checkpoint holds, read without gapbench."""
    found: dict[str, Tensor] = {}
    for shard in tiny_original.glob("*.bin"):
        found |= torch.load(shard, weights_only=True)
    return found


@pytest.fixture(scope="module")
def model(tiny_original: Path) -> JanusModel:
    return JanusModel("original", tiny_original, dtype="float32")


@pytest.fixture
def copy(tiny_original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_original, tmp_path / "copy"))


def test_every_tensor_is_in_its_place(model: JanusModel, tensors: dict[str, Tensor]) -> None:
    state = model.network.state_dict()
    for old, new in KNOWN.items():
        assert torch.equal(state[new], tensors[old]), old
    for layer in (0, 1):
        for kind in ("weight", "bias"):
            fused = tensors[f"{TOWER}.blocks.{layer}.attn.qkv.{kind}"]
            parts = [
                state[f"{SEES}.encoder.layers.{layer}.self_attn.{p}_proj.{kind}"] for p in "qkv"
            ]
            assert torch.equal(torch.cat(parts), fused)
    places = state[f"{SEES}.embeddings.position_embedding.weight"]
    assert torch.equal(places, tensors[f"{TOWER}.pos_embed"][0])

    # The rest: each tensor turns up once, unchanged, and nothing else does.
    def key(tensor: Tensor) -> bytes:
        return tensor.contiguous().numpy().tobytes()

    pieces = [
        piece
        for name, tensor in tensors.items()
        if "attn_pool" not in name and "codebook_used" not in name
        for piece in (tensor.chunk(3) if ".qkv." in name else [tensor])
    ]
    assert sorted(map(key, pieces)) == sorted(map(key, state.values()))


def test_the_head_and_the_embeddings_stay_apart(model: JanusModel) -> None:
    embeddings = model.network.get_input_embeddings().weight
    assert model.network.config.tie_word_embeddings is False
    assert not torch.equal(model.network.lm_head.weight, embeddings)


def test_it_asks_and_draws_in_deepseeks_words(model: JanusModel) -> None:
    (drawing,) = model.generate(["a red circle"], [1])
    assert drawing.effective_prompt == "<|User|>: a red circle\n\n<|Assistant|>:<begin_of_image>"
    ids = model.processor().tokenizer(drawing.effective_prompt)["input_ids"]
    assert ids[0] == model.processor().tokenizer.bos_token_id
    assert ids[-1] == model.processor().tokenizer.boi_token_id
    asked = model._chat("what is it?")
    assert asked == "<|User|>: <image_placeholder>\nwhat is it?\n\n<|Assistant|>:"
    # Upstream strips a whole turn, so the blanks between the image and the question stay.
    assert model._chat("  what is it? ") == asked.replace("what", "  what")
    assert (
        model.chat([{"role": "user", "content": " what? "}]) == "<|User|>: what?\n\n<|Assistant|>:"
    )


# What deepseek-ai/Janus 1daa72f gave for these weights: the loop of generation_inference.py with
# the likeliest token taken, and VLMImageProcessor.
DRAWN = {
    "a red circle": ([1, 41, *[65] * 14], [28522, 259675, 246975], [191, 255, 210]),
    "describe a blue square": ([109, 35, *[65] * 14], [28706, 259665, 246720], [188, 255, 211]),
}
SEEN = {(97, 64): -5.5058, (50, 119): -7.2941, (31, 30): -7.9372, (120, 5): -12.0627, (40, 40): -3.749}  # fmt: skip  # noqa: E501


@pytest.mark.parametrize("prompt", DRAWN)
def test_it_draws_what_upstreams_code_draws(tiny_original: Path, prompt: str) -> None:
    model = JanusModel("m", tiny_original, Recipe(temperature=0), dtype="float32")
    [drawing] = model.generate([prompt], [0])
    tokens, sums, corner = DRAWN[prompt]
    assert drawing.tokens is not None
    assert drawing.tokens.tolist() == tokens
    levels = np.asarray(drawing.image).astype(int)
    np.testing.assert_allclose(levels.sum((0, 1)), sums, rtol=0, atol=8)  # another CPU's rounding
    np.testing.assert_allclose(levels[0, 0], corner, rtol=0, atol=1)


@pytest.mark.parametrize("size", SEEN)
def test_it_sees_what_upstreams_code_sees(model: JanusModel, size: tuple[int, int]) -> None:
    width, height = size
    values = (np.arange(width * height * 3) * 7 % 256).astype(np.uint8)
    picture = Image.fromarray(values.reshape(height, width, 3))
    seen = model._asked([[picture]], [model._chat("q?")])["pixel_values"]
    assert float(seen.double().sum()) == pytest.approx(SEEN[size], abs=1e-3)


def test_saved_it_is_a_checkpoint_in_the_hubs_layout(model: JanusModel, tmp_path: Path) -> None:
    model.save(tmp_path / "saved")
    again = JanusModel("again", tmp_path / "saved", dtype="float32")
    prompts = ["a red circle", "a blue square and a"]
    before, after = model.generate(prompts, [1, 2]), again.generate(prompts, [1, 2])
    assert [d.image.tobytes() for d in before] == [d.image.tobytes() for d in after]
    images = [drawing.image for drawing in before]
    np.testing.assert_array_equal(
        model.judge(images, ["q?"] * 2, ANSWERS), again.judge(images, ["q?"] * 2, ANSWERS)
    )


def test_safetensors_and_pickled_weights_are_the_same_model(
    copy: Path, model: JanusModel, tensors: dict[str, Tensor]
) -> None:
    for shard in copy.glob("*.bin*"):
        shard.unlink()
    save_file({name: t.contiguous() for name, t in tensors.items()}, copy / "model.safetensors")
    other = load_model(str(copy), dtype="float32")
    first, second = model.generate(["a"], [3])[0], other.generate(["a"], [3])[0]
    assert first.image.tobytes() == second.image.tobytes()
    assert model.fingerprint != other.fingerprint


def test_a_run_from_the_command_line(cli: Cli, tiny_original: Path) -> None:
    done = cli(
        "run", "--model", str(tiny_original), "--tasks", "shapes", "--limit", "2", "--samples", "1"
    )
    assert done.returncode == 0, done.stderr
    assert "tiny-original on shapes" in done.stdout


def _spoil(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def _add(folder: Path, name: str) -> None:
    """One more shard, which the index names, with one more tensor."""
    torch.save({name: torch.zeros(2)}, folder / "pytorch_model-3.bin")
    file = folder / "pytorch_model.bin.index.json"
    index = json.loads(file.read_text())
    index["weight_map"][name] = "pytorch_model-3.bin"
    file.write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: (f / "pytorch_model-00001-of-00002.bin").unlink(), "lacks 1 of the 2 files"),
        (lambda f: (f / "pytorch_model-00001-of-00002.bin").write_bytes(b"no"), "cannot load"),
        (
            lambda f: torch.save(
                {"gen_embed.weight": Path}, f / "pytorch_model-00001-of-00002.bin"
            ),
            "cannot load",
        ),
        (lambda f: _spoil(f, aligner_config={"params": {"projector_type": "linear"}}), "mlp_gelu"),
        (
            lambda f: _add(f, "flow.weight"),
            "1 tensors that Janus does not have, flow.weight among them",
        ),
        (lambda f: (f / "tokenizer.json").write_text("{"), "cannot load"),
        (lambda f: (f / "special_tokens_map.json").unlink(), "cannot"),
    ],
    ids=["missing", "rubbish", "pickled code", "projector", "unknown", "tokenizer", "specials"],
)
def test_broken_checkpoints_are_refused_in_one_line(
    copy: Path, spoil: Callable[[Path], object], words: str
) -> None:
    spoil(copy)
    with pytest.raises(GapbenchError) as caught:
        load_model(str(copy)).load()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "model copy" in str(caught.value)


def test_a_folder_without_weights_says_what_it_looked_for(copy: Path) -> None:
    for shard in copy.glob("*.bin*"):
        shard.unlink()
    with pytest.raises(GapbenchError, match=r"no \.safetensors and no \.bin file"):
        load_model(str(copy))
