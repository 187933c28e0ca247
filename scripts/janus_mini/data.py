"""Training data for janus-mini: scenes of the shapes world with what is true of them.

Labels come from the scene that was drawn, never from reading an image back.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gapbench.prompts.shapes import CATEGORIES, Content, universe
from gapbench.shapes import (
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
    sample_scene,
    satisfies,
)

# Harder categories are drawn more often: they have more to learn.
WEIGHTS = {
    "single_object": 1, "colors": 2, "counting": 3, "two_object": 3, "color_attr": 5,
    "position": 5, "texture": 4, "color_fact": 2, "shape_fact": 2, "count_fact": 3,
    "compound_fact": 3,
}  # fmt: skip
_P = np.array([WEIGHTS[c] for c in CATEGORIES]) / sum(WEIGHTS.values())
NAMES = tuple(CATEGORIES)
COUNT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

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


def near_miss(
    scene: dict[int, Sprite], rng: np.random.Generator, kind: int | None = None
) -> dict[int, Sprite]:
    """A scene one small change away; kind 0 changes a colour."""
    made = dict(scene)
    cells = list(made)
    cell = cells[rng.integers(len(cells))]
    old = made[cell]
    kind = int(rng.integers(7)) if kind is None else kind
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
    elif len(made) > 1:
        other = _other(tuple(cells), cell, rng)
        if kind == 5:
            made[cell], made[other] = made[other], old
        else:
            field = ("color", "texture")[rng.integers(2)]
            made[cell] = old._replace(**{field: getattr(made[other], field)})
            made[other] = made[other]._replace(**{field: getattr(old, field)})
    return made


def pair(rng: np.random.Generator, category: str | None = None) -> tuple[Image, str, int]:
    """(image, prompt text, whether it shows the prompt), half of them true; of the category
    "colors", most false ones are false by their colour alone."""
    only_colors = category == "colors"
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
                scene = near_miss(scene, rng, 0 if only_colors else None)
            elif kind < 0.9:
                scene = sample_scene(prompt(rng, category)[1].requirement, rng)
            else:
                scene = crowd(rng, 4)
        elif rng.random() < 0.25:
            for cell, extra in crowd(rng, 2).items():
                scene.setdefault(cell, extra)
        if satisfies(scene, requirement) == bool(wanted):
            return render(scene), content.text, wanted
    return render(sample_scene(requirement, rng)), content.text, 1


def quiz(rng: np.random.Generator) -> tuple[Image, str, str]:
    """(image, question, one-word answer): colours, textures, counts, presence, places."""
    if rng.random() < 0.5:
        scene = dict(sample_scene(prompt(rng)[1].requirement, rng))
        for cell, extra in crowd(rng, 1).items():
            scene.setdefault(cell, extra)
    else:
        scene = crowd(rng, 5)
    kind = rng.integers(6)
    sprites = list(scene.values())
    shapes = [s.shape for s in sprites]
    alone = [s for s in sprites if shapes.count(s.shape) == 1]
    if kind == 0 and alone:
        s = alone[rng.integers(len(alone))]
        return render(scene), f"what colour is the {s.shape}?", s.color
    if kind == 1 and alone:
        s = alone[rng.integers(len(alone))]
        return render(scene), f"what texture is the {s.shape}?", s.texture
    if kind == 2:
        shape = SHAPES[rng.integers(len(SHAPES))]
        return render(scene), f"count the {shape}", COUNT_WORDS[shapes.count(shape)]
    if kind == 3 and len(alone) > 1:
        (a, i), (b, j) = (
            (sprites[k], tuple(scene)[k])
            for k in rng.permutation([k for k, s in enumerate(sprites) if s in alone])[:2]
        )
        if rng.random() < 0.5 and i % GRID != j % GRID:
            where = "left" if i % GRID < j % GRID else "right"
            return render(scene), f"is the {a.shape} left of or right of the {b.shape}?", where
        if i // GRID != j // GRID:
            where = "above" if i // GRID < j // GRID else "below"
            return render(scene), f"is the {a.shape} above or below the {b.shape}?", where
    shown = sprites and rng.random() < 0.5
    s = sprites[rng.integers(len(sprites))] if shown else sprite(rng)
    found = any(t.shape == s.shape and t.color == s.color for t in sprites)
    return render(scene), f"is there a {s.color} {s.shape}?", "yes" if found else "no"


def listing(rng: np.random.Generator) -> tuple[Image, str, str]:
    """(image, "list the cells", the nine cells in words)."""
    scene: dict[int, Sprite] = (
        crowd(rng) if rng.random() < 0.5 else dict(sample_scene(prompt(rng)[1].requirement, rng))
    )
    image = render(scene)
    words = []
    broken = int(rng.integers(9)) if rng.random() < 0.2 else None
    if broken is not None:
        blemish(image, broken, rng)
    for cell in range(9):
        s = scene.get(cell)
        if cell == broken:
            words.append("broken")
        elif s is None:
            words.append("empty")
        else:
            words.append(f"{s.texture} {s.color} {s.shape}")
    return image, "list the cells", ", ".join(words)


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
