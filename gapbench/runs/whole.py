"""All that was ever asked of a run folder, as one plan, and parts of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from gapbench.files import without_checksum
from gapbench.judges.own import MODES, NAMES
from gapbench.runs.folder import RunFolder
from gapbench.runs.plan import Item, Plan
from gapbench.runs.settings import Part
from gapbench.tasks.spec import explain
from gapbench.types import GapbenchError, Prompt


@dataclass(frozen=True, slots=True)
class Whole(Plan):
    """The plans of several commands as one.

    A prompt has the images and judges of every plan, its first judge first. Of two versions of a
    task, prompt or judge the later counts, and so does the later choice of mismatched pairs.
    `partner` is empty: `items` has the pairs.
    """

    parts: Sequence[Plan] = ()
    most: int | None = None
    """Images of a prompt that count, None for all."""

    def items(self) -> list[Item]:
        kept = {(p.task, p.id): p for p in self.prompts}
        merged: dict[tuple[str, str, int], Item] = {}
        for part in self.parts:
            own = part.own == self.own != ""
            pairs = own and part.mismatched == self.mismatched
            for item in part.items():
                task, number, sample = key = (item.prompt.task, item.prompt.id, item.sample)
                if kept.get((task, number)) != item.prompt or part.tasks[task] != self.tasks[task]:
                    continue
                if self.most is not None and sample >= self.most:
                    continue
                item = item._replace(own=own)
                if not own:
                    item = item._replace(reference="")
                if not pairs:
                    item = item._replace(partner=None, partner_asks={}, other_reference="")
                if old := merged.get(key):
                    item = item._replace(
                        asks={**old.asks, **item.asks},
                        partner=item.partner or old.partner,
                        partner_asks={**old.partner_asks, **item.partner_asks},
                        own=item.own or old.own,
                        answers=tuple(dict.fromkeys([*old.answers, *item.answers])),
                        reference=item.reference or old.reference,
                        other_reference=item.other_reference or old.other_reference,
                    )
                merged[key] = item
        places = {key: place for place, key in enumerate(kept)}
        return [merged[key] for key in sorted(merged, key=lambda k: (places[k[:2]], k[2]))]


def joined(earlier: Plan | None, new: Plan) -> Plan:
    """What a folder keeps once a command asked for `new`: it and the plans of earlier commands, of
    which those that ask for nothing else are dropped. The reference images of `new` take the place
    of others of its prompts."""
    if earlier:
        earlier = _referring(earlier, new)
    parts = parts_of(earlier) if earlier else []
    if earlier and new in parts:
        return earlier
    asked = _asked(new)
    if earlier and any(asked <= _asked(part) for part in parts):
        return earlier
    covered = [_asked(part) <= asked for part in parts]
    place = covered.index(True) if any(covered) else len(parts)
    kept = [part for part, drop in zip(parts, covered, strict=True) if not drop]
    kept.insert(place, new)
    return replace(kept[-1], earlier=kept[:-1])


def _referring(earlier: Plan, new: Plan) -> Plan:
    """A folder's plan with the reference images that its prompts have now; itself where nothing
    changed."""
    if new.own != NAMES["questions"]:
        return earlier
    now = {(prompt.task, prompt.id): "" for prompt in new.prompts} | new.referenced()
    parts = []
    for part in (old := parts_of(earlier)):
        every = [*part.prompts, *part.others][: len(part.references)]
        shown = [
            now.get((prompt.task, prompt.id), sha256)
            for prompt, sha256 in zip(every, part.references, strict=True)
        ]
        parts.append(replace(part, references=shown if any(shown) else []))
    return earlier if parts == old else replace(parts[-1], earlier=parts[:-1])


def parts_of(plan: Plan) -> list[Plan]:
    """The plans of a folder's commands, the earliest first."""
    return [*plan.earlier, replace(plan, earlier=[])]


def stored_plan(folder: RunFolder) -> Plan:
    """What the commands asked of a folder. Raises GapbenchError where that cannot be read."""
    raw = folder.read("plan.json")
    try:
        return Plan.from_json(without_checksum(raw))
    except ValueError as error:
        raise GapbenchError(
            f"{folder.path / 'plan.json'}: broken ({explain(error)}); run again"
        ) from error


