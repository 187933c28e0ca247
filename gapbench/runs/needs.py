"""What tasks, models and judges need from elsewhere, and fetching it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gapbench.fetch.hub import Checkpoint, Unreachable, fetch, present
from gapbench.fetch.libraries import is_offline
from gapbench.fetch.sources import Source, adopt, download, have
from gapbench.judges import load_judge
from gapbench.judges.base import Judge
from gapbench.models.entry import DIFFUSERS, pipeline_checkpoint
from gapbench.models.registry import MODELS
from gapbench.models.workers.environment import prepare_worker, prepared
from gapbench.tasks.copies import Copy
from gapbench.tasks.task import Task, selected_tasks
from gapbench.types import GapbenchError

Progress = Callable[[str, int], Callable[[int], None]]
"""Told (file, bytes in all); returns what to call with the bytes that came."""
UNASKED: Final = 10_000_000_000
"""Bytes above which a run does not fetch what a task lacks that was not named."""


@dataclass(frozen=True, slots=True)
class Need:
    """A file, a checkpoint or a data set, and what wants it."""

    wanted_by: str
    item: Source | Checkpoint | Copy

    @property
    def name(self) -> str:
        """As a person would look for it."""
        if isinstance(self.item, Source):
            return self.item.name
        return self.item.dataset if isinstance(self.item, Copy) else self.item.repo

    @property
    def pin(self) -> str | None:
        """What says which bytes it is, None where nothing does before it is here."""
        if isinstance(self.item, Checkpoint):
            return f"commit {self.item.revision[:12]}" if self.item.pinned else None
        if isinstance(self.item, Copy):
            return f"sha256 {digest[:12]}" if (digest := self.item.digest()) else None
        kind, _, digest = self.item.pin.rpartition(" ")
        return f"{kind} {digest[:12]}"

    def ready(self) -> bool:
        """Whether it is here, whole and unaltered."""
        if isinstance(self.item, Copy):
            return self.item.digest() is not None
        return have(self.item) if isinstance(self.item, Source) else present(self.item)

    def fetch(self, progress: Progress) -> None:
        """Bring it here. Raises GapbenchError, which says what to do, where that fails."""
        if isinstance(self.item, Source):
            download(self.item, progress(self.name, self.item.bytes))
        elif isinstance(self.item, Copy):
            self.item.fetch()
        else:
            fetch(self.item)


def needs(
    tasks: Sequence[str], judges: Sequence[str] | None, models: Sequence[str] = ()
) -> list[Need]:
    """What the named models and tasks, and the tasks' own judges or the named ones, need; each
    thing once.

    Raises GapbenchError for an unknown name.
    """
    wanted: dict[Source | Checkpoint | Copy, str] = {}
    for name in models:
        if name.startswith(DIFFUSERS):
            wanted.setdefault(pipeline_checkpoint(name), f"model {name}")
            continue
        if name not in MODELS:
            raise GapbenchError(f"--model {name}: no model to fetch; there are {', '.join(MODELS)}")
        for needed in MODELS[name].needs.values():
            wanted.setdefault(needed, f"model {name}")
    specs = dict.fromkeys(judges or ())
    for task, categories in selected_tasks(tasks) if tasks else ():
        for source in task.sources():
            wanted.setdefault(source, f"task {task.name}")
        for copy in task.copies():
            wanted.setdefault(copy, f"task {task.name}")
        if judges is None:
            specs |= dict.fromkeys(j for c in categories if (j := task.judge(c)))
    for spec in specs:
        try:
            items = load_judge(spec).needs
        except Unreachable as error:
            items = error.needs
        for item in items:
            wanted.setdefault(item, f"judge {spec}")
    return [Need(who, item) for item, who in wanted.items()]


def obtain(
    task: Task, judges: Iterable[Judge], named: bool, begin: Callable[[str], Callable[[int], None]]
) -> None:
    """Fetch what a task and these judges lack; `begin` is told the name of each thing, and what it
    gives is called with 1 when that is here.

    Raises GapbenchError where that fails; for a task that was not named it also raises where much
    is missing or the process is offline, and says what is missing, how large it is, and which
    command brings it.
    """
    data: list[Source | Copy] = [*task.sources(), *task.copies()]
    wanted = [Need("its prompts", item) for item in data]
    wanted += [Need(f"judge {judge.name}", item) for judge in judges for item in judge.needs]
    missing = [need for need in wanted if not need.ready()]
    sizes = Counter[str]()
    for need in missing:
        sizes[need.wanted_by] += need.item.bytes
    lacks = ", ".join(f"{who} ({_size(count)})" for who, count in sizes.items())
    how = f"`gapbench prepare --tasks {task.name}` brings it"
    if not named and sizes.total() > UNASKED:
        raise GapbenchError(f"{lacks}: too large to fetch unasked; {how}")
    for need in missing:
        advance = _silent if is_offline() else begin(need.name)
        try:
            need.fetch(lambda _name, _size: _silent)
            advance(1)
        except GapbenchError as error:
            if named:
                raise
            why = "offline" if is_offline() else str(error).partition(";")[0]
            raise GapbenchError(f"{lacks}: not here ({why}); {how}") from error


def _size(count: int) -> str:
    if not count:
        return "unknown size"
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"


def _silent(_count: int) -> None:
    pass


def bring(wanted: Iterable[Need], data: Path | None, progress: Progress) -> None:
    """Fetch everything that is not here, first from a folder of one's own copies.

    Raises GapbenchError at the end. It names each thing that is missing and where to put it.
    """
    wanted = list(wanted)
    if data is not None:
        for need in wanted:
            if isinstance(need.item, Copy):  # also where one is here: it may be another
                need.item.adopt(data)
    missing = [need for need in wanted if not need.ready()]
    if data is not None:
        adopt([need.item for need in missing if isinstance(need.item, Source)], data)
        missing = [need for need in missing if not need.ready()]
    troubles = []
    for need in missing:
        try:
            need.fetch(progress)
        except GapbenchError as error:
            troubles.append(str(error))
    if troubles:
        raise GapbenchError("; ".join(troubles))


def bring_judge(judge: Judge) -> None:
    """Fetch what a judge lacks. Raises GapbenchError where it could not judge."""
    needs = [Need(f"judge {judge.name}", item) for item in judge.needs]
    bring(needs, None, lambda _name, _size: _silent)
    judge.check_ready()


def workers(models: Sequence[str], python: Path | None) -> dict[str, bool]:
    """Those of the named models that run as workers, and whether source and environment are here.

    Raises GapbenchError where an interpreter is named and no such model.
    """
    named = {name: MODELS[name] for name in models if name in MODELS}
    entries = {name: entry for name, entry in named.items() if entry.runs == "worker"}
    if python is not None and not entries:
        raise GapbenchError(f"--worker-python {python}: name a worker's model by --model")
    return {name: prepared(name, entry) for name, entry in entries.items()}


def bring_workers(names: Iterable[str], python: Path | None, say: Callable[[str], None]) -> None:
    """Fetch workers' sources and make their environments, or take an existing one."""
    for name in names:
        prepare_worker(name, MODELS[name], python, say)
