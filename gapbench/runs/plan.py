"""What a command asks for, checked: prompts, samples, judges, seeds, pairs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple

from pydantic import ConfigDict, TypeAdapter

from gapbench.engines import make_engine
from gapbench.engines.base import Engine, Source
from gapbench.judges import load_judge
from gapbench.judges.base import Judge
from gapbench.judges.own import NAMES, OwnJudge, needed, question_of, usual_mode
from gapbench.judges.parts import has_parts, questions
from gapbench.models import as_model, load_model
from gapbench.models.base import Model, misdescribed, require
from gapbench.models.images import ImagesModel
from gapbench.runs.chosen import by_category, limited, references_of, selected_prompts
from gapbench.runs.folder import folder_for
from gapbench.runs.seeds import seeds_of
from gapbench.runs.settings import RunSettings, Shard
from gapbench.tasks.content import Difficulty, partners
from gapbench.tasks.references import Reference
from gapbench.tasks.spec import Overalls
from gapbench.types import GapbenchError, Prompt, Scale, counted

PAIRS: Final[dict[Difficulty, str]] = {
    "far": "the other prompt shares as few content words as possible",
    "near": "the other prompt differs in as few content words as possible",
}
NOTHING: Final[dict[str, str]] = {}
MOST_SAMPLES: Final = 100_000
"""Images of a prompt that a plan which was read may have."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a command asked for; a table is computed for a plan. `gapbench.runs.whole` makes one of
    all commands.

    `judges` maps outside judges' names to their fingerprints. For each prompt, `partner` is the
    index of the prompt that makes a mismatched pair with its image, or None; indices go on into
    `others`, the partners that are not planned themselves. `asks` says what each of a prompt's
    judges is asked, the one that rates are computed against first, and `partner_asks` what those
    are asked about the mismatched pair that can answer. `own` is the own verdicts' judge name,
    empty where none were asked for. `left_out` has the tasks that were skipped, and the categories
    that a task has no prompts of, "name: why" (names alone in a plan of 0.1). `unpinned` has data
    of which no revision is on record, at the commit that was taken. `mismatched` is how partners
    were chosen; None in a plan of 0.1, which took the next prompt of the file.
    `scales` and `thresholds` are those of the judges that have them, shares and no threshold else;
    `by_parts` are the judges that answer the questions of own verdicts by questions, each by its
    part of the requirement; a list of its own a judge answers anyway.
    `overalls` are the tasks' (`gapbench.metrics.rates.overalls`). `shard` is which part of the
    prompts is worked off; the rest of the plan is that of the whole run. `reflect` is how often a
    prompt is drawn again at most (`gapbench.runs.reflect`); `items` has none of these images.
    `references` has, where questions are asked, the sha256 of the reference image of each prompt
    and then of each of `others`, empty for a prompt of a task without.
    `earlier`, in a run folder, are the plans of earlier commands.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")
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
    unpinned: Sequence[str] = ()
    scales: Mapping[str, Scale] = field(default_factory=dict)
    thresholds: Mapping[str, float] = field(default_factory=dict)
    overalls: Mapping[str, Overalls] = field(default_factory=dict)
    others: Sequence[Prompt] = ()
    partner_asks: Sequence[dict[str, str]] = ()
    mismatched: Difficulty | None = None
    by_parts: Sequence[str] = field(default_factory=list)
    shard: Shard | None = None
    reflect: int | None = None
    references: Sequence[str] = field(default_factory=list)
    earlier: Sequence[Plan] = field(default_factory=list)

    @classmethod
    def from_json(cls, raw: Any) -> Plan:
        """A plan as `asdict` gives it. Raises ValueError where it is of another form."""
        plan = TypeAdapter(cls).validate_json(json.dumps(raw), strict=True)
        for each in (plan, *plan.earlier):
            each._check()
        return plan

    def _check(self) -> None:
        count, places = len(self.prompts), len(self.prompts) + len(self.others)
        if not count == len(self.asks) == len(self.partner):
            raise ValueError("prompts, asks and partner are not as many")
        if self.partner_asks and len(self.partner_asks) != count:
            raise ValueError("prompts and partner_asks are not as many")
        if self.references and len(self.references) != places:
            raise ValueError("prompts and references are not as many")
        if self.references and self.own != NAMES["questions"]:
            raise ValueError("there are references, and nothing is asked about them")
        if self.shard and not 1 <= self.shard.number <= self.shard.of:
            raise ValueError(f"there is no shard {self.shard}")
        if self.reflect is not None and not (self.own and 0 < self.reflect <= MOST_SAMPLES):
            raise ValueError(f"nothing is drawn {self.reflect} times again by these own verdicts")
        if any(p.task not in self.tasks for p in self.prompts):
            raise ValueError("a prompt's task has no version")
        if any(p is not None and not 0 <= p < places for p in self.partner):
            raise ValueError("a partner is the place of no prompt")
        if any(not 0 < self.samples.get(p.task, 0) <= MOST_SAMPLES for p in self.prompts):
            raise ValueError(f"a task's samples are not 1 to {MOST_SAMPLES}")
        named = [*self.asks, *self.partner_asks, dict.fromkeys(self.by_parts, "")]
        if any(a.keys() - self.judges.keys() for a in named):
            raise ValueError("a prompt names a judge that has no fingerprint")
        if self.own == NAMES["questions"]:
            try:
                for prompt in [*self.prompts, *self.others]:
                    questions(prompt)
            except GapbenchError as error:
                raise ValueError(str(error)) from error

    def own_question(self, prompt: Prompt) -> str:
        """What the own verdicts are asked of an image of a prompt; empty for a prompt that gives no
        questions, which a command with other verdicts asked about."""
        try:
            return question_of(self.own, prompt)
        except GapbenchError:
            return ""

    def notes(self) -> list[str]:
        """What a reader of the plan's figures has to know of it."""
        notes = [f"Skipped {each}." for each in self.left_out]
        notes += [f"UNPINNED: {each}, the newest when it was fetched." for each in self.unpinned]
        if self.own and self.mismatched:
            notes.append(f"Mismatched pairs: {self.mismatched} ({PAIRS[self.mismatched]}).")
        if self.shard:
            notes.append(f"Shard {self.shard} of the prompts; `gapbench merge` joins the shards.")
        return notes

    def items(self) -> list[Item]:
        """Every planned image, prompt by prompt; of a shard, those of its prompts."""
        items = list[Item]()
        references = self.referenced()
        for prompt, asks, partner, of_pair in self.asked():
            seeds = seeds_of(self.seed, prompt.text, range(self.samples[prompt.task]))
            own = bool(self.own)
            answers = self.answering(prompt, asks)
            images = [
                Item(prompt, k, seed, asks, None, NOTHING, own, answers)
                for k, seed in enumerate(seeds)
            ]
            if partner:
                images[0] = images[0]._replace(partner=partner, partner_asks=of_pair)
            if reference := references.get((prompt.task, prompt.id)):
                other = references.get((partner.task, partner.id), "") if partner else ""
                other *= other != reference
                images[0] = images[0]._replace(reference=reference, other_reference=other)
            items += images
        return items

    def referenced(self) -> dict[tuple[str, str], str]:
        """(task, id) of a prompt -> the sha256 of its reference image, of those that have one."""
        every = [*self.prompts, *self.others][: len(self.references)]
        pairs = zip(every, self.references, strict=True)
        return {(prompt.task, prompt.id): sha256 for prompt, sha256 in pairs if sha256}

    def asked(self) -> Iterator[tuple[Prompt, dict[str, str], Prompt | None, dict[str, str]]]:
        """The prompts, of a shard its own; what judges are asked of each; and its partner and what
        they are asked of that, if its first image makes a mismatched pair."""
        every, mine = [*self.prompts, *self.others], self._texts()
        of_pairs = self.partner_asks or [NOTHING] * len(self.prompts)
        for prompt, asks, place, of_pair in zip(
            self.prompts, self.asks, self.partner, of_pairs, strict=True
        ):
            if prompt.text not in mine:
                continue
            if place is None or not self.own:
                yield prompt, asks, None, NOTHING
            else:
                yield prompt, asks, every[place], of_pair

    def answering(self, prompt: Prompt, asks: Mapping[str, str]) -> tuple[str, ...]:
        """Which of a prompt's judges answer its questions by parts of its requirement."""
        if not self.by_parts or not has_parts(prompt):
            return ()
        return tuple(name for name in self.by_parts if name in asks)

    def n_images(self) -> int:
        """How many images are planned: prompts of one text share theirs."""
        most = Counter[str]()
        for prompt, *_ in self.asked():
            most[prompt.text] = max(most[prompt.text], self.samples[prompt.task])
        return most.total()

    def n_prompts(self) -> int:
        """How many prompts have images that are planned."""
        return len({(prompt.task, prompt.id) for prompt, *_ in self.asked()})

    def _texts(self) -> set[str]:
        """The texts of the shard's prompts, every n-th of them in the categories' order, so that
        shards are equal in size, and in each category. Prompts of one text share their images."""
        number, count = self.shard or (1, 1)
        groups = by_category(self.prompts).values()
        texts = dict.fromkeys(prompt.text for group in groups for prompt in group)
        return set(islice(texts, number - 1, None, count))


