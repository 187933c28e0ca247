"""Are the verdicts worth training on? Looked at before anything is trained.

The paper's first version warns that with poor verdicts both branches get worse together, and that
non-unification cannot tell that from success (paper, section 3, last paragraph).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import pandas as pd
from numpy.typing import NDArray

from gapbench.fix.settings import FixSettings
from gapbench.metrics.verification import prediction
from gapbench.runs.listing import run_of
from gapbench.runs.needs import needs
from gapbench.runs.run import open_run
from gapbench.types import GapbenchError

MOST: Final = 0.98
LEAST: Final = 0.02
"""Acceptance of a model's own images beyond which a judge sorts out nearly nothing, or nearly all.
"""


@dataclass(frozen=True, slots=True)
class Check:
    """What was found, as lines for a person, and why training should not go on, if it should not.

    `precision` is the share of accepted images that the outside judge accepts, `base` its share of
    all images; both are None without an outside judge.
    """

    acceptance: float | None
    mismatched: float | None
    precision: float | None
    base: float | None
    lines: list[str]
    stop: str | None


def check(frame: pd.DataFrame) -> Check:
    """Judge a model's verdicts by a run's frame. Counts are raw: over images, not categories."""
    own, crossed = (frame[name].dropna().to_numpy(float) for name in ("own", "mismatched"))
    both = frame.dropna(subset=["own", "outside"])
    right = (both["outside"] == 1).to_numpy()
    taken = right[both["own"] == 1]
    acceptance, mismatched, precision, base = (
        float(verdicts.mean()) if len(verdicts) else None
        for verdicts in (own, crossed, taken, right)
    )
    lines = [
        f"accepts {_share(own)} of its own images",
        f"accepts {_share(crossed)} of its images held against another prompt",
    ]
    judge = next(iter(frame["judge"].dropna()), None)
    if judge is None:
        lines.append("precision of its verdicts: not known, no outside judge is at hand")
    else:
        lines.append(
            f"precision of its verdicts by judge {judge}: {_share(taken)} of what it accepts, "
            f"against {_share(right)} of all images"
        )
    error = sum(float(v.var()) / len(v) for v in (own, crossed) if len(v)) ** 0.5
    stop = _stop(acceptance, mismatched, error, precision, base)
    return Check(acceptance, mismatched, precision, base, lines, stop)


def at_hand(settings: FixSettings) -> tuple[Sequence[str] | None, str | None]:
    """The outside judges for the check, None for the tasks' own, and a note where they are left
    out since what they need is not here."""
    if settings.judge == ["none"]:
        return [], None
    absent = [
        need
        for need in needs(settings.prompts, settings.judge)
        if need.wanted_by.startswith("judge ") and not need.ready()
    ]
    if not absent:
        return settings.judge, None
    if settings.judge:
        raise GapbenchError(
            f"{absent[0].wanted_by}: {absent[0].name} is not here; gapbench prepare"
        )
    return [], (
        f"The precision of the verdicts is not checked: {absent[0].wanted_by} needs "
        f"{absent[0].name}, which is not here (gapbench prepare, or name another --judge)"
    )


def _stop(
    acceptance: float | None,
    mismatched: float | None,
    error: float,
    precision: float | None,
    base: float | None,
) -> str | None:
    """`error` is the standard error of the difference of the first two."""
    if acceptance is None:
        return "it gave no verdict at all"
    if acceptance <= LEAST:
        return "it accepts nearly nothing, so that hardly anything is left to train on"
    if mismatched is not None and acceptance - mismatched <= 2 * error:
        return (
            "it accepts images held against other prompts as readily, within two standard errors: "
            "its verdicts say nothing"
        )
    if acceptance >= MOST and (mismatched is None or mismatched >= 0.5):
        return "it accepts nearly everything, so that its verdicts sort out nothing"
    if precision is not None and base is not None and precision <= base < MOST:
        return (
            "what it accepts is right no more often than what it draws, so that training would "
            "teach its mistakes"
        )
    return None


def _share(verdicts: NDArray[Any]) -> str:
    if not len(verdicts):
        return "n/a (0/0)"
    return f"{100 * verdicts.mean():.1f} % ({verdicts.sum():.0f}/{len(verdicts)})"


def predicted(fingerprint: str) -> str:
    """What the latest run in runs/ of the model with this fingerprint says that a fix can gain, or
    why it cannot be read; empty without a run."""
    path = run_of(fingerprint)
    if path is None:
        return ""
    try:
        told = prediction(open_run(path).verification())
    except GapbenchError as error:  # a fix does not need it
        return f"No prediction of what the fix can gain: {error}"
    return told and f"{path}: {told}"
