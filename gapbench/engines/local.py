"""The engine that works batches off in this process."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from time import monotonic
from typing import Any, Final, TypeVar

from gapbench.engines.base import BatchSize, Done, Engine, Job, Source
from gapbench.engines.keep import kept
from gapbench.engines.rows import out_of_memory
from gapbench.models.base import Batches, Model

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")

PATIENCE: Final = 10.0
"""Seconds that a batch may take: nothing is shown or stored meanwhile, and Ctrl-C has to wait."""
CHEAPER: Final = 0.75
"""Share of an item's seconds in a smaller batch under which a larger batch is worth its time."""


class Pace:
    """How many items the next batch has.

    "auto" begins with `batches.first` items and doubles, up to `batches.most`: while twice a
    batch's time is less than PATIENCE, and also while the time itself is less and larger batches
    make items cheaper. A batch that takes longer than PATIENCE is the last of its size, unless it
    is of the first one.
    """

    def __init__(self, batch_size: BatchSize, batches: Batches) -> None:
        first, self._most = batches if batch_size == "auto" else (batch_size, batch_size)
        self.first = self.size = min(first, self._most)
        self._each = math.inf

    def took(self, count: int, seconds: float) -> None:
        """Learn from a batch; one that was smaller, as the last one is, tells nothing."""
        if count < self.size:
            return
        each = seconds / count
        if seconds < (PATIENCE if each < CHEAPER * self._each else PATIENCE / 2):
            self.size, self._each = min(self._most, 2 * self.size), each
        elif seconds > PATIENCE and self.size > self.first:
            self.size = self._most = max(self.first, self.size // 2)

    def too_large(self, count: int) -> None:
        """Never again take a batch of so many: memory ran out."""
        self._most = min(self._most, count // 2)
        self.size = min(self.size, self._most)


class Local:
    """Works batches off in this process, one after another and in order."""

    def load(self, source: Source) -> None:
        model: Any = source.here  # somebody's adapter need not be a Model
        model.load()

    def results(
        self,
        source: Source,
        job: Job[S, T],
        items: Sequence[S],
        batch_size: BatchSize,
        stop: Collection[object] = (),
    ) -> Iterator[tuple[Sequence[S], Done[T]]]:
        pace = Pace(batch_size, source.here.batches)
        return in_batches(items, pace, partial(job.by, source.here), stop)

    def beside(self, judge: Source) -> Engine | None:
        here: Any = judge.here
        return Local() if here.remote else None

    def release(self, source: Source) -> None:
        source.here.release()

    def close(self) -> None:
        """Nothing was started."""


def in_batches(
    items: Sequence[S], pace: Pace, do: Callable[[Sequence[S]], R], stop: Collection[object]
) -> Iterator[tuple[Sequence[S], R]]:
    """Batches of `items`, in order, and what `do` makes of each, until `stop` is not empty. One
    that is too large for the memory is tried again in halves."""
    start = 0
    while start < len(items) and not stop:
        batch, begun = items[start : start + pace.size], monotonic()
        try:
            made = do(batch)
        except (MemoryError, RuntimeError) as error:
            if len(batch) == 1 or not out_of_memory(error):
                raise
            pace.too_large(len(batch))
            continue
        start += len(batch)
        pace.took(len(batch), monotonic() - begun)
        yield batch, made


def work(
    items: Sequence[S],
    batch_size: BatchSize,
    do: Callable[[Sequence[S]], R],
    keep: Callable[[Sequence[S], R], None],
    advance: Callable[[int], None],
    batches: Batches = Model.batches,
) -> None:
    """Call `do` on batches of `items`, in order and as Pace says, `keep` with what it gave, and
    `advance` with each batch's size once it is kept. Signals wait as `kept` says."""
    kept(partial(in_batches, items, Pace(batch_size, batches), do), keep, advance)
