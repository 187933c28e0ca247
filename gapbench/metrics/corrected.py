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

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import stdtrit

from gapbench.metrics.intervals import Floats
from gapbench.types import TIERS, GapbenchError

METRICS: Final = ("generation", "weak_generation", "false_positive")
COLUMNS: Final = ("task", "category", "tier", "prompt", "own", "outside", "human")
VERDICTS: Final = COLUMNS[-3:]
ROUNDING: Final = 1e-9
"""What a difference of shares may owe to the order its terms were summed in: as good as none."""
FEWEST: Final = 10
"""Labelled prompts below which no estimate is given: its interval would mean nothing."""

Bools = npt.NDArray[np.bool_]
Places = npt.NDArray[np.intp]


class Estimate(NamedTuple):
    """A share with its 95 % interval, all in [0, 1]."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrected:
    """A rate by the judge alone, and as the labelled sample corrects it.

    `generation` is the share of images that show their prompt; the others are as in the paper,
    section 2, with H in the place of J. `labels` are the images that carry the correction: labelled
    and, for weak generation, rejected by the model. None stands for what the labels do not carry:
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
    equally, as in `gapbench.metrics.rates`. Intervals are Student's with prompts as the unit, cut
    at 0 and 1. Raises GapbenchError for a missing column or another value.
    """
    for column in COLUMNS:
        if column not in frame.columns:
            raise GapbenchError(f"corrected: the frame has no column {column!r}")
    for column in VERDICTS:
        bad = frame[column].notna() & ~frame[column].isin([0, 1])
        if bad.any():
            wrong = frame.loc[bad, column].iloc[0]
            raise GapbenchError(f"corrected: {column} is {wrong!r}, not 1, 0 or NaN")
    rows = frame.loc[frame["outside"].notna(), list(COLUMNS)]
    levels = [("overall", "overall", rows)]
    levels += [("tier", tier, rows[rows["tier"] == tier]) for tier in TIERS]
    found = []
    for level, name, part in levels:
        for metric in METRICS:
            used = part if metric == "generation" else part[part["own"].notna()]
            if used["human"].notna().any():
                found.append(_corrected(level, name, metric, used))
    return found


def _corrected(level: str, name: str, metric: str, rows: pd.DataFrame) -> Corrected:
    own, judge, human = (rows[c].to_numpy(np.float64, na_value=np.nan) for c in VERDICTS)
    groups = rows.groupby(["task", "category"], sort=False)
    weights = 1 / groups["prompt"].transform("size").to_numpy(np.float64)
    # A level of one category has plain counts; above it categories weigh equally.
    prompts = np.asarray(rows.groupby(["task", "prompt"], sort=False).ngroup(), dtype=np.intp)

    carried = ~np.isnan(human)
    if metric == "weak_generation":
        carried &= own == 0
    clusters = len(np.unique(prompts[carried]))

    def by(method: _Method) -> Estimate | None:
        share = _share(metric, method, weights, own, judge, human, prompts)
        return None if share is None else _interval(share, prompts, clusters)

    reference = _share(metric, _all, weights, own, judge, human, prompts)
    enough = clusters >= FEWEST
    return Corrected(
        level=level,
        name=name,
        metric=metric,
        labels=int(carried.sum()),
        judge=None if reference is None else reference.value,
        sample=by(_sample) if enough else None,
        rogan_gladen=by(_rogan_gladen) if enough else None,
        ppi=by(_ppi) if enough else None,
    )


def _share(
    metric: str,
    method: _Method,
    weights: Floats,
    own: Floats,
    judge: Floats,
    human: Floats,
    prompts: Places,
) -> _Share | None:
    """The metric's share by one method, from shares of shown prompts within own verdicts."""

    def shown(mask: Bools) -> _Share | None:
        part = (
            method(weights[mask], judge[mask], human[mask], prompts[mask]) if mask.any() else None
        )
        if part is None:
            return None
        moves = np.zeros(len(weights))
        moves[mask] = part.moves
        return part._replace(moves=moves)

    if metric == "generation":
        return shown(np.ones(len(weights), dtype=np.bool_))
    rejected = shown(own == 0)
    if metric == "weak_generation":
        return rejected and _Share(1 - rejected.value, -rejected.moves, rejected.least)
    accepted = shown(own == 1)
    if accepted is None or (rejected is None and (own == 0).any()):
        return None
    # P(own = 1 | H = 0) = a f / (a f + (1 - a) r): a the accepted images' share, f and r the
    # shares of accepted and of rejected images that do not show their prompt.
    a = float(weights @ (own == 1) / weights.sum())
    f, r = 1 - accepted.value, 0.0 if rejected is None else 1 - rejected.value
    bottom = a * f + (1 - a) * r
    if bottom <= ROUNDING:
        return None
    of_a, of_f, of_r = (
        f * r / bottom**2, a * (1 - a) * r / bottom**2, -a * (1 - a) * f / bottom**2
    )  # fmt: skip
    moves = of_a * weights * ((own == 1) - a) / weights.sum() - of_f * accepted.moves
    least = of_f**2 * accepted.least
    if rejected is not None:
        moves, least = moves - of_r * rejected.moves, least + of_r**2 * rejected.least
    return _Share(a * f / bottom, moves, least)


def _all(weights: Floats, judge: Floats, _human: Floats, _prompts: Places) -> _Share | None:
    return _Share(float(weights @ judge / weights.sum()), np.zeros(len(judge)), 0.0)


def _sample(weights: Floats, _judge: Floats, human: Floats, _prompts: Places) -> _Share | None:
    known = ~np.isnan(human)
    if not known.any():
        return None
    value, moves = _mean(weights * known, np.nan_to_num(human))
    return _Share(value, moves, (value**2 + (1 - value) ** 2) / known.sum() ** 2)


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
    least = ((value / yes.sum()) ** 2 + ((1 - value) / no.sum()) ** 2) / youden**2
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
    return _Share(value, of_labelled + k * shift, 2 / int(known.sum()) ** 2)


def _mean(weights: Floats, values: Floats) -> tuple[float, Floats]:
    """The weighted mean, and what each image moves it by."""
    total = weights.sum()
    mean = float(weights @ values / total)
    return mean, weights * (values - mean) / total


def _interval(share: _Share, prompts: Places, clusters: int) -> Estimate:
    """Student's interval on `clusters` labelled prompts, the scarcer of the two sources."""
    sums = np.bincount(prompts, weights=share.moves)
    df = clusters - 1
    variance = float(sums @ sums) * clusters / df
    t = float(stdtrit(df, 0.975))
    half = t * max(variance, float(share.least)) ** 0.5
    value = min(1.0, max(0.0, share.value))
    return Estimate(value, max(0.0, value - half), min(1.0, value + half))
