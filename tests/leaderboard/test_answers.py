"""Answers to questions in a submission: submitted, verified, forged, and shown on the board."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stubs import Stub

import gapbench
from gapbench import Verdict, open_run
from gapbench.judges.own import NAMES
from gapbench.leaderboard.again import check_again
from gapbench.leaderboard.board import markdown, page
from gapbench.leaderboard.submission import (
    CARD,
    QUESTIONS,
    RATES,
    SKILLS,
    VERDICTS,
    contents,
    read,
    schema,
    sha256,
)
from gapbench.leaderboard.submit import submit
from gapbench.leaderboard.verify import check
from gapbench.report.questions import cells
from gapbench.runs.questions import of_run
from gapbench.runs.run import Run

Cli = Callable[..., subprocess.CompletedProcess[str]]
Rows = list[dict[str, Any]]
HOSTILE = '<img src=x onerror="alert(1)">'


@pytest.fixture
def mine(submitted: Path, tmp_path: Path) -> Path:
    """A copy of the submission, to be tampered with."""
    return Path(shutil.copytree(submitted, tmp_path / "results" / "janus-mini"))


def listed(frame: Any) -> Rows:
    frame = frame.astype(object)
    rows: Rows = frame.where(frame.notna(), None).to_dict("records")
    return rows


def sign(folder: Path, answers: Rows, rows: Rows | None = None) -> None:
    """Write a submission whose digests and figures are right for its rows."""
    old = read(folder)
    card = old.card.model_dump(exclude={"files"})
    for name, data in contents(card, rows or listed(old.rows), answers).items():
        (folder / name).write_bytes(data)


def sign_file(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)
    card = json.loads((folder / CARD).read_text())
    card["files"][name] = sha256(data)
    (folder / CARD).write_text(json.dumps(card))


def answers_of(folder: Path) -> Rows:
    answers = read(folder).answers
    assert answers is not None
    return listed(answers)


def test_from_the_run_to_the_board(made: Any, asked: Run, board_cli: Cli, tmp_path: Path) -> None:
    done = board_cli("submit", str(asked.path), "--allow-test-model")
    assert (done.returncode, done.stderr) == (0, "")
    first, _ = done.stdout.splitlines()
    assert first == "Answers to questions about 24 images of few-shapes are in it."
    place = tmp_path / "results" / "janus-mini"
    for name in (VERDICTS, RATES):  # they are as they were
        assert (place / name).read_bytes() == (made.folder / name).read_bytes()
    done = board_cli("verify", "results/janus-mini", "--run", str(asked.path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every figure recomputed, with answers to questions, all as in its run" in done.stdout
    assert board_cli("leaderboard").returncode == 0
    found = of_run(asked)
    assert found is not None
    rows = [[skill.name, *cells(skill), skill.finding] for skill in (found.overall, *found.skills)]
    assert len(rows) > 2
    text = (tmp_path / "leaderboard.html").read_text()
    assert table(text) == rows
    assert "the model was not answering the question" in text
    assert (tmp_path / "leaderboard.md").read_text() == markdown([read(made.folder)])
    kept = json.loads((place / SKILLS).read_text())["few-shapes"]
    assert [*kept["skills"]] == [skill.name for skill in found.skills]
    assert kept["overall"]["draws"] == asdict_of(found.overall.draws)
    assert kept["overall"]["sees"]["high"] == found.overall.agrees.raw_high


def table(text: str) -> list[list[str]]:
    """The cells of the table by skill."""
    part = text.partition("<h3>")[2].partition("</table>")[0].partition("<tbody>")[2]
    return [
        [html.unescape(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)]
        for row in part.split("</tr>")[:-1]
    ]


def asdict_of(estimate: Any) -> dict[str, float]:
    return json.loads(json.dumps(estimate._asdict()))  # type: ignore[no-any-return]


def test_no_prompt_and_no_question_is_in_it(asked: Run, submitted: Path) -> None:
    text = str(pq.read_table(submitted / QUESTIONS).to_pylist())
    assert asked.plan.prompts[0].text not in text
    assert "Is there" not in text


def test_what_is_incomplete_is_left_out_and_said(made: Any, asked: Run, tmp_path: Path) -> None:
    said: list[str] = []
    submit(made.run, tmp_path / "none", test_model=True, say=said.append)
    copied = Path(shutil.copytree(asked.path, tmp_path / "run"))
    answers = [v for v in asked.folder.verdicts().values() if v.judge == NAMES["questions"]]
    lost = answers[0]
    kept = [v for v in asked.folder.verdicts().values() if v != lost]
    write(copied, kept)
    place = submit(open_run(copied), tmp_path / "results", test_model=True, say=said.append)
    assert said == [
        "No answers to questions about images of few-shapes are in it: nobody asked for them; "
        "`gapbench run --own questions` does.",
        "No answers to questions about images of few-shapes are in it: missing are 1 of 24 by "
        "self-questions; the same command with --own questions makes them.",
    ]
    assert not (place / QUESTIONS).exists()
    assert check(place) == []


def write(run: Path, verdicts: list[Verdict]) -> None:
    lines = (json.dumps(asdict(verdict)) + "\n" for verdict in verdicts)
    (run / "verdicts.jsonl").write_text("".join(lines))


def first(rows: Rows, role: str, /, **more: Any) -> None:
    next(row for row in rows if row["role"] == role).update(more)


def flipped(rows: Rows) -> None:
    """Another verdict than the probabilities give."""
    rows[0]["verdict"] = 1 - rows[0]["verdict"]


CASES: dict[str, tuple[Callable[[Rows], object], str]] = {
    "verdict": (flipped, "with {"),
    "missing": (lambda rows: rows.pop(), "1 rows are missing, task few-shapes"),
    "dropped-role": (lambda rows: drop(rows, lambda r: r["role"] == "outside"), "24 rows are mis"),
    "twice": (lambda rows: rows.append(dict(rows[0])), "1 rows are given twice"),
    "role": (lambda rows: first(rows, "own", role="partner"), "1 rows are missing"),
    "task": (lambda rows: first(rows, "own", task="geneval"), "answers about task geneval"),
    "sample": (lambda rows: rows.append({**rows[0], "sample": 99}), "1 rows are unknown"),
    "image": (lambda rows: first(rows, "own", image="0" * 64), "image is '000"),
    "judge": (lambda rows: first(rows, "outside", judge="kind"), "judge is 'kind', not 'pixel'"),
    "fingerprint": (lambda rows: first(rows, "outside", fingerprint="x"), "fingerprint is 'x'"),
    "model": (lambda rows: first(rows, "own", fingerprint="x"), "is not of the model's"),
    "question": (lambda rows: first(rows, "own", question="0" * 64), "question is '000"),
    "skills": (lambda rows: renamed(rows, "charm"), "skills is '[\"charm\""),
    "mass": (lambda rows: first(rows, "own", mass=1.5), "mass is 1.5"),
    "massless": (lambda rows: first(rows, "own", mass=None), "probabilities without their mass"),
    "outside-mass": (lambda rows: first(rows, "outside", mass=0.5), "mass is 0.5"),
    "reason": (lambda rows: first(rows, "own", reason="x" * 9), "a reason for none"),
    "abstained": (lambda rows: first(rows, "own", verdict=None), "no verdict, and no reason"),
    "large": (lambda rows: chances(rows, "own", 1.5), "cannot be"),
    "negative": (lambda rows: chances(rows, "own", -0.5), "cannot be"),
    "nan": (lambda rows: chances(rows, "own", float("nan")), "cannot be"),
    "infinite": (lambda rows: chances(rows, "outside", float("inf")), "cannot be"),
    "half": (lambda rows: chances(rows, "outside", 0.5), "cannot be"),
    "spelled": (lambda rows: spread(rows), "its text is not as it is written"),
    "empty": (lambda rows: first(rows, "own", text=None), "0 answers to"),
}  # fmt: skip


def drop(rows: Rows, which: Callable[[dict[str, Any]], bool]) -> None:
    rows[:] = [row for row in rows if not which(row)]


def renamed(rows: Rows, skill: str) -> None:
    for row in rows:
        row["skills"] = json.dumps([skill for _ in json.loads(row["skills"])])


def chances(rows: Rows, role: str, chance: float) -> None:
    row = next(row for row in rows if row["role"] == role)
    said = [chance for _ in json.loads(row["text"])["right"]]
    row.update(text=json.dumps({"right": said}), verdict=int(chance >= 0.5))


def spread(rows: Rows) -> None:
    row = next(row for row in rows if row["role"] == "own")
    row["text"] = row["text"].replace("]", " ]")


@pytest.mark.parametrize("case", CASES)
def test_forged_answers(mine: Path, case: str) -> None:
    change, fault = CASES[case]
    rows = answers_of(mine)
    change(rows)
    table = pa.Table.from_pylist(rows, schema=schema(QUESTIONS))
    pq.write_table(table, mine / QUESTIONS)
    sign_file(mine, QUESTIONS, (mine / QUESTIONS).read_bytes())
    [found, *_] = check(mine)
    assert fault in found
    assert "questions." in found


def test_files_that_are_not_what_the_card_says(made: Any, mine: Path, copy_of: Path) -> None:
    for name in (QUESTIONS, SKILLS):  # put beside a card that does not know them
        shutil.copy(mine / name, copy_of / name)
    assert f"{QUESTIONS}: its sha256 is not the one" in check(copy_of)[0]
    figures = json.loads((mine / SKILLS).read_text())
    figures["few-shapes"]["overall"]["kappa"]["value"] = 0.9
    sign_file(mine, SKILLS, json.dumps(figures).encode())
    assert "questions.json, few-shapes, overall, kappa, value is 0.9, the rows" in check(mine)[0]
    sign_file(mine, SKILLS, b"{}")
    assert "questions.json: has , not few-shapes" in check(mine)[0]
    table = pq.read_table(mine / QUESTIONS)
    pq.write_table(table.append_column("more", [["x"] * len(table)]), mine / QUESTIONS)
    sign_file(mine, QUESTIONS, (mine / QUESTIONS).read_bytes())
    assert "its columns are not task, prompt" in check(mine)[0]
    (mine / QUESTIONS).unlink()
    assert f"{QUESTIONS}: missing, or no plain file" in check(mine)[0]


@pytest.fixture
def copy_of(made: Any, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made.folder, tmp_path / "old" / "janus-mini"))


def test_swapped_probabilities(made: Any, asked: Run, mine: Path, tmp_path: Path) -> None:
    """The rows alone cannot tell that they are another image's; the run can, and where it is forged
    too, the model."""
    rows = answers_of(mine)
    own = [row for row in rows if row["role"] == "own"]
    one, other = next(
        (a, b) for a in own for b in own
        if a["question"] == b["question"] and a["text"] != b["text"]
    )  # fmt: skip
    said = ("verdict", "mass", "text")
    old = {part: one[part] for part in said}
    one.update({part: other[part] for part in said})
    other.update(old)
    sign(mine, rows)
    assert check(mine) == []
    [fault] = check_again(mine, made.run.path)
    assert "does not have all these answers: nobody asked for them" in fault
    [fault] = check_again(mine, asked.path)
    assert "own verdict of self-questions" in fault
    assert f"{asked.path} has" in fault
    now = {(row["image"], row["question"], row["fingerprint"]): row for row in rows}
    forged = Path(shutil.copytree(asked.path, tmp_path / "forged"))
    verdicts = list[Verdict]()
    for verdict in asked.folder.verdicts().values():
        row = now.get((verdict.image, sha256(verdict.question), verdict.fingerprint))
        more = {part: row[part] for part in said} if row else {}
        verdicts.append(Verdict(**{**asdict(verdict), **more}))
    write(forged, verdicts)
    faults = check_again(mine, forged, rejudge=24)
    assert len(faults) == 2
    assert all("own verdict of self-questions: says {" in fault for fault in faults)


def test_refused_images_have_no_answers(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = made.run.plan.prompts[0].text
    monkeypatch.setattr(type(made.model), "refuses", lambda _, each: "no" * (each == text) or None)
    for verdict in ("logits", "questions"):
        run = gapbench.run(made.model, "few-shapes", verdict=verdict, out=tmp_path)
    place = submit(open_run(run.path), tmp_path / "results", test_model=True)
    assert len(answers_of(place)) == 2 * 22
    assert check(place) == []


def test_a_judge_that_gave_no_answer(mine: Path) -> None:
    rows = answers_of(mine)
    asked = next(row for row in rows if row["role"] == "outside")
    for row in rows:
        if (row["image"], row["question"], row["role"]) == (
            asked["image"],
            asked["question"],
            "outside",
        ):
            row.update(verdict=None, text=None, reason="the image is blank")
    sign(mine, rows)
    assert check(mine) == []
    assert json.loads((mine / SKILLS).read_text())["few-shapes"]["overall"]["abstained"] > 0


def test_skills_of_a_submission_stay_text(mine: Path) -> None:
    rows = answers_of(mine)
    renamed(rows, HOSTILE)
    sign(mine, rows)
    text = page([read(mine)])
    assert "<img" not in text
    assert [row[0] for row in table(text)] == ["all questions", HOSTILE]


JUDGE = '''
from pathlib import Path
from gapbench import Answer, Judge
from gapbench.judges.lists import answer_of, asked, listed

LISTS, PLAIN = (Path(__file__).parent / name for name in ("lists", "plain"))


class Lister(Judge):
    """Answers a prompt's list; of a prompt without one it says yes."""

    name, fingerprint = "lister", "lister-1"

    def question(self, prompt):
        return asked(listed(prompt)) if "vqa_list" in prompt.requirement else prompt.text

    def judge(self, images, prompts):
        return [
            answer_of(listed(p), [0.9, i.getpixel((0, 0))[0] % 2, 0.4])
            if "vqa_list" in p.requirement
            else Answer(verdict=1)
            for i, p in zip(images, prompts)
        ]
