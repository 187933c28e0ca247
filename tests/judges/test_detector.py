"""GenEval's judge on tiny random checkpoints of the real classes, loaded as real ones are."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from torch.nn import functional

from gapbench import load_task, open_run
from gapbench.fetch.sources import Source
from gapbench.judges import detector as module
from gapbench.judges import geneval_rule as rule
from gapbench.judges.detector import DetectorJudge
from gapbench.models.torchvision_shim import ensure
from gapbench.tasks.prompts.geneval import CLASSES, COLORS
from gapbench.types import GapbenchError, Prompt

BALL = CLASSES.index(rule.BALL)


def tiny_config(**more: Any) -> Any:
    ensure()
    from transformers import Mask2FormerConfig, SwinConfig

    return Mask2FormerConfig(
        backbone_config=SwinConfig(
            embed_dim=8,
            depths=[1, 1, 2, 1],
            num_heads=[1, 2, 2, 2],
            window_size=4,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        ),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=24,
        dim_feedforward=24,
        encoder_layers=2,
        decoder_layers=3,
        num_attention_heads=2,
        num_queries=7,
        **(more or {"id2label": dict(enumerate(CLASSES))}),
    )


def save_detector(folder: Path, **more: Any) -> Path:
    """Random masks; every query is a sports ball for certain."""
    config = tiny_config(**more)
    from transformers import Mask2FormerForUniversalSegmentation

    torch.manual_seed(3)
    model = Mask2FormerForUniversalSegmentation(config)
    with torch.no_grad():
        model.class_predictor.weight.zero_()
        model.class_predictor.bias.zero_()
        model.class_predictor.bias[BALL % model.class_predictor.out_features] = 8.0
    model.save_pretrained(folder)
    like_the_hubs(folder / "model.safetensors")
    return folder


def like_the_hubs(file: Path) -> None:
    """Files of 2022 lack the norm that no feature map comes from, and hold computed indices."""
    state = load_file(file)
    for name in [n for n in state if "swin.layernorm." in n]:
        del state[name]
    for name in [n for n in state if n.endswith("relative_position_bias_table")]:
        state[name.replace("bias_table", "index")] = torch.zeros(16, 16, dtype=torch.long)
    save_file(state, file, metadata={"format": "pt"})


def save_clip(folder: Path, steps: int) -> None:
    """CLIP's own class, small; `steps` of training teach it the colours of discs on grey."""
    ensure()
    open_clip = import_module("open_clip")
    sizes: dict[str, Any] = {
        "embed_dim": 32,
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": 32, "layers": 1, "width": 32, "patch_size": 8, "head_width": 16,
        },
        "text_cfg": {
            "context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1,
        },
    }  # fmt: skip
    torch.manual_seed(0)
    model = open_clip.CLIP(**sizes)
    transform = open_clip.image_transform(32, is_train=False)
    tokens = open_clip.get_tokenizer("ViT-L-14")(rule.color_texts(rule.BALL))
    discs = torch.stack([transform(disc(color)) for color in COLORS])
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(steps):
        images = functional.normalize(model.encode_image(discs), dim=-1)
        texts = functional.normalize(model.encode_text(tokens), dim=-1)
        loss = functional.cross_entropy(
            20 * images @ texts.reshape(10, 3, -1).mean(1).T, torch.arange(10)
        )
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": sizes}))
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")


def disc(color: str) -> Image.Image:
    image = Image.new("RGB", (64, 64), (153, 153, 153))
    ImageDraw.Draw(image).ellipse((0, 0, 64, 64), fill=color)
    return image


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_detector(tmp_path_factory.mktemp("checkpoints") / "tiny")
    save_clip(folder / "clip", steps=40)
    return folder


@pytest.fixture(scope="module")
def judge(checkpoint: Path) -> DetectorJudge:
    return DetectorJudge(str(checkpoint), device="cpu")


def prompt(*include: dict[str, Any], **exclude: Any) -> Prompt:
    return Prompt(
        id="1",
        task="geneval",
        category="any",
        tier="easy",
        text="a photo",
        question="?",
        requirement={"include": list(include), **exclude},
    )


