"""Pictures of the shapes world with what stands in them, for training.

Labels come from the scene that was drawn, never from reading an image back.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gapbench.tasks.world import (
    BACKGROUND,
    CELL,
    COLORS,
    GRID,
    MASKS,
    SHAPES,
    SPRITE,
    TEXTURES,
    Sprite,
    render,
)

Image = NDArray[np.uint8]


def sprite(rng: np.random.Generator) -> Sprite:
    return Sprite(
        SHAPES[rng.integers(len(SHAPES))],
        tuple(COLORS)[rng.integers(len(COLORS))],
        TEXTURES[int(rng.random() < 0.3)],
    )


def crowd(rng: np.random.Generator, most: int = 9) -> dict[int, Sprite]:
    """A scene of any sprites anywhere."""
    cells = rng.permutation(GRID * GRID)[: rng.integers(0, most + 1)]
    return {int(cell): sprite(rng) for cell in cells}


def blemish(image: Image, cell: int, rng: np.random.Generator) -> None:
    """Overwrite a cell with what is no sprite: quadrants of different ones, or half of one.

    Two colours, or at least eight pixels away from every sprite.
    """
    y, x = CELL * (cell // GRID), CELL * (cell % GRID)
    while True:
        first, second = sprite(rng), sprite(rng)
        patch = np.full((CELL, CELL, 3), BACKGROUND, np.uint8)
        on = np.zeros((CELL, CELL), bool)
        split = rng.integers(1, 15)
        for quadrant in range(4):
            source = first if split >> quadrant & 1 else second
            if source is second and rng.random() < 0.3:
                continue
            mask = np.zeros((CELL, CELL), bool)
            qy, qx = 4 * (quadrant // 2), 4 * (quadrant % 2)
            full = np.zeros((CELL, CELL), bool)
            full[:SPRITE, :SPRITE] = MASKS[source.shape, source.texture]
            mask[qy : qy + 4, qx : qx + 4] = full[qy : qy + 4, qx : qx + 4]
            patch[mask] = COLORS[source.color]
            on |= mask
        colors = [tuple(c) for c in patch[on].tolist()]
        rarest = min(colors.count(c) for c in set(colors)) / len(colors) if colors else 0
        distance = min(int((on[:SPRITE, :SPRITE] != m).sum()) for m in MASKS.values())
        if len(colors) >= 8 and (0.25 <= rarest < 1 or distance >= 8):
            image[y : y + CELL, x : x + CELL] = patch
            return


FACETS = (2 + len(SHAPES), 2 + len(COLORS), 2 + len(TEXTURES))
"""Classes of a cell's shape, colour and texture; 0 is empty, 1 is no sprite."""


def messy(rng: np.random.Generator) -> tuple[Image, NDArray[np.int64]]:
    """(image, its nine cells as (9, 3) class ids) for the tokenizer and the vision tower."""
    scene = crowd(rng, (4, 9)[int(rng.integers(2))])
    image = render(scene)
    labels = np.zeros((9, 3), np.int64)
    for cell, s in scene.items():
        names = (SHAPES.index(s.shape), tuple(COLORS).index(s.color), TEXTURES.index(s.texture))
        labels[cell] = [2 + name for name in names]
    if rng.random() < 0.2:
        cell = int(rng.integers(9))
        blemish(image, cell, rng)
        labels[cell] = 1
    return image, labels


def pixels(images: Iterable[Image]) -> Tensor:
    """(B, 3, H, W) in [-1, 1]."""
    stack = torch.from_numpy(np.stack(list(images))).permute(0, 3, 1, 2)
    return stack.float() / 127.5 - 1
