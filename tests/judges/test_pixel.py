"""The pixel judge: reads what was drawn, abstains or says why where it cannot."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from scenes import sample_scene

from gapbench import Answer, GapbenchError, Prompt, load_judge
from gapbench.judges.pixel import read
from gapbench.tasks.prompts.shapes import make
from gapbench.tasks.world import (
    BACKGROUND,
    COLORS,
    MASKS,
    SHAPES,
    TEXTURES,
    Sprite,
    render,
    unmet,
)

SPRITES = st.builds(
    Sprite, st.sampled_from(SHAPES), st.sampled_from(list(COLORS)), st.sampled_from(TEXTURES)
)
CIRCLE = {"include": [{"shape": "circle", "count": 1}]}


def prompt(requirement: dict[str, Any]) -> Prompt:
    return Prompt(
        id="p", task="t", category="c", tier="easy", text="x", question="x?",
        requirement=requirement,
    )  # fmt: skip


def judge(image: NDArray[np.uint8], requirement: dict[str, Any]) -> Answer:
    [answer] = load_judge("pixel").judge([Image.fromarray(image)], [prompt(requirement)])
    return answer


@settings(derandomize=True, deadline=None, max_examples=150)
@given(st.dictionaries(st.integers(0, 8), SPRITES), st.integers(0, 2**32 - 1))
def test_scenes_are_read_exactly_under_noise(scene: dict[int, Sprite], seed: int) -> None:
    assert read(render(scene, noise=30, seed=seed)) == (scene, [])


def test_verdicts_are_right_on_200_noisy_scenes() -> None:
    rng = np.random.default_rng(0)
    records = make("test")
    mismatched = 0
    for place in range(200):
        requirement = records[place % len(records)]["requirement"]
        other = records[int(rng.integers(len(records)))]["requirement"]
        scene = sample_scene(requirement, rng)
        image = render(scene, noise=30, seed=place)
        assert read(image) == (scene, [])
        assert judge(image, requirement) == Answer(verdict=1)
        answer = judge(image, other)
        assert answer.verdict == (unmet(scene, other) is None)
        assert (answer.reason is None) == (answer.verdict == 1)
        mismatched += answer.verdict == 0
    assert 125 < mismatched < 200


def in_cell(cell: NDArray[np.uint8]) -> NDArray[np.uint8]:
    image = render({})
    image[8:16, 8:16] = cell
    return image


def blank() -> NDArray[np.uint8]:
    return np.full((8, 8, 3), BACKGROUND, np.uint8)


def half_sprites() -> list[NDArray[np.uint8]]:
    found = []
    for shape in SHAPES:
        for keep in (np.s_[:4, :], np.s_[4:7, :], np.s_[:, :4], np.s_[:, 4:7]):
            cell = blank()
            part = np.zeros((7, 7), bool)
            part[keep] = True
            cell[:7, :7][MASKS[shape, "solid"] & part] = COLORS["blue"]
            found.append(cell)
    return found


def two_coloured() -> list[NDArray[np.uint8]]:
    found = []
    for shape in SHAPES:
        for first, second in (("red", "blue"), ("green", "purple"), ("orange", "yellow")):
            cell = blank()
            cell[:7, :7][MASKS[shape, "solid"]] = COLORS[first]
            cell[:7, 4:7][MASKS[shape, "solid"][:, 4:]] = COLORS[second]
            found.append(cell)
    return found


def test_half_and_two_coloured_sprites_are_unreadable() -> None:
    for cell in half_sprites() + two_coloured():
        for shape in SHAPES:
            answer = judge(in_cell(cell), {"include": [{"shape": shape, "count": 1}]})
            assert answer.verdict == 0
            assert answer.reason is not None
            assert "unreadable" in answer.reason
            assert "cell 5" in answer.reason


def test_an_unreadable_cell_spoils_a_right_scene() -> None:
    image = render({0: Sprite("circle", "red")})
    assert judge(image, CIRCLE).verdict == 1
    image[8:16, 8:16] = half_sprites()[0]
    answer = judge(image, CIRCLE)
    assert answer.verdict == 0
    assert "unreadable blob in cell 5" in str(answer.reason)


def test_colours_outside_the_palette_are_unreadable() -> None:
    cell = blank()
    cell[:7, :7][MASKS["square", "solid"]] = (90, 90, 90)
    assert "unreadable colour" in str(judge(in_cell(cell), CIRCLE).reason)


@pytest.mark.parametrize(("level", "reason"), [(0, "unreadable"), (255, "0 of 1 circle")])
def test_plain_images_are_rejected_with_a_reason(level: int, reason: str) -> None:
    answer = judge(np.full((24, 24, 3), level, np.uint8), CIRCLE)
    assert answer.verdict == 0
    assert reason in str(answer.reason)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.sampled_from(list(COLORS)))
def test_random_blobs_never_raise(seed: int, density: float, color: str) -> None:
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (24, 24, 3), np.uint8)
    blobs = render({})
    blobs[rng.random((24, 24)) < density] = COLORS[color]
    for image in (noise, blobs):
        answer = judge(image, CIRCLE)
        scene, unreadable = read(image)
        assert answer.verdict == int(not unreadable and unmet(scene, CIRCLE) is None)
        assert (answer.reason is None) == (answer.verdict == 1)


def test_noise_images_are_unreadable() -> None:
    rng = np.random.default_rng(4)
    for _ in range(50):
        answer = judge(rng.integers(0, 256, (24, 24, 3), np.uint8), CIRCLE)
        assert answer.verdict == 0
        assert "unreadable" in str(answer.reason)


@pytest.mark.parametrize("size", [(32, 32), (24, 23), (1, 1), (384, 384)])
def test_another_size_abstains(size: tuple[int, int]) -> None:
    [answer] = load_judge("pixel").judge([Image.new("RGB", size)], [prompt(CIRCLE)])
    assert answer.verdict is None
    assert str(answer.reason).startswith(f"image is {size[0]} x {size[1]}, and judge pixel reads")
    assert "24 x 24" in str(answer.reason)
    assert "--judge" in str(answer.reason)


def test_palette_and_alpha_images_are_read_as_rgb() -> None:
    picture = Image.fromarray(render({4: Sprite("circle", "red")}))
    for mode in ("RGBA", "P"):
        [answer] = load_judge("pixel").judge([picture.convert(mode)], [prompt(CIRCLE)])
        assert answer.verdict == 1


@pytest.mark.parametrize(
    "requirement",
    [
        {},
        {"include": []},
        {"include": [{"class": "dog", "count": 1}]},
        {"include": 3},
        {"tag": "x"},
    ],
)
def test_a_prompt_of_another_world_is_refused(requirement: dict[str, Any]) -> None:
    with pytest.raises(GapbenchError, match="judge pixel cannot judge task t: prompt p"):
        load_judge("pixel").question(prompt(requirement))


def test_equal_requirements_get_equal_questions() -> None:
    ask = load_judge("pixel").question
    a = {"include": [{"shape": "circle", "count": 1, "color": "red"}]}
    b = {"include": [{"color": "red", "count": 1, "shape": "circle"}]}
    assert ask(prompt(a)) == ask(prompt(b)) != ask(prompt(CIRCLE))
