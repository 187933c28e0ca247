"""What changed between two models on the same prompts and seeds (paper.md, section 2)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import ndtri

from gapbench.metrics.intervals import DENOMINATOR, VALID, Contrast, Floats, figure, ratio
from gapbench.metrics.metric import METRICS, UNDERSTANDING, Metric, Verdicts, shown_in
from gapbench.metrics.rates import Category, Level, checked, levels, rates, scales_of, sums
from gapbench.types import PERCENT, GapbenchError, Scale

ALPHA: Final = 0.05
POWER: Final = 0.8
Z: Final = 1.96
FEWEST_CATEGORIES: Final = 4

Strata = Sequence[Floats]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One figure before and after, over the same images of the same prompts.

    `metric` is the name of a figure that is compared, of UNDERSTANDING, or of a score of lm-eval's,
    whose images are its questions.
    `before`, `after` and `difference` (after - before, in `unit`) are None where a
    denominator carries nothing; `low` and `high` bound the 95 % interval, which leaves out 0 where
    `p` is below 0.05; `p_holm` is p adjusted over its family; `detectable` is the smallest
    difference that this many prompts show with a probability of 80 % at the first level of Holm's
    procedure; `images` are the pairs with every verdict it needs.
    """

    level: Level
    name: str
    metric: str
    before: float | None
    after: float | None
    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    p_holm: float | None
    detectable: float | None
    images: int
    prompts: int
    lower_is_better: bool = False
    unit: str = PERCENT

    @property
    def verdict(self) -> int:
        """1 better, -1 worse, 0 where the adjusted p is not below 0.05."""
        if self.p_holm is None or self.difference is None or self.p_holm >= ALPHA:
            return 0
        rise = 1 if self.difference > 0 else -1
        return -rise if self.lower_is_better else rise


@dataclass(frozen=True, slots=True, kw_only=True)
class WinRate:
    """Understanding win rate (paper, section 2): of the images of BEFORE on whose verdict the two
    models disagree, the share on which AFTER agrees with the outside judge.

    `value` is the mean over categories, 0.5 by convention in those without a disagreement, which
    add nothing to the interval; there is none where no category has one. It is None where no image
    has all three verdicts. `pooled` takes the disagreements of all categories together instead,
    each weighed by its category as in the rates; None without one.
    """

    value: float | None
    low: float | None
    high: float | None
    pooled: float | None
    pooled_low: float | None
    pooled_high: float | None
    wins: int
    losses: int
    ties: int


class Correlation(NamedTuple):
    """Pearson's rho over `categories`, with its 95 % interval."""

    rho: float
    low: float
    high: float
    categories: int


def changes(
    before: pd.DataFrame,
    after: pd.DataFrame,
    level: Level = "overall",
    metrics: Sequence[Metric] | None = None,
) -> list[Change]:
    """The figures that are compared, or `metrics`, at a level; `p_holm` is left empty (`adjusted`).

    Both frames are those of `rates`, with the same images (task, prompt, sample). A pair counts
    where it has every verdict the metric needs on both sides. A mean of scores has a change for
    each scale that its categories have. Raises GapbenchError as `rates`
    does, or where the images differ.
    """
    first, second = _paired(before, after)
    if not len(first):
        return []
    one, two, scales = sums(first), sums(second), scales_of(first)
    made = []
    for _, name, members in (each for each in levels(first) if each[0] == level):
        for metric in shown_in("compare") if metrics is None else metrics:
            old, new = one[metric.name], two[metric.name]
            used = [c for c, stratum in old.items() if c in members and stratum[:, VALID].any()]
            alike: dict[Scale | None, list[Category]] = {} if used else {None: []}
            for c in used:
                alike.setdefault(scales[c] if metric.in_scores else None, []).append(c)
            for scale, part in alike.items():
                sides = [old[c] for c in part], [new[c] for c in part]
                change = _tested(level, name, metric.name, *sides, metric.better == "lower")
                made.append(replace(change, unit=scale.unit if scale else metric.unit))
    return made


