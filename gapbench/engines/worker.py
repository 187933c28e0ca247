"""What runs in a process of Ray's: a model or a judge of its own, and what it is asked."""

from __future__ import annotations

import os
import signal
import socket
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from gapbench.engines.base import Done, Job
from gapbench.engines.rows import out_of_memory
from gapbench.fetch.libraries import quiet
from gapbench.files import blamed, first_line
from gapbench.models.checkpoint import versions
from gapbench.types import Crash, GapbenchError

S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Start:
    """What a worker begins with: what makes its model or judge for a device, the folder and the
    variables of the first process, and how many threads it may use."""

    make: Callable[[str], Any]
    device: str
    folder: str
    environment: Mapping[str, str]
    threads: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a worker says once its weights are there."""

    node: str
    fingerprint: str
    versions: Mapping[str, str]


class Worker:
    """Makes a model or a judge and lets it answer. Its methods give errors and do not raise them:
    Ray would wrap them in tracebacks."""

    def load(self, start: Start) -> Loaded | Exception:
        """Make the model or judge and bring its weights in."""
        for each in (signal.SIGINT, signal.SIGHUP):  # a terminal's; the first process hears them
            signal.signal(each, signal.SIG_IGN)
        os.environ |= {**start.environment, "OMP_NUM_THREADS": str(start.threads)}
        quiet()
        with suppress(OSError):  # what is missing there is told as it is missed
            os.chdir(start.folder)
        try:
            self.of = start.make(start.device)
            self.of.check_ready() if hasattr(self.of, "check_ready") else self.of.load()
            return Loaded(socket.gethostname(), self.of.fingerprint, versions())
        except (Exception, SystemExit) as error:
            return _told(error)

    def answer(self, job: Job[S, T], batch: Sequence[S]) -> Done[T] | Exception:
        """The rows of a batch; a MemoryError where it is too large."""
        try:
            return job.by(self.of, batch)
        except (Exception, SystemExit) as error:
            if isinstance(error, Exception) and out_of_memory(error):
                return MemoryError(first_line(error))
            return _told(error)

    def apart(self, job: Job[S, T], batch: Sequence[S]) -> tuple[Done[T] | Exception, dict[int, T]]:
        """As `answer`, with the rows beside it: they go to `saved` first."""
        gave = self.answer(job, batch)
        if isinstance(gave, Exception):
            return gave, {}
        return replace(gave, rows=replace(gave.rows, done={})), gave.rows.done


def saved(job: Job[S, T], rows: dict[int, T]) -> tuple[dict[int, T], str | None] | Exception:
    """What travels to the first process of some rows, and a note, as `Job.away` has it."""
    assert job.away
    try:
        return job.away(rows)
    except Exception as error:
        return _told(error)


def _told(error: BaseException) -> Exception:
    """An error as it can be sent to the first process, which raises it."""
    if isinstance(error, GapbenchError):
        return GapbenchError(str(error))
    crash = Crash(blamed(error))  # the adapter's own
    crash.add_note(traceback.format_exc())
    return crash
