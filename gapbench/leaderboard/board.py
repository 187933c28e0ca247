"""The leaderboard, from results/ alone: Markdown for the repository, a page to look at."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, Literal

import pandas as pd

from gapbench.files import write_atomic
from gapbench.judges.own import MODES
from gapbench.leaderboard.skills import by_skill
from gapbench.leaderboard.submission import Submission, frame, rates_of
from gapbench.metrics.metric import METRICS, shown_in
from gapbench.metrics.ranking import standings
from gapbench.models.base import PAIR
from gapbench.pages.assets import asset, policy, template
from gapbench.report import questions
from gapbench.report.tables import cell
from gapbench.types import TIERS, GapbenchError, Rates, printable

REPORTED: Final = (
    "Percent, as Han et al., arXiv 2507.16663 reports them (means over a benchmark's categories); "
    "neither measured nor ranked here."
)
ABOUT: Final = (
    "Percent, with 95 % intervals over prompts and the counts behind each figure. Ranked by "
    "`unified`: images that the model draws right by the outside judge and accepts itself, minus "
    "mismatched pairs (`far`) that it accepts. A rank stands with its 95 % interval; models that "
    "share a rank (=) are not told apart by the same draws of prompts. Images that a model "
    "refused to draw count against its `unified` and in no other figure. `baseline` rows are the "
    "first model's images under verdicts that look at nothing: non-unification alone would be "
    "fooled by them, `unified` is not."
)
Kind = Literal["model", "baseline"]
Unit = tuple[str, ...]
"""A task as it was measured: name, version, digest of its prompts, own verdicts' judge, and each
outside judge followed by its fingerprint. Figures of equal units are comparable."""


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a board: texts, and for each column what the page sorts by."""

    kind: Kind
    cells: list[str]
    values: list[float | None]


@dataclass(frozen=True, slots=True)
class Board:
    """Submissions measured on the same tasks by the same judges, at one level."""

    title: str
    test: bool
    rows: list[Row]


@dataclass(frozen=True, slots=True)
class Skills:
    """What a submission's model draws and sees of a task, by skill: a row under `heads` each, and
    what warns of them."""

    title: str
    heads: Sequence[str]
    rows: list[list[str]]
    warning: str


def skills(entry: Submission) -> list[Skills]:
    """Of each task about whose images the submission has answers to questions."""
    if entry.answers is None:
        return []
    return [
        Skills(
            title=f"Question by question: {task}, if {' and '.join(sorted(judges))} is right",
            heads=("skill", *questions.HEADS, "in words"),
            rows=[
                [skill.name, *questions.cells(skill), skill.finding]
                for skill in (made.overall, *made.skills)
            ],
            warning=questions.warning(made),
        )
        for task, made in by_skill(entry.rows, entry.answers).items()
        for judges in [set(entry.card.tasks[task].judges.values())]
    ]


def titles() -> list[str]:
    """The heads of every board's columns."""
    return ["rank", "model", "unified", *(metric.title for metric in shown_in("board"))]


def is_current(entries: Sequence[Submission], file: Path) -> bool:
    """Whether a leaderboard.md is what submissions give."""
    return file.is_file() and file.read_bytes() == markdown(entries).encode()


def write(entries: Sequence[Submission], file: Path) -> None:
    """Write leaderboard.md, and beside it the page."""
    try:
        write_atomic(file, markdown(entries).encode())
        write_atomic(file.with_suffix(".html"), page(entries).encode())
    except OSError as error:
        raise GapbenchError(f"{file} cannot be written ({error})") from error


def boards(entries: Sequence[Submission]) -> list[Board]:
    """The boards of all submissions: each task and each set of tasks that somebody submitted, with
    everyone who has all of it; overall, and by tier where it has several. Test models apart."""
    made = []
    for test in (False, True):
        units = {s.card.name: _units(s) for s in entries if s.card.test_model is test}
        sets = {frozenset([unit]) for own in units.values() for unit in own.values()}
        sets |= {frozenset(own.values()) for own in units.values()}
        for chosen in sorted(sets, key=lambda units: (-len(units), sorted(units))):
            members = {
                s.card.name: s
                for s in entries
                if chosen <= set(units.get(s.card.name, {}).values())
            }
            made += _boards(chosen, members, test)
    return made


