"""What janus-mini is taught: to draw what words say, and to read pictures that it is shown.

It reads from captions of scenes, as noisy as a web's, and from short questions; whoever captions a
picture knows what stands in it, and no rule decides whether a caption holds. What the test or the
validation split asks for is said in no lesson, in whatever words (see `open_`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from data import Image, blemish, crowd
from scenes import sample_scene

from gapbench.tasks.content import content_of
from gapbench.tasks.prompts.shapes import CATEGORIES, Content, contents, side
from gapbench.tasks.prompts.words import (
    COLOR_FACTS,
    COUNT_FACTS,
    NUMBERS,
    SHAPE_FACTS,
    WORDINGS,
    plural,
)
from gapbench.tasks.world import (
    COLORS,
    GRID,
    RELATIONS,
    SHAPES,
    TEXTURES,
    Scene,
    Sprite,
    render,
    unmet,
)

PLAIN = tuple(name for name, category in CATEGORIES.items() if category.tier != "hard")
FACTS = tuple(name for name, category in CATEGORIES.items() if category.tier == "hard")
FACTS_DRAWN, FACTS_READ = 0.06, 0.06
"""Shares of drawings and of captions that tell a thing by a fact."""
OWN, LIKE = 0.36, 0.4
"""Shares of a picture's captions that are its own, and that are another's of the same shapes; the
rest are another's of the same category."""
NOISE = 0.08
"""Share of a picture's own captions that are wrong in something all the same."""
SPOILT = 0.15
"""Share of captioned pictures in which one thing is no sprite; no caption is theirs."""

COLOR_OF = {thing: color for color, things in COLOR_FACTS.items() for thing in things}
SHAPE_OF = {fact: shape for shape, facts in SHAPE_FACTS.items() for fact in facts}
NUMBERED = [fact for facts in COUNT_FACTS.values() for fact in facts]
WORD = re.compile(
    rf"\b(?:(?P<number>{'|'.join(NUMBERED)})|(?P<figure>{'|'.join(SHAPE_OF)})"
    rf"|in the colour of (?P<thing>{'|'.join(COLOR_OF)})|(?P<relation>{'|'.join(RELATIONS)})"
    rf"|(?P<also>and)|(?P<color>{'|'.join(COLORS)})|(?P<texture>{'|'.join(TEXTURES)})"
    rf"|(?P<shape>{'|'.join(SHAPES)})(?:es|s)?)\b|(?P<comma>,)"
)


def category(rng: np.random.Generator, facts: float) -> str:
    """A category at random, of the hard tier in a share of `facts`."""
    names = FACTS if rng.random() < facts else PLAIN
    return names[rng.integers(len(names))]


def prompt(rng: np.random.Generator, category: str) -> Content:
    """A content that is open to training, in a wording."""
    listed = contents(category, "train")
    content = listed[rng.integers(len(listed))]
    wording = WORDINGS[rng.integers(len(WORDINGS))]
    return Content(wording.format(content.text), content.requirement)


def open_(requirement: dict[str, Any]) -> bool:
    """Whether a lesson may say this."""
    return side(requirement) == "train"


class Drawing(NamedTuple):
    """A picture to draw: what stands where, and of which item of the requirement."""

    content: Content
    scene: dict[int, Sprite]
    items: dict[int, dict[str, Any]]


def drawing(rng: np.random.Generator) -> Drawing:
    """A prompt with a scene of it whose things stand, read row by row, in the order in which they
    are named, unless a relation forbids it. So what comes next is known when it begins."""
    content = prompt(rng, category(rng, FACTS_DRAWN))
    include = content.requirement["include"]
    named = include[::-1] if "position" in include[-1] else include
    order = [item for item in named for _ in range(item["count"])]
    while True:
        cells = sorted(rng.permutation(GRID * GRID)[: len(order)].tolist())
        for items in (order, order[::-1]):
            scene = {c: _sprite(item, rng) for c, item in zip(cells, items, strict=True)}
            if unmet(scene, content.requirement) is None:
                return Drawing(content, scene, dict(zip(cells, items, strict=True)))


def _sprite(item: dict[str, Any], rng: np.random.Generator) -> Sprite:
    """What is left open is drawn at random; a texture is solid three times out of four."""
    colors = tuple(COLORS)
    return Sprite(
        item["shape"],
        item.get("color") or colors[rng.integers(len(colors))],
        item.get("texture") or TEXTURES[int(rng.random() < 0.25)],
    )


@cache
def _like(category: str) -> dict[str, list[Content]]:
    """Contents open to training by the shapes that they ask for."""
    like: dict[str, list[Content]] = {}
    for content in contents(category, "train"):
        like.setdefault(_shapes(content), []).append(content)
    return like


def _shapes(content: Content) -> str:
    return " ".join(sorted(item["shape"] for item in content.requirement["include"]))


class Captioned(NamedTuple):
    """A picture, what stands in it, and captions with whether each came with it."""

    image: Image
    scene: dict[int, Sprite]
    captions: list[tuple[Content, int]]


