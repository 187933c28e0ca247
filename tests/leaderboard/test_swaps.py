"""Submissions whose failures were swapped for successes: `verify`, with `--run` or `--redraw` where
the rows alone cannot tell, refuses them. A tenth of `--fuzz N` are tried."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from gapbench import GapbenchError
from gapbench.leaderboard.again import check_again
from gapbench.leaderboard.submission import contents, read, sha256
from gapbench.leaderboard.verify import check

KINDS = ("repeated", "invented", "scored", "pair", "recipe", "relabelled")


def forged(folder: Path, chance: random.Random) -> str:
    """Swap some failures for successes, in one of KINDS, and sign anew. Gives the kind."""
    rows = read(folder).rows.astype(object)
    rows = rows.where(rows.notna(), None).to_dict("records")
    card = read(folder).card.model_dump(exclude={"files"})
    by_image: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
    for row in rows:
        by_image.setdefault((row["prompt"], row["sample"]), {})[row["role"]] = row
    good = [key for key, said in by_image.items() if said["outside"]["verdict"] == 1]
    bad = [key for key in by_image if key not in good]
    kind = chance.choice(KINDS)
    for key in chance.sample(bad, chance.randint(1, len(bad))):
        same = [other for other in good if other[0] == key[0]]
        donor = by_image[chance.choice(same or good)]
        image = donor["own"]["image"] if kind == "repeated" else sha256(str(chance.random()))
        for role, row in by_image[key].items():
            row["image"] = image
            if role in ("own", "outside"):
                row |= {part: donor[role][part] for part in ("verdict", "p_yes", "mass", "reason")}
            if kind == "scored" and role == "outside":
                row["score"] = 50.0
    card |= {
        "pair": {"pair": True}, "recipe": {"recipe": {**card["recipe"], "guidance": 9.0}},
        "relabelled": {"name": "great", "model": "great", "fingerprint": "0" * 64},
    }.get(kind, {})  # fmt: skip
    for name, data in contents(card, rows).items():
        (folder / name).write_bytes(data)
    return kind


def told(call: Any) -> bool:
    try:
        return bool(call())
    except GapbenchError:
        return True


def test_swapped_submissions(
    made: Any, copy: Path, cases: int, capfd: pytest.CaptureFixture[str]
) -> None:
    tried, by_rows, by_redraw, by_run = (Counter[str]() for _ in range(4))
    count = cases // 10  # each draws 24 images
    for number in range(count):
        shutil.rmtree(copy)
        shutil.copytree(made.folder, copy)
        kind = forged(copy, random.Random(number))
        tried[kind] += 1
        if told(lambda: check(copy)):
            by_rows[kind] += 1
            continue
        by_redraw[kind] += told(lambda: check_again(copy, redraw=24, model="janus-mini"))
        by_run[kind] += told(lambda: check_again(copy, made.run.path))
    with capfd.disabled():
        print(f"\n{count} swaps: {by_rows.total()} refused by their rows, {by_redraw.total()} more "
              f"by --redraw, {by_run.total()} more by --run; {dict(tried)}")  # fmt: skip
    assert by_rows + by_redraw == by_rows + by_run == tried
