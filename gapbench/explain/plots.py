"""The plots of explain.html, in the report's style."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from gapbench.pages.plots import GRID, INK, Plot, colour, legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEWEST: Final = 5
"""Values that a density takes."""


def densities(groups: Mapping[str, Sequence[float]], label: str) -> Plot | None:
    """Gaussian kernel densities (Scott's bandwidth) of values in nats, a curve a group; None where
    no group has enough values that differ."""
    from scipy.stats import gaussian_kde

    known = {
        name: np.asarray(values, dtype=float)
        for name, values in groups.items()
        if len(values) >= FEWEST and np.ptp(values) > 1e-9
    }
    if not known:
        return None
    low, high = (edge(np.concatenate([*known.values()])) for edge in (np.min, np.max))
    points = np.linspace(low - 0.1 * (high - low), high + 0.1 * (high - low), 300)

    def draw(axes: Axes, theme: str) -> None:
        axes.axvline(0, color=INK[theme], linewidth=0.8, linestyle=":")
        for index, (name, values) in enumerate(known.items()):
            axes.plot(
                points, gaussian_kde(values)(points), color=colour(index, theme),
                linestyle="-" if index < 6 else "--", label=f"{name}: {len(values)}",
            )  # fmt: skip
        axes.set_xlabel(label, color=INK[theme])
        axes.set_ylabel("density", color=INK[theme])
        legend(axes, theme)

    return Plot(draw, 5.2, 3.2 + 0.2 * len(known))


def points(
    groups: Mapping[str, tuple[Sequence[float], Sequence[float]]], across: str, up: str
) -> Plot:
    """A dot for each prompt: two values in nats, coloured by group."""

    def draw(axes: Axes, theme: str) -> None:
        axes.axvline(0, color=GRID[theme], linewidth=0.8)
        axes.axhline(0, color=GRID[theme], linewidth=0.8)
        for index, (name, (one, two)) in enumerate(groups.items()):
            axes.scatter(
                one, two, 14 + 20 * index, color=colour(index, theme), alpha=0.7,
                linewidth=0, label=name,
            )  # fmt: skip
        axes.set_xlabel(across, color=INK[theme])
        axes.set_ylabel(up, color=INK[theme])
        legend(axes, theme)

    return Plot(draw, 5.2, 4.2)


def layers(
    names: Sequence[str], series: Mapping[str, Sequence[Mapping[str, Any]]], label: str
) -> Plot:
    """Means with their intervals (`Mean` as a dictionary) at each layer, a colour a series."""

    def draw(axes: Axes, theme: str) -> None:
        axes.axhline(0, color=INK[theme], linewidth=0.8, linestyle=":")
        for index, (name, means) in enumerate(series.items()):
            known = [(place, m) for place, m in enumerate(means) if m["value"] is not None]
            values = [m["value"] for _, m in known]
            low, high = (
                [abs((m["value"] if m[end] is None else m[end]) - m["value"]) for _, m in known]
                for end in ("low", "high")
            )
            shift = (index - (len(series) - 1) / 2) * 0.2
            axes.errorbar(
                [place + shift for place, _ in known], values, [low, high], fmt="os^D"[index % 4],
                color=colour(index, theme), capsize=3, markersize=4, label=name,
            )  # fmt: skip
        axes.set_xticks(range(len(names)), names, rotation=40, ha="right")
        axes.set_xlim(-0.6, len(names) - 0.4)
        axes.set_ylabel(label, color=INK[theme])
        axes.grid(axis="y", color=GRID[theme], linewidth=0.6)
        legend(axes, theme)

    return Plot(draw, max(5.2, 1.4 + 0.5 * len(names)), 3.6)