def understanding(before: pd.DataFrame, crossed: npt.ArrayLike) -> list[Change]:
    """The change of UNDERSTANDING, overall: that of the own verdict's accuracy on equal images.

    `crossed` (rows,) holds AFTER's verdicts on the images of `before`, row by row: 1, 0 or NaN.
    """
    after = before.assign(own=np.asarray(crossed, dtype=np.float64))
    made = changes(before, after, "overall", [METRICS["self_accuracy"]])
    return [replace(change, metric=UNDERSTANDING.name) for change in made]


def scored(
    metric: str,
    before: Sequence[npt.ArrayLike],
    after: Sequence[npt.ArrayLike],
    lower_is_better: bool = False,
) -> Change:
    """The change of a mean score over questions that both sides answered, each a prompt of its own.

    `before` and `after` hold an array (questions,) of scores in [0, 1] for each part of the mean,
    row by row the same questions; parts weigh equally. `p_holm` is left empty.
    """
    old, new = ([_questions(scores) for scores in side] for side in (before, after))
    return _tested("overall", metric, metric, old, new, lower_is_better)


def _questions(scores: npt.ArrayLike) -> Floats:
    """A stratum with a question in each row (`gapbench.metrics.intervals`)."""
    value = np.asarray(scores, dtype=np.float64)
    one = np.ones_like(value)
    return np.stack([value, one, one, value**2, 0 * one, 0 * one], axis=1)


def win_rate(before: pd.DataFrame, crossed: npt.ArrayLike) -> WinRate:
    """The understanding win rate of AFTER, whose verdicts on the images of `before` are `crossed`.

    It is what `rates` makes of "AFTER is right" as a verdict on the images on which they disagree,
    pooled of weak generation, whose denominator a "no" of the own verdict is.
    """
    judge, old = (before[c].to_numpy(np.float64, na_value=np.nan) for c in ("outside", "own"))
    new = np.asarray(crossed, dtype=np.float64)
    known = ~np.isnan(judge + old + new)
    disagree, right = old != new, new == judge
    wins, losses = (int((known & disagree & r).sum()) for r in (right, ~right))
    ties = int((known & ~disagree).sum())
    value = 0.5 if ties else None
    low = high = pooled = pooled_low = pooled_high = None
    if wins + losses:
        terms = before.assign(
            own=np.where(known, (~disagree).astype(float), np.nan),
            outside=np.where(known, (~right).astype(float), np.nan),
        )
        keys = ["task", "category"]
        categories = len(terms.loc[known, keys].drop_duplicates())
        differing = len(terms.loc[known & disagree, keys].drop_duplicates())
        whole, mean = (
            next(r for r in rates(rows) if (r.level, r.metric) == ("overall", "weak_generation"))
            for rows in (terms, terms[known & disagree])
        )
        pooled, pooled_low, pooled_high = whole.value, whole.low, whole.high
        value, low, high = (
            None if v is None else (v * differing + 0.5 * (categories - differing)) / categories
            for v in (mean.value, mean.low, mean.high)
        )
    return WinRate(
        value=value, low=low, high=high,
        pooled=pooled, pooled_low=pooled_low, pooled_high=pooled_high,
        wins=wins, losses=losses, ties=ties,
    )  # fmt: skip


def groups(before: pd.DataFrame, crossed: npt.ArrayLike) -> dict[str, int]:
    """Images of BEFORE by (outside judge, own verdict before, AFTER's verdict), "000" to "111".

    "010" is the false-positive correction group (paper, section 2): BEFORE accepted what the judge
    rejects and AFTER rejects it too. Images without all three verdicts are left out.
    """
    judge, old = (before[c].to_numpy(np.float64, na_value=np.nan) for c in ("outside", "own"))
    codes = 4 * judge + 2 * old + np.asarray(crossed, dtype=np.float64)
    counts = np.bincount(codes[~np.isnan(codes)].astype(int), minlength=8)
    return {f"{code:03b}": int(count) for code, count in enumerate(counts)}


