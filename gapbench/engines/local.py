"""The engine that works batches off in this process."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from time import monotonic
from types import FrameType
from typing import Final, Literal, TypeVar

from gapbench.models.base import Batches, Model
from gapbench.types import STOPS, Interrupted

T = TypeVar("T")
R = TypeVar("R")

BatchSize = int | Literal["auto"]
PATIENCE: Final = 10.0
"""Seconds that a batch may take: nothing is shown or stored meanwhile, and Ctrl-C has to wait."""
CHEAPER: Final = 0.75
"""Share of an item's seconds in a smaller batch under which a larger batch is worth its time."""


def work(
    items: Sequence[T],
    batch_size: BatchSize,
    do: Callable[[Sequence[T]], R],
    keep: Callable[[Sequence[T], R], None],
    advance: Callable[[int], None],
    batches: Batches = Model.batches,
) -> None:
    """Call `do` on batches of `items`, in order, `keep` with what it gave, and `advance` with each
    batch's size once it is kept.

    `keep` and `advance` run in a second thread while the next batch is computed. A batch that is
    too large for the memory is tried again in halves. "auto" begins with `batches.first` items and
    doubles, up to `batches.most`: while twice a batch's time is less than PATIENCE, and also while
    the time itself is less and larger batches make items cheaper. A batch that takes longer than
    PATIENCE is the last of its size, unless it is of the first one.

    Ctrl-C, SIGTERM and SIGHUP are held back until the batch in hand is kept, then Interrupted is
    raised; a second one strikes at once.
    """
    first, most = batches if batch_size == "auto" else (batch_size, batch_size)
    first = size = min(first, most)
    start, pace = 0, math.inf

    def store(batch: Sequence[T], made: R) -> None:
        keep(batch, made)
        advance(len(batch))

    with held_back() as asked, ThreadPoolExecutor(1) as second:
        stored = second.submit(lambda: None)
        try:
            while start < len(items) and not asked:
                batch, begun = items[start : start + size], monotonic()
                try:
                    made = do(batch)
                except (MemoryError, RuntimeError) as error:
                    if len(batch) == 1 or not out_of_memory(error):
                        raise
                    size = most = len(batch) // 2
                    continue
                start, seconds = start + len(batch), monotonic() - begun
                each = seconds / len(batch)
                if seconds < (PATIENCE if each < CHEAPER * pace else PATIENCE / 2):
                    size, pace = min(most, 2 * size), each
                elif seconds > PATIENCE and size > first:
                    size = most = max(first, size // 2)
                # Handed over before the last one's troubles can be raised: nothing is lost.
                before, stored = stored, second.submit(store, batch, made)
                before.result()
        finally:
            stored.result()
        if asked:
            raise Interrupted


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out; torch has a class for it on a GPU alone."""
    said = f"{type(error).__name__} {error}".lower()
    return any(words in said for words in ("outofmemory", "out of memory", "allocate memory"))


@contextmanager
def held_back() -> Iterator[list[int]]:
    """Hold back Ctrl-C, SIGTERM and SIGHUP: gives a list that is empty until one comes. A second
    one strikes. What the process ignores, as SIGHUP under nohup, it goes on to ignore."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked  # only the main thread gets signals
        return

    def note(number: int, _frame: FrameType | None) -> None:
        asked.append(number)
        restore()

    def restore() -> None:
        for each, handler in before.items():
            signal.signal(each, handler)

    before = {each: signal.getsignal(each) for each in STOPS}
    before = {each: handler for each, handler in before.items() if handler != signal.SIG_IGN}
    for each in before:
        signal.signal(each, note)
    try:
        yield asked
    finally:
        restore()
