"""Random numbers from integers alone: the same on every device, in any order, without a state.

Philox4x32-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), section
5.2: a block cipher of a counter under a key, here of (code, step, stream) under the seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

WORD: Final = 0xFFFFFFFF
ROUNDS: Final = 10
MULTIPLIERS: Final = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS: Final = (0x9E3779B9, 0xBB67AE85)


def keys(seeds: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """(B, 2) int64: the lower and upper half of each seed's 64 bits."""
    halves = [(seed & WORD, seed >> 32 & WORD) for seed in seeds]
    return torch.tensor(halves, dtype=torch.int64, device=device)


def philox(counter: Sequence[Tensor], key: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Four words of 32 bits, in int64, for each counter of four words under a key of two."""
    one, two, three, four = counter
    left, right = key
    for _ in range(ROUNDS):
        # int64 products wrap at 64 bits, which is what their two halves need.
        first, second = one * MULTIPLIERS[0], three * MULTIPLIERS[1]
        one, two, three, four = (
            (second >> 32 & WORD) ^ two ^ left,
            second & WORD,
            (first >> 32 & WORD) ^ four ^ right,
            first & WORD,
        )
        left, right = left + KEY_STEPS[0] & WORD, right + KEY_STEPS[1] & WORD
    return one, two, three, four


def words(keys: Tensor, step: Tensor, count: int, stream: int = 0) -> Tensor:
    """(B, count) words of 32 bits, in int64: of each row's key (B, 2), a step (1,) and a number.

    A seed has several streams, for what a model draws one after the other.
    """
    left, right = keys.unsqueeze(-1).unbind(1)
    number = torch.arange(-(-count // 4), device=keys.device).expand(len(keys), -1)
    counter = (number, step, torch.full_like(step, stream), torch.zeros_like(step))
    return torch.stack(philox(counter, (left, right)), -1).flatten(1)[:, :count]


def gumbel(keys: Tensor, step: Tensor, codes: int, stream: int = 0) -> Tensor:
    """(B, codes) standard Gumbel noise in float64, by `words`."""
    return gumbel_of(words(keys, step, codes, stream))


def uniform_of(words: Tensor) -> Tensor:
    """Numbers in (0, 1) in float64 from words of 32 bits: each the middle of its share."""
    return (words.double() + 0.5) / 2**32


def normal(keys: Tensor, count: int, stream: int = 0) -> Tensor:
    """(B, count) standard normal noise in float64, of each row's key (B, 2), by Box and Muller.

    A seed has several streams; none of them shares a counter with `gumbel`.
    """
    left, right = keys.unsqueeze(-1).unbind(1)
    number = torch.arange(-(-count // 4), device=keys.device).expand(len(keys), -1)
    zero = torch.zeros_like(number)
    words = torch.stack(philox((number, zero, zero + stream, zero + 1), (left, right)), -1)
    even = (words.double() + 0.5) / 2**32
    radius, angle = (-2 * even[..., :2].log()).sqrt(), 2 * torch.pi * even[..., 2:]
    pairs = torch.stack([radius * angle.cos(), radius * angle.sin()], -1)
    return pairs.flatten(1)[:, :count]


def gumbel_of(words: Tensor) -> Tensor:
    """Standard Gumbel noise from words of 32 bits."""
    return -(-uniform_of(words).log()).log()
