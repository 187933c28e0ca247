"""What a command asks for, checked: prompts, samples, judges, seeds, pairs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any

from gapbench.engines.processes import Copies
from gapbench.judges import load_judge
from gapbench.judges.base import Judge
from gapbench.judges.own import NEEDS, OwnJudge
from gapbench.models import as_model
from gapbench.models.base import Model, require
from gapbench.models.images import ImagesModel
from gapbench.runs.needs import judges_here
from gapbench.runs.settings import RunSettings
from gapbench.tasks.spec import Overalls
from gapbench.tasks.task import Task, select
from gapbench.types import GapbenchError, Generation, Prompt, Scale


@dataclass(frozen=True, slots=True)
class Plan:
    """What a command asked for; a table is computed for a plan.

    `judges` maps outside judges' names to their fingerprints. For each prompt, `asks` says what
    each of its judges is asked, the one that rates are computed against first, and `partner` is
    the index of another prompt of its category that asks for something else, or None. `own` is
    the own verdicts' judge name, empty where none were asked for. `left_out` names the tasks that
    `all` or a tier did not take because their prompts or their judges' weights are not here.
    `scales` and `thresholds` are those of the judges that have them, shares and no threshold else;
    `overalls` are the tasks' (`gapbench.metrics.rates.overalls`).
    """

    tasks: dict[str, str]
    prompts: list[Prompt]
    partner: list[int | None]
    asks: list[dict[str, str]]
    samples: dict[str, int]
    judges: dict[str, str]
    own: str
    own_fingerprint: str
    seed: int
    left_out: Sequence[str] = ()
    scales: Mapping[str, Scale] = field(default_factory=dict)
    thresholds: Mapping[str, float] = field(default_factory=dict)
    overalls: Mapping[str, Overalls] = field(default_factory=dict)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Plan:
        scales = {name: Scale(*scale) for name, scale in raw.get("scales", {}).items()}
        prompts = [Prompt(**p) for p in raw["prompts"]]
        return cls(**{**raw, "prompts": prompts, "scales": scales})

    def notes(self) -> list[str]:
        """What a reader of the plan's figures has to know of it."""
        if not self.left_out:
            return []
        names = ",".join(self.left_out)
        return [
            f"Left out, because their prompts or judges are not here: {', '.join(self.left_out)}; "
            f"`gapbench prepare --tasks {names}` downloads them or says how to get them."
        ]

    def items(self) -> list[Item]:
        """Every planned image, prompt by prompt."""
        return [
            Item(
                prompt,
                sample,
                seed_of(self.seed, prompt.text, sample),
                self.asks[i],
                self._partner(i, sample),
            )
            for i, prompt in enumerate(self.prompts)
            for sample in range(self.samples[prompt.task])
        ]

    def _partner(self, index: int, sample: int) -> Prompt | None:
        partner = self.partner[index]
        return None if partner is None or sample or not self.own else self.prompts[partner]


