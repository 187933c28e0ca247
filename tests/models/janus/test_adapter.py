"""The Janus adapter on a tiny checkpoint: against transformers' own loop, against plain forwards
without cache, padding or batch, and against the pitfalls of transformers' Janus."""

from __future__ import annotations

import gc
import json
import shutil
import subprocess
import weakref
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict
from functools import partial
from logging import WARNING, Handler, LogRecord
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.utils import logging

from gapbench import load_model
from gapbench.models.autoregressive.decode import Decoder
from gapbench.models.autoregressive.layers import Layers
from gapbench.models.autoregressive.noise import gumbel, keys
from gapbench.models.autoregressive.sampling import Recipe, draw, warp
from gapbench.models.base import CAPABILITIES
from gapbench.models.janus.adapter import JanusModel
from gapbench.models.janus.t2i_r1 import Reasoning
from gapbench.types import GapbenchError
from gapbench.verdict import ANSWERS

PROMPTS = ("a", "a red circle and a blue square", "describe circles")
QUESTIONS = ("q?", "Does this image show a red circle and a blue square, or not?", "describe it")
SYSTEM = "You are a helpful language and vision assistant."
STEPS, CODES = 16, 128
Call = Callable[[], object]
Copy = Callable[[], Path]
Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def model(tiny_janus: Path) -> JanusModel:
    return JanusModel("tiny", tiny_janus)


@pytest.fixture(scope="module")
def images(model: JanusModel) -> list[Image.Image]:
    return [drawing.image for drawing in model.generate(PROMPTS, [1, 2, 3])]


@pytest.fixture
def copy(tiny_janus: Path, tmp_path: Path) -> Copy:
    """A copy of the checkpoint to spoil."""
    return lambda: Path(shutil.copytree(tiny_janus, tmp_path / "copy"))


def tokens_of(model: JanusModel, prompts: Sequence[str], seeds: Sequence[int]) -> NDArray[np.int32]:
    found = [drawing.tokens for drawing in model.generate(prompts, seeds)]
    return np.stack([tokens for tokens in found if tokens is not None])


def chat(model: JanusModel, *parts: dict[str, str]) -> str:
    turn = {"role": "user", "content": list(parts)}
    text: str = model.processor().apply_chat_template([turn], add_generation_prompt=True)
    return text


@torch.no_grad()
def plain_logits(
    model: JanusModel, prompt: str, tokens: NDArray[np.int32], unconditional: bool = False
) -> Tensor:
    """(T, V) logits of one image's codes: one row, no padding, no mask, no cache."""
    core, tokenizer = model.network.model, model.processor().tokenizer
    ids = tokenizer(chat(model, {"type": "text", "text": prompt}) + "<boi>")["input_ids"]
    assert (ids[0], ids[-1]) == (1, 4)
    if unconditional:
        ids = [1, *[0] * (len(ids) - 2), 4]
    codes = torch.from_numpy(tokens[:-1].astype(np.int64))
    embeds = torch.cat(
        [
            core.language_model.embed_tokens(torch.tensor(ids)),
            core.generation_aligner(core.generation_embeddings(codes)),
        ]
    )
    hidden = core.language_model(inputs_embeds=embeds[None], use_cache=False).last_hidden_state
    logits: Tensor = core.generation_head(hidden[0, len(ids) - 1 :])
    return logits


@torch.no_grad()
def plain_score(model: JanusModel, image: Image.Image, question: str, answer: str) -> float:
    """Log-probability of an answer from one forward over its whole text."""
    asked = chat(model, {"type": "image"}, {"type": "text", "text": question})

    def inputs(text: str) -> Any:
        return model.processor()(text=[text], images=[image], return_tensors="pt")

    batch, start = inputs(asked + answer), inputs(asked)["input_ids"].shape[1]
    ids = batch["input_ids"]
    logits = model.network(
        input_ids=ids, pixel_values=batch["pixel_values"].to(model.network.dtype)
    ).logits
    logprobs = logits[0, start - 1 : -1].log_softmax(-1)
    return float(logprobs.gather(1, ids[0, start:, None]).sum())


def text_ids(model: JanusModel, call: Call) -> list[Tensor]:
    """Every batch of text ids that the language model embeds during a call."""
    seen: list[Tensor] = []
    embeddings = model.network.get_input_embeddings()
    handle = embeddings.register_forward_hook(lambda _m, args, _out: seen.append(args[0].clone()))
    try:
        call()
    finally:
        handle.remove()
    return seen


def read(model: JanusModel, ids: Tensor) -> list[str]:
    return [str(text) for text in model.processor().tokenizer.batch_decode(ids)]


def whole(model: JanusModel, call: Call) -> list[str]:
    """What the rows read during a call, which may take several passes."""
    passes = [read(model, ids) for ids in text_ids(model, call)]
    return ["".join(parts) for parts in zip(*passes, strict=True)]


