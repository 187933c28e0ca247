"""The report's plots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from gapbench.pages.plots import GRID, INK, SERIES, Plot, drawn, legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Bubble(NamedTuple):
    """Place (column, row), size in [0, 1] and colour in [0, 1] or None."""

    column: int
    row: int
    size: float
    colour: float | None


class Bar(NamedTuple):
    """A share with its interval, in [0, 1]; None where there is none."""

    value: float | None
    low: float | None
    high: float | None


def bubbles(
    columns: Sequence[str], rows: Sequence[str], cells: Sequence[Bubble], size: str, colour: str
) -> Plot:
    """A bubble for each (column, row): its area is the first figure, its colour the second."""
    # The area of a bubble of 1 would fill its cell; the largest here does.
    largest = max((b.size for b in cells), default=0) or 1

    def draw(axes: Axes, theme: str) -> None:
        from matplotlib import colormaps
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize

        ink, shades = INK[theme], colormaps["viridis"]
        for b in cells:
            face = "none" if b.colour is None else shades(b.colour)
            area = 1500 * b.size / largest
            axes.scatter(b.column, b.row, area, facecolor=face, edgecolor=ink, linewidth=0.7)
            axes.text(
                b.column, b.row + 0.47, f"{100 * b.size:.1f}", color=ink, ha="center", va="bottom",
                fontsize=8,
            )  # fmt: skip
        axes.set_xticks(range(len(columns)), columns, rotation=40, ha="right")
        axes.set_yticks(range(len(rows)), rows)
        axes.set_xlim(-0.6, len(columns) - 0.4)
        axes.set_ylim(len(rows) - 0.3, -0.6)
        axes.set_title(f"area and number: {size} (%)", loc="left", fontsize=9, color=ink)
        scale = ScalarMappable(Normalize(0, 100), shades)
        bar = axes.figure.colorbar(scale, ax=axes, pad=0.01, aspect=12)
        bar.set_label(f"{colour} (%)", color=ink)
        bar.ax.tick_params(colors=ink)

    return drawn(draw, 2.8 + 0.72 * len(columns), 1.7 + 0.85 * len(rows))


def bars(groups: Sequence[str], series: Sequence[str], heights: Sequence[Sequence[Bar]]) -> Plot:
    """Bars with whiskers in percent: `heights[i][j]` is series i's in group j."""
    wide = 0.8 / max(1, len(series))

    def draw(axes: Axes, theme: str) -> None:
        for index, name in enumerate(series):
            colour = SERIES[index % len(SERIES)]
            for group, bar in enumerate(heights[index]):
                if bar.value is None or bar.low is None or bar.high is None:
                    continue
                x = group + (index - (len(series) - 1) / 2) * wide
                value = 100 * bar.value
                error = [[value - 100 * bar.low], [100 * bar.high - value]]
                axes.bar(
                    x, value, 0.92 * wide, color=colour, yerr=error, capsize=3,
                    ecolor=INK[theme], hatch="///" * (index >= len(SERIES)),
                )  # fmt: skip
            axes.bar(0, 0, 0, color=colour, label=name)
        axes.set_xticks(range(len(groups)), groups)
        axes.set_xlim(-0.6, len(groups) - 0.4)
        _percent(axes, theme)
        legend(axes, theme)

    return drawn(draw, max(4.6, 1.2 + max(0.34 * len(series), 1.25) * len(groups)), 3.4)


def curves(series: Sequence[str], lines: Sequence[Sequence[tuple[float, Bar]]]) -> Plot:
    """Reliability curves: (expected, seen) in [0, 1] against the diagonal."""

    def draw(axes: Axes, theme: str) -> None:
        axes.plot([0, 100], [0, 100], color=INK[theme], linewidth=0.8, linestyle=":")
        for index, (name, points) in enumerate(zip(series, lines, strict=True)):
            _line(axes, index, name, points, 100)
        axes.set_xlim(-2, 102)
        axes.set_xlabel("the model's own probability (%)", color=INK[theme])
        axes.set_ylabel("the outside judge accepts (%)", color=INK[theme])
        _percent(axes, theme)
        legend(axes, theme)

    return drawn(draw, 4.8, 4.2)


def lines(
    series: Sequence[str], points: Sequence[Sequence[tuple[float, Bar]]], across: str
) -> Plot:
    """Shares with whiskers, in percent, over numbers."""

    def draw(axes: Axes, theme: str) -> None:
        for index, (name, mine) in enumerate(zip(series, points, strict=True)):
            _line(axes, index, name, mine)
        axes.set_xlabel(across, color=INK[theme])
        _percent(axes, theme)
        legend(axes, theme)

    return drawn(draw, 6.4, 3.4)


def _line(
    axes: Axes, index: int, name: str, points: Sequence[tuple[float, Bar]], factor: float = 1
) -> None:
    """One of several lines with whiskers, in percent; `factor` times the places."""
    there = [
        (factor * x, 100 * b.value, 100 * b.low, 100 * b.high)
        for x, b in points
        if b.value is not None and b.low is not None and b.high is not None
    ]
    axes.errorbar(
        [x for x, *_ in there],
        [value for _, value, *_ in there],
        [[v - low for _, v, low, _ in there], [high - v for _, v, _, high in there]],
        marker="os^Dv*"[index % 6],
        color=SERIES[index % len(SERIES)],
        capsize=3,
        linewidth=1.2,
        label=name,
    )


def _percent(axes: Axes, theme: str) -> None:
    axes.set_ylim(0, 104)
    axes.set_yticks(range(0, 101, 20))
    axes.grid(axis="y", color=GRID[theme], linewidth=0.6)
