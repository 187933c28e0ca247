"""GenEval's arithmetic around its networks: pixels to the detector's input, the detector's output
to objects, objects to a verdict (task-scoring notes, sections 1.2 to 1.4). Pure functions.

A box is named by its class and its row in that class's array. All is in float32, as in the
official script, because thresholds are compared strictly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn.functional import interpolate, pad

from gapbench.tasks.prompts.geneval import CLASSES, COLORS, RELATIONS

SCORE: Final = 0.3
COUNTING: Final = 0.9
OBJECTS: Final = 16
MARGIN: Final = 0.1
"""The official options' defaults. Overlapping boxes are kept: the official IoU limit is 1."""
FINGERPRINT: Final = (
    f"geneval-1 score={SCORE} counting={COUNTING} objects={OBJECTS} overlap=1.0 margin={MARGIN}"
)
"""The rule's version and thresholds in one line."""
LONG: Final = 1333
SHORT: Final = 800
"""Pixels that an image's longer and shorter side are scaled into."""
STEP: Final = 32
"""Padded sides are multiples of this."""
MEAN: Final = (123.675, 116.28, 103.53)
STD: Final = (58.395, 57.12, 57.375)
PADDING: Final = 128
CANDIDATES: Final = 100
GREY: Final = 153
TEMPLATES: Final = ("a photo of a {} {}", "a photo of a {}-colored {}", "a photo of a {} object")
BALL: Final = "sports ball"
DISCS: Final = {"red": (48, 156, 248, 356), "blue": (264, 156, 464, 356)}
"""What the test picture shows, 512 pixels square, on white."""
# COCO's own names of the three renamed classes, and the spelling of older label files.
_ALIASES: Final = {
    "mouse": "computer mouse", "remote": "tv remote", "keyboard": "computer keyboard",
    "motorbike": "motorcycle", "aeroplane": "airplane", "sofa": "couch", "tvmonitor": "tv",
    "pottedplant": "potted plant", "diningtable": "dining table",
}  # fmt: skip
Boxes = NDArray[np.float32]
"""(n, 5): left, top, right, bottom in pixels, score."""
ColorOf = Callable[[str, Sequence[int]], Sequence[str]]
"""Colours of the boxes of a class, named by rows; asked only where a colour is wanted."""


@dataclass(frozen=True, slots=True)
class Found:
    """Objects of one image by class: boxes (n, 5) and masks (n, height, width)."""

    boxes: dict[str, Boxes]
    masks: dict[str, NDArray[np.bool_]]

    def crop(self, image: NDArray[np.uint8], name: str, row: int) -> Image.Image:
        """An object of RGB pixels on grey, cut out at its box: what CLIP sees."""
        left, top, right, bottom = (round(float(side)) for side in self.boxes[name][row, :4])
        alone = np.where(self.masks[name][row][..., None], image, np.uint8(GREY))
        return Image.fromarray(alone[top:bottom, left:right])


def trouble(requirement: Mapping[str, Any]) -> str | None:
    """What makes a requirement none of GenEval's, or None."""
    include, exclude = requirement.get("include"), requirement.get("exclude", [])
    if not (isinstance(include, list) and include and isinstance(exclude, list)):
        return "no list `include`"
    if unknown := set(requirement) - {"include", "exclude"}:
        return f"it says {min(unknown)!r}"
    for place, item in enumerate([*include, *exclude]):
        if not isinstance(item, Mapping) or item.get("class") not in CLASSES:
            return f"no class of COCO in {item!r}"
        if not isinstance(item.get("count"), int) or item["count"] < 1:
            return f"no count of at least 1 in {item!r}"
        if "color" in item and item["color"] not in COLORS:
            return f"{item['color']!r} is not one of the ten colours"
        if "position" in item:
            match item["position"]:
                case [str(relation), int(target)]:
                    good = relation in RELATIONS and 0 <= target < place
                case _:
                    good = False
            if not good:
                return f"{item['position']!r} is no relation to an earlier item"
    return None


