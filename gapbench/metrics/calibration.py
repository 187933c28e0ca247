"""Whether a model's probability that its image shows the prompt can be taken at its word."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import pandas as pd

from gapbench.metrics.intervals import interval
from gapbench.metrics.rates import clustered

BINS: Final = 10


class Bin(NamedTuple):
    """The images whose p_yes lies in a tenth: `expected` is their mean p_yes, `value` the share of
    them that the outside judge accepts, with its 95 % interval over prompts."""

    images: int
    expected: float
    value: float
    low: float
    high: float


def reliability(frame: pd.DataFrame) -> list[Bin]:
    """The reliability curve of p_yes against the outside verdict, in ten equal bins, empty ones
    left out.

    `frame` has the columns task, prompt, p_yes and outside; images without a p_yes or an outside
    verdict are left out.
    """
    rows = frame[frame["p_yes"].notna() & frame["outside"].notna()]
    places = np.minimum((rows["p_yes"].to_numpy(np.float64) * BINS).astype(int), BINS - 1)
    return [
        bin_of(rows[places == place], "p_yes") for place in range(BINS) if (places == place).any()
    ]


def error(bins: list[Bin]) -> float | None:
    """The expected calibration error: |p_yes - accepted|, bins weighed by their images (Naeini
    2015); None without images."""
    images = sum(each.images for each in bins)
    gaps = (each.images * abs(each.expected - each.value) for each in bins)
    return sum(gaps) / images if images else None


def bin_of(rows: pd.DataFrame, expected: str) -> Bin:
    """The images of one bin, whose expected share is the mean of the column `expected`."""
    groups = clustered(rows).groupby(["task", "cluster"], observed=True)
    n = groups["outside"].agg(["sum", "count"]).to_numpy(np.float64)
    yes, images, zero = n[:, 0], n[:, 1], np.zeros(len(n))
    value = float(yes.sum() / images.sum())
    # The columns of `gapbench.metrics.intervals`.
    low, high, _ = interval([np.stack([yes, images, images, yes, zero, zero], axis=1)], value)
    return Bin(len(rows), float(rows[expected].mean()), value, float(low), float(high))
