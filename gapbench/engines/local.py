"""The engine that works batches off in this process."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

T = TypeVar("T")


class Interrupted(Exception):  # noqa: N818 (no error)
    """Ctrl-C came; the batch in hand was finished and kept."""


def work(
    items: Sequence[T],
    batch_size: int,
    do: Callable[[Sequence[T]], None],
    advance: Callable[[int], None],
) -> None:
    """Call `do` on batches of `items`, in order, and `advance` with each batch's size.

    Ctrl-C is held back until the batch in hand is done, then raises Interrupted; a second one
    strikes at once.
    """
    with held_back() as asked:
        for start in range(0, len(items), batch_size):
            batch = items[start : start + batch_size]
            do(batch)
            advance(len(batch))
            if asked:
                raise Interrupted


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
