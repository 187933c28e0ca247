"""Questions about reference images: asked once, kept like others, and in no other figure."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from stubs import records

import gapbench
from gapbench import Generation, Verdict, open_run
from gapbench.comparison.compare import stored
from gapbench.comparison.words import render as rendered
from gapbench.judges.lists import Item
from gapbench.judges.parts import questions
from gapbench.judges.pixel import read
from gapbench.models.base import Drawing, Model
from gapbench.report.page import write_report
from gapbench.report.summary import show_run
from gapbench.runs.estimate import estimate
from gapbench.runs.judge import judge_run
from gapbench.runs.merge import merge
from gapbench.runs.plan import prepare
from gapbench.runs.questions import about_references, of_run
from gapbench.runs.run import Run
from gapbench.runs.settings import RunSettings
from gapbench.tasks.world import COLORS, Sprite, render, unmet

LIMIT = 14


@cache
def known() -> dict[str, list[Item]]:
    """What the questions of shapes are about; of those for a number, each that is right of one."""
    found: dict[str, list[Item]] = {}
    for prompt in gapbench.load_task("shapes").prompts():
        for item in questions(prompt):
            found.setdefault(f"{item.question} Answer with one word.", []).append(item)
    return found


class Seer(Model):
    """Draws two circles, whatever is asked for, and sees what pixel sees."""

    name, capabilities, fingerprint = "seer", ("generate", "judge_text"), "seer-1"

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Drawing]:
        streams = [np.random.default_rng(seed) for seed in seeds]
        circles = [(Sprite("circle", rng.choice([*COLORS])), rng.permutation(9)) for rng in streams]
        scenes = [{int(cell): sprite for cell in cells[:2]} for sprite, cells in circles]
        return [Drawing(image=Image.fromarray(render(scene))) for scene in scenes]

    def reply(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[str]:
        return [self.answer(image, ask) for image, ask in zip(images, questions, strict=True)]

    def answer(self, image: Image.Image, asked: str) -> str:
        there, _ = read(np.asarray(image))
        met = [item for item in known().get(asked, []) if not unmet(there, item.part or {})]
        if "How many" in asked:
            return met[0].answer if met else "ten"
        return ("Yes" if met else "No") if asked in known() else "The score is 1"


class Nods(Seer):
    """Says yes to everything."""

    name, fingerprint = "nods", "nods-1"

    def answer(self, image: Image.Image, asked: str) -> str:
        return "Yes" if asked.endswith("one word.") else "The score is 1"


def measured(model: Model, out: Path, **more: Any) -> Run:
    usual = {"tasks": "shapes", "limit": LIMIT, "samples": 1, "verdict": "questions", "out": out}
    return gapbench.run(model, **{**usual, **more})


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return measured(Seer(), tmp_path_factory.mktemp("runs"))


def images(run: Run) -> set[str]:
    return {file.stem for file in (run.path / "images").rglob("*.png")}


def test_each_prompt_is_asked_about_its_own_and_another(seen: Run) -> None:
    frame = about_references(seen)
    assert frame[["own_asked", "outside_asked"]].all(axis=None)
    per_prompt = frame.groupby("prompt")["sample"].nunique()
    assert len(per_prompt) == LIMIT
    assert (per_prompt == 2).all()
    assert frame.loc[frame["sample"] == 0, "outside"].eq(1).all()
    assert frame.loc[frame["sample"] == 1, "outside"].mean() < 0.5
    assert (frame["own"] == frame["outside"]).all()
    lists = {prompt.id: questions(prompt) for prompt in seen.plan.prompts}
    assert len(frame) == 2 * sum(map(len, lists.values()))


def test_they_are_images_of_the_folder_and_no_generations(seen: Run) -> None:
    drawn = {generation.image for generation in seen.folder.generations().values()}
    shown = set(about_references(seen)["image"])
    assert len(seen.folder.generations()) == LIMIT
    assert not drawn & shown
    assert images(seen) == drawn | shown
    assert set(seen.frame()["image"]) == drawn
    assert seen.stages()["images"] == (LIMIT, LIMIT)
    # An image, its mismatched pair, and the questions about two reference images.
    assert seen.stages()["own verdicts"] == (4 * LIMIT, 4 * LIMIT)
    assert seen.stages()["answers of pixel"] == (3 * LIMIT, 3 * LIMIT)
    assert seen.unfinished == ""


def test_what_it_sees_decides_what_is_said(seen: Run, tmp_path: Path) -> None:
    made = of_run(seen)
    assert made is not None
    sight = made.overall.references
    assert sight is not None
    assert (sight.raw, sight.kappa, sight.kappa_high) == (1.0, 1.0, 1.0)
    assert made.overall.finding == "sees, does not draw"
    assert made.shown == 1.0  # of the prompts' own alone
    blind = of_run(measured(Nods(), tmp_path))
    assert blind is not None
    skills = {skill.name: skill for skill in blind.skills}
    assert skills["shape"].references is not None
    assert skills["shape"].references.kappa == 0
    assert skills["shape"].finding == "does not see"


def shown(run: Run) -> str:
    screen = Console(width=80, record=True, file=io.StringIO())
    show_run(open_run(run.path), (), screen)
    return " ".join(screen.export_text().split())


def test_show_report_results_and_compare_tell_it(seen: Run, tmp_path: Path) -> None:
    said = shown(seen)
    assert "sees references" in said
    assert "Sees, does not draw: " in said
    write_report([seen], tmp_path / "report.html", figures=tmp_path / "figures")
    assert (
        "own and that of another prompt of its category" in (tmp_path / "report.html").read_text()
    )
    assert "position,sees references,100" in (tmp_path / "figures" / "skills.csv").read_text()
    results = json.loads((seen.path / "results.json").read_text())["questions"]["pixel"]
    assert results["overall"]["references"]["raw"] == 1
    assert results["findings"]["shape"] == "sees, does not draw"
    found = stored(seen, measured(Nods(), tmp_path))
    change = next(
        c for c in found.by_skill if (c.level, c.metric) == ("overall", "sees_references")
    )
    assert (change.before, change.images) == (1.0, len(about_references(seen)))
    assert change.difference is not None
    assert change.difference < 0
    assert "all skills: sees references" in rendered([found], "text")


def test_nothing_new_is_asked_in_other_modes_or_of_tasks_without(
    tmp_path: Path, user_task: Callable[..., Path]
) -> None:
    text = measured(Seer(), tmp_path, verdict="text")
    assert len(images(text)) == len(text.folder.generations()) == LIMIT
    assert text.plan.references == []
    requirement = {"include": [{"shape": "circle", "count": 1}]}
    folder = user_task([{"text": "a circle", "requirement": requirement}])
    plain = measured(Seer(), tmp_path / "own", tasks=str(folder))
    made = of_run(plain)
    assert made is not None
    assert made.overall.references is None
    assert plain.plan.references == []
    screen = Console(width=80, record=True, file=io.StringIO())
    show_run(plain, (), screen)
    assert "references" not in screen.export_text()


def test_dry_run_counts_them(seen: Run, tmp_path: Path) -> None:
    def left(out: Path) -> tuple[int, int, int]:
        settings = RunSettings(model=Seer(), tasks="shapes", limit=LIMIT, samples=1,
                               verdict="questions", out=out)  # fmt: skip
        told = estimate(prepare(settings))
        return told.images, told.own_verdicts, told.outside_verdicts

    assert left(seen.path.parent) == (0, 0, 0)
    assert left(tmp_path) == (LIMIT, 4 * LIMIT, 2 * LIMIT + 3 * LIMIT)


@pytest.mark.parametrize("packed", [False, True])
def test_a_broken_off_run_ends_as_a_whole_one(seen: Run, tmp_path: Path, packed: bool) -> None:
    first = measured(Seer(), tmp_path, limit=5, batch_size=1, pack_images=packed)
    file = first.path / "verdicts.jsonl"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    for sha256 in [] if packed else set(about_references(first)["image"]):
        first.folder.image_path(sha256).unlink()
    again = measured(Seer(), tmp_path, batch_size=3)
    assert again.unfinished == ""
    assert records(again)[Verdict] == records(seen)[Verdict]
    assert about_references(again).equals(about_references(seen))
    if not packed:
        assert images(again) == images(seen)


def test_a_folder_from_before_opens_and_gets_them(seen: Run, tmp_path: Path) -> None:
    shutil.copytree(seen.path.parent, tmp_path / "runs")
    old = tmp_path / "runs" / seen.path.name
    plan = json.loads((old / "plan.json").read_text())
    for key in ("references", "checksum"):
        plan.pop(key)
    (old / "plan.json").write_text(json.dumps(plan))
    shown = set(about_references(seen)["image"])
    file = old / "verdicts.jsonl"
    kept = [
        line for line in file.read_text().splitlines(True) if json.loads(line)["image"] not in shown
    ]
    file.write_text("".join(kept))
    opened = open_run(old)
    assert opened.unfinished == ""
    made = of_run(opened)
    assert made is not None
    assert made.overall.references is None
    again = measured(Seer(), tmp_path / "runs")
    assert of_run(open_run(again.path)) == of_run(seen)


def test_shards_have_their_own_and_merge(seen: Run, tmp_path: Path) -> None:
    shards = [measured(Seer(), tmp_path, shard=f"{number}/2").path for number in (1, 2)]
    joined = merge(shards, tmp_path / "all")
    assert images(joined) == images(seen)
    assert records(joined) == records(seen)
    assert of_run(joined) == of_run(seen)
    assert joined.unfinished == ""


def test_judges_that_come_later_see_them_too(seen: Run, tmp_path: Path) -> None:
    run = measured(Seer(), tmp_path, judges=[])
    shard = judge_run(run.path, ["pixel"], gapbench.runs.settings.Shard(1, 2), tmp_path / "shards")
    assert shard.unfinished == ""
    assert of_run(shard) is not None
    judged = judge_run(run.path, ["pixel"])
    assert of_run(judged) == of_run(seen)
    assert judged.unfinished == ""
    # A reference image that is gone is asked about no more, and costs no other verdict.
    gone = measured(Seer(), tmp_path / "gone", judges=[], limit=2)
    for sha256 in {item.reference for item in gone.items}:
        gone.folder.image_path(sha256).unlink()
    left = judge_run(gone.path, ["pixel"])
    assert left.failures() == {}
    assert "2 of 6 answers of pixel missing" in left.unfinished


LIST_JUDGE = """
from gapbench.judges.base import Judge
from gapbench.judges.lists import answer_of, asked, listed

