"""What trying again brings: right at the first attempt, right with the image that the model keeps,
and what that costs in images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pandas as pd

from gapbench.metrics.corrected import Estimate
from gapbench.metrics.intervals import Contrast, Figure
from gapbench.metrics.rates import UNIT
from gapbench.metrics.verification import share


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """Reflection over the prompts of a task, or over all: means over categories.

    accepted: the share of `prompts` of which the model accepts an attempt; images: those that were
      drawn for one, from 1 to most + 1. Both are of the model alone.
    first, kept, gain: of the `judged` prompts, on whose first and kept image the outside judge gave
      a verdict, the shares that are right, and kept less first by prompts; None without any.
    """

    name: str
    prompts: int
    images: Estimate
    accepted: Estimate
    judged: int
    first: Estimate | None
    kept: Estimate | None
    gain: Estimate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reflection:
    """Of a run with up to `most` more images a prompt, overall, by task and by category (named
    task/category); `abstained` of its `images` have no own verdict, and `refused` attempts no
    image."""

    most: int
    images: int
    abstained: int
    refused: int
    overall: Trial
    tasks: list[Trial]
    categories: list[Trial]


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to an image of a prompt: the first that a model draws, or, where it draws `again`,
    the one that it keeps.

    right: the share that is right; change: less that of BEFORE's first image, by prompts; None of
    that image itself. images: those that are drawn for one.
    """

    side: Literal["before", "after"]
    again: bool
    right: Estimate
    change: Estimate | None
    images: Estimate


def reflection(frame: pd.DataFrame) -> Reflection:
    """The figures of a frame with a row for each prompt that was not left off midway.

    Columns: task, category, prompt, cluster, most (attempts after the first that may be made),
    images (drawn), abstained and refused (attempts), accepted (1.0 or 0.0), first and kept (the
    outside judge's verdict, 1.0, 0.0 or NaN).
    """
    most = int(frame["most"].max())
    return Reflection(
        most=most,
        images=int(frame["images"].sum()),
        abstained=int(frame["abstained"].sum()),
        refused=int(frame["refused"].sum()),
        overall=_trial("overall", frame, most),
        tasks=[_trial(task, frame[frame["task"] == task], most) for task in frame["task"].unique()],
        categories=[
            _trial(f"{task}/{category}", rows, most)
            for (task, category), rows in frame.groupby(["task", "category"], sort=False)
        ],
    )


def ways(before: pd.DataFrame, after: pd.DataFrame) -> list[Way]:
    """What training brings and what drawing again brings, over the prompts of two frames (those of
    `reflection`) with all four verdicts; empty where there is none."""
    both = before.merge(after, on=["task", "prompt"], suffixes=("", "_after"))
    four = ["first", "kept", "first_after", "kept_after"]
    rows = both[both[four].notna().all(axis=1)]
    if not len(rows):
        return []
    start = _mean(rows["first"], rows)
    made: list[Way] = []
    sides: Sequence[tuple[Literal["before", "after"], str]] = (("before", ""), ("after", "_after"))
    for side, end in sides:
        for again in (False, True):
            right = _mean(rows[("kept" if again else "first") + end], rows)
            step = Contrast([right], [start])
            change = Estimate(step.value, *step.ends()) if made else None
            images = Estimate(1.0, 1.0, 1.0)
            if again:
                images = _images(rows["images" + end], int(rows["most" + end].max()), rows)
            made.append(
                Way(side=side, again=again, right=_estimate(right), change=change, images=images)
            )
    return made


def record(made: Reflection) -> dict[str, Any]:
    """For JSON: each figure as {value, low, high}."""

    levels = {"tasks": made.tasks, "categories": made.categories}
    several = {level: [plain(each) for each in trials] for level, trials in levels.items()}
    return asdict(made) | {"overall": plain(made.overall)} | several


def plain(made: Trial | Way) -> dict[str, Any]:
    """For JSON: each figure as {value, low, high}."""
    return {k: v._asdict() if isinstance(v, Estimate) else v for k, v in asdict(made).items()}


def _trial(name: str, rows: pd.DataFrame, most: int) -> Trial:
    judged = rows[rows["first"].notna() & rows["kept"].notna()]
    first = kept = gain = None
    if len(judged):
        before, after = _mean(judged["first"], judged), _mean(judged["kept"], judged)
        step = Contrast([after], [before])
        first, kept = _estimate(before), _estimate(after)
        gain = Estimate(step.value, *step.ends())
    return Trial(
        name=name,
        prompts=len(rows),
        images=_images(rows["images"], most, rows),
        accepted=_estimate(_mean(rows["accepted"], rows)),
        judged=len(judged),
        first=first,
        kept=kept,
        gain=gain,
    )


def _images(values: pd.Series[int], most: int, rows: pd.DataFrame) -> Estimate:
    """Images a prompt, from 1 to most + 1."""
    more = _mean((values - 1) / most, rows)
    return Estimate(*(1 + most * end for end in _estimate(more)))


def _mean(values: pd.Series[float], rows: pd.DataFrame) -> Figure:
    index = pd.MultiIndex.from_frame(rows[[*UNIT, "prompt"]])
    return share(pd.Series(values.to_numpy(float), index))


def _estimate(made: Figure) -> Estimate:
    return Estimate(made.value, *made.ends())
