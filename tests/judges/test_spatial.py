from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gapbench.judges import spatial_rules as rules
from gapbench.judges.spatial import SpatialJudge, Want, distinct, wanted
from gapbench.judges.spatial_rules import Box, Detection
from gapbench.models.torchvision_shim import ensure
from gapbench.types import GapbenchError, Prompt

PLURALS = {"dog": "dogs", "stop sign": "stop signs", "sheep": "sheep", "knife": "knives"}


def prompt(text: str, **requirement: Any) -> Prompt:
    return Prompt(
        id="1", task="t", category="c", tier="easy", text=text, question="", requirement=requirement
    )


# -- the rules, by hand -------------------------------------------------------------------------


def test_iou() -> None:
    assert rules.iou((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(50 / 150)
    assert rules.iou((0, 0, 10, 10), (20, 20, 30, 30)) == 0
    assert rules.iou((0, 0, 0, 0), (0, 0, 0, 0)) == 0


def test_rule_scale_is_479_for_squares_and_at_most_480_on_the_longer_side() -> None:
    assert rules.rule_scale(958, 958) == 0.5
    assert rules.rule_scale(960, 480) == 0.5


@pytest.mark.parametrize(
    ("text", "relation"),
    [
        ("a rug on side of a lamp", "on side of"),
        ("a rug next to a lamp near a door", "next to"),
        ("a rug on the top of a lamp", "on the top of"),
        ("a rug on top of a lamp", "on top of"),
        ("a rug under a lamp", None),
    ],
)
def test_relations_in_the_plane(text: str, relation: str | None) -> None:
    assert rules.relation_2d(text) == relation


A: Box = (0, 0, 10, 10)


@pytest.mark.parametrize(
    ("relation", "other", "score"),
    [
        ("next to", (100, 300, 110, 310), 1.0),  # one axis within reach is enough
        ("near", (300, 400, 310, 410), 150 / 400),
        ("on the left of", (20, 0, 30, 10), 1.0),
        ("on the left of", (-20, 0, -10, 10), 0.0),
        ("on the right of", (-20, 0, -10, 10), 1.0),
        ("on the left of", (20, 25, 30, 35), 0.0),  # rather above than left
        ("on the left of", (20, 20, 30, 30), 0.0),  # a tie is neither
        ("on the left of", (5, 0, 15, 10), 0.1 / (50 / 150)),
        ("on the top of", (0, 20, 10, 30), 1.0),
        ("on the bottom of", (0, 20, 10, 30), 0.0),
        ("on the bottom of", (0, -20, 10, -10), 1.0),
        ("on top of", (0, 20, 10, 30), 0.0),
        (None, (0, 20, 10, 30), 0.0),
    ],
)
def test_position_in_the_plane(relation: str | None, other: Box, score: float) -> None:
    assert rules.position_2d(relation, A, other) == pytest.approx(score)


def test_total_in_the_plane() -> None:
    rug = Detection("rug", A, 0.9)
    lamp = Detection("lamp", (20, 0, 30, 10), 0.7)
    worse = Detection("rug", (50, 0, 60, 10), 0.4)
    relation = "on the left of"
    both = rules.score_2d([rug, lamp, worse], "rug", "lamp", relation)
    assert both == pytest.approx(0.25 * 0.9 + 0.25 * 0.7 + 0.5)
    assert rules.score_2d([rug], "rug", "lamp", relation) == 0  # cut
    assert rules.score_2d([rug, lamp], "lamp", "rug", relation) == 0  # 0.4, cut
    assert rules.score_2d([], "rug", "lamp", relation) == 0
    labelled = [Detection("rug, carpet", A, 0.9), lamp]
    assert rules.score_2d(labelled, "rug", "lamp", relation) == 0  # labels must be equal


DEPTH = np.tile(np.linspace(1, 0, 40, dtype=np.float32), (30, 1))
"""(30, 40): nearer on the left."""


@pytest.mark.parametrize(
    ("relation", "a", "b", "score"),
    [
        ("in front of", (0, 0, 10, 10), (5, 0, 15, 10), (50 / 150) / 0.5),
        ("behind", (0, 0, 10, 10), (5, 0, 15, 10), 0.0),
        ("hidden", (5, 0, 15, 10), (0, 0, 10, 10), (50 / 150) / 0.5),
        ("in front of", (0, 0, 10, 10), (1, 0, 11, 10), 1.0),
        ("in front of", (0, 0, 10, 10), (20, 0, 30, 10), 0.0),  # apart
        ("in front of", (0, 0, 6, 9), (2, 0, 8, 9), 0.0),  # exactly half
        (None, (0, 0, 10, 10), (1, 0, 11, 10), 0.0),
    ],
)
def test_position_in_depth(relation: str | None, a: Box, b: Box, score: float) -> None:
    found = rules.position_3d(relation, a, b, DEPTH)
    assert found == pytest.approx(score)


def test_the_official_crop_is_transposed_and_empty_beyond_the_map() -> None:
    a, b = (0.0, 0.0, 10.0, 10.0), (1.0, 0.0, 11.0, 10.0)
    # Columns become rows, along which this depth does not change: no difference, no score.
    assert rules.position_3d("in front of", a, b, DEPTH.T) == 0
    wide = np.zeros((5, 40), np.float32)
    far = (20.0, 0.0, 30.0, 4.0)
    assert rules.position_3d("behind", far, far, wide.T) == 0


def test_total_in_depth_keeps_the_last_hit_until_both_are_found() -> None:
    found = [
        Detection("dog", (0, 0, 10, 10), 0.9),
        Detection("hot dog", (1, 0, 11, 10), 0.5),
        Detection("rug", (2, 0, 12, 10), 0.3),
    ]
    score = rules.score_3d(found, "dog", "rug", "in front of", DEPTH)
    assert score == pytest.approx(0.25 * 0.5 + 0.25 * 0.3 + 0.5)
    alone = rules.score_3d(found[:2], "dog", "rug", "behind", DEPTH)
    assert alone == pytest.approx(0.25 * 0.9)  # no cut, and the first hit
    assert rules.score_3d([], "dog", "rug", "behind", DEPTH) == 0


def test_merged_drops_repeats_of_a_label() -> None:
    found = [
        Detection("dog", (0, 0, 100, 100), 0.9),
        Detection("dog", (1, 1, 100, 100), 0.8),
        Detection("dog", (10, 10, 20, 20), 0.7),  # covered
        Detection("cat", (0, 0, 100, 100), 0.6),
        Detection("dog", (60, 0, 160, 100), 0.5),
    ]
    assert [d.score for d in rules.merged(found)] == [0.9, 0.6, 0.5]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("three dogs and a knife", [("dog", 3), ("knife", 1)]),
        ("two stop signs, one dog", [("stop sign", 2), ("dog", 1)]),
        ("a stop sign.", [("stop sign", 1)]),
        ("four sheep", [("sheep", 4)]),
        ("two dog", []),
        ("a", []),
        ("eight knives", [("knife", 8)]),
    ],
)
def test_counted(text: str, expected: list[tuple[str, int]]) -> None:
    assert rules.counted(text, PLURALS) == expected


