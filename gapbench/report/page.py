"""`gapbench report`: runs as one HTML file that needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from glob import escape
from itertools import chain
from pathlib import Path
from typing import Any, Final

from markupsafe import Markup

from gapbench.comparison import words
from gapbench.comparison.compare import Comparison, stored
from gapbench.comparison.judges import Judged, under_judges
from gapbench.files import sweep, write_atomic
from gapbench.metrics.metric import shown_in
from gapbench.pages.assets import asset, policy, template
from gapbench.report import tables
from gapbench.report.export import Table, without, write_figures
from gapbench.report.figures import figures as all_figures
from gapbench.report.finding import finding
from gapbench.report.gallery import MOST, as_json, gallery, thumbnails
from gapbench.report.judges import by_name, judge_tables
from gapbench.report.latex import Cell
from gapbench.runs.frame import ByJudge
from gapbench.runs.questions import of_run
from gapbench.runs.run import Run
from gapbench.types import GapbenchError, Rates

MOST_RUNS: Final = 12


def write_report(
    runs: Sequence[Run], out: Path, judges: Sequence[str] = (), figures: Path | None = None
) -> None:
    """Write a report of one run or several as one file; pictures in full are linked from there.

    `judges` are the outside judges that figures are computed against, each task's first by default;
    of several, the page's figures are by their majority, and it says what holds under each.
    With two runs, the first is before and the second after. `figures` is a folder that gets every
    figure as files for a paper. Raises GapbenchError where a run has no image or no such judge, or
    a file cannot be written; then there is no report, or the old one.
    """
    if not 1 <= len(runs) <= MOST_RUNS:
        raise GapbenchError(f"a report is of 1 to {MOST_RUNS} runs, not {len(runs)}")
    if len({run.path.resolve() for run in runs}) < len(runs):
        raise GapbenchError("a run is given twice; give each once")
    if not out.parent.is_dir() or out.is_dir():
        raise GapbenchError(f"--out {out}: give a file in a folder that exists")
    judge: ByJudge = tuple(judges) if len(judges) > 1 else next(iter(judges), None)
    frames = [run.frame(judge) for run in runs]
    for run, frame in zip(runs, frames, strict=True):
        if not len(frame):
            raise GapbenchError(f"{run.path} holds no image of its plan; run it again to finish it")
    names = _names(runs)
    rates = [run.rates(judge) for run in runs]
    change, judged, incomparable = _change(runs, judges)
    asked = [of_run(run, judge) for run in runs]
    tried = [run.reflection(judge) for run in runs]
    made = all_figures(runs, names, frames, rates, asked, tried, change)
    others = _tables(runs, names, rates, judges)
    if len(judges) > 1:
        others |= judge_tables(runs, names, judges, judged)
    if len(runs) == 1:  # its name in every row says nothing
        made = [replace(figure, table=without(figure.table, "run")) for figure in made]
        others = {name: without(table, "run") for name, table in others.items()}
    if figures is not None:
        write_figures(made, others, dict(zip(names, rates, strict=True)), figures)
    shown = gallery(runs, names, out.parent, next(iter(judges), None))
    by = runs[0].called(judge) if judge else None
    script, style = asset("report/page.js"), asset("pages/page.css", "report/gallery.css")
    with closing(thumbnails(runs, shown)) as small:
        page = template("report/page.html").generate(
            title=" and ".join(names),
            script=script,
            style=style,
            policy=policy(script, style, "img-src data: 'self' file:"),
            runs=[_about(run, name) for run, name in zip(runs, names, strict=True)],
            judge=by,
            judges=judges,
            verdict=change.verdict if change else None,
            findings=[words.finding(change)]
            if change
            else [finding(run, mine, by) for run, mine in zip(runs, rates, strict=True)],
            incomparable=incomparable,
            figures=made,
            tables=others,
            overalls=[
                f"{name}: {line}" if len(runs) > 1 else line
                for name, mine in zip(names, rates, strict=True)
                for line in tables.overall_lines(mine)
            ],
            scores=list(
                dict.fromkeys(filter(None, [tables.about_scores(run.plan) for run in runs]))
            ),
            about_corrected=tables.ABOUT_CORRECTED,
            pair=len(runs) == 2,
            shown=shown,
            most=MOST,
            data=Markup(as_json(shown.data)),  # noqa: S704 (as_json escapes)
            thumbnails=map(Markup, small),
        )
        sweep(out.parent.glob(f"{escape(out.name)}.*.part"))
        try:
            write_atomic(out, (part.encode("utf-8", "backslashreplace") for part in page))
        except OSError as problem:
            raise GapbenchError(f"{out} cannot be written: {problem}") from problem


def _change(
    runs: Sequence[Run], judges: Sequence[str]
) -> tuple[Comparison | None, Judged | None, str]:
    """What changed between two runs, also under each of several judges, or why that cannot be
    said."""
    if len(runs) != 2:
        return None, None, ""

    def measure(*, judge: ByJudge) -> list[Comparison]:
        return [stored(runs[0], runs[1], judge)]

    try:
        if len(judges) < 2:
            return measure(judge=next(iter(judges), None))[0], None, ""
        [judged] = under_judges(measure, judges)
    except GapbenchError as problem:
        return None, None, str(problem)
    return judged.majority, judged, ""


def _names(runs: Sequence[Run]) -> list[str]:
    """What the runs are called: their models, or their folders where models repeat."""
    models = [run.name for run in runs]
    folders = [run.path.resolve().name for run in runs]
    names = models if len(set(models)) == len(runs) else folders
    if len(set(names)) < len(runs):
        names = [f"{name} ({number})" for number, name in enumerate(names, 1)]
    if len(runs) == 2:
        names = [f"{name} ({when})" for when, name in zip(("before", "after"), names, strict=True)]
    return names


def _about(run: Run, name: str) -> dict[str, Any]:
    notes = run.notes()
    warnings = [note for note in notes if note.startswith("WARNING: ")]
    about = run.folder.meta.get("model_about", {})
    facts = {
        "folder": str(run.path),
        "tasks": ", ".join(f"{task} {version}" for task, version in run.plan.tasks.items()),
        "images": f"{len(run.plan.items())} of {run.plan.n_prompts()} prompts",
        "own verdicts": run.mode,
        "outside judges": ", ".join(run.judges()) or "none",
        "mismatched pairs": run.plan.own and run.plan.mismatched,
        "recipe": ", ".join(f"{k} {v}" for k, v in about.get("recipe", {}).items()),
        "seed": str(run.plan.seed),
        "fingerprint": str(about.get("fingerprint", ""))[:16],
        "started": str(run.folder.meta.get("started", "")),
        "notes": " ".join(note for note in notes if note not in warnings),
    }
    return {
        "name": name,
        "facts": {key: value for key, value in facts.items() if value},
        "footnote": run.footnote,
        "warnings": [
            *([run.unfinished] if run.unfinished else []),
            *(f"{what} failed the check: {why}" for what, why in run.checks().items()),
            *(note.removeprefix("WARNING: ") for note in warnings),
        ],
    }


def _tables(
    runs: Sequence[Run], names: Sequence[str], rates: Sequence[list[Rates]], judges: Sequence[str]
) -> dict[str, Table]:
    """The tables without a plot, by the names of their files."""
    of, panel = by_name(judges), tuple(judges)
    named = ["judge"] * (len(of) > 1)
    several = len({task for run in runs for task in run.plan.tasks}) > 1  # one is the whole
    return {
        "headline": _headline(names, rates, ("overall", "tier", *(["task"] if several else []))),
        "categories": _headline(names, rates, ("category",)),
        "agreement": (
            ["run", "judges", "how far they agree"],
            [
                [name, f"{first} and {second}", tables.agreement(two)]
                for run, name in zip(runs, names, strict=True)
                for first, second, two in run.agreements(panel)
            ],
        ),
        "corrected": (
            ["run", *named, "%", *tables.CORRECTED],
            [
                [name, *[called] * len(named), *tables.corrected(rate)]
                for run, name in zip(runs, names, strict=True)
                for called, judge in of.items()
                for rate in run.corrected(judge)
            ],
        ),
    }


def _headline(names: Sequence[str], rates: Sequence[list[Rates]], levels: tuple[str, ...]) -> Table:
    metrics = shown_in("tables")
    rows: list[list[Cell]] = []
    for level in levels:
        by_name: dict[str, list[list[Cell]]] = {}
        for name, mine in zip(names, rates, strict=True):
            for (at, place), row in tables.by_place(mine).items():
                if at == level:
                    cells = [tables.cell(row[m.name]) if m.name in row else "n/a" for m in metrics]
                    by_name.setdefault(place, []).append([place, name, *cells])
        rows += chain.from_iterable(by_name.values())
    return ["%", "run", *(metric.title for metric in metrics)], rows
