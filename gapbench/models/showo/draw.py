"""Show-o's sampler: all codes at once, the least certain masked again, step by step; and the random
masks that it is trained with.

Facts from showlab/Show-o 45a5a2d: models/modeling_showo.py (t2i_generate), models/sampling.py
(mask_by_random_topk, cosine_schedule), training/utils.py (mask_or_random_replace_tokens). Upstream
draws a batch from one stream of numbers; here each row has its own, from a counter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from gapbench.models.autoregressive.noise import gumbel, keys, uniform_of, words
from gapbench.types import GapbenchError

SAMPLER: Final = "masked-1"
CODES, CHOICE, TRAINING = range(3)
"""A seed's streams: of codes, of which codes stay, and of the masks of training."""
MASKED: Final = -1
"""A code that is not settled."""
LEAST: Final = 1e-20
"""Probabilities below count as this in a choice."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Sampling parameters of Show-o.

    `guidance` follows its convention, (1 + guidance) * cond - guidance * uncond: 0 means none.
    `mask_noise` is the temperature of the choice which codes stay; codes are drawn at 1. `side` is
    how many codes a side of the image has. `block` is how many images are drawn together, always: 0
    leaves it to the device.
    """

    guidance: float
    mask_noise: float
    steps: int
    side: int
    block: int = 0
    sampler: str = SAMPLER

    def __post_init__(self) -> None:
        fine = {
            "guidance": (0 <= self.guidance < math.inf, "0 or more"),
            "mask_noise": (0 <= self.mask_noise < math.inf, "0 or more"),
            "steps": (self.steps >= 1, "at least 1"),
            "side": (self.side >= 1, "at least 1"),
            "block": (self.block >= 0, "0 or more"),
            "sampler": (self.sampler == SAMPLER, f"{SAMPLER}, as this version of gapbench draws"),
        }
        for name, (holds, range_) in fine.items():
            if not holds:
                raise GapbenchError(f"recipe: {name} is {getattr(self, name)!r}, must be {range_}")


def draw(
    logits: Callable[[Tensor], Tensor],
    places: int,
    seeds: Sequence[int],
    recipe: Recipe,
    device: str,
) -> Tensor:
    """(B, places) codes. `logits` gives those (B, places, codes) of (B, places) codes, some of them
    MASKED, after guidance."""
    known = torch.full((len(seeds), places), MASKED, device=device)
    own, heat = keys(seeds, device), recipe.mask_noise
    drawn = known
    for step in range(recipe.steps):
        logprobs = logits(known).double().log_softmax(-1)
        number = torch.tensor([step], device=device)
        # One row after another: the noise of a block would take gigabytes.
        drawn = torch.stack([
            (row + gumbel(key[None], number, row.numel(), CODES).view_as(row)).argmax(-1)
            for row, key in zip(logprobs, own, strict=True)
        ])  # fmt: skip
        masked = known == MASKED
        drawn = torch.where(masked, drawn, known)
        chosen = logprobs.gather(2, drawn[..., None])[..., 0].clamp(min=math.log(LEAST))
        ratio = (step + 1) / recipe.steps
        heat *= 1 - ratio  # upstream lets it compound
        sure = (chosen + heat * gumbel(own, number, places, CHOICE)).masked_fill(~masked, math.inf)
        # In float32, as upstream: elsewhere a product may fall on the other side of a whole number.
        left = (places * torch.cos(torch.tensor(ratio) * math.pi * 0.5)).floor().long().to(device)
        left = torch.minimum(masked.sum(1, keepdim=True) - 1, left).clamp(min=1)
        least = sure.sort(1).values.gather(1, left)
        known = torch.where(sure < least, MASKED, drawn)
    return drawn


def training_mask(noise: Sequence[int], places: int, device: str) -> Tensor:
    """(B, places): which codes are masked in training, by each row's seed. Their share is the
    cosine of a uniform angle up to a right one; one at least is."""
    numbers = torch.zeros(1, dtype=torch.long, device=device)
    drawn = uniform_of(words(keys(noise, device), numbers, places + 1, TRAINING))
    share = torch.cos(drawn[:, :1] * math.pi * 0.5)
    count = (places * share).round().clamp(min=1)
    return drawn[:, 1:].argsort(1) < count
