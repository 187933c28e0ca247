"""Intervals for ratios of sums over images, with the prompt as the unit (design, section 4).

Everything here works on sums per prompt. A stratum is one category's array of shape (prompts, 6),
whose columns are the constants below. A level is a list of strata, each with at least one valid
image. Its ratio weighs categories equally: sum_c(num_c / valid_c) / sum_c(den_c / valid_c); with
one category that is num / den.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

Floats = npt.NDArray[np.float64]

# Columns of a stratum: sums over a prompt's images of the numerator term, the denominator term
# (0 or 1), whether the image is valid, the squared numerator term, whether the numerator term is
# neither 0 nor 1, and whether the image was left out for want of a verdict.
NUMERATOR, DENOMINATOR, VALID, SQUARE, FRACTIONAL, ABSTAINED = range(6)

Z = 1.96
BLOCK_CELLS = 4_000_000


def wilson(value: float, n: float, z: float = Z) -> tuple[float, float]:
    """Wilson's score interval of a share `value` in [0, 1] seen on `n` > 0 independent trials.

    `n` need not be whole: an effective sample size goes here. Source: Wilson 1927; for shares over
    few prompts as arXiv 2503.01747 advises.
    """
    centre = value + z * z / (2 * n)
    half = z * math.sqrt(value * (1 - value) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def bootstrap(sums: Floats, name: str, draws: int) -> Floats:
    """Column totals of `draws` resamples, with replacement, of a category's prompts.

    `sums` is (prompts, columns), the result (draws, columns). The draws depend on `name` and on
    the set of rows only, never on their order. Prompts with equal rows are exchangeable, so what
    is drawn is how often each distinct row occurs: exactly the bootstrap over prompts.
    """
    profiles, sizes = np.unique(sums, axis=0, return_counts=True)
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:16]))
    # Blocks bound the memory where profiles are about as many as prompts; the draws do not change.
    block = max(1, BLOCK_CELLS // len(profiles))
    blocks = [min(block, draws - start) for start in range(0, draws, block)]
    shares = sizes / len(sums)
    return np.concatenate(
        [rng.multinomial(len(sums), shares, size=size) @ profiles for size in blocks]
    )


def ratio(totals: Floats) -> Floats:
    """The level's ratio from totals (categories, ..., at least 3); NaN where it is 0 / 0.

    The last axis holds numerator, denominator and valid first; the result has the axes between.
    """
    numerator, denominator, valid = np.moveaxis(totals[..., : VALID + 1], -1, 0)
    # A category that a draw leaves without valid images adds 0 / 1 to both sums: it drops out.
    unit = np.where(valid > 0, valid, 1.0) if len(totals) > 1 else np.ones_like(valid)
    with np.errstate(invalid="ignore"):
        result: Floats = (numerator / unit).sum(axis=0) / (denominator / unit).sum(axis=0)
    return result


def variances(strata: Sequence[Floats], value: float) -> tuple[float, float]:
    """Linearised variances of a level's ratio `value`: (prompts as clusters, images independent).

    The first is the sum of the squares of `influence`. The second sums the squares of the same
    residuals image by image, which for 0/1 terms within a category is the binomial value
    (1 - value) / denominator. A second figure of exactly 0 says that no category varies at all.
    """
    totals = np.stack([stratum.sum(axis=0) for stratum in strata])
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
    category, z_i being a prompt's residual, centred in its category (arXiv 2411.00640; peers,
    section 4); the sum of products of two ratios' over the same prompts is their covariance. A
    category of one prompt has no spread of its own: its residual is taken about the level's value.
    """
    totals = np.stack([stratum.sum(axis=0) for stratum in strata])
    parts = []
    for stratum, weight in zip(strata, _weights(totals), strict=True):
        prompts = int(np.count_nonzero(stratum[:, VALID]))
        correction = prompts / (prompts - 1) if prompts > 1 else 1.0
        residual = stratum[:, NUMERATOR] - value * stratum[:, DENOMINATOR]
        residual = residual - _centre(stratum, value) * stratum[:, VALID]
        parts.append(weight * math.sqrt(correction) * residual)
    return np.concatenate(parts)


def _centre(stratum: Floats, value: float) -> float:
    """The mean residual of a category's images; 0 for a category of one prompt."""
    if np.count_nonzero(stratum[:, VALID]) == 1:
        return 0.0
    numerator, denominator, valid = stratum[:, : VALID + 1].sum(axis=0)
    return float((numerator - value * denominator) / valid)