def refusal(call: Call, names: Path) -> str:
    """The message of a GapbenchError, which is one line that names a folder."""
    with pytest.raises(GapbenchError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert str(names) in message
    return message


def edit(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


# -- drawing -----------------------------------------------------------------------------------


def test_greedy_tokens_equal_transformers_own_generate(tiny_janus: Path) -> None:
    model = JanusModel("tiny", tiny_janus, Recipe(guidance=5, temperature=0))
    texts = [chat(model, {"type": "text", "text": prompt}) for prompt in PROMPTS]
    batch = model.processor()(
        text=texts, generation_mode="image", padding=True, return_tensors="pt"
    )
    expected = model.network.generate(
        **batch, generation_mode="image", do_sample=False, guidance_scale=5
    )
    found = tokens_of(model, PROMPTS, [0, 1, 2])
    assert found.tolist() == expected.tolist()
    assert len({tuple(row) for row in found.tolist()}) == len(PROMPTS)
    unguided = JanusModel("tiny", tiny_janus, Recipe(guidance=1, temperature=0))
    assert tokens_of(unguided, PROMPTS, [0, 1, 2]).tolist() != found.tolist()


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(),
        Recipe(guidance=1),
        Recipe(guidance=0),
        Recipe(guidance=2.5, temperature=1.7, top_k=60, top_p=0.9),
        Recipe(guidance=5, temperature=0),
    ],
    ids=str,
)
def test_teacher_forced_logits_reproduce_every_draw_and_its_logprob(
    tiny_janus: Path, recipe: Recipe
) -> None:
    model = JanusModel("tiny", tiny_janus, recipe)
    prompts, seeds = [*PROMPTS, PROMPTS[1]], [5, 6, 7, 2**40]
    for prompt, seed, drawing in zip(prompts, seeds, model.generate(prompts, seeds), strict=True):
        assert drawing.tokens is not None
        cond = plain_logits(model, prompt, drawing.tokens)
        uncond = plain_logits(model, prompt, drawing.tokens, unconditional=True)
        # Guidance 1 is the conditional branch alone, guidance 0 the unconditional one.
        alone = {1.0: cond, 0.0: uncond}.get(recipe.guidance)
        guided = uncond + recipe.guidance * (cond - uncond) if alone is None else alone
        logprobs = warp(guided, recipe)
        assert drawn(logprobs, seed) == drawing.tokens.tolist()
        total = logprobs.gather(1, torch.from_numpy(drawing.tokens).long()[:, None]).sum()
        assert drawing.logprob == pytest.approx(float(total), abs=1e-9)


def drawn(logprobs: Tensor, seed: int) -> list[int]:
    """The tokens of (T, V) log-probabilities, one step after the other."""
    steps = torch.arange(len(logprobs)).unsqueeze(1)
    noise = torch.cat([gumbel(keys([seed]), step, logprobs.shape[1]) for step in steps])
    return draw(logprobs, noise).tolist()


def test_guidance_one_runs_no_unconditional_rows(tiny_janus: Path) -> None:
    model = JanusModel("tiny", tiny_janus, Recipe(guidance=1))
    (ids,) = text_ids(model, lambda: model.generate(PROMPTS, [1, 2, 3]))
    assert len(ids) == len(PROMPTS)


def test_unconditional_rows_keep_only_the_start_tokens(model: JanusModel) -> None:
    (ids,) = text_ids(model, lambda: model.generate(PROMPTS, [1, 2, 3]))
    cond, uncond = ids.chunk(2)
    starts = (cond == 1) | (cond == 4)
    assert starts.sum(1).tolist() == [2, 2, 2]
    assert torch.equal(uncond, torch.where(starts, cond, 0))


def test_equal_seeds_give_equal_images_and_other_seeds_other_images(model: JanusModel) -> None:
    first, second, again = model.generate([PROMPTS[1]] * 3, [1, 2, 1])
    assert first.tokens is not None
    assert again.tokens is not None
    assert second.tokens is not None
    assert first.tokens.tolist() == again.tokens.tolist() != second.tokens.tolist()
    assert first.image.tobytes() == again.image.tobytes() != second.image.tobytes()
    assert (first.tokens.dtype, first.tokens.shape) == (np.int32, (STEPS,))
    assert first.logprob == again.logprob != second.logprob


def test_pitfall_7_seeds_are_honoured_whatever_else_is_drawn(model: JanusModel) -> None:
    alone = [
        tokens_of(model, [p], [s])[0].tolist() for p, s in zip(PROMPTS, [4, 5, 6], strict=True)
    ]
    torch.manual_seed(123)
    assert tokens_of(model, PROMPTS, [4, 5, 6]).tolist() == alone
    assert tokens_of(model, PROMPTS[::-1], [6, 5, 4]).tolist() == alone[::-1]
    mixed = tokens_of(model, [PROMPTS[1], "another", *PROMPTS], [9, 9, 4, 5, 6])
    assert mixed[2:].tolist() == alone


def test_rows_that_begin_alike_are_computed_once_for_all_samples(model: JanusModel) -> None:
    seen = text_ids(model, lambda: model.generate(["red", "red cube", "red", "red"], range(4)))
    # Two beginnings, each with an unconditional one.
    assert [len(ids) for ids in seen] == [4]
    # Beginnings of one length have one unconditional row.
    assert [len(ids) for ids in text_ids(model, lambda: model.generate(["x", "y"], [0, 1]))] == [3]


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_decoding_step_is_what_transformers_computes(
    model: JanusModel, dtype: torch.dtype, fixed: bool
) -> None:
    core = deepcopy(model.network.model.language_model).to(dtype)
    texts = [[5, 9, 200, 31, 7, 8, 120, 77, 6], [12, 290, 14], [5, 9, 200, 31, 7, 8, 120, 77, 6]]
    rows = [tuple(text) for text in texts]
    more = torch.randint(5, 300, (3, len(texts)), generator=torch.Generator().manual_seed(1))
    close = partial(torch.testing.assert_close, rtol=0, atol=1e-12 if dtype.itemsize == 8 else 1e-5)
    with torch.inference_mode():
        decoder = Decoder(core, len(rows), 9, len(more), fixed)
        decoder.begin(rows)
        for step in range(len(more) + 1):
            if step:
                decoder.step(core.embed_tokens(more[step - 1]))
                for text, token in zip(texts, more[step - 1].tolist(), strict=True):
                    text.append(token)
            for text, hidden in zip(texts, decoder.hidden, strict=True):
                close(hidden, core(input_ids=torch.tensor([text])).last_hidden_state[0, -1])


def test_training_the_weights_changes_what_the_next_block_draws(tiny_janus: Path) -> None:
    """The decoder joins weights; both must stay one."""
    recipe = Recipe(block=2)
    model = JanusModel("tiny", tiny_janus, recipe, dtype="float32")
    before = tokens_of(model, PROMPTS[:2], [1, 2])
    layer = model.network.model.language_model.layers[0]
    optimizer = torch.optim.SGD([layer.self_attn.k_proj.weight, layer.mlp.up_proj.weight], lr=50)
    target = torch.zeros(2, STEPS, dtype=torch.int32).numpy()
    model.generation_loss(PROMPTS[:2], target, [0, 0]).mean().backward()
    optimizer.step()
    after = tokens_of(model, PROMPTS[:2], [1, 2])
    assert after.tolist() != before.tolist()
    fresh = JanusModel("fresh", tiny_janus, recipe, dtype="float32")
    fresh.use(deepcopy(model.network))
    assert tokens_of(fresh, PROMPTS[:2], [1, 2]).tolist() == after.tolist()


