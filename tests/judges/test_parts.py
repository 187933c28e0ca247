"""The questions of a prompt, made from what it requires, and outside judges that answer them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

import gapbench
from gapbench import GapbenchError, Prompt
from gapbench.judges.geneval_rule import trouble
from gapbench.judges.lists import Item, answers_in, asked
from gapbench.judges.parts import PartsJudge, has_parts, questions
from gapbench.judges.pixel import PixelJudge
from gapbench.tasks.world import COLORS, GRID, MASKS, Sprite, malformed, render, unmet

RED: dict[str, Any] = {"shape": "circle", "color": "red", "count": 1}
BLUE: dict[str, Any] = {"shape": "square", "color": "blue", "count": 1}


def prompt(**requirement: Any) -> Prompt:
    return Prompt(
        id="p", task="t", category="c", tier="hard", text="x", question="q", requirement=requirement
    )


def told(items: list[Item]) -> list[tuple[str, str, str]]:
    return [(item.skill, item.question, item.answer) for item in items]


def refused(broken: Prompt) -> str:
    with pytest.raises(GapbenchError) as caught:
        questions(broken)
    assert "\n" not in str(caught.value)
    assert "task t, prompt p" in str(caught.value)
    return str(caught.value)


def test_each_thing_gives_questions_one_after_the_other() -> None:
    striped = {**RED, "texture": "striped", "position": ["left of", 0]}
    assert told(questions(prompt(include=[BLUE, striped]))) == [
        ("shape", "Is there a square?", "Yes"),
        ("color", "Is there a blue square?", "Yes"),
        ("shape", "Is there a circle?", "Yes"),
        ("color", "Is there a red circle?", "Yes"),
        ("texture", "Is there a striped red circle?", "Yes"),
        ("position", "Is there a striped red circle left of a blue square?", "Yes"),
    ]
    three = {"class": "bus", "count": 3}
    exact = prompt(include=[three], exclude=[{**three, "count": 4}])
    assert told(questions(exact)) == [
        ("object", "Is there a bus?", "Yes"),
        ("count", "How many buses are there?", "three"),
    ]
    least = prompt(include=[three], exclude=[{"class": "cat", "count": 1}, {**three, "count": 9}])
    assert told(questions(least)) == [
        ("object", "Is there a bus?", "Yes"),
        ("count", "Are there at least three buses?", "Yes"),
        ("object", "Is there a cat?", "No"),
        ("count", "Are there at least nine buses?", "No"),
    ]
    twice = prompt(include=[{"class": "apple", "count": 1, "color": c} for c in ("red", "green")])
    assert [item.question for item in questions(twice)] == [
        "Is there an apple?", "Is there a red apple?", "Is there a green apple?",
    ]  # fmt: skip


def test_a_list_of_its_own_comes_first_and_says_its_skills() -> None:
    pairs = [["How many cats?", "two"], ["Is it red?", "Yes"]]
    known = prompt(vqa_list=pairs, skills=["count", "attribute"], include=[RED])
    assert told(questions(known)) == [
        ("count", "How many cats?", "two"), ("attribute", "Is it red?", "Yes"),
    ]  # fmt: skip
    assert not has_parts(known)
    assert asked(questions(known)) == asked(questions(prompt(vqa_list=pairs)))
    assert [item.skill for item in questions(prompt(vqa_list=pairs))] == ["c", "c"]


@pytest.mark.parametrize("task", ["shapes", "geneval"])
def test_every_prompt_has_questions_whose_parts_its_judge_can_read(task: str) -> None:
    for each in gapbench.load_task(task).prompts():
        items = questions(each)
        assert has_parts(each)
        assert len({item.question for item in items}) == len(items)
        for item in items:
            part = dict(item.part or {})
            assert (malformed(part) if task == "shapes" else trouble(part)) is None


def scene(rng: np.random.Generator) -> dict[int, Sprite]:
    shapes, textures = zip(*MASKS, strict=True)
    cells = rng.permutation(GRID**2)[: rng.integers(1, 6)]
    return {
        int(cell): Sprite(
            str(rng.choice(shapes[:6])),
            str(rng.choice(list(COLORS)[:3])),
            str(rng.choice(textures)),
        )
        for cell in cells
    }


def test_an_image_that_shows_its_prompt_answers_every_question_right() -> None:
    rng, judge = np.random.default_rng(5), PartsJudge(PixelJudge())
    prompts = gapbench.load_task("shapes").prompts()[::5]
    met, unlike = 0, 0
    for _ in range(12):
        there = scene(rng)
        image = Image.fromarray(render(there))
        answers = judge.judge([image] * len(prompts), prompts)
        for each, answer in zip(prompts, answers, strict=True):
            shows = unmet(there, each.requirement) is None
            assert answer.verdict == 1 or not shows
            said = answers_in(answer.text)
            assert said is not None
            parts = [item.part or {} for item in questions(each)]
            assert said == [float(unmet(there, part) is None) for part in parts]
            met, unlike = met + shows, unlike + (answer.verdict == 1 and not shows)
    assert met > 5
    assert unlike < met  # two things may answer two questions about one, seldom


def test_what_is_forbidden_is_right_where_it_is_not_there() -> None:
    judge, forbids = PartsJudge(PixelJudge()), prompt(include=[RED], exclude=[BLUE])
    alone = Image.fromarray(render({0: Sprite("circle", "red")}))
    both = Image.fromarray(render({0: Sprite("circle", "red"), 4: Sprite("square", "blue")}))
    one, two = judge.judge([alone, both], [forbids, forbids])
    assert (one.verdict, answers_in(one.text)) == (1, [1.0, 1.0, 1.0])
    assert (two.verdict, answers_in(two.text)) == (0, [1.0, 1.0, 0.0])
    assert two.reason == "Is there a blue square?"


def test_the_pixel_judge_answers_from_what_it_can_read() -> None:
    judge, wanted = PartsJudge(PixelJudge()), prompt(include=[RED])
    picture = render({0: Sprite("circle", "red")})
    picture[18:22, 18:22] = 0  # a blob, for which the whole image is refused
    spoilt, large = Image.fromarray(picture), Image.new("RGB", (48, 48))
    assert PixelJudge().judge([spoilt], [wanted])[0].verdict == 0
    read, unread = judge.judge([spoilt, large], [wanted, wanted])
    assert (read.verdict, answers_in(read.text)) == (1, [1.0, 1.0])
    assert unread.verdict is None
    assert unread.reason is not None
    assert "48 x 48" in unread.reason
    assert (judge.name, judge.fingerprint) == ("pixel", "pixel-1")


def test_requirements_that_give_no_questions_are_told() -> None:
    for nothing in (prompt(), prompt(include=[]), prompt(vqa_list=[]), prompt(Checklist=[])):
        assert "neither a list of questions nor things that it requires" in refused(nothing)
    assert "no count of at least 1" in refused(prompt(include=[{**RED, "count": 0}]))
    assert "no count of at least 1" in refused(prompt(include=[{**RED, "count": True}]))
    assert "is no thing" in refused(prompt(include=["a cat"]))
    assert "is no thing" in refused(prompt(include=[{"noun": "cat", "count": 1}]))
    assert "in words what it is" in refused(prompt(include=[{"count": 1}]))
    assert "in words what it is" in refused(prompt(include=[{"class": 7, "count": 1}]))
    assert "no earlier thing" in refused(prompt(include=[{**RED, "position": ["above", 0]}]))
    for broken in ({"position": ["above"]}, {"position": 3}, {"position": ["above", "x"]}):
        assert "no questions can be made" in refused(prompt(include=[RED, {**BLUE, **broken}]))
    assert "no questions can be made" in refused(prompt(include=7))
    assert "is no pair" in refused(prompt(vqa_list=[["Is it red?"]]))
    assert "skills are 1, of 2 questions" in refused(
        prompt(vqa_list=[["a?", "Yes"], ["b?", "Yes"]], skills=["color"])
    )
    gone = prompt(
        proposition_id=[1, 2], dependency=["0", "7"], question_natural_language=["a?", "b?"]
    )
    assert "question 2 depends on question 7, which is not there" in refused(gone)
