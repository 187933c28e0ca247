"""`--own questions` from the command line to the report, with models that answer at once."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from stubs import records

import gapbench
from gapbench import GapbenchError, Verdict, open_run
from gapbench.comparison.compare import stored
from gapbench.comparison.words import render as rendered
from gapbench.judges.lists import answers_in
from gapbench.judges.own import OwnJudge
from gapbench.judges.parts import questions
from gapbench.leaderboard.submit import submit
from gapbench.models.base import Drawing, Model
from gapbench.report.page import write_report
from gapbench.report.summary import show_run
from gapbench.runs.judge import judge_run
from gapbench.runs.questions import by_question, in_mode, of_run
from gapbench.runs.run import Run
from gapbench.tasks.world import Sprite, render
from gapbench.types import Answer, Failure, Prompt, Unfinished


class Teller(Model):
    """Draws two sprites by the seed, and answers questions by image and question, in words."""

    name, capabilities, fingerprint = "teller", ("generate", "judge_text"), "teller-1"

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Drawing]:
        shapes = ("circle", "square", "heart", "cross")
        return [
            Drawing(image=Image.fromarray(render({
                seed % 9: Sprite(shapes[seed % 4], "red"),
                (seed + 4) % 9: Sprite(shapes[seed // 7 % 4], "blue"),
            })))
            for seed in seeds
        ]  # fmt: skip

    def reply(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[str]:
        said = []
        for image, question in zip(images, questions, strict=True):
            digest = hashlib.sha256(question.encode() + image.tobytes()).digest()[0]
            words = ("Yes, it is.", "no", "Two", "a heart")
            said.append("The score is 1" if "score" in question else words[digest % 4])
        return said


class Weigher(Model):
    """Gives the log-probabilities that a test wants, by question and answer."""

    name, capabilities, fingerprint = "weigher", ("judge_logits",), "weigher-1"

    def __init__(self, odds: Callable[[str, str], float]) -> None:
        self.odds = odds
        self.asked: list[list[str]] = []

    def judge(self, images: Any, questions: Any, answers: Any) -> Any:
        self.asked.append(list(questions))
        return np.array([[self.odds(q, a) for a in answers] for q in questions])


LISTED = Prompt(
    id="1", task="t", category="c", tier="hard", text="x", question="q",
    requirement={"vqa_list": [["Is it red?", "Yes"], ["Is it blue?", "No"],
                              ["How many cats are there?", "two"], ["What is it?", "cat"]]},
)  # fmt: skip


def ask(model: Model, count: int = 1) -> list[Answer]:
    images = [Image.new("RGB", (8, 8), (i, 0, 0)) for i in range(count)]
    return OwnJudge(model, "questions").judge(images, [LISTED] * count)


def test_answers_are_weighed_among_those_that_may_be() -> None:
    chances = {" Yes": 0.3, " No": 0.1, " two": 0.4, " three": 0.2, " cat": 0.6}
    model = Weigher(lambda q, a: np.log(chances.get(a, 1e-9)))
    [answer] = ask(model)
    assert answers_in(answer.text) == pytest.approx([0.75, 0.25, 2 / 3, 0.6], abs=1e-6)
    assert (answer.verdict, answer.reason) == (0, "Is it blue?")
    assert answer.p_yes == pytest.approx(0.25)
    assert answer.mass == pytest.approx(0.4, abs=1e-6)
    assert answer.score is None
    assert "Is it red? Answer with one word." in model.asked[0]
    sure = Weigher(
        lambda q, a: -0.1 if a in (" two", " cat", " No" if "blue" in q else " Yes") else -9
    )
    assert ask(sure)[0].verdict == 1


def test_a_question_without_an_answer_leaves_the_others_and_no_verdict() -> None:
    [answer] = ask(Weigher(lambda q, a: float("-inf") if "blue" in q else -1.0))
    assert answer.verdict is None
    assert answer.p_yes is None
    assert answers_in(answer.text) == pytest.approx([0.5, None, 0.1, np.exp(-1)], abs=1e-6)
    assert answer.reason is not None
    assert answer.reason.startswith("Is it blue? has answers whose log-probabilities are -inf")
    words = {"red": "YES!", "blue": "maybe", "many": "2", "What": "A cat"}

    class Says(Weigher):
        capabilities = ("judge_text",)  # type: ignore[assignment]

        def reply(self, images: Any, questions: Any) -> Any:
            return [next(w for key, w in words.items() if key in q) for q in questions]

    [heard] = ask(Says(lambda q, a: 0.0))
    assert answers_in(heard.text) == [1.0, None, 1.0, 0.0]
    assert heard.reason == "Is it blue? the reply is 'maybe', not yes or no"


def test_images_that_failed_cost_no_other() -> None:
    class Fails(Weigher):
        def judge(self, images: Any, questions: Any, answers: Any) -> Any:
            done = super().judge(images, questions, answers)
            bad = {i for i, image in enumerate(images) if image.getpixel((0, 0))[0] == 1}
            if bad:
                kept = {i: row for i, row in enumerate(done) if i not in bad}
                raise Unfinished("some failed", kept, dict.fromkeys(bad, Failure("refused")))
            return done

    with pytest.raises(Unfinished) as caught:
        ask(Fails(lambda q, a: -1.0), 3)
    assert sorted(caught.value.done) == [0, 2]
    assert {place: why.reason for place, why in caught.value.failed.items()} == {1: "refused"}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of both kinds of own verdicts."""
    out = tmp_path_factory.mktemp("runs")
    for verdict in ("text", "questions"):
        run = gapbench.run(Teller(), "shapes", limit=14, samples=2, verdict=verdict, out=out)
    return run.path