def _units(submission: Submission) -> dict[str, Unit]:
    card = submission.card
    return {
        name: (
            name,
            task.version,
            task.prompts,
            card.own,
            *(
                part
                for judge in sorted(set(task.judges.values()))
                for part in (judge, card.judges[judge])
            ),
        )
        for name, task in card.tasks.items()
    }


def _boards(chosen: frozenset[Unit], members: Mapping[str, Submission], test: bool) -> list[Board]:
    tasks = sorted(unit[0] for unit in chosen)
    frames = {
        name: frame(entry.rows[entry.rows["task"].isin(tasks)], entry.card.scales)
        for name, entry in members.items()
    }
    whole = ", ".join(f"{unit[0]} {unit[1]}" for unit in sorted(chosen))
    # The same judge with other weights or rules is another board, so its fingerprint is told.
    judges = sorted(
        f"{name} ({hashlib.sha256(fingerprint.encode()).hexdigest()[:8]})"
        for name, fingerprint in {
            pair for unit in chosen for pair in zip(unit[4::2], unit[5::2], strict=True)
        }
    )
    own = MODES[next(iter(chosen))[3]]
    title = f"{whole}; outside judge {', '.join(judges)}; own verdicts: {own}"
    tiers = [t for t in TIERS if any((images["tier"] == t).any() for images in frames.values())]
    levels = ["overall", *(tiers if len(tiers) > 1 else [])]
    figures = {name: rates_of(frame) for name, frame in frames.items()}

    @cache  # the same model is the best of most levels
    def beside(first: str) -> tuple[dict[str, pd.DataFrame], dict[str, list[Rates]]]:
        null = {f"{what}, on {first}": f for what, f in baselines(frames[first]).items()}
        return null, {name: rates_of(frame) for name, frame in null.items()}

    return [
        Board(f"{title}: {level}", test, _ranked(level, frames, figures, members, beside))
        for level in levels
    ]