def _weights(totals: Floats) -> Floats:
    """Each category's weight per image in the ratio, over the weighted denominator."""
    per_image = 1 / totals[:, VALID] if len(totals) > 1 else np.ones(1)
    weights: Floats = per_image / (per_image @ totals[:, DENOMINATOR])
    return weights


def _clusters(strata: Sequence[Floats]) -> float:
    """Prompts behind the denominator, at equal category weights (Kish's effective number)."""
    totals = np.stack([stratum.sum(axis=0) for stratum in strata])
    shares = _weights(totals) * totals[:, DENOMINATOR]
    prompts = np.array([np.count_nonzero(stratum[:, DENOMINATOR]) for stratum in strata])
    return float(1 / (shares**2 / np.maximum(prompts, 1)).sum())


def _freedom(strata: Sequence[Floats]) -> int:
    """Degrees of freedom of the cluster variance: prompts behind the denominator less categories,
    those of one prompt counting as one category together."""
    prompts = [int(np.count_nonzero(stratum[:, DENOMINATOR])) for stratum in strata]
    alone = sum(count == 1 for count in prompts)
    return max(1, sum(prompts) - sum(count > 1 for count in prompts) - min(alone, 1))


def interval(strata: Sequence[Floats], value: float) -> tuple[float, float, float]:
    """Low and high end of the 95 % interval of a level's ratio `value`, and its design effect.

    A share gets Wilson's interval on its effective sample size, value (1 - value) over the cluster
    variance, at Student's t quantile (Korn and Graubard 1998; Dean and Pagano 2015 compare the
    rules); scores off 0 and 1 get value +- t * standard error. Where the variance between prompts
    cannot be estimated (one prompt, or no category varies) images of one prompt count as one.
    """
    n, deff, t = _effective(strata, value)
    if any(stratum[:, FRACTIONAL].any() for stratum in strata):
        half = t * math.sqrt(variances(strata, value)[0])
        return value - half, value + half, deff
    low, high = wilson(value, n, t)
    return min(low, value), max(high, value), deff


def _effective(strata: Sequence[Floats], value: float) -> tuple[float, float, float]:
    """A share's effective sample size and design effect, and the quantile for its interval."""
    denominator = sum(float(stratum[:, DENOMINATOR].sum()) for stratum in strata)
    prompts = sum(int(np.count_nonzero(stratum[:, DENOMINATOR])) for stratum in strata)
    cluster, independent = variances(strata, value)
    if prompts == 1 or independent == 0:
        clusters = _clusters(strata)
        return clusters, denominator / clusters, Z
    # No sample is worth more than its images, however evenly prompts fall out.
    n = abs(value * (1 - value)) / max(cluster, independent)
    return n, cluster / independent, float(stdtrit(_freedom(strata), 0.975))


def difference(
    before: Sequence[Floats], after: Sequence[Floats], first: float, second: float
) -> tuple[float, float]:
    """Low and high end of the 95 % interval of `second` - `first`, ratios over the same prompts.

    Squares and adds the two ratios' own intervals, less their covariance over prompts (Newcombe
    1998, method 10 for paired shares; Zou and Donner 2008): where one ratio's interval is wide on
    one side, so is the difference's. Shares that hardly an image tells apart would look certain;
    half an image changed each way is added to what was seen (in the manner of Bonett and Price
    2012). For scores this is the paired t interval.
    """
    (low1, high1, _), (low2, high2, _) = interval(before, first), interval(after, second)
    one, two = influence(before, first), influence(after, second)
    covariance, spread = float(one @ two), math.sqrt(float(one @ one) * float(two @ two))
    if not any(stratum[:, FRACTIONAL].any() for stratum in (*before, *after)):
        covariance -= 0.5 / (_pieces(before, first) * _pieces(after, second))
    correlation = max(-1.0, covariance / spread) if spread > 0 else 0.0

    def side(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a * a + b * b - 2 * correlation * a * b))

    change = second - first
    low = change - side(second - low2, high1 - first)
    return low, change + side(high2 - second, first - low1)


def _pieces(strata: Sequence[Floats], value: float) -> float:
    """How many independent images a share is made of, at most as many as there are."""
    images = sum(float(stratum[:, DENOMINATOR].sum()) for stratum in strata)
    return min(_effective(strata, value)[0], images)
