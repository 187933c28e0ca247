"""The 553 prompts of GenEval, made again from its class list and its seed.

The official list (prompts/create_prompts.py of djghosh13/geneval) is the outcome of one numpy
generator used in a fixed order; the tests compare it with the official file byte for byte.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

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
    tag: str, text: str, include: list[dict[str, Any]], **exclude: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "category": tag,
        "text": f"a photo of {text}",
        "requirement": {"include": include, **exclude},
    }


def _drawn() -> list[dict[str, Any]]:
    """All 580 draws. The order of the generator's calls is the benchmark: change none."""
    rng, size = np.random.default_rng(SEED), len(CLASSES)
    made = []
    for i in rng.choice(size, size=size, replace=False):
        name = CLASSES[i]
        made.append(_record("single_object", _article(name), [_one(name)]))
    for _ in range(DRAWS):
        a, b = (CLASSES[i] for i in rng.choice(size, size=2, replace=False))
        made.append(_record("two_object", f"{_article(a)} and {_article(b)}", [_one(a), _one(b)]))
    for _ in range(DRAWS):
        a, n = CLASSES[rng.choice(size)], int(rng.integers(2, 4, endpoint=True))
        include, exclude = [{"class": a, "count": n}], [{"class": a, "count": n + 1}]
        made.append(_record("counting", f"{NUMBERS[n]} {_plural(a)}", include, exclude=exclude))
    for _ in range(DRAWS):  # "person", the first class, is given no colour
        a, c = CLASSES[rng.choice(size - 1) + 1], COLORS[rng.choice(len(COLORS))]
        made.append(_record("colors", f"{_article(c)} {a}", [_one(a, color=c)]))
    for _ in range(DRAWS):
        a, b = (CLASSES[i] for i in rng.choice(size, size=2, replace=False))
        relation = RELATIONS[rng.choice(len(RELATIONS))]
        include = [_one(b), _one(a, position=[relation, 0])]
        made.append(_record("position", f"{_article(a)} {relation} {_article(b)}", include))
    for _ in range(DRAWS):
        a, b = (CLASSES[i + 1] for i in rng.choice(size - 1, size=2, replace=False))
        c, d = (COLORS[i] for i in rng.choice(len(COLORS), size=2, replace=False))
        include = [_one(a, color=c), _one(b, color=d)]
        made.append(_record("color_attr", f"{_article(c)} {a} and {_article(d)} {b}", include))
    return made


def make(split: str) -> list[dict[str, Any]]:
    """Records {id, category, text, requirement} in the official order; ids are its five digits.

    Raises GapbenchError for a split other than "test".
    """
    if split != "test":
        raise GapbenchError(f"geneval has the split 'test' alone, not {split!r}")
    kept: list[dict[str, Any]] = []
    for record in _drawn():
        if record not in kept:
            kept.append(record)
    return [{"id": f"{i:05d}", **record} for i, record in enumerate(kept)]