def test_a_run_has_an_answer_to_each_question_from_both(measured: Path) -> None:
    run = open_run(measured, own="questions")
    assert (run.mode, run.unfinished) == ("questions", "")
    frame = by_question(run)
    prompts = {p.id: p for p in run.plan.prompts}
    per_image = frame.groupby(["prompt", "sample"]).size()
    for (prompt, _), count in per_image.items():
        assert count == len(questions(prompts[prompt]))
    assert frame["outside"].notna().all()
    assert 0 < frame["own"].isna().sum() < len(frame)
    whole = run.frame().set_index(["prompt", "sample"])
    parts = frame.groupby(["prompt", "sample"])
    # An image is accepted where each answer is right, and none lacks.
    lacks = parts["own"].apply(lambda own: own.isna().any())
    assert (whole["own"].isna() == lacks.loc[whole.index]).all()
    right = parts["own"].min()[~lacks]
    assert (whole.loc[right.index, "own"] == right).all()
    single = open_run(measured)
    assert single.mode == "text"
    assert in_mode(single, "logits") is None
    made = of_run(single)
    assert made is not None
    assert made == of_run(run)
    assert made.single is not None
    assert made.single.agrees.n == (~lacks).sum()


def test_show_report_and_results_tell_the_skills(measured: Path, tmp_path: Path) -> None:
    run = open_run(measured)
    screen = Console(width=80, record=True, file=io.StringIO())
    show_run(run, (), screen)
    said = screen.export_text()
    assert "Question by question, if pixel is right" in said
    assert "all questions" in said
    assert "Verdicts of one question and by questions agree on" in said
    assert "By questions in place of one, in points: own verdict right" in said
    write_report([run], tmp_path / "report.html", figures=tmp_path / "figures")
    page = (tmp_path / "report.html").read_text()
    assert "Which skills does the model draw, and which does it see?" in page
    assert (tmp_path / "figures" / "skills.svg").exists()
    rows = (tmp_path / "figures" / "skills.csv").read_text()
    assert "position,draws," in rows
    results = json.loads((measured / "results.json").read_text())
    assert results["questions"]["pixel"]["skills"][0]["name"] == "shape"


def test_nothing_is_said_of_questions_that_nobody_asked(tmp_path: Path) -> None:
    run = gapbench.run(Teller(), "shapes", limit=2, samples=1, out=tmp_path)
    assert of_run(run) is None
    assert json.loads((run.path / "results.json").read_text())["questions"] == {}
    with pytest.raises(GapbenchError, match="--own questions: nobody asked for such own verdicts"):
        open_run(run.path, own="questions")


