"""Intervals and tests for ratios of sums over images, with the prompt as the unit.

Everything here works on sums per prompt. A stratum is one category's array of shape (prompts, 6),
whose columns are the constants below. A level is a list of strata, each with at least one valid
image. Its ratio weighs categories equally: sum_c(num_c / valid_c) / sum_c(den_c / valid_c); with
one category that is num / den.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import betainc, betaincinv, ndtri, stdtrit

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

# Columns of a stratum: sums over a prompt's images of the numerator term, the denominator term
# (0 or 1), whether the image is valid, the squared numerator term, whether the numerator term lies
# outside [0, 1], and whether the image was left out for want of a verdict.
NUMERATOR, DENOMINATOR, VALID, SQUARE, UNBOUNDED, ABSTAINED = range(6)

TAIL = 0.025
SMALLEST, LARGEST = 1e-15, 0.4999
ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class Figure:
    """A level's value and what an interval of it takes.

    `influence` (prompts,) is what each prompt moves the value by, `error` the standard error,
    `freedom` the degrees of freedom that it was estimated on. `trials` is how many independent
    yes/no trials a value in [0, 1] is worth, None for scores that leave that range. `images` are
    those in the denominator.
    """

    value: float
    error: float
    freedom: float
    trials: float | None = None
    influence: Floats = field(default_factory=lambda: np.zeros(0))
    images: float = math.inf

    def ends(self, tail: float = TAIL) -> tuple[float, float]:
        """Low and high end of the interval that leaves `tail` (below 0.5) on either side.

        For a value in [0, 1] the mid-p interval on `trials`, scaled for the estimated variance by
        Student's t (Korn and Graubard 1998; mid-p: Lancaster 1961); else value -+ t * error.
        """
        t = float(stdtrit(self.freedom, tail))
        if self.trials is None:
            return self.value + t * self.error, self.value - t * self.error
        trials = self.trials * (float(ndtri(tail)) / t) ** 2
        low, high = _lower(self.value, trials, tail), 1 - _lower(1 - self.value, trials, tail)
        return min(low, self.value), max(high, self.value)


def _lower(share: float, trials: float, tail: float) -> float:
    """The chance at which half of what was seen and all above it have the probability `tail`."""
    yes, no = share * trials, (1 - share) * trials
    if yes < ROUNDING:
        return 0.0
    if no < ROUNDING:
        return float((2 * tail) ** (1 / yes))

    def excess(chance: float) -> float:
        both = betainc(yes, no + 1, chance) + betainc(yes + 1, no, chance)
        return float(both - 2 * tail)

    least, most = betaincinv(yes, no + 1, tail), betaincinv(yes + 1, no, tail)
    if excess(least) >= 0 or excess(most) <= 0:  # as near as rounding gets
        return float(least)
    return float(brentq(excess, least, most, xtol=1e-12))


def ratio(totals: Floats) -> Floats:
    """The level's ratio from totals (categories, ..., at least 3); NaN where it is 0 / 0.

    The last axis holds numerator, denominator and valid first; the result has the axes between.
    """
    numerator, denominator, valid = np.moveaxis(totals[..., : VALID + 1], -1, 0)
    # A category without valid images adds 0 / 1 to both sums: it drops out.
    unit = np.where(valid > 0, valid, 1.0) if len(totals) > 1 else np.ones_like(valid)
    with np.errstate(invalid="ignore"):
        result: Floats = (numerator / unit).sum(axis=0) / (denominator / unit).sum(axis=0)
    return result


def figure(strata: Sequence[Floats], value: float) -> Figure:
    """The figure of a level whose ratio is `value`.

    A share's variance is kept * sum over categories of p (1 - p) / prompts, at the categories'
    shares p with half a prompt added each way, since a small category in which nothing was seen is
    not certain. `kept` is the cluster variance over what it would be if each prompt stood or fell
    whole, estimated on the prompts that carry the rarer answer and drawn towards 1 as if by two
    more. The degrees of freedom are Satterthwaite's (1946) over categories, since a small one
    weighs as much as a large one.
    """
    weights = _weights(_totals(strata))
    denominators = [stratum[:, DENOMINATOR] for stratum in strata]
    prompts = np.array([kish(each) for each in denominators])
    alone = prompts == 1
    own = _influences(strata, value)
    influence, images = np.concatenate(own), float(sum(each.sum() for each in denominators))
    if any(stratum[:, UNBOUNDED].any() for stratum in strata):
        squares = np.array([part @ part for part in own])
        freedom = _satterthwaite(squares, prompts, alone)
        return Figure(value, math.sqrt(squares.sum()), freedom, None, influence, images)
    every = np.concatenate([w * each for w, each in zip(weights, denominators, strict=True)])
    yes = np.concatenate([w * s[:, NUMERATOR] for w, s in zip(weights, strata, strict=True)])
    # One prompt says nothing of its category's share: such categories count as one.
    shares = np.array([s[:, NUMERATOR].sum() / max(1.0, s[:, DENOMINATOR].sum()) for s in strata])
    shares = np.clip(np.where(alone, value, shares), 0, 1)
    squares = weights**2 * np.array([each @ each for each in denominators])
    whole = float(shares * (1 - shares) @ squares)
    kept = 1.0
    if whole > ROUNDING * squares.sum():
        evidence = min(kish(yes), kish(np.maximum(every - yes, 0)))
        # No sample is worth more than its images, however evenly prompts fall out.
        kept = max(*variances(strata, value), whole / images**2) / whole
        kept **= evidence / (evidence + 2)
    shares = (prompts * shares + 0.5) / (prompts + 1)
    parts = kept * shares * (1 - shares) * squares
    mean = float(weights * [each.sum() for each in denominators] @ shares)
    variance = float(parts.sum())
    freedom = _satterthwaite(parts, prompts, alone)
    trials = mean * (1 - mean) / variance
    return Figure(value, math.sqrt(variance), freedom, trials, influence, images)


def interval(strata: Sequence[Floats], value: float) -> tuple[float, float, float]:
    """Low and high end of the 95 % interval of a level's ratio `value`, and its design effect."""
    cluster, independent = variances(strata, value)
    made = figure(strata, value)
    deff = cluster / independent if independent > 0 else made.images / (made.trials or 1.0)
    return *made.ends(), deff


