"""A row of the frame of verdicts that figures are computed from."""

from __future__ import annotations

from gapbench.judges.lists import geometric
from gapbench.runs.plan import Item
from gapbench.tasks.content import cluster
from gapbench.types import Answer, Scale


def row(
    item: Item,
    image: str | None,
    own: Answer | None,
    outside: Answer | None,
    mismatched: Answer | None,
    judge: str | None,
    scale: Scale,
    partner: Answer | None,
) -> dict[str, object]:
    """A planned image in the columns of `Run.frame`: what the model itself and the outside judge
    named `judge`, whose scores are of `scale`, said of it, and of it held against the item's
    partner the model (`mismatched`) and that judge (`partner`); None where no verdict was made. A
    pair that the judge accepts is not mismatched and counts nowhere."""
    fits = partner is not None and partner.verdict == 1
    said = "verdict" if outside and outside.score is None else "score"
    return {
        "task": item.prompt.task,
        "category": item.prompt.category,
        "tier": item.prompt.tier,
        "prompt": item.prompt.id,
        "cluster": cluster(item.prompt),
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
