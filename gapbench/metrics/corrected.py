"""Rates corrected for an outside judge's errors, from people's labels of a sample of the images.

Every image has the judge's verdict J in {0, 1}; a random sample has a label H as well, which is
taken for the truth. Three estimates of a share of H over all images:

  sample        the labels alone
  rogan_gladen  (q + sp - 1) / (se + sp - 1), where q is the judge's share over all images and
                se = P(J = 1 | H = 1), sp = P(J = 0 | H = 0) come from the sample (Rogan and Gladen
                1978; with the errors of all three, arXiv 2511.21140)
  ppi           mean_all(k J) + mean_sample(H - k J): prediction-powered inference (arXiv
                2301.09633), with the k in [0, 1] of least variance (PPI++, arXiv 2311.01453)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from gapbench.metrics.intervals import Figure, Floats, kish
from gapbench.metrics.metric import Bools, Metric, Verdicts, shown_in
from gapbench.metrics.rates import UNIT, clustered
from gapbench.types import TIERS, GapbenchError

COLUMNS: Final = ("task", "category", "tier", "prompt", "own", "outside", "human")
VERDICTS: Final = COLUMNS[-3:]
ROUNDING: Final = 1e-9
"""What a difference of shares may owe to the order its terms were summed in: as good as none."""
FEWEST: Final = 10
"""Labelled prompts below which no estimate is given: its interval would mean nothing."""

Places = npt.NDArray[np.intp]


class Estimate(NamedTuple):
    """A share with its 95 % interval, all in [0, 1]."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrected:
    """A rate by the judge alone, and as the labelled sample corrects it.

    It is the metric with H in the place of J, and of the score: `generation` is the share of images
    that show their prompt. `labels` are the images that carry the correction: labelled and, for
    weak generation, rejected by the model. None stands for what the labels do not carry:
    fewer than 10 labelled prompts, no label of a class, or a judge no better than chance.
    """

    level: str
    name: str
    metric: str
    labels: int
    judge: float | None
    sample: Estimate | None
    rogan_gladen: Estimate | None
    ppi: Estimate | None


class _Share(NamedTuple):
    """An estimated share: `moves` (images,) is what each image moves it by, whose sums over prompts
    have the share's variance as their sum of squares; `least` is the variance that one more
    mistaken label each way would bring. No sample may claim less: without it, one in which the
    judge happens to err nowhere would claim a perfect judge."""

    value: float
    moves: Floats
    least: float


_Method = Callable[[Floats, Floats, Floats, Places], _Share | None]
"""(weights, J, H with NaN where there is no label, prompt numbers), each (images,)."""


def corrected(frame: pd.DataFrame) -> list[Corrected]:
    """The corrected rates, overall and for each tier that has labels.

    `frame` has a row an image with the columns task, category, tier, prompt (text) and own,
    outside, human: 1, 0 or NaN, the last for images without a label. The labelled images must be a
    random sample. Images that lack the own or the judge's verdict are left out. Categories weigh
    equally, as in `gapbench.metrics.rates`. Intervals are those of the rates, with prompts as the
    unit. Raises GapbenchError for a missing column or another value.
    """
    for column in COLUMNS:
        if column not in frame.columns:
            raise GapbenchError(f"corrected: the frame has no column {column!r}")
    for column in VERDICTS:
        bad = frame[column].notna() & ~frame[column].isin([0, 1])
        if bad.any():
            wrong = frame.loc[bad, column].iloc[0]
            raise GapbenchError(f"corrected: {column} is {wrong!r}, not 1, 0 or NaN")
    rows = clustered(frame).loc[frame["outside"].notna(), [*COLUMNS, "cluster"]]
    for name, keys in (("unit", UNIT), ("stratum", UNIT[:2])):
        rows[name] = rows.groupby(keys, sort=False).ngroup()
    levels = [("overall", "overall", rows)]
    levels += [("tier", tier, rows[rows["tier"] == tier]) for tier in TIERS]
    made = []
    for level, name, part in levels:
        for metric in shown_in("labels"):
            used = part[part["own"].notna()] if metric.needs_own else part
            if used["human"].notna().any():
                made.append(_corrected(level, name, metric, used))
    return made


def _corrected(level: str, name: str, metric: Metric, rows: pd.DataFrame) -> Corrected:
    own, judge, human = (rows[c].to_numpy(np.float64, na_value=np.nan) for c in VERDICTS)
    # A level of one category has plain counts; above it categories weigh equally.
    strata = rows["stratum"].to_numpy()
    weights = 1 / np.bincount(strata)[strata]
    prompts = np.unique(rows["unit"], return_inverse=True)[1]

    carried = ~np.isnan(human) & np.any([images for images, *_ in _classes(metric, own)], axis=0)
    clusters = len(np.unique(prompts[carried]))

    def by(method: _Method) -> Estimate | None:
        share = _share(metric, method, weights, own, judge, human, prompts)
        return None if share is None else _interval(share, prompts, weights * carried)

    reference = _share(metric, _all, weights, own, judge, human, prompts)
    enough = clusters >= FEWEST
    return Corrected(
        level=level,
        name=name,
        metric=metric.name,
        labels=int(carried.sum()),
        judge=None if reference is None else reference.value,
        sample=by(_sample) if enough else None,
        rogan_gladen=by(_rogan_gladen) if enough else None,
        ppi=by(_ppi) if enough else None,
    )


