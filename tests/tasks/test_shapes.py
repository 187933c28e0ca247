"""The shapes world against a reading of its rules in plain loops, and its prompt splits."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import pytest
from scenes import sample_scene

from gapbench import load_task
from gapbench.tasks.prompts.shapes import CATEGORIES, Side, make
from gapbench.tasks.world import (
    BACKGROUND,
    COLORS,
    MASKS,
    RELATIONS,
    SHAPES,
    TEXTURES,
    Sprite,
    malformed,
    render,
    unmet,
)

Requirement = dict[str, Any]


def meets(scene: dict[int, Sprite], requirement: Requirement) -> bool:
    """The rules read literally, on rows and columns."""
    objects = [
        {"shape": s.shape, "color": s.color, "texture": s.texture, "row": c // 3, "col": c % 3}
        for c, s in scene.items()
    ]

    def matching(item: Requirement) -> list[dict[str, Any]]:
        found = []
        for thing in objects:
            if "shape" in item and thing["shape"] != item["shape"]:
                continue
            if "color" in item and thing["color"] != item["color"]:
                continue
            if "texture" in item and thing["texture"] != item["texture"]:
                continue
            found.append(thing)
        return found

    for item in requirement["include"]:
        if len(matching(item)) < item["count"]:
            return False
        if "position" in item:
            relation, other = item["position"]
            placed = False
            for a in matching(item):
                for b in matching(requirement["include"][other]):
                    placed |= relation == "left of" and a["col"] < b["col"]
                    placed |= relation == "right of" and a["col"] > b["col"]
                    placed |= relation == "above" and a["row"] < b["row"]
                    placed |= relation == "below" and a["row"] > b["row"]
            if not placed:
                return False
    return all(len(matching(item)) < item["count"] for item in requirement.get("exclude", ()))


def random_item(rng: np.random.Generator, count: int) -> Requirement:
    item: Requirement = {"shape": str(rng.choice(SHAPES[:3])), "count": count}
    if rng.random() < 0.4:
        item["color"] = str(rng.choice(list(COLORS)[:2]))
    if rng.random() < 0.3:
        item["texture"] = str(rng.choice(TEXTURES))
    return item


def random_requirement(rng: np.random.Generator) -> Requirement:
    include = [random_item(rng, int(rng.integers(1, 3))) for _ in range(int(rng.integers(1, 4)))]
    if len(include) > 1 and rng.random() < 0.6:
        include[1]["position"] = [str(rng.choice(RELATIONS)), 0]
    exclude = [random_item(rng, int(rng.integers(1, 4)))] if rng.random() < 0.4 else []
    return {"include": include, "exclude": exclude}


def random_scene(rng: np.random.Generator) -> dict[int, Sprite]:
    cells = rng.permutation(9)[: int(rng.integers(0, 8))]
    return {
        int(cell): Sprite(
            str(rng.choice(SHAPES[:3])),
            str(rng.choice(list(COLORS)[:2])),
            str(rng.choice(TEXTURES)),
        )
        for cell in cells
    }


def test_unmet_is_the_literal_reading() -> None:
    rng = np.random.default_rng(1)
    answers = []
    for _ in range(4000):
        scene, requirement = random_scene(rng), random_requirement(rng)
        assert malformed(requirement) is None
        answers.append(meets(scene, requirement))
        assert (unmet(scene, requirement) is None) == answers[-1], (scene, requirement)
    assert 300 < sum(answers) < 3700


@pytest.mark.parametrize("split", ["test", "validation", "train"])
def test_scenes_of_every_prompt_meet_it_and_hold_nothing_else(split: Side) -> None:
    rng = np.random.default_rng(2)
    for record in make(split):
        requirement = record["requirement"]
        for _ in range(3 if split == "test" else 1):
            scene = sample_scene(requirement, rng)
            assert meets(scene, requirement), record["text"]
            assert unmet(scene, requirement) is None
            assert len(scene) == sum(item["count"] for item in requirement["include"])


def test_scenes_are_decided_by_their_generator_alone() -> None:
    requirement = make("test")[-1]["requirement"]
    first, second = (
        [sample_scene(requirement, np.random.default_rng(7)) for _ in range(2)] for _ in range(2)
    )
    assert first == second


def test_render_puts_each_sprite_in_its_cell() -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        scene = random_scene(rng)
        image = render(scene)
        wanted = np.full((24, 24, 3), BACKGROUND, np.uint8)
        for cell, sprite in scene.items():
            mask = MASKS[sprite.shape, sprite.texture]
            for y in range(7):
                for x in range(7):
                    if mask[y, x]:
                        wanted[8 * (cell // 3) + y, 8 * (cell % 3) + x] = COLORS[sprite.color]
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image, wanted)


def test_noise_is_bounded_and_seeded() -> None:
    scene = {0: Sprite("heart", "red"), 8: Sprite("cross", "blue", "striped")}
    plain = render(scene).astype(int)
    noisy = render(scene, noise=30, seed=5).astype(int)
    assert 20 < np.abs(noisy - plain).max() <= 30
    np.testing.assert_array_equal(noisy, render(scene, noise=30, seed=5))
    assert (noisy != render(scene, noise=30, seed=6)).any()


def test_sprites_differ_in_every_quadrant() -> None:
    for a in SHAPES:
        for b in SHAPES:
            if a < b:
                differ = MASKS[a, "solid"] != MASKS[b, "solid"]
                halves = (slice(0, 4), slice(4, 7))
                assert all(differ[rows, cols].any() for rows in halves for cols in halves), (a, b)


@pytest.mark.parametrize(
    ("requirement", "culprit"),
    [
        ({}, "include"),
        ({"include": []}, "include"),
        ({"include": {"shape": "circle", "count": 1}}, "include"),
        ({"include": 5}, "include"),
        ({"include": ["circle"]}, "'circle'"),
        ({"include": [{"shape": "dog", "count": 1}]}, "'dog'"),
        ({"include": [{"class": "circle", "count": 1}]}, "class"),
        ({"include": [{"shape": "circle"}]}, "no count"),
        ({"include": [{"shape": "circle", "count": "2"}]}, "no count"),
        ({"include": [{"shape": "circle", "count": 0}]}, "no count"),
        ({"include": [{"shape": "circle", "count": 1, "color": "pink"}]}, "'pink'"),
        ({"include": [{"shape": "circle", "count": 1, "texture": ["solid"]}]}, "texture"),
        ({"include": [{"shape": "circle", "count": 1, "position": ["above", 0]}]}, "position"),
        (
            {
                "include": [
                    {"shape": "circle", "count": 1},
                    {"shape": "heart", "count": 1, "position": ["near", 0]},
                ]
            },
            "near",
        ),
        ({"include": [{"shape": "circle", "count": 1}], "exclude": [{"shape": "heart"}]}, "count"),
    ],
)
def test_malformed_requirements_are_told(requirement: Requirement, culprit: str) -> None:
    assert culprit in (malformed(requirement) or "")


def test_splits_have_their_sizes_and_digests() -> None:
    task = load_task("shapes")
    for split, named in task.spec.splits.items():
        records = make(split)
        lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records)
        assert len(records) == named.prompts == len(task.prompts(split))
        assert hashlib.sha256(lines.encode()).hexdigest() == named.sha256
        assert len({r["id"] for r in records}) == len({r["text"] for r in records}) == len(records)
        for category, sizes in CATEGORIES.items():
            wanted = getattr(sizes, split)
            assert sum(r["category"] == category for r in records) == wanted
    assert {c: t for c, (t, *_) in CATEGORIES.items()} == task.tier_of


def test_prompts_of_version_1_1_are_still_there() -> None:
    task = load_task("shapes@1.1")
    assert {split: len(task.prompts(split)) for split in task.splits()} == {
        "test": 440, "train": 2400
    }  # fmt: skip
    assert task.version == "1.1"
    assert "single_object" in task.tier_of
