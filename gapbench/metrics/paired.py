"""What changed between two models on the same prompts and seeds (paper.md, section 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import ndtri

from gapbench.metrics.intervals import DENOMINATOR, VALID, Contrast, Floats, figure, ratio
from gapbench.metrics.metric import METRICS, UNDERSTANDING, Metric, Verdicts, shown_in
from gapbench.metrics.rates import Level, checked, levels, rates, sums
from gapbench.types import GapbenchError

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
    `before`, `after` and `difference` (after - before, in the metric's own unit) are None where a
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

    Categories weigh as in the rates. Without a disagreement `value` is 0.5 by convention, without
    an interval; it is None where no image has all three verdicts.
    """

    value: float | None
    low: float | None
    high: float | None
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
    where it has every verdict the metric needs on both sides. Raises GapbenchError as `rates`
    does, or where the images differ.
    """
    first, second = _paired(before, after)
    if not len(first):
        return []
    one, two = sums(first), sums(second)
    made = []
    for _, name, members in (each for each in levels(first) if each[0] == level):
        for metric in shown_in("compare") if metrics is None else metrics:
            old, new = one[metric.name], two[metric.name]
            used = [c for c, stratum in old.items() if c in members and stratum[:, VALID].any()]
            sides = [old[c] for c in used], [new[c] for c in used]
            made.append(_tested(level, name, metric.name, *sides, metric.better == "lower"))
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

    It is what `rates` makes of wins among disagreements: AFTER's verdict stands in for the outside
    judge's "right", so that weak generation counts (disagree and right) / disagree.
    """
    judge, old = (before[c].to_numpy(np.float64, na_value=np.nan) for c in ("outside", "own"))
    new = np.asarray(crossed, dtype=np.float64)
    known = ~np.isnan(judge + old + new)
    disagree, right = old != new, new == judge
    wins, losses = (int((known & disagree & r).sum()) for r in (right, ~right))
    ties = int((known & ~disagree).sum())
    value = low = high = None
    if wins + losses:
        terms = before.assign(
            own=np.where(known, (~disagree).astype(float), np.nan),
            outside=np.where(known, (~right).astype(float), np.nan),
        )
        [rate] = [r for r in rates(terms) if (r.level, r.metric) == ("overall", "weak_generation")]
        value, low, high = rate.value, rate.low, rate.high
    elif ties:
        value = 0.5
    return WinRate(value=value, low=low, high=high, wins=wins, losses=losses, ties=ties)


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
    section 2), with Fisher's interval over categories.

    None for fewer than four categories that have both figures, or where one does not vary.
    """
    from scipy.stats import pearsonr

    first, second = _paired(before, after)
    if not len(first):
        return None
    old, new = (
        {(r.name, r.metric): r.value for r in rates(f) if r.level == "category"}
        for f in (first, second)
    )
    points = []
    for name in dict.fromkeys(name for name, _ in old):
        gap, start = old[name, "non_unification"], old[name, "generation"]
        end = new[name, "generation"]
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
    keys = ["task", "category", "tier", "prompt", "sample"]
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
