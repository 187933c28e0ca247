"""How often 95 % intervals cover what they should, and tests reject what is not there.

    python benchmarks/coverage.py               # the tables of docs/statistics.md
    python benchmarks/coverage.py 30            # the quick form: two minutes
    python benchmarks/coverage.py 500 rates     # one table

A prompt's ease is beta-distributed about the wanted rate, its images are independent given it. Each
cell is before (the rules of version 0.1, former.py) / now (the package's own).
"""

# The thread limits must stand before numpy is imported.
# ruff: noqa: E402

from __future__ import annotations

import os
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import former
import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import ndtr
from scipy.stats import beta
from tabulate import tabulate

from gapbench.metrics import corrected as correction
from gapbench.metrics.intervals import Contrast, figure, interval, ratio
from gapbench.metrics.power import Spread, spread
from gapbench.metrics.ranking import standings

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Random = np.random.Generator
Cell = tuple[str, str, tuple[object, ...]]
"""Row, column, and what the table's function takes besides a random stream and the repetitions."""

DESIGNS = {
    "GenEval 80/99/80/94/100/100": (80, 99, 80, 94, 100, 100),
    "T2I-CompBench++ 8 x 300": (300,) * 8,
    "Science-T2I 118/49/60": (118, 49, 60),
    "11 x 40": (40,) * 11,
    "300/30/30": (300, 30, 30),
    "10 x 10": (10,) * 10,
}
MIXED = (0.02, 0.98, 0.3, 0.9, 0.1, 0.5)
RATES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.3, 0.5)


def ease(rng: Random, prompts: int, share: float, alike: float, z: Floats | None = None) -> Floats:
    """Beta-distributed chances of mean `share`, (prompts, 1), from a fine grid; two images of a
    prompt correlate at `alike`. `z` are the standard normals behind them."""
    z = rng.normal(size=(prompts, 1)) if z is None else z
    found: Floats = _chances(share, alike)[np.minimum((ndtr(z) * 4096).astype(int), 4095)]
    return found


@cache
def _chances(share: float, alike: float) -> Floats:
    total = 1 / alike - 1
    grid = np.linspace(0, 1, 4097)[:-1] + 0.5 / 4096
    table: Floats = beta.ppf(grid, share * total, (1 - share) * total)
    return table


def stratum(rows: Bools | Floats, given: Bools | None = None) -> Floats:
    """The (prompts, 6) sums of (prompts, samples) verdicts or scores, over the images `given`."""
    given = np.ones(rows.shape, dtype=np.bool_) if given is None else given
    terms, zero = rows * given.astype(float), np.zeros(len(rows))
    every = np.full(len(rows), float(rows.shape[1]))
    hits, squares = terms.sum(axis=1), (terms**2).sum(axis=1)
    return np.stack([hits, given.sum(axis=1), every, squares, zero, zero], axis=1)


def value(strata: list[Floats]) -> float:
    return float(ratio(np.array([s.sum(axis=0) for s in strata])))


def covered(before: list[former.Ends], now: list[former.Ends], truth: float) -> str:
    parts = [np.array(each).T for each in (before, now)]
    shares = [100 * np.mean((low <= truth) & (truth <= high)) for low, high in parts]
    return " / ".join(f"{share:.1f}" for share in shares)


def level(
    rng: Random, repeats: int, sizes: tuple[int, ...], shares: tuple[float, ...], images: int,
    alike: float,
) -> str:  # fmt: skip
    """Coverage of a share, categories weighing equally."""
    old, new = [], []
    for _ in range(repeats):
        strata = [
            stratum(rng.random((size, images)) < ease(rng, size, share, alike))
            for size, share in zip(sizes, shares, strict=True)
        ]
        seen = value(strata)
        old.append(former.interval(strata, seen)[0])
        new.append(interval(strata, seen)[:2])
    return covered(old, new, float(np.mean(shares)))


