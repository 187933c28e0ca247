"""What an engine is: given what is missing of a stage and what makes a model or a judge, it yields
rows as they come."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Literal, Protocol, TypeVar

from gapbench.engines.rows import Rows, tried
from gapbench.judges.base import Judge
from gapbench.models.base import Model
from gapbench.types import GapbenchError

S = TypeVar("S")
T = TypeVar("T")
BatchSize = int | Literal["auto"]


@dataclass(frozen=True, slots=True)
class Source:
    """A model or a judge: as it is in this process, without its weights, and how another process
    makes its own: `make` takes a device and can be pickled; None where nobody else can."""

    here: Model | Judge
    make: Callable[[str], Model | Judge] | None = None
    device: str = "auto"


@dataclass(frozen=True, slots=True)
class Job(Generic[S, T]):
    """What a stage asks. It can be pickled, and so can its items and rows.

    `who` is asked ("model janus-mini"), `call` gives a row for each item of a batch, `check` raises
    ValueError for what is no row, and `told` names an item in an error. An engine whose workers are
    other processes calls `away` there, with the rows of a batch by their places: what it gives
    travels in their stead, and a note for the user, if any.
    """

    who: str
    call: Callable[[Any, Sequence[S]], Sequence[T]]
    check: Callable[[T], None] = lambda _row: None
    told: Callable[[S], str] = str
    away: Callable[[dict[int, T]], tuple[dict[int, T], str | None]] | None = None

    def by(self, worker: Model | Judge, batch: Sequence[S]) -> Done[T]:
        """The rows that a model or a judge gives for a batch, as `tried` does."""
        begun = time.perf_counter()
        rows = tried(self.who, partial(self.call, worker), batch, self.check)
        return Done(rows, time.perf_counter() - begun)


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """What a batch gave, and the seconds that its worker took."""

    rows: Rows[T]
    seconds: float


class Engine(Protocol):
    """Where batches are worked off. What a row is does not depend on the engine."""

    def load(self, source: Source) -> None:
        """Bring a model's weights to where they are used. Raises GapbenchError where it cannot."""

    def results(
        self,
        source: Source,
        job: Job[S, T],
        items: Sequence[S],
        batch_size: BatchSize,
        stop: Collection[object] = (),
    ) -> Iterator[tuple[Sequence[S], Done[T]]]:
        """Each item once, in batches, in any order. Once `stop` is not empty, batches that are in
        hand are ended and no other is begun. Raises GapbenchError where the work cannot go on, once
        all that was computed is given."""

    def beside(self, judge: Source) -> Engine | None:
        """Another engine, where a judge works while this one works off what was loaded here last;
        None where there is no room for it."""

    def release(self, source: Source) -> None:
        """Free the weights."""

    def close(self) -> None:
        """End what was started."""


def single(engine: Engine, source: Source, job: Job[S, T], item: S) -> T:
    """The row of one item. Raises GapbenchError where it fails."""
    [(_, done)] = engine.results(source, job, [item], 1)
    if done.rows.stop is not None:
        raise done.rows.stop
    if done.rows.failed:
        raise GapbenchError(done.rows.failed[0].reason)
    return done.rows.done[0]
