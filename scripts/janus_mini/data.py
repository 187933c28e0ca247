"""Training data for janus-mini: scenes of the shapes world with what is true of them.

Labels come from the scene that was drawn, never from reading an image back.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scenes import sample_scene

from gapbench.tasks.prompts.shapes import CATEGORIES, Content, universe
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
    unmet,
)

# Harder categories are drawn more often: they have more to learn.
WEIGHTS = {
    "single_object": 1, "colors": 2, "counting": 3, "two_object": 3, "color_attr": 5,
    "position": 5, "texture": 4, "color_fact": 2, "shape_fact": 2, "count_fact": 3,
    "compound_fact": 3,
}  # fmt: skip
_P = np.array([WEIGHTS[c] for c in CATEGORIES]) / sum(WEIGHTS.values())
NAMES = tuple(CATEGORIES)

Image = NDArray[np.uint8]


def prompt(rng: np.random.Generator, category: str | None = None) -> tuple[str, Content]:
    """A random training prompt (never one of the test split)."""
    category = category or NAMES[rng.choice(len(NAMES), p=_P)]
    open_ = universe(category)[0]
    return category, open_[rng.integers(len(open_))]


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


def _other(options: tuple[Any, ...], value: Any, rng: np.random.Generator) -> Any:
    rest = [option for option in options if option != value]
    return rest[rng.integers(len(rest))]


CONFUSED = {"colors": (0,), "color_attr": (0, 6, 6), "position": (5, 7), "texture": (2, 8, 8)}
"""Kinds of near miss that only a reader of the category's own words can tell from the truth."""


def near_miss(
    scene: dict[int, Sprite], rng: np.random.Generator, kinds: tuple[int, ...] = tuple(range(9))
) -> dict[int, Sprite]:
    """A scene one small change away. Kinds: another colour (0), shape (1) or texture (2); a sprite
    less (3) or more (4); two swap places (5), colours (6) or textures (8); one moves (7)."""
    made = dict(scene)
    cells = list(made)
    cell = cells[rng.integers(len(cells))]
    old = made[cell]
    kind = kinds[rng.integers(len(kinds))]
    if kind == 0:
        made[cell] = old._replace(color=_other(tuple(COLORS), old.color, rng))
    elif kind == 1:
        made[cell] = old._replace(shape=_other(SHAPES, old.shape, rng))
    elif kind == 2:
        made[cell] = old._replace(texture=_other(TEXTURES, old.texture, rng))
    elif kind == 3:
        del made[cell]
    elif kind == 4 and len(made) < 9:
        free = [c for c in range(9) if c not in made]
        made[free[rng.integers(len(free))]] = old
    elif kind == 7:
        free = [c for c in range(9) if c not in made]
        made[free[rng.integers(len(free))]] = made.pop(cell)
    elif kind > 4 and len(made) > 1:
        other = _other(tuple(cells), cell, rng)
        if kind == 5:
            made[cell], made[other] = made[other], old
        else:
            field = {6: "color", 8: "texture"}[kind]
            made[cell] = old._replace(**{field: getattr(made[other], field)})
            made[other] = made[other]._replace(**{field: getattr(old, field)})
    return made


def pair(rng: np.random.Generator, category: str | None = None) -> tuple[Image, str, int]:
    """(image, prompt text, whether it shows the prompt), half of them true; of a
    category in CONFUSED, most false ones are false by what it is about alone."""
    kinds = CONFUSED.get(category or "", tuple(range(9)))
    category, content = prompt(rng, category)
    requirement: dict[str, Any] = content.requirement
    wanted = int(rng.random() < 0.5)
    for _ in range(50):
        scene = sample_scene(requirement, rng)
        if not wanted:
            kind = rng.random()
            if kind < 0.12:
                cell = tuple(scene)[rng.integers(len(scene))]
                image = render(scene)
                blemish(image, cell, rng)
                return image, content.text, 0
            if kind < 0.65:
                scene = near_miss(scene, rng, kinds)
            elif kind < 0.9:
                scene = sample_scene(prompt(rng, category)[1].requirement, rng)
            else:
                scene = crowd(rng, 4)
        elif rng.random() < 0.25:
            for cell, extra in crowd(rng, 2).items():
                scene.setdefault(cell, extra)
        if (unmet(scene, requirement) is None) == bool(wanted):
            return render(scene), content.text, wanted
    return render(sample_scene(requirement, rng)), content.text, 1


def drawing(rng: np.random.Generator, category: str | None = None) -> tuple[Image, str]:
    """(image, prompt text) for the generation branch."""
    _, content = prompt(rng, category)
    return render(sample_scene(content.requirement, rng)), content.text


FACETS = (2 + len(SHAPES), 2 + len(COLORS), 2 + len(TEXTURES))
"""Classes of a cell's shape, colour and texture; 0 is empty, 1 is no sprite."""


def messy(rng: np.random.Generator) -> tuple[Image, NDArray[np.int64]]:
    """(image, its nine cells as (9, 3) class ids) for the tokenizer and the vision tower."""
    scene: dict[int, Sprite] = (
        crowd(rng) if rng.random() < 0.5 else dict(sample_scene(prompt(rng)[1].requirement, rng))
    )
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