def test_numeracy() -> None:
    apart = [(40.0 * i, 0.0, 40.0 * i + 10, 10.0) for i in range(4)]
    dogs = [Detection("dog", box, 0.9) for box in apart[:2]]
    assert rules.score_numeracy(dogs, [("dog", 2)]) == 1
    assert rules.score_numeracy(dogs, [("dog", 3)]) == 0.5
    assert rules.score_numeracy(dogs, [("dog", 2), ("cat", 1)]) == 0.5
    named = [Detection("cattle, cow", box, 0.9) for box in apart]
    assert rules.score_numeracy(named, [("cow", 4)]) == 1
    assert rules.score_numeracy([Detection("person", A, 1)], [("girl", 1)]) == 1


def test_renamed_labels_stay_renamed() -> None:
    found = [Detection("hot dog", A, 1)]
    assert rules.score_numeracy(found, [("dog", 1), ("hot dog", 1)]) == pytest.approx(0.5)


boxes = st.tuples(*[st.integers(0, 400)] * 4).map(
    lambda n: (float(n[0]), float(n[1]), float(n[0] + n[2] + 1), float(n[1] + n[3] + 1))
)


@given(boxes, boxes, st.sampled_from(rules.RELATIONS_2D))
def test_positions_are_shares_and_opposites_exclude_each_other(a: Box, b: Box, name: str) -> None:
    assert 0 <= rules.position_2d(name, a, b) <= 1
    for one, other in (rules.ASIDE[:2], rules.ASIDE[2:]):
        assert rules.position_2d(one, a, b) == rules.position_2d(other, b, a)
        assert not (rules.position_2d(one, a, b) and rules.position_2d(other, a, b))


# -- what a prompt asks for ---------------------------------------------------------------------


def test_wanted() -> None:
    counted = prompt("x", include=[{"class": "dog", "count": 2}])
    assert wanted(counted) == Want("numeracy", (("dog", 2),))
    assert wanted(prompt("two knives")) == Want("numeracy", (("knife", 2),))
    assert wanted(prompt("a quiet morning")) is None


def test_a_prompt_without_things_is_refused() -> None:
    with pytest.raises(GapbenchError, match="names no relation"):
        SpatialJudge().question(prompt("a quiet morning"))


# -- the models ---------------------------------------------------------------------------------


