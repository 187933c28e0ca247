"""What a submission must hold: every prompt of its tasks as installed, and what its run said."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any, NamedTuple

from gapbench.judges import BUILT_IN, load_judge
from gapbench.judges.base import Judge
from gapbench.judges.own import question_of
from gapbench.leaderboard.submission import MISMATCHED, REFUSED, SEED, Card, Role, TaskCard, sha256
from gapbench.runs.plan import paired
from gapbench.runs.run import Run
from gapbench.runs.seeds import seed_of
from gapbench.tasks.content import cluster
from gapbench.tasks.task import Task, load_task, task_folders
from gapbench.types import SHARE, Answer, GapbenchError, Prompt, Verdict

Key = tuple[str, str, int, Role, str]
"""Task, prompt's id, sample, role and judge's name of a verdict."""
_Verdicts = dict[tuple[Role, str], tuple[Prompt, str | None, str, Judge | None]]


class Wanted(NamedTuple):
    """What a verdict row must say: the image was drawn for `prompt` and is judged against `asked`;
    `question` is a sha256, None where only its judge's settings would tell it."""

    prompt: Prompt
    cluster: str
    seed: int
    asked: Prompt
    question: str | None
    fingerprint: str
    judge: Judge | None
    """The outside judge, where it is installed as it was for the submission."""


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
        """Raises GapbenchError for a task that is only a folder: nobody else could load it; and for
        one whose prompts a seed makes: everybody could have others."""
        task = None
        with suppress(GapbenchError):
            task = load_task(name)
        if task and task.spec.seeded:
            raise GapbenchError(
                f"task {name} has prompts of its own for each seed, and a leaderboard takes the "
                f"same prompts of everybody; submit {name.partition('@')[0]}"
            )
        if task and task.folder in task_folders().values():
            return task
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

    def other(self, name: str, fingerprint: str) -> Judge | None:
        """A judge beside the tasks' own, if gapbench has it as it was for a submission."""
        if name not in BUILT_IN:
            return None
        with suppress(GapbenchError):
            if name not in self._judges:
                self._judges[name] = load_judge(name)
            if self._judges[name].fingerprint == fingerprint:
                return self._judges[name]
        return None

    def count(self, card: Card) -> int:
        """How many rows a submission with this card has at most; makes none of them."""
        judges = 2 + len(extra_judges(card))
        return sum(
            len(self.task(name).prompts()) * (part.samples * judges + 2)
            for name, part in card.tasks.items()
        )

    def rows(self, card: Card) -> dict[Key, Wanted]:
        """Every verdict that a submission with this card must have, and no other, in order."""
        return {
            (prompt.task, prompt.id, sample, *who): Wanted(
                prompt, unit, seed_of(SEED, prompt.text, sample), *what
            )
            for name, part in card.tasks.items()
            for prompt, verdicts in self._verdicts(card, self.task(name))
            for unit in [cluster(prompt)]
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
            for own, outside, about in held:
                said = sha256(question_of(card.own, about))
                verdicts[own, card.own] = (about, said, card.own_fingerprint, None)
                if about is prompt or judge.any_prompt:
                    said = sha256(judge.question(about))
                    fingerprint = card.judges.get(judge.name, "")
                    verdicts[outside, judge.name] = (about, said, fingerprint, judge)
            for name, fingerprint in extra_judges(card).items():
                other = self.other(name, fingerprint)
                asked = None if other is None else sha256(other.question(prompt))
                verdicts["other", name] = (prompt, asked, fingerprint, other)
            yield prompt, verdicts


def told_by(run: Run, tasks: Mapping[str, TaskCard]) -> dict[str, Any]:
    """What a card of these tasks says that a run says too. Of other judges than the tasks' own it
    has those that were asked about every image."""
    meta, plan, items = run.folder.meta, run.plan, run.plan.items()
    own = {judge for task in tasks.values() for judge in task.judges.values()}
    judges = {
        name: fingerprint
        for name, fingerprint in plan.judges.items()
        if name in own or all(name in item.asks for item in items)
    }
    about, identity = meta.get("model_about", {}), meta["identity"]
    return {
        "model": meta["model"],
        "fingerprint": identity.get("model"),
        "pair": bool(about.get("pair")),
        "dtype": about.get("dtype"),
        "recipe": identity.get("recipe"),
        "seed": plan.seed,
        "own": plan.own,
        "own_fingerprint": plan.own_fingerprint,
        "judges": judges,
        "refused": run.refused(),
        "scales": {
            name: scale for name, scale in plan.scales.items() if name in judges and scale != SHARE
        },
        "versions": {
            key: str(value)
            for key, value in {**meta.get("versions", {}), **(about.get("versions") or {})}.items()
        },
    }


def rows_of(run: Run, card: Card, installed: Installed) -> Iterator[dict[str, Any]]:
    """A row for every verdict that the card asks for, from a run; on an image that the model
    refused to draw, a row with the reason. Raises GapbenchError where one is missing."""
    plan, drawn, verdicts = run.plan, run.folder.generations(), run.folder.verdicts()
    refusals = run.folder.refusals()
    asks = {(p.task, p.id): asked for p, asked in zip(plan.prompts, plan.asks, strict=True)}
    for (task, prompt, sample, role, judge), wanted in installed.rows(card).items():
        own = role in ("own", "mismatched")
        asked = asks.get((task, wanted.asked.id), {})
        question = question_of(judge, wanted.asked) if own else asked.get(judge, "")
        key = (wanted.prompt.text, wanted.seed)
        generation = drawn.get(key)
        image = generation.image if generation else REFUSED
        verdict: Answer | Verdict | None = verdicts.get((image, question, wanted.fingerprint))
        if generation is None and key in refusals:
            verdict = Answer(verdict=None, reason=refusals[key].reason)
        if verdict is None:
            what = f"verdict of {judge}" if generation else "image"
            raise GapbenchError(
                f"{run.path} is not complete: task {task}, prompt {prompt}, sample {sample} has no "
                f"{what}; run the same command again, or submit a part with --tasks and --samples"
            )
        yield {
            "task": task,
            "category": wanted.prompt.category,
            "tier": wanted.prompt.tier,
            "prompt": prompt,
            "cluster": wanted.cluster,
            "sample": sample,
            "seed": wanted.seed,
            "image": image,
            "role": role,
            "judge": judge,
            "fingerprint": wanted.fingerprint,
            "question": sha256(question),
            "verdict": verdict.verdict,
            "p_yes": verdict.p_yes,
            "mass": verdict.mass,
            "score": verdict.score,
            "reply": verdict.text,
            "reason": verdict.reason,
        }
