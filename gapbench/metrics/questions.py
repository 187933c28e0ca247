"""The gap question by question: which skills a model draws, and which it sees.

A question about an image has a right answer, the one that an image of the prompt gives. The model
*draws* what it asks for where the outside judge gives the right answer, and *sees* it where the
model and the judge answer alike: about its own images and, where the task has some, about reference
images, which do not depend on what it draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any, Final

import numpy as np
import pandas as pd

from gapbench.metrics.agreement import Agreement, agreement
from gapbench.metrics.corrected import Estimate
from gapbench.metrics.intervals import Contrast, Figure, Floats, figure
from gapbench.metrics.metric import METRICS
from gapbench.metrics.paired import Change, changes
from gapbench.metrics.rates import UNIT

OVERALL: Final = "all questions"
COMPARED: Final = ("self_accuracy", "false_positive", "non_unification")
"""The figures that verdicts by questions are held against single verdicts by."""
IMAGE: Final = ["task", "prompt", "sample"]
REFERENCES: Final = "sees_references"
BY_SKILL: Final = {
    "generation": "draws", "self_accuracy": "sees", REFERENCES: "sees references",
}  # fmt: skip
"""The figures that are compared by skill -> what they are called there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Skill:
    """Answers about a skill, each a question about an image; all shares are of `questions`.

    draws: the judge gives the right answer. agrees: model and judge answer alike (raw, which is how
      often the model sees; kappa, beyond what both would reach by chance at their own rates).
    both: both give the right answer. It is what is left of the agreement if answers that both have
      wrong, as the prompt has it, count for nothing.
    more: agrees less draws; above 0 the model sees more than it draws.
    references: as agrees, of the questions about reference images, the prompts' own and those of
      their mismatched partners.
    None where nothing carries it.
    """

    name: str
    questions: int
    prompts: int
    abstained: int
    draws: Estimate | None
    agrees: Agreement
    both: Estimate | None
    more: Estimate | None
    references: Agreement | None

    @property
    def finding(self) -> str:
        """What the intervals show, in words: by what it sees of reference images, if it was asked
        about any, else of its own."""
        if self.references is not None and self.references.n:
            return self._by_references(self.references)
        if self.more is None or self.agrees.kappa is None:
            return "not known, since all answers are alike" if self.questions else "not known"
        if self.agrees.kappa_low is None:
            return "not known from so few prompts"
        if self.agrees.kappa_low <= 0:
            good = self.draws is not None and self.draws.low > 0.5
            return "draws, does not see" if good else "does not see"
        if self.more.low > 0:
            return "sees more than it draws"
        return "draws more than it sees" if self.more.high < 0 else "draws and sees alike"

    def _by_references(self, sight: Agreement) -> str:
        if self.draws is None or sight.kappa is None:
            alike = "not known, since all of the judge's answers about references are alike"
            return alike if self.draws else "not known"
        # Of a model whose answers are all alike, kappa is 0 whatever it is shown.
        if sight.kappa_low is None and (sight.kappa != 0 or sight.n_prompts == 1):
            return "not known from so few prompts"
        good, bad = self.draws.low > 0.5, self.draws.high < 0.5
        if sight.kappa_low is None or sight.kappa_low <= 0:
            return "draws, does not see" if good else "does not see"
        if good:
            return "sees and draws"
        return "sees, does not draw" if bad else "sees, draws about half"


@dataclass(frozen=True, slots=True, kw_only=True)
class Single:
    """Verdicts of one question (before) and by questions (after) on the same images: how far they
    agree, and what figures change by asking questions."""

    agrees: Agreement
    changes: list[Change]


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """A run's answers: all questions, each skill, the commonest first, and, where the run has both,
    its verdicts of one question against those by questions. `mass` is the median over images of
    the probability of all answers that may be; None where the model was heard instead.
    `shown` is the share of the questions about prompts' own reference images that the outside judge
    answers as the prompts want; None where it answers none."""

    overall: Skill
    skills: list[Skill]
    single: Single | None
    mass: float | None
    shown: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """The mean of a judge's probabilities of the right answers to a task's questions about a skill,
    over `questions` about all images (GenEval 2's Soft-TIFA AM by skill; facebookresearch/GenEval2
    at a6e82d2, soft_tifa_analysis.py)."""

    task: str
    skill: str
    questions: int
    prompts: int
    score: Estimate


