"""The model as its own judge: weighing two answers, reading words, and both modes end to end."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gapbench.judges.own import NAMES, NEEDS, Mode, OwnJudge
from gapbench.models.base import CAPABILITIES
from gapbench.models.janus.adapter import JanusModel
from gapbench.types import Answer, Prompt
from gapbench.verdict import ANSWERS, parse, weigh

INF, NAN = math.inf, math.nan


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


# -- weighing ----------------------------------------------------------------------------------


@settings(derandomize=True, deadline=None)
@given(st.floats(-50, 0), st.floats(-50, 0))
def test_weighing_normalises_the_two_probabilities(no: float, yes: float) -> None:
    answer = weigh(no, yes)
    mass = math.exp(no) + math.exp(yes)
    assert answer.mass == pytest.approx(mass)
    assert answer.p_yes == pytest.approx(math.exp(yes) / mass)
    assert answer.p_yes is not None
    assert answer.verdict == int(answer.p_yes > 0.5)
    assert answer.reason is None


@pytest.mark.parametrize("equal", [0.0, -1.5, -600.0, -5000.0])
def test_a_tie_is_a_zero(equal: float) -> None:
    answer = weigh(equal, equal)
    assert (answer.verdict, answer.p_yes) == (0, 0.5)


@pytest.mark.parametrize(
    ("no", "yes", "verdict", "p_yes"),
    [
        (-INF, -3.0, 1, 1.0),
        (-3.0, -INF, 0, 0.0),
        (-900.0, -5.0, 1, 1.0),
        (-5.0, -900.0, 0, 0.0),
        (-2000.0, -2001.0, 0, 1 / (1 + math.e)),
    ],
)
def test_certain_and_far_apart_answers_neither_overflow_nor_abstain(
    no: float, yes: float, verdict: int, p_yes: float
) -> None:
    answer = weigh(no, yes)
    assert answer.verdict == verdict
    assert answer.p_yes == pytest.approx(p_yes, abs=1e-300)
    assert answer.mass == math.exp(no) + math.exp(yes)


@pytest.mark.parametrize(
    ("no", "yes"),
    [
        (NAN, -1.0),
        (-1.0, NAN),
        (NAN, NAN),
        (-INF, -INF),
        (NAN, -INF),
        (-INF, NAN),
        (INF, -1.0),
        (-1.0, INF),
        (INF, -INF),
        (INF, INF),
    ],
)
def test_broken_log_probabilities_are_an_abstention_with_a_reason_never_a_zero(
    no: float, yes: float
) -> None:
    answer = weigh(no, yes)
    assert (answer.verdict, answer.p_yes, answer.mass) == (None, None, None)
    assert answer.reason == f"log-probabilities of the answers are {no} and {yes}"


# -- reading words -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("The score is 1.", 1),
        ("The score is 0.", 0),
        (" The score is 1", 1),
        ("the SCORE IS 0", 0),
        ("The score is {1}", 1),
        ("The score is {0}.", 0),
        ("The score is [1].", 1),
        ("The score is (1)", 1),
        ('The score is "1"', 1),
        ("The score is '0'", 0),
        ("The score is `1`", 1),
        ("The score is: 1", 1),
        ("The score is : 0", 0),
        ("The score is **1**.", 1),
        ("**Score: 0**", 0),
        ("**Score:** 1", 1),
        ("**Score**: 1", 1),
        ("Score = 1", 1),
        ("Score 1", 1),
        ("score:0", 0),
        ("I would give a score of 1.", 1),
        ("The score is 1, because it shows a red circle.", 1),
        ("The image shows 2 cats, not 3. The score is 0", 0),
        ("The score is\n1", 1),
        ("The score is 1/1", 1),
        ("The score is 0 out of 1.", 0),
        ("1", 1),
        ("0", 0),
        ("1.", 1),
        (" {0}\n", 0),
        ("**1**", 1),
        ("The score is 0. On reflection, the score is 1.", 1),
        ("The score is 1... no, the score is 0.", 0),
    ],
)
def test_wordings_that_name_a_score_are_read(text: str, verdict: int) -> None:
    assert parse(text) == Answer(verdict=verdict, text=text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n",
        "I cannot help with that.",
        "Yes, it does.",
        "The score is",
        "The score is {your score}",
        "The score is 10",
        "The score is 01",
        "The score is 2",
        "The score is -1",
        "The score is 0.5",
        "score is 0,5",
        "The score is 1.0e3",
        "The score is 1/10",
        "The score is 0 / 5",
        "The score is 1 out of 10",
        "The score is one",
        "The underscore 1",
        "There is 1 circle.",
        "1 circle and 0 squares",
        "10",
        "0.5",
        "1 0",
    ],
)
def test_replies_that_name_no_score_are_an_abstention_with_the_text_kept(text: str) -> None:
    answer = parse(text)
    assert answer.verdict is None
    assert answer.text == text
    assert answer.reason == "the reply names no score of 0 or 1"
    assert answer.p_yes is None


@settings(derandomize=True, deadline=None)
@given(st.text(max_size=80))
def test_any_reply_gives_a_verdict_or_a_reason(text: str) -> None:
    answer = parse(text)
    assert answer.verdict in {0, 1, None}
    assert (answer.verdict is None) == (answer.reason is not None)


# -- the judge on a model ----------------------------------------------------------------------


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
    assert NEEDS[mode] in model.capabilities
    assert NEEDS[mode] in CAPABILITIES
    other = OwnJudge(model, "text" if mode == "logits" else "logits")
    assert judge.fingerprint != other.fingerprint
    assert judge.fingerprint == OwnJudge(JanusModel("again", tiny_janus), mode).fingerprint
    single = JanusModel("tiny", tiny_janus, dtype="float32")
    assert judge.fingerprint != OwnJudge(single, mode).fingerprint


def test_release_frees_the_model(tiny_janus: Path) -> None:
    model = JanusModel("tiny", tiny_janus)
    model.load()
    OwnJudge(model, "logits").release()
    assert model._model is None
