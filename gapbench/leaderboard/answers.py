"""Answers to questions in a submission: what must be there, what a run said, and what is wrong."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from gapbench.judges.base import Judge
from gapbench.judges.lists import Item, answer_of, answers_in, asked
from gapbench.judges.own import NAMES
from gapbench.judges.parts import RULES, has_parts, questions
from gapbench.leaderboard.expected import Installed
from gapbench.leaderboard.skills import by_skill, record
from gapbench.leaderboard.submission import (
    KEY,
    QUESTIONS,
    REFUSED,
    SKILLS,
    Card,
    Submission,
    records,
    same,
    sha256,
)
from gapbench.runs.questions import in_mode
from gapbench.runs.run import Run
from gapbench.runs.seeds import seed_of
from gapbench.types import GapbenchError, Prompt

Key = tuple[str, str, int, str]
"""Task, prompt's id, sample, and role: "own" or "outside"."""
LONGEST: Final = 40
"""Characters that one probability may take in a text."""
MASS: Final = 1 + 1e-6
"""The largest probability: floats are rounded."""
STRINGS: Final = 6
"""The largest that a judge of lists gives: Soft-TIFA adds up the first tokens of so many strings,
and counts one twice that two of them share."""


class Asked(NamedTuple):
    """What the model or the task's judge is asked about an image."""

    prompt: Prompt
    items: list[Item]
    name: str
    fingerprint: str
    judge: Judge | None
    """The outside judge; None for the model."""
    parts: bool
    """Whether that judge says yes or no to each part of the requirement."""

    @property
    def question(self) -> str:
        return asked(self.items)


def asked_of(card: Card, installed: Installed, task: str, own: str) -> dict[Key, Asked]:
    """All answers about a task's images, in order; `own` is the fingerprint of the model's.

    Raises GapbenchError where a prompt gives no questions, or its judge answers none.
    """
    made = dict[Key, Asked]()
    spec = installed.task(task)
    for prompt in spec.prompts():
        try:
            items = questions(prompt)
        except GapbenchError as error:
            raise GapbenchError(f"the prompts of task {task} give no questions") from error
        judge = installed.judge(spec, prompt.category)
        parts = judge.by_parts and has_parts(prompt)
        if not parts and judge.question(prompt) != asked(items):
            raise GapbenchError(f"judge {judge.name} of task {task} answers no questions")
        fingerprint = card.judges.get(judge.name, "")
        for sample in range(card.tasks[task].samples):
            key = (task, prompt.id, sample)
            made[*key, "own"] = Asked(prompt, items, NAMES["questions"], own, None, False)
            made[*key, "outside"] = Asked(prompt, items, judge.name, fingerprint, judge, parts)
    return made


def answers_of(run: Run, card: Card, installed: Installed, task: str) -> list[dict[str, Any]]:
    """A row for each of a task's images that were drawn and each of the two that answered.

    Raises GapbenchError, which says why, where the run does not have all of them.
    """
    mine = in_mode(run, "questions")
    if mine is None:
        raise GapbenchError("nobody asked for them; `gapbench run --own questions` does")
    drawn, verdicts = run.folder.generations(), run.folder.verdicts()
    rows, missing = list[dict[str, Any]](), Counter[str]()
    wanted = asked_of(card, installed, task, mine.plan.own_fingerprint)
    for (_, prompt, sample, role), each in wanted.items():
        seed = seed_of(card.seed, each.prompt.text, sample)
        generation = drawn.get((each.prompt.text, seed))
        if generation is None:
            continue
        verdict = verdicts.get((generation.image, each.question, each.fingerprint))
        if verdict is None:
            missing[each.name] += 1
            continue
        rows.append(
            {
                "task": task,
                "prompt": prompt,
                "sample": sample,
                "image": generation.image,
                "role": role,
                "judge": each.name,
                "fingerprint": each.fingerprint,
                "question": sha256(each.question),
                "skills": json.dumps([item.skill for item in each.items]),
                "verdict": verdict.verdict,
                "mass": verdict.mass,
                "text": verdict.text,
                # Of a verdict it is the questions that are not met, which the text tells.
                "reason": verdict.reason if verdict.verdict is None else None,
            }
        )
    if missing:
        lacking = ", ".join(
            f"{count:,} of {len(wanted) // 2:,} by {name}" for name, count in missing.items()
        )
        raise GapbenchError(
            f"missing are {lacking}; the same command with --own questions makes them"
        )
    return rows


