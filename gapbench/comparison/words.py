"""Comparisons as text, Markdown and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

from tabulate import tabulate

from gapbench.comparison.compare import RULE, Comparison
from gapbench.metrics.metric import METRICS, UNDERSTANDING, Metric
from gapbench.metrics.paired import Change, WinRate, detectable
from gapbench.metrics.power import SAMPLES, Spread, family
from gapbench.types import GapbenchError

FORMATS: Final = ("text", "markdown", "json")
COLUMNS: Final = ("%", "before", "after", "change", "p", "Holm p", "detectable", "images (prompts)")


def render(comparisons: Sequence[Comparison], form: str) -> str:
    """Comparisons with one BEFORE, as `text`, `markdown` or `json` (all fields, and the rule)."""
    if form not in FORMATS:
        raise GapbenchError(f"no format {form!r}; there are {', '.join(FORMATS)}")
    if form == "json":
        each = [
            asdict(c) | {"gap_gain": c.gap_gain._asdict() if c.gap_gain else None}
            for c in comparisons
        ]
        return json.dumps({"rule": RULE, "comparisons": each}, indent=1)
    style, strong = ("pipe", "**") if form == "markdown" else ("simple", "")
    blocks = [_block(c, style, strong) for c in comparisons]
    if len(comparisons) > 1:
        blocks.insert(0, _summary(comparisons, style))
    if style == "pipe":
        blocks = [block.replace("\n* ", "\n\\* ") for block in blocks]
    return "\n\n".join([*blocks, _about()])


def plan(spread: Spread, metric: str, change: float) -> str:
    """Prompts that a comparison takes to detect a change, for numbers of samples."""
    rows = [
        [samples, *(spread.needed(change, samples, alike) for alike in (True, False))]
        for samples in SAMPLES
    ]
    heads = ["images a prompt", "prompts, at best", "prompts, at worst"]
    here = [
        f"{100 * detectable(spread.error(spread.prompts, spread.samples, alike), family()):.1f}"
        for alike in (True, False)
    ]
    return (
        f"{_head(metric)} {100 * spread.value:.1f} %: variance {spread.between:.4f} between the "
        f"prompts of a category, {spread.within:.4f} within a prompt.\n"
        f"To detect a change of {100 * change:g} points with a probability of 80 %:\n\n"
        f"{tabulate(rows, heads)}\n\n"
        "At best every prompt changes by the same; at worst how easy a prompt is after has nothing "
        f"to do with before.\nThis run's {spread.prompts} prompts x {spread.samples:.3g} images "
        f"detect {here[0]} to {here[1]} points."
    )


def _metric(name: str) -> Metric | None:
    """None for a score of lm-eval's, a share that goes by its own name."""
    return UNDERSTANDING if name == UNDERSTANDING.name else METRICS.get(name)


def _head(name: str) -> str:
    metric = _metric(name)
    return metric.title if metric else name


def _block(c: Comparison, style: str, strong: str) -> str:
    lines = [
        f"BEFORE {c.before}",
        f"AFTER  {c.after}",
        f"{c.images} images of {c.prompts} prompts, each with the same seed in both; outside judge "
        f"{', '.join(c.judges) or 'none'}, own verdicts by {c.own or 'none'}",
        *(f"Left out: {reason}" for reason in c.left_out),
        *c.notes,
    ]
    rows = [_row(_head(change.metric), change) for change in c.changes]
    parts = ["\n".join(lines) if style == "simple" else "  \n".join(lines), _table(rows, style)]
    if c.by_level:
        rows = [_row(f"{change.name}: {_head(change.metric)}", change) for change in c.by_level]
        parts.append(_table(rows, style))
    if c.win_rate:
        w = c.win_rate
        parts.append(
            f"Understanding win rate: {_win_rate(w)} ({w.wins} wins, {w.losses} losses, "
            f"{w.ties} ties)"
        )
    if c.groups:
        shown = ", ".join(f"({', '.join(key)}) {count}" for key, count in c.groups.items())
        parts.append(
            f"Images of BEFORE by (outside judge, before, after): {shown}. False-positive "
            f"correction group (0, 1, 0): {c.groups['010']} images."
        )
    if c.gap_gain:
        g = c.gap_gain
        parts.append(
            f"Gap-gain correlation over {g.categories} categories: {g.rho:.2f} [{g.low:.2f}, "
            f"{g.high:.2f}]"
        )
    parts.append(f"{strong}Verdict: {c.verdict}.{strong}{_smallest(c)}")
    if c.worse:
        parts.append(f"Significantly worse: {', '.join(map(_head, c.worse))}.")
    return "\n\n".join(parts)


