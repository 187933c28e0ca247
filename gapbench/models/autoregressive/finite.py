"""Networks that give NaN or infinities: float16 overflows, or a training diverged.

A picture or a verdict made of such values would be counted as the model's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from gapbench.types import GapbenchError


def require_finite(who: str, part: str, values: Tensor) -> None:
    """Raises GapbenchError that names the part of the model which gave them, unless all are."""
    if not values.isfinite().all():
        raise GapbenchError(
            f"{who}: its {part} gives NaN or infinite values; try another --dtype, or an earlier "
            "checkpoint if its training diverged"
        )


@contextmanager
def watched(who: str, layers: Mapping[str, nn.Module]) -> Iterator[None]:
    """Hold what these layers, named by the part that they end, compute against `require_finite`."""

    def hold(part: str, layer: nn.Module) -> Any:
        return layer.register_forward_hook(lambda *call: require_finite(who, part, call[-1]))

    handles = [hold(part, layer) for part, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