class Item(NamedTuple):
    """One planned image; `partner` is the prompt it is also held against, as a mismatched pair
    (first samples only: one pair a prompt carries the rate), and `partner_asks` what each of
    its judges is asked about that pair. `own` is whether the model judges it, and `answers` names
    the judges that answer its questions by parts of the requirement. `reference` is the sha256 of
    the prompt's reference image, and `other_reference` that of its partner's (of first samples,
    and empty where there is none); the prompt's questions are asked about both."""

    prompt: Prompt
    sample: int
    seed: int
    asks: Mapping[str, str]
    partner: Prompt | None
    partner_asks: Mapping[str, str]
    own: bool
    answers: tuple[str, ...] = ()
    reference: str = ""
    other_reference: str = ""

    def asked(self, judge: str) -> list[Prompt]:
        """The prompts that an outside judge holds the image against."""
        prompts = [self.prompt] if judge in self.asks else []
        return prompts + ([self.partner] if self.partner and judge in self.partner_asks else [])


@dataclass(frozen=True, slots=True)
class Prepared:
    """A checked command: nothing loaded, nothing written. `source` is the model for the engine, and
    `sources` are the judges, by name."""

    settings: RunSettings
    engine: Engine
    source: Source
    model: Model
    own: OwnJudge | None
    judges: list[Judge]
    sources: dict[str, Source]
    plan: Plan
    identity: dict[str, Any]
    changed: dict[str, object]
    """What the command changed of the model: keys of its recipe, its dtype."""
    references: Mapping[str, Reference]
    """The reference images by the sha256 of the file that a run folder has of them."""

    @property
    def path(self) -> Path:
        """The run folder."""
        made = self.model.name, self.identity, self.changed, self.settings.shard
        return folder_for(self.settings.out, *made)


