"""The pixel judge of the shapes world: finds sprites by colour and template. No model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gapbench.judges.base import Judge
from gapbench.tasks.world import (
    BACKGROUND,
    CELL,
    COLORS,
    GRID,
    MASKS,
    SIZE,
    SPRITE,
    Sprite,
    malformed,
    unmet,
)
from gapbench.types import Answer, GapbenchError, Prompt

# Noise of 30 levels a channel moves a colour by 52 at most; sprites are at least 209 away from
# the background and 75 from each other's colour, so these decide rightly at that noise.
FOREGROUND: Final = 104.0
SPECKS: Final = 3
"""A cell with at most this many foreground pixels is empty."""
TOLERANCE: Final = 3
"""Pixels by which a sprite may miss its template; templates are at least 8 apart."""
AGREEMENT: Final = 0.85
"""Share of a sprite's pixels that must be nearest to one colour."""
COLOR_ERROR: Final = 60.0
"""Largest distance of a sprite's mean colour from that colour."""

_NAMES = tuple(MASKS)
_TEMPLATES = np.zeros((len(_NAMES), CELL, CELL), bool)
_TEMPLATES[:, :SPRITE, :SPRITE] = np.stack([MASKS[name] for name in _NAMES])
_PALETTE = np.array(list(COLORS.values()), np.float32)


class PixelJudge(Judge):
    """Reads an image cell by cell and decides the requirement by the rules of `shapes`."""

    name = "pixel"
    fingerprint = "pixel-1"
    scores = False
    by_parts = True
    image_size = (SIZE, SIZE)
    gpus = None  # an image is judged before it would have been sent

    def __init__(self, argument: str | None = None, device: str = "auto") -> None:  # noqa: ARG002
        if argument is not None:
            raise GapbenchError(f"judge pixel takes no argument, not {argument!r}")

    def question(self, prompt: Prompt) -> str:
        wrong = malformed(prompt.requirement)
        if wrong:
            raise GapbenchError(
                f"judge pixel cannot judge task {prompt.task}: prompt {prompt.id} has no "
                f"requirement of the shapes world ({wrong}); choose another judge with --judge"
            )
        return json.dumps(prompt.requirement, sort_keys=True)

    def judge(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Answer]:
        return [self._decide(image, prompt) for image, prompt in zip(images, prompts, strict=True)]

    def judge_parts(
        self, images: Sequence[Image.Image], parts: Sequence[Sequence[Mapping[str, Any]]]
    ) -> list[list[bool] | str]:
        """By the sprites that can be read, whatever else is in the picture."""
        found: list[list[bool] | str] = []
        for image, mine in zip(images, parts, strict=True):
            if why := self._unread(image):
                found.append(why)
            else:
                scene, _ = read(np.asarray(image.convert("RGB")))
                found.append([unmet(scene, part) is None for part in mine])
        return found

    def _unread(self, image: Image.Image) -> str | None:
        if unread := self.unread(image.size):
            return (
                f"image is {image.width} x {image.height}, and {unread}, as janus-mini draws them; "
                "choose another judge with --judge"
            )
        return None

    def _decide(self, image: Image.Image, prompt: Prompt) -> Answer:
        if why := self._unread(image):
            return Answer(verdict=None, reason=why)
        scene, blobs = read(np.asarray(image.convert("RGB")))
        reason = "; ".join(blobs) if blobs else unmet(scene, prompt.requirement)
        return Answer(verdict=int(reason is None), reason=reason)


def read(image: NDArray[np.uint8]) -> tuple[dict[int, Sprite], list[str]]:
    """Sprites by cell, and what could not be read, from a (24, 24, 3) picture."""
    pixels = image.reshape(GRID, CELL, GRID, CELL, 3).swapaxes(1, 2).reshape(-1, CELL, CELL, 3)
    pixels = pixels.astype(np.float32)
    drawn = np.linalg.norm(pixels - np.array(BACKGROUND, np.float32), axis=-1) > FOREGROUND
    misses = (drawn[:, None] != _TEMPLATES).sum((2, 3))
    scene: dict[int, Sprite] = {}
    blobs: list[str] = []
    for cell in np.flatnonzero(drawn.sum((1, 2)) > SPECKS).tolist():
        best = int(misses[cell].argmin())
        shape, texture = _NAMES[best]
        if misses[cell, best] > TOLERANCE:
            blobs.append(
                f"unreadable blob in cell {cell + 1} "
                f"({misses[cell, best]} pixels off a {texture} {shape})"
            )
            continue
        inside = pixels[cell][drawn[cell] & _TEMPLATES[best]]
        nearest = np.linalg.norm(inside[:, None] - _PALETTE, axis=-1).argmin(1)
        color = int(np.bincount(nearest, minlength=len(_PALETTE)).argmax())
        share = float((nearest == color).mean())
        error = float(np.linalg.norm(inside.mean(0) - _PALETTE[color]))
        if share < AGREEMENT or error > COLOR_ERROR:
            blobs.append(f"unreadable colour of the {shape} in cell {cell + 1}")
            continue
        scene[cell] = Sprite(shape, tuple(COLORS)[color], texture)
    return scene, blobs
