"""Figures that others published of a model, held against a run by its own recipe
(`gapbench check-model NAME --published`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Final, Literal

import pandas as pd
from tabulate import tabulate

from gapbench.metrics.metric import METRICS, printed
from gapbench.metrics.rates import overalls
from gapbench.runs.estimate import estimate
from gapbench.runs.plan import prepare
from gapbench.runs.run import Run
from gapbench.runs.settings import RunSettings
from gapbench.types import PERCENT, GapbenchError, Rates, counted

PAPER: Final = Path(__file__).with_name("published.csv")
REPORTED: Final = Path(__file__).with_name("reported.csv")
_MODELS: Final = {
    ("janus-pro-7b", "base"): "janus-pro",
    ("t2i-r1", "external-reward"): "t2i-r1",
    ("show-o", "base"): "show-o",
    ("hermesflow", "external-reward"): "hermesflow",
}
"""Model and variant of the paper's tables -> its name here."""
_TASKS: Final = {"geneval": "geneval", "t2i-compbench++": "t2i-compbench@before-2025-09"}
"""Benchmark -> task. Of Science-T2I it is not on record which of its lists the paper measured."""
_JUDGES: Final = {
    "color": "vqa",
    "shape": "vqa",
    "texture": "vqa",
    "non-spatial": "clip",
    "spatial": "",
    "complex": "",
}
"""Category of T2I-CompBench++ -> judge; empty where gapbench has another one than the authors, so
that only the model's own verdicts compare."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A figure that somebody published: the mean over `category`, or over a task's categories where
    it is empty, of so many images a prompt; `judge` is the outside judge, empty where none is
    asked, `verdict` how the model judged itself, `value` a share."""

    model: str
    task: str
    category: str = ""
    judge: str
    verdict: Literal["logits", "text", "none"]
    samples: int
    figure: str
    value: float
    source: str

    @property
    def place(self) -> str:
        return f"{self.task}/{self.category}" if self.category else self.task


@dataclass(frozen=True, slots=True)
class Checked:
    """A published figure and the same one of a run here; None where that has no such figure."""

    published: Published
    here: Rates | None

    @property
    def inside(self) -> bool:
        """Whether the published value lies in the 95 % interval."""
        rate = self.here
        if rate is None or rate.low is None or rate.high is None:
            return False
        return rate.low <= self.published.value <= rate.high


def figures() -> list[Published]:
    """All published figures: the paper's, one image a prompt and verdicts in words, and those that
    others report."""
    return [*_of_paper(), *_reported()]


def figures_of(model: str) -> list[Published]:
    """The published figures of a model. Raises GapbenchError where there are none."""
    every = figures()
    if mine := [each for each in every if each.model == model]:
        return mine
    there = ", ".join(dict.fromkeys(each.model for each in every))
    raise GapbenchError(
        f"model {model}: no published figure of it is on record; there are of {there}"
    )


def commands(
    rows: Sequence[Published], settings: RunSettings
) -> list[tuple[RunSettings, list[Published]]]:
    """The runs that measure these figures as they were published, all in one run folder: what
    `settings` leave open, and the figures of each."""

    def how(row: Published) -> tuple[int, bool, str]:
        return row.samples, bool(row.judge), row.verdict

    made = []
    for (samples, judged, verdict), group in groupby(sorted(rows, key=how), key=how):
        mine = list(group)
        tasks = list(dict.fromkeys(row.place for row in mine))
        # Each task's own judges are the ones in the table.
        asked: dict[str, Any] = {"judges": None if judged else []}
        asked |= {"tasks": tasks, "samples": samples, "verdict": verdict}
        made.append((replace(settings, **asked), mine))
    return made


def check(run: Run, rows: Sequence[Published]) -> list[Checked]:
    """Hold published figures against a run that `commands` asked for."""
    frame = run.frame()
    made = []
    for row in rows:
        mine = frame[frame["task"] == row.task] if len(frame) else frame
        if row.category:
            mine = mine[mine["category"] == row.category]
        categories = list(dict.fromkeys(mine["category"])) if len(mine) else []
        rates = overalls(mine, {row.task: {"paper": categories}})
        here = next((r for r in rates if r.metric == row.figure and r.value is not None), None)
        made.append(Checked(row, here))
    return made


def cost(planned: Sequence[tuple[RunSettings, list[Published]]]) -> str:
    """What these runs would still take, a line each; draws and asks nothing."""
    lines = []
    for settings, rows in planned:
        left = estimate(prepare(settings))
        tasks, samples = ", ".join(settings.tasks or ()), counted(settings.samples or 0, "image")
        line = f"{counted(len(rows), 'figure')} of {tasks}, {samples} a prompt. {left.left()}"
        if left.unknown:
            line += f". Time not known: {', '.join(left.unknown)}"
        lines += [f"{line}.", *(f"Not counted in the time: {each}." for each in left.costs)]
    if len(planned) > 1:
        lines.append("Images and verdicts that several of these take are counted in each.")
    return "\n".join(lines)


def told(found: Sequence[Checked], limit: int | None) -> str:
    """What was found, a line for each figure, and how many published values lie in the intervals
    here; `limit` is how many prompts of each task were taken."""
    heads = ("figure", "published", "here", "inside", "images (clusters)", "source")
    rows = [
        [
            f"{each.published.place} {METRICS[each.published.figure].heading}",
            *_compared(each),
            each.published.source,
        ]
        for each in found
    ]
    align = ("left", "right", "right", "left", "right", "left")
    table = tabulate(rows, heads, colalign=align, disable_numparse=True)
    count = sum(each.inside for each in found)
    part = f" This is a part, {counted(limit or 0, 'prompt')} a task at most: intervals are wider."
    return (
        f"{table}\n\n{count} of {counted(len(found), 'published value')} in the 95 % interval "
        f"here.{part * (limit is not None)}"
    )


def _compared(each: Checked) -> list[str]:
    rate, inside = each.here, "yes" if each.inside else "NO"
    unit = PERCENT if rate is None else rate.unit
    value = printed(each.published.value, unit)
    if rate is None or rate.value is None or rate.low is None or rate.high is None:
        return [value, "n/a", inside, "0"]
    here, low, high = (printed(number, unit) for number in (rate.value, rate.low, rate.high))
    images = f"{rate.denominator:,.0f} ({rate.n_prompts:,})"
    return [value, f"{here} [{low}, {high}]", inside, images]


def _of_paper() -> Iterator[Published]:
    raw = pd.read_csv(PAPER, comment="#")
    for row in raw.to_dict("records"):
        model = _MODELS.get((row["model"], row["variant"]))
        if model is None or row["benchmark"] not in _TASKS:
            continue
        geneval = row["benchmark"] == "geneval"
        judge = "detector" if geneval else _JUDGES[row["category"]]
        for figure in ("generation", "non_unification") if judge else ("non_unification",):
            yield Published(
                model=model,
                task=_TASKS[row["benchmark"]],
                category=row["category"].replace("-", "_"),
                judge=judge,
                verdict="text",
                samples=1,
                figure=figure,
                value=row[figure] / 100,
                source="arXiv 2507.16663",
            )


def _reported() -> Iterator[Published]:
    for row in pd.read_csv(REPORTED, comment="#").to_dict("records"):
        values: Mapping[Any, Any] = row | {"value": row["value"] / 100}
        yield Published(**values)