class Contrast:
    """The sum of `plus` less that of `minus`, figures over the same prompts in one order.

    The distances to the figures' own ends are squared and added, with their correlations over
    prompts (Newcombe 1998, method 10; Zou and Donner 2008), so that the range is respected and an
    uncertain figure makes its own side wide. To that is added what one more change like those seen
    would bring, one image's where none was: figures that hardly a prompt tells apart would look
    certain.
    """

    def __init__(self, plus: Sequence[Figure], minus: Sequence[Figure]) -> None:
        self._figures = [*plus, *minus]
        self._signs = np.array([1.0] * len(plus) + [-1.0] * len(minus))
        self.value = float(self._signs @ [each.value for each in self._figures])
        moves = self._signs[:, None] * np.array([each.influence for each in self._figures])
        spreads = np.sqrt((moves**2).sum(axis=1))
        unit = moves / np.where(spreads > 0, spreads, 1.0)[:, None]
        self._correlation = unit @ unit.T
        np.fill_diagonal(self._correlation, 1.0)
        self._more, self._range = 0.0, (-math.inf, math.inf)
        if all(each.trials is not None for each in self._figures):
            self._range = -float(len(minus)), float(len(plus))
            moved = moves.sum(axis=0) ** 2
            if moved.sum() > ROUNDING * spreads @ spreads:
                self._more = float(moved @ moved / moved.sum())
            else:
                self._more = min(each.images for each in self._figures) ** -2

    def ends(self, tail: float = TAIL) -> tuple[float, float]:
        """Low and high end of the interval that leaves `tail` on either side."""
        own = np.array([np.subtract(each.ends(tail), each.value) for each in self._figures])
        own = np.where(self._signs[:, None] > 0, own, -own[:, ::-1])
        t = stdtrit(min(each.freedom for each in self._figures), tail)
        squares = ((own.T @ self._correlation) * own.T).sum(axis=1) + self._more * t * t
        low, high = self.value + np.array([-1.0, 1.0]) * np.sqrt(np.maximum(0.0, squares))
        return max(float(low), self._range[0]), min(float(high), self._range[1])

    def p(self) -> float:
        """Two-sided p of no difference: twice the tail whose interval ends at 0, so that p is below
        0.05 exactly where the 95 % interval leaves out 0."""
        if abs(self.value) <= ROUNDING:
            return 1.0

        def beyond(log_tail: float) -> float:
            low, high = self.ends(math.exp(log_tail))
            return low if self.value > 0 else -high

        least, middle, most = map(math.log, (SMALLEST, TAIL, LARGEST))
        first, last = (least, middle) if beyond(middle) > 0 else (middle, most)
        if beyond(first) > 0 or beyond(last) <= 0:
            return 2 * SMALLEST if beyond(first) > 0 else 1.0
        return 2 * math.exp(brentq(beyond, first, last, xtol=1e-7))