def test_a_network_whose_weights_are_replaced_is_drawn_with_the_new_ones(tiny_janus: Path) -> None:
    model = JanusModel("tiny", tiny_janus, Recipe(block=2), dtype="float32")
    before = tokens_of(model, PROMPTS[:2], [1, 2])
    weight = model.network.model.language_model.layers[0].self_attn.q_proj.weight
    kept, weight.data = weight.data, torch.randn_like(weight)
    assert tokens_of(model, PROMPTS[:2], [1, 2]).tolist() != before.tolist()
    weight.data = kept
    assert tokens_of(model, PROMPTS[:2], [1, 2]).tolist() == before.tolist()


def test_joined_weights_are_saved_like_any_other(tiny_janus: Path, tmp_path: Path) -> None:
    model = JanusModel("tiny", tiny_janus, Recipe(block=2), dtype="float32")
    drawn = tokens_of(model, PROMPTS[:2], [1, 2])
    model.save(tmp_path / "saved")
    again = JanusModel("saved", tmp_path / "saved", Recipe(block=2), dtype="float32")
    assert tokens_of(again, PROMPTS[:2], [1, 2]).tolist() == drawn.tolist()
    sizes = [
        sum(f.stat().st_size for f in d.glob("*.safetensors"))
        for d in (tiny_janus, tmp_path / "saved")
    ]
    assert sizes[1] <= sizes[0] * 1.01 + 10_000


def test_what_draws_is_kept_from_block_to_block(tiny_janus: Path) -> None:
    model = JanusModel("tiny", tiny_janus, Recipe(block=2), dtype="float32")
    model.generate(PROMPTS[:2], [1, 2])
    (kept,) = model.blocks._kept.values()
    model.generate([*PROMPTS, *PROMPTS], range(2 * len(PROMPTS)))
    assert list(model.blocks._kept.values()) == [kept]
    model.release()
    assert not model.blocks._kept


def test_a_step_can_be_captured(model: JanusModel) -> None:
    """What a CUDA graph needs, as far as a CPU shows it: one trace of tensor operations, without a
    look at a value."""
    core = model.network.model.language_model
    with torch.inference_mode():
        decoder = Decoder(core, 2, 9, 7, fixed=True)
        decoder.begin([(5, 6, 7), (8, 9)])
        start = decoder.hidden.clone()
        decoder.step(start)
        expected = decoder.hidden.clone()
        decoder.begin([(5, 6, 7), (8, 9)])
        torch.compile(decoder.forward, backend="eager", fullgraph=True)(start, decoder.room)
        torch.testing.assert_close(decoder.hidden, expected, rtol=0, atol=1e-9)


def test_a_model_says_that_its_images_depend_on_their_batch(
    tiny_janus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = JanusModel("tiny", tiny_janus, Recipe(block=4), dtype="float32")
    assert model.check_seeds(PROMPTS[0], 7) is None
    begin = Decoder.begin

    def noisy(decoder: Decoder, rows: Any) -> None:
        begin(decoder, rows)
        for _, values in decoder._held:
            values *= len(set(rows))

    monkeypatch.setattr(Decoder, "begin", noisy)
    said = model.check_seeds(PROMPTS[0], 7)
    assert said is not None
    assert "images depend on their batch" in said
    assert JanusModel("tiny", tiny_janus).check_seeds(PROMPTS[0], 7) is None


def test_pitfall_3_no_top_k_is_applied_unasked(tiny_janus: Path) -> None:
    def ranks(recipe: Recipe) -> Tensor:
        model = JanusModel("tiny", tiny_janus, recipe)
        assert model.recipe["top_k"] == recipe.top_k
        (drawing,) = model.generate([PROMPTS[1]], [0])
        assert drawing.tokens is not None
        cond, uncond = (plain_logits(model, PROMPTS[1], drawing.tokens, u) for u in (False, True))
        logits = uncond + recipe.guidance * (cond - uncond)
        own = logits.gather(1, torch.from_numpy(drawing.tokens).long()[:, None])
        return (logits > own).sum(1)

    assert JanusModel("tiny", tiny_janus).recipe["top_k"] == 0
    assert ranks(Recipe(temperature=20)).max() >= 50
    assert ranks(Recipe(temperature=20, top_k=50)).max() < 50


def test_the_checkpoints_own_recipe_is_used_where_none_is_given(copy: Copy) -> None:
    folder = copy()
    edit(folder / "generation_config.json", guidance_scale=3.0, temperature=0.7, top_k=9, top_p=0.8)
    assert JanusModel("m", folder).recipe == {
        "guidance": 3.0,
        "temperature": 0.7,
        "top_k": 9,
        "top_p": 0.8,
        "block": 0,
        "sampler": "gumbel-1",
    }
    assert JanusModel("m", folder, Recipe(guidance=2)).recipe["top_k"] == 0


def test_a_number_is_one_recipe_however_it_is_written(copy: Copy) -> None:
    folder = copy()
    edit(folder / "generation_config.json", guidance_scale=5, temperature=1)
    written = [
        load_model(str(folder), recipe=recipe).recipe for recipe in ({}, {"guidance": "5.0"})
    ]
    assert len({json.dumps(recipe) for recipe in written}) == 1
    assert json.dumps(asdict(Reasoning(reasoning_temperature=1))) == json.dumps(asdict(Reasoning()))


# -- prompts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "token", ["<image_placeholder>", "<boi>", "<eoi>", "<|pad|>", "<|bos|>", "<|eos|>"]
)
def test_pitfall_11_prompts_with_special_tokens_are_refused(model: JanusModel, token: str) -> None:
    for text in (f"a {token} b", token, f"x{token}y"):
        reason = model.refuses(text)
        assert reason is not None
        assert repr(token) in reason