def whole(plan: Plan, wanted: Part) -> Plan:
    """All that a folder's plan asks for, or a part of it. Raises GapbenchError for a part that
    nobody asked for."""
    parts, tasks, samples, own = parts_of(plan), wanted.tasks, wanted.samples, wanted.own
    if len(parts) == 1 and wanted == Part():
        return parts[0]
    versions = {task: version for part in parts for task, version in part.tasks.items()}
    latest = {
        (p.task, p.id): p
        for part in parts
        for p in part.prompts
        if part.tasks[p.task] == versions[p.task]
    }
    fullest = sorted(parts, key=lambda part: -len(part.prompts))  # it knows the tasks' order
    order = dict.fromkeys((p.task, p.id) for part in fullest for p in part.prompts)
    kept = _selected([latest[key] for key in order if key in latest], tasks)
    asks: dict[tuple[str, str], dict[str, str]] = {(p.task, p.id): {} for p in kept}
    for part in parts:
        for prompt, asked in zip(part.prompts, part.asks, strict=True):
            if latest.get((prompt.task, prompt.id)) == prompt:
                asks.get((prompt.task, prompt.id), {}).update(asked)
    asked_judges = {judge for each in asks.values() for judge in each}
    modes = {part.own: part for part in parts if part.own}
    name = NAMES[own] if own else next((each for each in NAMES.values() if each in modes), "")
    if own and name not in modes:
        there = ", ".join(MODES[each] for each in modes) or "none"
        raise GapbenchError(f"--own {own}: nobody asked for such own verdicts; there are: {there}")
    held = {prompt.task for prompt in kept}
    merged: dict[str, Any] = {field.name: getattr(plan, field.name) for field in fields(Plan)}
    merged |= {
        "tasks": {task: version for task, version in versions.items() if task in held},
        "prompts": kept,
        "partner": [None] * len(kept),
        "asks": list(asks.values()),
        "samples": {
            task: min(samples or most, most)
            for task in versions
            for most in [max(part.samples.get(task, 0) for part in parts)]
        },
        "judges": {
            judge: print_
            for part in parts
            for judge, print_ in part.judges.items()
            if judge in asked_judges
        },
        "own": name,
        "own_fingerprint": modes[name].own_fingerprint if name else "",
        "mismatched": modes[name].mismatched if name else plan.mismatched,
        "reflect": max((p.reflect for p in parts if p.own == name and p.reflect), default=None),
        "by_parts": list(
            dict.fromkeys(
                judge for part in parts for judge in part.by_parts if judge in asked_judges
            )
        ),
        "earlier": [],
        "references": [],
        "others": (),
        "partner_asks": (),
    }
    for field in ("scales", "thresholds", "overalls"):
        merged[field] = {k: v for part in parts for k, v in getattr(part, field).items()}
    merged["overalls"] = {k: v for k, v in merged["overalls"].items() if k in held}
    left_out = [
        each for part in parts for each in part.left_out if each.partition(": ")[0] not in versions
    ]
    merged["left_out"] = [] if tasks else list(dict.fromkeys(left_out))
    merged["unpinned"] = list(dict.fromkeys(each for part in parts for each in part.unpinned))
    return Whole(**merged, parts=parts, most=samples)


def _selected(prompts: Sequence[Prompt], tasks: Sequence[str] | None) -> list[Prompt]:
    """The prompts that selections name."""
    if tasks is None:
        return list(prompts)
    kept: dict[tuple[str, str], Prompt] = {}
    for selection in tasks:
        folder = Path(selection)
        name = folder.resolve().name if (folder / "task.yaml").is_file() else selection
        mine = {
            (p.task, p.id): p
            for p in prompts
            if name in ("all", p.tier, p.task, f"{p.task}/{p.category}", f"{p.task}/{p.tier}")
        }
        if not mine:
            there = ", ".join(dict.fromkeys(f"{p.task}/{p.category}" for p in prompts))
            raise GapbenchError(f"--tasks {selection}: nobody asked for it; there are: {there}")
        kept |= mine
    return [prompt for prompt in prompts if (prompt.task, prompt.id) in kept]


def _asked(plan: Plan) -> Counter[tuple[object, ...]]:
    """All that a plan asks for: images of a prompt and verdicts on them, and of how many images."""
    asked, references = Counter[tuple[object, ...]](), plan.referenced()
    for prompt, asks, partner, of_pair in plan.asked():
        image = (prompt.task, plan.tasks[prompt.task], prompt.id, prompt.text, plan.seed)
        asked[image] = count = plan.samples[prompt.task]
        for judge, question in asks.items():
            asked[*image, judge, question, plan.judges[judge]] = count
        for judge, question in of_pair.items():
            key = (*image, judge, question, plan.judges[judge])
            asked[key] = max(asked[key], 1)
        if plan.own:
            pair = (partner.question, plan.mismatched) if partner else None
            own = (*image, plan.own_question(prompt), plan.own_fingerprint)
            asked[*own, "the first", pair] = 1
            asked[*own, "others"] = count - 1
        if plan.reflect:
            for print_ in ("", *(plan.judges[judge] for judge in asks)):
                asked[*image, "again", plan.own_fingerprint, print_] = plan.reflect
        for judge in plan.answering(prompt, asks):
            asked[*image, "questions", judge, plan.judges[judge]] = count
        if reference := references.get((prompt.task, prompt.id)):
            other = references.get((partner.task, partner.id)) if partner else None
            asked[*image, "reference", reference, other, plan.own_fingerprint] = 1
    return asked
