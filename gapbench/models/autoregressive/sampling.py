"""Drawing tokens so that a row depends on its own random stream alone."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from gapbench.files import read_object
from gapbench.types import GapbenchError

SAMPLER: Final = "gumbel-1"
"""How tokens are drawn, which is part of every recipe: `draw` with noise.gumbel. Until version 0.1
it was by inverting the cumulative distribution."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Sampling parameters of an autoregressive image model.

    `guidance` follows the Janus convention, uncond + guidance * (cond - uncond): 1 means none.
    `top_k` 0 and `top_p` 1 keep every token; `temperature` 0 takes the likeliest token. `block` is
    how many images the network computes together, always: 0 leaves it to the device. `sampler`
    names how a token is drawn.
    """

    guidance: float = 5.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    block: int = 0
    sampler: str = SAMPLER

    def __post_init__(self) -> None:
        # The values may come from a checkpoint's JSON, so they can be of any type.
        bounds = (
            ("guidance", (int, float), sys.float_info.max, "a number, 0 or more"),
            ("temperature", (int, float), sys.float_info.max, "a number, 0 or more"),
            ("top_k", int, math.inf, "a whole number, 0 or more"),
            ("top_p", (int, float), 1, "a number above 0 and at most 1"),
            ("block", int, math.inf, "a whole number, 0 or more"),
        )
        for name, kind, most, range_ in bounds:
            value = getattr(self, name)
            fits = isinstance(value, kind) and not isinstance(value, bool) and 0 <= value <= most
            if not fits or (name == "top_p" and value == 0):
                raise GapbenchError(f"recipe: {name} is {value!r}, must be {range_}")
            if kind is not int:  # 5 and 5.0 are one recipe, so they are one run
                object.__setattr__(self, name, float(value))

        if self.sampler != SAMPLER:
            raise GapbenchError(
                f"recipe: sampler is {self.sampler!r}, this version of gapbench draws by {SAMPLER}"
            )

    @property
    def guided(self) -> bool:
        """Whether the unconditional branch is needed."""
        return self.guidance != 1


def recipe_of(folder: Path) -> Recipe:
    """The recipe in a checkpoint's generation_config.json; upstream Janus's where it is silent."""
    file = folder / "generation_config.json"
    config = read_object(file) if file.exists() else {}
    names = {
        "guidance": "guidance_scale",
        "temperature": "temperature",
        "top_k": "top_k",
        "top_p": "top_p",
    }
    return Recipe(**{k: config[v] for k, v in names.items() if config.get(v) is not None})


def guide(logits: Tensor, guidance: float) -> Tensor:
    """Combine (2B, V) logits, conditional rows first, into (B, V)."""
    cond, uncond = logits.chunk(2)
    return uncond + guidance * (cond - uncond)


def warp(logits: Tensor, recipe: Recipe) -> Tensor:
    """(B, V) log-probabilities in float64 after temperature, top-k and top-p, in that order."""
    logits = logits.double()
    if recipe.temperature == 0:
        best = logits.argmax(-1, keepdim=True)
        return torch.full_like(logits, -torch.inf).scatter(-1, best, 0.0)
    if recipe.temperature != 1:
        logits = logits / recipe.temperature
    if 0 < recipe.top_k < logits.shape[-1]:
        least = logits.topk(recipe.top_k).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if recipe.top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        probs = ordered.softmax(-1)
        beyond = probs.cumsum(-1) - probs >= recipe.top_p
        logits = logits.masked_fill(beyond.scatter(-1, order, beyond), -torch.inf)
    return logits.log_softmax(-1)


def draw(logprobs: Tensor, noise: Tensor) -> Tensor:
    """(B,) tokens of (B, V) log-probabilities and standard Gumbel noise: the largest sum's place is
    distributed as they say.

    Rounding moves a draw only where two sums nearly tie, and a small training only where it changes
    which is the largest. Inverting the cumulative distribution, every change of a probability moves
    all tokens behind it.
    """
    return (logprobs + noise).argmax(-1)


def logprobs_of(logits: Tensor, tokens: Tensor) -> Tensor:
    """(B, T) log-probabilities in nats of (B, T) tokens under (B, T, V) logits, in float32 or
    better, differentiable."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logprobs: Tensor = wide.log_softmax(-1).gather(2, tokens.unsqueeze(2)).squeeze(2)
    return logprobs
