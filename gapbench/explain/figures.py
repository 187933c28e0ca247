"""Figures over prompts: means and correlations with intervals and tests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, TypedDict

import numpy as np
import pandas as pd
from numpy.typing import NDArray

ALPHA: Final = 0.05
FEWEST: Final = 4
"""Prompts that a correlation takes."""
Series = Sequence[float] | pd.Series


class Mean(TypedDict):
    """A mean over prompts of each prompt's mean, with Student's 95 % interval and the p of his test
    against 0; interval and p are None for fewer than two prompts, or where they do not vary."""

    value: float | None
    low: float | None
    high: float | None
    p: float | None
    images: int
    prompts: int


class Correlation(TypedDict):
    """Pearson's rho over prompts with Fisher's 95 % interval and p, and Spearman's."""

    rho: float
    low: float
    high: float
    p: float
    rank: float
    prompts: int


def mean(values: Series, prompts: Iterable[str]) -> Mean:
    """The prompt is the unit. NaN and infinite values are left out."""
    from scipy import stats

    frame = pd.DataFrame({"value": np.asarray(values, dtype=float), "prompt": list(prompts)})
    frame = frame[np.isfinite(frame["value"])]
    each = frame.groupby("prompt")["value"].mean().to_numpy()
    value = float(each.mean()) if len(each) else None
    low = high = p = None
    if len(each) > 1 and np.ptp(each) > 0:
        tested = stats.ttest_1samp(each, 0.0)
        low, high = map(float, tested.confidence_interval(0.95))
        p = float(tested.pvalue)
    return Mean(value=value, low=low, high=high, p=p, images=len(frame), prompts=len(each))


def correlation(one: Series, two: Series, prompts: Iterable[str]) -> Correlation | None:
    """Of prompts' means; None for fewer than four prompts, or where one does not vary."""
    from scipy import stats

    both = np.array([one, two], dtype=float)
    known = np.isfinite(both).all(axis=0)
    frame = pd.DataFrame({"one": both[0], "two": both[1], "prompt": list(prompts)})[known]
    each = frame.groupby("prompt")[["one", "two"]].mean().to_numpy()
    if len(each) < FEWEST or min(np.ptp(each, axis=0)) < 1e-12:
        return None
    pearson = stats.pearsonr(each[:, 0], each[:, 1])
    low, high = map(float, pearson.confidence_interval(0.95))
    rank = float(stats.spearmanr(each[:, 0], each[:, 1]).statistic)
    return Correlation(
        rho=float(pearson.statistic), low=low, high=high, p=float(pearson.pvalue), rank=rank,
        prompts=len(each),
    )  # fmt: skip


def effective_rank(rows: NDArray[np.float64]) -> float | None:
    """exp of the entropy of the singular values of centred rows (N, width), normalised to sum 1
    (Roy and Vetterli 2007): from 1 to the smaller of N - 1 and width; None if all rows are equal.
    """
    values = np.linalg.svd(rows - rows.mean(0), compute_uv=False)
    if not values.sum() > 0:
        return None
    shares = values[values > 0] / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def word(value: float | None, p: float | None) -> str:
    """holds, reversed or not shown, for a figure that should be above 0; n/a without a test."""
    if value is None or p is None:
        return "n/a"
    if p >= ALPHA:
        return "not shown"
    return "holds" if value > 0 else "reversed"
