"""How the commands print."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

from gapbench.types import printable

if TYPE_CHECKING:
    from rich.console import Console

QUIET: Final = ContextVar("quiet", default=False)
"""Whether only results are printed (--quiet)."""


def console() -> Console:
    """Where tables go: names and prompts are shown as they are, brackets and all, and what they
    would command the terminal as text."""
    from rich.console import Console
    from rich.segment import Segment

    class Plain(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # for `main`; rich would replace stdout and leave by sys.exit

        def render(self, *given: Any) -> Iterator[Segment]:
            for segment in super().render(*given):
                yield (
                    segment if segment.control else Segment(printable(segment.text), segment.style)
                )

    # Piped output has no width of its own; tables there should not be cut, nor lines wrapped.
    piped = not sys.stdout.isatty()
    width = 160 if piped and "COLUMNS" not in os.environ else None
    return Plain(width=width, markup=False, highlight=False, soft_wrap=piped)


def say(line: str) -> None:
    """Print a line, above the bar where one is shown; rich's consoles would write into the bar."""
    print(printable(line))


def facts(**facts: Any) -> None:
    """Print names and values as a table; None is left out."""
    from rich.table import Column, Table

    table = Table(Column(no_wrap=True), Column(overflow="fold"), box=None, show_header=False)
    for key, value in facts.items():
        if value is not None:
            table.add_row(key, str(value))
    console().print(table)