def picture(seed: int = 0, width: int = 96, height: int = 96) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


# -- pixels in -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "resized", "padded"),
    [
        ((1024, 1024), (800, 800), (800, 800)),
        ((384, 384), (800, 800), (800, 800)),
        ((640, 480), (1067, 800), (1088, 800)),  # 640 * 800 / 480 = 1066.67
        ((480, 640), (800, 1067), (800, 1088)),
        ((2000, 500), (1333, 333), (1344, 352)),  # 500 * 1333 / 2000 = 333.25
    ],
)
def test_sizes(size: tuple[int, int], resized: tuple[int, int], padded: tuple[int, int]) -> None:
    assert rule.resized(*size) == resized
    assert rule.padded(*size) == padded
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    assert rule.prepare(pixels).shape == (3, padded[1], padded[0])


def test_prepared_levels() -> None:
    """Red, green, blue in this order; padding of level 128; both normalised."""
    pixels = np.empty((480, 640, 3), np.uint8)
    pixels[:] = (255, 0, 100)
    made = rule.prepare(pixels)
    inside = [(255 - 123.675) / 58.395, (0 - 116.28) / 57.12, (100 - 103.53) / 57.375]
    outside = [(128 - 123.675) / 58.395, (128 - 116.28) / 57.12, (128 - 103.53) / 57.375]
    assert made[:, 799, 1066].tolist() == pytest.approx(inside)
    assert made[:, 0, 1067].tolist() == pytest.approx(outside)
    assert made[:, 799, 1087].tolist() == pytest.approx(outside)


def test_enlarging_is_bilinear_and_whole() -> None:
    """400 -> 800 pixels: weights 3/4 and 1/4, the edge repeated, rounded to levels."""
    pixels = np.zeros((400, 400, 3), np.uint8)
    pixels[:, 1] = 101
    row = (rule.prepare(pixels)[0, 0, :6] * 58.395 + 123.675).tolist()
    # 101 / 4 = 25.25 and 101 * 3 / 4 = 75.75.
    assert row == pytest.approx([0, 25, 76, 76, 25, 0], abs=1e-4)


def test_shrinking_takes_no_average() -> None:
    """2400 -> 800: each pixel is the middle one of three, as cv2 has it."""
    pixels = np.zeros((2400, 2400, 3), np.uint8)
    pixels[:, 1::3] = 90
    row = rule.prepare(pixels)[0, 0] * 58.395 + 123.675
    assert row.tolist() == pytest.approx([90.0] * 800, abs=1e-4)


# -- objects out ---------------------------------------------------------------------------


def slow_instances(
    logits: torch.Tensor, masks: torch.Tensor, size: tuple[int, int]
) -> dict[str, list[tuple[list[float], np.ndarray[Any, Any]]]]:
    """The official order of steps, a pair at a time; masks enlarged one by one."""
    height, width = size
    w, h = rule.resized(width, height)
    full_w, full_h = rule.padded(width, height)
    chances = logits.softmax(-1)
    pairs = [(float(chances[q, c]), q, c) for q in range(len(logits)) for c in range(80)]
    found: dict[str, list[tuple[list[float], np.ndarray[Any, Any]]]] = {}
    for chance, q, c in sorted(pairs, key=lambda pair: -pair[0])[:100]:
        mask = masks[q][None, None]
        mask = functional.interpolate(mask, (full_h, full_w), mode="bilinear", align_corners=False)
        mask = mask[:, :, :h, :w]
        mask = functional.interpolate(mask, size, mode="bilinear", align_corners=False)[0, 0]
        total, area, box = 0.0, 0, [0.0] * 4
        inside = (mask > 0).numpy()
        values = mask.sigmoid().numpy()
        ys, xs = np.nonzero(inside)
        for y, x in zip(ys, xs, strict=True):
            total += float(values[y, x])
            area += 1
        if area:
            box = [float(b) for b in (min(xs), min(ys), max(xs) + 1, max(ys) + 1)]
        score = chance * total / (area + 1e-6)
        found.setdefault(CLASSES[c], []).append(([*box, score], inside))
    return found


