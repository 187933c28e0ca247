"""How fast drawing could be at best: bytes and FLOPs of a token against a device's ceilings.

    python benchmarks/floors.py [--size tiny|mini|small|long|1b|7b] [--device cpu|h100|h200]

A step feeds one token a row: it reads every weight of the language model, of the image head and of
the aligner once, and every row's keys and values, and multiplies each weight with each row.
Guidance doubles the rows. The floor is the larger of bytes over bandwidth and FLOPs over matmul
speed; the prompt's prefix and the VQ decoder come on top. This CPU's ceilings are measured, one
thread, float32. The GPUs' are NVIDIA's own, bfloat16 without sparsity: data sheets "H100 Tensor
Core GPU" (SXM: 3.35 TB/s, 989 TFLOP/s) and "H200 Tensor Core GPU" (4.8 TB/s, 989 TFLOP/s).
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from bench_generate import BATCHES, EMBED, LAYERS, SIZES

PROMPT = 25
QUESTION = {"tiny": 20, "mini": 20, "small": 20, "long": 20, "1b": 110, "7b": 110}
"""Tokens of a prompt before an image, and of a verdict question with its answer, about; the small
ones have janus-mini's tokenizer, which knows the question."""
CEILINGS = {"h100": (3.35e12, 989e12, 2), "h200": (4.8e12, 989e12, 2)}
"""Bytes and FLOPs a second, and bytes a number."""


@dataclass(frozen=True)
class Geometry:
    """What a token costs; counts of parameters, and of numbers in a token's keys and values."""

    core: int
    drawing: int
    cached: int
    tokens: int
    question: int

    @classmethod
    def of(cls, size: str) -> Geometry:
        layers, width, _, inner = LAYERS[size]
        codes, side = SIZES[size]
        core = layers * (4 * width * width + 3 * width * inner)
        head = width * width + width * codes + EMBED * width + width * width
        return cls(core, head, 2 * layers * width, side * side, QUESTION[size])

    def step(self, rows: int, wide: int) -> tuple[float, float]:
        """Bytes and FLOPs of a step over `rows` rows, in the middle of an image."""
        weights, seen = self.core + self.drawing, PROMPT + self.tokens / 2
        # Each of a row's keys and values takes part in one product with as many numbers.
        return (
            wide * (weights + rows * seen * self.cached),
            2 * rows * (weights + seen * self.cached),
        )

    def verdict(self) -> float:
        """FLOPs of a verdict: one pass over image, question and answer, the vision tower aside."""
        length = self.tokens + self.question
        return 2 * length * (self.core + length / 2 * self.cached)


def rate(do: Callable[[], object], amount: float) -> float:
    """`amount` a second of the process's own time, the best of ten."""
    best = 0.0
    for _ in range(10):
        start = time.process_time()
        do()
        best = max(best, amount / (time.process_time() - start))
    return best


def measured() -> tuple[float, float, int]:
    """This CPU's bandwidth and matmul speed on one thread."""
    torch.set_num_threads(1)
    far, square = torch.ones(64 * 2**20), torch.randn(2048, 2048)
    return rate(far.sum, far.nbytes), rate(lambda: square @ square, 2 * 2048**3), 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=LAYERS, default="small")
    parser.add_argument("--device", choices=("cpu", *CEILINGS), default="cpu")
    args = parser.parse_args()
    geometry = Geometry.of(args.size)
    bandwidth, flops, wide = measured() if args.device == "cpu" else CEILINGS[args.device]
    where = platform.processor() or platform.machine() if args.device == "cpu" else args.device
    print(f"{where}: {bandwidth / 1e9:,.1f} GB/s, {flops / 1e9:,.0f} GFLOP/s")
    print(
        f"{args.size}: {(geometry.core + geometry.drawing) / 1e6:,.1f} M parameters a token, "
        f"{geometry.cached * wide / 1e3:,.1f} kB of keys and values a token, "
        f"{geometry.tokens} tokens an image"
    )
    print(f"verdict: {geometry.verdict() / 1e9:.2f} GFLOP, {flops / geometry.verdict():,.1f}/s")
    print("batch  MB a step  GFLOP a step  bound by  floor, images/s")
    for batch in BATCHES:
        size, work = geometry.step(2 * batch, wide)
        seconds = max(size / bandwidth, work / flops)
        bound = "memory" if size / bandwidth > work / flops else "compute"
        images = batch / (seconds * geometry.tokens)
        print(f"{batch:5}  {size / 1e6:9,.1f}  {work / 1e9:12,.2f}  {bound:8}  {images:15,.2f}")


if __name__ == "__main__":
    main()