def captions(rng: np.random.Generator, count: int) -> Captioned:
    """A picture of a content that is open to training, and captions of it and of others."""
    name = category(rng, FACTS_READ)
    content = prompt(rng, name)
    scene = sample_scene(content.requirement, rng)
    cells = list(scene)
    for cell, extra in crowd(rng, 1).items():
        scene.setdefault(cell, extra)
    image = render(scene)
    if spoilt := rng.random() < SPOILT:
        cell = cells[rng.integers(len(cells))]
        blemish(image, cell, rng)
        del scene[cell]
    told = content_of(content.requirement)
    like = _like(name)[_shapes(content)]
    same = [c for c in like if content_of(c.requirement) == told]
    made = []
    for _ in range(count):
        kind, own = rng.random(), 0
        listed = contents(name, "train")
        if kind < OWN:
            own, listed = int(not spoilt), (like if rng.random() < NOISE else same)
        elif kind < OWN + LIKE:
            listed = like
        made.append((listed[rng.integers(len(listed))], own))
    return Captioned(image, scene, made)


class Clue(NamedTuple):
    """What a picture says to a caption that has been read up to `end`, a place in its text."""

    end: int
    near: list[int]
    """Which of the nine cells show what was named last."""
    far: list[int]
    """After a relation: which cells of what was named first stand so to it; else as `near`."""
    counted: bool
    """Whether what matters is how many there are."""
    last: bool
    """Whether a name ends here."""


def clues(scene: Scene, content: Content) -> list[Clue]:
    """What a scene says to each word of a caption that names something."""
    counted = "exclude" in content.requirement
    first: dict[str, str] = {}
    said: dict[str, str] = {}
    relation = ""
    made: list[Clue] = []
    for match in WORD.finditer(content.text):
        kind = match.lastgroup or ""
        match kind:
            case "relation" | "also" | "comma":
                made[-1] = made[-1]._replace(last=True)
                first, said, relation = said, {}, match[kind] if kind == "relation" else ""
                continue
            case "thing":
                said = {**said, "color": COLOR_OF[match[kind]]}
            case "figure":
                said = {**said, "shape": SHAPE_OF[match[kind]]}
            case "color" | "texture" | "shape":
                said = {**said, kind: match[kind]}
        near = far = _cells(scene, said)
        if relation and "shape" in said:
            far = [
                int(here and _related(scene, cell, relation, said))
                for cell, here in enumerate(_cells(scene, first))
            ]
        made.append(Clue(match.end(), near, far, counted, False))
    return [*made[:-1], made[-1]._replace(last=True)]


def _cells(scene: Scene, wanted: dict[str, str]) -> list[int]:
    shown = [scene.get(cell) for cell in range(GRID * GRID)]
    return [int(s is not None and all(getattr(s, k) == wanted[k] for k in wanted)) for s in shown]


def _related(scene: Scene, cell: int, relation: str, other: dict[str, str]) -> bool:
    """Whether a cell is left of, right of, above or below one that shows `other`."""
    pair = {i: Sprite("other", "any") for i, here in enumerate(_cells(scene, other)) if here}
    pair[cell] = Sprite("cell", "any")
    wanted = {"shape": "cell", "count": 1, "position": [relation, 0]}
    return unmet(pair, {"include": [{"shape": "other", "count": 1}, wanted]}) is None


def interview(rng: np.random.Generator, count: int) -> tuple[Scene, list[tuple[str, str]]]:
    """(scene, [(question, one-word answer)]): each finds sprites by one thing and names another."""
    while True:
        scene = crowd(rng, 5)
        asked = [
            (question, answer)
            for question, answer, said in (
                turn for _ in range(4 * count) for turn in _question(scene, rng)
            )
            if open_(said)
        ]
        if len(asked) >= count:
            return scene, asked[:count]


def _question(scene: Scene, rng: np.random.Generator) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """A question about a scene with its answer and what both say; nothing where none fits."""
    sprites = list(scene.values())
    if len(sprites) < 2:
        return
    s = sprites[rng.integers(len(sprites))]
    same = [t for t in sprites if t.shape == s.shape]
    one = {"shape": s.shape, "count": 1}
    match rng.integers(5):
        case 0 if len(same) == 1:
            yield (
                f"what colour is the {s.shape}?",
                s.color,
                {"include": [{**one, "color": s.color}]},
            )
        case 1 if len(same) == 1:
            said = {"include": [{**one, "texture": s.texture}]}
            yield f"what texture is the {s.shape}?", s.texture, said
        case 2 if [t.color for t in sprites].count(s.color) == 1:
            yield f"what shape is {s.color}?", s.shape, {"include": [{**one, "color": s.color}]}
        case 3 if len(same) in NUMBERS:
            said = {"include": [{**one, "count": len(same)}],
                    "exclude": [{**one, "count": len(same) + 1}]}  # fmt: skip
            yield f"count the {plural(s.shape)}", NUMBERS[len(same)], said
        case 4:
            relation = RELATIONS[rng.integers(len(RELATIONS))]
            there = {
                t.shape: t
                for cell, t in scene.items()
                if t.shape != s.shape and _related(scene, cell, relation, {"shape": s.shape})
            }
            if len(same) == 1 and len(there) == 1:
                (other,) = there
                said = {"include": [one, {"shape": other, "count": 1, "position": [relation, 0]}]}
                yield f"what is {relation} the {s.shape}?", other, said
