"""The checkable world behind the bundled model: coloured sprites on a 3 x 3 grid.

A scene maps cells (0..8, row by row) to sprites; `render` draws it as a 24 x 24 picture;
`unmet` decides a requirement on a scene. Training data and the pixel judge both rest on
these rules, so they are here once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

GRID: Final = 3
CELLS: Final = GRID * GRID
CELL: Final = 8
SPRITE: Final = 7
SIZE: Final = GRID * CELL

BACKGROUND: Final = (245, 245, 245)
COLORS: Final[dict[str, tuple[int, int, int]]] = {
    "red": (214, 39, 40),
    "green": (44, 150, 60),
    "blue": (40, 80, 215),
    "yellow": (240, 205, 40),
    "purple": (150, 60, 190),
    "orange": (245, 130, 30),
}
TEXTURES: Final = ("solid", "striped")
RELATIONS: Final = ("left of", "right of", "above", "below")

# Sprites differ in every 4 x 4 quadrant: a tokenizer with 4-pixel patches can tell each apart.
_ART: Final = {
    "circle": "..###.. .#####. ####### ####### ####### .#####. ..###..",
    "square": "####### ####### ####### ####### ####### ####### #######",
    "triangle": "...#... ...#... ..###.. ..###.. .#####. .#####. #######",
    "heart": ".#...#. ###.### ####### ####### .#####. ..###.. ...#...",
    "cross": "##...## ###.### .#####. ..###.. .#####. ###.### ##...##",
}
SHAPES: Final = tuple(_ART)


class Sprite(NamedTuple):
    """One object of a scene."""

    shape: str
    color: str
    texture: str = "solid"


Scene = Mapping[int, Sprite]


def _mask(shape: str, texture: str) -> NDArray[np.bool_]:
    mask = np.array([[pixel == "#" for pixel in row] for row in _ART[shape].split()])
    if texture == "striped":
        mask[1::2] = False
    return mask


MASKS: Final[dict[tuple[str, str], NDArray[np.bool_]]] = {
    (shape, texture): _mask(shape, texture) for shape in SHAPES for texture in TEXTURES
}


def render(scene: Scene, noise: int = 0, seed: int = 0) -> NDArray[np.uint8]:
    """Draw a scene: (24, 24, 3) uint8, each channel off by at most `noise` levels."""
    image = np.empty((SIZE, SIZE, 3), np.int16)
    image[:] = BACKGROUND
    for cell, sprite in scene.items():
        y, x = CELL * (cell // GRID), CELL * (cell % GRID)
        view = image[y : y + SPRITE, x : x + SPRITE]
        view[MASKS[sprite.shape, sprite.texture]] = COLORS[sprite.color]
    if noise:
        image += np.random.default_rng(seed).integers(-noise, noise, image.shape, np.int16, True)
    return image.clip(0, 255).astype(np.uint8)


def _fits(sprite: Sprite, item: Mapping[str, Any]) -> bool:
    return all(
        item.get(key, value) == value for key, value in zip(Sprite._fields, sprite, strict=True)
    )


def _related(a: int, b: int, relation: str) -> bool:
    (row_a, col_a), (row_b, col_b) = divmod(a, GRID), divmod(b, GRID)
    return {
        "left of": col_a < col_b,
        "right of": col_a > col_b,
        "above": row_a < row_b,
        "below": row_a > row_b,
    }[relation]


def unmet(scene: Scene, requirement: Mapping[str, Any]) -> str | None:
    """Why a scene fails a requirement, or None if it meets it.

    A requirement follows GenEval's records: `include` lists items {shape, color, texture (each
    optional), count, position: [relation, index of an earlier item] (optional)}; `exclude` lists
    items of which there must be fewer than `count`. Other sprites are not penalised.
    """
    groups: list[list[int]] = []
    for item in requirement["include"]:
        cells = [cell for cell, sprite in scene.items() if _fits(sprite, item)]
        if len(cells) < item["count"]:
            return f"{len(cells)} of {item['count']} {describe(item)}"
        if "position" in item:
            relation, other = item["position"]
            if not any(_related(a, b, relation) for a in cells for b in groups[other]):
                return f"no {describe(item)} {relation} the other"
        groups.append(cells)
    for item in requirement.get("exclude", ()):
        fitting = sum(_fits(sprite, item) for sprite in scene.values())
        if fitting >= item["count"]:
            return f"{fitting} {describe(item)}, more than {item['count'] - 1}"
    return None


def malformed(requirement: Mapping[str, Any]) -> str | None:
    """Why `unmet` cannot read a requirement, or None if it can."""
    include, exclude = requirement.get("include"), requirement.get("exclude", [])
    if not isinstance(include, list) or not include or not isinstance(exclude, list):
        return "it needs a list `include`, and `exclude` is a list"
    known = {"shape": SHAPES, "color": tuple(COLORS), "texture": TEXTURES}
    for index, item in enumerate([*include, *exclude]):
        if not isinstance(item, dict) or not {*item} <= {*known, "count", "position"}:
            return f"{item!r} is no item of shape, color, texture, count and position"
        if not isinstance(item.get("count"), int) or item["count"] < 1:
            return f"{item!r} has no count"
        for key, values in known.items():
            if key in item and item[key] not in values:
                return f"{key} {item[key]!r} is not one of {', '.join(values)}"
        match item.get("position", "anywhere"):
            case "anywhere":
                pass
            case [str(relation), int(other)] if relation in RELATIONS and 0 <= other < index:
                pass
            case place:
                return f"position {place!r} is no [relation, index of an earlier item]"
    return None


def describe(item: Mapping[str, Any]) -> str:
    """An item of a requirement in words, such as "striped red circle"."""
    return " ".join(str(item[key]) for key in ("texture", "color", "shape") if key in item)
