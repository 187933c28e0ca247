"""The command line: parse, call one function, print."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gapbench.cli import catalog, compare, explain, fix, leaderboard, lm_eval, report
from gapbench.cli.terminal import console, names, pairs
from gapbench.fetch.libraries import go_offline, quiet
from gapbench.types import GapbenchError

if TYPE_CHECKING:
    from gapbench.runs.estimate import Estimate
    from gapbench.runs.run import Run

app = typer.Typer(
    help="Measure the gap between what a unified model can draw and what it can recognise.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.command()
def run(
    model: Annotated[str | None, typer.Option(help="A model's name, a checkpoint's folder, or my_package.module:Class. [janus-mini]")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change a key of the model's recipe, say guidance=4; may be repeated, and makes another run.", metavar="KEY=VALUE")] = None,
    tasks: Annotated[str | None, typer.Option(help="all, easy, medium, hard, a task, task/category, or a folder; several with commas. [shapes]")] = None,
    samples: Annotated[int | None, typer.Option(help="Images a prompt. [each task's own]")] = None,
    limit: Annotated[int | None, typer.Option(help="Prompts a task, taken from its categories in turn.")] = None,
    judge: Annotated[str | None, typer.Option(help="Outside judges, with commas. [each task's own]")] = None,
    verdict: Annotated[str | None, typer.Option(help="Own verdicts from the answers' probabilities (logits), from words (text), or none. [logits]")] = None,
    batch_size: Annotated[str | None, typer.Option(help="Images at a time, or the most that fit; never changes a result. [auto]")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that draw and judge, each with a copy of the model, on the GPUs in turn; never changes a result. [1]")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the run; another seed is another run. [0]")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 or mps. [auto]")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float64, float32, bfloat16 or float16. [auto]")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for run folders. [runs]")] = None,
    offline: Annotated[bool | None, typer.Option("--offline", help="Never touch the network.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what is left to do, how long and how big, and stop.")] = False,
    config: Annotated[Path | None, typer.Option(help="A YAML file of these options; options given here win.")] = None,
) -> None:  # fmt: skip
    """Draw, judge, and print the table; the same command again goes on where it stopped."""
    from gapbench.cli.settings import read_settings

    options = {
        "model": model, "set": pairs(set_), "tasks": names(tasks), "samples": samples, "limit": limit,
        "judge": names(judge), "verdict": verdict, "batch_size": batch_size, "workers": workers,
        "seed": seed, "device": device, "dtype": dtype, "out": out, "offline": offline,
    }  # fmt: skip
    settings = read_settings(config, options)
    go_offline(settings.offline)
    from gapbench.cli.progress import bars
    from gapbench.runs import flow
    from gapbench.runs.plan import prepare as prepare_run

    quiet()
    if dry_run:
        prepared = prepare_run(
            settings.model, settings.tasks, settings.samples, settings.limit, settings.judge,
            settings.verdict, settings.seed, settings.device, settings.dtype, settings.out,
            settings.set, workers=settings.workers,
        )  # fmt: skip
        from gapbench.runs.estimate import estimate

        _print_estimate(estimate(prepared, settings.out, settings.batch_size))
        return
    with bars() as progress:
        done = flow.run(
            settings.model,
            settings.tasks,
            recipe=settings.set,
            samples=settings.samples,
            limit=settings.limit,
            judges=settings.judge,
            verdict=settings.verdict,
            batch_size=settings.batch_size,
            workers=settings.workers,
            seed=settings.seed,
            device=settings.device,
            dtype=settings.dtype,
            out=settings.out,
            progress=progress,
        )
    from gapbench.report.sheets import write_sheets

    sheets = write_sheets(done)
    _print_run(done, None)
    console().print(
        f"Pictures: {sheets[0].parent} ({len(sheets)} contact sheets). The table again: "
        f"gapbench show {done.path}",
        soft_wrap=True,
    )


@app.command()
def show(
    path: Annotated[Path, typer.Argument(help="A run folder.", metavar="RUN")],
    form: Annotated[str, typer.Option("--format", help="text, markdown, csv or json.")] = "text",
    judge: Annotated[str | None, typer.Option(help="The outside judge to compute against.")] = None,
) -> None:
    """Print a run's table again."""
    from gapbench.report import tables
    from gapbench.runs.run import open_run

    if form not in tables.FORMATS:
        raise GapbenchError(f"--format {form}: there are {', '.join(tables.FORMATS)}")
    opened = open_run(path)
    if form == "text":
        _print_run(opened, judge)
    else:
        typer.echo(tables.render(opened.rates(judge), form, opened.footnote).rstrip("\n"))


app.command()(compare.compare)
app.command()(compare.power)
app.command("lm-eval")(lm_eval.lm_eval)
app.command()(explain.explain)
app.command()(catalog.tasks)
app.command()(catalog.models)
app.command("check-model")(catalog.check_model)
app.command()(catalog.prepare)
app.command()(fix.fix)
app.command()(report.report)
app.command()(report.label)
app.command()(leaderboard.submit)
app.command()(leaderboard.verify)
app.command()(leaderboard.leaderboard)
app.command()(leaderboard.push)


def main() -> None:
    """Entry point: errors for people are one line on stderr and exit code 2."""
    from gapbench.engines.local import Interrupted

    try:
        app()
    except GapbenchError as error:
        typer.echo(f"gapbench: {error}", err=True)
        sys.exit(2)
    except Interrupted:
        typer.echo(
            "gapbench: stopped after the batch in hand; run the same command again to go on",
            err=True,
        )
        sys.exit(130)
    except BrokenPipeError:  # `gapbench show ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _print_run(done: Run, judge: str | None) -> None:
    from gapbench.report import tables

    plan = done.plan
    several = any(len(asks) > 1 for asks in plan.asks)
    judges: list[str | None] = [judge] if judge or not several else [*plan.judges]
    if judge is None:
        judges += [name for name in done.judges() if name not in plan.judges]
    rates = {name: done.rates(name) for name in judges}  # one that is not there is told first
    screen = console()
    versions = ", ".join(f"{name} {version}" for name, version in plan.tasks.items())
    screen.print(
        f"{done.folder.meta['model']}{'*' * bool(done.footnote)} on {versions}: {len(plan.items())} images of "
        f"{len(plan.prompts)} prompts, own verdicts by {plan.own or 'none'}",
        soft_wrap=True,
    )
    screen.print("Percent, with 95 % intervals over prompts and the counts behind each figure.")
    for name, found in rates.items():
        outside = name or ", ".join(plan.judges) or "none"
        screen.print(f"Outside judge: {outside}\n")
        tables.show(found, screen)
    if done.footnote:
        screen.print(done.footnote, soft_wrap=True)
    for first, second, agreed in done.agreements():
        screen.print(f"{first} and {second} {tables.agreement(agreed)}", soft_wrap=True)
    for name in judges:
        tables.show_corrected(done.corrected(name), name or ", ".join(plan.judges), screen)
    for name, warning in done.checks().items():
        screen.print(f"WARNING: {name} failed the check: {warning}", style="bold red")


def _print_estimate(left: Estimate) -> None:
    if left.seconds is None or left.bytes is None:
        typer.echo("Nothing is left to do: the same command prints the table.")
        return
    typer.echo(
        f"Left to do: {left.images} images, {left.own_verdicts} own verdicts, "
        f"{left.outside_verdicts} outside verdicts; about {left.seconds:.0f} s and "
        f"{left.bytes / 1e6:.1f} MB, from a short calibration. Nothing was written."
    )
    for cost in left.costs:
        typer.echo(f"Not counted in the time: {cost}")
