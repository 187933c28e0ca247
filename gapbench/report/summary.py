"""A run's tables on the terminal, with what a reader has to know beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from gapbench.judges.own import NAMES
from gapbench.report import questions, reflection, tables
from gapbench.report import verification as worth
from gapbench.runs.frame import ByJudge, undecided_in_words
from gapbench.runs.questions import in_mode, of_run, scores
from gapbench.types import counted
from gapbench.verdict import mass_note

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from gapbench.runs.run import Run

ABOUT: Final = ("Mismatched pairs: ", "Own verdicts: ")
"""How notes start that explain a table and warn of nothing; they stand below the whole one."""


ADD: Final = (
    "`gapbench judge RUN --judge vlm-list` adds answers to lists of questions (docs/questions.md "
    "says who answers which)."
)


def show_run(run: Run, named: Sequence[str], screen: Console, verbose: bool = False) -> None:
    """Print a run's figures against the outside judges that are named, or against all of them where
    none is, and against the majority of several; `verbose` adds their counts."""
    plan, judges = run.plan, _judges(run, named)
    panel = next((name for name in judges if isinstance(name, tuple)), ())
    rates = {name: run.rates(name) for name in judges}  # one that is not there is told first
    _head(run, screen)
    screen.print("Tasks, tiers and overall are means over categories.")
    screen.print(
        "Better is higher for generation and own verdict right, lower for false positive and "
        "accepts mismatched."
    )
    for name, figures in rates.items():
        screen.print(f"Outside judge: {run.called(name)}\n")
        tables.show(figures, screen, verbose)
        if not verbose and any(rate.abstained for rate in figures):
            screen.print("Images without a verdict are left out; --verbose counts them.")
    if about := tables.about_scores(plan):
        screen.print(about)
    if run.footnote:
        screen.print(run.footnote)
    for first, second, agreed in run.agreements(panel):
        screen.print(f"{first} and {second} {tables.agreement(agreed)}")
    corrected = {name: run.corrected(name) for name in judges}
    for name in judges:
        worth.show(run.verification(name), run.called(name), screen)
        people = next(iter(run.people_judges()), "")
        tables.show_corrected(corrected[name], run.called(name), people, screen)
        questions.show_scores(scores(run, name), run.called(name), screen)
        asked = of_run(run, name)
        questions.show(asked, run.called(name), screen)
        if asked is None and in_mode(run, "questions"):
            screen.print(f"No table of questions: no outside judge answered them. {ADD}\n")
        reflection.show(run.reflection(name), run.called(name), screen)
    if any(corrected.values()):
        screen.print(tables.ABOUT_CORRECTED)
    _warn(run, [*run.notes(), *_notes(run, judges)], screen)


def show_overall(run: Run, screen: Console) -> None:
    """Print what a run came to in a few lines: the overall figures, and what was wrong."""
    _head(run, screen)
    for name in _judges(run, ()):
        screen.print(f"Outside judge: {run.called(name)}\n")
        tables.show_overall(run.rates(name), screen)
        screen.print()
    if run.footnote:
        screen.print(run.footnote)
    notes = [*run.notes(), *_notes(run, _judges(run, ()))]
    _warn(run, [note for note in notes if not note.startswith(ABOUT)], screen)


def _judges(run: Run, named: Sequence[str]) -> list[ByJudge]:
    """The outside judges that tables are of, and the majority of several that are no people or are
    named; None stands for each task's own."""
    several = any(len(asks) > 1 for asks in run.plan.asks)
    judges: list[ByJudge] = [*named] if named else [*run.plan.judges] if several else [None]
    people = () if named else run.people_judges()
    panel = tuple(name for name in judges if isinstance(name, str) and name not in people)
    if len(panel) > 1:
        judges.append(panel)
    if not named:
        judges += [name for name in run.judges() if name not in run.plan.judges]
    return judges


def _head(run: Run, screen: Console) -> None:
    plan = run.plan
    versions = ", ".join(f"{name} {version}" for name, version in plan.tasks.items())
    if run.unfinished:
        screen.print(run.unfinished, style="bold red")
    screen.print(
        f"{run.name} on {versions}: {counted(len(plan.items()), 'image')} of "
        f"{counted(plan.n_prompts(), 'prompt')}, own verdicts: {run.mode}"
    )
    screen.print("Percent unless a unit is given, with 95 % intervals over prompts.")


def _warn(run: Run, notes: list[str], screen: Console) -> None:
    for note in notes:
        screen.print(note, style="bold red" * note.startswith("WARNING"))
    for name, warning in run.checks().items():
        screen.print(f"WARNING: {name} failed the check: {warning}", style="bold red")


def _notes(run: Run, judges: Sequence[ByJudge]) -> list[str]:
    """What the own verdicts' probabilities say of them, and which verdicts are mostly missing."""
    plan = run.plan
    own = run.own_verdicts()
    notes = [note for note in [mass_note(v.mass for v in own)] if note]
    words = run.in_words()
    if words and plan.own == NAMES["logits"]:
        notes.append(
            f"{words} of {len(own)} own verdicts are text, read from the words of a reply: no "
            "log-probabilities of 0 and 1 came with it."
        )
    frame = run.frame()
    if plan.own:
        notes += _abstentions("own verdicts", frame, "own")
    for name in judges:
        of_judge = frame if name is None else run.frame(name)
        if isinstance(name, tuple):
            silent = undecided_in_words(of_judge)
            notes += [f"No majority on {silent}"] if silent else []
        else:
            notes += _abstentions(f"verdicts of {run.called(name)}", of_judge, "outside")
    return notes


def _abstentions(who: str, frame: pd.DataFrame, side: str) -> list[str]:
    """A line where more than half of the verdicts were abstentions, with the main reason."""
    if not len(frame):
        return []
    made = frame[frame[f"{side}_asked"]]
    # A score without a verdict is no abstention: its judge gives none.
    abstained = made[side].isna() & ~((side == "outside") & made["score"].notna())
    reasons = Counter(made.loc[abstained, f"{side}_reason"].dropna())
    if 2 * reasons.total() <= len(made):
        return []
    [(reason, count)] = reasons.most_common(1)
    return [
        f"{reasons.total()} of {len(made)} {who} are abstentions; the commonest reason, "
        f"{count} times, is: {reason}"
    ]