def class_trouble(names: Sequence[str]) -> str | None:
    """Where a detector's classes, by index, are not COCO's in COCO's order, or None."""
    if len(names) != len(CLASSES):
        return f"{len(names)} in number, {len(CLASSES)} wanted"
    for i, (name, wanted) in enumerate(zip(names, CLASSES, strict=True)):
        if _ALIASES.get(name, name) != wanted:
            return f"number {i} is {name!r}, {wanted!r} wanted"
    return None


def color_texts(name: str) -> list[str]:
    """What CLIP compares a class's crops with: each colour in turn, in every template."""
    return [template.format(color, name) for color in COLORS for template in TEMPLATES]


def select(boxes: Mapping[str, Boxes], requirement: Mapping[str, Any]) -> dict[str, list[int]]:
    """Rows of the boxes that count, best first, of each class that has any.

    The counting threshold goes with `exclude`: in the benchmark exactly the counting prompts have
    one, and so a requirement alone decides.
    """
    least = COUNTING if requirement.get("exclude") else SCORE
    kept = {}
    for name, of_class in boxes.items():
        # Ties in the official order: the later row first.
        order = np.argsort(of_class[:, 4])[::-1]
        if rows := order[of_class[order, 4] > least][:OBJECTS].tolist():
            kept[name] = rows
    return kept


def relations(a: Boxes, b: Boxes) -> set[str]:
    """Where box `a` lies seen from box `b`; none, one or two of RELATIONS.

    An axis counts as far as the centres' distance exceeds MARGIN times the summed sides.
    """
    offset = (a[:2] + a[2:4]) / 2 - (b[:2] + b[2:4]) / 2
    sides = np.abs(a[2:4] - a[:2]) + np.abs(b[2:4] - b[:2])
    revised = np.maximum(np.abs(offset) - MARGIN * sides, 0) * np.sign(offset)
    if np.all(np.abs(revised) < 1e-3):
        return set()
    dx, dy = revised / np.linalg.norm(offset)  # the norm of the unrevised offset
    held = (dx < -0.5, dx > 0.5, dy < -0.5, dy > 0.5)
    return {name for name, holds in zip(RELATIONS, held, strict=True) if holds}


def wanted_colors(
    kept: Mapping[str, list[int]], requirement: Mapping[str, Any]
) -> dict[str, list[int]]:
    """Rows whose colour `decide` will ask for, by class."""
    rows: dict[str, list[int]] = {}
    for item in requirement["include"]:
        taken = kept.get(item["class"], [])[: item["count"]]
        if "color" in item and len(taken) == item["count"] > len(rows.get(item["class"], ())):
            rows[item["class"]] = taken
    return rows


def decide(
    boxes: Mapping[str, Boxes], requirement: Mapping[str, Any], color_of: ColorOf
) -> tuple[bool, str | None]:
    """Whether detections meet a requirement, and every miss in words (None where there is none).

    Only the classes that the requirement names matter. An item takes its class's best boxes, as
    many as it counts; `position` refers to the boxes that an earlier item took.
    """
    kept = select(boxes, requirement)
    misses: list[str] = []
    groups: list[Boxes | None] = []
    for item in requirement["include"]:
        name = item["class"]
        rows = kept.get(name, [])[: item["count"]]
        miss = _miss(item, boxes, rows, groups, color_of)
        groups.append(None if miss else boxes[name][rows])
        misses += [miss] if miss else []
    for item in requirement.get("exclude", ()):
        count = len(kept.get(item["class"], ()))
        if count >= item["count"]:
            misses.append(f"{count} {item['class']}, fewer than {item['count']} wanted")
    return not misses, "; ".join(misses) or None


def _miss(
    item: Mapping[str, Any],
    boxes: Mapping[str, Boxes],
    rows: list[int],
    groups: list[Boxes | None],
    color_of: ColorOf,
) -> str | None:
    name, count = item["class"], item["count"]
    if len(rows) < count:
        return f"{len(rows)} {name}, {count} wanted"
    if "color" in item:
        colors = list(color_of(name, rows))
        if colors.count(item["color"]) < count:
            return f"{name} is {' and '.join(colors)}, {item['color']} wanted"
    if "position" in item:
        relation, target = item["position"]
        others = groups[target]
        if others is None:
            return f"nothing there for {name} to be {relation}"
        for box in boxes[name][rows]:
            for other in others:
                held = relations(box, other)
                if relation not in held:
                    where = " and ".join(r for r in RELATIONS if r in held) or "level"
                    return f"{name} is {where}, {relation} wanted"
    return None


