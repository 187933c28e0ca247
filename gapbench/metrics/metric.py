"""The table of figures: what each figure says, its formula, and where it is shown.

A new figure is one entry of _METRICS and its definition in docs/concepts.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from gapbench.metrics.intervals import Floats
from gapbench.types import PERCENT

Bools = npt.NDArray[np.bool_]
Place = Literal["tables", "compare", "board", "labels", "training"]
"""The tables of `show` and `report`; `compare` and `power`; the leaderboard; the rates that labels
correct; the log of GapCallback."""


class Verdicts(NamedTuple):
    """Verdicts on images, (images,) each: 1, 0, or NaN where there is none.

    The model's own, the outside judge's, the outside judge's score (its own scale, or its verdict),
    the model's own on the image against another prompt of the category, and the geometric mean of
    the probabilities that the outside judge gives the right answers to a list of questions.
    """

    own: Floats
    outside: Floats
    score: Floats
    mismatched: Floats
    geometric: Floats


def _every(verdicts: Verdicts) -> Bools:
    return np.ones(len(verdicts.own), dtype=np.bool_)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A figure over images: the sum of their numerators over the sum of their denominators.

    An image counts if it has every verdict in `reads`. `numerator` gives each image's term,
    (images,) numbers or truths, and `denominator` whether the image is in the denominator; what
    they give for an image that does not count is ignored. `name` stands in CSV and JSON, which
    hold every figure, `heading` in tables; `places` lists where else the figure is shown. `about`
    says what it means. The unit of a figure that is a mean of scores is the judge's, unless it
    names another.
    A figure that is compared must say which direction is better (else ValueError).
    """

    name: str
    heading: str
    about: str
    reads: tuple[Literal["own", "outside", "score", "mismatched", "geometric"], ...]
    numerator: Callable[[Verdicts], Floats | Bools]
    denominator: Callable[[Verdicts], Bools] = _every
    unit: str = PERCENT
    better: Literal["higher", "lower", "neither"]
    places: tuple[Place, ...] = ()

    def __post_init__(self) -> None:
        if "compare" in self.places and self.better == "neither":
            raise ValueError(f"{self.name} is compared: say which direction is better")

    @property
    def needs_own(self) -> bool:
        """Whether it takes the model's own verdicts."""
        return "own" in self.reads or "mismatched" in self.reads

    @property
    def title(self) -> str:
        """The heading, with the unit where that is not percent."""
        return self.heading if self.unit == PERCENT else f"{self.heading} ({self.unit})"

    @property
    def in_scores(self) -> bool:
        """Whether its unit is that of the judge's scores."""
        return "score" in self.reads and self.unit == PERCENT


_METRICS: Final = (
    Metric(
        name="non_unification", heading="non-unification",
        about="share of images the model itself rejects (section 2: Non.)",
        reads=("own",), numerator=lambda v: v.own == 0,
        better="lower", places=("tables", "compare", "board", "training"),
    ),
    Metric(
        name="weak_generation", heading="weak generation",
        about="of the images the model rejects, the share the judge rejects too (section 2)",
        reads=("own", "outside"), numerator=lambda v: (v.own == 0) & (v.outside == 0),
        denominator=lambda v: v.own == 0,
        better="neither", places=("tables", "board", "labels"),
    ),
    Metric(
        name="misunderstanding", heading="misunderstanding",
        about="of the images the model rejects, the share the outside judge accepts (section 2)",
        reads=("own", "outside"), numerator=lambda v: (v.own == 0) & (v.outside == 1),
        denominator=lambda v: v.own == 0,
        better="neither",
    ),
    Metric(
        name="false_positive", heading="false positive",
        about="of the images the outside judge rejects, the share the model accepts (section 2)",
        reads=("own", "outside"), numerator=lambda v: (v.own == 1) & (v.outside == 0),
        denominator=lambda v: v.outside == 0,
        better="lower", places=("tables", "compare", "board", "labels"),
    ),
    Metric(
        name="generation", heading="generation",
        about="mean score of the outside judge, or of one without scores the share that it accepts "
        "(section 2: Gen.)",
        reads=("score",), numerator=lambda v: v.score,
        better="higher", places=("tables", "compare", "board", "labels", "training"),
    ),
    Metric(
        name="self_accuracy", heading="own verdict right",
        about="share of images on which model and outside judge agree (section 2: pi_und = J)",
        reads=("own", "outside"), numerator=lambda v: v.own == v.outside,
        better="higher", places=("tables", "compare", "training"),
    ),
    Metric(
        name="mismatch_acceptance", heading="accepts mismatched",
        about="share of images the model accepts for another prompt of the category (ours)",
        reads=("mismatched",), numerator=lambda v: v.mismatched == 1,
        better="lower", places=("tables", "board", "training"),
    ),
    Metric(
        name="geometric", heading="geometric mean",
        about="mean over images of the geometric mean over a judge's questions (GenEval 2's GM)",
        reads=("geometric",), numerator=lambda v: v.geometric,
        better="higher",
    ),
)  # fmt: skip
METRICS: Final = {metric.name: metric for metric in _METRICS}
"""The figures of a run by name, in the order of CSV and JSON. Sections are the paper's (arXiv
2507.16663)."""
UNDERSTANDING: Final = replace(
    METRICS["self_accuracy"], name="understanding", heading="understanding",
    about="share of the images of BEFORE on which model and outside judge agree (section 2: Und.)",
    places=("compare",),
)  # fmt: skip
"""A figure of a comparison alone: one run has no verdicts on another's images."""


def printed(value: float, unit: str, sign: str = "") -> str:
    """A value in its unit, without the unit's name: a share in percent with one digit, else three
    digits."""
    return f"{100 * value:{sign}.1f}" if unit == PERCENT else f"{value:{sign}.3f}"


def shown_in(place: Place) -> list[Metric]:
    """The figures of a place in the order of its columns: first what the model draws, which takes
    none of its own verdicts, then the others in the order of METRICS."""
    chosen = [metric for metric in METRICS.values() if place in metric.places]
    return sorted(chosen, key=lambda metric: metric.needs_own)