def scored(rows: pd.DataFrame) -> list[Scored]:
    """By task and skill, of a task the commonest skill first. `rows` has a row a question about an
    image: task, category, cluster, prompt, skill and chance."""
    made = [
        Scored(
            task=str(mine["task"].iloc[0]), skill=str(mine["skill"].iloc[0]), questions=len(mine),
            prompts=mine["prompt"].nunique(), score=_estimate(_share(mine, mine["chance"])),
        )
        for _, mine in (rows.groupby(["task", "skill"], sort=False) if len(rows) else ())
    ]  # fmt: skip
    return sorted(made, key=lambda each: (each.task, -each.questions, each.skill))


def figures(
    answers: pd.DataFrame,
    by_questions: pd.DataFrame,
    single: pd.DataFrame | None,
    masses: Sequence[float],
    references: pd.DataFrame | None = None,
) -> Questions | None:
    """What answers (`gapbench.runs.questions.by_question`) come to; None where no question has an
    answer of the outside judge. `by_questions` and `single` are frames of `rates` with own verdicts
    of each kind, `masses` those of the verdicts by questions that have one, and `references` the
    answers about reference images, if there are any."""
    if not len(answers) or answers["outside"].isna().all():
        return None
    counts = answers["skill"].value_counts()
    names = sorted(counts.index, key=lambda name: (-counts[name], name))
    seen = answers[:0] if references is None or not len(references) else references
    return Questions(
        overall=_skill(OVERALL, answers, seen),
        skills=[
            _skill(name, *(frame[frame["skill"] == name] for frame in (answers, seen)))
            for name in names
        ],
        single=None if single is None else _single(single, by_questions),
        mass=median(masses) if masses else None,
        shown=_mean(seen.loc[seen["sample"] == 0, "outside"]),
    )


def by_skill(before: pd.DataFrame, after: pd.DataFrame) -> list[Change]:
    """What changed by skill from one run's answers to another's about the same prompts and seeds:
    how often it draws (`generation`) and sees (`self_accuracy`), over all skills, which weigh
    equally, and of each. `p_holm` is left empty. Raises GapbenchError as `changes` does."""
    return _changes(before, after, ["seed"], ("generation", "self_accuracy"))


def references_by_skill(before: pd.DataFrame, after: pd.DataFrame) -> list[Change]:
    """The same of the answers about reference images that both were asked about: how often it sees
    them (REFERENCES)."""
    made = _changes(before, after, ["image"], ("self_accuracy",))
    return [replace(change, metric=REFERENCES) for change in made]


def _changes(
    before: pd.DataFrame, after: pd.DataFrame, alike: Sequence[str], figures: Sequence[str]
) -> list[Change]:
    if not (len(before) and len(after)):
        return []
    keys = [*IMAGE, *alike, "question"]
    both = before[keys].merge(after[keys])
    if not len(both):
        return []
    old, new = (_as_images(both.merge(frame, on=keys)) for frame in (before, after))
    chosen = [METRICS[name] for name in figures]
    made = [*changes(old, new, "overall", chosen), *changes(old, new, "category", chosen)]
    return [change for change in made if change.images]


def record(made: Questions) -> dict[str, Any]:
    """For JSON: each figure as {value, low, high}."""

    def plain(value: Any) -> Any:
        if isinstance(value, Estimate):
            return value._asdict()
        if isinstance(value, dict):
            return {key: plain(each) for key, each in value.items()}
        return [plain(each) for each in value] if isinstance(value, list) else value

    return {key: plain(value) for key, value in asdict(made).items()} | {
        "findings": {skill.name: skill.finding for skill in made.skills}
    }


