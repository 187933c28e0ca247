"""A row of the frame of verdicts that figures are computed from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from gapbench.judges.lists import geometric
from gapbench.runs.plan import Item
from gapbench.types import Answer, Scale

if TYPE_CHECKING:
    import pandas as pd

ByJudge = str | tuple[str, ...] | None
"""Whose verdicts a frame is of: an outside judge's, those of the majority of several, or those of
each task's first."""
TIE: Final = "as many judges accept as reject"
SILENT: Final = "no judge gave a verdict"


def majority(answers: Iterable[Answer | None]) -> Answer | None:
    """The verdict of more than half of the judges that gave one: an abstention at a tie or where
    all abstained, None where nobody answered."""
    there = [answer.verdict for answer in answers if answer is not None]
    if not there:
        return None
    yes, no = there.count(1), there.count(0)
    if yes == no:
        return Answer(verdict=None, reason=TIE if yes else SILENT)
    return Answer(verdict=int(yes > no))


def majority_of(judges: Sequence[str]) -> str:
    """The name of a majority, the same in whatever order its judges were named."""
    return f"majority of {', '.join(sorted(judges))}"


def undecided(frame: pd.DataFrame) -> dict[str, int]:
    """Why a majority came to no verdict -> on how many images."""
    return dict(Counter(frame.loc[frame["outside"].isna(), "outside_reason"].dropna()))


def undecided_in_words(frame: pd.DataFrame) -> str:
    """The same, as in "3 of 44 images: SILENT (1), TIE (2)"; empty where there is always one."""
    reasons = undecided(frame) if len(frame) else {}
    told = ", ".join(f"{why} ({count})" for why, count in sorted(reasons.items()))
    return f"{sum(reasons.values())} of {len(frame)} images: {told}" if told else ""


def row(
    item: Item,
    cluster: str,
    image: str | None,
    own: Answer | None,
    outside: Answer | None,
    mismatched: Answer | None,
    judge: str | None,
    scale: Scale,
    partner: Answer | None,
) -> dict[str, object]:
    """A planned image, of a cluster, in the columns of `Run.frame`: what the model itself and the
    outside judge named `judge`, whose scores are of `scale`, said of it, and of it held against the
    item's partner the model (`mismatched`) and that judge (`partner`); None where no verdict was
    made. A pair that the judge accepts is not mismatched and counts nowhere."""
    fits = partner is not None and partner.verdict == 1
    said = "verdict" if outside and outside.score is None else "score"
    return {
        "task": item.prompt.task,
        "category": item.prompt.category,
        "tier": item.prompt.tier,
        "prompt": item.prompt.id,
        "cluster": cluster,
        "text": item.prompt.text,
        "sample": item.sample,
        "seed": item.seed,
        "image": image,
        "own": _number(own, "verdict"),
        "own_asked": own is not None,
        "p_yes": _number(own, "p_yes"),
        "own_reason": own.reason if own else None,
        "outside": _number(outside, "verdict"),
        "outside_asked": outside is not None,
        "score": _number(outside, said),
        "scale": scale,
        "geometric": geometric(outside.text if outside else None),
        "outside_reason": outside.reason if outside else None,
        "judge": judge,
        "mismatched": _number(None if fits else mismatched, "verdict"),
        "mismatched_asked": mismatched is not None and not fits,
    }


def _number(answer: Answer | None, field: str) -> float:
    value = None if answer is None else getattr(answer, field)
    return float("nan") if value is None else float(value)
