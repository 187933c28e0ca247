"""Comparisons as text, Markdown and JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Final

from tabulate import tabulate

from gapbench.comparison.compare import RULE, Comparison
from gapbench.comparison.judges import VERDICT, Judged, concluded, order
from gapbench.metrics.metric import METRICS, UNDERSTANDING, printed
from gapbench.metrics.paired import Change
from gapbench.metrics.questions import BY_SKILL
from gapbench.metrics.reflection import plain
from gapbench.metrics.verification import CHOICES, auroc, points, record
from gapbench.types import PERCENT, GapbenchError, counted

FORMATS: Final = ("text", "markdown", "json")
COLUMNS: Final = (
    "%",
    "before",
    "after",
    "change",
    "p",
    "Holm p",
    "detectable",
    "images (clusters)",
)

SHORT: Final = ("%", "before", "after", "change", "Holm p")
"""The columns that a terminal shows unless all are asked for."""
VERDICTS: Final = {"1": "accepts", "0": "rejects"}
SHORT_ABOUT: Final = """\
change: after minus before [95 % interval over prompts]; * marks a Holm p below
0.05. --verbose adds p, detectable changes and counts, and explains them."""
ABOUT: Final = f"""\
How to read this (percent and percentage points, unless a unit is given):

- change: after minus before, with its 95 % interval over prompts.
- p: below 0.05 if that interval excludes 0.
- Holm p: p, corrected for the number of rows in the table. * marks those below
  0.05.
- detectable: the smallest change that this many prompts show with a
  probability of 80 %. >100: more than any change could be.
- skills: of the questions about an image, how many the drawing answers as the
  prompt wants (draws), and the model as the outside judge (sees); those about
  reference images (sees references).
- understanding: how often an own verdict is right. Both models judge the
  images of BEFORE. Understanding win rate: of a category's images on which the
  two disagree, the share on which AFTER is right; the mean over categories.
- verdict: {RULE}."""
Table = Callable[[Sequence[str], list[list[str]]], str]
"""Lays out headings and rows."""


def render(
    comparisons: Sequence[Comparison],
    form: str,
    width: int = 160,
    verbose: bool = False,
    judged: Sequence[Judged] = (),
) -> str:
    """Comparisons with one BEFORE, as `text`, `markdown` or `json` (all fields, and the rule).

    Where `judged` is given, the comparisons are its majorities, and each begins with what holds
    under its judges. The text's tables have up to `width` characters a line; wider ones are split
    by columns. Text has all columns where it is `verbose`, Markdown always.
    """
    if form not in FORMATS:
        raise GapbenchError(f"no format {form!r}; there are {', '.join(FORMATS)}")
    if form == "json":
        told: dict[str, Any] = {"rule": RULE, "comparisons": [_record(c) for c in comparisons]}
        if judged:
            told["judges"] = [
                {
                    "under": {name: _record(c) for name, c in each.judges.items()},
                    "conclusions": [asdict(conclusion) for conclusion in each.conclusions],
                }
                for each in judged
            ]
            ranks = order(judged)
            told["order"] = asdict(ranks) if ranks else None
        return json.dumps(told, indent=1)
    table = _markdown if form == "markdown" else partial(text_table, width)
    verbose = verbose or form == "markdown"
    several: Sequence[Judged | None] = judged or [None] * len(comparisons)
    blocks = [_block(*each, table, verbose) for each in zip(comparisons, several, strict=True)]
    if len(comparisons) > 1:
        blocks.insert(0, _summary(comparisons, judged, table))
    if form == "markdown":
        blocks = [block.replace("\n* ", "\n\\* ") for block in blocks]
    return "\n\n".join([*blocks, ABOUT if verbose else SHORT_ABOUT])


def overall(c: Comparison) -> list[list[str]]:
    """The overall changes, a row each under COLUMNS."""
    return [_row(_head(change), change) for change in c.changes]


def finding(c: Comparison) -> str:
    """The changes that matter most, in one sentence with intervals and p."""
    told = [
        f"{_head(change)} {difference(change)}{' points' * (change.unit == PERCENT)} "
        f"(Holm p {_probability(change.p_holm)})"
        for name in ("generation", UNDERSTANDING.name, "non_unification")
        for change in c.changes
        if change.metric == name and change.difference is not None
    ]
    who = f"From {c.before_model} to {c.after_model}, over {counted(c.images, 'image')}"
    left = "".join(f" Left out: {reason}." for reason in c.left_out)
    return f"{who} of {counted(c.prompts, 'prompt')}: {'; '.join(told) or 'no figure'}.{left}"


def card_of(c: Comparison) -> str:
    """Verdict and overall figures in Markdown, for a model card."""
    kept = [COLUMNS.index(column) for column in SHORT]
    judges = ", ".join(c.judges) or "none"
    return (
        f"{c.before_model} before, {c.after_model} after: {counted(c.images, 'image')} of "
        f"{counted(c.prompts, 'prompt')}, outside judge {judges}.\n\n**Verdict: {c.verdict}.**\n\n"
        f"{_markdown(SHORT, [[row[place] for place in kept] for row in overall(c)])}\n\n"
        "Percent; change with its 95 % interval over prompts. \\* marks a Holm p below 0.05."
    )


def _head(figure: Change) -> str:
    """Its heading, with the unit where that is not percent; a score of lm-eval's goes by its own
    name."""
    metric = UNDERSTANDING if figure.metric == UNDERSTANDING.name else METRICS.get(figure.metric)
    head = metric.heading if metric else figure.metric
    return head if figure.unit == PERCENT else f"{head} ({figure.unit})"


def _skill(change: Change) -> str:
    """What a skill's change is of: task/skill."""
    name = "all skills" if change.level == "overall" else change.name
    return f"{name}: {BY_SKILL[change.metric]}"


