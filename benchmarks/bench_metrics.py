"""Seconds for `gapbench.metrics.rates` and `paired.changes` on a million verdict rows, one core.

    python benchmarks/bench_metrics.py

100,000 prompts x 10 samples over 10 categories, verdicts correlated within a prompt; all seven
metrics at all levels, and four paired changes. The reference is scipy.stats.bootstrap (paired,
percentile, 2,000 draws) of one metric (weak generation) in each category, from sums per prompt that
it gets ready made.
"""

# The thread limits must stand before numpy is imported.
# ruff: noqa: E402

from __future__ import annotations

import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import platform
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.stats

from gapbench.metrics import METRICS, rates
from gapbench.metrics.paired import changes

Floats = npt.NDArray[np.float64]

CATEGORIES, PROMPTS, SAMPLES, DRAWS = 10, 10_000, 10, 2_000


def verdicts(seed: int = 0) -> pd.DataFrame:
    """The frame of `rates`; a prompt's beta-distributed ease drives all its images' verdicts."""
    rng = np.random.default_rng(seed)
    prompts = CATEGORIES * PROMPTS
    rows = prompts * SAMPLES
    prompt = np.repeat(np.arange(prompts), SAMPLES)
    category = prompt // PROMPTS
    ease = rng.beta(2, 1, prompts)[prompt]
    outside = (rng.random(rows) < ease).astype(float)
    own = np.where(rng.random(rows) < 0.8, outside, (rng.random(rows) < ease).astype(float))
    mismatched = (rng.random(rows) < 0.1).astype(float)
    for verdict in (outside, own, mismatched):
        verdict[rng.random(rows) < 0.01] = np.nan
    tasks = np.array(["a", "b", "c"])
    tiers = np.array(["easy", "medium", "hard"])
    return pd.DataFrame(
        {
            "task": tasks[category % 3],
            "category": np.char.add("c", category.astype(str)),
            "tier": tiers[category % 3],
            "prompt": np.char.add("p", prompt.astype(str)),
            "sample": np.tile(np.arange(SAMPLES), prompts),
            "own": own,
            "outside": outside,
            "score": outside,
            "mismatched": mismatched,
            "mismatched_asked": True,
        }
    )


def share(numerator: Floats, denominator: Floats, axis: int) -> Floats:
    result: Floats = numerator.sum(axis=axis) / denominator.sum(axis=axis)
    return result


def sums(frame: pd.DataFrame) -> dict[str, Floats]:
    """Weak generation's numerator and denominator for each prompt, (prompts, 2), by category."""
    rows = frame[frame["own"].notna() & frame["outside"].notna()]
    rejected = rows["own"] == 0
    terms = pd.DataFrame({"both": rejected & (rows["outside"] == 0), "rejected": rejected})
    found = terms.groupby([rows["category"], rows["prompt"]]).sum().astype(float)
    return {str(name): part.to_numpy() for name, part in found.groupby(level="category")}


def reference(by_category: dict[str, Floats]) -> float:
    """Seconds of scipy's bootstrap of weak generation in every category, DRAWS draws each."""
    start = time.perf_counter()
    for category in by_category.values():
        scipy.stats.bootstrap(
            tuple(category.T.copy()),
            share,
            paired=True,
            vectorized=True,
            n_resamples=DRAWS,
            batch=50,
            method="percentile",
            rng=np.random.default_rng(0),
        )
    return time.perf_counter() - start


def main() -> None:
    frame = verdicts()
    start = time.perf_counter()
    figures = rates(frame)
    seconds = time.perf_counter() - start
    other = verdicts(seed=1)
    start = time.perf_counter()
    moved = changes(frame, other)
    paired = time.perf_counter() - start
    by_category = sums(frame)
    one = reference(by_category)
    every = one * len(METRICS)
    print(f"machine    {platform.machine()}, {processor()}, one core, numpy {np.__version__}")
    print(f"input      {len(frame):,} rows = {CATEGORIES * PROMPTS:,} prompts x {SAMPLES} samples")
    print(f"rates()    {seconds:.2f} s: {len(METRICS)} metrics, {len(figures)} figures, checks in")
    print(f"changes()  {paired:.2f} s: {len(moved)} paired changes")
    print(
        f"reference  {one:.2f} s: scipy.stats.bootstrap {scipy.__version__}, ONE metric,"
        f" {DRAWS:,} draws, categories only, prompts already summed; x {len(METRICS)} metrics ="
        f" {every:.1f} s (scaled, not run)"
    )
    print(f"ratio      {every / seconds:.1f} at equal metrics (scaled reference / rates)")


def processor() -> str:
    """The processor's name where the system gives one."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown processor"


if __name__ == "__main__":
    main()
