"""What a second core brings to janus-mini's drawing, and what other work costs it.

    python benchmarks/bench_cores.py

Batches of 64 on torch with one thread, the reference, on torch's own two threads, and in two parts
side by side, as the adapter works (`models/autoregressive/cores.py`); batches of 128 in two
processes, as `--workers 2` does, once they are loaded. Alone, and beside two processes that keep
both cores busy.
Images have to be the same bytes in every way.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time

import torch

from gapbench import load_model, load_task
from gapbench.engines.processes import Copies
from gapbench.models.base import Model
from gapbench.runs.plan import seed_of

BATCH, ROUNDS = 64, 4
WAYS = {
    "one thread": (1, 1, 1),
    "torch's two threads": (1, 2, 1),
    "two parts": (2, 1, 1),
    "two processes": (2, 2, 2),
}
"""Torch's threads before the model takes the cores, and while it draws; processes."""


def drawn(before: int, during: int, workers: int) -> tuple[float, list[bytes]]:
    """Images a second, and the images."""
    torch.set_num_threads(before)
    model: Model
    if workers == 1:
        model = load_model("janus-mini", device="cpu")
    else:
        model = Copies("janus-mini", "cpu", "auto", None, workers)
    model.generate(["a red circle"] * workers, [0] * workers)
    torch.set_num_threads(during)
    prompts = [prompt.text for prompt in load_task("shapes").prompts()[: BATCH * ROUNDS]]
    found = []
    start = time.perf_counter()
    for at in range(0, len(prompts), BATCH * workers):
        batch = prompts[at : at + BATCH * workers]
        found += model.generate(batch, [seed_of(0, prompt, 0) for prompt in batch])
    seconds = time.perf_counter() - start
    model.release()
    return len(found) / seconds, [drawing.image.tobytes() for drawing in found]


def main() -> None:
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    known: list[bytes] | None = None
    for others in (0, 2):
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(others)]
        try:
            print(f"beside {others} busy processes, images/s")
            alone = 0.0
            for name, threads in WAYS.items():
                speed, images = drawn(*threads)
                known = known or images
                if images != known:
                    raise SystemExit(f"{name}: other images")
                alone = alone or speed
                print(f"  {name:20} {speed:7.1f} {speed / alone:6.2f} x one thread")
        finally:
            for process in busy:
                process.kill()
                process.wait()


if __name__ == "__main__":
    main()
