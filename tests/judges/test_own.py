"""The model as its own judge, in both modes."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from gapbench.judges.own import NAMES, Mode, OwnJudge, needed
from gapbench.models.janus.adapter import JanusModel
from gapbench.types import Prompt
from gapbench.verdict import ANSWERS, parse, weigh


def prompt(text: str) -> Prompt:
    return Prompt(
        id=text,
        task="t",
        category="c",
        tier="easy",
        text=text,
        question=f"Does this image describe {text}? The score is {{your score}}.",
        requirement={},
    )


@pytest.fixture(scope="module")
def model(tiny_janus: Path) -> JanusModel:
    return JanusModel("tiny", tiny_janus)


@pytest.fixture(scope="module")
def pairs(model: JanusModel) -> tuple[list[Image.Image], list[Prompt]]:
    prompts = [prompt("a red circle"), prompt("a"), prompt("a red circle and a blue square")]
    drawings = model.generate([p.text for p in prompts], [1, 2, 3])
    return [drawing.image for drawing in drawings], prompts


def test_by_logits_it_weighs_the_models_two_answers(
    model: JanusModel, pairs: tuple[list[Image.Image], list[Prompt]]
) -> None:
    images, prompts = pairs
    answers = OwnJudge(model, "logits").judge(images, prompts)
    scores = model.judge(images, [p.question for p in prompts], ANSWERS)
    assert answers == [weigh(float(no), float(yes)) for no, yes in scores]
    assert all(a.verdict in {0, 1} and a.text is None for a in answers)
    assert all(a.mass is not None and 0 < a.mass < 1 for a in answers)
    assert len({a.p_yes for a in answers}) == 3


def test_a_verdict_asks_the_prompts_question_of_the_image(
    model: JanusModel, pairs: tuple[list[Image.Image], list[Prompt]]
) -> None:
    images, prompts = pairs
    judge = OwnJudge(model, "logits")
    assert judge.question(prompts[0]) == prompts[0].question
    straight = judge.judge(images, prompts)
    other_prompts = judge.judge(images, prompts[::-1])
    other_images = judge.judge(images[::-1], prompts)
    assert straight[0].p_yes != other_prompts[0].p_yes
    assert straight[0].p_yes != other_images[0].p_yes


def test_in_words_it_reads_the_models_reply(
    model: JanusModel, pairs: tuple[list[Image.Image], list[Prompt]]
) -> None:
    images, prompts = pairs
    answers = OwnJudge(model, "text").judge(images, prompts)
    replies = model.reply(images, [p.question for p in prompts])
    assert answers == [parse(reply) for reply in replies]
    # A random model says nothing of use, which must not count as a 0.
    assert all(a.verdict is None and a.reason and a.text for a in answers)


@pytest.mark.parametrize("mode", ["logits", "text"])
def test_the_two_modes_are_two_judges_of_one_model(tiny_janus: Path, mode: Mode) -> None:
    model = JanusModel("tiny", tiny_janus)
    judge = OwnJudge(model, mode)
    assert judge.name == NAMES[mode]
    rules = {"logits": "self-1", "text": "self-text-3"}[mode]
    assert judge.fingerprint == f"{rules}-{model.fingerprint}"
    assert needed(model, mode) == {"logits": "judge_logits", "text": "judge_text"}[mode]
    assert needed(model, mode) in model.capabilities
    other = OwnJudge(model, "text" if mode == "logits" else "logits")
    assert judge.fingerprint != other.fingerprint
    assert judge.fingerprint == OwnJudge(JanusModel("again", tiny_janus), mode).fingerprint
    single = JanusModel("tiny", tiny_janus, dtype="float32")
    assert judge.fingerprint != OwnJudge(single, mode).fingerprint


def test_release_frees_the_model(tiny_janus: Path) -> None:
    model = JanusModel("tiny", tiny_janus)
    model.load()
    OwnJudge(model, "logits").release()
    assert model._loaded is None
