"""What a model's verdicts on its own images are worth: do they tell right images from wrong ones?

An image is right where the outside judge accepts it. The model's score of an image is its p_yes,
or its verdict where the run has verdicts without probabilities.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from gapbench.metrics.calibration import Bin, bin_of
from gapbench.metrics.corrected import Estimate
from gapbench.metrics.intervals import Contrast, Figure, Floats, figure, ratio
from gapbench.metrics.rates import UNIT, clustered

BINS: Final = 5
CHOICES: Final = {
    "random": "by lot",
    "own": "by its own verdict",
    "again": "again until it accepts",
    "judge": "by the judge",
}
"""How an image of a prompt's is chosen, by the fields of Verification."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What own verdicts are worth over `images` of `prompts`; None where the images do not say.

    auroc: the probability that a right image has a higher score than a wrong one, ties half.
    confidence: how often the own verdict agrees with the outside judge, by max(p_yes, 1 - p_yes) in
      fifths from 0.5 to 1, empty ones left out; `expected` is the mean confidence of a bin.
    random, own, again, judge: the share of prompts for which one of its images is right: one drawn
      by lot (its expectation), the one with the highest score (by lot among equals), the first that
      is accepted if they are drawn one after the other (the one with the highest score where none
      is), which takes `again_images` a prompt, and any; gain is own less random. Means over
      categories of the prompts that have several images, which are `choices`, with `fewest` to
      `most` images each.
    """

    images: int
    prompts: int
    auroc: Estimate | None
    confidence: list[Bin]
    choices: int
    fewest: int
    most: int
    random: Estimate | None
    own: Estimate | None
    again: Estimate | None
    again_images: float | None
    judge: Estimate | None
    gain: Estimate | None


def verification(frame: pd.DataFrame) -> Verification | None:
    """What the own verdicts of `frame` (that of `gapbench.metrics.rates`, with p_yes) are worth;
    None where no image has both an own and an outside verdict."""
    rows = clustered(frame)
    rows = rows[rows["own"].notna() & rows["outside"].notna()].reset_index(drop=True)
    if not len(rows):
        return None
    probable = bool(rows["p_yes"].notna().all())
    rows = rows.assign(held=rows["p_yes" if probable else "own"].astype(float))
    several = rows[rows.groupby(["task", "prompt"], observed=True)["own"].transform("size") > 1]
    sizes = several.groupby(["task", "prompt"], observed=True).size()
    chosen = _choices(several) if len(several) else {}
    gain = None
    if chosen:
        step = Contrast([chosen["own"]], [chosen["random"]])
        gain = Estimate(step.value, *step.ends())
    return Verification(
        images=len(rows),
        prompts=len(rows[["task", "prompt"]].drop_duplicates()),
        auroc=_auroc(rows),
        confidence=_confidence(rows) if probable else [],
        choices=len(sizes),
        fewest=int(sizes.min()) if len(sizes) else 0,
        most=int(sizes.max()) if len(sizes) else 0,
        gain=gain,
        again_images=_cost(several) if len(several) else None,
        **{name: _estimate(chosen.get(name)) for name in CHOICES},
    )


def record(worth: Verification) -> dict[str, Any]:
    """For JSON: each figure as {value, low, high}, each bin as its fields."""
    return {
        key: value._asdict()
        if isinstance(value, Estimate)
        else [each._asdict() for each in value]
        if isinstance(value, list)
        else value
        for key, value in asdict(worth).items()
    }


def prediction(worth: Verification | None) -> str:
    """What a fix can gain by these verdicts, in a sentence; empty where they do not say."""
    if worth is None or worth.gain is None:
        return ""
    told = f"Choosing by its own verdict adds {points(worth.gain)} points."
    if worth.gain.high <= 0:
        return f"{told} It chooses the wrong images: do not fix the model by these verdicts."
    if worth.gain.low <= 0:
        return f"{told} No gain is shown, so a fix by these verdicts may bring none."
    return (
        f"{told} A fix teaches the model to draw what it would choose, so expect generation to "
        "rise by up to about that."
    )


def auroc(value: Estimate | None) -> str:
    """An AUROC with its interval, as a share."""
    return "n/a" if value is None else f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}]"


def points(value: Estimate) -> str:
    """A change in percentage points with its interval."""
    low, high = 100 * value.low, 100 * value.high
    return f"{100 * value.value:+.1f} [{low:+.1f}, {high:+.1f}]"


def _auroc(rows: pd.DataFrame) -> Estimate | None:
    """By placements: the share of the other kind that an image is on the right side of (DeLong
    1988), summed over clusters (Obuchowski 1997)."""
    right = rows["outside"].to_numpy(np.float64) == 1
    held = rows["held"].to_numpy(np.float64)
    n1, n0 = int(right.sum()), int((~right).sum())
    if not n1 or not n0:
        return None
    # Of an image's midrank, what its own kind does not account for is its wins over the other.
    ranks, placements = rankdata(held), np.empty(len(held))
    placements[right] = (ranks[right] - rankdata(held[right])) / n0
    placements[~right] = 1 - (ranks[~right] - rankdata(held[~right])) / n1
    value = float(placements[right].mean())
    moves = (placements - value) / np.where(right, n1, n0)
    keys = [rows[column] for column in UNIT]
    sums = pd.Series(moves, rows.index).groupby(keys, observed=True).sum().to_numpy()
    least = min(len(rows.loc[kind, UNIT].drop_duplicates()) for kind in (right, ~right))
    many = len(sums)
    variance = float(sums @ sums) * (many / (many - 1) if many > 1 else 1.0)
    # One more placement half wrong: kinds that no image mixes up would look certain.
    variance += (0.5 / least) ** 2
    shrunk = (value * least + 0.5) / (least + 1)
    trials = shrunk * (1 - shrunk) / variance
    return _estimate(Figure(value, variance**0.5, max(1.0, least - 1.0), trials))


def _confidence(rows: pd.DataFrame) -> list[Bin]:
    p_yes = rows["p_yes"].to_numpy(np.float64)
    sure = np.maximum(p_yes, 1 - p_yes)
    held = rows.assign(expected=sure, outside=(rows["own"] == rows["outside"]).astype(float))
    places = np.minimum(((sure - 0.5) * 2 * BINS).astype(int), BINS - 1)
    return [bin_of(held[places == place], "expected") for place in np.unique(places)]


def _choices(rows: pd.DataFrame) -> dict[str, Figure]:
    """The shares of prompts for which a chosen image is right."""
    by = [*UNIT, "prompt"]
    prompts = rows.groupby(by, observed=True)
    best = rows[rows["held"] == prompts["held"].transform("max")]
    own = best.groupby(by, observed=True)["outside"].mean()
    accepted = rows[rows["own"] == 1].groupby(by, observed=True)["outside"].mean()
    kept = {
        "random": prompts["outside"].mean(),
        "own": own,
        "again": accepted.reindex(own.index).fillna(own),
        "judge": prompts["outside"].max(),
    }
    return {name: share(values.astype(float)) for name, values in kept.items()}


def _cost(rows: pd.DataFrame) -> float:
    """The images that a prompt takes until one is accepted, a mean over categories: of n in an
    order by lot the first of a accepted ones is the (n + 1) / (a + 1)-th."""
    counts = rows.groupby([*UNIT, "prompt"], observed=True)["own"].agg(["size", "sum"])
    drawn = ((counts["size"] + 1) / (counts["sum"] + 1)).where(counts["sum"] > 0, counts["size"])
    return float(drawn.groupby(level=UNIT[:2], observed=True).mean().mean())


def share(values: pd.Series[float]) -> Figure:
    """A mean over categories of a value in [0, 1] of each prompt, which the index names."""
    table = pd.DataFrame({"value": values, "square": values**2}).sort_index()
    units = table.groupby(level=UNIT, observed=True)
    sums = units.sum().assign(prompts=units.size())
    strata = [_stratum(part) for _, part in sums.groupby(level=UNIT[:2], observed=True)]
    return figure(strata, float(ratio(np.stack([stratum.sum(axis=0) for stratum in strata]))))


def _stratum(sums: pd.DataFrame) -> Floats:
    """The columns of `gapbench.metrics.intervals`."""
    number = sums["prompts"].to_numpy(np.float64)
    zero = np.zeros(len(number))
    value, square = sums["value"].to_numpy(np.float64), sums["square"].to_numpy(np.float64)
    return np.stack([value, number, number, square, zero, zero], axis=1)


def _estimate(made: Figure | None) -> Estimate | None:
    return None if made is None else Estimate(made.value, *made.ends())
