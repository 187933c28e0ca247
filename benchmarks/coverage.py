"""How often 95 % intervals cover what they should: clustered verdicts, simulated.

    python benchmarks/coverage.py           # the table of docs/statistics.md, about ten minutes
    python benchmarks/coverage.py 200       # fewer repetitions

Prompts have a beta-distributed ease of the wanted mean, images of a prompt are independent given
it. The intervals are the package's own (`gapbench.metrics.intervals`), beside what stood there
before: the percentile cluster bootstrap, with Wilson's interval on the effective sample size (at
the normal quantile) below 100 prompts and outside 5 to 95 %.
"""

# The thread limits must stand before numpy is imported.
# ruff: noqa: E402

from __future__ import annotations

import os
import sys
import time
from functools import cache

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr
from scipy.stats import beta
from tabulate import tabulate

from gapbench.metrics.intervals import bootstrap, difference, interval, ratio, variances, wilson
from gapbench.metrics.paired import sign_flip

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

SAMPLES = 4
DRAWS = 500
PROMPTS = (20, 50, 118, 300, 500)
SHARES = (0.02, 0.05, 0.1, 0.3, 0.5)
ALIKE = (0.1, 0.4)
"""Correlation of two images of a prompt."""


def ease(z: Floats, share: float, alike: float) -> Floats:
    """Beta-distributed chances of mean `share` at standard normal `z`, from a fine grid."""
    found: Floats = chances(share, alike)[np.minimum((ndtr(z) * 4096).astype(int), 4095)]
    return found


@cache
def chances(share: float, alike: float) -> Floats:
    total = 1 / alike - 1
    grid = np.linspace(0, 1, 4097)[:-1] + 0.5 / 4096
    table: Floats = beta.ppf(grid, share * total, (1 - share) * total)
    return table


def stratum(rows: Bools, given: Bools | None = None) -> Floats:
    """The (prompts, 6) sums of (prompts, samples) verdicts, over the images `given`."""
    given = np.ones_like(rows) if given is None else given
    hits = (rows & given).sum(axis=1)
    zero = np.zeros(len(rows))
    every = np.full(len(rows), rows.shape[1])
    return np.stack([hits, given.sum(axis=1), every, hits, zero, zero], axis=1).astype(float)


def value(*strata: Floats) -> float:
    return float(ratio(np.array([s.sum(axis=0) for s in strata])))


def percentile(drawn: Floats) -> tuple[float, float]:
    low, high = np.nanquantile(drawn, (0.025, 0.975))
    return float(low), float(high)


def former(strata: list[Floats], seen: float, drawn: tuple[float, float]) -> tuple[float, float]:
    """The rule that stood in `interval` before, given the percentile interval."""
    prompts = sum(np.count_nonzero(s[:, 1]) for s in strata)
    if prompts >= 100 and 0.05 <= seen <= 0.95:
        return drawn
    cluster, independent = variances(strata, seen)
    spread = seen * (1 - seen)
    images = sum(s[:, 1].sum() for s in strata)
    n = spread / max(cluster, spread / images) if independent > 0 else prompts
    low, high = wilson(seen, float(n))
    return min(low, seen), max(high, seen)


def covered(found: list[tuple[float, float]], truth: float) -> str:
    low, high = np.array(found).T
    return f"{100 * np.mean((low <= truth) & (truth <= high)):.1f}"


def rates(rng: np.random.Generator, repeats: int) -> list[list[object]]:
    """Coverage of a share of a category's images."""
    rows: list[list[object]] = []
    for alike in ALIKE:
        for prompts in PROMPTS:
            for share in SHARES:
                now, plain, old = [], [], []
                for _ in range(repeats):
                    chance = ease(rng.normal(size=(prompts, 1)), share, alike)
                    sums = stratum(rng.random((prompts, SAMPLES)) < chance)
                    seen = value(sums)
                    now.append(interval([sums], seen)[:2])
                    draws = ratio(bootstrap(sums[:, :3], str(rng.integers(1 << 60)), DRAWS)[None])
                    plain.append(percentile(draws))
                    old.append(former([sums], seen, plain[-1]))
                found = [covered(each, share) for each in (plain, old, now)]
                rows.append([alike, prompts, share, *found])
    return rows


CHANGES = ((0.02, 0.0), (0.02, 0.03), (0.1, 0.0), (0.1, 0.1), (0.3, 0.1), (0.5, 0.0), (0.5, 0.05))


def pairs(
    rng: np.random.Generator, prompts: int, share: float, change: float, alike: float, kept: float
) -> tuple[Floats, Floats]:
    """Before and after: eases correlate at 0.8; of the images, `kept` stay what they were, or
    rather what the same random number makes of the new ease."""
    z = rng.normal(size=(prompts, 1))
    other = 0.8 * z + 0.6 * rng.normal(size=(prompts, 1))
    first, second = ease(z, share, alike), ease(z if kept else other, share + change, alike)
    drawn, again = rng.random((2, prompts, SAMPLES))
    same = rng.random((prompts, SAMPLES)) < kept
    return stratum(drawn < first), stratum(np.where(same, drawn, again) < second)