@pytest.mark.parametrize("text", ["a red circle", "a < b", "boi", "<bo i>", "ein Ölbild 🟥", "pad"])
def test_ordinary_prompts_are_not_refused(model: JanusModel, text: str) -> None:
    assert model.refuses(text) is None


def test_a_prompt_longer_than_the_context_is_refused_by_its_image_included(
    copy: Copy, model: JanusModel
) -> None:
    text = "a red circle"
    (ids,) = text_ids(model, lambda: model.generate([text], [0]))
    needed = ids.shape[1] + STEPS
    folder = copy()
    config = json.loads((folder / "config.json").read_text())
    for room, fits in ((needed, True), (needed - 1, False)):
        config["text_config"]["max_position_embeddings"] = room
        (folder / "config.json").write_text(json.dumps(config))
        reason = JanusModel("short", folder).refuses(text)
        expected = f"with its image it takes {needed} tokens, short has room for {room}"
        assert reason == (None if fits else expected)
    assert "room for 1024" in (model.refuses("x " * 1024) or "")


def test_pitfall_12_the_users_text_is_really_in_what_the_model_reads(
    model: JanusModel, images: list[Image.Image]
) -> None:
    for mode, call in (
        ("image", lambda: model.generate(PROMPTS, [1, 2, 3])),
        ("logits", lambda: model.judge(images, PROMPTS, ANSWERS)),
        ("text", lambda: model.reply(images, PROMPTS)),
    ):
        texts = whole(model, call)
        for prompt, text in zip(PROMPTS, texts, strict=False):
            assert f"{prompt}\n\nAssistant:" in text, mode


def test_the_effective_prompt_is_what_the_model_reads(model: JanusModel) -> None:
    drawings = []
    (ids,) = text_ids(model, lambda: drawings.extend(model.generate(PROMPTS, [1, 2, 3])))
    texts = [text.replace("<|pad|>", "") for text in read(model, ids)[: len(PROMPTS)]]
    assert texts == ["<|bos|>" + drawing.effective_prompt for drawing in drawings]
    assert drawings[0].effective_prompt == "User: a\n\nAssistant:<boi>"


def test_pitfall_14_the_system_prompt_is_read_once_in_text_mode_and_never_in_image_mode(
    model: JanusModel, images: list[Image.Image]
) -> None:
    from transformers.models.janus.processing_janus import DEFAULT_SYSTEM_PROMPT

    for bringing in (QUESTIONS[1], f"{DEFAULT_SYSTEM_PROMPT.strip()} {QUESTIONS[1]}"):
        for call in (
            lambda q=bringing: model.judge(images[:1], [q], ANSWERS),
            lambda q=bringing: model.reply(images[:1], [q]),
        ):
            (text,) = whole(model, call)
            assert text.count(SYSTEM) == 1
            assert text.startswith("<|bos|>" + DEFAULT_SYSTEM_PROMPT)
            assert text.count(QUESTIONS[1]) == 1
    for text in read(model, text_ids(model, lambda: model.generate(PROMPTS, [1, 2, 3]))[0]):
        assert SYSTEM not in text


def test_pitfall_14_a_question_keeps_its_system_prompt_where_the_processor_adds_none(
    copy: Copy, images: list[Image.Image]
) -> None:
    from transformers.models.janus.processing_janus import DEFAULT_SYSTEM_PROMPT

    folder = copy()
    edit(folder / "processor_config.json", use_default_system_prompt=False)
    model = JanusModel("m", folder)
    for question, count in (("q?", 0), (f"{DEFAULT_SYSTEM_PROMPT.strip()} q?", 1)):
        call = lambda q=question: model.judge(images[:1], [q], ANSWERS)  # noqa: E731
        (text,) = whole(model, call)
        assert text.count(SYSTEM) == count


def test_pitfall_15_padding_is_on_the_left_whatever_the_tokenizer_says(
    copy: Copy, model: JanusModel, images: list[Image.Image]
) -> None:
    folder = copy()
    edit(folder / "tokenizer_config.json", padding_side="right")
    right = JanusModel("right", folder)
    assert right.processor().tokenizer.padding_side == "right"
    (ids,) = text_ids(right, lambda: right.generate(PROMPTS, [1, 2, 3]))
    lengths = [row.index(4) + 1 for row in ids[: len(PROMPTS)].tolist()]
    assert min(lengths) < max(lengths) == ids.shape[1]
    assert tokens_of(right, PROMPTS, [1, 2, 3]).tolist() == (
        tokens_of(model, PROMPTS, [1, 2, 3]).tolist()
    )
    np.testing.assert_array_equal(
        right.judge(images, QUESTIONS, ANSWERS), model.judge(images, QUESTIONS, ANSWERS)
    )


# -- pictures ----------------------------------------------------------------------------------


@pytest.mark.parametrize("gain", [0.5, 30])
def test_pitfalls_16_to_18_decoding_gives_upstreams_pixels_and_keeps_no_graph(
    copy: Copy, gain: float
) -> None:
    folder = copy()
    # CLIP's mean and deviation, which must not matter: the decoder's range is always [-1, 1].
    processor = json.loads((folder / "processor_config.json").read_text())
    processor["image_processor"] |= {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27] * 3}
    (folder / "processor_config.json").write_text(json.dumps(processor))
    model = JanusModel("m", folder)
    last = model.network.model.vqmodel.decoder.conv_out
    with torch.no_grad():
        last.weight.mul_(gain)
    tokens = np.arange(STEPS, dtype=np.int32) * 7 % CODES
    grads: list[bool] = []
    handle = last.register_forward_hook(lambda _m, _args, out: grads.append(out.requires_grad))
    (image,) = model.decode(tokens[None])
    handle.remove()
    assert grads == [False]
    assert (image.mode, image.size) == ("RGB", (32, 32))
    with torch.no_grad():
        codes = torch.from_numpy(tokens).long()[None]
        levels = model.network.model.vqmodel.decode(codes)[0].permute(1, 2, 0).numpy()
    assert (np.abs(levels).max() > 1) == (gain > 1)
    # generation_inference.py: what lies between two levels becomes the lower one.
    expected = np.clip((levels.astype(np.float32) + 1) / 2 * 255, 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(image), expected)
    assert expected.std() > 1


