"""The figures of METRICS over verdicts, at each category, task, tier and overall."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd

from gapbench.metrics.intervals import (
    ABSTAINED,
    DENOMINATOR,
    NUMERATOR,
    VALID,
    Floats,
    interval,
    ratio,
)
from gapbench.metrics.metric import METRICS, Bools, Metric, Verdicts
from gapbench.types import TIERS, GapbenchError, Rates

KEYS = ("task", "category", "tier", "prompt")
VERDICTS = ("own", "outside", "mismatched")
COLUMNS = (*KEYS, "sample", *VERDICTS, "score", "mismatched_asked")

Level = Literal["category", "tier", "task", "overall"]
Category = tuple[str, str]


def rates(frame: pd.DataFrame) -> list[Rates]:
    """Every metric at every level, with its 95 % interval.

    `frame` has one row per planned image (prompt, sample), with the columns
      task, category, tier, prompt: text; `prompt` is unique within its task, a category has one
        tier ("easy", "medium" or "hard");
      sample: whole number;
      own, outside: 1, 0, or NaN for an abstention, the model's own and one outside judge's verdict;
      score: the outside judge's own scale, else `outside`; NaN for an abstention;
      mismatched: 1, 0 or NaN, the model's own verdict on the image against another prompt of the
        category; mismatched_asked: whether it was asked (bool).

    A rate counts the images that have every verdict it needs; `abstained` counts the others.
    Within a category the value is numerator / denominator; above it categories weigh equally:
    sum_c(num_c / valid_c) / sum_c(den_c / valid_c) over categories with valid images, which is the
    plain mean of the category values where every valid image is in the denominator.
    Intervals have prompts as clusters (`gapbench.metrics.intervals.interval`). Figures depend
    neither on the order of the rows nor, for a category, on what else is in the frame.

    Order: categories by tier (easy, medium, hard), then by task, tasks and categories as they first
    appear; then the tasks and the tiers as that list names them; then overall; within each the
    order of `METRICS`. Names are "task/category", the task, the tier and "overall". No rows give
    an empty list.

    Raises GapbenchError, naming the culprit, for a missing column, an empty key, an unknown tier,
    a value outside the lists above, a mismatched verdict that was not asked, a row given twice, a
    prompt in two categories and a category in two tiers.
    """
    if len(frame) == 0:
        return []
    rows = checked(frame)
    by_metric = sums(rows)
    return [
        _rate(level, name, metric, [strata[key] for key in strata if key in members])
        for level, name, members in levels(rows)
        for metric, strata in by_metric.items()
    ]


def checked(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame's own rows and order, keys as categoricals. Raises as `rates` does."""
    for column in COLUMNS:
        if column not in frame.columns:
            raise GapbenchError(f"metrics: the frame has no column {column!r}")
    rows = frame[list(COLUMNS)].reset_index(drop=True)
    for column in (*KEYS, "sample"):
        _refuse(rows, rows[column].isna(), f"{column} is empty")
    if not pd.api.types.is_integer_dtype(rows["sample"]):
        raise GapbenchError("metrics: column 'sample' must hold whole numbers")
    _refuse(rows, ~rows["tier"].isin(TIERS), "tier is {tier!r}, not easy, medium or hard")
    for column in VERDICTS:
        bad = rows[column].notna() & ~rows[column].isin([0, 1])
        _refuse(rows, bad, f"{column} is {{{column}!r}}, not 1, 0 or NaN")
    score = pd.to_numeric(rows["score"], errors="coerce")
    _refuse(rows, rows["score"].notna() & ~np.isfinite(score), "score is {score!r}, not a number")
    asked = rows["mismatched_asked"]
    _refuse(rows, ~asked.isin([True, False]), "mismatched_asked is neither true nor false")
    _refuse(rows, rows["mismatched"].notna() & (asked == 0), "mismatched is given but not asked")
    # Text compares slowly; as categoricals a million rows sort and compare as integers.
    rows = rows.astype(dict.fromkeys(KEYS, str)).astype(dict.fromkeys(KEYS, "category"))
    _refuse(rows, rows.duplicated(["task", "prompt", "sample"]), "the image is given twice")
    _single(rows, ["task", "prompt"], "category", "the prompt is in two categories")
    _single(rows, ["task", "category"], "tier", "the prompt's category is in two tiers")
    return rows