def rates() -> Iterator[Cell]:
    for images in (1, 4, 10):
        for alike in (0.1, 0.4, 0.8)[: 1 if images == 1 else 3]:
            for prompts in (20, 50, 100, 300, 553):
                for share in RATES:
                    label = f"{images} images, correlation {alike}" if images > 1 else "1 image"
                    yield (f"{label}, {prompts} prompts", f"{share}",
                           ((prompts,), (share,), images, alike))  # fmt: skip


def levels() -> Iterator[Cell]:
    for design, sizes in DESIGNS.items():
        for images in (1, 4, 10):
            for share in (0.005, 0.05, 0.3, None):
                each = MIXED if share is None else (share,)
                shares = tuple(each[i % len(each)] for i in range(len(sizes)))
                yield (f"{design}, {images} images", "2 to 98 %" if share is None else f"{share}",
                       (sizes, shares, images, 0.3))  # fmt: skip


SCORES = ((0.05, 0.95), (0.1, 3.0), (0.5, 2.0), (1.0, 30.0), (8.0, 4.0), (3.0, 0.2))
"""The two numbers of a beta distribution."""


def mean_score(rng: Random, repeats: int, prompts: int, a: float, b: float, images: int) -> str:
    """Coverage of a mean score; of a prompt's images, 7 in 10 score alike."""
    old, new = [], []
    for _ in range(repeats):
        scores = rng.beta(a, b, (prompts, images))
        alike = rng.random((prompts, images)) < 0.7
        strata = [stratum(np.where(alike, rng.beta(a, b, (prompts, 1)), scores))]
        seen = value(strata)
        old.append(former.interval(strata, seen, scores=True)[0])
        new.append(interval(strata, seen)[:2])
    return covered(old, new, a / (a + b))


def scores() -> Iterator[Cell]:
    for a, b in SCORES:
        for images in (1, 4):
            for prompts in (20, 50, 100, 300):
                row = f"beta({a:g}, {b:g}), mean {a / (a + b):.3f}, {images} images"
                yield row, f"{prompts} prompts", (prompts, a, b, images)


def tested(
    rng: Random, repeats: int, draw: Callable[[], tuple[list[Floats], list[Floats]]], truth: float
) -> str:
    """Coverage of a difference; where there is none, how often the tests reject; and how often p
    below 0.05 and the interval contradicted each other."""
    old, new, flips, odd, done = [], [], [], [0, 0], 0
    for _ in range(repeats):
        before, after = draw()
        if not all(any(s[:, 1].any() for s in side) for side in (before, after)):
            continue
        first, second = value(before), value(after)
        old.append(former.difference(before, after, first, second))
        flips.append(former.sign_flip(before, after, rng) < 0.05)
        found = Contrast([figure(after, second)], [figure(before, first)])
        new.append(found.ends())
        ends = (old[-1], new[-1])
        outside = [low > 0 or high < 0 for low, high in ends]
        odd[0] += outside[0] != flips[-1]
        if done < repeats // 10:  # p takes ten times as long as the interval
            odd[1] += outside[1] != (found.p() < 0.05)
            done += 1
    text = covered(old, new, truth)
    if not truth:
        rejected = np.mean([low > 0 or high < 0 for low, high in new])
        text += f" ({100 * np.mean(flips):.1f} / {100 * rejected:.1f})"
    assert not odd[1], "p and the interval contradict each other"
    return f"{text}; {100 * odd[0] / len(old):.0f}"


CHANGES = ((0.005, 0.0), (0.02, 0.03), (0.1, 0.0), (0.3, 0.1), (0.5, 0.0), (0.9, 0.08))


def change(
    rng: Random, repeats: int, sizes: tuple[int, ...], share: float, by: float, images: int,
    kept: float,
) -> str:  # fmt: skip
    """Of a paired share. Eases correlate at 0.8; of the images, `kept` stay what they were, or
    rather what the same random number makes of the new ease."""

    def draw() -> tuple[list[Floats], list[Floats]]:
        sides: tuple[list[Floats], list[Floats]] = ([], [])
        for size in sizes:
            z = rng.normal(size=(size, 1))
            other = z if kept else 0.8 * z + 0.6 * rng.normal(size=(size, 1))
            drawn, again = rng.random((2, size, images))
            same = rng.random((size, images)) < kept
            sides[0].append(stratum(drawn < ease(rng, size, share, 0.3, z)))
            later = np.where(same, drawn, again) < ease(rng, size, share + by, 0.3, other)
            sides[1].append(stratum(later))
        return sides

    return tested(rng, repeats, draw, by)


