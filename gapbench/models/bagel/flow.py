"""How BAGEL draws: a flow from noise to latents, steered by up to three predictions.

Source: ByteDance-Seed/Bagel 056b5fd, modeling/bagel/bagel.py (generate_image, _forward_flow).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Final

import torch
from torch import Tensor

from gapbench.types import GapbenchError

RENORMS: Final = ("global", "channel", "text_channel")
SAMPLER: Final = "euler-1"
"""How latents are drawn, which is part of every recipe: by Euler's steps from `noise.normal`."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Sampling parameters, in upstream's words.

    `steps` are the moments between noise and picture, both counted: one less are computed.
    `cfg_text_scale` pushes away from what would be drawn without the prompt, `cfg_img_scale` from
    what would be drawn without the plan; 1 is no guidance, and below a moment of
    `cfg_interval_start` there is none. The result is not longer than the unguided prediction (at
    least `cfg_renorm_min` of it is kept), over a whole picture or each token. `size` is the side in
    pixels. With `think` the model first writes a plan of at most `think_tokens`. `block` is how
    many images the network computes together, always: 0 leaves it to the device.
    """

    cfg_text_scale: float = 4.0
    cfg_img_scale: float = 1.0
    cfg_interval_start: float = 0.4
    cfg_renorm_min: float = 0.0
    cfg_renorm_type: str = "global"
    timestep_shift: float = 3.0
    steps: int = 50
    size: int = 1024
    think: bool = False
    think_tokens: int = 1000
    block: int = 0
    sampler: str = SAMPLER

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not (math.isfinite(value) and value >= 0):
                self._refuse(field.name, "a number, 0 or more")
        for name, least in (("steps", 2), ("think_tokens", 2), ("size", 1), ("block", 0)):
            if getattr(self, name) < least:
                self._refuse(name, f"a whole number, {least} or more")
        if self.timestep_shift == 0:
            self._refuse("timestep_shift", "above 0")
        if self.cfg_renorm_min > 1:
            self._refuse("cfg_renorm_min", "a number from 0 to 1")
        if self.cfg_renorm_type not in RENORMS:
            self._refuse("cfg_renorm_type", f"one of {', '.join(RENORMS)}")
        if self.sampler != SAMPLER:
            self._refuse("sampler", f"{SAMPLER}, by which this version of gapbench draws")

    def _refuse(self, name: str, must: str) -> None:
        raise GapbenchError(f"recipe: {name} is {getattr(self, name)!r}, must be {must}")

    @property
    def branches(self) -> int:
        """How many predictions a guided step takes."""
        if self.cfg_text_scale <= 1:  # then upstream does not look at the other scale
            return 1
        return 3 if self.cfg_img_scale > 1 else 2


def moments(steps: int, shift: float) -> Tensor:
    """(steps,) times from 1, noise, to 0, the picture; a shift above 1 puts more near noise."""
    even = torch.linspace(1, 0, steps)
    return shift * even / (1 + (shift - 1) * even)


def flow(
    velocity: Callable[[Tensor, Tensor, int], Sequence[Tensor]],
    noise: Tensor,
    recipe: Recipe,
    steps: int | None = None,
) -> Tensor:
    """(B, S, C) latents that noise (B, S, C) flows to, or gets to after so many steps.

    `velocity(latents, time, branches)` gives that many predictions (B, S, C): with the prompt,
    without it, and with the prompt but without its plan.
    """
    latents, times = noise, moments(recipe.steps, recipe.timestep_shift)
    for now, after in list(pairwise(times))[:steps]:
        guiding = recipe.branches if now > recipe.cfg_interval_start else 1
        predicted = [part.to(noise.dtype) for part in velocity(latents, now, guiding)]
        latents = latents - guided(predicted, recipe) * (now - after).to(noise.device)
    return latents


def guided(predicted: Sequence[Tensor], recipe: Recipe) -> Tensor:
    """The velocity (B, S, C) that one, two or three predictions make together."""
    whole = predicted[0]
    if len(predicted) == 1:
        return whole
    text = predicted[1] + recipe.cfg_text_scale * (whole - predicted[1])
    if recipe.cfg_renorm_type == "text_channel":
        text = _shortened(text, whole, (2,), recipe.cfg_renorm_min)
    if len(predicted) == 3:
        text = predicted[2] + recipe.cfg_img_scale * (text - predicted[2])
    if recipe.cfg_renorm_type == "text_channel":
        return text
    over = (1, 2) if recipe.cfg_renorm_type == "global" else (2,)
    return _shortened(text, whole, over, recipe.cfg_renorm_min)


def _shortened(long: Tensor, like: Tensor, over: tuple[int, ...], least: float) -> Tensor:
    """A velocity that is at most as long as another."""
    own, wanted = (torch.linalg.vector_norm(v, dim=over, keepdim=True) for v in (long, like))
    made: Tensor = long * (wanted / (own + 1e-8)).clamp(min=least, max=1.0)
    return made
