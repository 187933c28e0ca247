"""Emu3 on tiny checkpoints: against transformers' own loop and against plain forwards."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from gapbench import GapbenchError, load_model
from gapbench.models.autoregressive.noise import gumbel, keys
from gapbench.models.autoregressive.sampling import Recipe, draw, warp
from gapbench.models.base import require_shared
from gapbench.models.emu3 import Emu3Model
from gapbench.models.registry import MODELS
from gapbench.verdict import ANSWERS

Cli = Callable[..., subprocess.CompletedProcess[str]]
PROMPTS = ("a", "a red circle and a blue square", "describe circles")
SIDE, CODES, AREA = 4, 64, 32 * 32


def made(folder: Path, **changes: object) -> Emu3Model:
    recipe = {"image_area": AREA, **changes}
    model = load_model(str(folder), recipe=recipe)
    assert isinstance(model, Emu3Model)
    return model


@pytest.fixture(scope="module")
def model(tiny_emu3: Path) -> Emu3Model:
    return made(tiny_emu3)


@pytest.fixture(scope="module")
def images(model: Emu3Model) -> list[Image.Image]:
    return [drawing.image for drawing in model.generate(PROMPTS, [1, 2, 3])]


def tokens_of(model: Emu3Model, prompts: Sequence[str], seeds: Sequence[int]) -> NDArray[np.int32]:
    found = [drawing.tokens for drawing in model.generate(prompts, seeds)]
    return np.stack([tokens for tokens in found if tokens is not None])


def inputs(model: Emu3Model, text: str) -> Any:
    return model.processor()(
        text=[text], return_for_image_generation=True, image_area=AREA, return_tensors="pt"
    )


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_greedy_codes_equal_transformers_own_generate(tiny_emu3: Path, guidance: float) -> None:
    model = made(tiny_emu3, guidance=guidance, temperature=0.0)
    module = model.network
    codes = torch.tensor(module.vocabulary_mapping.image_tokens)
    end = module.vocabulary_mapping.eol_token_id
    found = tokens_of(model, PROMPTS, [0, 1, 2])
    for prompt, row in zip(PROMPTS, found, strict=True):
        given = inputs(model, prompt + model.recipe["positive"])
        start = given["input_ids"].shape[1]
        negative = inputs(model, model.recipe["negative"])

        def allowed(_row: int, ids: Tensor, start: int = start) -> list[int]:
            place = len(ids) - start
            return [end] if place % (SIDE + 1) == SIDE else codes.tolist()

        out = module.generate(
            input_ids=given["input_ids"],
            attention_mask=given["attention_mask"],
            prefix_allowed_tokens_fn=allowed,
            guidance_scale=guidance,
            negative_prompt_ids=negative["input_ids"],
            negative_prompt_attention_mask=negative["attention_mask"],
            do_sample=False,
            max_new_tokens=SIDE * (SIDE + 1),
        )
        lines = out[0, start:].reshape(SIDE, SIDE + 1)
        assert (lines[:, -1] == end).all()
        expected = [module.vocabulary_mapping.bpe2img[int(t)] for t in lines[:, :-1].flatten()]
        assert row.tolist() == expected
    assert len({tuple(row) for row in found.tolist()}) == len(PROMPTS)


@torch.no_grad()
def plain_logits(model: Emu3Model, text: str, codes: NDArray[np.int32]) -> Tensor:
    """(T, codes) logits of one image's codes: one row, no padding, no mask, no cache."""
    module = model.network
    mapping = module.vocabulary_mapping
    ids = inputs(model, text)["input_ids"][0].tolist()
    start, places = len(ids), []
    for row in codes.reshape(SIDE, SIDE):
        for code in row:
            places.append(len(ids) - 1)
            ids.append(mapping.img2bpe[int(code)])
        ids.append(mapping.eol_token_id)
    logits = module(input_ids=torch.tensor([ids])).logits[0, places]
    assert places[0] == start - 1
    return logits[:, [mapping.img2bpe[code] for code in range(CODES)]]


@pytest.mark.parametrize(
    "changes",
    [{}, {"guidance": 1.0}, {"guidance": 2.0, "temperature": 1.3, "top_k": 9, "top_p": 0.9}],
    ids=str,
)
def test_teacher_forced_logits_reproduce_every_draw(
    tiny_emu3: Path, changes: dict[str, object]
) -> None:
    model = made(tiny_emu3, **changes)
    recipe = Recipe(**{k: model.recipe[k] for k in ("guidance", "temperature", "top_k", "top_p")})
    seeds = [5, 6, 2**40]
    for prompt, seed, drawing in zip(PROMPTS, seeds, model.generate(PROMPTS, seeds), strict=True):
        assert drawing.tokens is not None
        cond = plain_logits(model, prompt + model.recipe["positive"], drawing.tokens)
        uncond = plain_logits(model, model.recipe["negative"], drawing.tokens)
        logprobs = warp(uncond + recipe.guidance * (cond - uncond), recipe)
        steps = torch.arange(SIDE * SIDE).unsqueeze(1)
        noise = torch.cat([gumbel(keys([seed]), step, CODES) for step in steps])
        drawn = draw(logprobs, noise)
        assert drawn.tolist() == drawing.tokens.tolist()
        total = logprobs.gather(1, torch.from_numpy(drawing.tokens).long()[:, None]).sum()
        assert drawing.logprob == pytest.approx(float(total), abs=1e-9)


