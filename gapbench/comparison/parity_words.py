"""What `gapbench parity` found as text and JSON."""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict
from typing import Final

from gapbench.comparison.parity import Parity, Row
from gapbench.comparison.words import text_table
from gapbench.metrics.metric import printed
from gapbench.types import PERCENT

NAMES: Final = {
    "verdicts": "same images: verdicts that differ",
    "p_yes": "same images: p_yes",
    "log-probabilities": "same images: log p of an answer",
    "images": "drawn: images that differ in a byte",
    "tokens": "drawn: tokens that differ",
    "token_logprob": "drawn: log p of a token",
    "non_unification": "drawn: non-unification",
    "generation": "drawn: generation",
}
ABOUT: Final = """\
apart: how far B is from A, the mean over images [95 % interval over prompts]; where A and B have
values of their own, B - A. largest: of a single image. Percent and points, or nats. An interval has
to lie within its margin, in points, for A and B to stand on one board."""
MOST: Final = 1_000_000


def render(found: Parity, form: str, width: int = 160) -> str:
    """As `text`, whose table has up to `width` characters a line or is split by columns, or as
    `json`: all fields, each row's outcome, and the conclusion."""
    if form == "json":
        rows = [asdict(row) | {"outcome": row.outcome} for row in found.rows]
        told = asdict(found) | {"rows": rows, "same": found.same, "conclusion": conclusion(found)}
        return json.dumps(told, indent=1)
    lines = [
        f"A {found.a_model}: {found.a}",
        f"B {found.b_model}: {found.b}",
        f"Outside judge {', '.join(found.judges) or 'none'}, own verdicts: {found.own}",
        *(f"Left out: {reason}" for reason in found.left_out),
    ]
    heads = ("", "A", "B", "apart", "largest", "margin", "images (clusters)")
    table = text_table(width, heads, [_cells(row) for row in found.rows])
    parts = [conclusion(found), "\n".join(lines), table]
    if found.own != "none":
        parts.append(
            f"Of A's images, B rejects {found.rejects} that A accepts and accepts "
            f"{found.accepts} that A rejects."
        )
    return "\n\n".join([*parts, textwrap.fill(ABOUT, min(width, 100))])


def conclusion(found: Parity) -> str:
    """Whether figures of A and B may stand on one board, in one sentence."""
    beyond = [_said(row) for row in found.rows if row.outcome == "beyond"]
    if beyond:
        told = ", ".join(beyond)
        return f"A and B may not stand on one board: beyond the margin, in points, are {told}."
    if found.same:
        return "A and B may stand on one board: each interval lies within its margin."
    unclear = [row for row in found.rows if row.outcome == "open"]
    few = f"too few images to say of {', '.join(map(_said, unclear))} points" * bool(unclear)
    more = max((_needed(row) for row in unclear), default=0)
    if 0 < more <= MOST:
        few += f" (about {more:,} clusters of prompts would tell)"
    why = "; ".join([*filter(None, [few]), *found.missing])
    return f"It is not shown that A and B may stand on one board: {why}."


def _needed(row: Row) -> int:
    """About how many prompts an interval of this value takes that reaches across no margin: its
    width falls with their root, or, where nothing was seen, with their number."""
    if row.margin is None or (room := abs(abs(row.value) - row.margin)) == 0:
        return MOST + 1
    wide = max(row.high - row.value, row.value - row.low) / room
    return round(row.prompts * (wide if row.value == 0 == row.low else wide**2))


def _said(row: Row) -> str:
    return f"{NAMES[row.name].partition(': ')[2]} {_apart(row)}"


def _apart(row: Row) -> str:
    sign = "" if row.a is None else "+"
    value, low, high = (printed(each, row.unit, sign) for each in (row.value, row.low, row.high))
    return f"{value} [{low}, {high}]"


def _cells(row: Row) -> list[str]:
    unit = "" if row.unit == PERCENT else f" ({row.unit})"
    a, b, largest = (
        "" if each is None else printed(each, row.unit) for each in (row.a, row.b, row.largest)
    )
    margin = "" if row.margin is None else f"{100 * row.margin:g}: {row.outcome}"
    count = f"{row.images:,} ({row.prompts:,})"
    return [NAMES[row.name] + unit, a, b, _apart(row), largest, margin, count]
