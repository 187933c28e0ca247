"""The tasks that a command names, their prompts, and reference images of these."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Final

from PIL import Image

from gapbench.files import on_all_cores
from gapbench.judges import load_judge
from gapbench.judges.parts import questions
from gapbench.models.base import Model
from gapbench.models.image_folder import decode
from gapbench.runs.drawn import as_png
from gapbench.runs.needs import obtain
from gapbench.runs.settings import RunSettings
from gapbench.tasks.references import Reference
from gapbench.tasks.task import Task, load_task, select
from gapbench.types import GapbenchError, Prompt

PAPER: Final = ("geneval", "t2i-compbench", "science-t2i")
"""The tasks of arXiv 2507.16663: the default, but for models of the small world of `shapes`."""


def selected_prompts(
    settings: RunSettings, model: Model
) -> tuple[list[tuple[Task, list[Prompt]]], list[str]]:
    """The prompts of the tasks, and those that were skipped, "name: why".

    A task that was named has to be here or be fetched; what `all`, a tier or the default finds is
    skipped where it lacks something, and where its judge does not read the model's images or a
    prompt gives no questions that own verdicts by questions need.
    """
    tasks, skipped, chosen = settings.tasks, dict[str, str](), set[str]()
    if tasks is None:
        shapes = load_task("shapes")
        own = map(load_judge, shapes.judges(shapes.tier_of))
        tasks = PAPER if any(j.unread(model.image_size) for j in own) else [shapes.name]

    def take(task: Task, categories: Sequence[str], named: bool) -> bool:
        named = named and settings.tasks is not None
        chosen.update([task.name] * named)
        specs = [] if named or settings.judges is not None else task.judges(categories)
        try:
            judges = [load_judge(spec) for spec in specs]
            if unread := next(filter(None, (j.unread(model.image_size) for j in judges)), None):
                raise GapbenchError(
                    f"{unread}, which {model.name} is not known to draw; --judge takes another"
                )
            obtain(task, judges, named, lambda name: settings.progress(f"fetch {name}", 0, 1))
        except GapbenchError as error:
            if named or settings.strict:
                raise GapbenchError(f"task {task.name}: {error}") from error
            skipped[task.name] = str(error)
            return False
        return True

    def asks(task: Task, prompts: Sequence[Prompt]) -> bool:
        try:
            for prompt in prompts:
                questions(prompt)
        except GapbenchError as error:
            if task.name in chosen or settings.strict:
                raise
            skipped[task.name] = str(error)
            return False
        return True

    selected = select(tasks, take)
    if settings.verdict == "questions":
        selected = [each for each in selected if asks(*each)]
    if not selected:
        # Images and the model's own verdicts need no judge: a table of these is better than none.
        kept = ["shapes"] if settings.tasks is None else tasks
        selected = select(kept, lambda task, *_: task.name == "shapes")
        skipped.pop("shapes", None)
    for task, prompts in selected:
        if {prompt.category for prompt in prompts} == task.tier_of.keys():
            lacks = task.spec.without.items()
            skipped |= {f"{task.name}/{category}": why for category, why in lacks}
    return selected, [f"{name}: {why}" for name, why in skipped.items()]


def limited(of_task: Sequence[Prompt], limit: int | None) -> list[Prompt]:
    """A task's first prompts up to a limit, taken from each category in turn."""
    turns = chain.from_iterable(zip_longest(*by_category(of_task).values()))
    kept = {prompt.id for prompt in islice(filter(None, turns), limit)}
    return [prompt for prompt in of_task if prompt.id in kept]


def by_category(prompts: Iterable[Prompt]) -> dict[tuple[str, str], list[Prompt]]:
    """The prompts of each category of each task."""
    groups: dict[tuple[str, str], list[Prompt]] = {}
    for prompt in prompts:
        groups.setdefault((prompt.task, prompt.category), []).append(prompt)
    return groups


def references_of(
    tasks: Sequence[Task], prompts: Sequence[Prompt]
) -> tuple[list[str], dict[str, Reference]]:
    """The sha256 of the reference image of each prompt, as a run folder stores it, empty for one of
    a task without, and no list where all are; and the images by it. Raises GapbenchError for what
    is no image."""
    named = {
        task.name: task.references([prompt for prompt in prompts if prompt.task == task.name])
        for task in tasks
    }
    found = [named[prompt.task].get(prompt.id) for prompt in prompts]
    digests = on_all_cores(lambda each: "" if each is None else _digest(each), found)
    pairs = zip(digests, found, strict=True)
    images = {sha256: reference for sha256, reference in pairs if reference is not None}
    return digests if images else [], images


def opened(reference: Reference) -> Image.Image:
    """RGB. Raises GapbenchError for what is no image."""
    return decode(reference) if isinstance(reference, Path) else Image.fromarray(reference)


def _digest(reference: Reference) -> str:
    return hashlib.sha256(as_png(opened(reference))).hexdigest()