def _summary(comparisons: Sequence[Comparison], style: str) -> str:
    heads = list(dict.fromkeys(head for c in comparisons for head in _changes(c)))
    rows = []
    for c in comparisons:
        cells = _changes(c)
        figures = [_difference(cells[h]) + " *" * bool(cells[h].verdict) if h in cells else "n/a"
                   for h in heads]  # fmt: skip
        rho = f"{c.gap_gain.rho:.2f}" if c.gap_gain else "n/a"
        won = _win_rate(c.win_rate) if c.win_rate else "n/a"
        rows.append([c.after, c.verdict, *figures, won, rho])
    heads = ["AFTER", "verdict", *heads, "win rate", "gap-gain rho"]
    table = tabulate(rows, heads, tablefmt=style, disable_numparse=True)
    return f"BEFORE {comparisons[0].before}; changes in points\n\n{table}"


def _about() -> str:
    return (
        "Percent; change is after - before, with its 95 % interval over prompts; p is below 0.05 "
        "where that leaves out 0, Holm's p is over the rows of a table (a * marks one below 0.05); "
        "detectable: the smallest change that so many prompts show with a probability of 80 %. "
        f"Rule: {RULE}."
    )


def _changes(c: Comparison) -> dict[str, Change]:
    return {_head(change.metric): change for change in c.changes}


def _smallest(c: Comparison) -> str:
    """What a run that shows nothing could have shown."""
    seen = [
        f"{_head(change.metric)} {_number(change, change.detectable)}"
        for change in c.changes
        if change.metric in ("generation", UNDERSTANDING.name) and change.detectable is not None
    ]
    if not c.verdict.startswith("no detectable change") or not seen:
        return ""
    return f" The smallest change this run could have seen, in points: {', '.join(seen)}."


def _table(rows: list[list[str]], style: str) -> str:
    align = ("left", *("right",) * (len(COLUMNS) - 1))
    return str(tabulate(rows, COLUMNS, tablefmt=style, colalign=align, disable_numparse=True))


def _row(head: str, change: Change) -> list[str]:
    return [
        head,
        _number(change, change.before),
        _number(change, change.after),
        _difference(change),
        _probability(change.p),
        _probability(change.p_holm) + " *" * bool(change.verdict),
        _number(change, change.detectable),
        f"{change.images} ({change.prompts})",
    ]


def _difference(change: Change) -> str:
    if change.difference is None or change.low is None or change.high is None:
        return "n/a"
    values = (change.difference, change.low, change.high)
    difference, low, high = (_number(change, value, "+") for value in values)
    return f"{difference} [{low}, {high}]"


def _win_rate(w: WinRate) -> str:
    if w.value is None:
        return "n/a"
    if w.low is None or w.high is None:
        return "50 by convention"
    return f"{100 * w.value:.1f} [{100 * w.low:.1f}, {100 * w.high:.1f}]"


def _number(change: Change, value: float | None, sign: str = "") -> str:
    metric = _metric(change.metric)
    return "n/a" if value is None else f"{(metric.scale if metric else 100) * value:{sign}.1f}"


def _probability(p: float | None) -> str:
    return "n/a" if p is None else f"{p:.4f}"