def variances(strata: Sequence[Floats], value: float) -> tuple[float, float]:
    """Linearised variances of a level's ratio `value`: (prompts as clusters, images independent).

    The first is the sum of the squares of `influence`. The second sums the squares of the same
    residuals image by image, which for 0/1 terms within a category is the binomial value
    (1 - value) / denominator. A second figure of exactly 0 says that no category varies at all.
    """
    totals = _totals(strata)
    independent = scale = 0.0
    for stratum, total, weight in zip(strata, totals, _weights(totals), strict=True):
        centre = _centre(stratum, value)
        raw = total[SQUARE] + value * value * total[DENOMINATOR]
        rows = raw - 2 * value * total[NUMERATOR] - centre * centre * total[VALID]
        independent += weight**2 * rows
        scale += weight**2 * raw
    # `rows` is a difference of sums: what is left of a true 0 is rounding, not variance.
    if independent <= 1e-12 * scale:
        independent = 0.0
    own = influence(strata, value)
    return float(own @ own), float(independent)


def influence(strata: Sequence[Floats], value: float) -> Floats:
    """What each prompt moves a level's ratio `value` by, (prompts,) in the strata's order.

    The sum of squares is the cluster variance sum_c C/(C-1) sum_i z_i^2 over the C prompts of each
    category's denominator, z_i being a prompt's residual, centred in its category (arXiv
    2411.00640); the sum of products of two ratios' over the same prompts is their covariance. A
    category of one prompt has no spread of its own: its residual is taken about the level's value.
    """
    return np.concatenate(_influences(strata, value))


def _influences(strata: Sequence[Floats], value: float) -> list[Floats]:
    parts = []
    for stratum, weight in zip(strata, _weights(_totals(strata)), strict=True):
        prompts = int(np.count_nonzero(stratum[:, DENOMINATOR]))
        correction = prompts / (prompts - 1) if prompts > 1 else 1.0
        residual = stratum[:, NUMERATOR] - value * stratum[:, DENOMINATOR]
        residual = residual - _centre(stratum, value) * stratum[:, VALID]
        parts.append(weight * math.sqrt(correction) * residual)
    return parts


def _centre(stratum: Floats, value: float) -> float:
    """The mean residual of a category's images; 0 for a category of one prompt."""
    if np.count_nonzero(stratum[:, VALID]) <= 1:
        return 0.0
    numerator, denominator, valid = stratum[:, : VALID + 1].sum(axis=0)
    return float((numerator - value * denominator) / valid)


def _totals(strata: Sequence[Floats]) -> Floats:
    return np.stack([stratum.sum(axis=0) for stratum in strata])


def _weights(totals: Floats) -> Floats:
    """Each category's weight per image in the ratio, over the weighted denominator."""
    valid = totals[:, VALID]
    per_image = (valid > 0) / np.maximum(valid, 1.0) if len(totals) > 1 else np.ones(1)
    weights: Floats = per_image / (per_image @ totals[:, DENOMINATOR])
    return weights


def kish(weights: Floats) -> float:
    """The number of equal weights that are worth as much (Kish 1965)."""
    squares = float(weights @ weights)
    return float(weights.sum()) ** 2 / squares if squares > 0 else 0.0


def _satterthwaite(parts: Floats, prompts: Floats, alone: Bools) -> float:
    """Degrees of freedom of a sum of variances, each of so many prompts; those of one prompt are
    one category together."""
    freedom = np.maximum(prompts - 1, 1.0)
    if alone.any():
        parts = np.append(parts[~alone], parts[alone].sum())
        freedom = np.append(freedom[~alone], max(1.0, np.count_nonzero(alone) - 1.0))
    squares = float((parts**2 / freedom).sum())
    return float(parts.sum()) ** 2 / squares if squares > 0 else float(freedom.sum())
