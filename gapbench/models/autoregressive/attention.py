"""Which kernels a network may use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def repeatable() -> Iterator[None]:
    """Only kernels that give the same when they are run again: cuDNN's attention, which torch takes
    by default on an H100, does not, nor do some of its convolutions."""
    kinds = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    flags = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)
    with sdpa_kernel(kinds), flags:
        yield
