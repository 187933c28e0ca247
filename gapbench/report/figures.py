"""The figures of the report: each answers the question that is its title."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gapbench.comparison.compare import Comparison
from gapbench.comparison.words import COLUMNS, overall
from gapbench.metrics.calibration import error, reliability
from gapbench.metrics.metric import METRICS
from gapbench.metrics.questions import Questions
from gapbench.metrics.reflection import Reflection
from gapbench.metrics.verification import verification
from gapbench.report import tables
from gapbench.report.bins import FEWEST, binned
from gapbench.report.export import Figure
from gapbench.report.latex import Cell
from gapbench.report.plots import Point, intervals, point
from gapbench.report.questions import figures as skills
from gapbench.report.reflection import figures as reflections
from gapbench.report.thresholds import threshold_figures
from gapbench.report.verification import figures as worth
from gapbench.runs.run import Run
from gapbench.types import PERCENT, Rates

if TYPE_CHECKING:
    import pandas as pd


def figures(
    runs: Sequence[Run],
    names: Sequence[str],
    frames: Sequence[pd.DataFrame],
    rates: Sequence[list[Rates]],
    asked: Sequence[Questions | None],
    tried: Sequence[Reflection | None],
    change: Comparison | None,
) -> list[Figure]:
    """The figures of the page in its order. `frames`, `rates`, `asked` and `tried` are of one
    outside judge; `change` is from the first to the second of two runs that are comparable."""
    made = [_changes(change)] if change else []
    if any(run.plan.own for run in runs):
        made.append(
            _by_category(
                "difficulty", "In which categories does the model reject its own images?",
                "non_unification", names, rates,
            )
        )  # fmt: skip
    if any(run.judges() for run in runs):
        made.append(
            _by_category(
                "generation", "In which categories does the model draw well?", "generation", names,
                rates,
            )
        )  # fmt: skip
    judges = list(dict.fromkeys(name for run in runs for name in run.judges()))
    if len(judges) > 1:
        made.append(_weak(runs, names, judges))
    if any(frame["p_yes"].notna().any() for frame in frames):
        made.append(_calibration(names, frames))
    made += worth(names, [verification(frame) for frame in frames])
    made += reflections(names, tried)
    made += skills(names, asked)
    return made + threshold_figures(runs, names, frames)


def _changes(change: Comparison) -> Figure:
    shown = [
        Point(row[0], "change", 100 * c.difference, 100 * c.low, 100 * c.high, c.images)
        for row, c in zip(overall(change), change.changes, strict=True)
        if c.difference is not None and c.low is not None and c.high is not None
        if c.unit == PERCENT
    ]
    return Figure(
        name="changes",
        title="What changed from before to after?",
        about="After minus before, with the 95 % interval over prompts; left of the dotted line is "
        "less, right of it more. A figure has changed if its Holm p is below 0.05 (*).",
        table=(COLUMNS, overall(change)),
        columns=("figure", "series", "change (points)"),
        points=shown,
        plot=intervals(shown, "change (percentage points)", change=True) if shown else None,
    )


def _by_category(
    name: str, title: str, metric: str, names: Sequence[str], rates: Sequence[list[Rates]]
) -> Figure:
    """A figure of every category, the first run's highest first."""
    cells = [
        {r.name: r for r in mine if r.level == "category" and r.metric == metric} for mine in rates
    ]
    places = list(dict.fromkeys(place for mine in cells for place in mine))
    places.sort(key=lambda place: -(mine.value or 0) if (mine := cells[0].get(place)) else 1)
    several = len({place.partition("/")[0] for place in places}) > 1
    shown = [
        each
        for place in places
        for run, mine in zip(names, cells, strict=True)
        if place in mine and mine[place].unit == PERCENT
        for each in point(place if several else place.partition("/")[2], run, mine[place])
    ]
    rows: list[list[Cell]] = [
        [place, run, tables.cell(mine[place])]
        for place in places
        for run, mine in zip(names, cells, strict=True)
        if place in mine
    ]
    heading, meaning = METRICS[metric].heading, METRICS[metric].about.partition(" (")[0]
    return Figure(
        name=name,
        title=title,
        about=f"{heading.capitalize()}: {meaning}. Points with 95 % intervals over prompts, the "
        "category with the highest value first.",
        table=(["category", "run", heading], rows),
        columns=("category", "run", f"{heading} (%)"),
        points=shown,
        plot=intervals(shown, f"{heading} (%)") if shown else None,
    )


def _weak(runs: Sequence[Run], names: Sequence[str], judges: Sequence[str]) -> Figure:
    shown: list[Point] = []
    rows: list[list[Cell]] = []
    for judge in judges:
        for run, name in zip(runs, names, strict=True):
            rate = _overall(run.rates(judge), "weak_generation") if judge in run.judges() else None
            if rate is not None:
                shown += point(judge, name, rate)
                rows.append([judge, name, tables.cell(rate)])
    return Figure(
        name="weak",
        title="Does what causes the gap depend on the judge?",
        about="Weak generation: of the images that the model itself rejects, the share that an "
        "outside judge rejects too, overall. Above half, the gap comes from drawing rather than "
        "from recognising. A judge counts the images that it was asked about.",
        table=(["judge", "run", "weak generation"], rows),
        columns=("judge", "run", "weak generation (%)"),
        points=shown,
        plot=intervals(shown, "weak generation (%)") if shown else None,
    )


def _calibration(names: Sequence[str], frames: Sequence[pd.DataFrame]) -> Figure:
    bins = {name: reliability(frame) for name, frame in zip(names, frames, strict=True)}
    gaps = {name: error(mine) for name, mine in bins.items()}
    return binned(
        "calibration",
        "Can the model's own probability be believed?",
        "How often the outside judge accepts the images that the model gives a probability, in ten "
        f"bins, those of fewer than {FEWEST} images left out of the plot; the numbers are images. "
        "A model that knows itself lies on the dotted line.",
        ("the model's own probability (%)", "the outside judge accepts (%)"),
        bins,
        [
            [name, "expected calibration error", f"{100 * gap:.1f}"]
            for name, gap in gaps.items()
            if gap is not None
        ],
    )


def _overall(rates: Sequence[Rates], metric: str) -> Rates | None:
    return next((r for r in rates if r.level == "overall" and r.metric == metric), None)