def changes() -> Iterator[Cell]:
    sizes: dict[str, tuple[int, ...]] = {f"{n} prompts": (n,) for n in (20, 50, 118, 300)}
    sizes |= {name: DESIGNS[name] for name in ("Science-T2I 118/49/60", "300/30/30")}
    for kept in (0.0, 0.95):
        for images in (1, 4, 10):
            for design, each in sizes.items():
                for share, by in CHANGES:
                    row = f"{kept:.0%} kept, {images} images, {design}"
                    yield row, f"{share} -> {share + by:g}", (each, share, by, images, kept)


def false_positive(
    rng: Random, repeats: int, sizes: tuple[int, ...], fails: float, later: float, accepts: float,
    images: int,
) -> str:  # fmt: skip
    """Of the false-positive rate, which stays, while the share of images that fail changes."""

    def draw() -> tuple[list[Floats], list[Floats]]:
        sides: tuple[list[Floats], list[Floats]] = ([], [])
        for size in sizes:
            z = rng.normal(size=(2, size, 1))
            for side, failing in zip(sides, (fails, later), strict=True):
                one, two = 0.8 * z + 0.6 * rng.normal(size=(2, size, 1))
                given = rng.random((size, images)) < ease(rng, size, failing, 0.3, one)
                yes = rng.random((size, images)) < ease(rng, size, accepts, 0.3, two)
                side.append(stratum(yes, given))
        return sides

    return tested(rng, repeats, draw, 0.0)


def false_positives() -> Iterator[Cell]:
    sizes: dict[str, tuple[int, ...]] = {f"{n} prompts": (n,) for n in (40, 118, 300)}
    sizes |= {name: DESIGNS[name] for name in ("11 x 40", "300/30/30")}
    for design, each in sizes.items():
        for images in (1, 4):
            for fails, later in ((0.5, 0.5), (0.5, 0.1), (0.3, 0.05)):
                for accepts in (0.1, 0.4):
                    row = f"{design}, {images} images, {accepts} accepted"
                    given = (each, fails, later, accepts, images)
                    yield row, f"{fails} -> {later} fail", given


def model(rng: Random, sizes: tuple[int, ...], images: int, z: list[Floats]) -> pd.DataFrame:
    """A frame of `rates`: 60 % right and recognised, 10 % of mismatched pairs accepted."""
    parts = []
    for number, (size, common) in enumerate(zip(sizes, z, strict=True)):
        own = 0.8 * common + 0.6 * rng.normal(size=(size, 1))
        right = (rng.random((size, images)) < ease(rng, size, 0.6, 0.3, own)).ravel()
        fooled = rng.random(size * images) < 0.1
        prompt = np.repeat(np.arange(size), images)
        parts.append(
            pd.DataFrame(
                {"task": "t", "category": f"c{number}", "tier": "easy",
                 "prompt": [f"{number}-{p}" for p in prompt],
                 "sample": np.tile(np.arange(images), size), "own": right * 1.0,
                 "outside": right * 1.0, "score": right * 1.0, "mismatched": fooled * 1.0,
                 "mismatched_asked": True}
            )
        )  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def board(rng: Random, repeats: int, sizes: tuple[int, ...], images: int, models: int) -> str:
    """Of equal models: coverage of the unified figure, and boards that part some of them."""
    old, new, parted = [], [], np.zeros(2)
    repeats //= models  # 45 tests a board of ten
    for _ in range(repeats):
        z = [rng.normal(size=(size, 1)) for size in sizes]
        frames = {f"m{i}": model(rng, sizes, images, z) for i in range(models)}
        found = standings(frames)
        new += [(s.low, s.high) for s in found.values()]
        parted[1] += any(s.place != 1 for s in found.values())
        # Before: percentiles of one bootstrap, and each model against the head of its group.
        totals = np.zeros((500, models))
        columns = [
            frame.groupby(["category", "prompt"])[["own", "mismatched"]].sum()
            for frame in frames.values()
        ]
        joint = pd.concat(columns, axis=1)
        for _, part in joint.groupby(level="category"):
            counts = rng.multinomial(len(part), np.full(len(part), 1 / len(part)), size=500)
            share = (counts @ part.to_numpy()).reshape(500, models, 2) / (len(part) * images)
            totals = totals + (share[..., 0] - share[..., 1]) / len(sizes)
        draws = dict(zip(frames, totals.T, strict=True))
        old += [tuple(np.quantile(draws[name], (0.025, 0.975))) for name in found]
        head = next(iter(found))
        parted[0] += any(np.quantile(draws[head] - draws[n], 0.025) > 0 for n in found if n != head)
    shares = " / ".join(f"{100 * each / repeats:.0f}" for each in parted)
    return covered(old, new, 0.5) + f" ({shares})"


