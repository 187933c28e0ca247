"""A run's figures under each of several judges and under their majority, for other programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pandas as pd
from tabulate import tabulate

from gapbench.report import tables
from gapbench.runs.frame import ByJudge, undecided, undecided_in_words

if TYPE_CHECKING:
    from gapbench.metrics.corrected import Corrected
    from gapbench.runs.run import Run

MAJORITY = "majority"


def render(run: Run, judges: Sequence[str], form: str) -> str:
    """The rates under each of `judges` and their majority, how far the run's judges and people
    agree, and the rates as people's labels correct them.

    `json` is one object: `judges`, `corrected` (name or "majority" -> records), `agreement` (a
    record for each two) and `no_majority` (why there is none -> images). `markdown`
    holds the same as tables; `csv` and `latex` hold the rates alone, `csv` with a column `judge`.
    """
    panel = tuple(judges)
    of: dict[str, ByJudge] = {**{name: name for name in judges}, MAJORITY: panel}
    rates = {name: run.rates(each) for name, each in of.items()}
    if form == "csv":
        marks = {"footnote": run.footnote, "unfinished": run.unfinished}
        more = {key: mark for key, mark in marks.items() if mark}
        records = [
            {"judge": name, **asdict(rate), **more} for name, mine in rates.items() for rate in mine
        ]
        return str(pd.DataFrame(records).to_csv(index=False))
    if form == "latex":
        return "\n\n".join(
            f"% outside judge: {run.called(of[name])}\n"
            + tables.render(mine, form, run.footnote, run.unfinished)
            for name, mine in rates.items()
        )
    agreements, whole = run.agreements(panel), run.frame(panel)
    corrected = {name: run.corrected(each) for name, each in of.items()}
    if form == "json":
        told = {
            "judges": {
                name: json.loads(tables.render(mine, form, run.footnote, run.unfinished))
                for name, mine in rates.items()
            },
            "agreement": [{"first": a, "second": b, **asdict(two)} for a, b, two in agreements],
            "corrected": {
                name: [_record(rate) for rate in mine] for name, mine in corrected.items()
            },
            "no_majority": undecided(whole) if len(whole) else {},
        }
        return json.dumps(told, indent=1)
    parts = []
    for name, mine in rates.items():
        parts.append(f"Outside judge: {run.called(of[name])}")
        parts.append(tables.render(mine, form, run.footnote, run.unfinished))
        if corrected[name]:
            parts.append(f"Corrected by the labels of {run.people_judges()[0]}, in percent:")
            rows = [tables.corrected(rate) for rate in corrected[name]]
            heads = ["%", *tables.CORRECTED]
            parts.append(tabulate(rows, heads, tablefmt="pipe", disable_numparse=True))
    if silent := undecided_in_words(whole):
        parts.append(f"No majority on {silent}")
    parts.append("\n".join(f"- {a} and {b} {tables.agreement(two)}" for a, b, two in agreements))
    return "\n\n".join(filter(None, parts))


def _record(rate: Corrected) -> dict[str, Any]:
    estimates = {"sample": rate.sample, "rogan_gladen": rate.rogan_gladen, "ppi": rate.ppi}
    return asdict(rate) | {
        name: estimate._asdict() if estimate else None for name, estimate in estimates.items()
    }
