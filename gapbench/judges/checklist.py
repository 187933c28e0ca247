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
from gapbench.judges.weights import batches
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
        listed = [_listed(prompt.requirement) for prompt in prompts]
        by_answer: dict[str, list[tuple[int, str]]] = {}
        for index, pairs in enumerate(listed):
            for question, answer in pairs:
                by_answer.setdefault(answer, []).append((index, question))
        chances: dict[tuple[int, str], float | str] = {}
        for answer, rows in by_answer.items():
            for part in batches(rows, max(1, len(images))):
                asked = [question for _, question in part]
                said = self._chances([images[index] for index, _ in part], asked, answer)
                chances |= zip(part, said, strict=True)
        return [
            _sum([(question, chances[index, question]) for question, _ in pairs])
            for index, pairs in enumerate(listed)
        ]

    def _chances(
        self, images: Sequence[Image.Image], questions: Sequence[str], answer: str
    ) -> list[float | str]:
        """For each question the probability of `answer`, or what went wrong."""
        other = OTHERWISE.get(answer.lower())
        answers = [f" {a}" for a in (other, answer) if a]
        texts = [ASK.replace("{question}", question) for question in questions]
        try:
            logprobs = self._vlm.logprobs(images, texts, answers).tolist()
        except ValueError as error:
            return [str(error)] * len(questions)
        # Without an opposite the rest of the probability is every other reply.
        said = [weigh(row[0] if other else -float("inf"), row[-1]) for row in logprobs]
        chances = [(one.p_yes if other else one.mass, one.reason or "") for one in said]
        return [reason if chance is None else chance for chance, reason in chances]

    def release(self) -> None:
        self._vlm.release()


def _listed(requirement: Any) -> list[tuple[str, str]]:
    """(question, right answer) pairs of a requirement in either benchmark's form."""
    if isinstance(requirement.get("Checklist"), list):
        return [(str(item["question"]), "Yes") for item in requirement["Checklist"]]
    return [(str(question), str(answer)) for question, answer in requirement.get("vqa_list", ())]


def _sum(right: Sequence[tuple[str, float | str]]) -> Answer:
    chances: list[float] = []
    for question, chance in right:
        if isinstance(chance, str):
            return Answer(verdict=None, reason=f"{question} {chance}")
        chances.append(chance)
    missed = [question for (question, _), c in zip(right, chances, strict=True) if c < ENOUGH]
    return Answer(
        verdict=int(not missed),
        score=sum(chances) / len(chances),
        reason="; ".join(missed) or None,
    )
