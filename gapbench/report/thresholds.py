"""Weak generation and false positives of the report over the thresholds that make a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from gapbench.metrics.metric import METRICS
from gapbench.metrics.rates import rates
from gapbench.report.export import Figure
from gapbench.report.latex import Cell
from gapbench.report.plots import Point, lines, point
from gapbench.report.tables import cell
from gapbench.types import SHARE, Rates, Scale

if TYPE_CHECKING:
    from gapbench.runs.run import Run

TENTHS: Final = tuple(round(0.1 * tenth, 1) for tenth in range(1, 10))
FIGURES: Final = ("weak_generation", "false_positive")


def threshold_figures(
    runs: Sequence[Run], names: Sequence[str], frames: Sequence[pd.DataFrame]
) -> list[Figure]:
    """A section for each scale of the judges that make verdicts from scores, or could: the overall
    figures with each of nine thresholds. Those of shares are tenths, else the deciles of all runs'
    scores."""
    kept = [
        frame[frame["score"].notna() & frame["judge"].isin(_scorers(run))]
        for run, frame in zip(runs, frames, strict=True)
    ]
    scales = dict.fromkeys(scale for frame in kept for scale in frame["scale"])
    return [_figure(scale, names, kept) for scale in scales]


def _scorers(run: Run) -> list[str]:
    plan = run.plan
    return [j for j in plan.judges if j in plan.thresholds or plan.scales.get(j, SHARE) != SHARE]


def _figure(scale: Scale, names: Sequence[str], frames: Sequence[pd.DataFrame]) -> Figure:
    mine = [frame[frame["scale"].map(lambda each: each == scale).astype(bool)] for frame in frames]
    scores = np.concatenate([frame["score"].to_numpy(np.float64) for frame in mine])
    steps = TENTHS if scale == SHARE else tuple(np.quantile(scores, TENTHS).tolist())
    unit = "share" if scale == SHARE else scale.unit
    heads = [METRICS[metric].heading for metric in FIGURES]
    shown: list[Point] = []
    rows: list[list[Cell]] = []
    for name, frame in zip(names, mine, strict=True):
        for step in steps if len(frame) else ():
            made = _at(frame, step)
            rows.append([f"{step:.3g}", name, *map(cell, made)])
            for rate in made:
                heading = METRICS[rate.metric].heading
                shown += point(step, f"{name}: {heading}" if len(names) > 1 else heading, rate)
    return Figure(
        name=f"thresholds-{unit.lower()}",
        title=f"Do the figures depend on the judge's threshold ({unit})?",
        about="Overall figures if the outside judge accepted an image from each of these scores "
        "on. Where they depend much on the threshold, they say little by themselves.",
        table=([f"threshold ({unit})", "run", *(f"{head} (%)" for head in heads)], rows),
        columns=(f"threshold ({unit})", "series", "%"),
        points=shown,
        plot=lines(shown, f"threshold ({unit})") if shown else None,
    )


def _at(frame: pd.DataFrame, threshold: float) -> list[Rates]:
    """The figures overall, with verdicts made anew from the scores."""
    judged = frame.assign(outside=(frame["score"] >= threshold).astype(float))
    return [r for r in rates(judged) if r.level == "overall" and r.metric in FIGURES]
