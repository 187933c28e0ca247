"""Networks that give NaN or infinities: float16 overflows, or a training diverged.

A picture or a verdict made of such values would be counted as the model's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gapbench.types import GapbenchError


def require_finite(who: str, part: str, values: Tensor) -> None:
    """Raises GapbenchError that names the part of the model which gave them, unless all are."""
    _require(who, part, values.isfinite())


def _require(who: str, part: str, finite: Tensor) -> None:
    if not finite.all():
        raise GapbenchError(
            f"{who}: its {part} gives NaN or infinite values; try another --dtype, or an earlier "
            "checkpoint if its training diverged"
        )


@contextmanager
def watched(who: str, layers: Mapping[str, nn.Module]) -> Iterator[None]:
    """Hold what these layers, named by the part that they end, compute against `require_finite`:
    in the end, since each look waits for a GPU."""
    finite: dict[str, list[Tensor]] = {part: [] for part in layers}

    def hold(part: str, layer: nn.Module) -> Any:
        return layer.register_forward_hook(
            lambda *call: finite[part].append(call[-1].isfinite().all())
        )

    handles = [hold(part, layer) for part, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    for part, flags in finite.items():
        if flags:
            _require(who, part, torch.stack(flags))