def test_a_seed_is_honoured_whatever_else_is_drawn(model: Emu3Model) -> None:
    alone = [
        tokens_of(model, [p], [s])[0].tolist() for p, s in zip(PROMPTS, (4, 5, 6), strict=True)
    ]
    assert tokens_of(model, PROMPTS[::-1], [6, 5, 4]).tolist() == alone[::-1]
    assert tokens_of(model, ["another", *PROMPTS], [9, 4, 5, 6])[1:].tolist() == alone


@pytest.mark.parametrize("unconditional", [False, True])
def test_generation_losses_equal_a_plain_forward(model: Emu3Model, unconditional: bool) -> None:
    tokens = tokens_of(model, PROMPTS, [1, 2, 3])
    found = model.generation_loss(PROMPTS, tokens, [7, 8, 9], unconditional)
    assert found.requires_grad
    for row, prompt, codes in zip(found, PROMPTS, tokens, strict=True):
        text = model.recipe["negative"] if unconditional else prompt + model.recipe["positive"]
        logits = plain_logits(model, text, codes)
        chosen = logits.log_softmax(-1).gather(1, torch.from_numpy(codes).long()[:, None])
        assert row.item() == pytest.approx(-chosen.sum().item(), abs=1e-9)


def test_the_effective_prompt_is_what_the_model_reads(model: Emu3Model) -> None:
    (drawing,) = model.generate(["a red circle"], [1])
    expected = "<|bos|>a red circle" + model.recipe["positive"]
    assert drawing.effective_prompt == f"{expected}<|image start|>4*4<|image token|>"
    assert drawing.image.size == (32, 32)


@torch.no_grad()
def plain_score(model: Emu3Model, image: Image.Image, question: str, answer: str) -> float:
    """Log-probability of an answer by transformers' own forward with the picture's pixels."""
    processor, module = model.processor("und"), model.module("und")

    def given(text: str) -> Any:
        return processor(text=[text], images=[image], return_tensors="pt")

    asked = f"You are a helpful assistant. USER: <image>{question}. ASSISTANT:"
    whole, start = given(asked + answer), given(asked)["input_ids"].shape[1]
    ids = whole["input_ids"]
    logits = module(
        input_ids=ids,
        pixel_values=whole["pixel_values"].double(),
        image_sizes=whole["image_sizes"],
    ).logits
    logprobs = logits[0, start - 1 : -1].log_softmax(-1)
    return float(logprobs.gather(1, ids[0, start:, None]).sum())


def test_judging_equals_a_plain_forward_whatever_the_pictures_sizes(
    model: Emu3Model, images: list[Image.Image]
) -> None:
    pictures = [images[0], images[1].resize((64, 40)), images[2]]
    questions = ["q?", "Does this image show a red circle and a blue square?", "describe it"]
    found = model.judge(pictures, questions, ANSWERS)
    for row, picture, question in zip(found, pictures, questions, strict=True):
        expected = [plain_score(model, picture, question, answer) for answer in ANSWERS]
        np.testing.assert_allclose(row, expected, rtol=0, atol=1e-9)
    together = model.reply(pictures, questions)
    alone = [model.reply([p], [q])[0] for p, q in zip(pictures, questions, strict=True)]
    assert together == alone


@pytest.mark.parametrize(
    "template",
    ["You are a helpful assistant. USER: {image_prompt}{text_prompt}. ASSISTANT:", "{{ broken"],
)
def test_the_question_is_upstreams_whatever_template_the_folder_has(
    model: Emu3Model, images: list[Image.Image], tiny_emu3: Path, tmp_path: Path, template: str
) -> None:
    copy = Path(shutil.copytree(tiny_emu3, tmp_path / "copy"))
    for role in ("gen", "und"):
        (copy / role / "chat_template.jinja").write_text(template)
    other = made(copy)
    assert other.generate(["a"], [1])[0].image == model.generate(["a"], [1])[0].image
    np.testing.assert_array_equal(
        other.judge(images, ["q?"] * 3, ANSWERS), model.judge(images, ["q?"] * 3, ANSWERS)
    )


def test_a_chat_goes_on_as_its_first_question_does(model: Emu3Model) -> None:
    turns = [
        {"role": "user", "content": "<image>how many?"},
        {"role": "assistant", "content": "two {}"},
        {"role": "user", "content": "sure?"},
    ]
    assert model.chat(turns) == (
        "You are a helpful assistant. USER: <image>how many?. ASSISTANT: two {} USER: sure?. "
        "ASSISTANT:"
    )