def _record(c: Comparison) -> dict[str, Any]:
    worths = {"worth_before": c.worth_before, "worth_after": c.worth_after}
    return (
        asdict(c)
        | {"gap_gain": c.gap_gain._asdict() if c.gap_gain else None}
        | {name: record(worth) if worth else None for name, worth in worths.items()}
        | {"again": [plain(way) for way in c.again]}
    )


def _block(c: Comparison, judged: Judged | None, table: Table, verbose: bool) -> str:
    verdict = f"Verdict: {c.verdict}."
    held = f" It is the majority's and holds under {judged.conclusions[0].holds}." if judged else ""
    parts = [(f"**{verdict}**" if table is _markdown else verdict) + held + _smallest(c)]
    if c.worse:
        worse = [_head(change) for change in c.changes if change.verdict < 0]
        parts.append(f"Significantly worse: {', '.join(worse)}.")
    lines = [
        f"BEFORE {c.before_model}: {c.before}",
        f"AFTER  {c.after_model}: {c.after}",
        f"{counted(c.images, 'image')} of {counted(c.prompts, 'prompt')}, each with the same seed "
        f"in both runs; outside judge {', '.join(c.judges) or 'none'}, own verdicts: {c.own}",
        *(f"Left out: {reason}" for reason in c.left_out),
        *c.notes,
    ]
    if judged:
        parts.append("What changed, in points, under each judge and under their majority:")
        parts.append(_under(judged, table))
    columns = COLUMNS if verbose else SHORT
    families = [[(_head(change), change) for change in c.changes]]
    families += [[(f"{each.name}: {_head(each)}", each) for each in c.by_level]] * bool(c.by_level)
    families += [[(_skill(each), each) for each in c.by_skill]] * bool(c.by_skill)
    parts.append(("  \n" if table is _markdown else "\n").join(lines))
    for named in families:
        cells = [dict(zip(COLUMNS, _row(*each), strict=True)) for each in named]
        parts.append(table(columns, [[row[column] for column in columns] for row in cells]))
    if c.win_rate:
        w = c.win_rate
        parts.append(
            "Understanding win rate in percent (mean over categories, 50 without a disagreement): "
            f"{_win_rate(w.value, w.low, w.high)} ({w.wins} wins, {w.losses} losses, {w.ties} ties)"
        )
        if w.pooled is not None:
            pooled = _win_rate(w.pooled, w.pooled_low, w.pooled_high)
            parts.append(f"Pooled win rate in percent (over the disagreements alone): {pooled}")
    if c.groups:
        rows = [
            [
                VERDICTS[judge],
                VERDICTS[own],
                *(str(c.groups[judge + own + now]) for now in VERDICTS),
            ]
            for judge in VERDICTS
            for own in VERDICTS
        ]
        parts.append("The images of BEFORE by who accepts them:")
        parts.append(table(["outside judge", "BEFORE", "AFTER accepts", "AFTER rejects"], rows))
        parts.append(
            "Correction group (wrongly accepted by BEFORE, rejected by AFTER): "
            f"{counted(c.groups['010'], 'image')}"
        )
    if c.gap_gain:
        g = c.gap_gain
        parts.append(
            f"Correlation of non-unification before and gain in generation over {g.categories} "
            f"categories: {g.rho:.2f} [{g.low:.2f}, {g.high:.2f}]"
        )
    parts += [*_worth(c, table), *_again(c, table)]
    return "\n\n".join(parts)


