"""`gapbench report`: runs as one HTML file that needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from markupsafe import Markup

from gapbench.files import write_atomic
from gapbench.metrics.calibration import error, reliability
from gapbench.metrics.metric import METRICS, shown_in
from gapbench.pages.assets import asset, policy, template
from gapbench.pages.parts import figure
from gapbench.report import tables
from gapbench.report.gallery import MOST, as_json, gallery, thumbnails
from gapbench.report.plots import Bar, Bubble, bars, bubbles, curves
from gapbench.report.thresholds import threshold_figures
from gapbench.runs.run import Run
from gapbench.types import PERCENT, GapbenchError, Rates

if TYPE_CHECKING:
    import pandas as pd

MOST_RUNS: Final = 12


def write_report(runs: Sequence[Run], out: Path, judge: str | None = None) -> None:
    """Write a report of one run or several as one file; pictures in full are linked from there.

    `judge` picks the outside judge that figures are computed against, each task's first by default.
    With two runs, the first is before and the second after. Raises GapbenchError where a run has no
    image or no such judge, or the file cannot be written; then there is no file, or the old one.
    """
    if not 1 <= len(runs) <= MOST_RUNS:
        raise GapbenchError(f"a report is of 1 to {MOST_RUNS} runs, not {len(runs)}")
    if len({run.path.resolve() for run in runs}) < len(runs):
        raise GapbenchError("a run is given twice; give each once")
    if not out.parent.is_dir() or out.is_dir():
        raise GapbenchError(f"--out {out}: give a file in a folder that exists")
    frames = [run.frame(judge) for run in runs]
    for run, frame in zip(runs, frames, strict=True):
        if not len(frame):
            raise GapbenchError(f"{run.path} holds no image of its plan; run it again to finish it")
    names = _names(runs)
    shown = gallery(runs, names, out.parent, judge)
    script, style = asset("report/page.js"), asset("pages/page.css")
    with closing(thumbnails(runs, shown)) as small:
        page = template("report/page.html").generate(
            title=" and ".join(names),
            script=script,
            style=style,
            policy=policy(script, style, "img-src data: 'self' file:"),
            runs=[_about(run, name) for run, name in zip(runs, names, strict=True)],
            judge=judge,
            **_figures(runs, names, frames, judge),
            pair=len(runs) == 2,
            shown=shown,
            most=MOST,
            data=Markup(as_json(shown.data)),  # noqa: S704 (as_json escapes)
            thumbnails=map(Markup, small),
        )
        try:
            write_atomic(out, (part.encode("utf-8", "backslashreplace") for part in page))
        except OSError as problem:
            raise GapbenchError(f"{out} cannot be written: {problem}") from problem


def _names(runs: Sequence[Run]) -> list[str]:
    """What the runs are called: their models, or their folders where models repeat."""
    models = [run.name for run in runs]
    folders = [run.path.resolve().name for run in runs]
    names = models if len(set(models)) == len(runs) else folders
    if len(set(names)) < len(runs):
        names = [f"{name} ({number})" for number, name in enumerate(names, 1)]
    if len(runs) == 2:
        names = [f"{when}: {name}" for when, name in zip(("before", "after"), names, strict=True)]
    return names


def _about(run: Run, name: str) -> dict[str, Any]:
    about = run.folder.meta.get("model_about", {})
    facts = {
        "folder": str(run.path),
        "tasks": ", ".join(f"{task} {version}" for task, version in run.plan.tasks.items()),
        "images": f"{len(run.plan.items())} of {len(run.plan.prompts)} prompts",
        "own verdicts": run.mode,
        "outside judges": ", ".join(run.judges()) or "none",
        "mismatched pairs": run.plan.own and run.plan.mismatched,
        "recipe": ", ".join(f"{k} {v}" for k, v in about.get("recipe", {}).items()),
        "seed": str(run.plan.seed),
        "fingerprint": str(about.get("fingerprint", ""))[:16],
        "started": str(run.folder.meta.get("started", "")),
    }
    return {
        "name": name,
        "facts": {key: value for key, value in facts.items() if value},
        "footnote": run.footnote,
        "warnings": [
            *([run.unfinished] if run.unfinished else []),
            *(f"{what} failed the check: {why}" for what, why in run.checks().items()),
            *(note.removeprefix("WARNING: ") for note in run.notes()),
        ],
    }


def _figures(
    runs: Sequence[Run], names: list[str], frames: Sequence[pd.DataFrame], judge: str | None
) -> dict[str, Any]:
    """The tables and plots of the page, by the names that the template knows them by."""
    rates = [run.rates(judge) for run in runs]
    figures = [_difficulty(names, rates), _weak(runs, names, judge, rates)]
    if len(runs) == 2:
        figures.append(_before_after(names, rates))
    figures.append(_calibration(names, frames, rates))
    figures += threshold_figures(runs, names, frames)
    agreed = [
        [name, f"{first} and {second}", tables.agreement(two)]
        for run, name in zip(runs, names, strict=True)
        for first, second, two in run.agreements()
    ]
    corrected = [
        [name, *tables.corrected(rate)]
        for run, name in zip(runs, names, strict=True)
        for rate in run.corrected(judge)
    ]
    return {
        "headline": _headline(names, rates, ("overall", "tier", "task")),
        "categories": _headline(names, rates, ("category",)),
        "figures": figures,
        "overalls": [
            f"{name}: {line}" if len(runs) > 1 else line
            for name, mine in zip(names, rates, strict=True)
            for line in tables.overall_lines(mine)
        ],
        "scores": list(dict.fromkeys(filter(None, [tables.about_scores(r.plan) for r in runs]))),
        "agreement": (["run", "judges", "how far they agree"], agreed),
        "corrected": (["run", "%", *tables.CORRECTED], corrected),
        "about_corrected": tables.ABOUT_CORRECTED,
    }


def _headline(names: list[str], rates: list[list[Rates]], levels: tuple[str, ...]) -> Any:
    metrics = shown_in("tables")
    rows: list[list[Any]] = []
    for level in levels:
        by_name: dict[str, list[Any]] = {}
        for name, mine in zip(names, rates, strict=True):
            for (at, place), row in tables.by_place(mine).items():
                if at == level:
                    cells = [tables.cell(row[m.name]) if m.name in row else "n/a" for m in metrics]
                    by_name.setdefault(place, []).append([place, name, *cells])
        rows += chain.from_iterable(by_name.values())
    return ["%", "run", *(metric.title for metric in metrics)], rows


def _difficulty(names: list[str], rates: list[list[Rates]]) -> dict[str, Any]:
    gap_head, weak_head = (METRICS[m].heading for m in ("non_unification", "weak_generation"))
    cells = [{(r.name, r.metric): r for r in mine if r.level == "category"} for mine in rates]
    places = list(dict.fromkeys(place for mine in cells for place, _ in mine))
    shown, rows = [], []
    for row, (name, mine) in enumerate(zip(names, cells, strict=True)):
        for column, place in enumerate(places):
            gap, weak = mine.get((place, "non_unification")), mine.get((place, "weak_generation"))
            if gap is None:
                continue
            if gap.value is not None:
                shown.append(Bubble(column, row, gap.value, weak.value if weak else None))
            rows.append([place, name, tables.cell(gap), tables.cell(weak) if weak else "n/a"])
    several = len({place.partition("/")[0] for place in places}) > 1
    ticks = places if several else [place.partition("/")[2] for place in places]
    return figure(
        "difficulty",
        "Where the gap is",
        "A bubble for each category: its area is the share of images that the model itself rejects "
        f"({gap_head}), its colour the share of those that the outside judge rejects too "
        f"({weak_head}); hollow: no judge said. Categories run from easy to hard.",
        bubbles(ticks, names, shown, gap_head, weak_head) if shown else None,
        (["category", "run", gap_head, weak_head], rows),
    )


def _weak(
    runs: Sequence[Run], names: list[str], judge: str | None, rates: list[list[Rates]]
) -> dict[str, Any]:
    judges = list(dict.fromkeys(each for run in runs for each in run.judges()))
    by_judge: dict[str, list[Rates | None]] = {}
    if judge is None and any(len(set(run.plan.judges)) > 1 for run in runs):
        by_judge["each task's first"] = [_overall(mine, "weak_generation") for mine in rates]
    for each in judges:
        by_judge[each] = [
            _overall(run.rates(each), "weak_generation") if each in run.judges() else None
            for run in runs
        ]
    rows = [
        [who, name, tables.cell(rate)]
        for who, mine in by_judge.items()
        for name, rate in zip(names, mine, strict=True)
        if rate is not None
    ]
    series = [[_bar(mine[place]) for mine in by_judge.values()] for place in range(len(runs))]
    return figure(
        "weak",
        "Weak generation by judge",
        "Of the images that the model itself rejects, the share that an outside judge rejects too, "
        "overall. Above half, the gap comes from drawing rather than from recognising. A judge "
        "counts the images that it was asked about.",
        bars(list(by_judge), names, series) if rows else None,
        (["judge", "run", "weak generation"], rows),
    )


def _before_after(names: list[str], rates: list[list[Rates]]) -> dict[str, Any]:
    metrics = shown_in("tables")
    rows = []
    for metric in metrics:
        both = [_overall(mine, metric.name) for mine in rates]
        rows.append([metric.title, *(tables.cell(rate) if rate else "n/a" for rate in both)])
    units = {r.metric: r.unit for mine in rates for r in mine if r.level == "overall"}
    shares = [metric for metric in metrics if units.get(metric.name) == PERCENT]
    series = [[_bar(_overall(mine, metric.name)) for metric in shares] for mine in rates]
    groups = [metric.heading.replace(" ", "\n") for metric in shares]
    return figure(
        "before-after",
        "Before and after",
        "Overall figures with each run's own interval. Intervals that overlap may still differ: "
        "gapbench compare tests the change image by image.",
        bars(groups, names, series),
        (["%", *names], rows),
    )


def _calibration(
    names: list[str], frames: Sequence[pd.DataFrame], rates: list[list[Rates]]
) -> dict[str, Any]:
    bins = [reliability(frame) for frame in frames]
    points = [[(b.expected, Bar(b.value, b.low, b.high)) for b in mine] for mine in bins]
    rows: list[list[Any]] = []
    for name, mine, all_rates in zip(names, bins, rates, strict=True):
        for b in mine:
            seen = f"{100 * b.value:.1f} [{100 * b.low:.1f}, {100 * b.high:.1f}]"
            rows.append([name, f"{100 * b.expected:.1f}", (seen, f"({b.images} images)")])
        gap = error(mine)
        if gap is not None:
            rows.append([name, "expected calibration error", f"{100 * gap:.1f}"])
        fooled = _overall(all_rates, "mismatch_acceptance")
        if fooled is not None:
            rows.append([name, "accepts mismatched pairs", tables.cell(fooled)])
    return figure(
        "calibration",
        "Can the model's own verdict be believed",
        "How often the outside judge accepts the images that the model gives a probability, in ten "
        "bins; a model that knows itself lies on the dotted line. Below: how often it accepts an "
        "image held against another prompt of its category, which no judge should.",
        curves(names, points) if any(bins) else None,
        (["run", "the model's own probability (%)", "the outside judge accepts (%)"], rows),
    )


def _overall(rates: Sequence[Rates], metric: str) -> Rates | None:
    return next((r for r in rates if r.level == "overall" and r.metric == metric), None)


def _bar(rate: Rates | None) -> Bar:
    return Bar(rate.value, rate.low, rate.high) if rate else Bar(None, None, None)