@dataclass(frozen=True, slots=True)
class Item:
    """One planned image; `partner` is the prompt it is also held against, as a mismatched pair
    (first samples only: one pair a prompt carries the rate)."""

    prompt: Prompt
    sample: int
    seed: int
    asks: Mapping[str, str]
    partner: Prompt | None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A checked command: nothing loaded, nothing written."""

    settings: RunSettings
    model: Model
    own: OwnJudge | None
    judges: list[Judge]
    plan: Plan
    identity: dict[str, Any]


def prepare(settings: RunSettings) -> Prepared:
    """Resolve and check everything a command names."""
    model, recipe, workers = settings.model, settings.recipe, settings.workers
    judges, verdict, only = settings.judges, settings.verdict, settings.only
    out = Path(settings.out)
    if out.exists() and not out.is_dir():
        raise GapbenchError(f"--out {out} is a file; give a folder")
    left_out: list[str] = []

    def here(task: Task, categories: Sequence[str]) -> bool:
        ready = task.ready() and (judges is not None or judges_here(task, categories))
        if not ready and task.name not in left_out:
            left_out.append(task.name)
        return ready

    selected = select(settings.tasks, here)
    if recipe and not isinstance(model, str):
        raise GapbenchError("recipe: give it to load_model; a model that is made keeps its own")
    if workers > 1 and not isinstance(model, str):
        raise GapbenchError("workers: give the model by its name, so that copies can be made")
    adapter: Model
    if isinstance(model, str) and workers > 1:
        adapter = Copies(model, settings.device, settings.dtype, recipe, workers)
    else:
        adapter = as_model(model, settings.device, settings.dtype, recipe)
    require(adapter, ["generate"], "it cannot draw")
    own = None
    if verdict != "none":
        why = f"--verdict {verdict} needs it; with --verdict none only outside judges are asked"
        require(adapter, [NEEDS[verdict]], why)
        own = OwnJudge(adapter, verdict)
    if only is not None:
        selected = [(task, [p for p in of_task if p.text in only]) for task, of_task in selected]
    prompts, partner = choose(selected, settings.limit)
    tasks_by_name = {task.name: task for task, _ in selected}
    loaded: dict[str, Judge] = {}
    asks: list[dict[str, str]] = []
    for prompt in prompts:
        usual = tasks_by_name[prompt.task].judge(prompt.category)
        specs = judges if judges is not None else [usual] if usual else []
        for spec in specs:
            if spec not in loaded:
                loaded[spec] = load_judge(spec, settings.device)
        asks.append({loaded[spec].name: loaded[spec].question(prompt) for spec in specs})
    names = [judge.name for judge in loaded.values()]
    if len(set(names)) < len(names):
        raise GapbenchError(f"--judge {','.join(loaded)}: two of these are the same judge")
    plan = Plan(
        tasks={task.name: task.version for task, _ in selected},
        prompts=prompts,
        partner=partner,
        asks=asks,
        samples={task.name: settings.samples or task.samples for task, _ in selected},
        judges={judge.name: judge.fingerprint for judge in loaded.values()},
        own=own.name if own else "",
        own_fingerprint=own.fingerprint if own else "",
        seed=settings.seed,
        left_out=left_out,
        scales={judge.name: judge.scale for judge in loaded.values()},
        thresholds={j.name: j.threshold for j in loaded.values() if j.threshold is not None},
        overalls={task.name: task.overalls for task, _ in selected if task.overalls},
    )
    if isinstance(adapter, ImagesModel):
        adapter.bind({(item.prompt.text, item.seed): item.sample for item in plan.items()})
    identity = {"model": adapter.fingerprint, "recipe": dict(adapter.recipe), "seed": settings.seed}
    return Prepared(settings, adapter, own, list(loaded.values()), plan, identity)


def seed_of(run_seed: int, text: str, sample: int) -> int:
    """The seed of a prompt's k-th image: equal prompts get equal images, in any task or order."""
    digest = hashlib.sha256(json.dumps([run_seed, text, sample]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def missing_items(items: Iterable[Item], drawn: Mapping[tuple[str, int], Generation]) -> list[Item]:
    """The items whose image is not drawn yet, each (prompt text, seed) once."""
    missing: dict[tuple[str, int], Item] = {}
    for item in items:
        key = (item.prompt.text, item.seed)
        if key not in drawn:
            missing.setdefault(key, item)
    return list(missing.values())


def refuse_prompts(model: Model, prompts: Iterable[Prompt]) -> None:
    """Raises GapbenchError naming the first prompt that the model cannot draw."""
    for prompt in prompts:
        reason = model.refuses(prompt.text)
        if reason:
            raise GapbenchError(
                f"task {prompt.task}, prompt {prompt.id}: {reason}; change or remove the prompt"
            )


def choose(
    selected: Sequence[tuple[Task, list[Prompt]]], limit: int | None
) -> tuple[list[Prompt], list[int | None]]:
    """The prompts to run, and for each the index of the next one of its category that asks for
    something else. A limit takes prompts from each category in turn."""
    prompts: list[Prompt] = []
    for _, of_task in selected:
        by_category: dict[str, list[Prompt]] = {}
        for prompt in of_task:
            by_category.setdefault(prompt.category, []).append(prompt)
        if limit is not None:
            turns = chain.from_iterable(zip_longest(*by_category.values()))
            kept = {prompt.id for prompt in islice(filter(None, turns), limit)}
            of_task = [prompt for prompt in of_task if prompt.id in kept]
        prompts += of_task
    groups: dict[tuple[str, str], list[int]] = {}
    for index, prompt in enumerate(prompts):
        groups.setdefault((prompt.task, prompt.category), []).append(index)
    wants = [_wants(prompt) for prompt in prompts]
    partner: list[int | None] = [None] * len(prompts)
    for group in groups.values():
        for place, index in enumerate(group):
            following = chain(group[place + 1 :], group[:place])
            partner[index] = next((o for o in following if wants[o] != wants[index]), None)
    return prompts, partner


def _wants(prompt: Prompt) -> str:
    """What a prompt asks for, the same for two that name the same things in another order, wording
    or place: "a left of b" and "a above b" may both be true of an image."""
    include = prompt.requirement.get("include")
    if not isinstance(include, list) or not all(isinstance(item, dict) for item in include):
        return json.dumps(prompt.requirement, sort_keys=True) if prompt.requirement else prompt.text
    things = [{k: v for k, v in item.items() if k != "position"} for item in include]
    return json.dumps(sorted(json.dumps(thing, sort_keys=True) for thing in things))