def _under(judged: Judged, table: Table) -> str:
    """A row for each judge and the majority, and under how many of them the majority's conclusions
    hold."""
    figures = [each for each in judged.conclusions if each.about != VERDICT]
    heads = [
        "judge", "verdict", "images",
        *(METRICS[each.about].heading if each.about in METRICS else each.about for each in figures),
    ]  # fmt: skip
    rows = [
        [name, c.verdict, str(c.images), *(_concluded(c, each.about) for each in figures)]
        for name, c in [*judged.judges.items(), ("majority", judged.majority)]
    ]
    holds = [each.holds for each in judged.conclusions]
    return table(heads, [*rows, ["holds under", holds[0], "", *holds[1:]]])


def _concluded(c: Comparison, metric: str) -> str:
    """Better, worse or unchanged, and by how much."""
    known = [ch for ch in c.changes if ch.metric == metric and ch.difference is not None]
    by = [_number(ch, ch.difference, "+") + f" {ch.unit}" * (ch.unit != PERCENT) for ch in known]
    return concluded(c, metric) + f" ({', '.join(by)})" * bool(by)


def _worth(c: Comparison, table: Table) -> list[str]:
    """What own verdicts were worth before and after, and whether a fix gained what they told."""
    one, two = c.worth_before, c.worth_after
    if one is None or two is None or not (one.auroc and two.auroc):
        return []
    rows = [["AUROC", auroc(one.auroc), auroc(two.auroc)]]
    if one.gain and two.gain:
        for by, how in CHOICES.items():
            told = [getattr(worth, by) for worth in (one, two)]
            rows.append([f"% right, {how}", *(_share(*estimate) for estimate in told)])
    parts = [
        "What each model's own verdicts are worth on its own images: can it tell right ones, and "
        "choose one of a prompt's?",
        table(["own verdicts", "before", "after"], rows),
    ]
    gained = [change for change in c.changes if change.metric == "generation"]
    if c.is_fix and one.gain and len(gained) == 1 and gained[0].unit == PERCENT:
        parts.append(
            "Generation in points, predicted before the fix by what choosing by BEFORE's own "
            f"verdict adds: {points(one.gain)}; measured: {difference(gained[0])}"
        )
    return parts


def _again(c: Comparison, table: Table) -> list[str]:
    """What training and what drawing again bring, each against BEFORE's first image."""
    rows = [
        [
            f"{way.side.upper()}, {'drawn again' if way.again else 'first image'}",
            _share(*way.right),
            "" if way.change is None else points(way.change),
            f"{way.images.value:.2f}",
        ]
        for way in c.again
    ]
    about = (
        "What training brings, and what drawing again (--reflect) brings, in points; all changes "
        "are from BEFORE's first image:"
    )
    heads = ["image of a prompt", "% right", "change", "images a prompt"]
    return [about, table(heads, rows)] if rows else []


