"""A vision-language model that answers a prompt's own list of questions.

T2I-CoReBench lists questions whose right answer is yes, GenEval 2 questions with their answers. The
arithmetic is ours: GenEval 2's Soft-TIFA and T2I-CoReBench's parsed replies use other models and
templates, so the figures are not theirs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from PIL import Image

from gapbench.judges.base import Judge
from gapbench.judges.vlm import VlmJudge
from gapbench.types import Answer, GapbenchError, Prompt
from gapbench.verdict import weigh

ASK: Final = "{question} Answer with one word."
OTHERWISE: Final = {"yes": "No", "no": "Yes"}
ENOUGH: Final = 0.5
"""Probability of the right answer from which a question counts as met."""


class ChecklistJudge(Judge):
    """`score` is the mean probability of the right answers, `verdict` whether each is at least 0.5.

    The probability is taken against the opposite answer for yes and no, else over all replies. The
    argument is the one of judge `vlm`.
    """

    def __init__(self, argument: str | None = None, device: str = "auto") -> None:
        self._vlm = VlmJudge(argument, device)
        self.name = self._vlm.name.replace("vlm-", "vlm-list-", 1)
        self.fingerprint = f"checklist-1-{self._vlm.fingerprint}"
        self.needs, self.batches = self._vlm.needs, self._vlm.batches

    def question(self, prompt: Prompt) -> str:
        asked = _listed(prompt.requirement)
        if not asked:
            raise GapbenchError(
                f"judge {self.name} cannot judge task {prompt.task}: prompt {prompt.id} has no "
                "list of questions; choose another judge with --judge"
            )
        return json.dumps(asked)

    def judge(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Answer]:
        by_answer: dict[str, list[tuple[int, str]]] = {}
        for index, prompt in enumerate(prompts):
            for question, answer in _listed(prompt.requirement):
                by_answer.setdefault(answer, []).append((index, question))
        right: dict[tuple[int, str], float] = {}
        broken: dict[int, str] = {}
        for answer, rows in by_answer.items():
            for start in range(0, len(rows), max(1, len(images))):
                for index, question, chance in self._chances(
                    images, rows[start : start + max(1, len(images))], answer
                ):
                    if isinstance(chance, str):
                        broken[index] = f"{question} {chance}"
                    else:
                        right[index, question] = chance
        return [
            Answer(verdict=None, reason=broken[index])
            if index in broken
            else _sum([(q, right[index, q]) for q, _ in _listed(prompt.requirement)])
            for index, prompt in enumerate(prompts)
        ]

    def _chances(
        self, images: Sequence[Image.Image], rows: Sequence[tuple[int, str]], answer: str
    ) -> list[tuple[int, str, float | str]]:
        """(index, question, probability of `answer` or what went wrong) for each row."""
        other = OTHERWISE.get(answer.lower())
        answers = [f" {a}" for a in (other, answer) if a]
        try:
            logprobs_of = self._vlm.logprobs(
                [images[index] for index, _ in rows],
                [ASK.replace("{question}", question) for _, question in rows],
                answers,
            ).tolist()
        except ValueError as error:
            return [(index, question, str(error)) for index, question in rows]
        chances: list[tuple[int, str, float | str]] = []
        for (index, question), logprobs in zip(rows, logprobs_of, strict=True):
            # Without an opposite the rest of the probability is every other reply.
            said = weigh(logprobs[0] if other else -float("inf"), logprobs[-1])
            chance = said.p_yes if other else said.mass
            chances.append((index, question, said.reason or "" if chance is None else chance))
        return chances

    def release(self) -> None:
        self._vlm.release()


def _listed(requirement: Any) -> list[tuple[str, str]]:
    """(question, right answer) pairs of a requirement in either benchmark's form."""
    if isinstance(requirement.get("Checklist"), list):
        return [(str(item["question"]), "Yes") for item in requirement["Checklist"]]
    return [(str(question), str(answer)) for question, answer in requirement.get("vqa_list", ())]


def _sum(right: Sequence[tuple[str, float]]) -> Answer:
    missed = [question for question, chance in right if chance < ENOUGH]
    return Answer(
        verdict=int(not missed),
        score=sum(chance for _, chance in right) / len(right),
        reason="; ".join(missed) or None,
    )