@pytest.mark.parametrize("size", [(60, 60), (40, 72)])
def test_instances_equal_a_slow_loop(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(5)
    # Some queries sure of one class, some torn between two, one of nothing; one mask empty.
    logits = torch.randn(6, 81, generator=generator)
    for query, names in enumerate([(0,), (0, 2), (7, 8), (80,), (7,), (2,)]):
        logits[query, list(names)] = 7.0
    masks = 4 * torch.randn(6, 10, 12, generator=generator)
    masks[4] = -1
    quick = rule.instances(logits, masks, size)
    slow = slow_instances(logits, masks, size)
    expected = {n: [f for f in found if f[0][4] > 0.3] for n, found in slow.items()}
    expected = {name: found for name, found in expected.items() if found}
    assert set(expected) >= {CLASSES[0], CLASSES[2]}
    assert set(quick.boxes) == set(quick.masks) == set(expected)
    for name, found in expected.items():
        order = [r for r in np.argsort(-quick.boxes[name][:, 4]) if quick.boxes[name][r, 4] > 0.3]
        assert len(order) == len(found)
        for row, (box, mask) in zip(order, sorted(found, key=lambda f: -f[0][4]), strict=True):
            assert quick.boxes[name][row].tolist() == pytest.approx(box, abs=1e-5)
            assert (quick.masks[name][row] == mask).all()


def test_no_candidate_above_the_floor() -> None:
    found = rule.instances(torch.zeros(5, 81), torch.ones(5, 4, 4), (32, 32))
    assert found == rule.Found({}, {})


def test_crop_is_the_object_on_grey() -> None:
    image = np.arange(8 * 6 * 3, dtype=np.uint8).reshape(6, 8, 3)
    mask = np.zeros((1, 6, 8), bool)
    mask[0, 2, 3] = mask[0, 4, 5] = True
    found = rule.Found({"dog": np.array([[3, 2, 6, 5, 0.9]], np.float32)}, {"dog": mask})
    cut = np.asarray(found.crop(image, "dog", 0))
    assert cut.shape == (3, 3, 3)
    assert (cut[0, 0] == image[2, 3]).all()
    assert (cut[2, 2] == image[4, 5]).all()
    assert (np.delete(cut.reshape(9, 3), (0, 8), axis=0) == 153).all()


# -- the judge -----------------------------------------------------------------------------


def test_verdicts_follow_what_is_there(
    judge: DetectorJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = picture()
    pixels = np.asarray(image)
    found = judge.detect([pixels])[0]
    assert set(found.boxes) == {rule.BALL}
    kept = rule.select(found.boxes, {"include": []})[rule.BALL]
    assert len(kept) > 1
    color = judge.colors([found.crop(pixels, rule.BALL, kept[0])], [rule.BALL])[0]
    other = next(c for c in COLORS if c != color)
    ball = {"class": rule.BALL, "count": 1}
    prompts = [
        prompt({**ball, "count": len(kept)}),
        prompt({**ball, "count": len(kept) + 1}),
        prompt({**ball, "color": color}),
        prompt({**ball, "color": other}),
        prompt({"class": "dog", "count": 1}, ball),
    ]
    answers = judge.judge([image] * len(prompts), prompts)
    assert [a.verdict for a in answers] == [1, 0, 1, 0, 0]
    # By parts of one image, which is looked at once.
    looked: list[int] = []

    def detect(images: Sequence[Any]) -> list[rule.Found]:
        looked.append(len(images))
        return DetectorJudge.detect(judge, images)

    monkeypatch.setattr(judge, "detect", detect)
    parts = [each.requirement for each in prompts]
    thin = Image.new("RGB", (3000, 1))
    found = judge.judge_parts([image, thin, image], [parts, parts, parts[:2]])
    why = "the image, 3000 x 1, is too thin"
    assert found == [[True, False, True, False, False], why, [True, False]]
    assert looked == [2]
    assert [a.reason for a in answers] == [
        None,
        f"{len(kept)} sports ball, {len(kept) + 1} wanted",
        None,
        f"sports ball is {color}, {other} wanted",
        "0 dog, 1 wanted",
    ]


def test_an_image_is_judged_alike_in_any_company(judge: DetectorJudge) -> None:
    images = [picture(0), picture(1, 128, 96), picture(2)]
    arrays = [np.asarray(image) for image in images]
    alone = [judge.detect([array])[0] for array in arrays]
    judge.batch = 2
    try:
        together = judge.detect(arrays)
    finally:
        judge.batch = 1
    for one, many in zip(alone, together, strict=True):
        assert one.boxes.keys() == many.boxes.keys()
        for name in one.boxes:
            a, b = (f.boxes[name][np.lexsort(f.boxes[name].T)] for f in (one, many))
            assert np.allclose(a, b, atol=1e-4)
    prompts = [prompt({"class": rule.BALL, "count": 1, "color": c}) for c in COLORS[:3]]
    singly = [judge.judge([i], [p])[0] for i, p in zip(images, prompts, strict=True)]
    assert judge.judge(images, prompts) == singly


def test_what_cannot_be_judged_is_no_zero(judge: DetectorJudge) -> None:
    ball = prompt({"class": rule.BALL, "count": 1})
    answers = judge.judge([Image.new("RGB", (3000, 1)), picture(0)], [ball] * 2)
    assert [a.verdict for a in answers] == [None, 1]
    assert answers[0].reason == "the image, 3000 x 1, is too thin"
    assert judge.judge([], []) == []


def test_check_picture(judge: DetectorJudge, tmp_path: Path) -> None:
    assert judge.check_picture() is None
    untrained = save_detector(tmp_path / "untrained")
    save_clip(untrained / "clip", steps=0)
    warning = DetectorJudge(str(untrained), device="cpu").check_picture()
    assert warning is not None
    assert "sees a red and a blue disc as" in warning


def test_check_picture_without_a_detection(checkpoint: Path, tmp_path: Path) -> None:
    from transformers import Mask2FormerForUniversalSegmentation

    blind = Mask2FormerForUniversalSegmentation.from_pretrained(checkpoint)
    with torch.no_grad():
        blind.class_predictor.bias.zero_()
    blind.save_pretrained(tmp_path / "blind")
    (tmp_path / "blind" / "clip").symlink_to(checkpoint / "clip")
    warning = DetectorJudge(str(tmp_path / "blind"), device="cpu").check_picture()
    assert warning is not None
    assert "detects nothing" in warning


def test_release_and_again(judge: DetectorJudge) -> None:
    ball = prompt({"class": rule.BALL, "count": 1, "color": "red"})
    before = judge.judge([picture()], [ball])
    judge.release()
    assert judge.judge([picture()], [ball]) == before


def test_questions(judge: DetectorJudge) -> None:
    ball = prompt({"count": 1, "class": rule.BALL})
    assert judge.question(ball) == '{"include": [{"class": "sports ball", "count": 1}]}'
    with pytest.raises(GapbenchError, match="no requirement of GenEval's"):
        judge.question(prompt({"shape": "circle", "count": 1}))


def test_names_and_fingerprints(checkpoint: Path, tmp_path: Path) -> None:
    other = save_detector(tmp_path / "tiny")  # the same weights without a CLIP of their own
    judges = [DetectorJudge(a) for a in (None, "native", "official", str(checkpoint), str(other))]
    assert [j.name for j in judges] == [
        "detector", "detector", "detector-official", "detector-tiny", "detector-tiny",
    ]  # fmt: skip
    assert judges[0].fingerprint == judges[1].fingerprint
    assert len({j.fingerprint for j in judges}) == 4
    assert DetectorJudge(str(checkpoint)).fingerprint == judges[3].fingerprint


# -- weights that do not fit ---------------------------------------------------------------


def test_no_such_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(GapbenchError, match="neither native, official nor a folder"):
        DetectorJudge(str(tmp_path / "nowhere"))


def refusal(folder: Path) -> str:
    with pytest.raises(GapbenchError) as caught:
        DetectorJudge(str(folder), device="cpu").judge([], [])
    return str(caught.value)


def test_other_classes_are_refused(tmp_path: Path) -> None:
    swapped = dict(enumerate(CLASSES)) | {3: "airplane", 4: "motorcycle"}
    assert "number 3 is 'airplane', 'motorcycle' wanted" in refusal(
        save_detector(tmp_path / "swapped", id2label=swapped)
    )
    assert "133 in number, 80 wanted" in refusal(
        save_detector(tmp_path / "panoptic", num_labels=133)
    )


def test_missing_tensors_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "torn"
    folder.mkdir()
    (folder / "config.json").write_text((checkpoint / "config.json").read_text())
    state = load_file(checkpoint / "model.safetensors")
    del state["class_predictor.bias"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    assert "lack 1 tensors, class_predictor.bias among them" in refusal(folder)
    (folder / "model.safetensors").write_bytes(b"no")
    assert "cannot load" in refusal(folder)


# -- mmdet's checkpoint --------------------------------------------------------------------


def mmdet_state(config: Any) -> dict[str, torch.Tensor]:
    """Random tensors under mmdet 2.x's names and shapes, written down from its modules."""
    generator = torch.Generator().manual_seed(11)
    state: dict[str, torch.Tensor] = {}

    def put(name: str, *shape: int) -> None:
        state[name] = torch.randn(*shape, generator=generator)

    def both(name: str, *shape: int) -> None:
        put(f"{name}.weight", *shape)
        put(f"{name}.bias", shape[0])

    swin, d = config.backbone_config, config.hidden_dim
    both("backbone.patch_embed.projection", swin.embed_dim, 3, 4, 4)
    both("backbone.patch_embed.norm", swin.embed_dim)
    for i, depth in enumerate(swin.depths):
        c = swin.embed_dim * 2**i
        for j in range(depth):
            block = f"backbone.stages.{i}.blocks.{j}"
            both(f"{block}.norm1", c)
            both(f"{block}.attn.w_msa.qkv", 3 * c, c)
            both(f"{block}.attn.w_msa.proj", c, c)
            put(f"{block}.attn.w_msa.relative_position_bias_table", 49, swin.num_heads[i])
            put(f"{block}.attn.w_msa.relative_position_index", 16, 16)
            both(f"{block}.norm2", c)
            both(f"{block}.ffn.layers.0.0", 4 * c, c)
            both(f"{block}.ffn.layers.1", c, 4 * c)
        both(f"backbone.norm{i}", c)
        if i < 3:
            both(f"backbone.stages.{i}.downsample.norm", 4 * c)
            put(f"backbone.stages.{i}.downsample.reduction.weight", 2 * c, 4 * c)
    pixels = "panoptic_head.pixel_decoder"
    for i in range(3):
        both(f"{pixels}.input_convs.{i}.conv", d, swin.embed_dim * 2 ** (3 - i), 1, 1)
        both(f"{pixels}.input_convs.{i}.gn", d)
    for i in range(config.encoder_layers):
        layer = f"{pixels}.encoder.layers.{i}"
        both(f"{layer}.attentions.0.sampling_offsets", 2 * 3 * 4 * 2, d)
        both(f"{layer}.attentions.0.attention_weights", 2 * 3 * 4, d)
        both(f"{layer}.attentions.0.value_proj", d, d)
        both(f"{layer}.attentions.0.output_proj", d, d)
        both(f"{layer}.ffns.0.layers.0.0", config.encoder_feedforward_dim, d)
        both(f"{layer}.ffns.0.layers.1", d, config.encoder_feedforward_dim)
        both(f"{layer}.norms.0", d)
        both(f"{layer}.norms.1", d)
    put(f"{pixels}.level_encoding.weight", 3, d)
    put(f"{pixels}.lateral_convs.0.conv.weight", d, swin.embed_dim, 1, 1)
    both(f"{pixels}.lateral_convs.0.gn", d)
    put(f"{pixels}.output_convs.0.conv.weight", d, d, 3, 3)
    both(f"{pixels}.output_convs.0.gn", d)
    both(f"{pixels}.mask_feature", d, d, 1, 1)
    for i in range(config.decoder_layers - 1):
        layer = f"panoptic_head.transformer_decoder.layers.{i}"
        for j in range(2):
            put(f"{layer}.attentions.{j}.attn.in_proj_weight", 3 * d, d)
            put(f"{layer}.attentions.{j}.attn.in_proj_bias", 3 * d)
            both(f"{layer}.attentions.{j}.attn.out_proj", d, d)
        both(f"{layer}.ffns.0.layers.0.0", config.dim_feedforward, d)
        both(f"{layer}.ffns.0.layers.1", d, config.dim_feedforward)
        for j in range(3):
            both(f"{layer}.norms.{j}", d)
    both("panoptic_head.transformer_decoder.post_norm", d)
    put("panoptic_head.query_embed.weight", config.num_queries, d)
    put("panoptic_head.query_feat.weight", config.num_queries, d)
    put("panoptic_head.level_embed.weight", 3, d)
    both("panoptic_head.cls_embed", 81, d)
    for i in (0, 2, 4):
        both(f"panoptic_head.mask_embed.{i}", d, d)
    return state


def twins(config: Any) -> dict[str, str]:
    """Modules and parameters that take a tensor as it is: mmdet's name -> transformers 5.23's."""
    pixels, head = "panoptic_head.pixel_decoder", "panoptic_head"
    swin = "model.pixel_level_module.encoder"
    decoder, queries = "model.pixel_level_module.decoder", "model.transformer_module"
    pairs = {
        "backbone.patch_embed.projection": f"{swin}.swin.embeddings.patch_embeddings.projection",
        "backbone.patch_embed.norm": f"{swin}.swin.embeddings.norm",
        f"{pixels}.level_encoding.weight": f"{decoder}.level_embed",
        f"{pixels}.lateral_convs.0.conv": f"{decoder}.adapter_1.0",
        f"{pixels}.lateral_convs.0.gn": f"{decoder}.adapter_1.1",
        f"{pixels}.output_convs.0.conv": f"{decoder}.layer_1.0",
        f"{pixels}.output_convs.0.gn": f"{decoder}.layer_1.1",
        f"{pixels}.mask_feature": f"{decoder}.mask_projection",
        f"{head}.transformer_decoder.post_norm": f"{queries}.decoder.layernorm",
        f"{head}.query_embed": f"{queries}.queries_embedder",
        f"{head}.query_feat": f"{queries}.queries_features",
        f"{head}.level_embed": f"{queries}.level_embed",
        f"{head}.cls_embed": "class_predictor",
    }
    for i, depth in enumerate(config.backbone_config.depths):
        pairs[f"backbone.norm{i}"] = f"{swin}.hidden_states_norms.stage{i + 1}"
        for j in range(depth):
            old = f"backbone.stages.{i}.blocks.{j}"
            new = f"{swin}.swin.encoder.layers.{i}.blocks.{j}"
            table = "relative_position_bias_table"
            pairs |= {
                f"{old}.norm1": f"{new}.layernorm_before",
                f"{old}.norm2": f"{new}.layernorm_after",
                f"{old}.attn.w_msa.proj": f"{new}.attention.o_proj",
                f"{old}.attn.w_msa.{table}": f"{new}.attention.relative_position_bias.{table}",
                f"{old}.ffn.layers.0.0": f"{new}.mlp.fc1",
                f"{old}.ffn.layers.1": f"{new}.mlp.fc2",
            }
    for i in range(3):
        pairs[f"{pixels}.input_convs.{i}.conv"] = f"{decoder}.input_projections.{i}.0"
        pairs[f"{pixels}.input_convs.{i}.gn"] = f"{decoder}.input_projections.{i}.1"
        embedder = f"{queries}.decoder.mask_predictor.mask_embedder.{i}.0"
        pairs[f"{head}.mask_embed.{2 * i}"] = embedder
    for i in range(config.encoder_layers):
        old, new = f"{pixels}.encoder.layers.{i}", f"{decoder}.encoder.layers.{i}"
        for part in ("sampling_offsets", "attention_weights", "value_proj", "output_proj"):
            pairs[f"{old}.attentions.0.{part}"] = f"{new}.self_attn.{part}"
        pairs |= {
            f"{old}.norms.0": f"{new}.self_attn_layer_norm",
            f"{old}.norms.1": f"{new}.final_layer_norm",
            f"{old}.ffns.0.layers.0.0": f"{new}.fc1",
            f"{old}.ffns.0.layers.1": f"{new}.fc2",
        }
    for i in range(config.decoder_layers - 1):
        old = f"{head}.transformer_decoder.layers.{i}"
        new = f"{queries}.decoder.layers.{i}"
        pairs |= {
            f"{old}.attentions.0.attn.in_proj_weight": f"{new}.cross_attn.in_proj_weight",
            f"{old}.attentions.0.attn.in_proj_bias": f"{new}.cross_attn.in_proj_bias",
            f"{old}.attentions.0.attn.out_proj": f"{new}.cross_attn.out_proj",
            f"{old}.attentions.1.attn.out_proj": f"{new}.self_attn.out_proj",
            f"{old}.norms.0": f"{new}.cross_attn_layer_norm",
            f"{old}.norms.1": f"{new}.self_attn_layer_norm",
            f"{old}.norms.2": f"{new}.final_layer_norm",
            f"{old}.ffns.0.layers.0.0": f"{new}.fc1",
            f"{old}.ffns.0.layers.1": f"{new}.fc2",
        }
    return pairs


def expected_state(state: dict[str, torch.Tensor], config: Any) -> dict[str, torch.Tensor]:
    pairs, made = twins(config), {}
    for key, tensor in state.items():
        module_name, _, kind = key.rpartition(".")
        if key.endswith("relative_position_index"):
            continue
        if key in pairs:
            made[pairs[key]] = tensor
        elif module_name in pairs:
            made[f"{pairs[module_name]}.{kind}"] = tensor
        elif "downsample" in key:
            stage, part = key.split(".")[2], key.split(".downsample.")[1]
            channels = tensor.shape[-1] // 4
            order = [
                channel * 4 + row * 2 + column
                for column in (0, 1)
                for row in (0, 1)
                for channel in range(channels)
            ]
            place = f"model.pixel_level_module.encoder.swin.encoder.layers.{stage}.downsample"
            made[f"{place}.{part}"] = tensor[..., order]
        else:  # query, key and value in one
            old = module_name.removesuffix(".attn.w_msa.qkv").removesuffix(".attentions.1.attn")
            new = old.replace(
                "backbone.stages", "model.pixel_level_module.encoder.swin.encoder.layers"
            )
            new = new.replace(
                "panoptic_head.transformer_decoder", "model.transformer_module.decoder"
            )
            block = "attention" if "w_msa" in key else "self_attn"
            third = len(tensor) // 3
            for i, part in enumerate("qkv"):
                piece = tensor[third * i : third * (i + 1)]
                made[f"{new}.{block}.{part}_proj.{kind.removeprefix('in_proj_')}"] = piece
    return made


def test_every_mmdet_tensor_finds_its_place() -> None:
    config = tiny_config()
    state = mmdet_state(config)
    model = module.load(Path(), "cpu", config=config, tensors=module.from_mmdet(state))
    got, expected = model.state_dict(), expected_state(state, config)
    swin = "model.pixel_level_module.encoder.swin.layernorm"  # no feature map comes from it
    needless = {"criterion.empty_weight", f"{swin}.weight", f"{swin}.bias"}
    assert set(got) - set(expected) == needless
    assert set(expected) <= set(got)
    for name, tensor in expected.items():
        assert torch.equal(got[name], tensor), name


def test_patch_merging_computes_what_mmdet_does() -> None:
    config = tiny_config()
    state = mmdet_state(config)
    model = module.load(Path(), "cpu", config=config, tensors=module.from_mmdet(state))
    merging = model.model.pixel_level_module.encoder.swin.encoder.layers[0].downsample
    x = torch.randn(1, 6 * 4, 8, generator=torch.Generator().manual_seed(2))
    ours = merging(x, (6, 4))
    old = "backbone.stages.0.downsample"
    y = torch.nn.Unfold(2, stride=2)(x.reshape(1, 6, 4, 8).permute(0, 3, 1, 2)).transpose(1, 2)
    y = functional.layer_norm(y, (32,), state[f"{old}.norm.weight"], state[f"{old}.norm.bias"])
    assert torch.allclose(ours, y @ state[f"{old}.reduction.weight"].T, atol=1e-4)


def test_official_file_is_looked_up_and_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GAPBENCH_CACHE", str(tmp_path))
    judge = DetectorJudge("official", device="cpu")
    with pytest.raises(GapbenchError) as caught:
        judge.judge([], [])
    for part in (module.OFFICIAL.url, module.OFFICIAL.sha256, "275,630,991 bytes", str(tmp_path)):
        assert part in str(caught.value)
    assert module.OFFICIAL.name.endswith("_20220504_001756-743b7d99.pth")
    (tmp_path / module.OFFICIAL.name).write_bytes(b"another file")
    with pytest.raises(GapbenchError, match=r"has sha256 \w+, expected 743b7d99015f"):
        judge.judge([], [])


def test_official_file_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same path as the real file's, for one of its kind that is small."""
    config = tiny_config()
    state = mmdet_state(config)
    file = tmp_path / "small.pth"
    torch.save({"meta": {"CLASSES": CLASSES, "epoch": 50}, "state_dict": state}, file)
    small = Source(
        url="https://example.org/small.pth",
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        bytes=file.stat().st_size,
        license="none",
    )
    monkeypatch.setenv("GAPBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "OFFICIAL", small)
    monkeypatch.setattr(module, "swin_small", lambda: config)
    got = module._official("cpu").state_dict()
    assert torch.equal(got["class_predictor.bias"], state["panoptic_head.cls_embed.bias"])


def test_named_architecture_is_swin_small() -> None:
    from transformers import Mask2FormerForUniversalSegmentation

    with torch.device("meta"):
        model = Mask2FormerForUniversalSegmentation(module.swin_small())
    state = {k: v.shape for k, v in model.state_dict().items()}
    assert sum("relative_position_bias_table" in name for name in state) == 2 + 2 + 18 + 2
    assert state["class_predictor.weight"] == (81, 256)
    assert state["model.transformer_module.queries_features.weight"] == (100, 256)
    assert state["model.pixel_level_module.encoder.hidden_states_norms.stage4.weight"] == (768,)


# -- from prompts to a table ---------------------------------------------------------------


def test_a_run_of_geneval_ends_in_a_table(
    checkpoint: Path, cli: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """With a detector of the user's own, which sees one class everywhere."""
    seen = load_task("geneval").prompts()[0].requirement["include"][0]["class"]
    shutil.copytree(checkpoint, tmp_path / "mine")
    state = load_file(tmp_path / "mine" / "model.safetensors")
    bias = state["class_predictor.bias"]
    bias[BALL], bias[CLASSES.index(seen)] = bias[CLASSES.index(seen)].clone(), bias[BALL].clone()
    save_file(state, tmp_path / "mine" / "model.safetensors", metadata={"format": "pt"})

    options = ("--model", "janus-mini", "--tasks", "geneval", "--limit", "6", "--samples", "1")
    done = cli("run", *options, "--judge", "detector:mine")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("janus-mini on geneval 1.0: 6 images of 6 prompts")
    assert "Outside judge: detector-mine\n" in done.stdout
    assert "WARNING" not in done.stdout

    run = open_run(next((tmp_path / "runs").iterdir()))
    frame = run.frame()
    assert run.judges() == ["detector-mine"]
    for prompt, row in zip(run.plan.prompts, frame.itertuples(), strict=True):
        missing = [i for i in prompt.requirement["include"] if i["class"] != seen]
        if missing:
            assert row.outside == 0
            assert row.outside_reason.startswith(f"0 {missing[0]['class']}, ")
    assert frame["outside"].iloc[0] == 1
    shown = cli("show", str(run.path), "-v").stdout
    for row in (*load_task("geneval").tier_of, "easy", "overall"):
        name = row if row in ("easy", "overall") else f"  {row}"
        assert re.search(rf"^{name} .*\n *\(\d+/\d+\)", shown, re.MULTILINE), row
