"""BAGEL on a tiny checkpoint: its files, its blocks, its noise, its training."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import bagels
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy import stats

from gapbench import GapbenchError, load_model
from gapbench.models.autoregressive.noise import keys, normal
from gapbench.models.bagel import checkpoint
from gapbench.models.bagel.adapter import BagelModel
from gapbench.models.bagel.flow import Recipe, moments
from gapbench.models.bagel.network import Bagel, Qwen2Config, SiglipVisionConfig
from gapbench.models.bagel.pictures import Geometry, fitted, packed, unpacked
from gapbench.models.registry import MODELS
from gapbench.verdict import ANSWERS

PROMPTS = ("a red circle", "a blue square above two green stars", "three dogs", f"{'dogs ' * 70}")
SEEDS = (11, 2**40 + 3, 7, 5)
BLOCK = r"language_model\.model\.layers\.\d+\."
EYE = r"vit_model\.vision_model\."
PUBLISHED = {
    BLOCK + r"self_attn\.[qkv]_proj(_moe_gen)?\.(weight|bias)": 28 * 12,
    BLOCK + r"self_attn\.o_proj(_moe_gen)?\.weight": 28 * 2,
    BLOCK + r"self_attn\.[qk]_norm(_moe_gen)?\.weight": 28 * 4,
    BLOCK + r"mlp(_moe_gen)?\.(gate|up|down)_proj\.weight": 28 * 6,
    BLOCK + r"(input|post_attention)_layernorm(_moe_gen)?\.weight": 28 * 4,
    r"language_model\.(model\.embed_tokens|lm_head|model\.norm|model\.norm_moe_gen)\.weight": 4,
    EYE + r"encoder\.layers\.\d+\.self_attn\.(q_proj|k_proj|v_proj|out_proj)\.(weight|bias)": 208,
    EYE + r"encoder\.layers\.\d+\.(mlp\.fc[12]|layer_norm[12])\.(weight|bias)": 26 * 8,
    EYE + r"(embeddings\.patch_embedding|post_layernorm)\.(weight|bias)": 4,
    EYE + r"embeddings\.position_embedding\.weight": 1,
    r"(connector\.fc[12]|time_embedder\.mlp\.[02]|vae2llm|llm2vae)\.(weight|bias)": 12,
    r"(latent|vit)_pos_embed\.pos_embed": 2,
}
"""Names of the tensors in the published ema.safetensors, and how many there are."""


def made(folder: Path, dtype: str = "auto", **recipe: object) -> BagelModel:
    model = load_model(str(folder), device="cpu", dtype=dtype, recipe={"steps": 4, **recipe})
    assert isinstance(model, BagelModel)
    return model


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(GapbenchError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def copied(tiny_bagel: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bagel, tmp_path / "copied"))


# -- files ---------------------------------------------------------------------------------------


def test_a_network_of_the_published_size_has_the_published_tensors() -> None:
    text = Qwen2Config(
        vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28,
        num_attention_heads=28, num_key_value_heads=4,
    )  # fmt: skip
    vision = SiglipVisionConfig(
        hidden_size=1152, intermediate_size=4304, num_hidden_layers=26, num_attention_heads=16,
        image_size=980, patch_size=14, attn_implementation="sdpa",
    )  # fmt: skip
    sizes = Geometry(
        latent_side=64, latent_patch=2, latent_channels=16, latent_scale=8, vision_side=70,
        vision_patch=14, vision_pixels=980, room=32768, layers=28, layer_numbers=0,
    )  # fmt: skip
    with torch.device("meta"):
        state = Bagel(text, vision, sizes).state_dict()
    found = {pattern: [n for n in state if re.fullmatch(pattern, n)] for pattern in PUBLISHED}
    assert {pattern: len(names) for pattern, names in found.items()} == PUBLISHED
    assert sum(PUBLISHED.values()) == len(state)
    # In bfloat16 the file has 29.2 GB.
    assert sum(tensor.numel() for tensor in state.values()) * 2 == pytest.approx(29.2e9, rel=0.005)
    assert state["vit_model.vision_model.embeddings.patch_embedding.weight"].shape == (1152, 588)
    assert (sizes.latent_pixels, sizes.latent_stride, sizes.latent_width) == (1024, 16, 64)


def test_every_tensor_of_the_files_is_used(tiny_bagel: Path, tmp_path: Path) -> None:
    model = made(tiny_bagel, "float32")
    model.save(tmp_path / "saved")
    for name in ("ema.safetensors", "ae.safetensors"):
        given, saved = load_file(tiny_bagel / name), load_file(tmp_path / "saved" / name)
        assert given.keys() == saved.keys()
        assert all(torch.equal(value, saved[key]) for key, value in given.items())
    # Diffusers' autoencoder has as many numbers as FLUX's file.
    there, read = model.autoencoder.state_dict(), load_file(tiny_bagel / "ae.safetensors")
    assert sum(map(torch.numel, there.values())) == sum(map(torch.numel, read.values()))


@pytest.mark.parametrize("file", ["ema.safetensors", "ae.safetensors"])
def test_tensors_that_are_missing_left_over_or_of_another_shape_are_named(
    copied: Path, file: str
) -> None:
    tensors = load_file(copied / file)
    name = {"e": "connector.fc2.weight", "a": "decoder.mid.attn_1.q.weight"}[file[0]]
    for change, words in (
        ({name: None}, "lacks"),
        ({"more.weight": torch.zeros(1)}, "has more.weight"),
        ({name: torch.zeros(3, 3)}, "(3, 3)"),
    ):
        altered = {key: value for key, value in {**tensors, **change}.items() if value is not None}
        save_file(altered, copied / file)
        model = made(copied)
        said = refusal(lambda model=model: model.generate(["a"], [1]))  # type: ignore[misc]
        assert words in said
        assert file in said


def test_a_folder_that_is_not_whole_is_told(copied: Path) -> None:
    (copied / "ae.safetensors").write_bytes(b"no tensors")
    assert "ae.safetensors" in refusal(lambda: made(copied))
    (copied / "ae.safetensors").unlink()
    assert "lacks ae.safetensors" in refusal(lambda: made(copied))


def test_a_tokenizer_without_a_mark_and_broken_settings_are_told(copied: Path) -> None:
    (copied / "llm_config.json").write_text(json.dumps({"max_position_embeddings": "many"}))
    assert "many" in refusal(lambda: made(copied))
    (copied / "tokenizer.json").write_text("{}")
    (copied / "llm_config.json").unlink()
    assert "llm_config.json" in refusal(lambda: made(copied))


def test_without_diffusers_one_line_says_what_to_install(
    tiny_bagel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "find_spec", lambda _name: None)
    assert "pip install 'gapbench[diffusers]'" in refusal(lambda: made(tiny_bagel))


# -- recipe --------------------------------------------------------------------------------------


def test_the_recipe_of_the_table_is_the_one_that_code_has() -> None:
    assert Recipe(**MODELS["bagel"].recipe) == Recipe()


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("steps", 1, "2 or more"),
        ("cfg_text_scale", -1.0, "0 or more"),
        ("cfg_renorm_type", "both", "text_channel"),
        ("cfg_renorm_min", 2.0, "from 0 to 1"),
        ("timestep_shift", 0.0, "above 0"),
        ("size", 6, "a multiple of 4 and at most 16"),
        ("size", 32, "a multiple of 4 and at most 16"),
        ("sampler", "other", "euler-1"),
        ("think", 3, "true or false"),
    ],
)
def test_a_recipe_that_cannot_be_drawn_by_is_refused(
    tiny_bagel: Path, key: str, value: object, words: str
) -> None:
    said = refusal(lambda: made(tiny_bagel, **{key: value}))
    assert words in said
    assert key in said


def test_a_size_of_ones_own_draws_smaller_images(tiny_bagel: Path) -> None:
    (drawing,) = made(tiny_bagel, size=8).generate(["a"], [1])
    assert drawing.image.size == (8, 8)
    assert drawing.latents is not None
    assert drawing.latents.shape == (bagels.CHANNELS, 4, 4)


def test_special_tokens_and_long_prompts_are_refused(tiny_bagel: Path) -> None:
    model = made(tiny_bagel)
    assert "<|im_end|>" in str(model.refuses("a <|im_end|> b"))
    assert "room for 4096" in str(model.refuses("x " * 5000))
    assert model.refuses("x " * 1500) is None
    thinking = made(tiny_bagel, think=True, think_tokens=1500)
    assert "room for 4096" in str(thinking.refuses("x " * 1500))


# -- what does not depend on a batch -------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_blocks_keep_every_bit_where_rounding_shows(tiny_bagel: Path, dtype: str) -> None:
    model = made(tiny_bagel, dtype, block=3)
    together = model.generate(PROMPTS, SEEDS)
    alone = [model.generate([p], [s])[0] for p, s in zip(PROMPTS, SEEDS, strict=True)]
    turned = model.generate(PROMPTS[::-1], SEEDS[::-1])[::-1]
    for other in (alone, turned):
        for one, another in zip(together, other, strict=True):
            np.testing.assert_array_equal(one.latents, another.latents)
            assert one.image.tobytes() == another.image.tobytes()
    assert model.check_seeds(PROMPTS[0], 3) is None
    images = [Image.new("RGB", size, "red") for size in ((16, 16), (30, 9), (16, 16), (4, 4))]
    questions = ["is it red?", "and now?", "is it red? " * 30, "no?"]
    odds = model.judge(images, questions, ANSWERS)
    ones = [model.judge([i], [q], ANSWERS)[0] for i, q in zip(images, questions, strict=True)]
    np.testing.assert_array_equal(odds, ones)
    assert model.reply(images, questions)[::-1] == model.reply(images[::-1], questions[::-1])


def test_a_plan_is_written_for_each_prompt_and_stored(tiny_bagel: Path) -> None:
    model = made(tiny_bagel, think=True, think_tokens=6)
    plans = model.plan([*PROMPTS[:3], PROMPTS[0]])
    assert list(plans) == list(PROMPTS[:3])
    assert plans[PROMPTS[1]] == model.plan([PROMPTS[1]])[PROMPTS[1]]
    drawings = model.generate(PROMPTS[:2], SEEDS[:2])
    for prompt, drawing in zip(PROMPTS, drawings, strict=False):
        assert str(drawing.effective_prompt).endswith(
            f"{prompt}<|im_end|><|im_start|>{plans[prompt]}<|im_end|>"
        )
    (plain,) = made(tiny_bagel).generate(PROMPTS[:1], SEEDS[:1])
    assert plain.image.tobytes() != drawings[0].image.tobytes()


def test_one_pass_gives_the_odds_that_a_token_after_another_has(tiny_bagel: Path) -> None:
    """Of answers with one, two and no tokens in common."""
    model = made(tiny_bagel)
    image, question = Image.new("RGB", (16, 16), "red"), "is it red?"
    answers = ["The score is 0", "The score is 1", "The", "red circle"]
    found = model.judge([image] * 2, [question, "no?"], answers)[0]
    reader = model._reader
    for answer, odds in zip(answers, found, strict=True):
        tail, total = model.tokenizer.encode(answer), 0.0
        for place, token in enumerate(tail):
            row = [*model._tokens(question), model._marks[0], *tail[:place]]
            with torch.inference_mode():
                _, states, _ = next(reader.asked([image], [0], [row]))
                logits = model.network.language_model.lm_head(states[0, len(row) - 1])
            total += float(logits.double().log_softmax(-1)[token])
        assert odds == pytest.approx(total, abs=1e-9)


# -- parts -----------------------------------------------------------------------------------------


def test_noise_is_normal_and_of_its_seed_and_stream_alone() -> None:
    noise = normal(keys(range(50)), 2001)
    assert noise.shape == (50, 2001)
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 0.01
    assert abs(float(torch.corrcoef(noise.T[:4]).triu(1).abs().max())) < 0.5
    assert torch.equal(normal(keys([7]), 2001)[0], noise[7])
    assert torch.equal(normal(keys([7]), 9)[0], noise[7, :9])
    other = normal(keys([7]), 2001, stream=1)[0]
    assert abs(float(torch.corrcoef(torch.stack([other, noise[7]]))[0, 1])) < 0.1


def test_a_shift_leaves_more_moments_near_noise() -> None:
    assert moments(3, 1.0).tolist() == [1.0, 0.5, 0.0]
    assert moments(3, 3.0).tolist() == [1.0, 0.75, 0.0]


def test_tokens_of_latents_are_put_together_again() -> None:
    values = torch.arange(2 * 4 * 8 * 8).view(2, 4, 8, 8).float()
    tokens = packed(values, 2)
    assert tokens.shape == (2, 16, 16)
    assert tokens[0, 1].tolist() == values[0, :, 0:2, 2:4].permute(1, 2, 0).flatten().tolist()
    assert torch.equal(unpacked(tokens, 2), values)


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ((1024, 1024), (980, 980)), ((512, 512), (518, 518)), ((100, 50), (448, 224)),
        ((3000, 100), (980, 28)),
    ],
)  # fmt: skip
def test_pictures_are_scaled_as_upstream_scales_them(
    size: tuple[int, int], wanted: tuple[int, int]
) -> None:
    """Worked out by its MaxLongEdgeMinShortEdgeResize(980, 224, 14)."""
    assert fitted(size, 980, 224, 14) == wanted


# -- training --------------------------------------------------------------------------------------


def test_a_loss_depends_on_its_row_alone(tiny_bagel: Path) -> None:
    model = made(tiny_bagel)
    latents = np.stack([d.latents for d in model.generate(PROMPTS[:3], SEEDS[:3])])  # type: ignore[arg-type]
    away = [False, True, False]
    found = model.generation_loss(PROMPTS[:3], latents, SEEDS[:3], away)
    assert found.requires_grad
    assert found.dtype == torch.float64
    found = found.detach()
    for row in range(3):
        some = slice(row, row + 1)
        (alone,) = model.generation_loss(PROMPTS[some], latents[some], SEEDS[some], away[some])
        assert float(alone.detach()) == pytest.approx(float(found[row]), abs=1e-9)
    other = model.generation_loss(PROMPTS[:3], latents, [1, 2, 3], away).detach()
    assert float((other - found).abs().min()) > 1e-3
    withheld = model.generation_loss(PROMPTS[:3], latents, SEEDS[:3], True).detach()
    assert float(withheld[1]) == pytest.approx(float(found[1]), abs=1e-9)
    assert float(withheld[0]) != pytest.approx(float(found[0]), abs=1e-3)


def test_checkpointing_changes_no_gradient(tiny_bagel: Path) -> None:
    slopes = []
    for checkpointing in (False, True):
        model = made(tiny_bagel)
        if checkpointing:
            model.network.gradient_checkpointing_enable({"use_reentrant": False})
        latents = np.ones((2, bagels.CHANNELS, 8, 8), np.float32)
        model.generation_loss(PROMPTS[:2], latents, [1, 2]).sum().backward()  # type: ignore[no-untyped-call]
        slopes.append(
            {n: p.grad for n, p in model.network.named_parameters() if p.grad is not None}
        )
    assert slopes[0].keys() == slopes[1].keys()
    assert any("_moe_gen" in name for name in slopes[0])
    assert any("embed_tokens" in name for name in slopes[0])
    assert not any(name.startswith(("vit_", "connector", "latent_pos")) for name in slopes[0])
    for name, slope in slopes[0].items():
        torch.testing.assert_close(slope, slopes[1][name], rtol=0, atol=1e-9)
