"""CUDA graphs: launching kernels one by one can take longer than they run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

from gapbench.files import first_line

LOG: Final = logging.getLogger("gapbench")
MOST: Final = 6
"""Shapes that graphs are kept for: each holds memory."""


class Graphs:
    """Functions of a tensor as graphs, one for each function and shape."""

    def __init__(self) -> None:
        self._made: dict[object, tuple[Tensor, Any, Callable[[], None]]] = {}
        self._most = MOST

    def __call__(self, name: str, do: Callable[[Tensor], Any], given: Tensor) -> Any:
        """`do(given)`: on a GPU by the graph of the first function of this name that got such a
        tensor, whose next call writes over what this one returns."""
        key = name, given.shape, given.dtype
        if key not in self._made and given.is_cuda and len(self._made) < self._most:
            kept, outs = given.clone(), []
            try:
                replay = graph(lambda: outs.append(do(kept)))
                self._made[key] = kept, outs[-1], replay
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                self._most = 0
                LOG.warning("WARNING: no CUDA graph, so verdicts are slower: %s", first_line(error))
        if key not in self._made:
            return do(given)
        kept, out, replay = self._made[key]
        kept.copy_(given)
        replay()
        return out


def graph(do: Callable[[], None]) -> Callable[[], None]:
    """A function of tensors at fixed places as one CUDA graph. It runs once meanwhile, on whatever
    the tensors hold.

    Raises RuntimeError where it cannot be captured.
    """
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        do()
    torch.cuda.current_stream().wait_stream(side)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured, capture_error_mode="thread_local"):  # others may use the GPU
        do()
    return captured.replay
