"""Batches through a model or a judge: what comes back is checked here, row by row."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from gapbench.files import blamed
from gapbench.types import Failure, GapbenchError, Unfinished

S = TypeVar("S")
T = TypeVar("T")
HOPELESS: Final = 8
"""So many rows that fail one after another end a stage: the cause is not theirs."""
LOG: Final = logging.getLogger("gapbench")


@dataclass(slots=True)
class Rows(Generic[T]):
    """What a batch gave, by place in it, why other rows failed, and what stopped it, if anything
    did."""

    done: dict[int, T] = field(default_factory=dict)
    failed: dict[int, Failure] = field(default_factory=dict)
    stop: GapbenchError | None = None


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out; torch has a class for it on a GPU alone."""
    said = f"{type(error).__name__} {error}".lower()
    return any(words in said for words in ("outofmemory", "out of memory", "allocate memory"))


def tried(
    who: str,
    call: Callable[[Sequence[S]], Sequence[T]],
    batch: Sequence[S],
    check: Callable[[T], None],
) -> Rows[T]:
    """What `call` gives for a batch, each row as `check` takes it.

    A row that `check` raises ValueError for has failed. Where `call` raises, each row is tried
    alone, so that one that crashes costs only itself. Raises GapbenchError where there are not as
    many rows as were asked for: it is not known then whose they are.
    """
    rows: Rows[T] = Rows()
    try:
        gave = call(batch)
    except Unfinished as error:
        rows.done, rows.failed = dict(error.done), dict(error.failed)
        rows.stop = error if len(rows.done) + len(rows.failed) < len(batch) else None
    except (Exception, SystemExit) as error:
        if isinstance(error, Exception) and out_of_memory(error):
            raise
        if len(batch) > 1:
            return _alone(who, call, batch, check)
        LOG.debug("%s failed", who, exc_info=error)
        rows.failed[0] = Failure(blamed(error))
    else:
        if not hasattr(gave, "__len__") or len(gave) != len(batch):
            count = len(gave) if hasattr(gave, "__len__") else f"a {type(gave).__name__}, not"
            raise GapbenchError(f"{who} gave {count} rows for {len(batch)}; one is needed for each")
        rows.done = dict(enumerate(gave))
    for place, row in list(rows.done.items()):
        try:
            check(row)
        except ValueError as error:
            del rows.done[place]
            rows.failed[place] = Failure(f"{who} gave {error}")
    return rows


def _alone(
    who: str,
    call: Callable[[Sequence[S]], Sequence[T]],
    batch: Sequence[S],
    check: Callable[[T], None],
) -> Rows[T]:
    rows: Rows[T] = Rows()
    for place, row in enumerate(batch):
        one = tried(who, call, [row], check)
        rows.done.update((place, done) for done in one.done.values())
        rows.failed.update((place, failed) for failed in one.failed.values())
        rows.stop = one.stop
        if rows.stop or (not rows.done and len(rows.failed) == HOPELESS):
            break
    return rows
