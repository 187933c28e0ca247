"""T2I-CompBench++'s rules over detections: 2D, 3D and numeracy (task-scoring.md 2.3 to 2.5).

Pure functions, exact to the official scripts. Boxes are (left, top, right, bottom) in pixels of
the image resized by `rule_scale`; detections come best first, as detectors give them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Box = tuple[float, float, float, float]

NEAR: Final = ("on side of", "next to", "near")
ASIDE: Final = ("on the left of", "on the right of", "on the bottom of", "on the top of")
RELATIONS_2D: Final = (*NEAR, *ASIDE, "on top of")
"""In the order in which the first hit counts; "on top of" is found, and then scored 0."""
RELATIONS_3D: Final = ("in front of", "behind", "hidden")
REACH: Final = 150.0
"""Pixels within which two things are near each other."""
OVERLAP_2D: Final = 0.1
OVERLAP_3D: Final = 0.5
CUT: Final = 0.5
"""A 2D total below this is 0, so that one thing alone never counts."""
NUMBERS: Final = ("a", "an", "one", "two", "three", "four", "five", "six", "seven", "eight")
RENAMED: Final = {
    **dict.fromkeys(("girl", "boy", "man", "woman"), "person"),
    "ship": "boat",
    "telivision": "tv",  # the official typo, which never applies
    "goldfish": "fish",
    "painting": "picture",
}
"""Things that numeracy looks up under another label."""


@dataclass(frozen=True, slots=True)
class Detection:
    """A detected thing; `score` is the detector's confidence, 0..1."""

    label: str
    box: Box
    score: float


def rule_scale(width: int, height: int) -> float:
    """The factor to a shorter side of 479 and a longer side of at most 480."""
    return min(479 / min(width, height), 480 / max(width, height))


def relation_2d(text: str) -> str | None:
    """The prompt's relation in the plane, if it names one."""
    return next((relation for relation in RELATIONS_2D if relation in text), None)


def relation_3d(text: str) -> str | None:
    """The prompt's relation in depth, if it names one."""
    return next((relation for relation in RELATIONS_3D if relation in text), None)


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes; 0 where both are empty."""
    wide = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    high = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = _area(a) + _area(b) - wide * high
    return wide * high / union if union else 0.0


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def position_2d(relation: str | None, a: Box, b: Box) -> float:
    """0..1: how well `a` stands in the relation to `b`."""
    dx = (b[0] + b[2]) / 2 - (a[0] + a[2]) / 2
    dy = (b[1] + b[3]) / 2 - (a[1] + a[3]) / 2
    if relation in NEAR:
        within = abs(dx) < REACH or abs(dy) < REACH
        return 1.0 if within else REACH / max(abs(dx), abs(dy))
    if relation not in ASIDE:
        return 0.0
    along, across = (dx, dy) if relation in ASIDE[:2] else (dy, dx)
    forwards = relation in ("on the left of", "on the top of")
    if abs(along) <= abs(across) or (along > 0) != forwards:
        return 0.0
    overlap = iou(a, b)
    return 1.0 if overlap < OVERLAP_2D else OVERLAP_2D / overlap


def position_3d(relation: str | None, a: Box, b: Box, depth: NDArray[np.float32]) -> float:
    """0..1: how well `a` stands before or behind `b`.

    `depth` is (H, W), larger is nearer; what lies outside of it has no mean and scores 0. The
    official scripts crop the transposed map, `depth.T`.
    """
    if relation not in RELATIONS_3D:
        return 0.0
    difference = _mean(depth, a) - _mean(depth, b)
    holds = difference > 0 if relation == "in front of" else difference < 0
    overlap = iou(a, b)
    if not holds or overlap == OVERLAP_3D:
        return 0.0
    return 1.0 if overlap > OVERLAP_3D else overlap / OVERLAP_3D


def _mean(depth: NDArray[np.float32], box: Box) -> float:
    left, top, right, bottom = map(int, box)
    part = depth[top:bottom, left:right]
    return float(part.mean()) if part.size else float("nan")


def score_2d(
    detections: Sequence[Detection], first: str, second: str, relation: str | None
) -> float:
    """0..1; each thing is the best detection whose label is its name."""
    a = next((d for d in detections if d.label == first), None)
    b = next((d for d in detections if d.label == second), None)
    total = 0.25 * sum(d.score for d in (a, b) if d is not None)
    if a is not None and b is not None:
        total += position_2d(relation, a.box, b.box) / 2
    return total if total >= CUT else 0.0


def score_3d(
    detections: Sequence[Detection],
    first: str,
    second: str,
    relation: str | None,
    depth: NDArray[np.float32],
) -> float:
    """0..1; a thing's label contains its name, and both are known when the scan stops.

    The scan keeps a thing's LAST detection until the other one is found too.
    """
    a = b = None
    firsts = [d for d in detections if first in d.label]
    seconds = [d for d in detections if second in d.label]
    if not firsts or not seconds:
        return 0.25 * (firsts or seconds)[0].score if firsts or seconds else 0.0
    for detection in detections:
        a = detection if first in detection.label else a
        b = detection if second in detection.label else b
        if a is not None and b is not None:
            break
    assert a is not None
    assert b is not None
    position = position_3d(relation, a.box, b.box, depth)
    return 0.25 * a.score + 0.25 * b.score + position / 2


def merged(detections: Sequence[Detection]) -> list[Detection]:
    """Without those that repeat an earlier one of the same label."""
    kept: list[Detection] = []
    for new in detections:
        if not any(new.label == old.label and _same(new.box, old.box) for old in kept):
            kept.append(new)
    return kept


def _same(a: Box, b: Box) -> bool:
    """IoU over 0.9, or one covered by more than 0.9; areas count pixels, hence the ones."""
    wide = max(0.0, min(a[2], b[2]) - max(a[0], b[0]) + 1)
    high = max(0.0, min(a[3], b[3]) - max(a[1], b[1]) + 1)
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)]
    common = wide * high
    return max(common / (sum(areas) - common), *(common / area for area in areas)) > 0.9


def counted(text: str, plurals: Mapping[str, str]) -> list[tuple[str, int]]:
    """(singular, number) of what a numeracy prompt counts; `plurals` maps singular to plural.

    A number word counts the two-word thing after it or else the one-word thing.
    """
    words = re.findall(r"\w+|[^\w\s]", text)
    singulars = {many: one for one, many in reversed(list(plurals.items()))}
    things = []
    for i, word in enumerate(words):
        if word not in NUMBERS:
            continue
        number = max(1, NUMBERS.index(word) - 1)
        pair, single = " ".join(words[i + 1 : i + 3]), " ".join(words[i + 1 : i + 2])
        if len(words) > i + 2 and (pair in plurals or pair in singulars):
            many = pair in singulars and number > 1
            things.append((singulars[pair], number) if many else (pair, 1))
        elif single in plurals and number == 1:
            things.append((single, 1))
        elif single in singulars:
            things.append((singulars[single], number))
    return things


def score_numeracy(detections: Sequence[Detection], wanted: Sequence[tuple[str, int]]) -> float:
    """0..1: the mean over things of half for being there and half for the right number.

    Where no label is a thing's name, every label that contains it becomes it, for good.
    """
    labels = [detection.label for detection in merged(detections)]
    total = 0.0
    for name, number in wanted:
        thing = RENAMED.get(name, name)
        if thing not in labels:
            labels = [thing if thing in label else label for label in labels]
        here = labels.count(thing)
        total += (0.5 * (here > 0) + 0.5 * (here == number > 0)) / len(wanted)
    return total