def prepare(settings: RunSettings) -> Prepared:
    """Resolve and check everything a command names."""
    model, recipe, device = settings.model, settings.recipe, settings.device
    judges, only = settings.judges, settings.only
    out = Path(settings.out)
    if out.exists() and not out.is_dir():
        raise GapbenchError(f"--out {out} is a file; give a folder")
    if recipe and not isinstance(model, str):
        raise GapbenchError("recipe: give it to load_model; a model that is made keeps its own")
    adapter = as_model(model, device, settings.dtype, recipe)
    make = None
    if isinstance(model, str):
        make = partial(load_model, model, dtype=settings.dtype, recipe=recipe)
    source = Source(adapter, make, device)
    engine = make_engine(settings.engine, settings.workers, settings.ray_address, source)
    if wrong := misdescribed(adapter):
        raise GapbenchError(f"model {model if isinstance(model, str) else adapter.name}: {wrong}")
    require(adapter, ["generate"], "it cannot draw")
    own = None
    verdict = settings.verdict or usual_mode(adapter)
    if settings.reflect and verdict == "none":
        raise GapbenchError("--reflect draws again by own verdicts; leave out --verdict none")
    if verdict != "none":
        why = f"--verdict {verdict} needs it; with --verdict none only outside judges are asked"
        why = "--reflect draws again by own verdicts" if settings.reflect else why
        require(adapter, [needed(adapter, verdict)], why)
        own = OwnJudge(adapter, verdict)
    selected, skipped = selected_prompts(settings, adapter)
    prompts: list[Prompt] = []
    for _, of_task in selected:
        kept = [prompt for prompt in of_task if only is None or prompt.text in only]
        prompts += limited(kept, settings.limit)
    whole = [prompt for _, of_task in selected for prompt in of_task]
    partner, others = paired(prompts, whole, settings.mismatched, settings.seed)
    texts = len({prompt.text for prompt in prompts})
    if settings.shard and settings.shard.of > texts:
        raise GapbenchError(
            f"--shard {settings.shard}: there are only {counted(texts, 'prompt')}, so take fewer "
            "shards"
        )
    tasks_by_name = {task.name: task for task, _ in selected}
    loaded: dict[str, Judge] = {}
    asks: list[dict[str, str]] = []
    partner_asks: list[dict[str, str]] = []
    every = [*prompts, *others]
    for prompt, place in zip(prompts, partner, strict=True):
        usual = tasks_by_name[prompt.task].judge(prompt.category)
        specs = judges if judges is not None else [usual] if usual else []
        for spec in specs:
            if spec not in loaded:
                loaded[spec] = load_judge(spec, device)
        mine = [loaded[spec] for spec in specs]
        asks.append({judge.name: judge.question(prompt) for judge in mine})
        able = [judge for judge in mine if judge.any_prompt and place is not None]
        partner_asks.append({judge.name: judge.question(every[place or 0]) for judge in able})
    names = [judge.name for judge in loaded.values()]
    if len(set(names)) < len(names):
        raise GapbenchError(f"--judge {','.join(loaded)}: two of these are the same judge")
    references, stored = list[str](), dict[str, Reference]()
    if verdict == "questions":
        references, stored = references_of([task for task, _ in selected], every)
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
        left_out=skipped,
        unpinned=[
            *(each for task, _ in selected for each in task.unpinned()),
            *(judge.unpinned for judge in loaded.values() if judge.unpinned),
        ],
        scales={judge.name: judge.scale for judge in loaded.values()},
        thresholds={j.name: j.threshold for j in loaded.values() if j.threshold is not None},
        overalls={task.name: task.overalls for task, _ in selected if task.overalls},
        others=others,
        partner_asks=partner_asks,
        mismatched=settings.mismatched,
        by_parts=[j.name for j in loaded.values() if j.by_parts and verdict == "questions"],
        shard=settings.shard,
        reflect=settings.reflect,
        references=references,
    )
    if isinstance(adapter, ImagesModel):
        adapter.bind({(item.prompt.text, item.seed): item.sample for item in plan.items()})
    identity = {"model": adapter.fingerprint, "recipe": dict(adapter.recipe), "seed": settings.seed}
    changed = _changed(settings, adapter)
    sources = {j.name: Source(j, partial(load_judge, s), device) for s, j in loaded.items()}
    return Prepared(
        settings, engine, source, adapter, own, list(loaded.values()), sources, plan, identity,
        changed, stored,
    )  # fmt: skip


