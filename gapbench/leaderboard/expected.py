"""What a submission must hold: every prompt of its tasks, from the tasks as they are installed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import NamedTuple

from gapbench.judges import load_judge
from gapbench.judges.base import Judge
from gapbench.leaderboard.submission import SEED, Card, Role, TaskCard, sha256
from gapbench.runs.plan import choose, seed_of
from gapbench.tasks.task import Task, load_task
from gapbench.types import GapbenchError, Prompt

Key = tuple[str, str, int, Role, str]
"""Task, prompt's id, sample, role and judge's name of a verdict."""


class Wanted(NamedTuple):
    """What a verdict row must say; `question` is its sha256, None where only its judge's settings
    would tell it. `prompt` is the one that the image was drawn for."""

    category: str
    tier: str
    seed: int
    question: str | None
    fingerprint: str
    prompt: Prompt
    asked: Prompt


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
        lines = "".join(json.dumps(asdict(prompt), sort_keys=True) + "\n" for prompt in prompts)
        categories = dict.fromkeys(prompt.category for prompt in prompts)
        return TaskCard(
            version=task.version,
            prompts=sha256(lines),
            samples=samples,
            judges={category: self.judge(task, category).name for category in categories},
        )

    def rows(self, card: Card) -> dict[Key, Wanted]:
        """Every verdict that a submission with this card must have, and no other."""
        return {
            key: wanted
            for name, part in card.tasks.items()
            for key, wanted in self._rows(card, self.task(name), part.samples).items()
        }

    def _rows(self, card: Card, task: Task, samples: int) -> Mapping[Key, Wanted]:
        prompts, partner = choose([(task, task.prompts())], None)
        others = extra_judges(card)
        wanted_rows: dict[Key, Wanted] = {}
        for index, prompt in enumerate(prompts):
            judge = self.judge(task, prompt.category)
            other = partner[index]
            for sample in range(samples):
                place = (prompt.category, prompt.tier, seed_of(SEED, prompt.text, sample))
                rows: list[tuple[Role, str, str | None, str, Prompt]] = [
                    ("own", card.own, prompt.question, card.own_fingerprint, prompt),
                    ("outside", judge.name, judge.question(prompt),
                     card.judges.get(judge.name, ""), prompt),
                ]  # fmt: skip
                if other is not None and sample == 0:
                    asked = prompts[other]
                    rows.append(
                        ("mismatched", card.own, asked.question, card.own_fingerprint, asked)
                    )
                rows += [
                    ("other", name, None, fingerprint, prompt)
                    for name, fingerprint in others.items()
                ]
                for role, name, question, fingerprint, asked in rows:
                    wanted_rows[task.name, prompt.id, sample, role, name] = Wanted(
                        *place,
                        None if question is None else sha256(question),
                        fingerprint,
                        prompt,
                        asked,
                    )
        return wanted_rows