def differences(rng: np.random.Generator, repeats: int) -> list[list[object]]:
    """Coverage of paired differences, and how often the test rejects at 0.05."""
    rows: list[list[object]] = []
    for kept in (0.0, 0.95):
        for prompts in PROMPTS:
            for share, change in CHANGES:
                now, plain, p = [], [], []
                for _ in range(repeats):
                    one, two = pairs(rng, prompts, share, change, 0.3, kept)
                    first, second = value(one), value(two)
                    now.append(difference([one], [two], first, second))
                    both = np.concatenate([one[:, :3], two[:, :3]], axis=1)
                    draws = bootstrap(both, str(rng.integers(1 << 60)), DRAWS)
                    plain.append(percentile(ratio(draws[None, :, 3:]) - ratio(draws[None, :, :3])))
                    if not change:
                        p.append(sign_flip([one], [two], str(rng.integers(1 << 60)), DRAWS - 1))
                size = f"{100 * np.mean(np.array(p) <= 0.05):.1f}" if p else ""
                found = [covered(each, change) for each in (plain, now)]
                rows.append([f"{kept:.0%}", prompts, share, change, *found, size])
    return rows


THREE = ((0.05, 60), (0.3, 30), (0.9, 120))
ELEVEN = tuple((s, 40) for s in (0.9, 0.1, 0.3, 0.8, 0.75, 0.8, 0.9, 0.35, 0.9, 0.14, 0.94))
TEN_SMALL = tuple((s, 10) for s in (*(0.02,) * 6, *(0.98,) * 3, 0.3))
"""(share, prompts) of each category."""


def levels(rng: np.random.Generator, repeats: int) -> list[list[object]]:
    """Coverage above the category (equal weights), of a conditional rate, and of scores."""
    rows: list[list[object]] = []
    means = {"mean of 3 categories": THREE, "mean of 11 categories of 40 prompts": ELEVEN,
             "mean of 10 extreme categories of 10 prompts": TEN_SMALL}  # fmt: skip
    change, failing, scored = (
        "change of 11 categories of 40 prompts", "false positives of 118 prompts",
        "skewed scores of 60 prompts",
    )  # fmt: skip
    for name in (*means, change, failing, scored):
        for alike in ALIKE:
            now, plain = [], []
            for _ in range(repeats):
                label, later = str(rng.integers(1 << 60)), []
                if name in means:
                    truth, strata = float(np.mean([share for share, _ in means[name]])), []
                    for share, size in means[name]:
                        chance = ease(rng.normal(size=(size, 1)), share, alike)
                        strata.append(stratum(rng.random((size, SAMPLES)) < chance))
                elif name == change:
                    truth = 0.05
                    both = [pairs(rng, size, share, truth, alike, 0.0) for share, size in ELEVEN]
                    strata, later = ([pair[i] for pair in both] for i in (0, 1))
                elif name == failing:
                    truth = 0.2
                    z = rng.normal(size=(2, 118, 1))
                    failed = rng.random((118, SAMPLES)) < ease(z[0], 0.3, alike)
                    accepts = rng.random((118, SAMPLES)) < ease(z[1], truth, alike)
                    strata = [stratum(accepts, failed)]
                else:
                    truth = 0.2
                    scores = rng.beta(0.5, 2.0, (60, 1)) * np.ones(SAMPLES)
                    scores = (1 - alike) * rng.beta(0.5, 2.0, (60, SAMPLES)) + alike * scores
                    sums, squares = scores.sum(axis=1), (scores**2).sum(axis=1)
                    every, zero = np.full(60, float(SAMPLES)), np.zeros(60)
                    strata = [np.stack([sums, every, every, squares, every, zero], axis=1)]
                sides = [s[:, :3] for s in strata]
                if later:
                    sides = [
                        np.concatenate([a, b[:, :3]], axis=1)
                        for a, b in zip(sides, later, strict=True)
                    ]
                drawn = np.stack([bootstrap(s, f"{label}/{i}", DRAWS) for i, s in enumerate(sides)])
                if later:
                    now.append(difference(strata, later, value(*strata), value(*later)))
                    plain.append(percentile(ratio(drawn[..., 3:]) - ratio(drawn[..., :3])))
                else:
                    now.append(interval(strata, value(*strata))[:2])
                    plain.append(percentile(ratio(drawn)))
            rows.append([name, alike, *(covered(each, truth) for each in (plain, now))])
    return rows


def main() -> None:
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    start = time.perf_counter()
    error = 100 * np.sqrt(0.95 * 0.05 / repeats)
    print(f"{repeats} repetitions, {SAMPLES} images a prompt; standard error {error:.1f} points.\n")
    tables = (
        (rates, ("within", "prompts", "share", "bootstrap", "former rule", "now")),
        (differences, ("kept", "prompts", "share", "change", "bootstrap", "now", "test rejects")),
        (levels, ("figure", "within", "bootstrap", "now")),
    )
    for make, heads in tables:
        print(
            tabulate(
                make(np.random.default_rng(0), repeats),
                heads,
                tablefmt="pipe",
                disable_numparse=True,
            ),
            "\n",
        )
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