def _changed(settings: RunSettings, model: Model) -> dict[str, object]:
    """What differs from the model as it comes: keys of its recipe, its dtype."""
    if not isinstance(settings.model, str) or (not settings.recipe and settings.dtype == "auto"):
        return {}
    usual = as_model(settings.model, settings.device)
    changed: dict[str, object] = {
        key: model.recipe[key]
        for key in settings.recipe or ()
        if key not in usual.recipe or model.recipe[key] != usual.recipe[key]
    }
    return changed | ({} if model.dtype == usual.dtype else {"dtype": model.dtype})


def paired(
    prompts: Sequence[Prompt], whole: Iterable[Prompt], difficulty: Difficulty, seed: int
) -> tuple[list[int | None], list[Prompt]]:
    """For each prompt the index of its partner, and the partners that are not among the prompts,
    whose indices follow. `whole` are all prompts of their categories, whatever the limit is."""
    place = {(p.task, p.id): number for number, p in enumerate(prompts)}
    indices: list[int | None] = [None] * len(prompts)
    others: list[Prompt] = []
    categories = by_category(whole)
    for key, some in by_category(prompts).items():
        chosen = partners(some, categories[key], difficulty, seed)
        for prompt, other in zip(some, chosen, strict=True):
            if other is None:
                continue
            if (other.task, other.id) not in place:
                place[other.task, other.id] = len(prompts) + len(others)
                others.append(other)
            indices[place[prompt.task, prompt.id]] = place[other.task, other.id]
    return indices, others
