"""The gap question by question, in words, tables and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from gapbench.comparison.words import difference
from gapbench.metrics.agreement import Agreement
from gapbench.metrics.metric import METRICS
from gapbench.metrics.questions import Questions, Scored, Skill
from gapbench.metrics.verification import points
from gapbench.report.export import Figure
from gapbench.report.latex import Cell
from gapbench.report.plots import Point, intervals
from gapbench.report.tables import agreement, bounds, estimate, print_by_threes
from gapbench.verdict import LEAST_MASS, mass_note

if TYPE_CHECKING:
    from rich.console import Console

HEADS: Final = ("draws", "sees", "sees less draws", "kappa", "both right", "questions")
REFERENCES: Final = ("sees references", "kappa on references", "questions on references")
SHOWN: Final = 0.5
"""Share of the answers about prompts' own reference images that show what the prompts ask for."""
ABOUT: Final = (
    "draws: the judge's answer about the image is the right one. sees: the model's answer is the "
    "judge's. kappa: the same beyond chance, which is what both would reach at their own rates of "
    "right answers. both right: what is left of the agreement if answers that both have wrong "
    "count for nothing."
)
ABOUT_REFERENCES: Final = (
    " On references: as sees and kappa, of the same questions about reference images, a prompt's "
    "own and that of another prompt of its category."
)


def show(asked: Questions | None, judge: str, screen: Console) -> None:
    """Print what a model draws and sees by skill against an outside judge; nothing without
    answers."""
    if asked is None:
        return
    screen.print(f"Question by question, if {judge} is right (percent, points, kappa):\n")
    heads = _heads([asked])
    rows = [(skill.name, _row(skill, heads)) for skill in (asked.overall, *asked.skills)]
    print_by_threes("skill", heads, rows, screen)
    for warned in warnings(asked):
        screen.print(warned, style="bold red")
    for finding in dict.fromkeys(skill.finding for skill in asked.skills):
        skills = ", ".join(skill.name for skill in asked.skills if skill.finding == finding)
        screen.print(f"{finding.capitalize()}: {skills}.")
    if asked.single is not None:
        screen.print(f"Verdicts of one question and by questions {agreement(asked.single.agrees)}.")
        screen.print(f"By questions in place of one, in points: {_changes(asked)}.")
    screen.print()


def show_scores(scores: Sequence[Scored], judge: str, screen: Console) -> None:
    """Print a list judge's mean probability of the right answer by skill; nothing without one."""
    from rich.table import Table
    from rich.text import Text

    if not scores:
        return
    screen.print(f"The mean probability of the right answer by skill, by {judge} (percent):\n")
    table = Table("task", "skill", box=None, pad_edge=False, header_style="bold")
    for head in ("score", "questions"):
        table.add_column(head, justify="right")
    for each in scores:
        cells = (each.task, each.skill, estimate(each.score), f"{each.questions:,}")
        table.add_row(*map(Text, cells))
    screen.print(table)
    screen.print()


def figures(names: Sequence[str], several: Sequence[Questions | None]) -> list[Figure]:
    """The report's section; none without answers."""
    there = [(name, asked) for name, asked in zip(names, several, strict=True) if asked]
    if not there:
        return []
    places = list(dict.fromkeys(skill.name for _, asked in there for skill in asked.skills))
    shown = [
        each
        for place in places
        for name, asked in there
        for skill in asked.skills
        if skill.name == place
        for each in _points(skill, f"{name}: " * (len(there) > 1))
    ]
    heads = _heads([asked for _, asked in there])
    rows: list[list[Cell]] = [
        [skill.name, name, skill.finding, *_row(skill, heads)]
        for name, asked in there
        for skill in (asked.overall, *asked.skills)
    ]
    about = ABOUT_REFERENCES * (len(heads) > len(HEADS))
    warned = [f"{name}: {told}" for name, asked in there for told in warnings(asked)]
    single = [
        f" Of {name}, verdicts of one question and by questions {agreement(asked.single.agrees)}; "
        f"by questions in place of one, in points: {_changes(asked)}."
        for name, asked in there
        if asked.single is not None
    ]
    return [
        Figure(
            name="skills",
            title="Which skills does the model draw, and which does it see?",
            about="Answers to questions about each image, in percent, with 95 % intervals over "
            f"prompts. {ABOUT}{about}{''.join(single)}",
            warned=warned,
            table=(["skill", "run", "in words", *heads], rows),
            columns=("skill", "series", "questions (%)"),
            points=shown,
            plot=intervals(shown, "questions (%)") if shown else None,
        )
    ]


def warning(asked: Questions) -> str:
    """What to say of a model that would mostly have said something else."""
    rare = asked.mass is not None and asked.mass < LEAST_MASS
    return (mass_note([asked.mass]) or "") if rare else ""


def warnings(asked: Questions) -> list[str]:
    """The same, and what to say where the judge does not find what reference images should show."""
    told = [made] if (made := warning(asked)) else []
    if asked.shown is not None and asked.shown < SHOWN:
        told.append(
            f"WARNING: of the outside judge's answers about prompts' own reference images, only "
            f"{100 * asked.shown:.1f} % are those that the prompts ask for: check these images, or "
            "take another judge."
        )
    return told


def _heads(several: Sequence[Questions]) -> tuple[str, ...]:
    """What tables of these have: of reference images, where one of them was asked about some."""
    return (*HEADS, *(REFERENCES if any(each.overall.references for each in several) else ()))


def _points(skill: Skill, run: str) -> list[Point]:
    seen, there, made = skill.agrees, skill.references, []
    ends = [
        ("draws", skill.questions, skill.draws),
        ("sees", skill.questions, (seen.raw, seen.raw_low, seen.raw_high)),
    ]
    if there is not None:
        ends.append(("sees references", there.n, (there.raw, there.raw_low, there.raw_high)))
    for name, count, values in ends:
        match values:
            case (float(value), float(low), float(high)):
                shares = 100 * value, 100 * low, 100 * high
                made.append(Point(skill.name, run + name, *shares, count))
    return made


def cells(skill: Skill) -> list[str]:
    """Under HEADS."""
    raw, kappa = _agreed(skill.agrees)
    return [
        estimate(skill.draws),
        raw,
        "n/a" if skill.more is None else points(skill.more),
        kappa,
        estimate(skill.both),
        _counted(skill.questions, skill.abstained),
    ]


def _row(skill: Skill, heads: Sequence[str]) -> list[str]:
    """Under these heads: HEADS and, where they are more, REFERENCES."""
    there = skill.references
    more = ["n/a", "n/a", "0"]
    if there is not None:
        more = [*_agreed(there), _counted(there.n, there.abstained)]
    return [*cells(skill), *more][: len(heads)]


def _agreed(seen: Agreement) -> tuple[str, str]:
    """The raw share and kappa."""
    raw = "n/a" if seen.raw is None else f"{100 * seen.raw:.1f}"
    kappa = "n/a" if seen.kappa is None else f"{seen.kappa:.2f}"
    return (
        raw + bounds(seen.raw_low, seen.raw_high, 100, 1),
        kappa + bounds(seen.kappa_low, seen.kappa_high, 1, 2),
    )


def _counted(questions: int, abstained: int) -> str:
    return f"{questions:,}" + f" ({abstained:,} abstained)" * bool(abstained)


def _changes(asked: Questions) -> str:
    made = asked.single.changes if asked.single else []
    return "; ".join(f"{METRICS[change.metric].heading} {difference(change)}" for change in made)
