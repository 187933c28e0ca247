"""How far two judges, or several people, agree on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from gapbench.metrics.intervals import ROUNDING, Figure, Floats, interval
from gapbench.metrics.rates import UNIT, clustered
from gapbench.types import GapbenchError

KEYS: Final = ("task", "category", "prompt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Agreement of two judges over the `n` images that both gave a verdict on.

    `raw` is the share of equal verdicts; `kappa` (Cohen 1960) is that share beyond chance,
    (raw - e) / (1 - e), where e is the share that two independent judges with these acceptance
    rates would reach: 1 is full agreement, 0 chance, and it is None where both judges give one and
    the same verdict throughout. `low` and `high` bound the 95 % intervals over prompts, None where
    the prompts say nothing about the spread (one prompt, or all alike); a kappa of 1 has the bounds
    that those of `raw` make. `abstained` are the images on which at least one judge gave none.
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


def agreement(frame: pd.DataFrame, first: str, second: str) -> Agreement:
    """Agreement of the verdicts in columns `first` and `second`.

    `frame` has a row an image, with the columns task, category and prompt (text) and the two,
    which hold 1, 0 or NaN for an abstention. Images weigh equally. The share's interval is that of
    `gapbench.metrics.intervals.interval`; kappa's is the same of (1 + kappa) / 2, at the variance
    that its linearisation has over prompts. Raises GapbenchError for a missing column, an empty key
    or another value.
    """
    _checked(frame, (first, second))
    a, b = _verdicts(frame, first), _verdicts(frame, second)
    both = ~np.isnan(a) & ~np.isnan(b)
    keys = clustered(frame).loc[both, UNIT].astype(str)
    cells = _cells(a[both], b[both])
    if not len(cells):
        none = dict.fromkeys(("raw", "raw_low", "raw_high", "kappa", "kappa_low", "kappa_high"))
        return Agreement(n=0, n_prompts=0, abstained=len(frame), **none)

    # (prompts, 4) counts of (both yes, both no, only the first, only the second).
    groups = pd.DataFrame(cells, index=keys.index).groupby([keys[k] for k in UNIT], sort=True)
    prompts = groups.sum().to_numpy(dtype=np.float64)
    total = prompts.sum(axis=0)
    raw, kappa = float((total[0] + total[1]) / total.sum()), _kappa(total)
    raw_low = raw_high = kappa_low = kappa_high = None
    if len(prompts) > 1:
        raw_low, raw_high, _ = interval([_stratum(prompts)], raw)
        moves = _moves(prompts, kappa) if kappa is not None else np.zeros(1)
        variance = float(moves @ moves) * len(prompts) / (len(prompts) - 1) / 4
        if kappa is not None:
            kappa_low, kappa_high = _ends(kappa, variance, len(prompts))
        if kappa == 1:  # kappa does not vary, and is as uncertain as the share
            _, _, chance, _, _ = _parts(total)
            chance /= total.sum() ** 2
            kappa_low = max(-1.0, float((raw_low - chance) / (1 - chance)))
            kappa_high = 1.0
    return Agreement(
        n=int(both.sum()),
        n_prompts=len(prompts),
        abstained=int((~both).sum()),
        raw=raw,
        raw_low=raw_low,
        raw_high=raw_high,
        kappa=kappa,
        kappa_low=kappa_low,
        kappa_high=kappa_high,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Alpha:
    """Krippendorff's alpha (1970; for two values) of the `labels` that several people gave to
    `images`, of which each has two or more: 1 minus the share of unequal pairs of labels of one
    image, over that of all labels. 1 is full agreement and 0 chance. It is None without such images
    or where all labels are the same. `low` and `high` bound the 95 % interval over prompts."""

    images: int
    labels: int
    value: float | None
    low: float | None
    high: float | None


def alpha(frame: pd.DataFrame, raters: Sequence[str]) -> Alpha:
    """Krippendorff's alpha of the columns `raters` of a frame that is as that of `agreement`; NaN
    is no label.

    The interval is that of `agreement` for kappa, with the variance of the jackknife over prompts.
    Raises GapbenchError as `agreement` does.
    """
    _checked(frame, raters)
    labels = np.stack([_verdicts(frame, rater) for rater in raters], axis=1)
    given, yes = (~np.isnan(labels)).sum(axis=1), np.nansum(labels, axis=1)
    used = given > 1
    given, yes = given[used].astype(np.float64), yes[used]
    # (images, 3): unequal pairs per label, labels, of these yes; then summed by prompt.
    terms = np.stack([yes * (given - yes) / (given - 1), given, yes], axis=1)
    keys = clustered(frame).loc[used, UNIT].astype(str)
    groups = pd.DataFrame(terms, index=keys.index).groupby([keys[k] for k in UNIT], sort=True)
    prompts = groups.sum().to_numpy(dtype=np.float64)
    value, low, high = _alpha(prompts.sum(axis=0)), None, None
    left = [_alpha(prompts.sum(axis=0) - prompt) for prompt in prompts]
    known = np.array([each for each in left if each is not None])
    if value is not None and 1 < len(left) == len(known):
        spread = float(((known - known.mean()) ** 2).sum())
        low, high = _ends(value, spread * (len(left) - 1) / len(left) / 4, len(left))
    return Alpha(images=len(given), labels=int(given.sum()), value=value, low=low, high=high)


def _alpha(total: Floats) -> float | None:
    unequal, labels, yes = total
    pairs = yes * (labels - yes)
    return float(1 - (labels - 1) * unequal / pairs) if pairs > ROUNDING else None


def _ends(value: float, variance: float, prompts: int) -> tuple[float | None, float | None]:
    """The interval of a coefficient in [-1, 1] as that of the share (1 + value) / 2, which has this
    variance over so many prompts; none without a spread."""
    if variance <= ROUNDING**2:
        return None, None
    share = min(1.0, max(0.0, (1 + value) / 2))
    trials = share * (1 - share) / variance
    low, high = Figure(share, variance**0.5, prompts - 1, trials).ends()
    return 2 * low - 1, 2 * high - 1


def _checked(frame: pd.DataFrame, columns: Sequence[str]) -> None:
    for column in (*KEYS, *columns):
        if column not in frame.columns:
            raise GapbenchError(f"agreement: the frame has no column {column!r}")
    if frame[list(KEYS)].isna().any(axis=None):
        raise GapbenchError("agreement: an image has no task, category or prompt")


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


def _kappa(total: Floats) -> float | None:
    """Cohen's kappa of (4,) counts; None where chance alone agrees fully."""
    n, agreed, chance, _, _ = _parts(total)
    # Over n squared everything is a whole number: no rounding decides whether chance is 1.
    return None if chance == n * n else float((n * agreed - chance) / (n * n - chance))


