"""The check-list judge on a tiny random Janus, through the real loading code."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from PIL import Image

from gapbench import GapbenchError, Prompt
from gapbench.judges import load_judge
from gapbench.judges.checklist import ASK, ChecklistJudge

IMAGES = [Image.new("RGB", (32, 32), color) for color in ("red", "blue", "white")]


def prompt(**requirement: object) -> Prompt:
    return Prompt(
        id="p", task="t", category="c", tier="hard", text="x", question="q", requirement=requirement
    )


LISTED = [
    prompt(Checklist=[{"question": "Is it red?", "tags": []}, {"question": "Is it round?"}]),
    prompt(vqa_list=[["How many circles are there?", "two"], ["Is it blue?", "Yes"]]),
    prompt(vqa_list=[["Is it empty?", "No"]]),
]


@pytest.fixture(scope="module")
def judge(tiny_janus: Path) -> ChecklistJudge:
    made = load_judge(f"vlm-list:{tiny_janus}")
    assert isinstance(made, ChecklistJudge)
    return made


def chance(judge: ChecklistJudge, image: Image.Image, question: str, answer: str) -> float:
    """One question alone, by whole-answer log-probabilities."""
    asked = [ASK.replace("{question}", question)]
    others = {"Yes": "No", "No": "Yes"}
    right = math.exp(judge._vlm.logprobs([image], asked, [f" {answer}"])[0, 0])
    if answer not in others:
        return right
    return right / (right + math.exp(judge._vlm.logprobs([image], asked, [f" {others[answer]}"])))


def test_scores_are_the_mean_probability_of_the_right_answers(judge: ChecklistJudge) -> None:
    answers = judge.judge(IMAGES, LISTED)
    wanted = [
        [("Is it red?", "Yes"), ("Is it round?", "Yes")],
        [("How many circles are there?", "two"), ("Is it blue?", "Yes")],
        [("Is it empty?", "No")],
    ]
    for image, answer, listed in zip(IMAGES, answers, wanted, strict=True):
        chances = [chance(judge, image, q, a) for q, a in listed]
        assert answer.score == pytest.approx(sum(chances) / len(chances), abs=1e-5)
        assert answer.verdict == int(all(c >= 0.5 for c in chances))
        missed = [q for (q, _), c in zip(listed, chances, strict=True) if c < 0.5]
        assert answer.reason == ("; ".join(missed) or None)


def test_the_question_is_the_list(judge: ChecklistJudge) -> None:
    assert json.loads(judge.question(LISTED[2])) == [["Is it empty?", "No"]]
    assert judge.name == "vlm-list-tiny-janus"


def test_a_prompt_without_a_list_is_refused_before_anything_is_drawn(judge: ChecklistJudge) -> None:
    with pytest.raises(GapbenchError, match="prompt p has no list of questions"):
        judge.question(prompt(include=[]))