'''


def test_a_judge_of_lists_and_a_task_without_questions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one submission; what the judge says of a list is the same in both files."""
    site, words = tmp_path / "site", ["Is it red?", "Is it blue?", "How many are there?"]
    info = site / "lister-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lister\nVersion: 1.0\n")
    names = "".join(f"{name} = lister_tasks:{name.upper()}\n" for name in ("lists", "plain"))
    (info / "entry_points.txt").write_text(f"[gapbench.tasks]\n{names}")
    (site / "lister_tasks.py").write_text(JUDGE)
    pairs = [[word, "two" if "many" in word else "Yes"] for word in words]
    asks = {"vqa_list": pairs, "skills": ["color", "color", "count"]}
    for name, requirement in (("lists", asks), ("plain", {})):
        (site / name).mkdir()
        spec = {
            "title": name, "version": "1.0", "file": "prompts.jsonl", "samples": 2,
            "judge": "lister_tasks:Lister", "tiers": {"easy": ["all"]},
        }  # fmt: skip
        (site / name / "task.yaml").write_text(json.dumps(spec))
        lines = [
            {"id": str(n), "category": "all", "text": f"{name} {n}", "requirement": requirement}
            for n in range(3)
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (site / name / "prompts.jsonl").write_text(text)
    monkeypatch.syspath_prepend(str(site))
    out, said = tmp_path / "runs", list[str]()
    gapbench.run(Stub(), ["lists", "plain"], out=out)
    run = gapbench.run(Stub(), "lists", verdict="questions", out=out)
    place = submit(open_run(run.path), tmp_path / "results", test_model=True, say=said.append)
    assert said == [
        "Answers to questions about 6 images of lists are in it.",
        "No answers to questions about images of plain are in it: the prompts of task plain give "
        "no questions.",
    ]
    assert check(place) == []
    assert check_again(place, run.path) == []
    figures = json.loads((place / SKILLS).read_text())["lists"]
    assert (figures["mass"], figures["skills"]["count"]["draws"]["value"]) == (None, 0.0)
    assert [*figures["skills"]] == ["color", "count"]
    rows = answers_of(place)
    row = next(row for row in rows if row["role"] == "outside")
    row.update(text='{"right": [1.0, 1.0, 1.0]}', verdict=1)
    sign(place, rows)
    assert "other answers about the same image" in check(place)[0]
