"""What own verdicts are worth, in words and tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gapbench.metrics.verification import CHOICES, Verification, auroc, points, prediction
from gapbench.report.bins import FEWEST, binned, in_percent
from gapbench.report.export import Figure
from gapbench.report.latex import Cell
from gapbench.report.plots import Point, intervals
from gapbench.report.tables import estimate

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable


def show(worth: Verification | None, judge: str, screen: Console) -> None:
    """Print what own verdicts are worth against an outside judge; nothing without verdicts."""
    if worth is None or worth.auroc is None:
        return
    screen.print(f"What its own verdicts are worth, if {judge} is right:\n")
    screen.print(f"AUROC {auroc(worth.auroc)}: how often a right image has the higher probability")
    screen.print("of a right and a wrong one; 0.5 is chance.\n")
    if worth.confidence:
        rows = [
            [f"{100 * each.expected:.0f} % sure", in_percent(each), f"{each.images:,}"]
            for each in worth.confidence
        ]
        screen.print(_table(["own verdict", "right", "images"], rows))
        screen.print()
    if worth.gain is not None:
        rows = [
            [how, estimate(getattr(worth, by)), _images(worth, by)] for by, how in CHOICES.items()
        ]
        screen.print(_table([f"one of {_number(worth)} images, chosen", "right", "images"], rows))
        screen.print(f"\n{prediction(worth)}\n")


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> RichTable:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column(heads[0])
    for head in heads[1:]:
        table.add_column(head, justify="right")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def figures(names: Sequence[str], worths: Sequence[Verification | None]) -> list[Figure]:
    """The report's sections: what choosing by the own verdict brings, and confidence."""
    there = [(n, worth) for n, worth in zip(names, worths, strict=True) if worth and worth.auroc]
    made = []
    if any(worth.gain for _, worth in there):
        made.append(_chosen(there))
    if any(worth.confidence for _, worth in there):
        made.append(_confidence(there))
    return made


def _images(worth: Verification, by: str) -> str:
    """How many images of a prompt a choice takes."""
    again = worth.again_images or 0.0
    return {"random": "1", "again": f"{again:.1f}"}.get(by, _number(worth))


def _number(worth: Verification) -> str:
    several = worth.fewest != worth.most
    return f"{worth.fewest} to {worth.most}" if several else str(worth.most)


def _chosen(there: Sequence[tuple[str, Verification]]) -> Figure:
    shown: list[Point] = []
    rows: list[list[Cell]] = []
    for name, worth in there:
        kept = {by: getattr(worth, by) for by in CHOICES}
        shown += [
            Point(CHOICES[by], name, 100 * e.value, 100 * e.low, 100 * e.high, worth.choices)
            for by, e in kept.items()
            if e is not None
        ]
        gain = "n/a" if worth.gain is None else points(worth.gain)
        number = _number(worth) if worth.choices else "n/a"
        again = "n/a" if worth.again_images is None else f"{worth.again_images:.1f}"
        told = [*map(estimate, kept.values()), again, gain, auroc(worth.auroc)]
        rows.append([name, number, *told])
    heads = [
        "run", "images a prompt", *CHOICES.values(), "images until it accepts",
        "own less lot (points)", "AUROC",
    ]  # fmt: skip
    return Figure(
        name="selection",
        title="What does choosing by its own verdict bring?",
        about="How often the chosen image of a prompt is right: one taken by lot, the one to which "
        "the model itself gives the highest probability, the first that it accepts if it draws one "
        "after the other, or the outside judge's own choice, which none can beat. Means over "
        "categories with 95 % intervals over prompts. A fix teaches a model to draw what it would "
        "choose, so own less lot is about the most that it can add. AUROC: how often a right image "
        "has a higher probability than a wrong one; 0.5 is chance.",
        table=(heads, rows),
        columns=("chosen", "run", "right (%)"),
        points=shown,
        plot=intervals(shown, "the chosen image is right (%)") if shown else None,
    )


def _confidence(there: Sequence[tuple[str, Verification]]) -> Figure:
    return binned(
        "confidence",
        "Is it right more often when it is sure?",
        "How often own verdict and outside judge agree, by the probability of the verdict that was "
        f"given, in fifths from 50 %; those of fewer than {FEWEST} images are left out of the "
        "plot. The numbers are images.",
        ("how sure the model is (%)", "its verdict is right (%)"),
        {name: worth.confidence for name, worth in there},
    )
