"""What a run found, in one sentence."""

from __future__ import annotations

from collections.abc import Sequence

from gapbench.report.tables import cell
from gapbench.runs.run import Run
from gapbench.types import PERCENT, Rates


def finding(run: Run, rates: Sequence[Rates], judge: str | None) -> str:
    """How often the model rejects its own images and what that comes from; where it gives no
    verdicts, how well it draws. `rates` are the run's against `judge`."""
    mine = {r.metric: r for r in rates if r.level == "overall" and r.value is not None}
    by = f"the outside judge ({judge or ', '.join(run.plan.judges)})"
    if gap := mine.get("non_unification"):
        return f"{run.name} rejects {_share(gap)} of its own images{_cause(mine, by)}."
    if drawn := mine.get("generation"):
        if drawn.unit != PERCENT:
            return f"{run.name} has a mean {drawn.unit} of {cell(drawn)[0]} by {by}."
        return f"By {by}, {_share(drawn)} of what {run.name} draws is right."
    return f"{run.name} has no verdicts yet."


def _cause(mine: dict[str, Rates], by: str) -> str:
    weak = mine.get("weak_generation")
    if weak is None or weak.low is None or weak.high is None:
        return ""
    if weak.low > 0.5:
        cause = "so the gap comes from drawing rather than from recognising"
    elif weak.high < 0.5:
        cause = "so the gap comes from recognising rather than from drawing"
    else:
        cause = "which leaves open whether drawing or recognising is the cause"
    return f"; {by} rejects {_share(weak)} of these too, {cause}"


def _share(rate: Rates) -> str:
    value, _, bounds = cell(rate)[0].partition(" ")
    return f"{value} % {bounds}"
