"""Run folders of one model, recipe and seed as one: shards of a run, or runs of several tasks."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final

from gapbench.files import checksum, read_lines, with_checksum
from gapbench.runs.folder import RunFolder, folder_for, saying_how_to_resume
from gapbench.runs.listing import RESULTS, find_run
from gapbench.runs.plan import Plan
from gapbench.runs.records import R
from gapbench.runs.results import results
from gapbench.runs.run import LABELS, Run
from gapbench.runs.settings import Part, Shard
from gapbench.runs.whole import joined, parts_of, stored_plan, whole
from gapbench.types import GapbenchError, Generation, Refusal, Verdict

_BATCH: Final = 1000
"""Records that are in memory at a time."""


def merge(runs: Sequence[str | Path], out: str | Path = "runs") -> Run:
    """Join run folders (as `find_run` takes them) in the folder under `out` that a run without
    shards has; what it holds already stays. Images are linked, or copied to another file system.

    Records that are there already are not added again, so the same call again changes nothing.
    Memory holds a number for each record. Raises GapbenchError, before anything is written, for
    runs of another model, recipe, seed or version of a package, task or judge, and for a shard that
    is missing, or there twice, or a damaged record.
    """
    places = {path.resolve(): path for path in map(find_run, runs)}
    sources = [RunFolder.open(path) for path in places.values()]
    meta = sources[0].meta
    changed = meta.get("model_about", {}).get("changed", {})
    path = folder_for(out, meta["model"], meta["identity"], changed)
    sources = [source for source in sources if source.path.resolve() != path.resolve()]
    there = [RunFolder.open(path)] if (path / "run.json").exists() else []
    _check_alike([*there, *sources])
    plans = _plans([*there, *sources])
    for source in sources:  # a damaged line is told before anything is written
        every = chain(source.each(Generation), source.each(Refusal), source.each(Verdict))
        deque(every, maxlen=0)
    about = {k: v for k, v in meta.items() if k not in ("format", "model", "identity")}
    folder = RunFolder.create(out, meta["model"], meta["identity"], about, changed)
    with folder.lock(), saying_how_to_resume(path):
        if any(source.packed for source in sources):
            folder.pack()
        plan = plans[0]
        for each in plans[1:]:
            plan = joined(plan, each)
        folder.write("plan.json", with_checksum(asdict(plan)))
        add(folder, sources, Generation)
        references = {sha256 for part in plans for sha256 in part.references if sha256}
        for source in sources:
            folder.take_images(source, references)
        add(folder, sources, Refusal)
        add(folder, sources, Verdict)
        add_labels(folder, sources)
        _add_checks(folder, sources)
        merged = Run(folder, whole(plan, Part()))
        folder.write(RESULTS, results(merged))
    return merged


def _check_alike(sources: Sequence[RunFolder]) -> None:
    """Raises GapbenchError where runs differ in more than what was asked of them."""
    known: dict[str, tuple[Any, Path]] = {}
    for source in sources:
        differs = []
        for name, value in _facts(source).items():
            first, where = known.setdefault(name, (value, source.path))
            if first != value:
                differs.append(f"{name} is {value}, not {first} as in {where}")
        if differs:
            raise GapbenchError(f"{source.path} cannot be merged: {'; '.join(differs)}")


def _facts(source: RunFolder) -> dict[str, Any]:
    """What must not differ between runs that are merged, where both have it."""
    meta, plan = source.meta, whole(stored_plan(source), Part())
    about = meta.get("model_about", {})
    facts = {"the model": meta["model"], "its fingerprint": meta["identity"].get("model")}
    facts |= {k: v for k, v in meta["identity"].items() if k != "model"}
    facts |= {"the dtype": about.get("dtype")}
    versions = {**meta.get("versions", {}), **(about.get("versions") or {})}
    facts |= {f"the version of {package}": version for package, version in versions.items()}
    facts |= {f"the version of task {task}": version for task, version in plan.tasks.items()}
    return facts | {f"the fingerprint of judge {j}": print_ for j, print_ in plan.judges.items()}


def _plans(sources: Sequence[RunFolder]) -> list[Plan]:
    """The plans of all commands, those of shards as plans of the whole run. Raises GapbenchError
    where a shard of one is missing or there twice."""
    plans: list[tuple[Plan, dict[Shard, Path]]] = []
    for source in sources:
        for part in parts_of(stored_plan(source)):
            plan = replace(part, shard=None)
            there = next((there for known, there in plans if known == plan), None)
            if there is None:
                plans.append((plan, there := {}))
            if part.shard is None:
                continue
            if part.shard in there:
                raise GapbenchError(
                    f"{there[part.shard]} and {source.path} are both shard {part.shard}; name one"
                )
            there[part.shard] = source.path
    for plan, there in plans:
        for count in {shard.of for shard in there}:
            missing = [n for n in range(1, count + 1) if Shard(n, count) not in there]
            if missing:
                where = next(iter(there.values()))
                others = [other for other, shards in plans if shards and other != plan]
                raise GapbenchError(
                    f"{', '.join(f'{n}/{count}' for n in missing)}: {len(missing)} of {count} "
                    f"shards missing beside {where}" + _unlike(plan, others)
                )
    return [plan for plan, _ in plans]


def _unlike(plan: Plan, others: Sequence[Plan]) -> str:
    """In what the plans of other shards differ, which may be why some are missing."""
    keys = [k for k, v in asdict(plan).items() if any(asdict(o)[k] != v for o in others)]
    return f"; other shards were asked otherwise ({', '.join(keys)})" if keys else ""


def add(
    folder: RunFolder,
    sources: Sequence[RunFolder],
    kind: type[R],
    wanted: Callable[[R], bool] = lambda _record: True,
) -> None:
    """Add the records of a kind that are wanted and not there, and first their files."""
    there = {_number(record) for record in folder.each(kind)}
    for source in sources:
        records = filter(wanted, source.each(kind))
        while batch := list(islice(records, _BATCH)):
            new = {number: r for r in batch if (number := _number(r)) not in there}
            folder.take(source, new.values())
            folder.append(new.values())
            there.update(new)


def _number(record: Generation | Refusal | Verdict) -> int:
    return int(checksum(asdict(record)), 16)


def add_labels(folder: RunFolder, sources: Sequence[RunFolder]) -> None:
    """Add the labels of people that are not there."""
    files = [source.path / LABELS for source in [folder, *sources]]
    lines = dict.fromkeys(line for file in files for line in read_lines(file, json.dumps))
    if lines:
        folder.write_bytes(LABELS, "".join(f"{line}\n" for line in lines).encode())


def _add_checks(folder: RunFolder, sources: Sequence[RunFolder]) -> None:
    """Add what checks found, and that runs were made on GPUs which may round otherwise."""
    runs = [Run(each, stored_plan(each)) for each in [*sources, folder]]
    checks = {what: warning for run in runs for what, warning in run.checks().items()}
    gpus = [run.folder.meta.get("model_about", {}).get("gpu") for run in runs]
    if other := next((gpu for gpu in gpus if gpu != gpus[0]), None):
        checks["the GPU"] = f"runs of {gpus[0]} and {other} are merged, which may round otherwise"
    if checks:
        folder.write("checks.json", checks)
