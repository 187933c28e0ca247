"""The figure a leaderboard ranks by, and ranks with their uncertainty.

unified = P(the model and the outside judge both accept an image it drew)
        - P(the model accepts an image for another prompt of its category)

with categories weighing equally: the share that was drawn right and recognised, beyond what the
model would accept anyway. Non-unification alone is 0 for a model that accepts everything; here
constant and random verdicts get at most 0, and so does a model that agrees with itself alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from gapbench.metrics.intervals import Floats, bootstrap
from gapbench.types import GapbenchError

_TERMS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A model's unified figure with its 95 % interval, and its place among those it was ranked with
    (None where it was not): `place` is shared by a group of statistical ties, `best` and `worst`
    bound the 95 % interval of the rank over the same draws."""

    value: float
    low: float
    high: float
    place: int | None
    best: int | None
    worst: int | None


def standings(
    frames: Mapping[str, pd.DataFrame], unranked: Sequence[str] = (), draws: int = 2000
) -> dict[str, Standing]:
    """The standing of each model, best first, from frames as `gapbench.metrics.rates` takes them.

    All frames are resampled by the same prompts, drawn within their categories, so that models are
    compared on equal draws. An abstention of the model's own counts against it: as a rejection of
    its own image, as an acceptance of a mismatched one; images without an outside verdict are left
    out. Those in `unranked` get a figure and no place. A group of ties is headed by the best model
    that is not in an earlier one, and holds those after it whose difference from it has 0 in its
    95 % interval. Models without the figure (no outside verdict, no mismatched pair) are left out.
    """
    if set(unranked) - set(frames):
        raise GapbenchError("standings: a name in `unranked` has no frame")
    values, drawn = _unified(frames, draws)
    order = sorted(
        (n for n, value in values.items() if not np.isnan(value)), key=lambda n: -values[n]
    )
    ranked = [name for name in order if name not in unranked]
    places: dict[str, int] = {}
    head = ""
    for place, name in enumerate(ranked, 1):
        # The interval of the difference on equal draws; overlapping intervals would not do.
        if head and np.nanquantile(drawn[head] - drawn[name], 0.025) <= 0:
            places[name] = places[head]
        else:
            head, places[name] = name, place
    made = {}
    for name in order:
        low, high = np.nanquantile(drawn[name], (0.025, 0.975))
        best = worst = None
        if name in places:
            above = np.sum([drawn[other] > drawn[name] for other in ranked], axis=0)
            best = 1 + int(np.quantile(above, 0.025, method="lower"))
            worst = 1 + int(np.quantile(above, 0.975, method="higher"))
        made[name] = Standing(
            value=values[name],
            low=min(float(low), values[name]),
            high=max(float(high), values[name]),
            place=places.get(name),
            best=best,
            worst=worst,
        )
    return made


def _unified(
    frames: Mapping[str, pd.DataFrame], draws: int
) -> tuple[dict[str, float], dict[str, Floats]]:
    """Each model's figure, and the same on each draw."""
    sums = {name: _sums(frame) for name, frame in frames.items()}
    # One row a prompt, all models side by side: a draw of prompts is the same draw for each.
    joint = pd.concat(sums, axis=1).fillna(0.0).sort_index()
    totals, resampled = [], []
    for (task, category), part in joint.groupby(level=["task", "category"], sort=True):
        cells = part.to_numpy(dtype=np.float64)
        totals.append(cells.sum(axis=0))
        resampled.append(bootstrap(cells, f"{task}/{category}", draws))
    shape = (len(totals), -1, len(frames), _TERMS)
    value = _level(np.reshape(totals, shape))[0]
    drawn = _level(np.reshape(resampled, shape))
    return (
        {name: float(value[i]) for i, name in enumerate(frames)},
        {name: drawn[:, i] for i, name in enumerate(frames)},
    )


def _sums(frame: pd.DataFrame) -> pd.DataFrame:
    """Per prompt: both accept, outside verdicts, mismatched pairs accepted, pairs."""
    own, outside = frame["own"], frame["outside"]
    asked = frame["mismatched_asked"].astype(bool)
    terms = {
        "right": (own == 1) & (outside == 1),
        "judged": outside.notna(),
        "fooled": asked & (frame["mismatched"] != 0),
        "asked": asked,
    }
    keys = [frame[key].astype(str) for key in ("task", "category", "prompt")]
    return pd.DataFrame(terms).astype(float).groupby(keys).sum()


def _level(totals: Floats) -> Floats:
    """(categories, draws, models, terms) -> (draws, models); NaN where a part has no category."""
    right, judged, fooled, asked = np.moveaxis(totals, -1, 0)
    return _mean(right, judged) - _mean(fooled, asked)


def _mean(numerator: Floats, denominator: Floats) -> Floats:
    """Mean over the categories that have a denominator."""
    there = denominator > 0
    shares = np.where(there, numerator / np.where(there, denominator, 1.0), 0.0)
    with np.errstate(invalid="ignore"):
        mean: Floats = shares.sum(axis=0) / there.sum(axis=0)
    return mean
