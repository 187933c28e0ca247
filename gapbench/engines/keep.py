"""Keeping results as they come: one writer, in a thread of its own, and what Ctrl-C waits for."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from gapbench.types import STOPS, Interrupted

T = TypeVar("T")
R = TypeVar("R")


def kept(
    results: Callable[[list[object]], Iterable[tuple[Sequence[T], R]]],
    keep: Callable[[Sequence[T], R], None],
    advance: Callable[[int], None],
    asked: list[object] | None = None,
) -> None:
    """Call `keep` with each batch of `results` and what it gave, and `advance` with its size then.

    Both run in a second thread while the next batch is computed. `results` gets a list and begins
    no further batch once that is not empty: where `keep` raised, or where Ctrl-C, SIGTERM or SIGHUP
    came; in another thread than the main one, which gets no signals, the list is `asked`. What is
    in hand then is kept before that error, or Interrupted, is raised. A second Ctrl-C strikes at
    once.
    """
    trouble: list[Exception] = []

    def store(batch: Sequence[T], made: R) -> None:
        keep(batch, made)
        advance(len(batch))

    with held_back(asked) as stop, ThreadPoolExecutor(1) as second:
        stored = second.submit(lambda: None)
        try:
            for batch, made in results(stop):
                # Handed over before the last one's troubles can be raised: nothing is lost.
                before, stored = stored, second.submit(store, batch, made)
                try:
                    before.result()
                except Exception as error:
                    trouble.append(error)
                    stop.append(error)
        finally:
            stored.result()
        if trouble:
            raise trouble[0]
        if stop:
            raise Interrupted


@contextmanager
def held_back(also: list[object] | None = None) -> Iterator[list[object]]:
    """Hold back Ctrl-C, SIGTERM and SIGHUP: gives a list that is empty until one comes. A second
    one strikes. What the process ignores, as SIGHUP under nohup, it goes on to ignore. Threads but
    the main one get no signals: there, the list is `also`."""
    asked: list[object] = [] if also is None else also
    if threading.current_thread() is not threading.main_thread():
        yield asked
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
