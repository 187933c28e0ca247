"""The rules of version 0.1, for the column `before` of coverage.py.

Rates: Wilson's interval on the effective sample size, at Student's t with prompts less categories
degrees of freedom; mean scores: t. Differences: those intervals squared and added (Newcombe), and
a sign-flip test beside them. Unified figures: percentile bootstrap.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from gapbench.metrics import corrected
from gapbench.metrics.intervals import DENOMINATOR, influence, ratio, variances

Floats = npt.NDArray[np.float64]
Ends = tuple[float, float]


def interval(strata: list[Floats], value: float, scores: bool = False) -> tuple[Ends, float]:
    """The interval, and the effective sample size."""
    cluster, independent = variances(strata, value)
    prompts = [int(np.count_nonzero(s[:, DENOMINATOR])) for s in strata]
    t = float(stdtrit(max(1, sum(prompts) - len(prompts)), 0.975))
    if scores:
        half = t * math.sqrt(cluster)
        return (value - half, value + half), math.inf
    if sum(prompts) == 1 or independent == 0:
        n, t = len(prompts) ** 2 / float((1 / np.maximum(prompts, 1)).sum()), 1.96
    else:
        n = value * (1 - value) / max(cluster, independent)
    centre, scale = value + t * t / (2 * n), 1 + t * t / n
    half = t * math.sqrt(value * (1 - value) / n + t * t / (4 * n * n))
    return (min((centre - half) / scale, value), max((centre + half) / scale, value)), n


def difference(before: list[Floats], after: list[Floats], first: float, second: float) -> Ends:
    ((low1, high1), n1), ((low2, high2), n2) = interval(before, first), interval(after, second)
    one, two = influence(before, first), influence(after, second)
    images = sum(float(s[:, DENOMINATOR].sum()) for s in before)
    covariance = float(one @ two) - 0.5 / (min(n1, images) * min(n2, images))
    spread = math.sqrt(float(one @ one) * float(two @ two))
    r = max(-1.0, covariance / spread) if spread > 0 else 0.0

    def side(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a * a + b * b - 2 * r * a * b))

    change = second - first
    return change - side(second - low2, high1 - first), change + side(high2 - second, first - low1)


def sign_flip(
    before: list[Floats], after: list[Floats], rng: np.random.Generator, flips: int = 399
) -> float:
    middle, swing, seen = [], [], []
    for one, two in zip(before, after, strict=True):
        half = (two[:, :3] - one[:, :3]) / 2
        signs = 2.0 * rng.integers(0, 2, (flips, len(half))) - 1
        middle.append((one[:, :3] + two[:, :3]).sum(axis=0) / 2)
        swing.append(signs @ half)
        seen.append(half.sum(axis=0))
    m, s, own = np.array(middle), np.array(swing), np.array(seen)
    observed = abs(float(ratio(m + own) - ratio(m - own)))
    drawn = np.abs(ratio(m[:, None] + s) - ratio(m[:, None] - s))
    return float((1 + np.count_nonzero(~(drawn < observed * (1 - 1e-9) - 1e-15))) / (1 + flips))


def wald(share: corrected._Share, prompts: corrected.Places, carried: Floats) -> corrected.Estimate:
    """Of a corrected rate: Student's on the labelled prompts less one, cut at 0 and 1."""
    sums = np.bincount(prompts, weights=share.moves)
    freedom = len(np.unique(prompts[carried > 0])) - 1
    variance = float(sums @ sums) * (1 + 1 / freedom)
    half = float(stdtrit(freedom, 0.975)) * math.sqrt(max(variance, float(share.least)))
    value = min(1.0, max(0.0, share.value))
    return corrected.Estimate(value, max(0.0, value - half), min(1.0, value + half))
