"""The command `gapbench runs`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from gapbench.cli.options import Form
from gapbench.cli.terminal import console
from gapbench.types import PERCENT, GapbenchError, printable


def runs(
    folder: Annotated[Path, typer.Argument(help="A folder of run folders.", metavar="DIR")] = Path("runs"),
    form: Form = "text",
) -> None:  # fmt: skip
    """List the runs of a folder, the latest first."""
    from rich.table import Table
    from rich.text import Text

    from gapbench.metrics.metric import printed
    from gapbench.runs.listing import runs_in

    if not folder.is_dir():
        raise GapbenchError(f"{folder}: there is no such folder; name the --out of a run")
    listed, broken = runs_in(folder)
    for error in broken:
        typer.echo(printable(f"WARNING: {error}"), err=True)
    if form == "json":
        typer.echo(printable(json.dumps([asdict(run) for run in listed], indent=1)))
        return
    if not listed:
        typer.echo(printable(f"{folder} holds no run folder that can be read."))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("run", "tasks"):
        table.add_column(head, overflow="fold")
    for head in ("images", "generation", "non-unif.", "date"):
        table.add_column(head, justify="right")
    for run in listed:
        images = f"{run.images:,}"
        figures = ((run.generation, run.unit), (run.non_unification, PERCENT))
        table.add_row(
            Text(run.run),
            Text(", ".join(run.tasks)),
            f"{images} of {run.planned:,} UNFINISHED" if run.finished is False else images,
            *("n/a" if figure is None else printed(figure, unit) for figure, unit in figures),
            (run.date or "")[:10],
        )
    console().print(table)
    if any(run.finished is None for run in listed):
        console().print("n/a: no results.json; the same `gapbench run` command again writes it.")
