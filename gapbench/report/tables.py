"""Rates as a table: for the terminal, Markdown, CSV and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from gapbench.metrics.metric import METRICS, printed, shown_in
from gapbench.report.latex import Cell, booktabs
from gapbench.types import PERCENT, SHARE, GapbenchError, Rates, counted

if TYPE_CHECKING:
    from rich.console import Console

    from gapbench.metrics.agreement import Agreement, Alpha
    from gapbench.metrics.corrected import Corrected, Estimate
    from gapbench.runs.plan import Plan

CORRECTED: Final = ("by the judge", "labels alone", "Rogan-Gladen", "prediction-powered", "labels")
ABOUT_CORRECTED: Final = (
    "The labels are taken for the truth, and the labelled images for a random sample, as gapbench "
    "label shows them. Both corrections use the judge's verdicts on every image; Rogan-Gladen by "
    "its sensitivity and specificity, prediction-powered inference by its mean error. n/a: fewer "
    "than 10 labelled prompts, no label of a kind, or a judge no better than chance."
)
FORMATS: Final = ("text", "markdown", "csv", "json", "latex")
OVERALLS: Final = {"official": "official (its authors' overall)", "paper": "the paper's mean"}
"""Levels of figures that others form -> what they are called; never in one table with ours."""


def render(rates: Sequence[Rates], form: str, footnote: str = "", unfinished: str = "") -> str:
    """The rates as `markdown` (wide), `latex` (without counts), `csv` or `json` (one record a
    figure, all fields).

    A footnote stands under a Markdown or LaTeX table, and what is missing of the run above it or,
    in LaTeX, below; in the other forms each has a field of its own.
    """
    marks = {"footnote": footnote, "unfinished": unfinished}
    records = [asdict(rate) | {k: mark for k, mark in marks.items() if mark} for rate in rates]
    if form == "json":
        return json.dumps(records, indent=1)
    if form == "csv":
        import pandas as pd

        return str(pd.DataFrame(records).to_csv(index=False))
    metrics = shown_in("tables")
    shown = {key: row for key, row in by_place(rates).items() if key[0] not in OVERALLS}
    cells = [
        [cell(row[m.name]) if m.name in row else ("n/a", "") for m in metrics]
        for row in shown.values()
    ]
    heads = [metric.title for metric in metrics]
    if form == "latex":
        figures: list[list[Cell]] = [
            [name, *mine] for (_, name), mine in zip(shown, cells, strict=True)
        ]
        return booktabs(["%", *heads], figures, [*overall_lines(rates), footnote, unfinished])
    if form == "markdown":
        from tabulate import tabulate

        rows = [
            [name if level == "category" else f"**{name}**", *(" ".join(c).rstrip() for c in mine)]
            for (level, name), mine in zip(shown, cells, strict=True)
        ]
        table = tabulate(rows, ["", *heads], tablefmt="pipe", disable_numparse=True)
        lines = [f"- {line}" for line in overall_lines(rates)]
        above, below = unfinished and f"**{unfinished}**", footnote and f"\\{footnote}"
        parts = [above, table, "\n".join(lines), below]
        return "\n\n".join(filter(None, parts))
    raise GapbenchError(f"no format {form!r}; there are {', '.join(FORMATS)}")


def show(rates: Sequence[Rates], console: Console, verbose: bool = False) -> None:
    """Print the rates in percent, each with its 95 % interval, a task's categories below it; in
    several tables where the terminal is narrow. `verbose` adds the counts behind each figure."""
    from rich.table import Table
    from rich.text import Text

    metrics, rows = shown_in("tables"), _laid_out(by_place(rates))
    texts = [[_text(row.get(metric.name), verbose) for metric in metrics] for _, row in rows]
    heads = [metric.title for metric in metrics]
    width = max(map(len, [*heads, *(line for row in texts for text in row for line in text)]))
    longest = max((len(label) for label, _ in rows), default=1)
    first = min(longest, max(8, console.width - width - 2))
    fit = max(1, (console.width - first) // (width + 2))
    for start in range(0, len(metrics), fit):
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        table.add_column("%", width=first, overflow="fold")
        for head in heads[start : start + fit]:
            table.add_column(head, justify="right", overflow="fold")
        for (label, _), row in zip(rows, texts, strict=True):
            cells = [
                Text.assemble(figure, *(("\n" + line, "dim") for line in counts))
                for figure, *counts in row[start : start + fit]
            ]
            table.add_row(Text(label), *cells, style="" if label.startswith(" ") else "bold")
        console.print(table)
        console.print()
    for line in overall_lines(rates, verbose):
        console.print(line)


def show_overall(rates: Sequence[Rates], console: Console) -> None:
    """Print the overall figures with their intervals, and the tiers' beside them: a line each."""
    from rich.table import Table
    from rich.text import Text

    rows = by_place(rates)
    tiers = [name for level, name in rows if level == "tier"]
    overall = rows.get(("overall", "overall"), {})
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("%", overflow="fold")
    for head in ("overall", *tiers):
        table.add_column(head, justify="right", overflow="fold")
    for metric in shown_in("tables"):
        if rate := overall.get(metric.name):
            there = [rows["tier", name].get(metric.name) for name in tiers]
            values = [_text(tier, False)[0].partition(" [")[0] for tier in there]
            table.add_row(metric.title, Text(_text(rate, False)[0], style="bold"), *values)
    console.print(table)


