"""What janus-mini is asked about pictures while it learns to read them."""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

import numpy as np
from data import Image, blemish, crowd, near_miss, prompt, sprite
from scenes import sample_scene

from gapbench.tasks.prompts.shapes import COLOR_FACTS, COUNT_FACTS, SHAPE_FACTS, Content, universe
from gapbench.tasks.world import (
    COLORS,
    GRID,
    RELATIONS,
    SHAPES,
    TEXTURES,
    Sprite,
    render,
    unmet,
)

COUNT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
THINGS = {thing: color for color, things in COLOR_FACTS.items() for thing in things}
FIGURES = {fact: shape for shape, facts in SHAPE_FACTS.items() for fact in facts}
NUMBERED = [fact for facts in COUNT_FACTS.values() for fact in facts]
WORD = re.compile(
    rf"\b(?:(?P<number>{'|'.join(NUMBERED)})|(?P<figure>{'|'.join(FIGURES)})"
    rf"|in the colour of (?P<thing>{'|'.join(THINGS)})|(?P<relation>{'|'.join(RELATIONS)})"
    rf"|(?P<also>and)|(?P<color>{'|'.join(COLORS)})|(?P<texture>{'|'.join(TEXTURES)})"
    rf"|(?P<shape>{'|'.join(SHAPES)})(?:es|s)?)\b"
)


class Clue(NamedTuple):
    """What a picture says to a prompt that has been read up to `end`, a place in its text."""

    end: int
    near: list[int]
    """Which of the nine cells show what was named last."""
    far: list[int]
    """After a relation: which cells of what was named first stand so to it; else as `near`."""
    counted: bool
    """Whether what matters is how many there are."""
    truth: int
    """Whether the part that ends here holds, 0 or 1; -1 where none ends."""


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


@cache
def _kin(category: str) -> dict[str, list[Content]]:
    """Training prompts of a category by the shapes that they ask for."""
    kin: dict[str, list[Content]] = {}
    for content in universe(category)[0]:
        kin.setdefault(_shapes(content), []).append(content)
    return kin


def _common(one: Content, other: Content) -> int:
    """How many of the things that one prompt names are also in another."""
    return sum(item in other.requirement["include"] for item in one.requirement["include"])


def _shapes(content: Content) -> str:
    return " ".join(sorted(item["shape"] for item in content.requirement["include"]))


def questions(
    rng: np.random.Generator, category: str | None, count: int
) -> tuple[Image, dict[int, Sprite], list[tuple[Content, int]]]:
    """(image, its scene, [(prompt, whether the image shows it)]), about half of them true.

    The false ones ask for the same shapes: what differs is a colour, texture, place or number,
    often of one of two things alone. Every third scene is one small change from its own prompt.
    """
    category, content = prompt(rng, category)
    kin = _kin(category)[_shapes(content)]
    while True:
        scene = sample_scene(content.requirement, rng)
        if rng.random() < 0.2:
            for cell, extra in crowd(rng, 2).items():
                scene.setdefault(cell, extra)
        if unmet(scene, content.requirement) is None:
            break
    if rng.random() < 0.35:
        scene = near_miss(scene, rng)
    image = render(scene)
    same = [c for c in kin if c.requirement == content.requirement]
    near = [c for c in kin if _common(c, content) == 1] or kin
    if scene and rng.random() < 0.1:
        cell = tuple(scene)[rng.integers(len(scene))]
        blemish(image, cell, rng)
        del scene[cell]
    asked = []
    for _ in range(count):
        pool = (same, near, kin)[int(rng.choice(3, p=(0.58, 0.26, 0.16)))]
        chosen = pool[rng.integers(len(pool))]
        asked.append((chosen, int(unmet(scene, chosen.requirement) is None)))
    return image, scene, asked


def clues(scene: dict[int, Sprite], content: Content) -> list[Clue]:
    """What a scene says to each word of a prompt that names something."""
    counted = "exclude" in content.requirement
    first: dict[str, str] = {}
    said: dict[str, str] = {}
    relation = ""
    made: list[Clue] = []
    for match in WORD.finditer(content.text):
        kind = match.lastgroup or ""
        match kind:
            case "relation" | "also":
                made[-1] = made[-1]._replace(truth=int(any(made[-1].near)))
                first, said, relation = said, {}, match[kind] if kind == "relation" else ""
                continue
            case "thing":
                said = {**said, "color": THINGS[match[kind]]}
            case "figure":
                said = {"shape": FIGURES[match[kind]]}
            case "color" | "texture" | "shape":
                said = {**said, kind: match[kind]}
        near = far = _cells(scene, said)
        if relation:
            far = [
                int(here and _related(scene, cell, relation, said["shape"]))
                for cell, here in enumerate(_cells(scene, first))
            ]
        made.append(Clue(match.end(), near, far, counted, -1))
    whole = relation or counted
    holds = (unmet(scene, content.requirement) is None) if whole else any(made[-1].near)
    return [*made[:-1], made[-1]._replace(truth=int(holds))]


