"""The 553 prompts of GenEval, made again from its class list and its seed, and new ones of its form
from other seeds.

The official list (prompts/create_prompts.py of djghosh13/geneval) is the outcome of one numpy
generator used in a fixed order; the tests compare it with the official file byte for byte.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from gapbench.tasks.content import content_of
from gapbench.types import GapbenchError

SEED: Final = 43
DRAWS: Final = 100
"""Prompts drawn for each category but single_object; repeated ones are dropped afterwards."""

CLASSES: Final = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog",
    "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella",
    "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite",
    "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange",
    "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant",
    "bed", "dining table", "toilet", "tv", "laptop", "computer mouse", "tv remote",
    "computer keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator",
    "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
"""COCO's 80 classes in COCO's order, three renamed; the detector's class indices."""
COLORS: Final = (
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white",
)  # fmt: skip
RELATIONS: Final = ("left of", "right of", "above", "below")
NUMBERS: Final = {2: "two", 3: "three", 4: "four"}


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _plural(name: str) -> str:
    return name + ("es" if name.endswith("s") else "s")


def _one(name: str, **more: Any) -> dict[str, Any]:
    return {"class": name, "count": 1, **more}


def _record(
    text: str, include: list[dict[str, Any]], **exclude: list[dict[str, Any]]
) -> dict[str, Any]:
    return {"text": f"a photo of {text}", "requirement": {"include": include, **exclude}}


def _two_object(rng: np.random.Generator) -> dict[str, Any]:
    a, b = (CLASSES[i] for i in rng.choice(len(CLASSES), size=2, replace=False))
    return _record(f"{_article(a)} and {_article(b)}", [_one(a), _one(b)])


def _counting(rng: np.random.Generator) -> dict[str, Any]:
    a, n = CLASSES[rng.choice(len(CLASSES))], int(rng.integers(2, 4, endpoint=True))
    include, exclude = [{"class": a, "count": n}], [{"class": a, "count": n + 1}]
    return _record(f"{NUMBERS[n]} {_plural(a)}", include, exclude=exclude)


def _colors(rng: np.random.Generator) -> dict[str, Any]:
    # "person", the first class, is given no colour.
    a, c = CLASSES[rng.choice(len(CLASSES) - 1) + 1], COLORS[rng.choice(len(COLORS))]
    return _record(f"{_article(c)} {a}", [_one(a, color=c)])


def _position(rng: np.random.Generator) -> dict[str, Any]:
    a, b = (CLASSES[i] for i in rng.choice(len(CLASSES), size=2, replace=False))
    relation = RELATIONS[rng.choice(len(RELATIONS))]
    include = [_one(b), _one(a, position=[relation, 0])]
    return _record(f"{_article(a)} {relation} {_article(b)}", include)


def _color_attr(rng: np.random.Generator) -> dict[str, Any]:
    a, b = (CLASSES[i + 1] for i in rng.choice(len(CLASSES) - 1, size=2, replace=False))
    c, d = (COLORS[i] for i in rng.choice(len(COLORS), size=2, replace=False))
    include = [_one(a, color=c), _one(b, color=d)]
    return _record(f"{_article(c)} {a} and {_article(d)} {b}", include)


DRAWN: Final = {
    "two_object": _two_object, "counting": _counting, "colors": _colors, "position": _position,
    "color_attr": _color_attr,
}  # fmt: skip
"""What draws a prompt of each category but single_object. Their order, and that of the calls of the
generator in them, is the benchmark: change none."""


def _official() -> list[dict[str, Any]]:
    rng, size = np.random.default_rng(SEED), len(CLASSES)
    drawn = []
    for i in rng.choice(size, size=size, replace=False):
        name = CLASSES[i]
        record = _record(_article(name), [_one(name)])
        drawn.append({"category": "single_object", **record})
    drawn += [{"category": c, **draw(rng)} for c, draw in DRAWN.items() for _ in range(DRAWS)]
    kept: list[dict[str, Any]] = []
    for record in drawn:
        if record not in kept:
            kept.append(record)
    return kept


def _fresh(seed: int) -> list[dict[str, Any]]:
    """As many records as the official list has of each category of DRAWN, none with the content of
    another, or of one of that list, in any order or told from either side."""
    official, kept = _official(), list[dict[str, Any]]()
    rng = np.random.default_rng([SEED, seed])
    for category, draw in DRAWN.items():
        taken = {content_of(r["requirement"]) for r in official if r["category"] == category}
        last = len(kept) + sum(record["category"] == category for record in official)
        while len(kept) < last:
            record = draw(rng)
            if (content := content_of(record["requirement"])) not in taken:
                taken.add(content)
                kept.append({"category": category, **record})
    return kept


def make(split: str) -> list[dict[str, Any]]:
    """Records {id, category, text, requirement}: of "test", the official ones in their order; of a
    seed, new ones by the same rules. Ids are five digits.

    single_object has no new ones: the official list has all classes. Raises GapbenchError for a
    split that is neither.
    """
    if split != "test" and not split.isdecimal():
        raise GapbenchError(f"geneval has the split 'test' alone, not {split!r}")
    kept = _official() if split == "test" else _fresh(int(split))
    return [{"id": f"{i:05d}", **record} for i, record in enumerate(kept)]
