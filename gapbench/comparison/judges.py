"""Whether what was concluded holds under each of several judges, and under their majority."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Protocol

from gapbench.comparison.compare import Comparison
from gapbench.runs.frame import ByJudge

VERDICT: Final = "verdict"
ORDER: Final = "order by generation"
WORDS: Final = {1: "better", 0: "unchanged", -1: "worse"}
ROUNDING: Final = 1e-9
"""Two changes that differ by less are equal."""


class Measure(Protocol):
    """`gapbench.comparison.compare.compare` with everything given but the judge."""

    def __call__(self, *, judge: ByJudge) -> list[Comparison]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Conclusion:
    """What is concluded `about` the verdict, a figure (by its name) or the order of several AFTERs:
    by the majority, and by each judge. `against` are the judges that do not conclude as the
    majority."""

    about: str
    majority: str
    judges: dict[str, str]
    against: list[str]

    @property
    def holds(self) -> str:
        """Under which judges the majority's conclusion holds, in words; n/a where it has none."""
        if self.majority == "n/a":
            return "n/a"
        count, agreed = len(self.judges), len(self.judges) - len(self.against)
        if agreed == count:
            return "every judge"
        return f"{agreed} of {count}: not under {', '.join(self.against)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One AFTER against BEFORE under the majority of several judges and under each of them."""

    majority: Comparison
    judges: dict[str, Comparison]
    conclusions: list[Conclusion]


def under_judges(measure: Measure, judges: Sequence[str]) -> list[Judged]:
    """Each comparison of `measure` under the majority of `judges` and under each of them, and which
    of the majority's conclusions hold: its verdict, and for each figure whether it is better, worse
    or unchanged (by Holm's p). Their order changes no answer."""
    majority = measure(judge=tuple(judges))
    each = {name: measure(judge=name) for name in judges}
    return [
        _judged(whole, {name: made[place] for name, made in each.items()})
        for place, whole in enumerate(majority)
    ]


def order(judged: Sequence[Judged]) -> Conclusion | None:
    """The AFTERs, numbered as they are given, by their change in generation, the best first; None
    for one. It is that of the measured values, whether or not they differ significantly."""
    if len(judged) < 2:
        return None
    names = list(judged[0].judges)
    each = {name: _order([one.judges[name] for one in judged]) for name in names}
    return conclusion(ORDER, _order([one.majority for one in judged]), each)


def concluded(c: Comparison, metric: str) -> str:
    """What a comparison says of a figure: better, worse, unchanged, mixed (of several units of
    scores, one better and one worse), or n/a where it was not measured."""
    signs = {ch.verdict for ch in c.changes if ch.metric == metric and ch.difference is not None}
    if not signs:
        return "n/a"
    return "mixed" if signs >= {1, -1} else WORDS[sum(signs)]


def _judged(majority: Comparison, judges: dict[str, Comparison]) -> Judged:
    verdicts = {name: c.verdict for name, c in judges.items()}
    figures = dict.fromkeys(change.metric for change in majority.changes)
    return Judged(
        majority=majority,
        judges=judges,
        conclusions=[
            conclusion(VERDICT, majority.verdict, verdicts),
            *(conclusion(name, concluded(majority, name), _each(judges, name)) for name in figures),
        ],
    )


def _each(judges: Mapping[str, Comparison], metric: str) -> dict[str, str]:
    return {name: concluded(c, metric) for name, c in judges.items()}


def conclusion(about: str, majority: str, judges: dict[str, str]) -> Conclusion:
    """What several judges and their majority conclude, and who does not as the majority does."""
    against = [name for name, said in judges.items() if said != majority]
    return Conclusion(about=about, majority=majority, judges=judges, against=against)


def _order(comparisons: Sequence[Comparison]) -> str:
    """As in "2, 1 = 3"; n/a where the changes are not measured, or not in one unit."""
    changes = [[ch for ch in c.changes if ch.metric == "generation"] for c in comparisons]
    values = [made[0].difference for made in changes if len(made) == 1]
    known = [value for value in values if value is not None]
    units = {change.unit for made in changes for change in made}
    if len(known) < len(comparisons) or len(units) > 1:
        return "n/a"
    return in_order({str(place): value for place, value in enumerate(known, 1)})


def in_order(values: Mapping[str, float]) -> str:
    """Names by their values, the highest first, as in "b, a = c"; equal ones in their own order."""
    places = sorted(values, key=lambda name: -values[name])
    told = places[0]
    for last, place in pairwise(places):
        equal = values[last] - values[place] < ROUNDING
        told += f"{' =' if equal else ','} {place}"
    return told