# -- pixels in, objects out ----------------------------------------------------------------


def resized(width: int, height: int) -> tuple[int, int]:
    """Width and height after scaling, ratio kept, into 1333 x 800 or 800 x 1333."""
    scale = min(LONG / max(width, height), SHORT / min(width, height))
    return int(width * scale + 0.5), int(height * scale + 0.5)


def padded(width: int, height: int) -> tuple[int, int]:
    """Width and height as the network gets them."""
    w, h = resized(width, height)
    return -(-w // STEP) * STEP, -(-h // STEP) * STEP


def prepare(image: NDArray[np.uint8]) -> Tensor:
    """The network's input (3, height, width) from RGB pixels (height, width, 3).

    Bilinear without antialiasing and rounded to whole levels, as cv2 has it (cv2's fixed-point
    weights may round to the level beside), padded with grey before normalising.
    """
    height, width = image.shape[:2]
    w, h = resized(width, height)
    pixels = torch.tensor(image).permute(2, 0, 1)[None].float()
    pixels = interpolate(pixels, (h, w), mode="bilinear", align_corners=False).round()[0]
    full_w, full_h = padded(width, height)
    pixels = pad(pixels, (0, full_w - w, 0, full_h - h), value=PADDING)
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def instances(logits: Tensor, masks: Tensor, size: tuple[int, int]) -> Found:
    """Objects from class logits (queries, 81) and mask logits (queries, h, w), for `size` pixels.

    Of the best 100 pairs of a query and a class. A score is the class's probability times the
    mask's mean, at most 1; pairs whose probability is not above SCORE are dropped before their
    masks are enlarged.
    """
    height, width = size
    w, h = resized(width, height)
    full_w, full_h = padded(width, height)
    chances = logits.float().softmax(-1)[:, :-1]
    best, at = chances.flatten().topk(min(CANDIDATES, chances.numel()))
    best, at = best[best > SCORE], at[best > SCORE]
    if not len(best):
        return Found({}, {})
    queries, of = torch.unique(at // chances.shape[1], return_inverse=True)
    large = interpolate(masks[queries][None].float(), (full_h, full_w), mode="bilinear")
    large = interpolate(large[..., :h, :w], size, mode="bilinear")[0]
    inside = large > 0
    means = (large.sigmoid() * inside).flatten(1).sum(1) / (inside.flatten(1).sum(1) + 1e-6)
    scores = (best * means[of]).cpu().numpy()
    binary = inside.cpu().numpy()
    bounds = np.array([_bounds(mask) for mask in binary], np.float32)
    rows = of.cpu().numpy()
    labels = (at % chances.shape[1]).cpu().numpy()
    boxes, shapes = {}, {}
    for label in np.unique(labels):
        mine = labels == label
        boxes[CLASSES[label]] = np.column_stack([bounds[rows[mine]], scores[mine]])
        shapes[CLASSES[label]] = binary[rows[mine]]
    kept = [name for name, of_class in boxes.items() if (of_class[:, 4] > SCORE).any()]
    return Found({name: boxes[name] for name in kept}, {name: shapes[name] for name in kept})


def _bounds(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Left, top, right + 1, bottom + 1 of what is set; zeros where nothing is."""
    xs, ys = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    return (int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1) if len(xs) else (0, 0, 0, 0)


def discs() -> tuple[NDArray[np.uint8], Found]:
    """The test picture, and what a good detector finds in it."""
    picture, masks = Image.new("RGB", (512, 512), "white"), []
    for color, box in DISCS.items():
        ImageDraw.Draw(picture).ellipse(box, fill=color)
        mask = Image.new("1", picture.size)
        ImageDraw.Draw(mask).ellipse(box, fill=1)
        masks.append(np.asarray(mask))
    boxes = np.array([(*box, 1) for box in DISCS.values()], np.float32)
    return np.asarray(picture), Found({BALL: boxes}, {BALL: np.stack(masks)})