def _summary(comparisons: Sequence[Comparison], judged: Sequence[Judged], table: Table) -> str:
    heads = list(dict.fromkeys(head for c in comparisons for head in _changes(c)))
    rows = []
    for c in comparisons:
        cells = _changes(c)
        figures = [difference(cells[h]) + " *" * bool(cells[h].verdict) if h in cells else "n/a"
                   for h in heads]  # fmt: skip
        rho = f"{c.gap_gain.rho:.2f}" if c.gap_gain else "n/a"
        w = c.win_rate
        won = _win_rate(w.value, w.low, w.high) if w else "n/a"
        rows.append([c.after, c.after_model, c.verdict, *figures, won, rho])
    heads = ["AFTER", "model", "verdict", *heads, "understanding win rate", "gap-gain rho"]
    before = f"{comparisons[0].before_model}: {comparisons[0].before}"
    told = f"Changes from BEFORE, in points; BEFORE is {before}\n\n{table(heads, rows)}"
    if ranks := order(judged):
        orders = [*ranks.judges.items(), ("majority", ranks.majority), ("holds under", ranks.holds)]
        told += (
            "\n\nThe AFTERs, numbered as above, by change in generation, the best first:"
            f"\n\n{table(['judge', 'order'], [[*each] for each in orders])}"
        )
    return told


def _changes(c: Comparison) -> dict[str, Change]:
    return {_head(change): change for change in c.changes}


def _smallest(c: Comparison) -> str:
    """What a run that shows nothing could have shown."""
    seen = [
        f"{_head(change)} {_detectable(change)}"
        for change in c.changes
        if change.metric in ("generation", UNDERSTANDING.name) and change.detectable is not None
    ]
    if not c.verdict.startswith("no detectable change") or not seen:
        return ""
    return f" The smallest change this run could have seen, in points: {', '.join(seen)}."


def _markdown(heads: Sequence[str], rows: list[list[str]]) -> str:
    align = ("left", *("right",) * (len(heads) - 1))
    return str(tabulate(rows, heads, tablefmt="pipe", colalign=align, disable_numparse=True))


def text_table(width: int, heads: Sequence[str], rows: list[list[str]]) -> str:
    """A table, in several parts with the same first column where it is wider than `width`."""
    columns = list(zip(heads, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    parts: list[list[int]] = [[]]
    for place in range(1, len(columns)):
        if parts[-1] and sum(widths[i] + 2 for i in (0, *parts[-1], place)) - 2 > width:
            parts.append([])
        parts[-1].append(place)
    return "\n\n".join(
        "\n".join(
            "  ".join([line[0].ljust(widths[0]), *(line[i].rjust(widths[i]) for i in part)])
            for line in (heads, ["-" * each for each in widths], *rows)
        )
        for part in parts
    )


def _row(head: str, change: Change) -> list[str]:
    return [
        head,
        _number(change, change.before),
        _number(change, change.after),
        difference(change),
        _probability(change.p),
        _probability(change.p_holm) + " *" * bool(change.verdict),
        _detectable(change),
        f"{change.images} ({change.prompts})",
    ]


def difference(change: Change) -> str:
    """A change with its interval, in points or its unit."""
    if change.difference is None or change.low is None or change.high is None:
        return "n/a"
    values = (change.difference, change.low, change.high)
    value, low, high = (_number(change, each, "+") for each in values)
    return f"{value} [{low}, {high}]"


def _win_rate(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return "n/a"
    if low is None or high is None:
        return "50, as the two models never disagree"
    return _share(value, low, high)


def _share(value: float, low: float, high: float) -> str:
    """A share in percent with its interval."""
    return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _number(change: Change, value: float | None, sign: str = "") -> str:
    return "n/a" if value is None else printed(value, change.unit, sign)


def _detectable(change: Change) -> str:
    """More than 100 percentage points is no change that a share can have."""
    beyond = change.detectable is not None and change.detectable > 1 and change.unit == PERCENT
    return ">100" if beyond else _number(change, change.detectable)


def _probability(p: float | None) -> str:
    return "n/a" if p is None else f"{p:.4f}"