def _single(rows: pd.DataFrame, keys: list[str], column: str, why: str) -> None:
    pairs = rows.drop_duplicates([*keys, column])
    _refuse(pairs, pairs.duplicated(keys), why)


def _refuse(rows: pd.DataFrame, bad: pd.Series[bool], why: str) -> None:
    """Raise for the first bad row; `why` may name columns in braces."""
    if bad.any():
        row = rows.loc[bad].iloc[0].to_dict()
        where = "task {task!r}, prompt {prompt!r}, sample {sample!r}"
        raise GapbenchError(f"metrics: {why} ({where})".format_map(row))


def levels(rows: pd.DataFrame) -> list[tuple[Level, str, set[Category]]]:
    """(level, name, member categories) of checked rows, in the order of `rates`."""
    first = rows.drop_duplicates(["task", "category"])[["task", "category", "tier"]]
    seen = list(first.astype(str).itertuples(index=False, name=None))
    tasks = list(dict.fromkeys(task for task, _, _ in seen))
    seen.sort(key=lambda row: (TIERS.index(row[2]), tasks.index(row[0])))
    made: list[tuple[Level, str, set[Category]]] = []
    made += [("category", f"{task}/{category}", {(task, category)}) for task, category, _ in seen]
    for task in dict.fromkeys(task for task, _, _ in seen):
        made.append(("task", task, {(t, category) for t, category, _ in seen if t == task}))
    for tier in dict.fromkeys(tier for _, _, tier in seen):
        made.append(("tier", tier, {(task, category) for task, category, t in seen if t == tier}))
    made.append(("overall", "overall", {(task, category) for task, category, _ in seen}))
    return made


def sums(rows: pd.DataFrame) -> dict[str, dict[Category, Floats]]:
    """Of checked rows, for each of METRICS each category's sums per prompt, (prompts, 6) as
    `intervals` names them; categories and prompts sorted, so that no sum depends on the rows'
    order."""
    rows = rows.sort_values(["task", "category", "prompt", "sample"], ignore_index=True)
    starts = np.flatnonzero(~rows.duplicated(["task", "prompt"]))
    prompts = rows.loc[starts, ["task", "category"]].astype(str)
    first = np.flatnonzero(~prompts.duplicated())
    names = list(prompts.iloc[first].itertuples(index=False, name=None))
    verdicts = Verdicts(
        *(rows[column].to_numpy(np.float64, na_value=np.nan) for column in Verdicts._fields)
    )
    asked = rows["mismatched_asked"].to_numpy(dtype=np.bool_)
    made = {}
    for name, metric in METRICS.items():
        by_prompt = np.add.reduceat(_terms(metric, verdicts, asked), starts, axis=1).T
        made[name] = dict(zip(names, np.split(by_prompt, first[1:]), strict=True))
    return made


def _terms(metric: Metric, verdicts: Verdicts, asked: Bools) -> Floats:
    """The images' terms of a figure, (6, images). An image of which no mismatched pair was asked is
    no abstention."""
    valid = ~np.isnan([getattr(verdicts, column) for column in metric.reads]).any(axis=0)
    planned = asked if "mismatched" in metric.reads else np.ones_like(asked)
    numerator = np.where(valid, metric.numerator(verdicts), 0.0)
    unbounded = (numerator < 0) | (numerator > 1)
    return np.stack(
        [numerator, metric.denominator(verdicts) & valid, valid, numerator**2, unbounded,
         planned & ~valid],
        dtype=np.float64,
    )  # fmt: skip


def _rate(level: Level, name: str, metric: str, strata: Sequence[Floats]) -> Rates:
    total = np.sum([stratum.sum(axis=0) for stratum in strata], axis=0)
    value = low = high = deff = None
    prompts = 0
    if total[DENOMINATOR] > 0:
        used = [stratum for stratum in strata if stratum[:, VALID].any()]
        value = float(ratio(np.stack([stratum.sum(axis=0) for stratum in used])))
        low, high, deff = interval(used, value)
        prompts = sum(int(np.count_nonzero(stratum[:, DENOMINATOR])) for stratum in used)
    return Rates(
        level=level,
        name=name,
        metric=metric,
        value=value,
        low=low,
        high=high,
        numerator=float(total[NUMERATOR]),
        denominator=float(total[DENOMINATOR]),
        n_prompts=prompts,
        deff=deff,
        abstained=int(total[ABSTAINED]),
    )
