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
from itertools import combinations

import numpy as np
import pandas as pd

from gapbench.metrics.intervals import VALID, Contrast, Figure, Floats, figure, ratio
from gapbench.metrics.paired import ALPHA, holm
from gapbench.metrics.rates import UNIT, clustered
from gapbench.types import GapbenchError


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A model's unified figure with its 95 % interval, and its place among those it was ranked with
    (None where it was not): `place` is shared by a group of statistical ties, `best` and `worst`
    bound the rank, for all models at once with a confidence of 95 %."""

    value: float
    low: float
    high: float
    place: int | None
    best: int | None
    worst: int | None


def standings(
    frames: Mapping[str, pd.DataFrame], unranked: Sequence[str] = ()
) -> dict[str, Standing]:
    """The standing of each model, best first, from frames as `gapbench.metrics.rates` takes them.

    Two models differ where the test of their difference over the same prompts is significant, by
    Holm's procedure over all pairs. A rank lies between 1 + those that are better and the number
    of models less those that are worse (Mogstad, Romano, Shaikh and Wilhelm 2024). A group of ties
    is headed by the best model that is not in an earlier one, and holds those after it that do not
    differ from it. An abstention of the model's own counts against it: as a rejection of its own
    image, as an acceptance of a mismatched one; images without an outside verdict are left out.
    Those in `unranked` get a figure and no place. Models without the figure (no outside verdict, no
    mismatched pair) are left out.
    """
    if set(unranked) - set(frames):
        raise GapbenchError("standings: a name in `unranked` has no frame")
    parts = _parts(frames)
    values = {name: right.value - fooled.value for name, (right, fooled) in parts.items()}
    order = sorted(values, key=lambda name: -values[name])
    ranked = [name for name in order if name not in unranked]
    pairs = list(combinations(ranked, 2))
    ps = [Contrast([parts[a][0], parts[b][1]], [parts[a][1], parts[b][0]]).p() for a, b in pairs]
    apart = {pair for pair, p in zip(pairs, holm(ps), strict=True) if p is not None and p < ALPHA}
    places: dict[str, int] = {}
    head = ""
    for place, name in enumerate(ranked, 1):
        if head and (head, name) not in apart:
            places[name] = places[head]
        else:
            head, places[name] = name, place
    made = {}
    for name in order:
        low, high = Contrast(parts[name][:1], parts[name][1:]).ends()
        best = worst = None
        if name in places:
            best = 1 + sum((other, name) in apart for other in ranked)
            worst = len(ranked) - sum((name, other) in apart for other in ranked)
        made[name] = Standing(
            value=values[name], low=low, high=high, place=places.get(name), best=best, worst=worst
        )
    return made


def _parts(frames: Mapping[str, pd.DataFrame]) -> dict[str, tuple[Figure, Figure]]:
    """(right, fooled) of each model that has both, over the prompts of all models."""
    # One row a prompt, all models side by side: they are compared prompt by prompt.
    joint = pd.concat({name: _sums(frame) for name, frame in frames.items()}, axis=1)
    joint = joint.fillna(0.0).sort_index()
    # A category without outside verdicts, only scores, says nothing of the first term.
    judged = joint.xs("judged", axis=1, level=1).to_numpy()
    by = joint.groupby(level=["task", "category"]).indices
    categories = [rows for _, rows in sorted(by.items()) if judged[rows].any()]
    made = {}
    for name in frames:
        table = joint[name]
        sides = [
            [_stratum(hits[rows], images[rows]) for rows in categories]
            for hits, images in (
                (table["right"].to_numpy(), table["judged"].to_numpy()),
                (table["fooled"].to_numpy(), table["asked"].to_numpy()),
            )
        ]
        if all(any(stratum[:, VALID].any() for stratum in side) for side in sides):
            one, two = (
                figure(side, float(ratio(np.array([s.sum(axis=0) for s in side]))))
                for side in sides
            )
            made[name] = (one, two)
    return made


def _sums(frame: pd.DataFrame) -> pd.DataFrame:
    """Per cluster: both accept, outside verdicts, mismatched pairs accepted, pairs."""
    own, outside = frame["own"], frame["outside"]
    asked = frame["mismatched_asked"].astype(bool)
    terms = {
        "right": (own == 1) & (outside == 1),
        "judged": outside.notna(),
        "fooled": asked & (frame["mismatched"] != 0),
        "asked": asked,
    }
    keys = [clustered(frame)[key].astype(str) for key in UNIT]
    return pd.DataFrame(terms).astype(float).groupby(keys).sum()


def _stratum(hits: Floats, images: Floats) -> Floats:
    """The columns of `gapbench.metrics.intervals` for a plain share, (prompts, 6)."""
    zero = np.zeros_like(images)
    return np.stack([hits, images, images, hits, zero, zero], axis=1)
