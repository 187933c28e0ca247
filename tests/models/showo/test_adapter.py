"""Show-o against upstream's own results, and what it must keep.

upstream.json holds what showlab/Show-o 45a5a2d gives for the checkpoint of `checkpoints.showo`, run
in float64 with transformers 4.41.1: its two calls for random numbers (torch.multinomial, and
gumbel_noise of models/sampling.py) were given those of `gapbench.models.autoregressive.noise`.
published.txt lists the tensors of its classes at the published sizes, with their shapes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from math import pi
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from gapbench import GapbenchError, load_model
from gapbench.models.showo.adapter import ShowoModel
from gapbench.models.showo.draw import Recipe, training_mask
from gapbench.models.showo.layout import ROOM, asking_mask, drawing_mask
from gapbench.models.showo.pictures import pixels_of
from gapbench.models.showo.vq import built
from gapbench.verdict import ANSWERS

HERE = Path(__file__).parent
UP = json.loads((HERE / "upstream.json").read_text())
PROMPTS, SEEDS = UP["prompts"], UP["seeds"]
RECIPE = {"guidance": 5.0, "steps": 9}


@pytest.fixture
def model(tiny_showo: Path) -> Any:
    return load_model(str(tiny_showo), "cpu", "float64", RECIPE)


def picture() -> Image.Image:
    y, x, c = np.mgrid[0:24, 0:24, 0:3]
    return Image.fromarray(((37 * x + 23 * y * y + 91 * c) % 256).astype(np.uint8))


def tokens_of(model: Any, prompts: list[str], seeds: list[int]) -> list[list[int]]:
    return [drawing.tokens.tolist() for drawing in model.generate(prompts, seeds)]


# -- upstream ----------------------------------------------------------------------------------


@torch.no_grad()
def test_pictures_and_codes_are_upstreams(model: Any) -> None:
    codes = model.magvit.encode(pixels_of(picture(), 24)[None].double())
    assert codes.tolist() == [UP["codes"]]
    decoded = model.magvit.decode(codes)[0, :, ::7, ::5].flatten()
    assert decoded.tolist() == pytest.approx(UP["decoded"], abs=1e-6)


@pytest.mark.parametrize(
    ("how", "recipe"),
    [
        ("guided", {"guidance": 5.0, "steps": 9}),
        ("plain", {"guidance": 0.0, "steps": 4, "mask_noise": 0.5}),
    ],
)
def test_a_whole_drawing_is_upstreams(tiny_showo: Path, how: str, recipe: Any) -> None:
    for dtype in ("float64", "float32"):
        model = load_model(str(tiny_showo), "cpu", dtype, recipe)
        assert tokens_of(model, PROMPTS, SEEDS) == UP["drawn"][how]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_verdicts_are_upstreams(tiny_showo: Path, dtype: str) -> None:
    model = load_model(str(tiny_showo), "cpu", dtype)
    found = model.judge([picture()] * 2, UP["questions"], UP["answers"])
    assert found == pytest.approx(np.array(UP["verdicts"]), rel=1e-5)


def test_a_reply_is_upstreams(model: Any) -> None:
    rows = model._questions([picture()], [f"USER: \n{UP['questions'][1]} ASSISTANT:"])
    with torch.inference_mode():
        [(_, ids)] = model._batches(rows)
        said = model._greedy(ids)[0].tolist()
    assert said[: len(UP["reply"])] == UP["reply"]
    [reply] = model.reply([picture()], UP["questions"][1:])
    assert reply.startswith(model.layout.tokenizer.decode(UP["reply"][:6]).strip())


def test_losses_and_masks_are_upstreams(model: Any) -> None:
    tokens = np.array(UP["drawn"]["guided"], np.int32)
    masked = training_mask(UP["noise"], 36, "cpu")
    assert masked.int().tolist() == UP["masked"]
    found = model.generation_loss(PROMPTS, tokens, UP["noise"])
    assert found.tolist() == pytest.approx([36 * loss for loss in UP["losses"]], rel=1e-5)


def published(part: str) -> dict[str, torch.Tensor]:
    lines = [line.split() for line in (HERE / "published.txt").read_text().splitlines()]
    return {
        name: torch.empty([int(side) for side in shape.split("x")], device="meta")
        for own, name, shape in lines
        if own == part
    }


def test_the_published_tensors_are_all_used_and_none_is_left_over() -> None:
    from transformers import PhiConfig, PhiForCausalLM

    tensors = published("vq")
    made = built(tensors)
    assert made.state_dict().keys() == tensors.keys()
    assert (made.codes, made.scale, len(made.encoder.down[0].block)) == (8192, 16, 4)
    with torch.device("meta"):
        phi = PhiForCausalLM(
            PhiConfig(
                hidden_size=2048, intermediate_size=8192, num_hidden_layers=24, vocab_size=58498,
                num_attention_heads=32, qk_layernorm=True,
            )
        )  # fmt: skip
    mine = {f"showo.{name}": tensor.shape for name, tensor in phi.state_dict().items()}
    assert mine == {name: tensor.shape for name, tensor in published("model").items()}


# -- rows and masks ----------------------------------------------------------------------------


def test_prompts_are_written_as_upstream_writes_them(model: Any) -> None:
    layout = model.layout
    ids = layout.prompts(["a red circle", ""])
    assert ids.shape == (2, ROOM + 1)
    text = layout.tokenizer.convert_ids_to_tokens(ids[0][ids[0] != layout.pad])
    assert text[:2] == ["<|t2i|>", "<|endoftext|>"]
    assert text[-2:] == ["<|endoftext|>", "<|soi|>"]
    assert (ids[1] != layout.pad).sum() == 4
    assert layout.first == len(layout.tokenizer)


def test_the_masks_are_what_they_are_said_to_be(model: Any) -> None:
    """By loops over single ids."""
    layout = model.layout
    ids = model._ids(layout.prompts(["a red circle", ""]), torch.zeros(2, 36, dtype=torch.long))
    seen = drawing_mask(ids, layout)[:, 0]
    for row in range(2):
        soi = ids[row].tolist().index(layout.soi)
        pad = (ids[row] == layout.pad).tolist()
        for i in range(0, ids.shape[1], 3):
            for j in range(ids.shape[1]):
                wanted = (j <= i or i >= soi) and (pad[i] or not pad[j])
                assert bool(seen[row, i, j]) == wanted, (row, i, j)
    row = layout.question(UP["codes"], "USER: \nwhat? ASSISTANT:")
    ids = torch.tensor([[layout.pad] * 3 + row])
    seen = asking_mask(ids, layout)[0, 0]
    eoi = ids[0].tolist().index(layout.eoi)
    for i in range(ids.shape[1]):
        for j in range(ids.shape[1]):
            wanted = i == j or (i >= 3 and j >= 3 and (j <= i or j <= eoi))
            assert bool(seen[i, j]) == wanted, (i, j)


def test_a_prompt_that_fills_its_room_is_drawn_and_a_longer_one_refused(model: Any) -> None:
    full = "x" * (ROOM - 3)
    assert model.refuses(full) is None
    assert "takes 127 tokens, the model has room for 126" in str(model.refuses(full + "x"))
    for mark in ("<|soi|>", "[PAD]", "<|endoftext|>"):
        assert repr(mark) in str(model.refuses(f"a {mark}"))
    assert len(tokens_of(model, [full], [1])[0]) == 36


@pytest.mark.parametrize(
    ("size", "scaled", "corner"),
    [((24, 24), (24, 24), (0, 0)), ((50, 24), (50, 24), (13, 0)), ((31, 47), (24, 36), (0, 6)),
     ((100, 37), (64, 24), (20, 0))],
)  # fmt: skip
def test_a_picture_is_scaled_and_cut_as_torchvision_does(
    size: tuple[int, int], scaled: tuple[int, int], corner: tuple[int, int]
) -> None:
    image = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    )
    large = image.resize(scaled, Image.Resampling.BICUBIC)
    wanted = large.crop((*corner, corner[0] + 24, corner[1] + 24))
    levels = (pixels_of(image, 24) + 1) / 2 * 255
    assert torch.equal(levels.round().byte(), torch.from_numpy(np.array(wanted)).permute(2, 0, 1))


def test_training_masks_follow_the_cosine() -> None:
    masks = training_mask(range(4000), 36, "cpu").double()
    share = masks.mean(1)
    assert float(share.mean()) == pytest.approx(2 / pi, abs=0.02)
    assert float((share < 0.5).double().mean()) == pytest.approx(1 / 3, abs=0.03)
    assert masks.sum(1).min() >= 1
    assert float((masks.mean(0) - share.mean()).abs().max()) < 0.04  # every place alike
    assert torch.equal(training_mask([5], 36, "cpu")[0], training_mask([4, 5], 36, "cpu")[1])


# -- what every model keeps --------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [{"block": 2}, {"block": 4}])
def test_in_float32_images_and_verdicts_do_not_depend_on_their_batch(
    tiny_showo: Path, recipe: Any
) -> None:
    model = load_model(str(tiny_showo), "cpu", "float32", {**RECIPE, **recipe})
    together = model.generate(PROMPTS, SEEDS)
    turned = model.generate(PROMPTS[::-1], SEEDS[::-1])[::-1]
    for place, drawing in enumerate(together):
        [alone] = model.generate([PROMPTS[place]], [SEEDS[place]])
        for other in (alone, turned[place]):
            assert np.array_equal(other.tokens, drawing.tokens)
            assert other.image.tobytes() == drawing.image.tobytes()
    images = [drawing.image for drawing in together]
    asked = ["is it red?", "is it a blue square above a triangle, and a star?", "x " * 60]
    verdicts = model.judge(images, asked, ANSWERS)
    for place, (image, question) in enumerate(zip(images, asked, strict=True)):
        assert np.array_equal(model.judge([image], [question], ANSWERS)[0], verdicts[place])
    replies = model.reply(images, asked)
    assert replies == [model.reply([i], [q])[0] for i, q in zip(images, asked, strict=True)]


def test_losses_say_which_rows_withhold_their_prompt(model: Any) -> None:
    tokens = np.array(UP["drawn"]["guided"], np.int32)
    mixed, given, away, blank = (
        model.generation_loss(prompts, tokens, UP["noise"], withheld)
        for prompts, withheld in (
            (PROMPTS, [True, False, True]), (PROMPTS, False), (PROMPTS, True), ([""] * 3, False),
        )
    )  # fmt: skip
    assert torch.equal(away, blank)
    assert torch.allclose(mixed[[0, 2]], away[[0, 2]])
    assert torch.allclose(mixed[1], given[1])
    assert abs(given[0] - away[0]) > 1e-3


def test_gradients_reach_what_draws(model: Any) -> None:
    tokens = np.array(UP["drawn"]["guided"], np.int32)
    model.generation_loss(PROMPTS, tokens, UP["noise"]).sum().backward()
    lacking = [name for name, p in model.network.named_parameters() if p.grad is None]
    assert lacking == []
    assert all(p.grad is None for p in model.magvit.parameters())


def test_a_layer_that_is_no_plain_one_gives_the_same_logits(model: Any) -> None:
    hidden = torch.randn(2, 3, 64, dtype=torch.float64)
    some = slice(357, 357 + 64)
    with torch.no_grad():
        plain = model._head(hidden, some)
        model.network.lm_head = torch.nn.Sequential(model.network.lm_head)
        assert torch.allclose(model._head(hidden, some), plain)


def test_pytorchs_files_under_other_names_are_read(tiny_showo: Path, tmp_path: Path) -> None:
    known = load_model(str(tiny_showo), "cpu", "float64", RECIPE)
    copy = tmp_path / "copy"
    shutil.copytree(tiny_showo, copy)
    (copy / "pytorch_model.safetensors").rename(copy / "model.safetensors")
    file = copy / "vq" / "pytorch_model.safetensors"
    torch.save(load_file(file), copy / "vq" / "pytorch_model.bin")
    file.unlink()
    config = json.loads((copy / "config.json").read_text())
    del config["_class_name"]
    (copy / "config.json").write_text(json.dumps(config))
    other = load_model(str(copy), "cpu", "float64", RECIPE)
    assert tokens_of(other, PROMPTS, SEEDS) == tokens_of(known, PROMPTS, SEEDS)


def _clip(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "w_clip_vit": True}))


def _count(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_vq_tokens": 35}))


def _changed(file: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Any:
    def broken(folder: Path) -> None:
        tensors = load_file(folder / file)
        change(tensors)
        save_file(tensors, folder / file)

    return broken


MODEL, VQ = "pytorch_model.safetensors", "vq/pytorch_model.safetensors"


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (_clip, "judges through a CLIP tower"),
        (_count, "num_vq_tokens is 35, must be a square number"),
        (lambda folder: (folder / MODEL).write_bytes(b"{}"), "cannot load"),
        (lambda folder: (folder / MODEL).unlink(), "no .safetensors and no .bin file"),
        (lambda folder: (folder / "text/tokenizer.json").unlink(), "cannot load the tokenizer"),
        (_changed(MODEL, lambda t: t.pop("showo.lm_head.bias")), "holds no tokens"),
        (_changed(MODEL, lambda t: t.pop("showo.model.layers.1.mlp.fc1.bias")), "lack 1 tensors"),
        (_changed(MODEL, lambda t: t.update(more=torch.ones(1))), "more among them"),
        (_changed(MODEL, lambda t: t.update({"showo.lm_head.bias": torch.ones(9)})), "holds 9 tok"),
        (_changed(VQ, lambda t: t.pop("decoder.conv_in.bias")), "does not hold the MAGVIT-v2"),
        (_changed(VQ, lambda t: t.pop("decoder.norm_out.bias")), "does not hold the MAGVIT-v2"),
        (_changed(VQ, lambda t: t.update(more=torch.ones(1))), "does not hold the MAGVIT-v2"),
    ],
)
def test_a_broken_checkpoint_is_one_line(
    tiny_showo: Path, tmp_path: Path, broken: Callable[[Path], object], words: str
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(tiny_showo, folder)
    broken(folder)
    with pytest.raises(GapbenchError, match=words) as caught:
        load_model(str(folder), "cpu").generate(["a"], [1])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "bad", [{"guidance": -1.0}, {"steps": 0}, {"side": 0}, {"block": -1}, {"mask_noise": -0.1},
            {"sampler": "gumbel-1"}, {"guidance": float("inf")}],
)  # fmt: skip
def test_a_bad_recipe_is_refused(tiny_showo: Path, bad: dict[str, Any]) -> None:
    with pytest.raises(GapbenchError, match=f"recipe: {next(iter(bad))} is "):
        load_model(str(tiny_showo), "cpu", recipe=bad)


def test_every_part_of_the_checkpoint_counts_in_the_fingerprint(
    tiny_showo: Path, tmp_path: Path
) -> None:
    recipe = Recipe(5.0, 1.0, 4, 6)
    folders: Any = {"model": tiny_showo, "vq": tiny_showo / "vq", "text": tiny_showo / "text"}
    known = ShowoModel("a", folders, recipe, "cpu").fingerprint
    assert ShowoModel("b", folders, replace(recipe, steps=5), "cpu").fingerprint == known
    assert ShowoModel("a", folders, recipe, "cpu", "float32").fingerprint != known
    files = {"model": MODEL, "vq": MODEL, "text": "tokenizer.json"}
    for role, file in files.items():
        copy = tmp_path / role
        shutil.copytree(folders[role], copy)
        (copy / file).write_bytes((copy / file).read_bytes() + b" ")
        assert ShowoModel("a", {**folders, role: copy}, recipe, "cpu").fingerprint != known
