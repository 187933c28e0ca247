"""Reference images: what a prompt asks for, as somebody else has drawn it.

A task in a folder names a file for each prompt, a path inside the folder, as `reference` of its
record. For prompts of the shapes world one is made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gapbench.files import inside, sha256_of
from gapbench.tasks.records import Placed
from gapbench.tasks.world import CELLS, COLORS, SHAPES, Scene, Sprite, render, unmet
from gapbench.types import GapbenchError, Prompt

Reference = Path | NDArray[np.uint8]
"""An image file, or pixels (height, width, 3)."""
KEY: Final = "reference"
WORLD: Final = ("shapes", "shapes_1_1")
"""The generators of prompts of the shapes world."""
TRIES: Final = 10_000


def named(placed: Placed, folder: Path) -> dict[str, Path]:
    """The reference of each record, by its id; empty where no record names one.

    Raises GapbenchError, naming the record, where only some do, and where it is no path of a file
    inside the task's folder.
    """
    having = [place for record, place in placed if KEY in record]
    if not having:
        return {}
    files = {}
    for record, place in placed:
        if KEY not in record:
            raise GapbenchError(
                f"{place}: no {KEY}, and {having[0]} has one; name one for every prompt or for none"
            )
        if not isinstance(record[KEY], str):
            raise GapbenchError(f"{place}: the {KEY} {record[KEY]!r} is not a text")
        files[record["id"]] = inside(folder, record[KEY], f"{place}, {KEY}")
    return files


def pinned(placed: Placed, folder: Path) -> list[dict[str, Any]]:
    """Records with the sha256 of the reference's file in place of its path."""
    files = named(placed, folder)
    return [
        {**record, KEY: sha256_of(files[record["id"]])} if files else record for record, _ in placed
    ]


def made(prompt: Prompt) -> NDArray[np.uint8]:
    """The reference of a prompt of the shapes world, (24, 24, 3)."""
    return render(scene(prompt.requirement, prompt.text))


def scene(requirement: Mapping[str, Any], key: str) -> Scene:
    """A scene that holds what a requirement of the shapes world includes and nothing else. Cells,
    and colours and shapes that it leaves open, are chosen by `key`; sprites are solid where it
    names no texture.

    Raises GapbenchError where no such scene meets the requirement, or none was found.
    """
    rng = np.random.default_rng([*hashlib.sha256(key.encode()).digest()])
    things = [item for item in requirement["include"] for _ in range(item["count"])]
    for _ in range(TRIES if len(things) <= CELLS else 0):
        found = {
            int(cell): Sprite(
                shape=item.get("shape") or str(rng.choice(SHAPES)),
                color=item.get("color") or str(rng.choice([*COLORS])),
                texture=item.get("texture", "solid"),
            )
            for cell, item in zip(rng.permutation(CELLS)[: len(things)], things, strict=True)
        }
        if unmet(found, requirement) is None:
            return found
    raise GapbenchError(f"no scene of the shapes world was found that shows {key!r}")
