"""How the commands print."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


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
