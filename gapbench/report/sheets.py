"""Contact sheets: a category's images with prompt, own verdict and outside verdict."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Hashable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from PIL import Image, ImageDraw, ImageFont

from gapbench.files import on_all_cores

if TYPE_CHECKING:
    import pandas as pd

    from gapbench.runs.run import Run

COLUMNS: Final = 8
MOST: Final = 40
SIDE: Final = 120
_TEXT: Final = 62
_GAP: Final = 10
_GROUPS: Final = (
    # (own, outside), title, colour: mistakes first, they are what a person looks for
    ((1, 0), "false positive: accepts, judge rejects", (200, 40, 40)),
    ((0, 1), "misunderstanding: rejects, judge accepts", (215, 130, 0)),
    ((0, 0), "weak generation: both reject", (60, 90, 190)),
    ((1, 1), "both accept", (40, 140, 70)),
    (None, "no verdict", (120, 120, 120)),
)


def write_sheets(run: Run) -> list[Path]:
    """Write sheets/<task>-<category>.png for every category of a run's plan, at most 40 images
    each, in equal parts from the four groups of verdicts. Returns the files."""
    frame = run.frame()
    groups = frame.groupby(["task", "category"], sort=False) if len(frame) else ()

    def write(group: tuple[Any, pd.DataFrame]) -> Path:
        (task, category), rows = group
        name, buffer = f"sheets/{task}-{category}.png", io.BytesIO()
        _sheet(run, f"{task}: {category}", rows).save(buffer, "PNG")
        run.folder.write_bytes(name, buffer.getvalue())
        return run.path / name

    return on_all_cores(write, list(groups))


def _sheet(run: Run, title: str, rows: pd.DataFrame) -> Image.Image:
    groups = [(name, color, _members(rows, pair)) for pair, name, color in _GROUPS]
    shares = _shares([len(members) for _, _, members in groups])
    font, small = ImageFont.load_default(15), ImageFont.load_default(11)
    tall = SIDE + _TEXT + _GAP
    blocks = [(n, c, m, k) for (n, c, m), k in zip(groups, shares, strict=True) if k]
    height = 40 + sum(28 + -(-k // COLUMNS) * tall for *_, k in blocks)
    sheet = Image.new("RGB", (COLUMNS * (SIDE + _GAP) + _GAP, height), (255, 255, 255))
    pen = ImageDraw.Draw(sheet)
    pen.text((_GAP, 10), f"{title}, {len(rows)} images", (0, 0, 0), ImageFont.load_default(18))
    top = 40
    for name, color, members, count in blocks:
        pen.text((_GAP, top + 4), f"{name} ({len(members)})", color, font)
        top += 28
        for place, row in enumerate(members.head(count).to_dict("records")):
            x = _GAP + place % COLUMNS * (SIDE + _GAP)
            y = top + place // COLUMNS * tall
            picture = run.folder.image(row["image"])
            scale = Image.Resampling.NEAREST if picture.width < SIDE else Image.Resampling.LANCZOS
            sheet.paste(picture.resize((SIDE, SIDE), scale), (x, y))
            pen.rectangle((x - 2, y - 2, x + SIDE + 1, y + SIDE + 1), outline=color, width=2)
            lines = textwrap.wrap(row["text"], 21, max_lines=3, placeholder=" ...")
            pen.multiline_text((x, y + SIDE + 3), "\n".join(lines), (0, 0, 0), small, spacing=1)
            pen.text((x, y + SIDE + 45), _verdicts(row), color, small)
        top += -(-count // COLUMNS) * tall
    return sheet


def _members(rows: pd.DataFrame, pair: tuple[int, int] | None) -> pd.DataFrame:
    if pair is None:
        return rows[rows["own"].isna() | rows["outside"].isna()]
    return rows[(rows["own"] == pair[0]) & (rows["outside"] == pair[1])]


def _shares(sizes: list[int]) -> list[int]:
    """How many of each group to show: up to MOST in all, as even as the groups allow."""
    shares = [0] * len(sizes)
    while sum(shares) < min(MOST, sum(sizes)):
        smallest = min(s for s, size in zip(shares, sizes, strict=True) if s < size)
        for index, size in enumerate(sizes):
            if shares[index] == smallest and shares[index] < size and sum(shares) < MOST:
                shares[index] += 1
    return shares


def _verdicts(row: dict[Hashable, Any]) -> str:
    own, outside, p_yes = row["own"], row["outside"], row["p_yes"]
    said = {1.0: "yes", 0.0: "no"}
    chance = f" {p_yes:.2f}" if p_yes == p_yes else ""
    return f"own {said.get(own, '-')}{chance}, judge {said.get(outside, '-')}"