class ListJudge(Judge):
    name, fingerprint = "lists", "lists-1"

    def question(self, prompt):
        return asked(listed(prompt))

    def judge(self, images, prompts):
        reds = [image.getpixel((0, 0)) == (255, 0, 0) for image in images]
        return [answer_of(listed(p), [float(red)]) for red, p in zip(reds, prompts)]
"""


def test_a_folder_names_files_and_a_judge_of_lists_answers(
    tmp_path: Path, user_task: Callable[..., Path]
) -> None:
    (tmp_path / "lists.py").write_text(LIST_JUDGE)
    pairs = {"vqa_list": [["Is it red?", "Yes"]], "skills": ["color"]}
    folder = user_task([
        {"id": name, "text": text, "reference": f"{name}.png", "requirement": {**pairs, "n": name}}
        for name, text in (("red", "a red wall"), ("blue", "some blue sky"))
    ])  # fmt: skip
    Image.new("RGB", (9, 9), (255, 0, 0)).save(folder / "red.png")
    Image.new("L", (5, 4)).save(folder / "blue.png")

    def run(out: str) -> Run:
        return measured(
            Nods(), tmp_path / out, tasks=str(folder), judges=[f"{tmp_path}/lists.py:ListJudge"]
        )

    first = run("runs")
    assert "answers of lists" not in first.stages()
    frame = about_references(first)
    asked = frame.set_index(["prompt", "sample"])["outside"].to_dict()
    assert asked == {("red", 0): 1, ("red", 1): 0, ("blue", 0): 0, ("blue", 1): 1}
    with Image.open(first.folder.image_path(frame["image"].iloc[0])) as image:
        assert (image.size, image.mode) == ((9, 9), "RGB")
    # Another image of a prompt is asked about anew; the later counts.
    Image.new("RGB", (9, 9), (0, 9, 0)).save(folder / "red.png")
    later = about_references(open_run(run("runs").path)).set_index(["prompt", "sample"])["outside"]
    assert later.to_dict() == dict.fromkeys(asked, 0)
    assert "only 0.0 % are those that the prompts ask for" in shown(first)
    Image.new("RGB", (9, 9), (255, 0, 0)).save(folder / "red.png")
    assert (
        about_references(run("runs")).set_index(["prompt", "sample"])["outside"].to_dict() == asked
    )
    back = about_references(open_run(first.path)).set_index(["prompt", "sample"])["outside"]
    assert back.to_dict() == asked
    prompts = folder / "prompts.jsonl"
    kept = [json.loads(line) for line in prompts.read_text().splitlines()]
    without = [{k: v for k, v in record.items() if k != "reference"} for record in kept]
    prompts.write_text("".join(f"{json.dumps(record)}\n" for record in without))
    run("runs")
    assert not len(about_references(open_run(first.path)))
    prompts.write_text("".join(f"{json.dumps(record)}\n" for record in kept))
    alone = measured(Nods(), tmp_path / "alone", tasks=str(folder), judges=[])
    assert "No table of questions: no outside judge answered them. `gapbench judge" in shown(alone)
    assert len([*first.folder.each(Generation)]) == 2


def test_what_the_judge_cannot_read_is_counted(
    tmp_path: Path, user_task: Callable[..., Path]
) -> None:
    requirement = {"include": [{"shape": "circle", "count": 1}]}
    record = {"text": "a circle", "reference": "large.png", "requirement": requirement}
    folder = user_task([record])
    Image.new("RGB", (99, 99)).save(folder / "large.png")
    run = measured(Seer(), tmp_path, tasks=str(folder))
    made = of_run(run)
    assert made is not None
    assert made.overall.references is not None
    assert (made.overall.references.n, made.overall.references.abstained) == (0, 1)
    assert made.overall.finding != "not known"  # its own images tell
    assert "0 (1 abstained)" in shown(run)
