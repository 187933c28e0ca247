"""How many prompts a comparison takes, as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tabulate import tabulate

from gapbench.metrics.metric import METRICS, printed
from gapbench.metrics.paired import detectable
from gapbench.metrics.power import SAMPLES, Spread, family
from gapbench.types import PERCENT

ABOUT: Final = (
    "At best, every prompt changes by the same amount. At worst, a prompt's rate after has nothing "
    "to do with its rate before."
)


def plan(spread: Spread, metric: str, change: float) -> str:
    """Prompts that a comparison takes to detect a change, in the unit that the figure is printed
    in, for numbers of samples."""
    unit, points = spread.unit, "points" if spread.unit == PERCENT else spread.unit
    share = change / 100 if unit == PERCENT else change
    rows = [
        [samples, *(spread.needed(share, samples, alike) for alike in (True, False))]
        for samples in SAMPLES
    ]
    heads = ["images a prompt", "prompts, at best", "prompts, at worst"]
    here = [printed(each, unit) for each in _here(spread)]
    return (
        f"{METRICS[metric].heading} {printed(spread.value, unit)} {unit}: variance "
        f"{spread.between:.4f} between the prompts of a category, {spread.within:.4f} within a "
        "prompt.\n"
        f"To detect a change of {change:g} {points} with a probability of 80 %:\n\n"
        f"{tabulate(rows, heads)}\n\n"
        f"{ABOUT}\nThis run, with {spread.prompts} clusters of "
        f"prompts and {spread.samples:.3g} images each, detects a change of {here[0]} {points} at "
        f"best and {here[1]} at worst."
    )


def plans(under: Mapping[str, Spread | str], metric: str, change: float) -> str:
    """The same under several judges, a line for each: of its spread, or why there is none."""
    rows = []
    for name, spread in under.items():
        if isinstance(spread, str):
            rows.append([name, "n/a", *["n/a"] * len(SAMPLES), "n/a"])
            continue
        share = change / 100 if spread.unit == PERCENT else change
        needed = [[spread.needed(share, n, alike) for alike in (True, False)] for n in SAMPLES]
        ends = (printed(each, spread.unit) for each in _here(spread))
        rows.append(
            [
                name,
                f"{printed(spread.value, spread.unit)} {spread.unit}",
                *(" to ".join(map(str, both)) for both in needed),
                " to ".join(ends),
            ]
        )
    images = [f"with {samples}" for samples in SAMPLES]
    table = tabulate(
        rows, ["judge", METRICS[metric].heading, *images, "this run"], disable_numparse=True
    )
    why = "".join(f"\n{name}: {told}" for name, told in under.items() if isinstance(told, str))
    return (
        f"Prompts that detect a change of {change:g} (points, or the unit of the judge's scores) "
        "with a probability of 80 %, with so many images of each, at best to at worst; and the "
        f"change that this run detects, under each judge:\n\n{table}\n\n{ABOUT}{why}"
    )


def _here(spread: Spread) -> list[float]:
    """The change that a run of this spread detects, at best and at worst."""
    errors = (spread.error(spread.prompts, spread.samples, alike) for alike in (True, False))
    return [detectable(error, family()) for error in errors]
