"""Rates as a table: for the terminal, Markdown, CSV and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from gapbench.metrics.metric import METRICS, printed, shown_in
from gapbench.report.latex import Cell, booktabs
from gapbench.types import PERCENT, SHARE, GapbenchError, Rates

if TYPE_CHECKING:
    from rich.console import Console

    from gapbench.metrics.agreement import Agreement
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
_CELL: Final = 20


def render(rates: Sequence[Rates], form: str, footnote: str = "") -> str:
    """The rates as `markdown` (wide), `latex` (without counts), `csv` or `json` (one record a
    figure, all fields).

    A footnote stands under a Markdown or LaTeX table, and in a field of its own in the other forms.
    """
    records = [asdict(rate) | ({"footnote": footnote} if footnote else {}) for rate in rates]
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
        return booktabs(["%", *heads], figures, [*overall_lines(rates), footnote])
    if form == "markdown":
        from tabulate import tabulate

        rows = [
            [name if level == "category" else f"**{name}**", *(" ".join(c).rstrip() for c in mine)]
            for (level, name), mine in zip(shown, cells, strict=True)
        ]
        table = tabulate(rows, ["", *heads], tablefmt="pipe", disable_numparse=True)
        lines = [f"- {line}" for line in overall_lines(rates)]
        parts = [table, "\n".join(lines), f"\\{footnote}" if footnote else ""]
        return "\n\n".join(filter(None, parts))
    raise GapbenchError(f"no format {form!r}; there are {', '.join(FORMATS)}")


def show(rates: Sequence[Rates], console: Console) -> None:
    """Print the rates in percent, each with its 95 % interval and the counts behind it; in several
    tables where the terminal is narrow."""
    from rich.table import Table
    from rich.text import Text

    rows = {key: row for key, row in by_place(rates).items() if key[0] not in OVERALLS}
    first = max((len(name) for _, name in rows), default=0) + 2
    fit = max(1, (console.width - first - 2) // (_CELL + 1))
    metrics = shown_in("tables")
    for start in range(0, len(metrics), fit):
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
        table.add_column("%", no_wrap=True)
        for metric in metrics[start : start + fit]:
            table.add_column(metric.title, justify="right", min_width=_CELL)
        last = ""
        for (level, name), row in rows.items():
            if last and level != last:
                table.add_section()
            last = level
            values = []
            for metric in metrics[start : start + fit]:
                figure, counts = cell(row[metric.name]) if metric.name in row else ("n/a", "")
                values.append(Text.assemble(figure, "\n", (counts, "dim")))
            table.add_row(Text(name), *values, style="bold" if level != "category" else "")
        console.print(table)
        console.print()
    for line in overall_lines(rates):
        console.print(line, soft_wrap=True)


def overall_lines(rates: Sequence[Rates]) -> list[str]:
    """The overall figures as the tasks' authors and the paper form them, a line each."""
    return [
        f"{name}, {OVERALLS[level]}: "
        + "; ".join(
            f"{METRICS[rate.metric].heading} {' '.join(cell(rate))}" for rate in row.values()
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
    raw = f"{100 * two.raw:.1f}{_bounds(two.raw_low, two.raw_high, 100, 1)}"
    kappa = "n/a" if two.kappa is None else f"{two.kappa:.2f}"
    kappa += _bounds(two.kappa_low, two.kappa_high, 1, 2)
    left_out = f", {two.abstained} abstained" if two.abstained else ""
    return f"agree on {raw} % of {two.n} images{left_out}; Cohen's kappa {kappa}"


def show_corrected(rates: Sequence[Corrected], judge: str, console: Console) -> None:
    """Print the rates that people's labels correct; nothing without them."""
    from rich.table import Table
    from rich.text import Text

    if not rates:
        return
    console.print(f"Corrected for the errors of {judge} by people's labels, in percent:\n")
    table = Table("%", box=None, pad_edge=False, header_style="bold")
    for head in CORRECTED:
        table.add_column(head, justify="right")
    for rate in rates:
        table.add_row(*map(Text, corrected(rate)))
    console.print(table)
    console.print(f"\n{ABOUT_CORRECTED}", soft_wrap=True)


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
    return f"{100 * share.value:.1f}{_bounds(share.low, share.high, 100, 1)}"


def _bounds(low: float | None, high: float | None, scale: float, digits: int) -> str:
    if low is None or high is None:
        return ""
    return f" [{scale * low:.{digits}f}, {scale * high:.{digits}f}]"


def by_place(rates: Sequence[Rates]) -> dict[tuple[str, str], dict[str, Rates]]:
    """(level, name) -> metric -> figure."""
    rows: dict[tuple[str, str], dict[str, Rates]] = {}
    for rate in rates:
        rows.setdefault((rate.level, rate.name), {})[rate.metric] = rate
    return rows