@torch.no_grad()
def test_pixels_between_two_levels_become_the_lower_one(model: Emu3Model) -> None:
    """Upstream's postprocess: undo the processor's normalisation, times 255, clip, cut."""
    tokens = tokens_of(model, PROMPTS, [1, 2, 3])
    how = model.processor().image_processor
    for row in tokens:
        grid = torch.from_numpy(row).long().reshape(1, SIDE, SIDE)
        values = model.network.model.vqmodel.decode(grid)[0].float().permute(1, 2, 0).numpy()
        mean, std = np.float32(how.image_mean), np.float32(how.image_std)
        levels = (values * std + mean) * np.float32(255)
        np.testing.assert_array_equal(
            np.asarray(model.decode(row[None])[0]), levels.clip(0, 255).astype(np.uint8)
        )


def test_a_pair_is_told_and_shares_no_parameters(
    model: Emu3Model, tiny_emu3: Path, images: list[Image.Image]
) -> None:
    assert model.pair
    with pytest.raises(GapbenchError, match=r"gapbench entk is about parameters that .* a pair"):
        require_shared(model, "gapbench entk")
    single = made(tiny_emu3 / "gen")
    assert not single.pair
    require_shared(single, "gapbench entk")
    assert single.fingerprint != model.fingerprint
    assert single.generate(["a"], [1])[0].image == model.generate(["a"], [1])[0].image
    assert (
        single.judge(images, ["q?"] * 3, ANSWERS) != model.judge(images, ["q?"] * 3, ANSWERS)
    ).all()


def test_saving_and_loading_keeps_both_halves(
    model: Emu3Model, images: list[Image.Image], tmp_path: Path
) -> None:
    model.save(tmp_path / "saved")
    again = made(tmp_path / "saved")
    assert again.pair
    assert again.generate(["a"], [1])[0].image == model.generate(["a"], [1])[0].image
    np.testing.assert_array_equal(
        again.judge(images, ["q?"] * 3, ANSWERS), model.judge(images, ["q?"] * 3, ANSWERS)
    )


def test_nan_in_the_eye_is_no_verdict(
    tiny_emu3: Path, images: list[Image.Image], tmp_path: Path
) -> None:
    file = Path(shutil.copytree(tiny_emu3, tmp_path / "copy")) / "und" / "model.safetensors"
    weights = load_file(file)
    name = "vqmodel.encoder.conv_in.weight"
    save_file(weights | {name: weights[name] * torch.nan}, file, metadata={"format": "pt"})
    with pytest.raises(GapbenchError, match="model copy: its vision tower gives NaN"):
        made(tmp_path / "copy").judge(images[:1], ["q?"], ANSWERS)


def test_prompts_that_cannot_be_drawn_are_refused(model: Emu3Model, tiny_emu3: Path) -> None:
    assert model.refuses("a red circle") is None
    assert "'<image>'" in (model.refuses("an <image> of") or "")
    assert "room for 1024" in (load_model(str(tiny_emu3)).refuses("a") or "")


def test_broken_folders_are_refused(tiny_emu3: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_emu3, tmp_path / "copy"))
    (copy / "und" / "model.safetensors").write_bytes(b"no")
    spoilt = made(copy)
    spoilt.load()
    with pytest.raises(GapbenchError, match=r"model copy: cannot load .*und"):
        spoilt.judge([Image.new("RGB", (32, 32))], ["q?"], ANSWERS)
    (copy / "und" / "model.safetensors").unlink()
    with pytest.raises(GapbenchError, match=r"no \.safetensors file in .*und"):
        made(copy)


def test_upstreams_recipe_is_the_default(tiny_emu3: Path) -> None:
    model = load_model(str(tiny_emu3))
    assert dict(model.recipe) == dict(MODELS["emu3"].recipe)
    assert (model.recipe["guidance"], model.recipe["top_k"]) == (3.0, 2048)


def test_a_run_marks_the_pair_in_its_table(cli: Cli, tiny_emu3: Path) -> None:
    options = ("--tasks", "shapes", "--limit", "2", "--samples", "1", "--set", f"image_area={AREA}")
    done = cli("run", "--model", str(tiny_emu3), *options)
    assert done.returncode == 0, done.stderr
    assert "tiny-emu3* (image_area=1024) on shapes" in done.stdout
    assert "* a pair: it draws with one set of weights and judges with another" in done.stdout
    run = next(line for line in done.stdout.split() if line.startswith("runs/"))
    shown = cli("show", run.split("/sheets")[0], "--format", "markdown")
    assert shown.stdout.rstrip().endswith("\\* a pair: it draws with one set of weights and judges with another")  # fmt: skip  # noqa: E501
