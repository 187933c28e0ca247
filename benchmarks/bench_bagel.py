"""Drawing with BAGEL against its authors' own loop, one image at a time, on the same tiny random
weights, on one thread of a CPU in float32.

    PYTHONPATH=.:tests python benchmarks/bench_bagel.py CLONE PYTHON [--batch 1 16] [--steps 50]

CLONE is ByteDance-Seed/Bagel at 056b5fd, PYTHON an interpreter with the packages that
scripts/parity_bagel.py names. Upstream's times are taken before and after ours, and the better one
counts. Take a machine with nothing else to do.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from pathlib import Path

import torch
from bagels import write  # type: ignore[import-not-found]  # of the tests

from gapbench import load_model

SCRIPT = Path(__file__).parents[1] / "scripts" / "parity_bagel.py"
PROMPT = "a red circle and a blue square"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("clone")
    parser.add_argument("python")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--steps", type=int, default=50)
    given = parser.parse_args()
    torch.set_num_threads(1)

    def upstream() -> float:
        command = [given.python, str(SCRIPT), given.clone, "--seconds", str(given.steps)]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    theirs, ours = upstream(), {}
    with tempfile.TemporaryDirectory() as place:
        folder = write(Path(place) / "tiny")
        for batch in given.batch:
            recipe = {"steps": given.steps, "block": batch}
            model = load_model(str(folder), device="cpu", dtype="float32", recipe=recipe)
            taken = []
            for _ in range(4):  # the first one loads
                start = time.perf_counter()
                model.generate([PROMPT] * batch, range(batch))
                taken.append((time.perf_counter() - start) / batch)
            ours[batch] = min(taken)
    theirs = min(theirs, upstream())
    print(f"upstream, one at a time: {1 / theirs:.2f} images/s")
    for batch, each in ours.items():
        print(f"gapbench, batch {batch}: {1 / each:.2f} images/s, {theirs / each:.2f} x")


if __name__ == "__main__":
    main()
