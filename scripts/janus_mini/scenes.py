"""Random scenes of the shapes world, for training and for the tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gapbench.tasks.world import COLORS, GRID, Sprite, unmet


def sample_scene(requirement: Mapping[str, Any], rng: np.random.Generator) -> dict[int, Sprite]:
    """A random scene that meets a requirement and holds nothing else.

    What the requirement leaves open is drawn at random; a texture left open is solid three times
    out of four, as plain words suggest.
    """

    def pick(options: tuple[str, ...]) -> str:
        return options[int(rng.integers(len(options)))]

    sprites = [
        Sprite(
            item["shape"],
            item.get("color") or pick(tuple(COLORS)),
            item.get("texture") or pick(("solid", "solid", "solid", "striped")),
        )
        for item in requirement["include"]
        for _ in range(item["count"])
    ]
    while True:
        cells = rng.permutation(GRID * GRID)[: len(sprites)]
        scene = {int(cell): sprite for cell, sprite in zip(cells, sprites, strict=True)}
        if unmet(scene, requirement) is None:
            return scene
