"""The report's gallery: every image with its verdicts as data, and small pictures of the first."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from gapbench.pages.parts import thumbnail
from gapbench.runs.run import Run

if TYPE_CHECKING:
    import pandas as pd

MOST: Final = 2000
"""Thumbnails in a report; later images are shown from their files."""
_KEY: Final = ["task", "prompt", "text", "sample"]
_CORRECTED: Final = "010"


@dataclass(frozen=True, slots=True)
class Gallery:
    """`data` is what the page's script reads; `pictures` the (run, sha256) of each entry's images,
    entry by entry, None where a run lacks it; `images` how many there are."""

    data: dict[str, Any]
    pictures: list[tuple[int, str] | None]
    images: int
    groups: dict[str, int] | None


def gallery(runs: Sequence[Run], names: list[str], base: Path, judge: str | None) -> Gallery:
    """An entry for each (prompt, sample) of any run, which holds every run's image of it.

    `base` is the folder that links start from; `judge` as for the report.
    """
    frames = [run.frame() for run in runs]
    order: dict[tuple[Hashable, ...], int] = {}
    prompts: dict[tuple[Hashable, ...], int] = {}
    facts: dict[str, list[Any]] = {"task": [], "category": [], "tier": [], "id": [], "text": []}
    entries: dict[str, list[Any]] = {"prompt": [], "sample": []}
    for frame in frames:
        columns = (frame[c] for c in (*_KEY, "category", "tier"))
        for task, prompt, text, sample, category, tier in zip(*columns, strict=True):
            if (task, prompt, text, sample) in order:
                continue
            order[task, prompt, text, sample] = len(order)
            place = prompts.setdefault((task, prompt, text), len(prompts))
            if place == len(facts["id"]):
                for name, value in zip(
                    facts, (task, category, tier, prompt, text), strict=True
                ):  # fmt: skip
                    facts[name].append(value)
            entries["prompt"].append(place)
            entries["sample"].append(int(sample))
    judges = list(dict.fromkeys(name for run in runs for name in run.judges()))
    made = [
        _pictures(run, frame, order, judges, base, judge)
        for run, frame in zip(runs, frames, strict=True)
    ]
    groups = _groups(runs, order, made[0]) if len(runs) == 2 else None
    pictures = [
        None if mine["image"][place] is None else (number, mine["image"][place])
        for place in range(len(order))
        for number, mine in enumerate(made)
    ]
    data = {
        "runs": [{"name": name, **mine} for name, mine in zip(names, made, strict=True)],
        "judges": judges,
        "prompts": facts,
        "entries": entries,
        "groups": groups,
    }
    counts = None
    if groups is not None:
        counts = {code: groups.count(code) for code in sorted({g for g in groups if g})}
        counts[_CORRECTED] = groups.count(_CORRECTED)
    return Gallery(data, pictures, sum(each is not None for each in pictures), counts)


def thumbnails(runs: Sequence[Run], shown: Gallery) -> Generator[str, None, None]:
    """The JSON list of the first MOST pictures as data addresses, in parts."""
    first = shown.pictures[: MOST // len(runs) * len(runs)]

    def one(picture: tuple[int, str] | None) -> str:
        if picture is None:
            return "null"
        number, sha256 = picture
        return json.dumps(thumbnail(runs[number].folder.image_bytes(sha256), sha256))

    yield "["
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        for place, text in enumerate(pool.map(one, first)):
            yield "," * bool(place) + text
    finally:
        pool.shutdown(cancel_futures=True)
    yield "]"


def as_json(value: Any) -> str:
    """JSON that no HTML parser can take for anything else."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _pictures(
    run: Run,
    frame: pd.DataFrame,
    order: dict[tuple[Hashable, ...], int],
    judges: list[str],
    base: Path,
    judge: str | None,
) -> dict[str, Any]:
    """A run's images in the order of the entries, None where it has none; `folder` is where their
    files are, None where they are packed.

    Verdicts are 1, 0 or null (abstained); `outside` has for each judge null or a list, with -1
    where it was not asked; `judge` is the place of the judge that counts for the image.
    """
    folder = None if run.folder.packed else _link(run.path / "images", base)
    pictures: dict[str, Any] = {"folder": folder}
    places = _places(frame, order)
    asked = judges.index(judge) if judge is not None else None
    counts = [
        asked if asked is not None else judges.index(name) if isinstance(name, str) else -1
        for name in frame["judge"]  # NaN for None, where other images have one
    ]
    for name, values in (
        ("image", frame["image"].tolist()),
        ("own", _verdicts(frame["own"])),
        ("p", [None if p != p else round(p, 4) for p in frame["p_yes"]]),
        ("judge", counts),
    ):
        pictures[name] = _spread(places, values, len(order), None)
    pictures |= {"own_reasons": _reasons(places, frame["own_reason"]), "outside": [], "reasons": []}
    for name in judges:
        mine = run.frame(name) if name in run.judges() else None
        verdicts = reasons = None
        if mine is not None and len(mine):
            theirs = _places(mine, order)
            verdicts = _spread(theirs, _verdicts(mine["outside"]), len(order), -1)
            reasons = _reasons(theirs, mine["outside_reason"])
        pictures["outside"].append(verdicts)
        pictures["reasons"].append(reasons)
    return pictures


def _groups(
    runs: Sequence[Run], order: dict[tuple[Hashable, ...], int], before: dict[str, Any]
) -> list[str | None] | None:
    """(outside judge, before, after) on the images of BEFORE (paper, section 2), as "010"; None
    where AFTER was never asked about them, which `gapbench compare` does."""
    plan = runs[1].plan
    questions = {(p.task, p.id, p.text): plan.own_question(p) for p in plan.prompts}
    fingerprint, verdicts = runs[1].plan.own_fingerprint, runs[0].folder.verdicts()
    groups: list[str | None] = [None] * len(order)
    asked = False
    for (task, prompt, text, _), place in order.items():
        image, own, judge = (before[name][place] for name in ("image", "own", "judge"))
        question = questions.get((task, prompt, text))  # type: ignore[arg-type]
        if image is None or question is None or judge is None or judge < 0:
            continue
        crossed = verdicts.get((image, question, fingerprint))
        outside = before["outside"][judge]
        said = (outside and outside[place], own, crossed and crossed.verdict)
        asked = asked or crossed is not None
        if all(verdict in (0, 1) for verdict in said):
            groups[place] = "".join(map(str, said))
    return groups if asked else None


def _places(frame: pd.DataFrame, order: dict[tuple[Hashable, ...], int]) -> list[int]:
    return [order[key] for key in zip(*(frame[c] for c in _KEY), strict=True)]


def _spread(places: list[int], values: Sequence[Any], count: int, empty: Any) -> list[Any]:
    spread = [empty] * count
    for place, value in zip(places, values, strict=True):
        spread[place] = value
    return spread


def _verdicts(column: pd.Series[float]) -> list[int | None]:
    return [None if value != value else int(value) for value in column]


def _reasons(places: list[int], column: pd.Series[str]) -> dict[int, str]:
    return {
        place: reason
        for place, reason in zip(places, column, strict=True)
        if isinstance(reason, str) and reason
    }


def _link(folder: Path, base: Path) -> str:
    """A relative address of a folder, as a browser reads it from a page in `base`."""
    return quote(Path(os.path.relpath(folder.resolve(), base.resolve())).as_posix()) + "/"
