"""Storing and reading a run's images on all cores, against one at a time.

    python benchmarks/bench_store.py [images]

Smooth pictures with a little noise, 384 x 384 pixels as Janus-Pro draws them, packed as PNG and
written to disk with their digest, then read again and checked against it.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from gapbench.runs.folder import RunFolder, on_all_cores

SIDE = 384


def pictures(count: int) -> list[Image.Image]:
    random = np.random.default_rng(0)
    made = []
    for _ in range(count):
        noise = Image.fromarray(random.integers(0, 256, (SIDE, SIDE, 3), np.uint8))
        smooth = np.asarray(noise.filter(ImageFilter.GaussianBlur(8)), np.int16)
        grain = random.integers(-1, 2, smooth.shape, np.int16)
        made.append(Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)))
    return made


def a_second(count: int, call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return count / (time.perf_counter() - start)


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 64
    images = pictures(count)
    with tempfile.TemporaryDirectory() as name:
        one, all_ = (RunFolder.create(Path(name), m, {"of": m}, {}) for m in ("one", "all"))
        digests: list[str] = []
        alone = a_second(count, lambda: digests.extend(map(one.add_image, images)))
        spread = a_second(count, lambda: all_.add_images(images))
        print(f"stored: {spread:.1f} images/s on {os.cpu_count()} cores, {alone:.1f} one at a time")
        alone = a_second(count, lambda: list(map(one.image, digests)))
        spread = a_second(count, lambda: on_all_cores(all_.image, digests))
        print(f"read: {spread:.1f} images/s on {os.cpu_count()} cores, {alone:.1f} one at a time")


if __name__ == "__main__":
    main()