def test_compare_has_the_skills_of_both(measured: Path, tmp_path: Path) -> None:
    class Other(Teller):
        name, fingerprint = "other", "other-1"

        def reply(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[str]:
            return ["yes"] * len(images)

    after = gapbench.run(Other(), "shapes", limit=14, samples=2, verdict="questions", out=tmp_path)
    found = stored(open_run(measured, own="questions"), after)
    made = {(change.name, change.metric): change for change in found.by_skill}
    draws = made["shapes/shape", "generation"]
    assert (draws.before, draws.difference) == (draws.after, 0)  # the same pictures
    frame = by_question(after)
    mine = frame[frame["skill"] == "count"]
    assert made["shapes/count", "self_accuracy"].after == (mine["own"] == mine["outside"]).mean()
    said = rendered([found], "text")
    assert "all skills: sees" in said
    assert "shapes/position: draws" in said


def test_more_prompts_and_torn_records_end_as_one_run(tmp_path: Path) -> None:
    def run(out: str, limit: int, batch: int) -> Run:
        return gapbench.run(
            Teller(), "shapes", limit=limit, samples=1, verdict="questions", batch_size=batch,
            out=tmp_path / out,
        )  # fmt: skip

    whole, first = run("whole", 14, 14), run("parts", 5, 1)
    file = first.path / "verdicts.jsonl"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    again = run("parts", 14, 3)
    assert again.unfinished == ""
    assert records(again)[Verdict] == records(whole)[Verdict]
    assert by_question(again).equals(by_question(whole))


def test_judges_that_come_later_answer_the_questions_too(tmp_path: Path) -> None:
    run = gapbench.run(
        Teller(), "shapes", limit=4, samples=1, verdict="questions", judges=[], out=tmp_path
    )
    assert of_run(run) is None
    judged = judge_run(run.path, ["pixel"])
    there, planned = judged.stages()["answers of pixel"]
    assert 0 < there == planned
    made = of_run(judged)
    assert made is not None
    assert made.overall.questions + made.overall.abstained == len(by_question(judged))


LIST_JUDGE = """
from gapbench.judges.base import Judge
from gapbench.judges.lists import answer_of, asked, listed

class ListJudge(Judge):
    name, fingerprint = "lists", "lists-1"

    def question(self, prompt):
        return asked(listed(prompt))

    def judge(self, images, prompts):
        return [answer_of(listed(p), [0.9, "is not answered", 0.2]) for p in prompts]
"""


def test_a_judge_of_lists_has_answered_already(
    tmp_path: Path, user_task: Callable[..., Path]
) -> None:
    (tmp_path / "lists.py").write_text(LIST_JUDGE)
    pairs = [["Is it red?", "Yes"], ["Is it big?", "No"], ["How many cats?", "two"]]
    requirement = {"vqa_list": pairs, "skills": ["color", "size", "count"]}
    folder = user_task([{"id": "a", "text": "a cat", "requirement": requirement}], judge="vlm")
    run = gapbench.run(
        Teller(), str(folder), judges=[f"{tmp_path / 'lists.py'}:ListJudge"], samples=2,
        verdict="questions", out=tmp_path / "runs",
    )  # fmt: skip
    assert "answers of lists" not in run.stages()
    frame = by_question(run)
    assert frame["skill"].tolist() == ["color", "size", "count"] * 2
    # A question without an answer costs the others nothing.
    assert frame["outside"].fillna(-1).tolist() == [1.0, -1.0, 0.0] * 2
    made = of_run(run)
    assert made is not None
    assert {skill.name: skill.questions for skill in made.skills}["size"] == 0


def test_what_cannot_be_asked_is_told_before_anything_is_drawn(
    tmp_path: Path, user_task: Callable[..., Path]
) -> None:
    class Silent(Teller):
        name, capabilities = "silent", ("generate",)  # type: ignore[assignment]

    with pytest.raises(GapbenchError, match="silent lacks judge_logits: --verdict questions needs"):
        gapbench.run(Silent(), "shapes", verdict="questions", out=tmp_path / "runs")
    for requirement, why in (
        ({}, "neither a list of questions nor things that it requires"),
        ({"Checklist": []}, "neither a list of questions"),
        ({"Checklist": [{}]}, "its list of questions is broken: no 'question'"),
        ({"proposition_id": [1], "dependency": ["3"], "question_natural_language": ["Is it?"]},
         "depends on question 3, which is not there"),
    ):  # fmt: skip
        folder = user_task([{"id": "a", "text": "a cat", "requirement": requirement}], judge="vlm")
        with pytest.raises(GapbenchError, match=why) as caught:
            gapbench.run(
                Teller(), str(folder), judges=[], verdict="questions", out=tmp_path / "runs"
            )
        assert "prompt a" in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_tasks_without_questions_stand_beside(
    measured: Path, tmp_path: Path, user_task: Callable[..., Path]
) -> None:
    out = tmp_path / "runs"
    shutil.copytree(measured.parent, out)
    folder = user_task([{"id": "a", "text": "a cat"}])
    gapbench.run(Teller(), str(folder), judges=[], verdict="text", out=out)
    run = open_run(out / measured.name, own="questions")
    assert of_run(run) == of_run(open_run(measured, own="questions"))
    frame = run.frame()
    assert frame.loc[frame["task"] == "mine", "own_asked"].eq(False).all()
    assert len(stored(run, open_run(measured, own="questions")).changes) > 0
    after = gapbench.run(Teller(), "shapes", limit=14, samples=2, verdict="questions", out=out)
    assert json.loads((after.path / "results.json").read_text())["questions"]["pixel"]


def test_no_leaderboard_ranks_them(measured: Path, tmp_path: Path) -> None:
    with pytest.raises(GapbenchError, match="ranks those of one question"):
        submit(open_run(measured, own="questions"), tmp_path, contact="me")


def test_a_plan_whose_lists_were_broken_is_refused(measured: Path, tmp_path: Path) -> None:
    copy = tmp_path / measured.name
    shutil.copytree(measured, copy)
    plan = json.loads((copy / "plan.json").read_text())
    plan.pop("checksum", None)
    for part in (plan, *plan["earlier"]):
        part["prompts"][0]["requirement"] = {"include": []}
    (copy / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(GapbenchError, match=r"plan.json: broken"):
        open_run(copy)