def test_distinct_keeps_the_best_of_overlapping_boxes() -> None:
    found = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10], [50, 0, 60, 10.0]])
    kept = distinct("dog", found, torch.tensor([0.5, 0.9, 0.3, 0.05]))
    assert [(d.score, d.box[0]) for d in kept] == [
        (pytest.approx(0.9), 0.0),
        (pytest.approx(0.3), 20.0),
    ]


def build(folder: Path) -> None:
    """Random OWLv2 (32 pixels) and DPT-hybrid (480 pixels) checkpoints."""
    ensure()
    from transformers import (
        BitConfig,
        DPTConfig,
        DPTForDepthEstimation,
        Owlv2Config,
        Owlv2ForObjectDetection,
    )

    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
    letters = [chr(c) for c in range(97, 123)]
    words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    config = Owlv2Config(
        text_config={
            **small,
            "num_hidden_layers": 1,
            "vocab_size": len(words),
            "max_position_embeddings": 16,
            "bos_token_id": len(words) - 2,
            "eos_token_id": len(words) - 1,
            "pad_token_id": len(words) - 1,
        },
        vision_config={**small, "num_hidden_layers": 1, "image_size": 32, "patch_size": 8},
        projection_dim=32,
    )
    detector = Owlv2ForObjectDetection(config)
    with torch.no_grad():
        for weight in detector.parameters():
            weight.add_(torch.randn_like(weight) * 0.2)
    detector.save_pretrained(folder / "detector")
    (folder / "detector" / "vocab.json").write_text(
        json.dumps({word: i for i, word in enumerate(words)})
    )
    (folder / "detector" / "merges.txt").write_text("#version: 0.2\n")
    (folder / "detector" / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "unk_token": "<|endoftext|>"})
    )
    depth = DPTConfig(
        **small,
        num_hidden_layers=4,
        image_size=480,
        patch_size=16,
        is_hybrid=True,
        backbone_config=BitConfig(
            global_padding="same",
            layer_type="bottleneck",
            depths=[1, 1, 1],
            hidden_sizes=[8, 16, 32],
            out_features=["stage1", "stage2", "stage3"],
            embedding_dynamic_padding=True,
            embedding_size=8,
            num_groups=4,
        ),
        backbone_out_indices=[0, 1, 2, 3],
        backbone_featmap_shape=[1, 32, 30, 30],
        neck_hidden_sizes=[8, 16, 32, 32],
        fusion_hidden_size=16,
        readout_type="project",
    )
    model = DPTForDepthEstimation(depth)
    model.save_pretrained(folder / "depth")
    (folder / "depth" / "model.safetensors").unlink()  # the hub's has none
    torch.save(model.state_dict(), folder / "depth" / "pytorch_model.bin")


@pytest.fixture(scope="session")
def tiny_spatial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny-spatial"
    build(folder)
    return folder


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sizes = [(40, 40), (64, 32), (30, 50), (48, 48)]
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


def test_detections_do_not_depend_on_the_batch_or_on_other_names(
    tiny_spatial: Path, pictures: list[Image.Image]
) -> None:
    judge = SpatialJudge(str(tiny_spatial), device="cpu")
    together = judge.detect(pictures, [["rug", "lamp"]] * 4)
    assert any(together)
    for picture, found in zip(pictures, together, strict=True):
        alone = judge.detect([picture], [["rug"]])[0]
        beside = [d for d in found if d.label == "rug"]
        assert [d.label for d in alone] == [d.label for d in beside]
        for a, b in zip(alone, beside, strict=True):
            assert a.score == pytest.approx(b.score, abs=1e-5)
            assert a.box == pytest.approx(b.box, abs=1e-2)


def test_scores_in_depth(tiny_spatial: Path, pictures: list[Image.Image]) -> None:
    judge = SpatialJudge(str(tiny_spatial), device="cpu")
    depth = judge.depth(pictures[1])
    assert depth.shape == (240, 480)
    assert depth.min() >= 0
    assert depth.max() <= 1
    want = Want("3d", (("rug", 1), ("lamp", 1)), "in front of")
    answers = judge.answers(pictures[:1] * 2, [want, None])
    assert answers[0].score is not None
    assert answers[0].verdict == int(answers[0].score >= 0.5)
    assert answers[1].verdict is None
    assert answers[1].reason
    assert judge.name == "spatial-native-tiny-spatial"
    judge.release()


def test_the_judge_counts(tiny_spatial: Path, pictures: list[Image.Image]) -> None:
    judge = SpatialJudge(str(tiny_spatial), device="cpu")
    asked = [prompt("two knives"), prompt("x", include=[{"class": "rug", "count": 1}])]
    both = judge.judge(pictures[:2], asked)
    alone = [judge.judge([i], [p])[0] for i, p in zip(pictures, asked, strict=False)]
    assert [a.score for a in both] == [a.score for a in alone]
