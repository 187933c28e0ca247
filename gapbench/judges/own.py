"""The model as judge of its own images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import median
from typing import Final, Literal

import numpy as np
from PIL import Image

from gapbench.judges.base import Judge
from gapbench.judges.lists import (
    ASK,
    DIGITS,
    OTHERWISE,
    Item,
    answer_of,
    asked,
    chances_in,
    first_word,
    heard,
)
from gapbench.judges.parts import RULES as QUESTIONS
from gapbench.judges.parts import questions
from gapbench.models.base import Model, log_probabilities, texts_of
from gapbench.types import Answer, Failure, Prompt, Unfinished
from gapbench.verdict import RULES

Mode = Literal["logits", "text", "questions"]
NAMES: Final[dict[Mode, str]] = {
    "logits": "self", "text": "self-text", "questions": "self-questions",
}  # fmt: skip
MODES: Final = {name: mode for mode, name in NAMES.items()}
SINGLE: Final[tuple[Literal["logits", "text"], ...]] = ("logits", "text")
"""The modes that ask one question about an image, the task's own."""


def usual_mode(model: Model) -> Mode:
    """How a model's own verdicts are made where nobody says: text only where it gives no logits."""
    able = {"judge_logits", "judge_text"} & set(model.capabilities)
    return "text" if able == {"judge_text"} else "logits"


def needed(model: Model, mode: Mode) -> str:
    """The capability that own verdicts of a mode take."""
    single = usual_mode(model) if mode == "questions" else mode
    return "judge_text" if single == "text" else "judge_logits"


def question_of(judge: str, prompt: Prompt) -> str:
    """What the own verdicts of this judge's name (NAMES) are asked of an image of a prompt."""
    return asked(questions(prompt)) if judge == NAMES["questions"] else prompt.question


class OwnJudge(Judge):
    """Asks a model the verdict question, by the probabilities of the two answers or in words; or,
    in mode questions, each question of `gapbench.judges.parts`, put as `lists.ASK`.

    A question's right answer has its probability among the answers that may be: yes and no, or the
    numbers one to ten; any other word that of all replies. A model that gives no probabilities of
    words is heard: 1 where the first word of its reply is right, else 0. The verdict is 1 where
    each is at least 0.5; `p_yes` is the least, `mass` the median of the answers' probabilities
    together, and `text` keeps them all (`lists.answers_in`).
    """

    def __init__(self, model: Model, mode: Mode) -> None:
        self.model, self.mode = model, mode
        self.batches, self.gpus = model.batches, model.gpus
        self.name = NAMES[mode]
        rules = RULES if mode == "text" or model.reads_words else 1
        rules = QUESTIONS if mode == "questions" else rules
        self.fingerprint = f"{self.name}-{rules}-{model.fingerprint}"

    def question(self, prompt: Prompt) -> str:
        return question_of(self.name, prompt)

    def judge(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Answer]:
        if self.mode == "questions":
            return self._lists(images, [questions(prompt) for prompt in prompts])
        asks = [prompt.question for prompt in prompts]
        return self.model.answers(images, asks, words=self.mode == "text")

    def _lists(
        self, images: Sequence[Image.Image], lists: Sequence[Sequence[Item]]
    ) -> list[Answer]:
        """The verdict on each image by its list. Raises Unfinished as the model does, with the
        images that have all their answers."""
        said: dict[tuple[int, int], _Said] = {}
        failed: dict[int, Failure] = {}
        stop: Unfinished | None = None
        for rows in _alike(lists, max(1, len(images))):
            items = [lists[image][place] for image, place in rows]
            try:
                said |= zip(rows, self._said([images[i] for i, _ in rows], items), strict=True)
            except Unfinished as error:
                stop = error
                said |= {rows[place]: each for place, each in error.done.items()}
                failed |= {rows[place][0]: why for place, why in error.failed.items()}
                if len(error.done) + len(error.failed) < len(rows):
                    break
        done = {}
        for index, asks in enumerate(lists):
            mine = [said.get((index, place)) for place in range(len(asks))]
            known = [each for each in mine if each is not None]
            if index not in failed and len(known) == len(asks):
                done[index] = _answer(asks, known)
        if stop is not None:
            raise Unfinished(str(stop), done, failed) from stop
        return [done[index] for index in range(len(lists))]

    def _said(self, images: Sequence[Image.Image], items: Sequence[Item]) -> list[_Said]:
        """The probability of the right answer to each question, or why there is none, and that of
        all its answers together. The questions have the same answers in the same order."""
        asks = [ASK.replace("{question}", item.question) for item in items]
        words = _words(items[0])
        if usual_mode(self.model) == "text" or self.model.reads_words:
            try:
                texts = texts_of(self.model, self.model.reply(images, asks))
            except Unfinished as stop:
                done = {place: _heard(text, items[place]) for place, text in stop.done.items()}
                raise Unfinished(str(stop), done, stop.failed) from stop
            return [_heard(text, item) for text, item in zip(texts, items, strict=True)]
        answers = [f" {word}" for word in words]
        who = f"model {self.model.name}"
        try:
            gave = log_probabilities(
                who, self.model.judge(images, asks, answers), len(images), len(answers)
            )
        except Unfinished as stop:
            done = {place: _weighed(row) for place, row in stop.done.items()}
            raise Unfinished(str(stop), done, stop.failed) from stop
        return [_weighed(row) for row in gave]

    def release(self) -> None:
        self.model.release()


_Said = tuple[float | str, float | None]
"""The probability of a question's right answer, or why there is none, and that of all its
answers."""


def _words(item: Item) -> tuple[str, ...]:
    """The right answer, and the others that it is held against."""
    right = item.answer.strip()
    if other := OTHERWISE.get(right.lower()):
        return right, other
    return (right, *(word for word in DIGITS if word != right)) if right in DIGITS else (right,)


def _alike(lists: Sequence[Sequence[Item]], size: int) -> Iterator[list[tuple[int, int]]]:
    """(list, place) of all questions, those of the same answers together, so many at a time."""
    groups: dict[tuple[str, ...], list[tuple[int, int]]] = {}
    for index, items in enumerate(lists):
        for place, item in enumerate(items):
            groups.setdefault(_words(item), []).append((index, place))
    for rows in groups.values():
        yield from (rows[start : start + size] for start in range(0, len(rows), size))


def _weighed(row: Sequence[float]) -> _Said:
    """By the log-probabilities of the right answer, which is the first, and of the others."""
    odds = np.asarray(row, dtype=np.float64)
    mass = float(np.exp(odds).sum())
    if np.isnan(odds).any() or math.isinf(odds.max()):
        return f"has answers whose log-probabilities are {', '.join(map(str, odds))}", None
    if len(odds) == 1:  # the rest of the probability is every other reply
        return mass, None
    shifted = np.exp(odds - odds.max())
    return float(shifted[0] / shifted.sum()), min(mass, 1.0)


def _heard(text: str, item: Item) -> _Said:
    right = item.answer.strip()
    return heard(first_word(text), item, (right, DIGITS.get(right, right))), None


def _answer(items: Sequence[Item], said: Sequence[_Said]) -> Answer:
    made = answer_of(items, [chance for chance, _ in said])
    chances, masses = chances_in(made.text), [mass for _, mass in said if mass is not None]
    return replace(
        made,
        p_yes=min(chances) if chances else None,
        mass=median(masses) if masses else None,
        score=None,
    )
