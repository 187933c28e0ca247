"""The commands `gapbench compare`, `gapbench power` and `gapbench parity`."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from gapbench.cli.options import Form, ReportTo, RunPath, SeveralJudges
from gapbench.cli.terminal import QUIET, console
from gapbench.fetch.libraries import go_offline, quiet
from gapbench.runs.settings import (
    MODEL,
    Dtype,
    Judges,
    Limit,
    Offline,
    Part,
    RunSettings,
    device_name,
    names,
    pairs,
)
from gapbench.types import GapbenchError


def compare(
    before: Annotated[Path, typer.Argument(help="A run folder.", metavar="BEFORE")],
    afters: Annotated[list[Path], typer.Argument(help="Run folders with prompts and seeds of BEFORE.", metavar="AFTER")],
    by: Annotated[Literal["category", "tier", "task"] | None, typer.Option(help="Also print the figures of each category, tier or task.")] = None,
    judge: SeveralJudges = (),
    model: Annotated[list[str] | None, typer.Option(help="Where AFTER's model is now, if you moved it. Can be repeated.")] = None,
    lm_eval: Annotated[Sequence[str] | None, typer.Option(parser=names, help="Tasks of lm-eval to evaluate both models on, separated by commas; results are kept in the run folders.")] = None,
    lmms_eval: Annotated[Sequence[str] | None, typer.Option(parser=names, help="Tasks of lmms-eval (pope, gqa, ...), as --lm-eval takes lm-eval's.")] = None,
    limit: Annotated[int | None, typer.Option("--lm-eval-limit", "--lmms-eval-limit", help="Use at most this many questions of each of these tasks.", show_default="all", min=1)] = None,
    include_path: Annotated[Path | None, typer.Option(help="Folder with such tasks of your own.")] = None,
    form: Annotated[Literal["text", "markdown", "json"], typer.Option("--format", help="Format of the tables; --json is short for --format json.")] = "text",
    report_to: ReportTo = (),
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Add p, detectable changes and counts, and explain them.")] = False,
    gate: Annotated[bool, typer.Option("--gate", help="Exit with code 1 if a figure is significantly worse; of several judges, by their majority.")] = False,
    *,
    settings: Part,
) -> None:  # fmt: skip
    """Print what changed between runs and if it is significant.

    Verdicts of AFTER's model on the images of BEFORE are added where they are missing.
    """
    from gapbench.cli.progress import bars

    if not (lm_eval or lmms_eval) and (limit or include_path):
        raise GapbenchError(
            "--lm-eval-limit and --include-path are for tasks; name some with --lm-eval or "
            "--lmms-eval"
        )
    quiet()
    with redirect_stdout(sys.stderr), bars("comparing") as progress:
        from gapbench.comparison import compare as comparison
        from gapbench.comparison import judges
        from gapbench.comparison import words as changes
        from gapbench.fix import card
        from gapbench.lmeval.regression import Elsewhere, Harness
        from gapbench.report import trackers
        from gapbench.runs.run import open_run

        trackers.check(report_to)
        first, *others = [open_run(path, **vars(settings)) for path in (before, *afters)]
        for run in (first, *others) if gate else ():
            if lacking := run.unfinished_for(judge):
                raise GapbenchError(f"--gate: {run.path}: {lacking}")
        asked: dict[Harness, Sequence[str] | None] = {"lm-eval": lm_eval, "lmms-eval": lmms_eval}
        elsewhere = [Elsewhere(h, t, limit, include_path) for h, t in asked.items() if t]
        measure = partial(
            comparison.compare, first, others, by=by, models=model or (), elsewhere=elsewhere,
            progress=progress,
        )  # fmt: skip
        several = judges.under_judges(measure, judge) if len(judge) > 1 else []
        changed = [each.majority for each in several] or measure(judge=next(iter(judge), None))
    screen = console()
    for line in changes.render(changed, form, screen.width, verbose, several).split("\n"):
        bold = form == "text" and line.startswith(("Verdict: ", "Significantly worse: "))
        screen.print(line, style="bold" * bold)
    for each in changed:
        about = {"before": each.before, "after": each.after, "verdict": each.verdict}
        told = f"{Path(each.before).name} to {Path(each.after).name}"
        trackers.log(report_to, told, about, comparison.figures(each), Path(each.after))
        folder = comparison.fixed_folder(each)
        if folder and card.add_figures(folder, changes.card_of(each)) and not QUIET.get():
            typer.echo(f"These figures are now in {os.path.relpath(folder / card.CARD)}", err=True)
    if gate and any(each.worse for each in changed):
        raise typer.Exit(1)


def power(
    path: RunPath,
    detect: Annotated[float, typer.Option(help="The change to detect, in points, or in the unit of the judge's scores.")] = 5.0,
    metric: Annotated[str, typer.Option(help="The figure, as CSV and JSON name it; a wrong name lists them.")] = "generation",
    judge: SeveralJudges = (),
    *,
    settings: Part,
) -> None:  # fmt: skip
    """Print how many prompts `compare` needs to detect a change."""
    if not 0 < detect <= 100:
        raise GapbenchError(f"--detect {detect}: give points, above 0 and up to 100")
    from gapbench.comparison.power_words import plan, plans
    from gapbench.metrics.power import Spread, spread
    from gapbench.runs.run import open_run

    run = open_run(path, **vars(settings))
    if len(judge) < 2:
        typer.echo(plan(spread(run.frame(next(iter(judge), None)), metric), metric, detect))
        return
    under: dict[str, Spread | str] = {}
    frames = {name: run.frame(name) for name in judge} | {"majority": run.frame(tuple(judge))}
    for name, frame in frames.items():
        try:
            under[name] = spread(frame, metric)
        except GapbenchError as error:
            under[name] = str(error).removeprefix("power: ")
    if not any(isinstance(each, Spread) for each in under.values()):
        raise GapbenchError("power: " + "; ".join(dict.fromkeys(map(str, under.values()))))
    typer.echo(plans(under, metric, detect))


def parity(
    a: Annotated[str, typer.Argument(help=MODEL, metavar="A")],
    b: Annotated[str, typer.Argument(help="The same model behind another backend: in the same words.", metavar="B")],
    tasks: Annotated[Sequence[str], typer.Option(parser=names, help="The prompts to draw, as `gapbench run` takes them.")] = ("shapes",),
    limit: Limit = None,
    samples: Annotated[int | None, typer.Option(min=1, max=10_000, show_default="set by each task", help="Images per prompt.")] = None,
    judges: Judges = None,
    verdict: Annotated[Literal["logits", "text", "none"] | None, typer.Option(show_default="logits, if both give them; else text", help="How A and B judge images, as for `gapbench run`.")] = None,
    device_a: Annotated[str, typer.Option(parser=device_name, help="Where A runs: auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    device_b: Annotated[str, typer.Option(parser=device_name, help="Where B runs.")] = "auto",
    dtype_a: Dtype = "auto",
    dtype_b: Dtype = "auto",
    recipe_a: Annotated[Mapping[str, object] | None, typer.Option("--set-a", parser=pairs, metavar="KEY=VALUE", help="Change one sampling parameter of A. Can be repeated.")] = None,
    recipe_b: Annotated[Mapping[str, object] | None, typer.Option("--set-b", parser=pairs, metavar="KEY=VALUE", help="Change one sampling parameter of B. Can be repeated.")] = None,
    out: Annotated[Path, typer.Option(help="Folder with a folder for each side, in which run folders are created.")] = Path("parity"),
    offline: Offline = False,
    form: Form = "text",
) -> None:  # fmt: skip
    """Print how far two backends of one model are apart, and whether their figures may stand on one board.

    Both draw the same prompts and judge what they drew, and B judges A's images. To continue, give
    the same command again. The exit code is 0 only if it is shown that they may.
    """
    from gapbench.cli.progress import bars

    go_offline(offline)
    quiet()
    with redirect_stdout(sys.stderr), bars("comparing") as progress:
        from gapbench.comparison import parity as comparison
        from gapbench.comparison.parity_words import render

        first, second = (
            RunSettings(
                model, tasks, recipe=recipe, samples=samples, limit=limit, judges=judges,
                verdict=verdict, device=device, dtype=dtype, out=out, progress=progress,
            )
            for model, recipe, device, dtype in (
                (a, recipe_a, device_a, dtype_a), (b, recipe_b, device_b, dtype_b)
            )
        )  # fmt: skip
        found = comparison.parity(first, second)
    if form == "json":
        typer.echo(render(found, form))
    else:
        screen = console()
        for number, line in enumerate(render(found, form, screen.width).split("\n")):
            screen.print(line, style="bold" * (number == 0))
    if not found.same:
        raise typer.Exit(1)
