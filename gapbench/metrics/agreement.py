"""How far two judges agree on the same images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from gapbench.metrics.intervals import Floats, bootstrap, interval
from gapbench.types import GapbenchError

KEYS: Final = ("task", "category", "prompt")
FEWEST_DRAWS: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Agreement of two judges over the `n` images that both gave a verdict on.

    `raw` is the share of equal verdicts; `kappa` (Cohen 1960) is that share beyond chance,
    (raw - e) / (1 - e), where e is the share that two independent judges with these acceptance
    rates would reach: 1 is full agreement, 0 chance, and it is None where both judges give one and
    the same verdict throughout. `low` and `high` bound the 95 % intervals over prompts, None where
    the prompts say nothing about the spread (one prompt, or no draw differs). `abstained` are the
    images on which at least one judge gave none.
    """

    n: int
    n_prompts: int
    abstained: int
    raw: float | None
    raw_low: float | None
    raw_high: float | None
    kappa: float | None
    kappa_low: float | None
    kappa_high: float | None


def agreement(frame: pd.DataFrame, first: str, second: str, draws: int = 2000) -> Agreement:
    """Agreement of the verdicts in columns `first` and `second`.

    `frame` has a row an image, with the columns task, category and prompt (text) and the two,
    which hold 1, 0 or NaN for an abstention. Images weigh equally. The share's interval is that of
    `gapbench.metrics.intervals.interval`, kappa's comes from `draws` (at least 100) bootstrap draws
    of prompts within their categories; neither depends on the rows' order. Raises GapbenchError
    for fewer draws, a missing column, an empty key or another value.
    """
    if draws < FEWEST_DRAWS:
        raise GapbenchError(f"agreement: draws is {draws}; use at least {FEWEST_DRAWS}")
    for column in (*KEYS, first, second):
        if column not in frame.columns:
            raise GapbenchError(f"agreement: the frame has no column {column!r}")
    if frame[list(KEYS)].isna().any(axis=None):
        raise GapbenchError("agreement: an image has no task, category or prompt")
    a, b = _verdicts(frame, first), _verdicts(frame, second)
    both = ~np.isnan(a) & ~np.isnan(b)
    keys = frame.loc[both, list(KEYS)].astype(str)
    cells = _cells(a[both], b[both])
    if not len(cells):
        none = dict.fromkeys(("raw", "raw_low", "raw_high", "kappa", "kappa_low", "kappa_high"))
        return Agreement(n=0, n_prompts=0, abstained=len(frame), **none)

    # (prompts, 4) counts of (both yes, both no, only the first, only the second) a category.
    groups = pd.DataFrame(cells, index=keys.index).groupby([keys[k] for k in KEYS], sort=True).sum()
    strata = [
        (f"{task}/{category}", part.to_numpy(dtype=np.float64))
        for (task, category), part in groups.groupby(level=["task", "category"], sort=True)
    ]
    drawn = np.sum([bootstrap(sums, name, draws) for name, sums in strata], axis=0)
    total, prompts = cells.sum(axis=0), np.concatenate([sums for _, sums in strata])
    raw, kappa = _raw(total), _kappa(total)
    raw_low = raw_high = kappa_low = kappa_high = None
    if len(prompts) > 1:
        low, high, _ = interval([_stratum(prompts)], float(raw))
        raw_low, raw_high = float(low), float(high)
        kappas = _kappa(drawn)
        kappas = kappas[~np.isnan(kappas)]
        if not np.isnan(kappa) and len(np.unique(kappas)) > 1:
            ends = np.quantile(kappas, (0.025, 0.975)).tolist()
            kappa_low, kappa_high = min(ends[0], float(kappa)), max(ends[1], float(kappa))
    return Agreement(
        n=int(both.sum()),
        n_prompts=len(prompts),
        abstained=int((~both).sum()),
        raw=float(raw),
        raw_low=raw_low,
        raw_high=raw_high,
        kappa=None if np.isnan(kappa) else float(kappa),
        kappa_low=kappa_low,
        kappa_high=kappa_high,
    )


def _verdicts(frame: pd.DataFrame, column: str) -> Floats:
    bad = frame[column].notna() & ~frame[column].isin([0, 1])
    if bad.any():
        raise GapbenchError(
            f"agreement: {column} is {frame.loc[bad, column].tolist()[0]!r}, not 1, 0 or NaN"
        )
    return frame[column].to_numpy(dtype=np.float64, na_value=np.nan)


def _cells(a: Floats, b: Floats) -> Floats:
    """(images, 4), one 1 a row: both yes, both no, only the first, only the second."""
    return np.stack([a * b, (1 - a) * (1 - b), a * (1 - b), (1 - a) * b], axis=1)


def _raw(counts: Floats) -> npt.NDArray[np.float64]:
    """Share of equal verdicts of (..., 4) counts."""
    shares: Floats = (counts[..., 0] + counts[..., 1]) / counts.sum(axis=-1)
    return shares


def _kappa(counts: Floats) -> npt.NDArray[np.float64]:
    """Cohen's kappa of (..., 4) counts; NaN where chance alone agrees fully."""
    n = counts.sum(axis=-1)
    first, second = counts[..., 0] + counts[..., 2], counts[..., 0] + counts[..., 3]
    # Over n squared everything is a whole number: no rounding decides whether chance is 1.
    chance = first * second + (n - first) * (n - second)
    with np.errstate(invalid="ignore", divide="ignore"):
        kappa: Floats = (n * (counts[..., 0] + counts[..., 1]) - chance) / (n * n - chance)
    return kappa


def _stratum(prompts: Floats) -> Floats:
    """The columns of `gapbench.metrics.intervals` for the raw share, (prompts, 6)."""
    equal, n = prompts[:, 0] + prompts[:, 1], prompts.sum(axis=1)
    zero = np.zeros_like(n)
    return np.stack([equal, n, n, equal, zero, zero], axis=1)