def _skill(name: str, rows: pd.DataFrame, references: pd.DataFrame) -> Skill:
    known = rows[rows["own"].notna() & rows["outside"].notna()]
    draws = both = more = None
    if len(known):
        own, outside = known["own"].to_numpy(np.float64), known["outside"].to_numpy(np.float64)
        drawn, seen = _share(known, outside), _share(known, own == outside)
        draws, both = _estimate(drawn), _estimate(_share(known, own * outside))
        step = Contrast([seen], [drawn])
        more = Estimate(step.value, *step.ends())
    agrees = agreement(rows, "own", "outside")
    return Skill(
        name=name, questions=len(known), prompts=agrees.n_prompts,
        abstained=int((rows["own_asked"] & rows["outside_asked"]).sum()) - len(known),
        draws=draws, agrees=agrees, both=both, more=more, references=_sight(references),
    )  # fmt: skip


def _mean(values: pd.Series[float]) -> float | None:
    known = values.dropna()
    return float(known.mean()) if len(known) else None


def _sight(rows: pd.DataFrame) -> Agreement | None:
    """How far both agree about reference images; None where nothing was asked. Where the judge's
    answers are all alike nothing is to be told apart, and kappa, which would be 0, is None."""
    if not len(rows):
        return None
    made = agreement(rows, "own", "outside")
    if made.n and rows.loc[rows["own"].notna(), "outside"].nunique() == 1:
        made = replace(made, kappa=None, kappa_low=None, kappa_high=None)
    return made


def _share(rows: pd.DataFrame, terms: Any) -> Figure:
    """A share of the rows, which weigh equally, with clusters of prompts as units."""
    value = np.asarray(terms, dtype=np.float64)
    table = pd.DataFrame({"sum": value, "square": value**2, "count": 1.0}, index=rows.index)
    table["beyond"] = ((value < 0) | (value > 1)).astype(float)  # Soft-TIFA may count a token twice
    units = table.groupby([rows[key].astype(str) for key in UNIT], sort=True).sum()
    count, zero = units["count"].to_numpy(), np.zeros(len(units))
    stratum: Floats = np.stack(
        [units["sum"], count, count, units["square"], units["beyond"], zero],
        axis=1,
        dtype=np.float64,
    )
    return figure([stratum], float(value.mean()))


def _estimate(made: Figure) -> Estimate:
    return Estimate(made.value, *made.ends())


def _single(single: pd.DataFrame, by_questions: pd.DataFrame) -> Single | None:
    single, by_questions = (each[each["own_asked"]] for each in (single, by_questions))
    both = single[[*IMAGE, "own"]].merge(by_questions, on=IMAGE, suffixes=("_single", ""))
    if not len(both):
        return None
    before = both.assign(own=both["own_single"], own_asked=True)
    return Single(
        agrees=agreement(both, "own_single", "own"),
        changes=changes(before, both, "overall", [METRICS[name] for name in COMPARED]),
    )


def _as_images(answers: pd.DataFrame) -> pd.DataFrame:
    """Answers in the columns of `rates`: a skill is a category, a question about an image a
    sample of its own prompt."""
    return pd.DataFrame(
        {
            "task": answers["task"],
            "category": answers["skill"],
            "tier": "easy",
            "prompt": answers["prompt"] + " " + answers["place"].astype(str),
            "cluster": answers["cluster"],
            "sample": answers["sample"],
            "own": answers["own"],
            "outside": answers["outside"],
            "score": answers["outside"],
            "mismatched": np.nan,
            "mismatched_asked": False,
            "own_asked": answers["own_asked"],
            "outside_asked": answers["outside_asked"],
        }
    )
