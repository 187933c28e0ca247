"""How many prompts and samples a comparison takes, from the spread that a stored run shows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from scipy.special import ndtri

from gapbench.metrics.intervals import DENOMINATOR, NUMERATOR, SQUARE, VALID, ratio
from gapbench.metrics.metric import shown_in
from gapbench.metrics.paired import ALPHA, detectable
from gapbench.metrics.rates import checked, scales_of, sums, unit_of
from gapbench.types import PERCENT, GapbenchError

SAMPLES: Final = (1, 2, 4, 8, 16)
SMALL: Final = 6
"""Prompts that make up for what `Figure` and `Contrast` add where there are few (simulated)."""


def family() -> int:
    """The tests of a comparison: its figures, and understanding."""
    return len(shown_in("compare")) + 1


@dataclass(frozen=True, slots=True)
class Spread:
    """A metric's variance in one run, overall: `between` prompts of a category and `within` a
    prompt, over `prompts` prompts of `samples` images (their mean), shared out among categories as
    in the run. `freedom` are the degrees of freedom that a prompt brings."""

    value: float
    between: float
    within: float
    prompts: int
    samples: float
    freedom: float = 1.0
    unit: str = PERCENT

    def error(self, prompts: float, samples: float, alike: bool) -> float:
        """Standard error of a paired difference between two runs of this spread.

        `alike`: every prompt changes by the same; else its ease after has nothing to do with its
        ease before. Any real change lies between.
        """
        moving = 0.0 if alike else 2 * self.between
        return math.sqrt((2 * self.within / samples + moving) / prompts)

    def needed(self, change: float, samples: int, alike: bool) -> int:
        """Prompts that show a difference of `change` with a probability of 80 %, shared out as in
        the run; (z^2 / 2 + 6) / freedom more than the normal distribution asks for: the variance
        is estimated (Guenther 1981), and an interval of few prompts is widened."""
        z = float(ndtri(1 - ALPHA / 2 / family()))
        normal = (detectable(self.error(1, samples, alike), family()) / change) ** 2
        return math.ceil(normal + (z * z / 2 + SMALL) / self.freedom)


def spread(frame: pd.DataFrame, metric: str) -> Spread:
    """The spread of a figure that is compared, over a frame of `rates`. Categories weigh equally,
    so the prompts of a small one move the figure more: a category's variance counts by its
    share of the figure over its share of the prompts.

    One-way analysis of variance over prompts in each category (Searle, Casella and McCulloch 1992),
    of the residuals that the ratio's linearisation leaves. Raises GapbenchError for another metric,
    for a metric that the frame has no figure of, where no prompt has two images, and where the
    figure does not vary.
    """
    known = [each.name for each in shown_in("compare") if each.unit == PERCENT]
    if metric not in known:
        raise GapbenchError(f"power: no metric {metric!r}; there are {', '.join(known)}")
    rows = checked(frame) if len(frame) else frame
    by_category = sums(rows)[metric] if len(rows) else {}
    used = {key: part for key, part in by_category.items() if part[:, VALID].any()}
    unit = unit_of(metric, [scales_of(rows)[key] for key in used])
    if unit is None:
        raise GapbenchError(
            f"power: the run's scores are in several units, so {metric} has no mean; give another "
            "--metric, or a run of tasks and categories with one unit"
        )
    strata = [part[part[:, VALID] > 0] for part in used.values()]
    if not any(stratum[:, DENOMINATOR].any() for stratum in strata):
        raise GapbenchError(f"power: the run has no verdicts that {metric} needs")
    totals = np.array([stratum.sum(axis=0) for stratum in strata])
    value = float(ratio(totals))
    # The level's ratio moves by the mean over categories of residual means over this.
    carried = float((totals[:, DENOMINATOR] / totals[:, VALID]).mean())
    prompts = sum(len(stratum) for stratum in strata)
    between, within, weights, sizes = [], [], [], []
    for stratum in strata:
        counts = stratum[:, VALID]
        residual = stratum[:, NUMERATOR] - value * stratum[:, DENOMINATOR]
        squares = stratum[:, SQUARE] + value * value * stratum[:, DENOMINATOR]
        squares = squares - 2 * value * stratum[:, NUMERATOR]
        images, size = float(counts.sum()), len(stratum)
        if images == size or size < 2:
            continue
        inner = float((squares - residual**2 / counts).sum()) / (images - size)
        mean = residual.sum() / images
        outer = float((counts * (residual / counts - mean) ** 2).sum()) / (size - 1)
        typical = (images - float((counts**2).sum()) / images) / (size - 1)
        within.append(inner)
        between.append((outer - inner) / typical)
        weights.append(prompts / len(strata) ** 2 / size)
        sizes.append(size)
    if not within:
        raise GapbenchError(
            "power: no prompt of a category with two prompts has two images, so nothing says how "
            "much images of one prompt differ; repeat the run with --samples 2 or more"
        )
    # What categories without such a prompt add is taken to be as much as the others'.
    weighed = np.array(weights) * len(strata) / len(weights)
    samples = float(totals[:, VALID].sum()) / prompts
    parts = weighed * (np.maximum(0.0, between) + np.array(within) / samples)
    if not parts.any():
        raise GapbenchError(
            f"power: {metric} does not vary in this run, so what a change takes is unknown; give a "
            "run with more prompts or another --metric"
        )
    freedom = parts.sum() ** 2 / (parts**2 / sizes).sum() / prompts
    return Spread(
        value,
        max(0.0, float(weighed @ between)) / carried**2,
        max(0.0, float(weighed @ within)) / carried**2,
        prompts,
        samples,
        float(freedom),
        unit,
    )
