"""The report's plots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from gapbench.pages.plots import GRID, INK, Plot, colour, legend
from gapbench.types import PERCENT, Rates

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS: Final = "os^Dv*"


class Point(NamedTuple):
    """A figure with its 95 % interval, in percent or its unit, of `images` images: one of a series
    at a place, which is a name or a number."""

    place: str | float
    series: str
    value: float
    low: float
    high: float
    images: int


def point(place: str | float, series: str, rate: Rates | None) -> list[Point]:
    """A rate as a point; none where it has no value."""
    if rate is None or rate.value is None or rate.low is None or rate.high is None:
        return []
    factor = 100 if rate.unit == PERCENT else 1
    value, low, high = (factor * v for v in (rate.value, rate.low, rate.high))
    return [Point(place, series, value, low, high, int(rate.denominator))]


def intervals(points: Sequence[Point], across: str, change: bool = False) -> Plot:
    """A row for each place, from the top, with a point for each series; two series are joined.
    Shares begin at 0 %; changes have a line there."""
    places = list(dict.fromkeys(p.place for p in points))
    series = list(dict.fromkeys(p.series for p in points))
    step = 0.6 / max(2, len(series))

    def draw(axes: Axes, theme: str) -> None:
        joined: dict[str | float, list[tuple[float, float]]] = {}
        for index, name in enumerate(series):
            mine = [p for p in points if p.series == name]
            shift = (index - (len(series) - 1) / 2) * step
            rows = [places.index(p.place) + shift for p in mine]
            for p, row in zip(mine, rows, strict=True):
                joined.setdefault(p.place, []).append((p.value, row))
            sides = [[p.value - p.low for p in mine], [p.high - p.value for p in mine]]
            axes.errorbar(
                [p.value for p in mine], rows, xerr=sides, fmt=MARKERS[index % len(MARKERS)],
                color=colour(index, theme), markersize=5, elinewidth=1.2, label=name,
            )  # fmt: skip
        if len(series) == 2:
            for ends in joined.values():
                axes.plot(*zip(*ends, strict=True), color=INK[theme], linewidth=0.8, zorder=1)
        if change:
            axes.axvline(0, color=INK[theme], linewidth=0.8, linestyle=":")
        else:
            axes.set_xlim(-2, max(20, *(p.high for p in points)) + 2)
        axes.set_yticks(range(len(places)), [str(place) for place in places])
        axes.set_ylim(len(places) - 0.4, -0.6)
        axes.set_xlabel(across, color=INK[theme])
        axes.grid(axis="x", color=GRID[theme], linewidth=0.6)
        if len(series) > 1:
            legend(axes, theme)

    row = 0.14 + 0.14 * max(1, len(series))
    return Plot(draw, 5.2, 0.9 + 0.18 * len(series) + row * len(places))


def curves(points: Sequence[Point], across: str, up: str) -> Plot:
    """Reliability: shares over percent, with the images behind each, against the diagonal."""

    def draw(axes: Axes, theme: str) -> None:
        axes.plot([0, 100], [0, 100], color=INK[theme], linewidth=0.8, linestyle=":")
        _points(axes, points, theme, joined=False)
        series = list(dict.fromkeys(p.series for p in points))
        for p in points:
            # Two series' numbers stand on both sides; those of more are in the table alone.
            if (side := series.index(p.series)) < 2 >= len(series):
                axes.annotate(
                    f"{p.images:,}", (float(p.place), p.value), [(-5, 5), (5, -5)][side],
                    textcoords="offset points", fontsize=8, color=INK[theme],
                    ha=["right", "left"][side], va=["bottom", "top"][side],
                )  # fmt: skip
        axes.set_xlim(-4, 104)
        axes.set_xlabel(across, color=INK[theme])
        axes.set_ylabel(up, color=INK[theme])

    return Plot(draw, 5.2, 4.0)


def lines(points: Sequence[Point], across: str) -> Plot:
    """Shares with whiskers over numbers."""

    def draw(axes: Axes, theme: str) -> None:
        _points(axes, points, theme, joined=True)
        axes.set_xlabel(across, color=INK[theme])
        axes.set_ylabel("%", color=INK[theme])

    return Plot(draw, 5.2, 3.6)


def _points(axes: Axes, points: Sequence[Point], theme: str, *, joined: bool) -> None:
    for index, name in enumerate(dict.fromkeys(p.series for p in points)):
        mine = [p for p in points if p.series == name]
        axes.errorbar(
            [float(p.place) for p in mine],
            [p.value for p in mine],
            [[p.value - p.low for p in mine], [p.high - p.value for p in mine]],
            marker=MARKERS[index % len(MARKERS)],
            color=colour(index, theme),
            markersize=5,
            capsize=3,
            linestyle="-" if joined else "",
            elinewidth=1.2,
            label=name,
        )
    axes.set_ylim(-4, 104)
    axes.set_yticks(range(0, 101, 20))
    axes.grid(axis="y", color=GRID[theme], linewidth=0.6)
    legend(axes, theme)
