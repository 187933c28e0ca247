"""Runs before and after: the same prompts and seeds, what changed, and a verdict in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from gapbench.files import read_object
from gapbench.judges.own import MODES, OwnJudge
from gapbench.lmeval.regression import Elsewhere, regressions
from gapbench.metrics.metric import UNDERSTANDING
from gapbench.metrics.paired import (
    Change,
    Correlation,
    WinRate,
    adjusted,
    changes,
    gap_gain,
    groups,
    understanding,
    win_rate,
)
from gapbench.metrics.questions import by_skill, references_by_skill
from gapbench.metrics.reflection import Way, ways
from gapbench.metrics.verification import Verification, verification
from gapbench.models.checkpoint import FIX_RECORD
from gapbench.runs.about import model_of
from gapbench.runs.frame import ByJudge, undecided_in_words
from gapbench.runs.plan import Plan
from gapbench.runs.questions import about_references, by_question, in_mode
from gapbench.runs.reflect import frame as attempts
from gapbench.runs.run import Run, open_run
from gapbench.runs.settings import Progress, silent
from gapbench.runs.stages import judge_images
from gapbench.types import GapbenchError, Prompt, counted

if TYPE_CHECKING:
    import pandas as pd

IMAGE: Final = ["task", "prompt", "sample", "seed"]
RULE: Final = (
    "generation and understanding count as better or worse if their Holm p is below 0.05; both "
    "better is co-improvement, both worse co-degradation, one of each a trade-off"
)
WORDS: Final = {
    (1, 1): "co-improvement",
    (1, 0): "generation better, understanding unchanged",
    (0, 1): "understanding better, generation unchanged",
    (0, 0): "no detectable change",
    (0, -1): "understanding worse, generation unchanged",
    (-1, 0): "generation worse, understanding unchanged",
    (1, -1): "trade-off: generation better, understanding worse",
    (-1, 1): "trade-off: understanding better, generation worse",
    (-1, -1): "co-degradation",
}
"""(generation, understanding) -> the verdict."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What changed from one run to another.

    `before` and `after` are the runs' folders. `changes` are the overall figures, one family under
    Holm, `by_level` those of the level that was asked for, another, and `by_skill` those by
    question (`gapbench.metrics.questions`), a third, where both models were asked questions.
    `again` tells what training and what drawing again bring, where both runs have `--reflect`.
    `win_rate` and `groups` are None where no model's own verdicts could be held against an outside
    judge; `own` is their mode: logits, text, questions or none. `worth_before` and `worth_after`
    say what each model's verdicts on its own images are worth, and `is_fix` whether gapbench fix
    made AFTER from BEFORE. `left_out` says what the two runs do not share; `worse` names the
    figures that are significantly worse.
    """

    before: str
    after: str
    before_model: str
    after_model: str
    judges: list[str]
    own: str
    images: int
    prompts: int
    left_out: list[str]
    notes: list[str]
    changes: list[Change]
    by_level: list[Change]
    by_skill: list[Change]
    again: list[Way]
    win_rate: WinRate | None
    groups: dict[str, int] | None
    gap_gain: Correlation | None
    worth_before: Verification | None
    worth_after: Verification | None
    is_fix: bool
    verdict: str
    worse: list[str]


@dataclass(frozen=True, slots=True)
class Pair:
    """BEFORE and AFTER over the images they share, row by row."""

    before: Run
    after: Run
    old: pd.DataFrame
    new: pd.DataFrame
    left_out: list[str]


def compare(
    before: str | Path | Run,
    afters: Sequence[str | Path | Run],
    *,
    by: Literal["category", "tier", "task"] | None = None,
    judge: ByJudge = None,
    models: Sequence[str] = (),
    elsewhere: Sequence[Elsewhere] = (),
    progress: Progress = silent,
) -> list[Comparison]:
    """Hold each run of `afters` against the run `before`, image by image; a folder is all that was
    ever asked of it, a run that `open_run` opened may be a part.

    The understanding win rate needs AFTER's verdicts on BEFORE's images; those that BEFORE's folder
    lacks are made and kept there. The model is where AFTER's run found it, or among `models` (as
    --model takes them), known by its fingerprint. `judge` picks the outside judge, by default each
    task's first, or the majority of several (`gapbench.comparison.judges` says what holds under
    each); `by` adds the figures of a level; `elsewhere` are tasks of lm-eval and lmms-eval, on
    which both models are evaluated.

    Where two runs differ in prompts, seeds, task versions or judges, what they share is compared,
    and `left_out` says what is not. Raises GapbenchError, before any model is loaded, where they
    share nothing.
    """
    first, *others = [run if isinstance(run, Run) else open_run(run) for run in (before, *afters)]
    pairs = [pair_runs(first, after, judge) for after in others]
    crossed = [cross(pair, models, progress) for pair in pairs]
    compared = []
    for pair, verdicts in zip(pairs, crossed, strict=True):
        found = [regressions(pair.before, pair.after, each, models) for each in elsewhere]
        scores = [change for changes, _ in found for change in changes]
        about = [*_told(pair, judge), *(note for _, notes in found for note in notes)]
        compared.append(_comparison(pair, verdicts, by, scores, about, judge))
    return compared


def _told(pair: Pair, judge: ByJudge) -> list[str]:
    """On which images a majority came to no verdict; without a judge's name, which others the runs
    have."""
    if isinstance(judge, tuple):
        sides = (("BEFORE", pair.old), ("AFTER", pair.new))
        silent = {side: undecided_in_words(frame) for side, frame in sides}
        return [f"No majority of {side} on {why}" for side, why in silent.items() if why]
    there = [name for name in pair.before.judges() if name in pair.after.judges()]
    if judge is not None or set(there) <= set(pair.old["judge"].dropna()):
        return []
    names = ",".join(there)
    return [f"Other judges are there: --judge {names} says if the verdict holds under each."]


def figures(c: Comparison) -> dict[str, float]:
    """The overall figures by the names that trackers show, in their units: gap/generation_change
    is named as `GapCallback` names it; _before, _after and _p_holm stand beside it."""
    named = {
        f"gap/{change.metric}_{key}": value
        for change in c.changes
        for key, value in (
            ("before", change.before), ("after", change.after),
            ("change", change.difference), ("p_holm", change.p_holm),
        )
        if value is not None
    }  # fmt: skip
    won = c.win_rate.value if c.win_rate else None
    return named if won is None else named | {"gap/understanding_win_rate": won}


def fixed_folder(c: Comparison) -> Path | None:
    """The folder of AFTER's model where `gapbench fix` made it from BEFORE's; None else."""
    return _fixed(open_run(c.before), open_run(c.after))


def _fixed(one: Run, two: Run) -> Path | None:
    before, after = (run.folder.meta.get("model_about", {}) for run in (one, two))
    folder = Path(str(after.get("given")))
    file = folder / FIX_RECORD
    base = read_object(file).get("base", {}) if file.is_file() else {}
    return folder if base and base.get("fingerprint") == before.get("fingerprint") else None


def stored(before: Run, after: Run, judge: ByJudge = None) -> Comparison:
    """What the two folders say of the change, without a model: there is no figure of understanding
    unless `compare` has asked for AFTER's verdicts on BEFORE's images.

    Raises GapbenchError where the runs are not comparable, as `compare` does.
    """
    pair = pair_runs(before, after, judge)
    return _comparison(pair, cross(pair, None, silent), None, [], [], judge)


def pair_runs(
    before: Run, after: Run, judge: ByJudge, sides: tuple[str, str] = ("BEFORE", "AFTER")
) -> Pair:
    """Two runs over the images they share; `sides` is what they are called in `left_out`. Raises
    GapbenchError as `compare` does."""
    who = f"{before.path} and {after.path}"
    if before.path.resolve() == after.path.resolve():
        raise GapbenchError(f"{before.path} is given as BEFORE and as AFTER; give two runs")
    if before.mode != after.mode:
        raise GapbenchError(
            f"{who}: own verdicts are {before.mode} and {after.mode}; run both with the same "
            "--verdict, and choose it with --own if a run has both"
        )
    old, new = before.frame(judge), after.frame(judge)
    if not len(old) or not len(new):
        raise GapbenchError(f"{who}: one holds no image of its plan; run it again to finish it")
    reasons: list[str] = []
    kept = _shared_prompts(before, after, judge, sides, reasons)
    old, new = (frame[[key in kept for key in _keys(frame)]] for frame in (old, new))
    both = old[IMAGE].merge(new[IMAGE])
    for name, frame in zip(sides, (old, new), strict=True):
        if extra := len(frame) - len(both):
            images = counted(extra, "image")
            reasons.append(f"{images} of shared prompts are only in {name}")
    if not len(both):
        raise GapbenchError(
            f"{who} differ: {'; '.join(reasons)}; they share no image, so run AFTER as BEFORE was"
        )
    old, new = (both.merge(frame, on=IMAGE) for frame in (old, new))
    return Pair(before, after, old, new, reasons)


def _shared_prompts(
    before: Run, after: Run, judge: ByJudge, sides: tuple[str, str], reasons: list[str]
) -> set[tuple[str, str]]:
    """(task, prompt id) of what both runs ask and judge alike; says what they do not."""
    one, two = before.plan, after.plan
    for task in one.tasks.keys() & two.tasks.keys():
        if one.tasks[task] != two.tasks[task]:
            reasons.append(f"task {task} is of version {one.tasks[task]} and {two.tasks[task]}")
    asked: list[dict[tuple[str, str], tuple[Prompt, list[tuple[str, str]]]]] = []
    for plan in (one, two):
        judged = zip(plan.prompts, _judged(plan, judge), strict=True)
        asked.append({(p.task, p.id): (p, judges) for p, judges in judged})
    old, new = asked
    extra = (old.keys() - new.keys(), new.keys() - old.keys())
    for name, more in zip(sides, extra, strict=True):
        if more:
            prompts = counted(len(more), "prompt")
            reasons.append(f"only {name} has {prompts}, such as {'/'.join(min(more))}")
    shared = {key for key in old.keys() & new.keys() if one.tasks[key[0]] == two.tasks[key[0]]}
    changed = {key for key in shared if old[key][0] != new[key][0]}
    if changed:
        prompts = counted(len(changed), "prompt")
        reasons.append(f"the texts of {prompts} differ, such as {'/'.join(min(changed))}")
    kinds = set[str]()
    for key in shared - changed:
        first, second = old[key][1], new[key][1]
        a, b = (", ".join(name for name, _ in judges) or "none" for judges in (first, second))
        if first != second:
            kinds.add(f"{a} of two versions" if a == b else f"{a} and {b}")
    reasons += [f"the outside judge is {kind}" for kind in sorted(kinds)]
    return {key for key in shared - changed if old[key][1] == new[key][1]}


def _judged(plan: Plan, judge: ByJudge) -> list[list[tuple[str, str]]]:
    """(name, fingerprint) of each judge that counts, prompt by prompt, sorted."""
    named = (judge,) if isinstance(judge, str) else judge
    return [
        sorted(
            (name, plan.judges[name])
            for name in ([*asks][:1] if named is None else asks.keys() & set(named))
        )
        for asks in plan.asks
    ]


def _keys(frame: pd.DataFrame) -> list[tuple[str, str]]:
    return list(zip(frame["task"], frame["prompt"], strict=True))


def cross(pair: Pair, models: Sequence[str] | None, progress: Progress) -> list[float] | None:
    """AFTER's verdicts on BEFORE's images, row by row; None where own or outside ones lack. With
    `models` None no model is loaded: then None too where one of them is not stored."""
    plan = pair.after.plan
    if not plan.own or pair.old["outside"].isna().all():
        return None
    prompts = {(p.task, p.id): p for p in plan.prompts}
    asked = [
        (prompts[key], image) for key, image in zip(_keys(pair.old), pair.old["image"], strict=True)
    ]
    keys = [(image, plan.own_question(p), plan.own_fingerprint) for p, image in asked]
    there = pair.before.folder.verdicts()
    # What gives no questions was never asked by questions.
    asked = [each for each, key in zip(asked, keys, strict=True) if key[1]]
    if any(key[1] and key not in there for key in keys):
        if models is None:
            return None
        judge = OwnJudge(model_of(pair.after, models, "judge BEFORE's images"), MODES[plan.own])
        if judge.fingerprint != plan.own_fingerprint:
            raise GapbenchError(
                f"{pair.after.path}: its verdicts in words follow older rules of reading; run its "
                "`gapbench run` command again, so that they follow today's"
            )
        folder = pair.before.folder
        with folder.lock():
            failed = judge_images("verdicts of AFTER", judge, folder, asked, "auto", progress)
        judge.release()
        if failed:
            raise GapbenchError(
                f"{pair.after.path}: {failed.total()} verdicts on BEFORE's images failed, the "
                f"first: {next(iter(failed))}; run the same command again"
            )
        there = pair.before.folder.verdicts()
    verdicts = [there[key].verdict if key[1] else None for key in keys]
    return [float("nan") if verdict is None else float(verdict) for verdict in verdicts]


def _by_skill(pair: Pair, judge: ByJudge) -> list[Change]:
    """The changes by skill over the images that are compared; none where not both models were asked
    questions."""
    sides = [in_mode(run, "questions") for run in (pair.before, pair.after)]
    frames = [by_question(run, judge) for run in sides if run is not None]
    if len(frames) < 2 or not all(map(len, frames)):
        return []
    made = by_skill(*(frame.merge(pair.old[IMAGE]) for frame in frames))
    shown = [about_references(run, judge) for run in sides if run is not None]
    return adjusted(made + references_by_skill(*shown))


def _again(pair: Pair, judge: ByJudge) -> list[Way]:
    """What drawing again brings beside training, over the prompts that are compared; none where not
    both runs did."""
    frames = [attempts(run.plan, run.folder, judge) for run in (pair.before, pair.after)]
    if not all(map(len, frames)):
        return []
    shared = pair.old[["task", "prompt"]].drop_duplicates()
    return ways(*(frame.merge(shared) for frame in frames))


def _comparison(
    pair: Pair,
    crossed: list[float] | None,
    by: Literal["category", "tier", "task"] | None,
    further: list[Change],
    about: list[str],
    judge: ByJudge,
) -> Comparison:
    family = changes(pair.old, pair.new)
    if crossed is not None:
        family += understanding(pair.old, crossed)
    family = [change for change in family if pair.after.plan.own or change.images]
    family = adjusted(family + further)
    signs = {change.metric: change.verdict for change in family}
    drawn = {change.verdict for change in family if change.metric == "generation"}
    measured = {change.metric for change in family if change.images}
    missing = [name for name in ("generation", UNDERSTANDING.name) if name not in measured]
    if not pair.old["judge"].notna().any():
        verdict = "none: there is no outside judge"
    elif len(missing) == 2:
        verdict = "none: in one of the runs there is no verdict of the outside judge"
    elif drawn >= {1, -1}:
        verdict = "none: generation is better in one unit of the judges' scores, worse in another"
    else:
        verdict = WORDS[sum(drawn), signs.get(UNDERSTANDING.name, 0)]
        verdict += f" ({missing[0]} was not measured)" if missing else ""
    before, after = pair.before, pair.after
    notes = [f"WARNING: {run.path}: {what} failed the check: {why}"
             for run in (before, after) for what, why in run.checks().items()]  # fmt: skip
    again = [side for side, run in (("BEFORE", before), ("AFTER", after)) if run.plan.reflect]
    if len(again) == 1:
        notes.append(f"Only {again[0]} drew again (--reflect)")
    return Comparison(
        before=str(before.path),
        after=str(after.path),
        before_model=before.name,
        after_model=after.name,
        judges=sorted({str(name) for name in pair.old["judge"].dropna()}),
        own=after.mode,
        images=len(pair.old),
        prompts=len(set(_keys(pair.old))),
        left_out=pair.left_out,
        notes=[
            *(f"{run.path}: {run.unfinished}" for run in (before, after) if run.unfinished),
            *dict.fromkeys(run.footnote for run in (before, after) if run.footnote),
            *notes,
            *about,
        ],
        changes=family,
        by_level=adjusted(changes(pair.old, pair.new, by)) if by else [],
        by_skill=_by_skill(pair, judge),
        again=_again(pair, judge),
        win_rate=None if crossed is None else win_rate(pair.old, crossed),
        groups=None if crossed is None else groups(pair.old, crossed),
        gap_gain=gap_gain(pair.old, pair.new),
        worth_before=verification(pair.old),
        worth_after=verification(pair.new),
        is_fix=_fixed(before, after) is not None,
        verdict=verdict,
        worse=[change.metric for change in family if change.verdict < 0],
    )
