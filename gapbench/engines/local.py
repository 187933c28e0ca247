"""The engine that works batches off in this process."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from types import FrameType
from typing import Final, Literal, TypeVar

T = TypeVar("T")
R = TypeVar("R")

BatchSize = int | Literal["auto"]
FIRST: Final = 64


class Interrupted(Exception):  # noqa: N818 (no error)
    """Ctrl-C came; the batch in hand was finished and kept."""


def work(
    items: Sequence[T],
    batch_size: BatchSize,
    do: Callable[[Sequence[T]], R],
    keep: Callable[[Sequence[T], R], None],
    advance: Callable[[int], None],
    most: int = FIRST,
    first: int = FIRST,
) -> None:
    """Call `do` on batches of `items`, in order, `keep` with what it gave, and `advance` with each
    batch's size once it is kept.

    `keep` runs in a second thread while the next batch is computed. A batch that is too large for
    the memory is tried again in halves; "auto" begins with `first` items, or `most` if that is
    less, and doubles as long as that fits, up to `most`.

    Ctrl-C is held back until the batch in hand is kept, then raises Interrupted; a second one
    strikes at once.
    """
    size, limit = (min(first, most), most) if batch_size == "auto" else (batch_size, batch_size)
    start, keeping = 0, _nothing
    with held_back() as asked, ThreadPoolExecutor(1) as second:
        try:
            while start < len(items) and not asked:
                batch = items[start : start + size]
                try:
                    made = do(batch)
                except (MemoryError, RuntimeError) as error:
                    if len(batch) == 1 or not _out_of_memory(error):
                        raise
                    size = limit = len(batch) // 2
                    continue
                start, size = start + len(batch), min(limit, 2 * size)
                # Handed over before the last one's troubles can be raised: nothing is lost.
                future = second.submit(keep, batch, made)
                before, keeping = keeping, _kept(future, advance, len(batch))
                before()
        finally:
            keeping()
        if asked:
            raise Interrupted


def _nothing() -> None:
    pass


def _kept(future: Future[None], advance: Callable[[int], None], count: int) -> Callable[[], None]:
    def wait() -> None:
        future.result()
        advance(count)

    return wait


def _out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out; torch has a class for it on a GPU alone."""
    said = f"{type(error).__name__} {error}".lower()
    return any(words in said for words in ("outofmemory", "out of memory", "allocate memory"))


@contextmanager
def held_back() -> Iterator[list[int]]:
    """Hold back Ctrl-C: gives a list that is empty until it comes. A second one strikes."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked  # only the main thread gets signals
        return

    def note(number: int, _frame: FrameType | None) -> None:
        asked.append(number)
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)
