"""Which images of a plan are left to draw."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

from gapbench.models.base import Model
from gapbench.runs.plan import Item
from gapbench.types import Refusal


def missing_items(items: Iterable[Item], *there: Container[tuple[str, int]]) -> list[Item]:
    """The items whose (prompt text, seed) is nowhere there, each once."""
    missing: dict[tuple[str, int], Item] = {}
    for item in items:
        key = (item.prompt.text, item.seed)
        for some in (missing, *there):
            if key in some:
                break
        else:
            missing[key] = item
    return list(missing.values())


def refusals(model: Model, items: Sequence[Item]) -> dict[tuple[str, int], Refusal]:
    """(prompt text, seed) -> Refusal, of the items whose prompt the model says it cannot draw."""
    reasons = {text: model.refuses(text) for text in dict.fromkeys(i.prompt.text for i in items)}
    return {
        (i.prompt.text, i.seed): Refusal(prompt=i.prompt.text, seed=i.seed, reason=reason)
        for i in items
        if (reason := reasons[i.prompt.text])
    }
