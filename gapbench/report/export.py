"""A figure of the report, and its files for papers: SVG, PDF, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from gapbench.files import write_atomic
from gapbench.pages.plots import Plot
from gapbench.report.latex import Cell, booktabs
from gapbench.report.plots import Point
from gapbench.types import GapbenchError, Rates

Table = tuple[Sequence[str], Sequence[Sequence[Cell]]]
"""Heads, and rows."""


def without(table: Table, head: str) -> Table:
    """A table without the column of this head, if it has one."""
    heads, rows = table
    kept = [place for place, name in enumerate(heads) if name != head]
    return [heads[place] for place in kept], [[row[place] for place in kept] for row in rows]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A section of the page: a question, how to read the answer, a plot and its table.

    `points` are what the plot shows, and `columns` what their place, series and value are; there is
    no plot without points. `warned` is what stands out.
    """

    name: str
    title: str
    about: str
    table: Table
    columns: tuple[str, str, str]
    points: Sequence[Point]
    plot: Plot | None
    warned: Sequence[str] = ()


def write_figures(
    figures: Sequence[Figure],
    tables: Mapping[str, Table],
    rates: Mapping[str, Sequence[Rates]],
    folder: Path,
) -> None:
    """Write NAME.svg, NAME.pdf and NAME.csv (its points) of every plot, NAME.tex of every table,
    and rates.csv, every rate of every run, into a folder that is made.

    Raises GapbenchError where that cannot be written.
    """
    files: dict[str, bytes] = {}
    for figure in figures:
        if figure.plot:
            files[f"{figure.name}.svg"] = figure.plot.file("svg")
            files[f"{figure.name}.pdf"] = figure.plot.file("pdf")
            heads = (*figure.columns, "low", "high", "images")
            files[f"{figure.name}.csv"] = _csv(heads, figure.points)
    for name, table in {**{figure.name: figure.table for figure in figures}, **tables}.items():
        if table[1]:
            files[f"{name}.tex"] = booktabs(*table).encode() + b"\n"
    records = [(run, *astuple(rate)) for run, mine in rates.items() for rate in mine]
    files["rates.csv"] = _csv(("run", *(field.name for field in fields(Rates))), records)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            write_atomic(folder / name, data)
    except OSError as error:
        raise GapbenchError(f"--figures {folder} cannot be written: {error}") from error


def _csv(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([heads, *rows])
    return text.getvalue().encode()
