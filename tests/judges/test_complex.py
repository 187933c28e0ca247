from __future__ import annotations

import hashlib
import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gapbench.judges import complex as module
from gapbench.judges.complex import ComplexJudge
from gapbench.judges.parses import parses
from gapbench.judges.spatial import Want
from gapbench.types import Answer, GapbenchError, Prompt


def scored(value: float | None) -> Answer:
    return Answer(verdict=None, score=value, reason="no two objects" if value is None else None)


PARTS: dict[module.Part, Answer] = {
    "attribute": scored(0.8),
    "spatial": scored(0.6),
    "action": scored(0.25),
}


def combine(kind: parses.Kind, parts: dict[module.Part, Answer]) -> Answer:
    return ComplexJudge.combine(ComplexJudge.__new__(ComplexJudge), kind, parts)


@pytest.mark.parametrize(
    ("kind", "score", "verdict"),
    [
        ("spatial", 0.7, 1),
        ("action", 0.525, 1),
        ("spatialaction", 0.55, 1),
    ],
)
def test_the_parts_that_apply_weigh_the_same(kind: parses.Kind, score: float, verdict: int) -> None:
    answer = combine(kind, PARTS)
    assert answer.score == pytest.approx(score)
    assert answer.verdict == verdict
    assert answer.text is not None
    assert ("action" in answer.text) == (kind != "spatial")


def test_a_part_without_a_score_abstains_and_one_that_does_not_apply_does_not() -> None:
    parts = {**PARTS, "spatial": scored(None)}
    assert combine("spatial", parts) == Answer(verdict=None, reason="spatial: no two objects")
    assert combine("action", parts).score == pytest.approx(0.525)


def test_a_low_mean_is_a_zero() -> None:
    assert combine("action", {**PARTS, "attribute": scored(0.1)}).verdict == 0


SPATIAL, ACTION, BOTH = "a red mug near a big jar", "an old cat naps", "a cat naps near a red mug"


def prompt(text: str) -> Prompt:
    return Prompt(
        id="1", task="t", category="complex", tier="medium", text=text, question="", requirement={}
    )


def entry(text: str, kind: parses.Kind, chunks: list[str], kept: str, objects: list[str]) -> Any:
    """A line of the parse file for a prompt of our own."""

    def at(words: list[str]) -> list[int]:
        return [n for word in words for n in (f" {text} ".index(f" {word} "), len(word))]

    return {"c": at(chunks), "k": at(kept.split()), "o": at(objects), "kind": kind}


@pytest.fixture
def _parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    made = {
        SPATIAL: entry(
            SPATIAL, "spatial", ["a red mug", "a big jar"], "mug near jar", ["mug", "jar"]
        ),
        ACTION: entry(ACTION, "action", ["an old cat"], "an cat naps", []),
        BOTH: entry(BOTH, "spatialaction", ["a cat", "a red mug"], "cat naps near mug", []),
    }
    prompts = {hashlib.sha256(text.encode()).hexdigest(): value for text, value in made.items()}
    monkeypatch.setattr(parses, "_file", lambda: {"prompts": prompts})


@pytest.fixture(scope="module")
def tiny_complex(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random checkpoints of the parts' own tests."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny-complex"
    folder.mkdir()
    for part, file in (("vqa", "vqa"), ("spatial", "spatial"), ("clip", "clip")):
        runpy.run_path(str(Path(__file__).with_name(f"test_{file}.py")))["build"](folder / part)
    return folder


@pytest.mark.usefixtures("_parsed")
def test_the_question_is_what_its_parts_ask() -> None:
    spatial, action = (json.loads(ComplexJudge().question(prompt(p))) for p in (SPATIAL, ACTION))
    assert spatial == {
        "attribute": ["a red mug?", "a big jar?"],
        "spatial": ["near", "mug", "jar"],
    }
    assert action == {"attribute": ["an old cat?"], "action": "an cat naps"}


@pytest.mark.usefixtures("_parsed")
def test_the_judge_is_the_mean_of_its_parts(tiny_complex: Path) -> None:
    judge = ComplexJudge(str(tiny_complex), device="cpu")
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)) for _ in range(3)]
    asked = [prompt(text) for text in (SPATIAL, ACTION, BOTH)]
    spatial, action, both = judge.judge(images, asked)
    vqa, boxes, clip = judge.parts
    want = Want("2d", (("mug", 1), ("jar", 1)), "near")
    expected: list[list[float | None]] = [
        [
            vqa.judge(images[:1], asked[:1])[0].score,
            boxes.answers(images[:1], [want])[0].score,
        ],
        [
            vqa.judge(images[1:2], asked[1:2])[0].score,
            clip.similarities(images[1:2], ["an cat naps"])[0],
        ],
    ]
    for answer, parts in zip((spatial, action), expected, strict=True):
        assert answer.score == pytest.approx(sum(part or 0 for part in parts) / 2, abs=1e-4)
        assert answer.verdict == int(answer.score >= 0.5)
    assert both.verdict is None
    assert both.reason == "spatial: the prompt has no two things to look for"
    assert judge.name == "complex-native-tiny-complex"
    judge.release()


def test_names(tmp_path: Path) -> None:
    judge = ComplexJudge()
    assert judge.name == "complex-native"
    assert judge.fingerprint == ComplexJudge().fingerprint
    with pytest.raises(GapbenchError, match="is no folder"):
        ComplexJudge(str(tmp_path / "none"))
    with pytest.raises(GapbenchError, match="is no folder"):
        ComplexJudge(str(tmp_path))
