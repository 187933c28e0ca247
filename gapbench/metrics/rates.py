"""The figures of METRICS over verdicts, at each category, task, tier and overall."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Final, Literal

import numpy as np
import pandas as pd

from gapbench.metrics.intervals import (
    ABSTAINED,
    DENOMINATOR,
    NUMERATOR,
    SQUARE,
    VALID,
    Floats,
    interval,
    ratio,
)
from gapbench.metrics.metric import METRICS, Bools, Metric, Verdicts
from gapbench.types import PERCENT, SHARE, TIERS, GapbenchError, Rates, Scale

KEYS = ("task", "category", "tier", "prompt")
UNIT = ["task", "category", "cluster"]
VERDICTS = ("own", "outside", "mismatched")
ASKED = tuple(f"{column}_asked" for column in VERDICTS)
COLUMNS = (*KEYS, "sample", *VERDICTS, "score", "mismatched_asked")

Level = Literal["category", "tier", "task", "overall"]
Category = tuple[str, str]
Strata = dict[str, dict[Category, Floats]]
"""Of each metric, each category's sums per prompt."""
Published = Literal["official_gm", "official", "paper"]
OVERALLS: Final[dict[Published, tuple[Literal["official", "paper"], tuple[str, ...]]]] = {
    "official_gm": ("official", ("geometric",)),
    "official": ("official", ("generation",)),
    "paper": ("paper", ("generation", "non_unification")),
}
"""Means that others publish -> whose they are, and the figures that they publish."""


def rates(frame: pd.DataFrame) -> list[Rates]:
    """Every metric at every level, with its 95 % interval.

    `frame` has one row per planned image (prompt, sample), with the columns
      task, category, tier, prompt: text; `prompt` is unique within its task, a category has one
        tier ("easy", "medium" or "hard");
      cluster: text, the same for prompts of a category that ask for the same; without this
        column each prompt is a cluster of its own;
      sample: whole number;
      own, outside: 1, 0, or NaN for an abstention, the model's own and one outside judge's verdict;
      score: the outside judge's score, else `outside`; NaN for an abstention;
      scale: the Scale of the score, one in a category; without the column they are shares;
      geometric: the geometric mean of what the outside judge gives the right answers to a list of
        questions; NaN, as without the column, where it was asked none;
      mismatched: 1, 0 or NaN, the model's own verdict on the image against another prompt of the
        category;
      own_asked, outside_asked, mismatched_asked: whether that verdict was asked for and answered
        (bool), else it is missing, which is no abstention; without one of the first two columns
        all were.

    A rate counts the images that have every verdict it needs; `abstained` counts those of the
    others that lack one because a judge abstained, and none because it is missing or, for figures
    that need an outside verdict, because the judge gives a score alone.
    Within a category the value is numerator / denominator; above it categories weigh equally:
    sum_c(num_c / valid_c) / sum_c(den_c / valid_c) over categories with valid images, which is the
    plain mean of the category values where every valid image is in the denominator. Scores of
    several scales have no mean: the value is None, and the unit lists theirs.
    Intervals have clusters as units (`gapbench.metrics.intervals.interval`). Figures depend
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
    by_metric, scales = sums(rows), scales_of(rows)
    made = []
    for level, name, members in levels(rows):
        for metric, strata in by_metric.items():
            mine = {key: part for key, part in strata.items() if key in members}
            used = [key for key, part in mine.items() if part[:, VALID].any()]
            units = _units(metric, [scales[key] for key in used or mine])
            parts = list(mine.values())
            made.append(_rate(level, name, metric, parts, ", ".join(units), len(units) == 1))
    return made


def overalls(
    frame: pd.DataFrame, groups: Mapping[str, Mapping[Published, list[str] | dict[str, float]]]
) -> list[Rates]:
    """The overall figures as a task's authors ("official", where "official_gm" is of geometric
    means over questions) and the paper ("paper") form them.

    `groups` has for each task and each of these the patterns of categories whose images are taken
    together, such as "physics-*"; the figure is the mean over the groups, whatever their scales,
    plain or with the weights that are given. One of which a group has no score is left out. `frame`
    is that of `rates`.
    """
    if len(frame) == 0:
        return []
    rows = checked(frame)
    by_metric, scales = sums(rows), scales_of(rows)
    made = []
    for task, kinds in groups.items():
        for kind, (level, metrics) in OVERALLS.items():
            for metric in metrics if kind in kinds else ():
                strata = {
                    key: part for key, part in by_metric[metric].items()
                    if key[0] == task and part[:, VALID].any()
                }  # fmt: skip
                given = kinds[kind]
                weights = [*given.values()] if isinstance(given, dict) else [1.0] * len(given)
                parts = [[k for k in strata if fnmatchcase(k[1], each)] for each in given]
                if not all(parts):
                    continue
                units = _units(metric, [scales[key] for keys in parts for key in keys])
                joined = [np.concatenate([strata[key] for key in keys]) for keys in parts]
                told = ", ".join(units)
                made.append(_rate(level, task, metric, joined, told, True, weights))
    return made


def scales_of(rows: pd.DataFrame) -> dict[Category, Scale]:
    """The scale of each category's scores, of checked rows."""
    keys = ["task", "category", "scale"]
    return {(t, c): scale for t, c, scale in rows[keys].drop_duplicates().to_numpy()}