@pytest.mark.parametrize("changed", [{}, {"resample": 0, "image_std": [0.27, 0.26, 0.28]}], ids=str)
def test_pixels_are_the_processors_to_the_bit(tiny_janus: Path, changed: dict[str, object]) -> None:
    """Of 200 sizes, every fourth of them square, in four modes."""
    model, chance = JanusModel("m", tiny_janus), np.random.default_rng(0)
    how, pictures = model.processor().image_processor, []
    for name, value in changed.items():
        setattr(how, name, value)
    for number in range(200):
        height, width = chance.integers(2, 90, 2)
        values = chance.integers(0, 256, (height, width if number % 4 else height, 4), np.uint8)
        pictures.append(Image.fromarray(values).convert(("RGB", "L", "P", "CMYK")[number // 4 % 4]))
    expected = how([model._scaled(picture) for picture in pictures], return_tensors="pt")
    found = model._pixels(pictures)
    assert found.shape == (200, 3, 32, 32)
    assert torch.equal(found, expected["pixel_values"].to(found.dtype))
    squares = [p.convert("RGB") for p in pictures if p.width == p.height]
    assert len(squares) >= 50
    theirs = how(squares, return_tensors="pt")["pixel_values"]
    assert torch.equal(model._pixels(squares), theirs.to(found.dtype))


def upstreams_pixels(image: Image.Image, side: int, least: int) -> NDArray[np.float64]:
    """(3, side, side) by the rules of VLMImageProcessor (deepseek-ai/Janus 1daa72f), with means
    and deviations of 0.5."""
    width, height = image.size
    size = [max(int(edge / max(image.size) * side), least) for edge in (width, height)]
    scaled = np.asarray(image.resize((size[0], size[1]), Image.Resampling.BICUBIC))
    square = np.full((side, side, 3), 127, np.uint8)
    top, left = (side - size[1]) // 2, (side - size[0]) // 2
    square[top : top + size[1], left : left + size[0]] = scaled
    return (square.transpose(2, 0, 1) * (1 / 255) - 0.5) / 0.5


def test_pictures_of_any_shape_reach_the_model_as_upstream_scales_them(
    model: JanusModel,
) -> None:
    stream = np.random.default_rng(0)
    sizes = [tuple(stream.integers(5, 120, 2).tolist()) for _ in range(200)]
    pictures = [Image.fromarray(stream.integers(0, 256, (h, w, 3), np.uint8)) for w, h in sizes]
    text = model._chat("q?")
    given = model._asked([[picture] for picture in pictures], [text] * len(pictures))
    expected = np.stack([upstreams_pixels(picture, 32, 8) for picture in pictures])
    np.testing.assert_allclose(given["pixel_values"].numpy(), expected, rtol=0, atol=1e-6)
    assert sum(w != h for w, h in sizes) > 190


def test_a_drawings_image_is_the_decoding_of_its_tokens(model: JanusModel) -> None:
    for drawing in model.generate(PROMPTS, [1, 2, 3]):
        assert drawing.tokens is not None
        assert drawing.image.tobytes() == model.decode(drawing.tokens[None])[0].tobytes()


# -- judging -----------------------------------------------------------------------------------

LONGER = (" yes", " The score is 0", " The score is 10", " a red circle, so the score is 1")


@pytest.mark.parametrize("answers", [ANSWERS, (" The score is 1", " yes", " no, a circle")])
def test_questions_about_one_image_share_what_they_begin_with(
    model: JanusModel,
    images: list[Image.Image],
    answers: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = [(images[0], QUESTIONS[1]), (images[1], QUESTIONS[0])]
    asked += [(images[0].copy(), f"{QUESTIONS[1]} And {n * 'a '}circle?") for n in range(3)]
    asked += [(images[1], QUESTIONS[2]), (images[2], QUESTIONS[1])]
    seen: list[int] = []
    rows: list[int] = []
    hook = model.network.model.vision_model.register_forward_pre_hook(
        lambda _layer, given: seen.append(len(given[0]))
    )
    forward = Layers.forward

    def counted(layers: Layers, embeds: Tensor, places: Tensor, *given: Any, **more: Any) -> Tensor:
        rows.append(int((places == places[0]).sum()))  # each has a first token
        return forward(layers, embeds, places, *given, **more)

    monkeypatch.setattr(Layers, "forward", counted)
    with hook:
        found = model.judge(*zip(*asked, strict=True), answers)
    assert seen == [3]
    assert rows == [3, len(asked) * len({answer[:-1] for answer in answers})]
    alone = np.concatenate([model.judge([image], [text], answers) for image, text in asked])
    np.testing.assert_allclose(found, alone, rtol=0, atol=1e-9)


def test_questions_that_come_before_the_image_share_nothing(
    model: JanusModel, images: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(question: str) -> str:
        return chat(model, {"type": "text", "text": question}, {"type": "image"})

    monkeypatch.setattr(model, "_chat", asked)
    found = model.judge([images[0]] * 3, QUESTIONS, ANSWERS)
    alone = np.concatenate([model.judge([images[0]], [text], ANSWERS) for text in QUESTIONS])
    np.testing.assert_allclose(found, alone, rtol=0, atol=1e-9)


@pytest.mark.parametrize("answers", [ANSWERS, LONGER, (" 1",), (" 1", " 1 and 0")], ids=str)
def test_judging_equals_a_plain_forward_over_question_and_answer(
    model: JanusModel, images: list[Image.Image], answers: tuple[str, ...]
) -> None:
    found = model.judge(images, QUESTIONS, answers)
    assert (found.shape, found.dtype) == ((3, len(answers)), np.float64)
    for row, image, question in zip(found, images, QUESTIONS, strict=True):
        expected = [plain_score(model, image, question, answer) for answer in answers]
        np.testing.assert_allclose(row, expected, rtol=0, atol=1e-9)
        alone = model.judge([image], [question], answers)[0]
        np.testing.assert_allclose(row, alone, rtol=0, atol=1e-9)


def test_answers_that_share_all_but_the_last_token_take_one_forward_of_one_row_each(
    model: JanusModel, images: list[Image.Image]
) -> None:
    assert [
        len(ids) for ids in text_ids(model, lambda: model.judge(images, QUESTIONS, ANSWERS))
    ] == [3, 3]
    tails = [model.processor().tokenizer(a)["input_ids"][1:] for a in ANSWERS]
    assert tails[0][:-1] == tails[1][:-1]
    assert tails[0][-1] != tails[1][-1]


def test_a_question_with_a_place_for_another_image_is_refused(
    model: JanusModel, images: list[Image.Image]
) -> None:
    for call in (
        lambda: model.judge(images[:1], ["is it <image_placeholder>?"], ANSWERS),
        lambda: model.reply(images[:1], ["is it <image_placeholder>?"]),
    ):
        with pytest.raises(GapbenchError, match=r"has places for 2 images and comes with 1: "):
            call()
    with pytest.raises(ValueError, match="longer"):
        model.judge(images[:2], ["q?"], ANSWERS)


def test_the_image_is_looked_at(model: JanusModel, images: list[Image.Image]) -> None:
    scores = model.judge(images, [QUESTIONS[0]] * 3, ANSWERS)
    assert len({tuple(row) for row in scores.tolist()}) == 3


def test_an_answer_that_merges_with_the_question_is_refused(
    copy: Copy, images: list[Image.Image]
) -> None:
    folder = copy()
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("'Assistant:'", "'Assistant: circ'"))
    model = JanusModel("m", folder)
    assert model.judge(images[:1], ["q?"], [" is"]).shape == (1, 1)
    with pytest.raises(GapbenchError, match=r"^model m: the answer 'le' merges with [^\n]*$"):
        model.judge(images[:1], ["q?"], [" is", "le"])


def test_pitfall_19_judging_does_not_depend_on_torchvision(
    tiny_janus: Path, model: JanusModel, images: list[Image.Image]
) -> None:
    from transformers import JanusImageProcessorPil

    saved = json.loads((tiny_janus / "processor_config.json").read_text())
    assert saved["image_processor"]["image_processor_type"] == "JanusImageProcessor"
    assert isinstance(model.processor().image_processor, JanusImageProcessorPil)
    assert np.isfinite(model.judge(images, QUESTIONS, ANSWERS)).all()


def test_replies_bring_no_warnings_of_transformers(
    model: JanusModel, images: list[Image.Image]
) -> None:
    said: list[LogRecord] = []
    handler = Handler()
    handler.emit = said.append  # type: ignore[method-assign]
    before = logging.get_verbosity()
    logging.set_verbosity_warning()
    logging.add_handler(handler)
    try:
        model.reply(images, QUESTIONS)
        assert logging.get_verbosity() == WARNING
    finally:
        logging.remove_handler(handler)
        logging.set_verbosity(before)
    assert [record.getMessage() for record in said] == []


@torch.no_grad()
def plain_reply(model: JanusModel, image: Image.Image, question: str) -> str:
    """Greedy decoding by whole forwards, without cache or batch."""
    asked = chat(model, {"type": "image"}, {"type": "text", "text": question})
    batch = model.processor()(text=[asked], images=[image], return_tensors="pt")
    ids, pixels = batch["input_ids"], batch["pixel_values"].to(model.network.dtype)
    start = ids.shape[1]
    for _ in range(64):
        token = model.network(input_ids=ids, pixel_values=pixels).logits[:, -1:].argmax(-1)
        ids = torch.cat([ids, token], 1)
        if int(token) == 2:
            break
    text: str = model.processor().tokenizer.decode(ids[0, start:], skip_special_tokens=True)
    return text.strip()


def test_pitfall_32_a_reply_is_the_greedy_answer_alone(
    tiny_janus: Path, images: list[Image.Image]
) -> None:
    model = JanusModel("tiny", tiny_janus)
    with torch.no_grad():  # else its words follow from the last token alone
        for layer in model.network.model.language_model.layers:
            layer.self_attn.q_proj.weight.mul_(60)
            layer.self_attn.o_proj.weight.mul_(60)
    replies = model.reply(images, QUESTIONS)
    assert replies == [
        plain_reply(model, image, question)
        for image, question in zip(images, QUESTIONS, strict=True)
    ]
    assert len(set(replies)) > 1
    for reply, question in zip(replies, QUESTIONS, strict=True):
        assert reply
        for part in (question, SYSTEM, "User:", "Assistant:", "<image_placeholder>", "<boi>"):
            assert part not in reply


# -- scoring image tokens ----------------------------------------------------------------------


@pytest.mark.parametrize("unconditional", [False, True])
def test_image_logits_and_loss_equal_a_plain_forward(
    model: JanusModel, unconditional: bool
) -> None:
    tokens = tokens_of(model, PROMPTS, [1, 2, 3])
    found = model.image_logits(PROMPTS, tokens, unconditional)
    losses = model.generation_loss(PROMPTS, tokens, [7, 8, 9], unconditional)
    assert (found.shape, losses.shape, losses.dtype) == ((3, STEPS, CODES), (3,), torch.float64)
    for row, loss, prompt, codes in zip(found, losses, PROMPTS, tokens, strict=True):
        logits = plain_logits(model, prompt, codes, unconditional)
        torch.testing.assert_close(row.detach(), logits, rtol=0, atol=1e-9)
        chosen = logits.log_softmax(-1).gather(1, torch.from_numpy(codes).long()[:, None])
        assert loss.item() == pytest.approx(-chosen.sum().item(), abs=1e-9)


@pytest.mark.parametrize("unconditional", [False, True])
@pytest.mark.parametrize("place", [0, 7, STEPS - 1])
def test_a_code_changes_the_logits_behind_it_and_no_other(
    model: JanusModel, place: int, unconditional: bool
) -> None:
    tokens = np.tile(tokens_of(model, [PROMPTS[1]], [1]), (CODES, 1))
    tokens[:, place] = np.arange(CODES)
    with torch.no_grad():
        logits = model.image_logits([PROMPTS[1]] * CODES, tokens, unconditional)
    before, after = logits[:, : place + 1], logits[:, place + 1 :]
    torch.testing.assert_close(before, before[:1].expand_as(before), rtol=0, atol=1e-9)
    assert place == STEPS - 1 or (after - after[:1]).abs().max() > 1e-3


def test_gradients_reach_what_draws_and_nothing_else(tiny_janus: Path) -> None:
    model = JanusModel("tiny", tiny_janus)
    tokens = tokens_of(model, PROMPTS, [1, 2, 3])
    model.generation_loss(PROMPTS, tokens, [0] * 3).sum().backward()
    drawing = ("language_model", "generation_embeddings", "generation_aligner", "generation_head")
    for name, weight in model.network.named_parameters():
        if name.startswith(tuple(f"model.{part}." for part in drawing)):
            assert weight.grad is not None, name
            assert weight.grad.abs().max() > 0, name
        else:
            assert weight.grad is None, name


# -- identity ----------------------------------------------------------------------------------


def test_the_fingerprint_depends_on_neither_instance_name_folder_nor_recipe(
    copy: Copy, tiny_janus: Path
) -> None:
    model = JanusModel("tiny", tiny_janus)
    known = model.fingerprint
    assert len(known) == 64
    model.load()
    assert model.fingerprint == known
    assert JanusModel("other", copy()).fingerprint == known
    greedy = JanusModel("tiny", tiny_janus, Recipe(guidance=2, temperature=0, top_k=3, top_p=0.5))
    assert greedy.fingerprint == known


def test_the_fingerprint_changes_with_the_dtype(tiny_janus: Path) -> None:
    dtypes = ("auto", "float64", "float32", "bfloat16")
    auto, *others = [JanusModel("tiny", tiny_janus, dtype=dtype).fingerprint for dtype in dtypes]
    assert auto == others[0]
    assert len(set(others)) == 3


def test_the_fingerprint_changes_with_one_weight(copy: Copy) -> None:
    folder = copy()
    before = JanusModel("m", folder).fingerprint
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"][0, 0] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert JanusModel("m", folder).fingerprint != before


@pytest.mark.parametrize(
    "name",
    [
        "chat_template.jinja",
        "config.json",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ],
)
def test_the_fingerprint_changes_with_a_settings_file(copy: Copy, name: str) -> None:
    folder = copy()
    before = JanusModel("m", folder).fingerprint
    with (folder / name).open("a") as file:
        file.write("\n")
    assert JanusModel("m", folder).fingerprint != before


def test_what_a_model_can_do_is_known_before_loading(tiny_janus: Path) -> None:
    model = JanusModel("tiny", tiny_janus)
    assert model.capabilities == set(CAPABILITIES) - {"image_latents"}
    assert model._loaded is None


# -- loading, saving, releasing ----------------------------------------------------------------


def test_saving_and_loading_keeps_images_verdicts_and_weights(
    model: JanusModel, images: list[Image.Image], tmp_path: Path
) -> None:
    folder = tmp_path / "saved"
    model.save(folder)
    suffixes = {file.suffix for file in folder.iterdir()}
    assert suffixes == {".json", ".jinja", ".safetensors"}
    again = JanusModel("again", folder)
    for before, after in zip(
        model.generate(PROMPTS, [1, 2, 3]), again.generate(PROMPTS, [1, 2, 3]), strict=True
    ):
        assert before.image.tobytes() == after.image.tobytes()
        assert before.logprob == pytest.approx(after.logprob, rel=1e-12)  # rounding of sums
        assert before.effective_prompt == after.effective_prompt
    np.testing.assert_array_equal(
        model.judge(images, QUESTIONS, ANSWERS), again.judge(images, QUESTIONS, ANSWERS)
    )
    original = model.network.state_dict()
    for name, weight in again.network.state_dict().items():
        assert torch.equal(weight, original[name]), name
    assert again.recipe == model.recipe
    again.save(tmp_path / "twice")
    assert JanusModel("twice", tmp_path / "twice").fingerprint == again.fingerprint


def test_pitfall_25_embeddings_are_untied_even_where_the_config_says_tied(
    copy: Copy, model: JanusModel
) -> None:
    folder = copy()
    edit(folder / "config.json", tie_word_embeddings=True)
    tied = JanusModel("m", folder)
    assert tied.network.config.tie_word_embeddings is False
    head, embeddings = tied.network.lm_head.weight, tied.network.get_input_embeddings().weight
    assert head.data_ptr() != embeddings.data_ptr()
    assert torch.equal(head, model.network.lm_head.weight)
    assert not torch.equal(head, embeddings)
    assert model.network.config.tie_word_embeddings is False


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_other_dtypes_draw_judge_reply_and_score(
    tiny_janus: Path, images: list[Image.Image], dtype: str
) -> None:
    model = JanusModel("tiny", tiny_janus, dtype=dtype)
    assert model.network.dtype == getattr(torch, dtype)
    tokens = tokens_of(model, PROMPTS, [1, 2, 3])
    assert ((tokens >= 0) & (tokens < CODES)).all()
    scores = model.judge(images, QUESTIONS, ANSWERS)
    assert np.isfinite(scores).all()
    assert (scores < 0).all()
    assert len(model.reply(images, QUESTIONS)) == 3
    losses = model.generation_loss(PROMPTS, tokens, [0] * 3)
    assert torch.isfinite(losses).all()
    assert model.decode(tokens)[0].size == (32, 32)


@pytest.mark.parametrize(("small", "dtype"), [(1000, torch.float32), (10**8, torch.float64)])
def test_on_a_cpu_a_small_model_computes_in_float64_and_a_large_one_in_float32(
    tiny_janus: Path, monkeypatch: pytest.MonkeyPatch, small: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr("gapbench.models.autoregressive.model.SMALL", small)
    model = JanusModel("tiny", tiny_janus, device="cpu")
    assert model.network.dtype == dtype
    assert not model.network.training
    model.load()
    assert model.module("und") is model.network


def test_release_frees_the_weights_and_the_model_can_be_used_again(tiny_janus: Path) -> None:
    model = JanusModel("tiny", tiny_janus)
    before = tokens_of(model, PROMPTS, [1, 2, 3]).tolist()
    weights = weakref.ref(model.network)
    model.release()
    gc.collect()
    assert weights() is None
    assert tokens_of(model, PROMPTS, [1, 2, 3]).tolist() == before


# -- broken checkpoints ------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [0.0, 0.00001, 0.5, 0.999])
def test_truncated_weights_are_refused(copy: Copy, kept: float) -> None:
    folder = copy()
    file = folder / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * kept)])
    model = JanusModel("m", folder)
    assert refusal(model.load, folder).startswith("model m: cannot load ")
    assert model._loaded is None


def test_tensors_that_are_missing_are_refused_and_not_filled_at_random(copy: Copy) -> None:
    folder = copy()
    file = folder / "model.safetensors"
    weights = load_file(file)
    whole = len(weights)
    kept = {name: w for name, w in weights.items() if "generation_head" not in name}
    save_file(kept, file, metadata={"format": "pt"})
    model = JanusModel("m", folder)
    message = refusal(model.load, folder)
    assert f"lack {whole - len(kept)} tensors, model.generation_head." in message
    assert model._loaded is None


SPOILT = {
    "model.vqmodel.decoder.conv_in.weight": ("picture decoder", ["generate"]),
    "model.language_model.layers.0.mlp.up_proj.weight": (
        "language model", ["generate", "judge", "reply", "score"],
    ),
    "model.vision_model.encoder.layers.0.mlp.fc2.weight": (
        "vision tower", ["judge", "reply", "complete", "score"],
    ),
}  # fmt: skip


def spoilt(folder: Path, name: str) -> Path:
    """A checkpoint with NaN in one of its tensors."""
    weights = load_file(folder / "model.safetensors")
    weights[name] = torch.full_like(weights[name], torch.nan)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("name", SPOILT)
def test_nan_is_neither_drawn_nor_an_abstention(
    copy: Copy, images: list[Image.Image], name: str
) -> None:
    folder, image, (part, calls) = copy(), images[0], SPOILT[name]
    model = JanusModel("m", spoilt(folder, name))
    text = model.chat([{"role": "user", "content": "<image>q?"}])
    does: dict[str, Call] = {
        "generate": lambda: model.generate(["a"], [1]),
        "judge": lambda: model.judge([image], ["q?"], ANSWERS),
        "reply": lambda: model.reply([image], ["q?"]),
        "complete": lambda: model.complete([[image]], [text], 3),
        "score": lambda: model.score([[image]], [text], [" 1"]),
    }
    for call in calls:
        with pytest.raises(GapbenchError, match=f"^model m: its {part} gives NaN .*; try another"):
            does[call]()


def test_a_run_stops_at_nan_with_one_line(cli: Cli, copy: Copy) -> None:
    folder = spoilt(copy(), list(SPOILT)[-1])
    done = cli("run", "--model", str(folder), "--tasks", "shapes", "--limit", "1", "--samples", "1")
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("gapbench: own verdicts: ")
    assert "model copy: its vision tower gives NaN" in last
    assert "Traceback" not in done.stderr


def test_tensors_of_another_shape_are_refused(copy: Copy) -> None:
    folder = copy()
    file = folder / "model.safetensors"
    weights = load_file(file)
    weights["lm_head.weight"] = torch.zeros(2, 2)
    save_file(weights, file, metadata={"format": "pt"})
    said = refusal(JanusModel("m", folder).load, folder)
    assert "1 tensors in " in said
    assert "lm_head.weight among them ((2, 2) for (" in said
    assert "ZeRO" not in said
    weights["lm_head.weight"] = torch.zeros(0)
    save_file(weights, file, metadata={"format": "pt"})
    assert "ZeRO left them empty" in refusal(JanusModel("m", folder).load, folder)


def test_a_folder_without_weights_is_refused(copy: Copy) -> None:
    folder = copy()
    (folder / "model.safetensors").unlink()
    assert "no .safetensors file" in refusal(lambda: JanusModel("m", folder), folder)


def test_a_folder_with_pickled_weights_alone_is_refused(copy: Copy) -> None:
    folder = copy()
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    assert "no .safetensors file" in refusal(lambda: JanusModel("m", folder), folder)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tokenizer.json", "{"),
        ("tokenizer.json", "{}"),
        ("tokenizer.json", None),
        ("processor_config.json", "[]"),
        ("chat_template.jinja", "{% for"),
        ("chat_template.jinja", None),
        ("config.json", "{"),
    ],
)
def test_broken_or_missing_processor_files_are_refused(
    copy: Copy, name: str, text: str | None
) -> None:
    folder = copy()
    if text is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(text)
    model = JanusModel("m", folder)
    said = refusal(lambda: model.refuses("a"), folder)
    assert "cannot load the processor in " in said
    assert said.endswith("copy those of the model that it began with")
    assert "cannot load" in refusal(lambda: model.generate(["a"], [1]), folder)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_broken_generation_config_is_refused(copy: Copy, text: str) -> None:
    folder = copy()
    (folder / "generation_config.json").write_text(text)
    refusal(lambda: JanusModel("m", folder), folder)


def test_an_absent_device_is_refused(tiny_janus: Path) -> None:
    with pytest.raises(GapbenchError, match="torch does not see it on this machine"):
        JanusModel("m", tiny_janus, device="cuda:99")
