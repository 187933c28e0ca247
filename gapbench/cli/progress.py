"""Progress bars: one a stage, with rate and time left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f}/s")


@contextmanager
def bars(in_bytes: bool = False) -> Iterator[Callable[[str, int, int], Callable[[int], None]]]:
    """Gives what to call with (stage, done already, in all), which gives what to call with each
    step; on stderr, started with the first stage so that an error before it stands alone."""
    columns: tuple[ProgressColumn, ...] = (
        (DownloadColumn(), TransferSpeedColumn()) if in_bytes else (MofNCompleteColumn(), _Rate())
    )
    progress = Progress(
        TextColumn("{task.description:<22}", markup=False),
        BarColumn(24),
        *columns,
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )

    def stage(name: str, there: int, total: int) -> Callable[[int], None]:
        progress.start()
        bar = progress.add_task(name, total=total, completed=there)
        return lambda count: progress.advance(bar, count)

    try:
        yield stage
    finally:
        if progress.tasks:
            progress.stop()