def _cells(scene: dict[int, Sprite], wanted: dict[str, str]) -> list[int]:
    shown = [scene.get(cell) for cell in range(GRID * GRID)]
    return [int(s is not None and all(getattr(s, k) == wanted[k] for k in wanted)) for s in shown]


def interview(rng: np.random.Generator, count: int) -> tuple[Image, list[tuple[str, str]]]:
    """(image, [(question, one-word answer)]): each finds sprites by one thing and names another."""
    scene: dict[int, Sprite] = {}
    while len({s.shape for s in scene.values()}) < 2:
        scene = crowd(rng, 5)
    asked: list[tuple[str, str]] = []
    for _ in range(20 * count):
        question, answers = _question(scene, rng)
        found = sorted(set(answers)) or ["none"]
        if len(found) == 1:
            asked.append((question, found[0]))
        if len(asked) == count:
            break
    return render(scene), asked


def _question(scene: dict[int, Sprite], rng: np.random.Generator) -> tuple[str, list[str]]:
    """A question about a scene and all of its answers; one that makes no sense has two."""
    sprites = list(scene.values())
    shapes = [s.shape for s in sprites]
    color, shape = tuple(COLORS)[rng.integers(len(COLORS))], SHAPES[rng.integers(len(SHAPES))]
    if rng.random() < 0.7:  # ask about what is there, or half of it
        s, half = sprites[rng.integers(len(sprites))], rng.random()
        color, shape = (s.color if half < 0.65 else color), (s.shape if half > 0.35 else shape)
    texture, relation = TEXTURES[rng.integers(2)], RELATIONS[rng.integers(len(RELATIONS))]
    by_color = [s.shape for s in sprites if s.color == color]
    by_shape = [s for s in sprites if s.shape == shape]
    match rng.integers(10):
        case 0:
            return f"what shape is {color}?", by_color
        case 1:
            return f"what colour is the {shape}?", [s.color for s in by_shape]
        case 2:
            found = any(s.color == color for s in by_shape)
            return f"is there a {color} {shape}?", ["yes" if found else "no"]
        case 3:
            return f"what texture is the {shape}?", [s.texture for s in by_shape]
        case 4:
            return f"what shape is {texture}?", [s.shape for s in sprites if s.texture == texture]
        case 5:
            shape = shapes[rng.integers(len(shapes))]
            there = {i: s.shape for i, s in scene.items() if _related(scene, i, relation, shape)}
            alone = shapes.count(shape) == 1
            return f"what is {relation} the {shape}?", [*there.values()] if alone else ["", "?"]
        case 6:
            shape, other = (shapes[rng.integers(len(shapes))] for _ in range(2))
            sense = shapes.count(shape) == shapes.count(other) == 1 and shape != other
            cell = next(i for i, s in scene.items() if s.shape == shape)
            answer = "yes" if _related(scene, cell, relation, other) else "no"
            return f"is the {shape} {relation} the {other}?", [answer] if sense else ["", "?"]
        case 7:
            things = COLOR_FACTS[color]
            thing = things[rng.integers(len(things))]
            return f"what shape is in the colour of {thing}?", by_color
        case 8:
            facts = SHAPE_FACTS[shape]
            fact = facts[rng.integers(len(facts))]
            return f"what colour is the {fact}?", [s.color for s in by_shape]
        case _:
            return f"count the {shape}", [COUNT_WORDS[len(by_shape)]]


def _related(scene: dict[int, Sprite], cell: int, relation: str, shape: str) -> bool:
    """Whether the sprite of a cell is left of, right of, above or below one of a shape."""
    pair = {i: s._replace(texture="solid") for i, s in scene.items() if s.shape == shape}
    pair[cell] = Sprite("cell", "any")
    wanted = {"shape": "cell", "count": 1, "position": [relation, 0]}
    return unmet(pair, {"include": [{"shape": shape, "count": 1}, wanted]}) is None