def _laid_out(
    places: Mapping[tuple[str, str], dict[str, Rates]],
) -> list[tuple[str, dict[str, Rates]]]:
    """(label, metric -> figure) of each task, its categories, which are indented, then the tiers
    and the total."""
    rows = []
    for (level, task), row in places.items():
        if level == "task":
            rows.append((task, row))
            for (of, name), mine in places.items():
                if of == "category" and name.startswith(f"{task}/"):
                    rows.append((f"  {name.removeprefix(f'{task}/')}", mine))
    ours = ("tier", "overall")
    return rows + [(name, row) for (level, name), row in places.items() if level in ours]


def _text(rate: Rates | None, verbose: bool) -> list[str]:
    """A figure's lines: with its interval and, where it is a mean of scores, their unit; the
    counts."""
    if rate is None:
        return ["n/a"]
    figure, counts = cell(rate)
    if verbose:
        return [figure, counts]
    scored = METRICS[rate.metric].in_scores and rate.unit != PERCENT and rate.value is not None
    return [f"{figure} {rate.unit}" if scored else figure]


def overall_lines(rates: Sequence[Rates], verbose: bool = True) -> list[str]:
    """The overall figures as the tasks' authors and the paper form them, a line each."""
    return [
        f"{name}, {OVERALLS[level]}: "
        + "; ".join(
            f"{METRICS[rate.metric].heading} {' '.join(_text(rate, verbose))}"
            for rate in row.values()
        )
        for (level, name), row in by_place(rates).items()
        if level in OVERALLS
    ]


def about_scores(plan: Plan) -> str:
    """How the judges' scores become verdicts, in a line; empty where they give verdicts alone."""
    said = []
    for name in plan.judges:
        scale, threshold = plan.scales.get(name, SHARE), plan.thresholds.get(name)
        unit = "" if scale.unit == PERCENT else f" ({scale.unit}, {scale.low:g} to {scale.high:g})"
        if threshold is not None:
            said.append(f"{name}{unit} accepts from {threshold:g} on")
        elif unit:
            said.append(f"{name}{unit} gives no verdict")
    return f"Scores and verdicts: {'; '.join(said)}." if said else ""