def _ranked(
    level: str,
    frames: Mapping[str, pd.DataFrame],
    figures: Mapping[str, list[Rates]],
    members: Mapping[str, Submission],
    beside: Callable[[str], tuple[dict[str, pd.DataFrame], dict[str, list[Rates]]]],
) -> list[Row]:
    def part(frames: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
        return {n: f if level == "overall" else f[f["tier"] == level] for n, f in frames.items()}

    frames = part(frames)
    first = next(iter(standings(frames)), None)
    # Names of models have no blanks: nobody's is a baseline's.
    null, theirs = beside(first) if first else ({}, {})
    standing = standings({**frames, **part(null)}, unranked=list(null))
    figures = {**figures, **theirs}
    places = Counter(each.place for each in standing.values())
    rows = []
    for name in [*standing, *(name for name in frames if name not in standing)]:
        kind: Kind = "baseline" if name in null else "model"
        rank, unified = "baseline" if name in null else "n/a", "n/a"
        if mine := standing.get(name):
            low, value, high = (100 * v for v in (mine.low, mine.value, mine.high))
            unified = f"{value:.1f} [{low:.1f}, {high:.1f}]"
        if mine and mine.place:
            tie = "=" * (places[mine.place] > 1)
            rank = f"{mine.place}{tie} [{mine.best}, {mine.worst}]"
        there = [r for r in figures[name] if r.name == level and r.level in ("tier", "overall")]
        by_metric = {rate.metric: rate for rate in there}
        shown = [by_metric.get(metric.name) for metric in shown_in("board")]
        star = "*" * (name in members and members[name].card.pair)
        cells = [" ".join(cell(rate)) if rate else "n/a" for rate in shown]
        texts = [rank, name + star, unified, *cells]
        by = [mine.place, None, mine.value] if mine else [None, None, None]
        rows.append(Row(kind, texts, [*by, *(rate.value if rate else None for rate in shown)]))
    return rows


def baselines(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """A model's rows under verdicts that look at nothing; the coin falls by the image's digest."""

    def coin(what: str) -> pd.Series[float]:
        digests = [hashlib.sha256(f"{what} {image}".encode()).digest() for image in frame["image"]]
        return pd.Series([float(digest[0] & 1) for digest in digests], frame.index)

    def saying(own: float | pd.Series[float], crossed: float | pd.Series[float]) -> pd.DataFrame:
        made = frame.assign(own=own, mismatched=crossed)
        made["mismatched"] = made["mismatched"].where(made["mismatched_asked"].astype(bool))
        return made

    return {
        "accepts everything": saying(1.0, 1.0),
        "rejects everything": saying(0.0, 0.0),
        "tosses a coin": saying(coin("own"), coin("mismatched")),
    }


@cache
def published() -> tuple[list[str], list[list[str]]]:
    """The paper's figures as it reports them, in percent: titles, and a row a model and variant.
    Those of a benchmark are plain means over its categories, as the paper's are."""
    raw = pd.read_csv(Path(__file__).with_name("published.csv"), comment="#")
    metrics = ["generation", "non_unification"]
    means = raw.groupby(["model", "variant", "benchmark"], sort=False)[metrics].mean().unstack()
    benchmarks = list(dict.fromkeys(raw["benchmark"]))
    heads = [f"{b}: {METRICS[m].heading}" for b in benchmarks for m in metrics]
    rows = [
        ["reported", f"{model}, {variant}"]
        + [f"{means.loc[(model, variant), (m, b)]:.2f}" for b in benchmarks for m in metrics]
        for model, variant in means.index
    ]
    return ["rank", "model", *heads], rows


def markdown(entries: Sequence[Submission]) -> str:
    """leaderboard.md."""
    parts = [
        "# Leaderboard",
        ABOUT,
        "Written by `gapbench leaderboard` from `results/`; do not edit.",
    ]
    made = boards(entries)
    for test, title in ((False, "Models"), (True, "Test models")):
        mine = [board for board in made if board.test is test]
        parts.append(f"## {title}")
        if not mine:
            parts.append("None so far; [docs/submit.md](docs/submit.md) says how to enter.")
        for board in mine:
            parts += [
                f"### {_literal(board.title)}",
                _pipe(titles(), [row.cells for row in board.rows]),
            ]
    if any(s.card.pair for s in entries):
        parts.append(f"\\* {PAIR}")
    parts += ["## Reported elsewhere", REPORTED, _pipe(*published())]
    return "\n\n".join(parts) + "\n"


def _literal(text: str) -> str:
    """Words of a submission, for Markdown to show as they are: no link, no picture, no markup."""
    escaped = re.sub(r"[\\`*_\[\]<>|#&@]|(?<=:)//|(?<=www)\.", r"\\\g<0>", printable(text))
    return " ".join(escaped.split())


def _pipe(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    from tabulate import tabulate

    return tabulate(rows, heads, tablefmt="pipe", disable_numparse=True)


def page(entries: Sequence[Submission]) -> str:
    """The same as one HTML file that loads nothing, with filters and sorting."""
    pair = PAIR if any(s.card.pair for s in entries) else ""
    script, style = asset("leaderboard/board.js"), asset("pages/page.css", "leaderboard/board.css")
    heads, rows = published()
    return template("leaderboard/board.html").render(
        about=ABOUT.replace("`", ""), boards=boards(entries), titles=titles(), submissions=entries,
        reported=REPORTED, published_titles=heads, published=rows, script=script, style=style,
        policy=policy(script, style, "img-src data:"), pair=pair, skills=skills,
        about_skills=questions.ABOUT,
    )  # fmt: skip
