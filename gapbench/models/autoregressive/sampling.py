"""Drawing tokens so that a row depends on its own random stream alone."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gapbench.files import read_object
from gapbench.types import GapbenchError


@dataclass(frozen=True, slots=True)
class Recipe:
    """Sampling parameters of an autoregressive image model.

    `guidance` follows the Janus convention, uncond + guidance * (cond - uncond): 1 means none.
    `top_k` 0 and `top_p` 1 keep every token; `temperature` 0 takes the likeliest token.
    """

    guidance: float = 5.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        # The values may come from a checkpoint's JSON, so they can be of any type.
        bounds = (
            ("guidance", (int, float), sys.float_info.max, "a number, 0 or more"),
            ("temperature", (int, float), sys.float_info.max, "a number, 0 or more"),
            ("top_k", int, math.inf, "a whole number, 0 or more"),
            ("top_p", (int, float), 1, "a number above 0 and at most 1"),
        )
        for name, kind, most, range_ in bounds:
            value = getattr(self, name)
            fits = isinstance(value, kind) and not isinstance(value, bool) and 0 <= value <= most
            if not fits or (name == "top_p" and value == 0):
                raise GapbenchError(f"recipe: {name} is {value!r}, must be {range_}")
            if kind is not int:  # 5 and 5.0 are one recipe, so they are one run
                object.__setattr__(self, name, float(value))

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


def uniforms(seeds: list[int], steps: int, stream: int = 0) -> Tensor:
    """(len(seeds), steps) numbers in [0, 1), row i from seed i alone, the same on every device.

    A seed has several streams, for what a model draws one after the other. NumPy's, since torch's
    on a CPU read only the lower half of a seed's 64 bits.
    """
    roots = [(seed, stream) if stream else seed for seed in seeds]
    streams = [np.random.Generator(np.random.PCG64(root)) for root in roots]
    return torch.from_numpy(np.stack([stream.random(steps) for stream in streams]))


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


def draw(logprobs: Tensor, uniform: Tensor) -> Tensor:
    """(B,) tokens by inverting the cumulative distribution of (B, V) at (B,) uniforms."""
    cumulative = logprobs.exp().cumsum(-1)
    total = cumulative[..., -1:].contiguous()
    point = uniform.to(cumulative.device).unsqueeze(-1) * total
    token = torch.searchsorted(cumulative, point, right=True)
    # Rounding may leave the point on the last edge: the last token that can be drawn is meant.
    token = torch.minimum(token, torch.searchsorted(cumulative, total)).squeeze(-1)
    # Among NaN there is no place to find; a drawing's log-probability tells of them.
    return token.clamp(max=logprobs.shape[-1] - 1)


def logprobs_of(logits: Tensor, tokens: Tensor) -> Tensor:
    """(B, T) log-probabilities in nats of (B, T) tokens under (B, T, V) logits, in float32 or
    better, differentiable."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logprobs: Tensor = wide.log_softmax(-1).gather(2, tokens.unsqueeze(2)).squeeze(2)
    return logprobs
