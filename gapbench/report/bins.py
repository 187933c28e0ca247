"""Figures of bins by probability: what the model says against what the outside judge says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from gapbench.metrics.calibration import Bin
from gapbench.report.export import Figure
from gapbench.report.latex import Cell
from gapbench.report.plots import Point, curves

FEWEST: Final = 20
"""Images that a point of a plot takes."""


def binned(
    name: str,
    title: str,
    about: str,
    axes: tuple[str, str],
    bins: Mapping[str, Sequence[Bin]],
    more: Sequence[Sequence[Cell]] = (),
) -> Figure:
    """A section with the bins of each run, in percent over both `axes`; `more` rows follow."""
    shown: list[Point] = []
    rows: list[Sequence[Cell]] = []
    for run, mine in bins.items():
        for b in mine:
            at, seen, low, high = (100 * v for v in (b.expected, b.value, b.low, b.high))
            rows.append([run, f"{at:.1f}", (in_percent(b), f"({b.images:,} images)")])
            if b.images >= FEWEST:
                shown.append(Point(at, run, seen, low, high, b.images))
    across, up = axes
    return Figure(
        name=name,
        title=title,
        about=about,
        table=(["run", across, up], [*rows, *more]),
        columns=(across, "run", up),
        points=shown,
        plot=curves(shown, across, up) if len(shown) > 1 else None,
    )


def in_percent(b: Bin) -> str:
    """The share of a bin with its interval."""
    return f"{100 * b.value:.1f} [{100 * b.low:.1f}, {100 * b.high:.1f}]"
