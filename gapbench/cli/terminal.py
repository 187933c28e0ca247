"""What the commands share: lists and keys read from options, and how they print."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from gapbench.types import GapbenchError

if TYPE_CHECKING:
    from rich.console import Console


def names(listed: str | None) -> list[str] | None:
    """The names of a list with commas."""
    return [name.strip() for name in listed.split(",")] if listed else None


def pairs(given: list[str] | None) -> dict[str, str] | None:
    """The keys and values of --set."""
    for each in given or ():
        if not all(part.strip() for part in each.partition("=")):
            raise GapbenchError(f"--set {each}: give KEY=VALUE, such as guidance=4")
    pairs = [each.split("=", 1) for each in given or ()]
    return {key.strip(): value.strip() for key, value in pairs} or None


def console() -> Console:
    """Where tables go: names and prompts are shown as they are, brackets and all."""
    from rich.console import Console

    # Piped output has no width of its own; tables there should not be cut.
    return Console(width=None if sys.stdout.isatty() else 160, markup=False, highlight=False)


def facts(**facts: Any) -> None:
    """Print names and values as a table; None is left out."""
    from rich.table import Table

    table = Table(box=None, show_header=False)
    for key, value in facts.items():
        if value is not None:
            table.add_row(key, str(value))
    console().print(table)