def faults(submission: Submission, installed: Installed) -> Iterator[str]:
    """What is wrong with a submission's answers, whose other rows are right."""
    card, rows, answers = submission.card, submission.rows, submission.answers
    if answers is None:
        return
    tasks = [*dict.fromkeys(answers["task"])]
    if not tasks or (unknown := set(tasks) - card.tasks.keys()):
        yield f"{QUESTIONS}: answers about {f'task {min(unknown)}' if tasks else 'nothing'}"
        return
    own = set(answers.loc[answers["role"] == "own", "fingerprint"])
    known = {f"{NAMES['questions']}-{r}-{card.fingerprint}" for r in range(1, RULES + 1)}
    if len(own) != 1 or not own <= known:
        yield f"{QUESTIONS}: the fingerprint of the model's answers is not of the model's"
        return
    drawn = rows.loc[(rows["role"] == "own") & (rows["image"] != REFUSED), [*KEY, "image"]]
    images = {(t, p, s): image for t, p, s, image in drawn.itertuples(index=False, name=None)}
    wanted = dict[Key, Asked]()
    try:
        for task in tasks:
            wanted |= asked_of(card, installed, task, *own)
    except GapbenchError as error:
        yield f"{QUESTIONS}: {error}"
        return
    there = {key: images[key[:3]] for key in wanted if key[:3] in images}
    keys = [*zip(*(answers[part] for part in (*KEY, "role")), strict=True)]
    twice = [key for key, count in Counter(keys).items() if count > 1]
    missing = there.keys() - set(keys)
    strange = [key for key in dict.fromkeys(keys) if key not in there]
    for what, wrong in (("given twice", twice), ("missing", missing), ("unknown", strange)):
        if wrong:
            yield f"{QUESTIONS}: {len(wrong)} rows are {what}, {_named(min(wrong))} first"
    if twice or missing or strange:
        return
    # A judge of lists has given the same answers as its verdict.
    said = {
        (row["image"], row["question"], row["fingerprint"]): (_known(row["verdict"]), row["reply"])
        for row in records(rows[rows["role"] == "outside"])
    }
    for key, row in zip(keys, records(answers), strict=True):
        for fault in _row(row, wanted[key], there[key]):
            yield f"{QUESTIONS}: {_named(key)}: {fault}"
            return
        answer = (_known(row["verdict"]), row["text"])
        about = (row["image"], row["question"], row["fingerprint"])
        if said.setdefault(about, answer) != answer:
            yield f"{QUESTIONS}: {_named(key)}: other answers about the same image"
            return
    made = json.loads(json.dumps(record(by_skill(rows, answers))))
    yield from _differing(made, submission.skills, SKILLS)


def _named(key: Key) -> str:
    task, prompt, sample, role = key
    return f"task {task}, prompt {prompt}, sample {sample}, {role} answers"


def _known(verdict: float) -> int | None:
    return None if verdict != verdict else int(verdict)


def _row(row: dict[str, Any], asks: Asked, image: str) -> Iterator[str]:
    expected = {
        "image": image,
        "judge": asks.name,
        "fingerprint": asks.fingerprint,
        "question": sha256(asks.question),
        "skills": json.dumps([item.skill for item in asks.items]),
    }
    for field, value in expected.items():
        if row[field] != value:
            yield f"{field} is {row[field]!r}, not {value!r}"
    verdict, text, mass = _known(row["verdict"]), row["text"], row["mass"]
    abstained = verdict is None
    if abstained != bool(row["reason"]):
        yield "no verdict, and no reason" if abstained else "a verdict, and a reason for none"
    if mass == mass and not (asks.judge is None and 0 <= mass <= MASS):
        yield f"mass is {mass}"
    known = [chance for chance in answers_in(text) or () if chance is not None]
    # Of words alone, which are right or wrong, there is none.
    if mass != mass and asks.judge is None and any(chance not in (0, 1) for chance in known):
        yield "probabilities without their mass"
    if text or not abstained:
        yield from _text(verdict, text, asks)


def _text(verdict: int | None, text: str, asks: Asked) -> Iterator[str]:
    """What is wrong with the probabilities of the right answers, and with the verdict by them."""
    short = len(text) < LONGEST * (len(asks.items) + 1)
    kept = (answers_in(text) if short else None) or []
    if len(kept) != len(asks.items):
        yield f"{len(kept)} answers to {len(asks.items)} questions"
        return
    known = [chance for chance in kept if chance is not None]
    most = MASS if asks.judge is None else STRINGS
    if not all(0 <= each <= most and (not asks.parts or each in (0, 1)) for each in known):
        yield f"a probability of {text[:200]} cannot be"
        return
    made = answer_of(asks.items, ["" if chance is None else chance for chance in kept])
    if made.text != text:
        yield f"its text is not as it is written, but {text[:200]!r}"
    if made.verdict != verdict:
        yield f"verdict {verdict} with {text[:200]}"


def _differing(made: Any, given: Any, where: str) -> Iterator[str]:
    """Where figures differ from those that the rows give."""
    if isinstance(made, dict) and isinstance(given, dict):
        if made.keys() != given.keys():
            yield f"{where}: has {', '.join(given)}, not {', '.join(made)}"
            return
        for key, value in made.items():
            yield from _differing(value, given[key], f"{where}, {key}")
    elif not same(made, given):
        yield f"{where} is {given!r}, the rows give {made!r}"
