"""What trying again brings, in words, a table and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from gapbench.metrics.reflection import Reflection, Trial
from gapbench.metrics.verification import points
from gapbench.report.export import Figure
from gapbench.report.latex import Cell
from gapbench.report.plots import Point, intervals
from gapbench.report.tables import bounds, estimate, print_by_threes
from gapbench.types import counted

if TYPE_CHECKING:
    from rich.console import Console

HEADS: Final = (
    "right at first", "right as kept", "difference", "accepted", "images a prompt", "prompts",
)  # fmt: skip
ABOUT: Final = (
    "To draw more images and take one at random would not help: the difference is what the own "
    "verdict brings, at the cost of these images. No other figure counts them."
)


def show(tried: Reflection | None, judge: str, screen: Console) -> None:
    """Print what reflection brings against an outside judge; nothing where nobody asked for it."""
    if tried is None:
        return
    again = f"again, up to {counted(tried.most, 'time')}, while it rejects its own image"
    screen.print(f"Reflection: drawn {again}, if {judge} is right (percent, points):\n")
    print_by_threes("", HEADS, [(trial.name, _cells(trial)) for trial in _trials(tried)], screen)
    screen.print(f"{ABOUT}{_left_out(tried)}\n")


def figures(names: Sequence[str], several: Sequence[Reflection | None]) -> list[Figure]:
    """The report's section; none where nobody asked for reflection."""
    there = [(name, tried) for name, tried in zip(names, several, strict=True) if tried]
    if not there:
        return []
    shown = [
        Point(
            f"{trial.name}, {what}",
            name,
            100 * share.value,
            100 * share.low,
            100 * share.high,
            trial.judged,
        )
        for name, tried in there
        for trial in _trials(tried)
        for what, share in (("first", trial.first), ("kept", trial.kept))
        if share is not None
    ]
    rows: list[list[Cell]] = [
        [trial.name, name, *_cells(trial)]
        for name, tried in there
        for trial in (*_trials(tried), *tried.categories)
    ]
    most = " or ".join(dict.fromkeys(counted(tried.most, "time") for _, tried in there))
    left_out = "".join(
        told if len(there) == 1 else f" {name}:{told}"
        for name, tried in there
        if (told := _left_out(tried))
    )
    return [
        Figure(
            name="reflection",
            title="What does drawing again until it accepts bring?",
            about=f"Each prompt is drawn again, up to {most}, while the model rejects its own "
            "image; the image that it gives the highest probability is kept. How often the first "
            "and the kept image are right, in percent, as means over categories with 95 % "
            f"intervals over prompts. {ABOUT}{left_out}",
            table=(["task", "run", *HEADS], rows),
            columns=("image", "run", "right (%)"),
            points=shown,
            plot=intervals(shown, "right (%)") if shown else None,
        )
    ]


def _trials(tried: Reflection) -> list[Trial]:
    """Each task, and the whole where there are several."""
    return tried.tasks if len(tried.tasks) == 1 else [tried.overall, *tried.tasks]


def _cells(trial: Trial) -> list[str]:
    """Under HEADS."""
    of = "" if trial.judged == trial.prompts else f" ({trial.judged:,} judged)"
    images = trial.images
    return [
        estimate(trial.first),
        estimate(trial.kept),
        "n/a" if trial.gain is None else points(trial.gain),
        estimate(trial.accepted),
        f"{images.value:.2f}{bounds(images.low, images.high, 1, 2)}",
        f"{trial.prompts:,}{of}",
    ]


def _left_out(tried: Reflection) -> str:
    """What did not go as planned, to follow a sentence; empty where all did."""
    told = [f"{tried.abstained:,} of {counted(tried.images, 'image')} have no own verdict"]
    told = told if tried.abstained else []
    if tried.refused:
        told.append(f"{counted(tried.refused, 'attempt')} refused by the model")
    return f" {'; '.join(told)}: neither accepted nor rejected." if told else ""
