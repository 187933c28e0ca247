"""What a command shows while it works: a line at once, then a bar for each stage; on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.live import Live
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TransferSpeedColumn,
)
from rich.spinner import Spinner
from rich.table import Column
from rich.text import Text

from gapbench.cli.terminal import QUIET
from gapbench.runs.settings import Advance
from gapbench.runs.settings import Progress as Stages

NAME: Final = 20
"""Columns of a stage's name at least; with it a line fits 80."""


class _Name(ProgressColumn):
    """Cut where the line would not fit, so that the other columns stay whole."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.description:<{NAME}}", no_wrap=True, overflow="ellipsis")


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.1f}/s")


class _Times(ProgressColumn):
    def render(self, task: Task) -> Text:
        spent = f"elapsed {_clock(task.finished_time or task.elapsed or 0)}"
        left = None if task.finished else task.time_remaining
        return Text(spent if left is None else f"{spent} left {_clock(left)}")


@contextmanager
def bars(doing: str = "", in_bytes: bool = False) -> Iterator[Stages]:
    """Gives what starts a stage. `doing` is what the command does until the first one, a line that
    goes away; a bar stays above what is printed after it. A stage that is done already has no bar,
    and --quiet shows nothing."""
    columns: tuple[ProgressColumn, ...] = (
        (DownloadColumn(), TransferSpeedColumn()) if in_bytes else (MofNCompleteColumn(), _Rate())
    )
    screen = Console(stderr=True, quiet=QUIET.get())
    waiting = Live(
        Spinner("dots", f"{doing} ..."),
        console=screen,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
    )
    shown: list[Progress] = []

    def stop() -> None:
        waiting.stop()
        for progress in shown:
            progress.stop()
        shown.clear()

    def stage(name: str, there: int, total: int) -> Advance:
        stop()
        progress = Progress(
            _Name(),
            BarColumn(10),
            *columns,
            _Times(Column(no_wrap=True)),
            TextColumn("{task.fields[note]}", markup=False),
            console=screen,
            redirect_stdout=sys.stdout.isatty(),  # what goes into a file stays there
        )
        bar = progress.add_task(name, total=total, completed=there, note="")
        if there < total:
            shown.append(progress)
            progress.start()

        def advance(count: int, note: str = "") -> None:
            if note:
                progress.update(bar, note=note)
            progress.update(bar, advance=count)
            if progress.finished:
                progress.stop()

        return advance

    try:
        if doing:
            waiting.start(refresh=True)
        yield stage
    finally:
        stop()


def _clock(seconds: float) -> str:
    minutes, second = divmod(int(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"
