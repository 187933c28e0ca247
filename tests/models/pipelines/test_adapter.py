"""Pipelines of diffusers: their files, their recipes, their drawings, verdicts and losses."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pipelines
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from gapbench import GapbenchError, load_model
from gapbench.fetch.hub import verify
from gapbench.models.check import check
from gapbench.models.entry import pipeline_checkpoint
from gapbench.models.pipelines import adapter, checkpoint, make
from gapbench.models.pipelines.adapter import PipelineModel
from gapbench.runs.needs import needs
from gapbench.verdict import ANSWERS

PROMPTS = ("a red circle", "a blue square above two green stars", "three dogs", "")
SEEDS = (11, 2**40 + 3, 7, 5)
each_kind = pytest.mark.parametrize("kind", pipelines.KINDS)
Tiny = Mapping[str, Path]


def made(tiny: Tiny, kind: str, dtype: str = "auto", **recipe: object) -> PipelineModel:
    name = f"diffusers:{tiny[kind]}"
    model = load_model(name, "cpu", dtype, pipelines.recipe(kind, **recipe))
    assert isinstance(model, PipelineModel)
    return model


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(GapbenchError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def copied(tiny_pipelines: Tiny, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_pipelines["qwen"], tmp_path / "copied"))


def alter(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


# -- drawing -------------------------------------------------------------------------------------


@each_kind
def test_blocks_keep_every_bit_where_rounding_shows(tiny_pipelines: Tiny, kind: str) -> None:
    model = made(tiny_pipelines, kind, "float32", block=3)
    together = model.generate(PROMPTS, SEEDS)
    alone = [model.generate([p], [s])[0] for p, s in zip(PROMPTS, SEEDS, strict=True)]
    turned = model.generate(PROMPTS[::-1], SEEDS[::-1])[::-1]
    for other in (alone, turned):
        for one, another in zip(together, other, strict=True):
            np.testing.assert_array_equal(one.latents, another.latents)
            assert one.image.tobytes() == another.image.tobytes()
    assert model.check_seeds(PROMPTS[0], 3) is None


@each_kind
def test_an_image_is_what_the_pipeline_itself_draws(tiny_pipelines: Tiny, kind: str) -> None:
    model = made(tiny_pipelines, kind)
    (drawing,) = model.generate(PROMPTS[1:2], [9])
    stream = torch.Generator().manual_seed(9)
    own = model.pipeline(PROMPTS[1], generator=stream, **pipelines.recipe(kind)).images[0]
    if own.mode == "RGBA":  # Qwen-Image 2.1 draws transparency
        own = Image.alpha_composite(Image.new("RGBA", own.size, "white"), own)
    assert drawing.image.tobytes() == own.convert("RGB").tobytes()
    assert drawing.effective_prompt is None
    assert drawing.latents is not None
    assert (drawing.latents.shape[0], drawing.latents.dtype) == (1, np.float32)


def test_guidance_by_a_negative_prompt_changes_an_image(tiny_pipelines: Tiny) -> None:
    guides: tuple[dict[str, str], ...] = ({}, {"negative_prompt": '" "'})
    plain, guided = (
        made(tiny_pipelines, "qwen", **more).generate(PROMPTS[:2], SEEDS[:2]) for more in guides
    )
    assert all(p.image.tobytes() != g.image.tobytes() for p, g in zip(plain, guided, strict=True))


def test_a_prompt_that_a_pipeline_wrote_anew_is_the_effective_one(tiny_pipelines: Tiny) -> None:
    model = made(tiny_pipelines, "longcat", enable_prompt_rewrite=True)
    model.pipeline.rewire_prompt = lambda prompts, _device: [f"{p}, in oil" for p in prompts]
    drawings = model.generate(PROMPTS[:2], SEEDS[:2])
    assert [d.effective_prompt for d in drawings] == [f"{p}, in oil" for p in PROMPTS[:2]]
    assert model.encoder.generation_config.do_sample is False


# -- recipe --------------------------------------------------------------------------------------


def test_the_recipe_is_that_of_the_pipelines_call(tiny_pipelines: Tiny) -> None:
    recipes = {kind: dict(load_model(str(tiny_pipelines[kind])).recipe) for kind in tiny_pipelines}
    assert recipes["qwen"] == {
        "negative_prompt": None, "true_cfg_scale": 4.0, "height": None, "width": None,
        "num_inference_steps": 50, "guidance_scale": None, "max_sequence_length": 512, "block": 0,
    }  # fmt: skip
    assert recipes["longcat"] == {
        "negative_prompt": "", "height": None, "width": None, "num_inference_steps": 50,
        "guidance_scale": 4.5, "enable_cfg_renorm": True, "cfg_renorm_min": 0.0,
        "enable_prompt_rewrite": True, "block": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("num_inference_steps", 0, "1 or more"),
        ("height", "a", "must be a whole number"),
        ("true_cfg_scale", float("inf"), "must be a number"),
        ("negative_prompt", 3, "must be a text"),
        ("prompt", "a", "no such sampling parameter"),
        ("callback_on_step_end_tensor_inputs", "a", "no such sampling parameter"),
    ],
)
def test_a_recipe_that_cannot_be_drawn_by_is_refused(
    tiny_pipelines: Tiny, key: str, value: object, words: str
) -> None:
    said = refusal(lambda: made(tiny_pipelines, "qwen", **{key: value}))
    assert words in said
    assert key in said


def test_a_size_that_the_pipeline_changes_is_refused(tiny_pipelines: Tiny) -> None:
    model = made(tiny_pipelines, "qwen", height=18)
    assert "draws 16 x 16 pixels where height is 18" in refusal(lambda: model.generate(["a"], [1]))
    model = made(tiny_pipelines, "qwen", max_sequence_length=2000)
    said = refusal(lambda: model.generate(["a"], [1]))
    assert "fails with this recipe: `max_sequence_length` cannot be greater" in said


def test_special_tokens_and_long_prompts_are_refused(tiny_pipelines: Tiny) -> None:
    model = made(tiny_pipelines, "qwen")
    assert "<|image_pad|>" in str(model.refuses("a <|image_pad|> b"))
    assert "would read 512" in str(model.refuses("x " * 2000))
    assert model.refuses("x " * 200) is None


# -- files ---------------------------------------------------------------------------------------


def test_an_encoder_that_cannot_judge_is_refused(copied: Path) -> None:
    index = copied / checkpoint.INDEX
    alter(index, text_encoder=["transformers", "T5EncoderModel"], _class_name="FluxPipeline")
    said = refusal(lambda: load_model(str(copied)))
    assert "FluxPipeline reads prompts with T5EncoderModel, which is no vision-language" in said
    assert "--model images:FOLDER" in said
    alter(index, text_encoder=["transformers", "Qwen2_5_VLModel"])
    assert "Qwen2_5_VLModel, which is no" in refusal(lambda: load_model(str(copied)))
    whole = ["transformers", "Qwen2_5_VLForConditionalGeneration"]
    alter(index, text_encoder=whole, _class_name="QwenImageEditPipeline")
    said = refusal(lambda: load_model(str(copied)))
    assert "gapbench drives QwenImagePipeline, " in said
    assert "not QwenImageEditPipeline; draw with diffusers" in said


def test_code_of_a_checkpoint_is_never_run(copied: Path) -> None:
    alter(copied / checkpoint.INDEX, transformer=["my_network", "MyTransformer"])
    assert "code of a checkpoint is never run" in refusal(lambda: load_model(str(copied)))


def test_a_folder_that_is_not_whole_is_told(copied: Path) -> None:
    for part in ("vae/diffusion_pytorch_model", "text_encoder/model"):
        file = copied / f"{part}.safetensors"
        tensors = load_file(file)
        name, *others = sorted(tensors)
        save_file({key: tensors[key] for key in others}, file, {"format": "pt"})
        said = refusal(load_model(str(copied), "cpu").load)
        assert f"lack 1 tensors, {name} among them" in said
        save_file(tensors, file, {"format": "pt"})
    (copied / "vae/diffusion_pytorch_model.safetensors").unlink()
    assert "no .safetensors file in" in refusal(lambda: load_model(str(copied)))
    shutil.rmtree(copied / "vae")
    assert "lacks vae/, which its model_index.json names" in refusal(
        lambda: load_model(str(copied))
    )


def test_a_scheduler_whose_noise_is_shared_is_refused(copied: Path) -> None:
    alter(copied / "scheduler/scheduler_config.json", stochastic_sampling=True)
    assert "set stochastic_sampling to false" in refusal(lambda: load_model(str(copied)))


def test_another_scheduler_draws_and_is_not_trained(copied: Path) -> None:
    assert "generation_loss" in load_model(str(copied)).capabilities
    alter(copied / checkpoint.INDEX, scheduler=["diffusers", "UniPCMultistepScheduler"])
    assert not load_model(str(copied)).capabilities & adapter.TRAINED


def test_weights_and_settings_are_in_the_fingerprint(copied: Path) -> None:
    first = load_model(str(copied)).fingerprint
    assert load_model(str(copied), dtype="float32").fingerprint != first
    alter(copied / "scheduler/scheduler_config.json", shift=3.0)
    assert load_model(str(copied)).fingerprint != first


def test_without_diffusers_one_line_says_what_to_install(
    tiny_pipelines: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "find_spec", lambda _name: None)
    for name in ("diffusers:Qwen/Qwen-Image", str(tiny_pipelines["qwen"])):
        said = refusal(lambda name=name: load_model(name))  # type: ignore[misc]
        assert "pip install 'gapbench[diffusers]'" in said


def test_hub_ids_are_fetched_by_prepare_and_unpinned_ones_are_said(
    tiny_pipelines: Tiny, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    commit = "75e0b4be04f60ec59a75f475837eced720f823b6"
    pinned = f"diffusers:Qwen/Qwen-Image@{commit}"
    for name in ("diffusers:Qwen/Qwen-Image", pinned):
        said = refusal(lambda name=name: load_model(name))  # type: ignore[misc]
        assert f"`gapbench prepare --model {name}`" in said
        (need,) = needs([], None, [name])
        assert need.name == "Qwen/Qwen-Image"
        assert need.pin == (f"commit {commit[:12]}" if name is pinned else None)
    assert "no hub id (OWNER/NAME" in refusal(lambda: load_model("diffusers:Qwen"))
    snapshot = tiny_pipelines["qwen"].parent / commit
    shutil.copytree(tiny_pipelines["qwen"], snapshot)
    monkeypatch.setattr(make, "cached", lambda _checkpoint: snapshot)
    with caplog.at_level(logging.WARNING, "gapbench"):
        assert load_model(pinned).name == "Qwen-Image"
        assert "not pinned" not in caplog.text
        assert 'negative_prompt=" "\' gives an empty one' in caplog.text  # its call has none
        load_model("diffusers:Qwen/Qwen-Image")
    assert f"is not pinned: here is the main of when it was fetched, which {pinned}" in caplog.text


def test_a_download_that_stopped_between_its_shards_is_not_whole(copied: Path) -> None:
    wanted = pipeline_checkpoint("diffusers:a/b").files
    verify(copied, wanted, "a/b")
    index = copied / "transformer/diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"weight": "second.safetensors"}}))
    assert "second.safetensors is missing" in refusal(lambda: verify(copied, wanted, "a/b"))


# -- judging -------------------------------------------------------------------------------------


@each_kind
def test_one_pass_gives_the_odds_that_a_token_after_another_has(
    tiny_pipelines: Tiny, kind: str
) -> None:
    model = made(tiny_pipelines, kind)
    images = [Image.new("RGB", (30, 20), color) for color in ("red", "blue")]
    questions = ["is it red?", "is that a circle? " * 3]
    found = model.judge(images, questions, ANSWERS)
    for row, (image, question) in enumerate(zip(images, questions, strict=True)):
        text = model.asked.text(question)
        assert "<|vision_start|><|image_pad|><|vision_end|>" in text
        start = model.asked.batch(model.encoder, [text], [image])["input_ids"].shape[1]
        for column, answer in enumerate(ANSWERS):
            batch = model.asked.batch(model.encoder, [text + answer.lstrip()], [image])
            with torch.inference_mode():
                said = model.encoder(**batch).logits[0].double().log_softmax(-1)
            ids = batch["input_ids"][0]
            total = sum(float(said[at - 1, ids[at]]) for at in range(start, len(ids)))
            assert found[row, column] == pytest.approx(total, abs=1e-6)
    swapped = model.judge(images[::-1], questions, ANSWERS)
    assert np.abs(swapped - found).min() > 1e-6  # it sees the picture


def test_a_tokenizer_alone_is_asked_as_qwen_is(tiny_pipelines: Tiny) -> None:
    """The published tokenizer of Qwen-Image has a template for texts only."""
    text = made(tiny_pipelines, "qwen").asked.text("Is it red?")
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "<|vision_start|><|image_pad|><|vision_end|>Is it red?<|im_end|>\n<|im_start|>assistant\n"
    )


@each_kind
def test_check_model_finds_nothing(tiny_pipelines: Tiny, kind: str) -> None:
    def load(name: str, changes: Mapping[str, object]) -> Any:
        return load_model(name, "cpu", recipe={**pipelines.recipe(kind), **changes})

    found = list(check(str(tiny_pipelines[kind]), load))
    assert [each for each in found if each.failure] == []
    assert sum(each.skipped is None for each in found) == 14


# -- loss ----------------------------------------------------------------------------------------


@each_kind
def test_the_loss_is_that_of_the_velocity_which_a_step_takes(
    tiny_pipelines: Tiny, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step from noise goes along the network's velocity there: at that time, with that noise
    and what it came to, nothing is left of the loss."""
    more = {"guidance_scale": 1.0} if kind == "longcat" else {}
    model = made(tiny_pipelines, kind, num_inference_steps=1, **more)
    given = adapter._inputs(model.network, lambda: model._call(PROMPTS[:1], SEEDS[:1]))
    noise = given["hidden_states"].flatten(1)
    (drawing,) = model.generate(PROMPTS[:1], SEEDS[:1])
    assert drawing.latents is not None
    latents = drawing.latents[None]
    random = torch.cat([torch.full((1, 1), 40.0), noise], 1)
    monkeypatch.setattr(adapter, "normal", lambda *_: random)
    (loss,) = model.generation_loss(PROMPTS[:1], latents, [0]).tolist()
    assert np.square(latents.ravel() - noise.numpy()).sum() > 1
    assert loss < 1e-6


def test_latents_of_another_size_are_refused(tiny_pipelines: Tiny) -> None:
    model = made(tiny_pipelines, "qwen")
    said = refusal(lambda: model.generation_loss(["a"], np.ones((1, 1, 4, 16), np.float32), [0]))
    assert "latents of 64 numbers, and with this recipe an image has 256" in said