def _parts(total: Floats) -> tuple[float, float, float, float, float]:
    """Images, agreements, n^2 times the agreement by chance, yes of the first and of the second."""
    n, first, second = total.sum(), total[0] + total[2], total[0] + total[3]
    chance = first * second + (n - first) * (n - second)
    return n, total[0] + total[1], chance, first, second


def _moves(prompts: Floats, kappa: float) -> Floats:
    """What each prompt moves kappa by, from its derivative by the counts."""
    n, agreed, chance, first, second = _parts(prompts.sum(axis=0))
    of_n, of_agreed = prompts.sum(axis=1), prompts[:, 0] + prompts[:, 1]
    of_first, of_second = prompts[:, 0] + prompts[:, 2], prompts[:, 0] + prompts[:, 3]
    of_chance = (2 * second - n) * of_first + (2 * first - n) * of_second
    of_chance = of_chance + (2 * n - first - second) * of_n
    of_upper, of_lower = agreed * of_n + n * of_agreed - of_chance, 2 * n * of_n - of_chance
    moves: Floats = (of_upper - kappa * of_lower) / (n * n - chance)
    return moves


def _stratum(prompts: Floats) -> Floats:
    """The columns of `gapbench.metrics.intervals` for the raw share, (prompts, 6)."""
    equal, n = prompts[:, 0] + prompts[:, 1], prompts.sum(axis=1)
    zero = np.zeros_like(n)
    return np.stack([equal, n, n, equal, zero, zero], axis=1)