def cell(rate: Rates) -> tuple[str, str]:
    """A figure with its interval, and the counts behind it with any abstentions."""
    left_out = f", {rate.abstained} abstained" if rate.abstained else ""
    whole = float(rate.numerator).is_integer()
    if left_out and not rate.denominator and len(METRICS[rate.metric].reads) > 1:
        return "n/a", f"({rate.abstained} abstained)"  # of two, and another column says which
    counts = f"{rate.numerator:.{0 if whole else 1}f}/{rate.denominator:.0f}{left_out}"
    if rate.value is None or rate.low is None or rate.high is None:
        return "n/a", f"(no mean of {rate.unit})" if rate.denominator else f"({counts})"
    value, low, high = (printed(v, rate.unit) for v in (rate.value, rate.low, rate.high))
    judged = METRICS[rate.metric].in_scores and rate.unit != PERCENT
    return f"{value} [{low}, {high}]", f"{rate.unit} " * judged + f"({counts})"


def agreement(two: Agreement) -> str:
    """How far two judges agree, in words."""
    if two.raw is None:
        return "have no image that both gave a verdict on"
    raw = f"{100 * two.raw:.1f}{bounds(two.raw_low, two.raw_high, 100, 1)}"
    kappa = "n/a" if two.kappa is None else f"{two.kappa:.2f}"
    kappa += bounds(two.kappa_low, two.kappa_high, 1, 2)
    left_out = f", {two.abstained} abstained" if two.abstained else ""
    return f"agree on {raw} % of {two.n} images{left_out}; Cohen's kappa {kappa}"


def alpha(among: Alpha) -> str:
    """How far several people agree, in words."""
    value = "n/a" if among.value is None else f"{among.value:.2f}"
    value += bounds(among.low, among.high, 1, 2)
    images = counted(among.images, "image")
    return f"{value}, over {images} with two or more labels ({among.labels} labels)"


def show_corrected(rates: Sequence[Corrected], judge: str, people: str, console: Console) -> None:
    """Print the rates that the labels of the judge `people` correct; nothing without them."""
    from rich.table import Table
    from rich.text import Text

    if not rates:
        return
    console.print(f"Corrected for the errors of {judge} by the labels of {people}, in percent:\n")
    table = Table("%", box=None, pad_edge=False, header_style="bold")
    for head in CORRECTED:
        table.add_column(head, justify="right")
    for rate in rates:
        table.add_row(*map(Text, corrected(rate)))
    console.print(table)
    console.print()


def corrected(rate: Corrected) -> list[str]:
    """What it is, and the cells under the heads of CORRECTED."""
    by_judge = "n/a" if rate.judge is None else f"{100 * rate.judge:.1f}"
    estimates = (rate.sample, rate.rogan_gladen, rate.ppi)
    what = f"{rate.name}: {METRICS[rate.metric].heading}"
    return [what, by_judge, *(estimate(each) for each in estimates), str(rate.labels)]


def estimate(share: Estimate | None) -> str:
    """A figure with its interval, in percent."""
    if share is None:
        return "n/a"
    return f"{100 * share.value:.1f}{bounds(share.low, share.high, 100, 1)}"


def bounds(low: float | None, high: float | None, scale: float, digits: int) -> str:
    """An interval in brackets, after a blank; empty where there is none."""
    if low is None or high is None:
        return ""
    return f" [{scale * low:.{digits}f}, {scale * high:.{digits}f}]"


def print_by_threes(
    first: str, heads: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], console: Console
) -> None:
    """Print rows, a name and a cell for each of the heads, as tables of three of these, which fit
    into 80 columns; `first` heads the names."""
    from rich.table import Table
    from rich.text import Text

    for some in (slice(start, start + 3) for start in range(0, len(heads), 3)):
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        table.add_column(first, overflow="fold")
        for head in heads[some]:
            table.add_column(head, justify="right")
        for name, cells in rows:
            table.add_row(Text(name), *map(Text, cells[some]))
        console.print(table)
        console.print()


def by_place(rates: Sequence[Rates]) -> dict[tuple[str, str], dict[str, Rates]]:
    """(level, name) -> metric -> figure."""
    rows: dict[tuple[str, str], dict[str, Rates]] = {}
    for rate in rates:
        rows.setdefault((rate.level, rate.name), {})[rate.metric] = rate
    return rows