def _share(
    metric: Metric,
    method: _Method,
    weights: Floats,
    own: Floats,
    judge: Floats,
    human: Floats,
    prompts: Places,
) -> _Share | None:
    """The metric with H in the place of J, by one method: from each class's share of the images,
    and the share of the class that shows its prompt."""
    classes = []
    above = below = least = 0.0
    for images, numerator, denominator in _classes(metric, own):
        if not images.any():
            if numerator.any():
                return None
            continue
        part = method(weights[images], judge[images], human[images], prompts[images])
        if part is None:
            return None
        size = float(weights @ images / weights.sum())
        outcomes = np.array([1 - part.value, part.value])
        above += size * float(outcomes @ numerator)
        below += size * float(outcomes @ denominator)
        classes.append((images, numerator, denominator, part, size, outcomes))
    if below <= ROUNDING:
        return None
    value = above / below
    moves = np.zeros(len(weights))
    for images, numerator, denominator, part, size, outcomes in classes:
        residual = (numerator - value * denominator) / below
        slope = size * float(residual[1] - residual[0])
        moves[images] += slope * part.moves
        moves += float(outcomes @ residual) * weights * (images - size) / weights.sum()
        least += slope**2 * part.least
    return _Share(value, moves, least)


def _classes(metric: Metric, own: Floats) -> Iterator[tuple[Bools, Floats, Floats]]:
    """For each own verdict (or for all images, if the metric does not read it): the images, and
    what one with H = 0 and one with H = 1 add to the numerator and to the denominator, (2,) each.
    Images that add nothing are left out."""
    judge = np.array([0.0, 1.0])
    for said in (0.0, 1.0) if "own" in metric.reads else (np.nan,):
        images = own == said if "own" in metric.reads else np.ones(len(own), dtype=np.bool_)
        none = np.full(2, np.nan)
        verdicts = Verdicts(np.full(2, said), judge, judge, none, none)
        numerator = metric.numerator(verdicts).astype(np.float64)
        denominator = metric.denominator(verdicts).astype(np.float64)
        if numerator.any() or denominator.any():
            yield images, numerator, denominator


def _all(weights: Floats, judge: Floats, _human: Floats, _prompts: Places) -> _Share | None:
    return _Share(float(weights @ judge / weights.sum()), np.zeros(len(judge)), 0.0)


def _sample(weights: Floats, _judge: Floats, human: Floats, _prompts: Places) -> _Share | None:
    known = ~np.isnan(human)
    if not known.any():
        return None
    value, moves = _mean(weights * known, np.nan_to_num(human))
    return _Share(value, moves, (value**2 + (1 - value) ** 2) / kish(weights * known) ** 2)


def _rogan_gladen(weights: Floats, judge: Floats, human: Floats, _prompts: Places) -> _Share | None:
    yes, no = human == 1, human == 0
    if not yes.any() or not no.any():
        return None
    q, of_q = _mean(weights, judge)
    se, of_se = _mean(weights * yes, judge)
    sp, of_sp = _mean(weights * no, 1 - judge)
    youden = se + sp - 1
    if youden <= ROUNDING:
        return None
    value = min(1.0, max(0.0, (q + sp - 1) / youden))
    moves = (of_q + (1 - value) * of_sp - value * of_se) / youden
    of_yes, of_no = value / kish(weights * yes), (1 - value) / kish(weights * no)
    least = (of_yes**2 + of_no**2) / youden**2
    return _Share(value, moves, least)


def _ppi(weights: Floats, judge: Floats, human: Floats, prompts: Places) -> _Share | None:
    known = ~np.isnan(human)
    if not known.any():
        return None
    labelled, of_labelled = _mean(weights * known, np.nan_to_num(human))
    here, of_here = _mean(weights * known, judge)
    everywhere, of_everywhere = _mean(weights, judge)
    shift = of_everywhere - of_here
    a, b = (np.bincount(prompts, weights=each) for each in (of_labelled, shift))
    spread = float(b @ b)
    k = min(1.0, max(0.0, -float(a @ b) / spread)) if spread > 0 else 0.0
    value = min(1.0, max(0.0, labelled + k * (everywhere - here)))
    return _Share(value, of_labelled + k * shift, 2 / kish(weights * known) ** 2)


def _mean(weights: Floats, values: Floats) -> tuple[float, Floats]:
    """The weighted mean, and what each image moves it by."""
    total = weights.sum()
    mean = float(weights @ values / total)
    return mean, weights * (values - mean) / total


def _interval(share: _Share, prompts: Places, carried: Floats) -> Estimate:
    """The interval of `gapbench.metrics.intervals.Figure` on the labels' own degrees of freedom:
    as many prompts as labels of their weights `carried` (images,) are worth, less one."""
    freedom = max(1.0, kish(np.bincount(prompts, weights=carried).astype(np.float64)) - 1)
    sums = np.bincount(prompts, weights=share.moves)
    variance = max(float(sums @ sums) * (1 + 1 / freedom), share.least)
    if not variance:
        return Estimate(share.value, share.value, share.value)
    value, error = min(1.0, max(0.0, share.value)), min(0.5, variance**0.5)
    # A share of 0 or 1 has an error too: it is worth what one a standard error off would be.
    spread = max(value * (1 - value), error * (1 - error))
    low, high = Figure(value, error, freedom, spread / variance).ends()
    return Estimate(value, low, high)
