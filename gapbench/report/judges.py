"""Figures under each of several judges and under their majority: for other programs, and for the
report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pandas as pd
from tabulate import tabulate

from gapbench.comparison.judges import Conclusion, Judged, conclusion, in_order
from gapbench.metrics.metric import METRICS, shown_in
from gapbench.report import tables
from gapbench.report.export import Table
from gapbench.report.latex import Cell
from gapbench.runs.frame import ByJudge, undecided, undecided_in_words

if TYPE_CHECKING:
    from gapbench.metrics.corrected import Corrected
    from gapbench.runs.run import Run
    from gapbench.types import Rates

MAJORITY = "majority"


def render(run: Run, judges: Sequence[str], form: str) -> str:
    """The rates under each of `judges` and their majority, how far the run's judges and people
    agree, and the rates as people's labels correct them.

    `json` is one object: `judges`, `corrected` (name or "majority" -> records), `agreement` (a
    record for each two) and `no_majority` (why there is none -> images). `markdown`
    holds the same as tables; `csv` and `latex` hold the rates alone, `csv` with a column `judge`.
    """
    panel, of = tuple(judges), by_name(judges)
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


def by_name(judges: Sequence[str]) -> dict[str, ByJudge]:
    """What figures are of: each of the judges, and the majority of several; the tasks' own where
    none is named."""
    if not judges:
        return {"": None}
    majority: dict[str, ByJudge] = {MAJORITY: tuple(judges)} if len(judges) > 1 else {}
    return {**dict(zip(judges, judges, strict=True)), **majority}


def judge_tables(
    runs: Sequence[Run], names: Sequence[str], judges: Sequence[str], judged: Judged | None
) -> dict[str, Table]:
    """The report's tables of several judges: `judges`, the overall figures under each, and
    `conclusions`, what holds under each: what changed between two runs that are comparable
    (`judged`), the order of each run's tasks, and that of other runs of the same tasks."""
    metrics = shown_in("tables")
    rates = {
        called: {name: run.rates(judge) for name, run in zip(names, runs, strict=True)}
        for called, judge in by_name(judges).items()
    }
    rows: list[list[Cell]] = []
    for name in names:
        for called, of in rates.items():
            row = tables.by_place(of[name]).get(("overall", "overall"), {})
            cells = [tables.cell(row[m.name]) if m.name in row else "n/a" for m in metrics]
            rows.append([name, called, *cells])
    held = list(judged.conclusions) if judged else []
    for name in names:
        orders = {called: _order(_level(of[name], "task")) for called, of in rates.items()}
        if any(orders.values()):
            held.append(_conclusion(f"tasks of {name}" * (len(names) > 1) or "tasks", orders))
    if len({tuple(run.plan.tasks) for run in runs}) == 1 < len(runs) and not judged:
        overall = {
            called: {name: rate for name in names for rate in _level(of[name], "overall").values()}
            for called, of in rates.items()
        }
        held.append(_conclusion("runs", {name: _order(of) for name, of in overall.items()}))
    return {
        "judges": (["run", "judge", *(metric.title for metric in metrics)], rows),
        "conclusions": (
            ["conclusion", *judges, MAJORITY, "holds under"],
            [
                [
                    METRICS[each.about].heading if each.about in METRICS else each.about,
                    *(each.judges[name] for name in judges), each.majority, each.holds,
                ]
                for each in held
            ],
        ),
    }  # fmt: skip


def _level(rates: Sequence[Rates], level: str) -> dict[str, Rates]:
    """Generation by task, or overall."""
    return {r.name: r for r in rates if r.level == level and r.metric == "generation"}


def _order(rates: Mapping[str, Rates]) -> str:
    """Names by generation; empty for fewer than two, n/a where one is not measured or in another
    unit."""
    if len(rates) < 2:
        return ""
    values = {name: rate.value for name, rate in rates.items() if rate.value is not None}
    if len(values) < len(rates) or len({rate.unit for rate in rates.values()}) > 1:
        return "n/a"
    return in_order(values)


def _conclusion(what: str, orders: Mapping[str, str]) -> Conclusion:
    told = {name: order or "n/a" for name, order in orders.items()}
    return conclusion(f"{what}, by generation", told.pop(MAJORITY), told)


def _record(rate: Corrected) -> dict[str, Any]:
    estimates = {"sample": rate.sample, "rogan_gladen": rate.rogan_gladen, "ppi": rate.ppi}
    return asdict(rate) | {
        name: estimate._asdict() if estimate else None for name, estimate in estimates.items()
    }
