"""What a submission must hold: every prompt of its tasks, from the tasks as they are installed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import NamedTuple

from gapbench.judges import load_judge
from gapbench.judges.base import Judge
from gapbench.leaderboard.submission import MISMATCHED, SEED, Card, Role, TaskCard, sha256
from gapbench.runs.plan import paired, seed_of
from gapbench.tasks.task import Task, load_task
from gapbench.types import GapbenchError, Prompt

Key = tuple[str, str, int, Role, str]
"""Task, prompt's id, sample, role and judge's name of a verdict."""
_Verdicts = dict[tuple[Role, str], tuple[Prompt, str | None, str]]


class Wanted(NamedTuple):
    """What a verdict row must say: the image was drawn for `prompt` and is judged against `asked`;
    `question` is a sha256, None where only its judge's settings would tell it."""

    prompt: Prompt
    seed: int
    asked: Prompt
    question: str | None
    fingerprint: str


def said_in(prompt: Prompt) -> str:
    """All that a prompt says; as JSON, since a plan is read from it."""
    return json.dumps(asdict(prompt), sort_keys=True)


def extra_judges(card: Card) -> dict[str, str]:
    """Judges beside the tasks' own, with their fingerprints; they judged every image."""
    own = {judge for task in card.tasks.values() for judge in task.judges.values()}
    return {name: fingerprint for name, fingerprint in card.judges.items() if name not in own}


class Installed:
    """The tasks that are installed here, and their own judges, each loaded once."""

    def __init__(self) -> None:
        self._judges: dict[str, Judge] = {}

    def task(self, name: str) -> Task:
        """Raises GapbenchError for a task that is only a folder: nobody else could load it."""
        try:
            if "/" not in name:
                return load_task(name)
        except GapbenchError:
            pass
        raise GapbenchError(
            f"task {name} is not installed; a leaderboard needs a task that others can load "
            "(entry point gapbench.tasks)"
        )

    def judge(self, task: Task, category: str) -> Judge:
        """A category's own judge."""
        spec = task.judge(category)
        if spec is None:
            raise GapbenchError(
                f"task {task.name}: category {category} has no outside judge, so it has no place "
                "on a leaderboard"
            )
        if spec not in self._judges:
            self._judges[spec] = load_judge(spec)
        return self._judges[spec]

    def card(self, name: str, samples: int) -> TaskCard:
        """A task's part of a card, as installed."""
        task = self.task(name)
        prompts = task.prompts()
        lines = "".join(said_in(prompt) + "\n" for prompt in prompts)
        categories = dict.fromkeys(prompt.category for prompt in prompts)
        return TaskCard(
            version=task.version,
            prompts=sha256(lines),
            samples=samples,
            judges={category: self.judge(task, category).name for category in categories},
        )

    def rows(self, card: Card) -> dict[Key, Wanted]:
        """Every verdict that a submission with this card must have, and no other, in order."""
        return {
            (prompt.task, prompt.id, sample, *who): Wanted(
                prompt, seed_of(SEED, prompt.text, sample), *what
            )
            for name, part in card.tasks.items()
            for prompt, verdicts in self._verdicts(card, self.task(name))
            for sample in range(part.samples)
            for who, what in verdicts.items()
            if sample == 0 or who[0] not in ("mismatched", "partner")
        }

    def _verdicts(self, card: Card, task: Task) -> Iterator[tuple[Prompt, _Verdicts]]:
        """Each prompt with the verdicts on its first image."""
        prompts = task.prompts()
        partners, _ = paired(prompts, prompts, MISMATCHED, SEED)
        for prompt, place in zip(prompts, partners, strict=True):
            judge, verdicts = self.judge(task, prompt.category), _Verdicts()
            held: list[tuple[Role, Role, Prompt]] = [("own", "outside", prompt)]
            if place is not None:
                held.append(("mismatched", "partner", prompts[place]))
            for own, outside, asked in held:
                verdicts[own, card.own] = (asked, sha256(asked.question), card.own_fingerprint)
                if asked is prompt or judge.any_prompt:
                    said = sha256(judge.question(asked))
                    fingerprint = card.judges.get(judge.name, "")
                    verdicts[outside, judge.name] = (asked, said, fingerprint)
            for name, fingerprint in extra_judges(card).items():
                verdicts["other", name] = (prompt, None, fingerprint)
            yield prompt, verdicts