def unit_of(metric: str, scales: Sequence[Scale]) -> str | None:
    """The unit of a figure over categories of these scales; None where they have no mean."""
    units = _units(metric, scales) or [PERCENT]
    return units[0] if len(units) == 1 else None


def _units(metric: str, scales: Sequence[Scale]) -> list[str]:
    """The units that a figure over categories of these scales is in, one for each scale."""
    if not METRICS[metric].in_scores:
        return [METRICS[metric].unit]
    return [scale.unit for scale in dict.fromkeys(scales)]


def checked(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame's own rows and order, keys as categoricals. Raises as `rates` does."""
    for column in COLUMNS:
        if column not in frame.columns:
            raise GapbenchError(f"metrics: the frame has no column {column!r}")
    rows = clustered(frame)[[*COLUMNS, "cluster"]].reset_index(drop=True)
    rows["scale"] = frame["scale"].to_numpy() if "scale" in frame.columns else [SHARE] * len(rows)
    rows["geometric"] = frame["geometric"].to_numpy() if "geometric" in frame.columns else np.nan
    for column in ASKED:
        rows[column] = frame[column].to_numpy() if column in frame.columns else True
    for column in (*KEYS, "cluster", "sample"):
        _refuse(rows, rows[column].isna(), f"{column} is empty")
    if not pd.api.types.is_integer_dtype(rows["sample"]):
        raise GapbenchError("metrics: column 'sample' must hold whole numbers")
    _refuse(rows, ~rows["tier"].isin(TIERS), "tier is {tier!r}, not easy, medium or hard")
    for column in VERDICTS:
        bad = rows[column].notna() & ~rows[column].isin([0, 1])
        _refuse(rows, bad, f"{column} is {{{column}!r}}, not 1, 0 or NaN")
        asked = rows[f"{column}_asked"]
        _refuse(rows, ~asked.isin([True, False]), f"{column}_asked is neither true nor false")
        _refuse(rows, rows[column].notna() & (asked == 0), f"{column} is given but not asked")
    score = pd.to_numeric(rows["score"], errors="coerce")
    _refuse(rows, rows["score"].notna() & ~np.isfinite(score), "score is {score!r}, not a number")
    # Text compares slowly; as categoricals a million rows sort and compare as integers.
    texts = (*KEYS, "cluster")
    rows = rows.astype(dict.fromkeys(texts, str)).astype(dict.fromkeys(texts, "category"))
    _refuse(rows, rows.duplicated(["task", "prompt", "sample"]), "the image is given twice")
    _single(rows, ["task", "prompt"], "category", "the prompt is in two categories")
    _single(rows, ["task", "category"], "tier", "the prompt's category is in two tiers")
    _single(rows, ["task", "category"], "scale", "the prompt's category has scores of two scales")
    _single(rows, ["task", "prompt"], "cluster", "the prompt is in two clusters")
    return rows


def clustered(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with a column `cluster`; the prompt, where it has none."""
    return frame if "cluster" in frame.columns else frame.assign(cluster=frame["prompt"])


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


def sums(rows: pd.DataFrame) -> Strata:
    """Of checked rows, for each of METRICS each category's sums per cluster, (clusters, 6) as
    `intervals` names them; categories and clusters sorted, so that no sum depends on the rows'
    order."""
    rows = rows.sort_values([*UNIT, "prompt", "sample"], ignore_index=True)
    starts = np.flatnonzero(~rows.duplicated(UNIT))
    clusters = rows.loc[starts, ["task", "category"]].astype(str)
    first = np.flatnonzero(~clusters.duplicated())
    names = list(clusters.iloc[first].itertuples(index=False, name=None))
    verdicts = Verdicts(
        *(rows[column].to_numpy(np.float64, na_value=np.nan) for column in Verdicts._fields)
    )
    own, outside, mismatched = (rows[column].to_numpy(dtype=np.bool_) for column in ASKED)
    asked = {"own": own, "outside": outside, "score": outside, "mismatched": mismatched}
    # A judge that was asked a list of one prompt of a category was asked one of each.
    lists = rows.groupby(["task", "category"], observed=True)["geometric"].transform("count")
    asked["geometric"] = outside & (lists > 0).to_numpy()
    shares = np.array([scale == SHARE for scale in rows["scale"]])
    made = {}
    for name, metric in METRICS.items():
        by_cluster = np.add.reduceat(_terms(metric, verdicts, asked, shares), starts, axis=1).T
        made[name] = dict(zip(names, np.split(by_cluster, first[1:]), strict=True))
    return made


def _terms(metric: Metric, verdicts: Verdicts, asked: Mapping[str, Bools], shares: Bools) -> Floats:
    """The images' terms of a figure, (6, images). An image of which a verdict is missing, or of
    which the judge gave a score and no verdict, is no abstention."""
    valid = ~np.isnan([getattr(verdicts, column) for column in metric.reads]).any(axis=0)
    planned = np.all([asked[column] for column in metric.reads], axis=0)
    if "outside" in metric.reads:
        planned = planned & ~(np.isnan(verdicts.outside) & ~np.isnan(verdicts.score))
    numerator = np.where(valid, metric.numerator(verdicts), 0.0)
    unbounded = (numerator < 0) | (numerator > 1) | (valid & ~shares & metric.in_scores)
    return np.stack(
        [numerator, metric.denominator(verdicts) & valid, valid, numerator**2, unbounded,
         planned & ~valid],
        dtype=np.float64,
    )  # fmt: skip


def _weight(share: float) -> Floats:
    """What the columns of a stratum are multiplied by, so that it weighs so much."""
    columns = np.ones(ABSTAINED + 1)
    columns[[NUMERATOR, DENOMINATOR]], columns[SQUARE] = share, share**2
    return columns


def _rate(
    level: Level | Literal["official", "paper"],
    name: str,
    metric: str,
    strata: Sequence[Floats],
    unit: str,
    has_mean: bool,
    weights: Sequence[float] | None = None,
) -> Rates:
    total = np.sum([stratum.sum(axis=0) for stratum in strata], axis=0)
    if weights is not None:
        # Terms and denominators alike, so that each category's own share stays.
        shares = np.array(weights) / np.mean(weights)
        strata = [part * _weight(share) for part, share in zip(strata, shares, strict=True)]
    value = low = high = deff = None
    prompts = 0
    if total[DENOMINATOR] > 0 and has_mean:
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
        unit=unit,
    )