def boards() -> Iterator[Cell]:
    science = "Science-T2I 118/49/60"
    designs = (("20 prompts", (20,), 1), ("100 prompts", (100,), 4), (science, DESIGNS[science], 1))
    for models in (2, 5, 10):
        for design, sizes, images in designs:
            yield f"{design}, {images} images", f"{models} models", (sizes, images, models)


TRUTH = {"generation": 0.55, "weak_generation": 0.36 / 0.47, "false_positive": 0.2}


METHODS = ("sample", "rogan_gladen", "ppi")


def labelled(
    rng: Random, repeats: int, sizes: tuple[int, ...], labels: int, se: float, sp: float
) -> dict[str, str]:
    """Of rates corrected by people's labels: generation; weak generation; false positive."""
    ends: dict[tuple[str, str], list[list[former.Ends]]] = {
        (method, metric): [[], []] for method in METHODS for metric in TRUTH
    }
    for _ in range(repeats // 2):
        parts = []
        for number, size in enumerate(sizes):
            truth = rng.random((size, 2)) < ease(rng, size, 0.55, 0.3)
            prompts = np.repeat([f"{number}-{p}" for p in range(size)], 2)
            parts.append(
                pd.DataFrame({"category": f"c{number}", "prompt": prompts, "truth": truth.ravel()})
            )
        rows = pd.concat(parts, ignore_index=True).assign(task="t", tier="easy")
        chance = rng.random((2, len(rows)))
        rows["outside"] = np.where(rows["truth"], chance[0] < se, chance[0] >= sp) * 1.0
        rows["own"] = (rows["truth"] == (chance[1] < 0.8)) * 1.0
        rows["human"] = rows["truth"].astype(float)
        rows.loc[rng.permutation(len(rows))[labels:], "human"] = np.nan
        for side, rule in enumerate((former.wald, NOW)):
            correction._interval = rule
            for each in correction.corrected(rows)[: len(TRUTH)]:
                for method in METHODS:
                    found = getattr(each, method)
                    if found is not None:
                        ends[method, each.metric][side].append((found.low, found.high))
        correction._interval = NOW
    return {
        method: "; ".join(
            covered(old, new, TRUTH[metric]) if old and new else "n/a"
            for metric, (old, new) in ((m, ends[method, m]) for m in TRUTH)
        )
        for method in METHODS
    }


NOW = correction._interval


def labels() -> Iterator[Cell]:
    for design, sizes in (("150 prompts", (150,)), ("300/30/30", (300, 30, 30))):
        for count in (40, 120):
            for se, sp in ((0.9, 0.8), (0.98, 0.97)):
                row = f"{design}, {count} labels, judge right {se} / {sp}"
                yield row, "", (sizes, count, se, sp)


def planned(rng: Random, repeats: int, sizes: tuple[int, ...], alike: bool) -> str:
    """How often a comparison of the planned size finds what it was planned for, p below 0.01."""
    gain, images = 0.15, 3
    pilot = [rng.uniform(0.2, 0.6, (8 * size, 1)) for size in sizes]
    frames = []
    for number, chance in enumerate(pilot):
        verdict = (rng.random((len(chance), 4)) < chance).ravel() * 1.0
        prompt = np.repeat([f"{number}-{p}" for p in range(len(chance))], 4)
        frames.append(
            pd.DataFrame(
                {"task": "t", "category": f"c{number}", "tier": "easy", "prompt": prompt,
                 "sample": np.tile(np.arange(4), len(chance)), "own": verdict, "outside": verdict,
                 "score": verdict, "mismatched": np.nan, "mismatched_asked": False}
            )
        )  # fmt: skip
    each = [spread(frame, "generation") for frame in frames]
    equal = Spread(0.4, float(np.mean([s.between for s in each])),
                   float(np.mean([s.within for s in each])), 1, 1)  # fmt: skip
    texts = []
    for plan in (equal, spread(pd.concat(frames), "generation")):
        scale = plan.needed(gain, images, alike) / sum(sizes)
        found = 0
        for _ in range(repeats):
            before, after = [], []
            for size in sizes:
                n = max(2, round(size * scale))
                old = rng.uniform(0.2, 0.6, (n, 1))
                new = (old if alike else rng.uniform(0.2, 0.6, (n, 1))) + gain
                before.append(stratum(rng.random((n, images)) < old))
                after.append(stratum(rng.random((n, images)) < new))
            made = Contrast([figure(after, value(after))], [figure(before, value(before))])
            low, high = made.ends(0.005)
            found += low > 0 or high < 0
        texts.append(f"{100 * found / repeats:.0f}")
    return " / ".join(texts)


def plans() -> Iterator[Cell]:
    for sizes in ((100, 100), (300, 30, 30), (200, 20)):
        design = "/".join(map(str, sizes))
        for alike in (True, False):
            yield design, "at best" if alike else "at worst", (sizes, alike)


TABLES: dict[str, tuple[Callable[[], Iterator[Cell]], Callable[..., str | dict[str, str]], int]] = {
    "rates": (rates, level, 4),
    "levels": (levels, level, 4),
    "scores": (scores, mean_score, 4),
    "changes": (changes, change, 1),
    "false positives": (false_positives, false_positive, 1),
    "boards": (boards, board, 1),
    "labels": (labels, labelled, 1),
    "plans": (plans, planned, 4),
}
"""Cells, what simulates one, and how many times as many runs it gets, being quick."""


def run(table: str, cell: Cell, repeats: int) -> str | dict[str, str]:
    row, column, given = cell
    rng = np.random.default_rng(zlib.crc32(f"{table}/{row}/{column}".encode()))
    return TABLES[table][1](rng, repeats, *given)


def main() -> None:
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    start = time.perf_counter()
    with ProcessPoolExecutor() as pool:
        for table in sys.argv[2:] or TABLES:
            make, _, factor = TABLES[table]
            cells, runs = list(make()), repeats * factor
            texts = pool.map(run, [table] * len(cells), cells, [runs] * len(cells))
            rows: dict[str, dict[str, str]] = {}
            for (row, column, _), text in zip(cells, texts, strict=True):
                rows.setdefault(row, {}).update({column: text} if isinstance(text, str) else text)
            heads = list(dict.fromkeys(head for found in rows.values() for head in found))
            body = [[row, *(found.get(head, "") for head in heads)] for row, found in rows.items()]
            print(tabulate(body, [table, *heads], tablefmt="pipe", disable_numparse=True), "\n")
            error = 100 * np.sqrt(0.95 * 0.05 / runs)
            about = f"{runs} runs a cell, standard error {error:.1f} points, each cell before / now"
            print(f"{about}; {time.perf_counter() - start:.0f} s\n", flush=True)


if __name__ == "__main__":
    main()
