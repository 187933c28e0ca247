"""How a small model uses a CPU: torch on one thread, and a batch's rows in parts side by side."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import torch

T = TypeVar("T")
MOST: Final = 2
"""Parts of a batch; what more bring is not measured."""
LEAST: Final = 16
"""Rows of a part: smaller ones cost what the second core brings."""


class Cores:
    """A CPU's cores in the hands of one model, from `take` to `give_back`.

    Torch's own threads meet after every operation and wait for each other by spinning: where other
    processes keep the cores busy, two of them are slower than one (benchmarks/bench_cores.py).
    Threads that share nothing but the weights never wait.
    """

    def __init__(self) -> None:
        self._before = 0

    def take(self) -> None:
        """Torch has one thread from now on; parts run side by side where it had more."""
        if not self._before:
            self._before = torch.get_num_threads()
            torch.set_num_threads(1)

    def give_back(self) -> None:
        if self._before:
            torch.set_num_threads(self._before)
            self._before = 0

    def split(self, call: Callable[[slice], list[T]], rows: int) -> list[T]:
        """`call`'s lists for consecutive parts of `rows` rows, joined.

        It is all one part where gradients may be wanted, which belong to the calling thread.
        """
        parts = min(self._before, MOST, rows // LEAST) if torch.is_inference_mode_enabled() else 1
        if parts < 2:
            return call(slice(0, rows))
        edges = [rows * number // parts for number in range(parts + 1)]

        @torch.inference_mode()
        def part(number: int) -> list[T]:
            return call(slice(edges[number], edges[number + 1]))

        with ThreadPoolExecutor(parts) as pool:
            return [found for made in pool.map(part, range(parts)) for found in made]