def gap_gain(before: pd.DataFrame, after: pd.DataFrame) -> Correlation | None:
    """Pearson's rho of a category's non-unification before and its gain in generation (paper,
    section 2), with Fisher's interval over categories: those of the commonest scale of scores.

    None for fewer than four categories that have both figures, or where one does not vary.
    """
    from scipy.stats import pearsonr

    first, second = _paired(before, after)
    if not len(first):
        return None
    old, new = (
        {(r.name, r.metric): r for r in rates(f) if r.level == "category"} for f in (first, second)
    )
    units = {name: rate.unit for (name, metric), rate in old.items() if metric == "generation"}
    unit, _ = Counter(units.values()).most_common(1)[0]
    points = []
    for name in (name for name in units if units[name] == unit):
        gap, start = old[name, "non_unification"].value, old[name, "generation"].value
        end = new[name, "generation"].value
        if gap is not None and start is not None and end is not None:
            points.append((gap, end - start))
    if len(points) < FEWEST_CATEGORIES or min(np.ptp(points, axis=0)) < 1e-12:
        return None
    pearson = pearsonr(*np.array(points).T)
    low, high = pearson.confidence_interval(0.95)
    return Correlation(float(pearson.statistic), float(low), float(high), len(points))


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """p adjusted by Holm's step-down procedure (Holm 1979) over those that are there."""
    order = sorted((p, index) for index, p in enumerate(ps) if p is not None)
    made: list[float | None] = [None] * len(ps)
    last = 0.0
    for place, (p, index) in enumerate(order):
        made[index] = last = min(1.0, max(last, (len(order) - place) * p))
    return made


def adjusted(family: Sequence[Change]) -> list[Change]:
    """The family with Holm's p, and `detectable` at the first level of his procedure; a figure
    without a p is no member."""
    members = sum(change.p is not None for change in family)
    made = []
    for change, p in zip(family, holm([change.p for change in family]), strict=True):
        width = None
        if p is not None and change.low is not None and change.high is not None:
            width = detectable((change.high - change.low) / (2 * Z), members)
        made.append(replace(change, p_holm=p, detectable=width))
    return made


def detectable(error: float, tests: int) -> float:
    """The difference that a two-sided test at 0.05 / `tests` finds with a probability of 80 %,
    where the difference's standard error is `error`: (z_(1 - 0.025 / tests) + z_0.8) * error."""
    return float(ndtri(1 - ALPHA / 2 / tests) + ndtri(POWER)) * error


def _tested(
    level: Level,
    name: str,
    metric: str,
    before: Strata,
    after: Strata,
    lower_is_better: bool,
) -> Change:
    values = []
    for side in (before, after):
        carries = any(stratum[:, DENOMINATOR].any() for stratum in side)
        values.append(float(ratio(np.array([s.sum(axis=0) for s in side]))) if carries else None)
    first, second = values
    change = low = high = p = None
    if first is not None and second is not None:
        change = second - first
        contrast = Contrast([figure(after, second)], [figure(before, first)])
        (low, high), p = contrast.ends(), contrast.p()
    return Change(
        level=level, name=name, metric=metric, before=first, after=second, difference=change,
        low=low, high=high, p=p, p_holm=None, detectable=None,
        images=int(sum(stratum[:, VALID].sum() for stratum in before)),
        prompts=int(sum(np.count_nonzero(stratum[:, VALID]) for stratum in before)),
        lower_is_better=lower_is_better,
    )  # fmt: skip


def _paired(before: pd.DataFrame, after: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both frames checked, in one order, each verdict kept only where both sides have it."""
    if len(before) == len(after) == 0:
        return before, after
    keys = ["task", "category", "tier", "prompt", "cluster", "sample"]
    first, second = (
        checked(frame).sort_values(["task", "prompt", "sample"]).reset_index(drop=True)
        for frame in (before, after)
    )
    same = len(first) == len(second) and all(
        (first[k].astype(str) == second[k].astype(str)).all() for k in keys
    )
    if not same:
        raise GapbenchError("compare: the two frames hold different images")
    for column in Verdicts._fields:
        gone = first[column].isna() | second[column].isna()
        first[column] = first[column].astype(float).mask(gone)
        second[column] = second[column].astype(float).mask(gone)
    return first, second
