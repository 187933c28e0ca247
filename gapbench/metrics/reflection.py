"""What trying again brings: right at the first attempt, right with the image that the model keeps,
and what that costs in images."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

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
    """Of a run with up to `most` more images a prompt, overall and by task; `abstained` of its
    `images` have no own verdict, and `refused` attempts no image."""

    most: int
    images: int
    abstained: int
    refused: int
    overall: Trial
    tasks: list[Trial]


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
    )


def record(made: Reflection) -> dict[str, Any]:
    """For JSON: each figure as {value, low, high}."""

    def plain(trial: Trial) -> dict[str, Any]:
        return {k: v._asdict() if isinstance(v, Estimate) else v for k, v in asdict(trial).items()}

    told = asdict(made)
    return told | {"overall": plain(made.overall), "tasks": [plain(each) for each in made.tasks]}


def _trial(name: str, rows: pd.DataFrame, most: int) -> Trial:
    more = _mean((rows["images"] - 1) / most, rows)
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
        images=Estimate(*(1 + most * end for end in _estimate(more))),
        accepted=_estimate(_mean(rows["accepted"], rows)),
        judged=len(judged),
        first=first,
        kept=kept,
        gain=gain,
    )


def _mean(values: pd.Series[float], rows: pd.DataFrame) -> Figure:
    index = pd.MultiIndex.from_frame(rows[[*UNIT, "prompt"]])
    return share(pd.Series(values.to_numpy(float), index))


def _estimate(made: Figure) -> Estimate:
    return Estimate(made.value, *made.ends())
