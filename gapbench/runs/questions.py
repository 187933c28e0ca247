"""Own verdicts by questions: the frame of answers, and the figures of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from gapbench.judges.lists import ENOUGH, Item, answers_in, asked, chances_in, items_of
from gapbench.judges.own import NAMES, SINGLE, Mode
from gapbench.judges.parts import questions
from gapbench.metrics.questions import Questions, Scored, figures, scored
from gapbench.runs.frame import ByJudge, majority, majority_of
from gapbench.runs.plan import Item as PlannedImage
from gapbench.runs.run import Run
from gapbench.runs.whole import Whole
from gapbench.tasks.content import cluster
from gapbench.types import Answer, Verdict

if TYPE_CHECKING:
    import pandas as pd

_NAN = float("nan")


def in_mode(run: Run, mode: Mode) -> Run | None:
    """The same run with the own verdicts of a mode; None where nobody asked for them."""
    name, plan = NAMES[mode], run.plan
    if plan.own == name:
        return run
    made = [part for part in plan.parts if part.own == name] if isinstance(plan, Whole) else []
    if not made:
        return None
    last = made[-1]
    return Run(run.folder, replace(plan, own=name, own_fingerprint=last.own_fingerprint,
                                   mismatched=last.mismatched))  # fmt: skip


def of_run(run: Run, judge: ByJudge = None) -> Questions | None:
    """What the answers of a run come to against an outside judge, by default each task's first;
    None where the model was asked no questions, or the judge cannot answer them."""
    mine = in_mode(run, "questions")
    if mine is None or not mine.plan.judges:
        return None
    modes = (in_mode(run, mode) for mode in SINGLE)
    single = next((other.frame(judge) for other in modes if other is not None), None)
    masses = [verdict.mass for verdict in mine.own_verdicts() if verdict.mass is not None]
    answers, references = by_question(mine, judge), about_references(mine, judge)
    return figures(answers, mine.frame(judge), single, masses, references)


def scores(run: Run, judge: ByJudge = None) -> list[Scored]:
    """The judge's probabilities of the right answers by skill, of tasks whose lists name skills;
    empty where the judge answers no lists. `judge` is as in `Run.frame`; a majority and people give
    no probabilities. Images without an answer to each question are left out, as in the score."""
    import pandas as pd

    drawn, verdicts, plan = run.folder.generations(), run.folder.verdicts(), run.plan
    rows = []
    for item in plan.items():
        prompt = item.prompt
        name = judge if judge is not None else next(iter(item.asks), None)
        generation = drawn.get((prompt.text, item.seed))
        if generation is None or not isinstance(name, str) or name not in item.asks:
            continue
        said = verdicts.get((generation.image, item.asks[name], plan.judges[name]))
        chances = chances_in(said.text) if said else None
        if chances is None:
            continue
        listed = items_of(prompt.requirement, f"task {prompt.task}, prompt {prompt.id}")
        if len(listed) != len(chances) or not all(each.skill for each in listed):
            continue
        about = {"task": prompt.task, "category": prompt.category, "prompt": prompt.id}
        about["cluster"] = cluster(prompt)
        rows += [
            {**about, "skill": each.skill, "chance": chance}
            for each, chance in zip(listed, chances, strict=True)
        ]
    return scored(pd.DataFrame(rows))


def by_question(run: Run, judge: ByJudge = None) -> pd.DataFrame:
    """A row for each question about each image that was drawn, of a run of mode questions.

    Columns: task, category, tier, prompt (id), cluster, sample, seed, image (sha256), place (in
    the list, from 0), question, answer (the right one), skill, own and outside (1.0 where the
    model's and the outside judge's answer is the right one, else 0.0; NaN where there is none),
    own_asked and outside_asked (whether they were asked, and answered), p_right (the model's
    probability of the right answer), judge. `judge` is as in `Run.frame`; people answer no
    questions.
    """
    drawn = run.folder.generations()
    found = ((item, drawn.get((item.prompt.text, item.seed))) for item in run.items)
    images = [(item, item.sample, generation.image) for item, generation in found if generation]
    return _answers(run, judge, images)


def about_references(run: Run, judge: ByJudge = None) -> pd.DataFrame:
    """The same of the questions about reference images: `sample` is 0 for a prompt's own, and 1 for
    that of its mismatched partner."""
    images = [
        (item, number, image)
        for item in run.items
        for number, image in enumerate((item.reference, item.other_reference))
        if image
    ]
    return _answers(run, judge, images)


def _answers(
    run: Run, judge: ByJudge, images: Iterable[tuple[PlannedImage, int, str]]
) -> pd.DataFrame:
    """The frame of questions about images: each an item, the sample, and the image (sha256)."""
    import pandas as pd

    verdicts, plan = run.folder.verdicts(), run.plan
    named = (judge,) if isinstance(judge, str) else judge
    rows = []
    lists = dict[tuple[str, str], list[Item]]()
    for item, sample, image in images:
        prompt = item.prompt
        names = [name for name in named or [*item.asks][:1] if name in item.asks]
        if not item.own or not names:
            continue
        if (prompt.task, prompt.id) not in lists:
            lists[prompt.task, prompt.id] = questions(prompt)
        mine = lists[prompt.task, prompt.id]
        question = asked(mine)
        own = verdicts.get((image, question, plan.own_fingerprint))
        theirs = {name: verdicts.get((image, question, plan.judges[name])) for name in names}
        said = _kept(own, len(mine))
        heard = {name: _kept(verdict, len(mine)) for name, verdict in theirs.items()}
        for place, each in enumerate(mine):
            outside = _outside(heard, place)
            rows.append(
                {
                    "task": prompt.task,
                    "category": prompt.category,
                    "tier": prompt.tier,
                    "prompt": prompt.id,
                    "cluster": cluster(prompt),
                    "sample": sample,
                    "seed": item.seed,
                    "image": image,
                    "place": place,
                    "question": each.question,
                    "answer": each.answer,
                    "skill": each.skill,
                    "own": _right(said[place]),
                    "own_asked": own is not None,
                    "p_right": _NAN if (chance := said[place]) is None else chance,
                    "outside": outside,
                    "outside_asked": any(verdict is not None for verdict in theirs.values()),
                    "judge": names[0] if len(names) == 1 else majority_of(names),
                }
            )
    return pd.DataFrame(rows)


def _kept(verdict: Verdict | None, count: int) -> list[float | None]:
    """The probability of the right answer to each question, None where there is none."""
    kept = answers_in(verdict.text) if verdict else None
    return kept if kept is not None and len(kept) == count else [None] * count


def _outside(heard: Mapping[str, list[float | None]], place: int) -> float:
    """What a judge, or the majority of several, says of a question."""
    said = [_right(kept[place]) for kept in heard.values()]
    if len(said) == 1:
        return said[0]
    made = majority(Answer(verdict=None if each != each else int(each)) for each in said)
    return _NAN if made is None or made.verdict is None else float(made.verdict)


def _right(chance: float | None) -> float:
    return _NAN if chance is None else float(chance >= ENOUGH)
