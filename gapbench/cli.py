"""The command line: parse, call one function, print."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from gapbench import cli_results
from gapbench.cli_fix import fix
from gapbench.cli_report import label, report
from gapbench.types import GapbenchError

if TYPE_CHECKING:
    from gapbench.estimate import Estimate
    from gapbench.flow import Run
    from gapbench.models.base import Model
    from gapbench.models.registry import Entry

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
    seed: Annotated[int | None, typer.Option(help="Seed of the run; another seed is another run. [0]")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 or mps. [auto]")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float64, float32, bfloat16 or float16. [auto]")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for run folders. [runs]")] = None,
    offline: Annotated[bool | None, typer.Option("--offline", help="Never touch the network.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what is left to do, how long and how big, and stop.")] = False,
    config: Annotated[Path | None, typer.Option(help="A YAML file of these options; options given here win.")] = None,
) -> None:  # fmt: skip
    """Draw, judge, and print the table; the same command again goes on where it stopped."""
    from gapbench.settings import read_settings

    options = {
        "model": model, "set": _pairs(set_), "tasks": _names(tasks), "samples": samples, "limit": limit,
        "judge": _names(judge), "verdict": verdict, "batch_size": batch_size,
        "seed": seed, "device": device, "dtype": dtype, "out": out, "offline": offline,
    }  # fmt: skip
    settings = read_settings(config, options)
    if settings.offline:
        os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    from gapbench import flow
    from gapbench.plan import prepare as prepare_run
    from gapbench.report.progress import bars

    _quiet()
    if dry_run:
        prepared = prepare_run(
            settings.model, settings.tasks, settings.samples, settings.limit, settings.judge,
            settings.verdict, settings.seed, settings.device, settings.dtype, settings.out,
            settings.set,
        )  # fmt: skip
        from gapbench.estimate import estimate

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
            seed=settings.seed,
            device=settings.device,
            dtype=settings.dtype,
            out=settings.out,
            progress=progress,
        )
    from gapbench.report.sheets import write_sheets

    sheets = write_sheets(done)
    _print_run(done, None)
    _console().print(
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
    from gapbench.flow import open_run
    from gapbench.report import tables

    if form not in tables.FORMATS:
        raise GapbenchError(f"--format {form}: there are {', '.join(tables.FORMATS)}")
    opened = open_run(path)
    if form == "text":
        _print_run(opened, judge)
    else:
        typer.echo(tables.render(opened.rates(judge), form, opened.footnote).rstrip("\n"))


@app.command()
def compare(
    before: Annotated[Path, typer.Argument(help="A run folder.", metavar="BEFORE")],
    afters: Annotated[list[Path], typer.Argument(help="Run folders of the same prompts and seeds.", metavar="AFTER...")],
    by: Annotated[str | None, typer.Option(help="Also the figures of each category, tier or task.")] = None,
    judge: Annotated[str | None, typer.Option(help="The outside judge to compute against.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="Where AFTER's model is now, if it was moved; may be repeated.")] = None,
    intersection: Annotated[bool, typer.Option("--intersection", help="Compare what the runs share, where they differ.")] = False,
    form: Annotated[str, typer.Option("--format", help="text, markdown or json.")] = "text",
    gate: Annotated[bool, typer.Option("--gate", help="Exit with 1 where a figure is significantly worse.")] = False,
) -> None:  # fmt: skip
    """Say what changed between runs; missing verdicts of AFTER on BEFORE's images are made."""
    levels = ("category", "tier", "task")
    if by not in (None, *levels):
        raise GapbenchError(f"--by {by}: there are {', '.join(levels)}")
    if form not in ("text", "markdown", "json"):
        raise GapbenchError(f"--format {form}: there are text, markdown, json")
    from gapbench import comparison
    from gapbench.report import changes
    from gapbench.report.progress import bars

    _quiet()
    with bars() as progress:
        found = comparison.compare(
            before, afters, by=cast(Any, by), judge=judge, models=model or (),
            intersection=intersection, progress=progress,
        )  # fmt: skip
    typer.echo(changes.render(found, form))
    if gate and any(each.worse for each in found):
        raise typer.Exit(1)


@app.command()
def power(
    path: Annotated[Path, typer.Argument(help="A run folder.", metavar="RUN")],
    detect: Annotated[float, typer.Option(help="The change to detect, in points.")] = 5.0,
    metric: Annotated[str, typer.Option(help="generation, non_unification, false_positive or self_accuracy.")] = "generation",
    judge: Annotated[str | None, typer.Option(help="The outside judge to compute against.")] = None,
) -> None:  # fmt: skip
    """Say how many prompts and samples `compare` needs to detect a change."""
    if not 0 < detect <= 100:
        raise GapbenchError(f"--detect {detect}: give points, above 0 and up to 100")
    from gapbench.comparison import plan_spread
    from gapbench.report import changes

    typer.echo(changes.plan(plan_spread(path, metric, judge), metric, detect / 100))


@app.command()
def tasks(name: Annotated[str | None, typer.Argument(help="A task to describe.")] = None) -> None:
    """List the tasks, or describe one."""
    from rich.table import Table

    from gapbench.tasks import load_task, task_folders

    if name is None:
        table = Table("task", "version", "prompts", "samples", "judge", "title", box=None)
        for each in task_folders():
            task = load_task(each)
            splits = task.spec.splits
            count = (
                splits["test"].prompts if splits else len(task.prompts()) if task.ready() else ""
            )
            judges = dict.fromkeys(task.judge(c) or "none" for c in task.tier_of)
            row = (str(count), str(task.samples), ", ".join(judges), task.spec.title)
            table.add_row(each, task.version, *row)
        _console().print(table)
        return
    task = load_task(name)
    table = Table("category", "tier", "judge", "prompts", "for example", box=None)
    ready = task.ready()
    prompts = task.prompts() if ready else []
    for category, tier in task.tier_of.items():
        mine = [prompt.text for prompt in prompts if prompt.category == category]
        shown = (str(len(mine)), mine[0] if mine else "") if ready else ("", "(gapbench prepare)")
        table.add_row(category, tier, task.judge(category), *shown)
    parts = ", ".join(f"{k} ({v.prompts} prompts)" for k, v in task.spec.splits.items())
    _facts(
        title=task.spec.title, version=task.version, license=task.spec.license,
        splits=parts or "test", samples=f"{task.samples} images a prompt",
        variants=", ".join(task.spec.variants) or None, question=task.spec.question,
    )  # fmt: skip
    _console().print(table)


@app.command()
def models(name: Annotated[str | None, typer.Argument(help="A model to describe.")] = None) -> None:
    """List the models, or describe one."""
    from rich.table import Table

    from gapbench.hub import present
    from gapbench.models import MODELS, load_model, model_names
    from gapbench.models.base import CAPABILITIES, PAIR
    from gapbench.models.upstream import prepared

    if name is None:
        table = Table(
            "model", "parameters", "memory", "license", "runs", "capabilities", "what it is",
            box=None,
        )  # fmt: skip
        for each in model_names():
            if entry := MODELS.get(each):
                can = "all" if entry.capabilities == set(CAPABILITIES) else _listed(entry)
                table.add_row(
                    each + "*" * entry.pair, entry.parameters, entry.memory, entry.license,
                    entry.runs, can, entry.summary,
                )  # fmt: skip
            else:
                table.add_row(each, "", "", "", "native", "", "installed")
        _console().print(table)
        _console().print(f"all: {', '.join(CAPABILITIES)}. * {PAIR}", soft_wrap=True)
        return
    entry = MODELS.get(name)
    facts: dict[str, Any] = {}
    if entry:
        facts = {
            "what": entry.summary, "license": entry.license, "parameters": entry.parameters,
            "memory": entry.memory, "runs": entry.runs, "capabilities": _listed(entry),
            "pair": PAIR if entry.pair else None, "folder": entry.folder,
        }  # fmt: skip
        for role, item in entry.needs.items():
            here = "here" if present(item) else f"gapbench prepare --model {name}"
            facts[f"{role} checkpoint"] = f"{item.repo} at {item.revision} ({here})"
        if entry.runs == "worker":
            ready = prepared(name)
            facts["environment"] = "here" if ready else f"gapbench prepare --model {name}"
        facts |= {f"recipe: {key}": value for key, value in entry.recipe.items()}
        facts |= {"recipe's source": entry.source, "guidance": entry.convention}
    if entry is None or entry.folder:
        model = load_model(name)
        facts |= {"fingerprint": model.fingerprint, "capabilities": _listed(model)}
        facts |= {f"recipe: {key}": value for key, value in model.recipe.items()}
    _facts(**facts)


@app.command("check-model")
def check_model(
    model: Annotated[str, typer.Argument(help="As for run: a name, a folder, or my_package.module:Class.")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change a key of its recipe.", metavar="KEY=VALUE")] = None,
    device: Annotated[str, typer.Option(help="As for run.")] = "auto",
    dtype: Annotated[str, typer.Option(help="As for run.")] = "auto",
) -> None:  # fmt: skip
    """Try an adapter's contract: seeds, batches, verdicts, log-probabilities, saving."""
    from gapbench.models import load_model
    from gapbench.models.check import check

    _quiet()
    changes: dict[str, object] = {**(_pairs(set_) or {})}
    failed = tried = 0
    for found in check(
        model, lambda name, more: load_model(name, device, dtype, {**changes, **more})
    ):
        word = "skip" if found.skipped else "FAIL" if found.failure else "ok"
        why = found.failure or found.skipped
        _console().print(f"{word:4}  {found.rule}{f': {why}' if why else ''}", soft_wrap=True)
        failed, tried = failed + bool(found.failure), tried + (found.skipped is None)
    typer.echo(f"{model} keeps {tried - failed} of the {tried} rules that it was tried on.")
    if failed:
        raise typer.Exit(1)


@app.command()
def prepare(
    tasks: Annotated[str | None, typer.Option(help="As for run. [all, or none where a model is named]")] = None,
    model: Annotated[str | None, typer.Option(help="Models by name, with commas.")] = None,
    judge: Annotated[str | None, typer.Option(help="Outside judges, with commas. [each task's own]")] = None,
    worker_python: Annotated[Path | None, typer.Option(help="The interpreter of an environment of your own for a model that runs as a worker.")] = None,
    data: Annotated[Path | None, typer.Option(help="A folder of your own copies; names do not matter, digests do.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be fetched and stop.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Never touch the network.")] = False,
) -> None:  # fmt: skip
    """Fetch what tasks, models and judges need: pinned, verified, resumed where it broke off."""
    from rich.table import Table

    from gapbench import prepare as preparing
    from gapbench.report.progress import bars

    if offline:
        os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    named = _names(model) or []
    wanted = preparing.needs(_names(tasks) or ([] if named else ["all"]), _names(judge), named)
    table = Table("needed", "for", "MB", "license", "pinned by", "here", box=None)
    for need in wanted:
        size = f"{need.item.bytes / 1e6:,.2f}" if need.item.bytes else "unknown"
        here = "yes" if need.ready() else "no"
        table.add_row(
            need.name, need.wanted_by, size, need.item.license, need.pin or "NOTHING", here
        )
    workers = preparing.workers(named, worker_python)
    for name, ready in workers.items():
        here = "yes" if ready else "no"
        table.add_row("source and environment", f"model {name}", "", "", "", here)
    _console().print(table if wanted else "Nothing is needed: all of it ships with gapbench.")
    for need in wanted:
        if need.pin is None:
            _console().print(
                f"UNPINNED: no commit of {need.name} is on record; the first fetch pins what its "
                "branch holds then, which need not be what others measured with.",
                style="bold red",
                soft_wrap=True,
            )
    if dry_run:
        return
    preparing.bring_workers(workers, worker_python, typer.echo)
    with bars(in_bytes=True) as progress:
        preparing.bring(wanted, data, lambda name, size: progress(name, 0, size))
    typer.echo("All of it is here." if wanted else "")


commands = (
    fix,
    report,
    label,
    cli_results.submit,
    cli_results.verify,
    cli_results.leaderboard,
    cli_results.push,
)
for command in commands:
    app.command()(command)


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


def _names(listed: str | None) -> list[str] | None:
    """The names of a list with commas."""
    return [name.strip() for name in listed.split(",")] if listed else None


def _listed(model: Entry | Model) -> str:
    return ", ".join(sorted(model.capabilities))


def _pairs(given: list[str] | None) -> dict[str, str] | None:
    """The keys and values of --set."""
    for each in given or ():
        if not all(part.strip() for part in each.partition("=")):
            raise GapbenchError(f"--set {each}: give KEY=VALUE, such as guidance=4")
    pairs = [each.split("=", 1) for each in given or ()]
    return {key.strip(): value.strip() for key, value in pairs} or None


def _console() -> Any:
    from rich.console import Console

    # Piped output has no width of its own; tables there should not be cut.
    # Names and prompts are shown as they are, brackets and all.
    return Console(width=None if sys.stdout.isatty() else 160, markup=False, highlight=False)


def _quiet() -> None:
    """Keep libraries' chatter out of the progress bars."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def _print_run(done: Run, judge: str | None) -> None:
    from gapbench.report import tables

    plan = done.plan
    several = any(len(asks) > 1 for asks in plan.asks)
    judges: list[str | None] = [judge] if judge or not several else [*plan.judges]
    if judge is None:
        judges += [name for name in done.judges() if name not in plan.judges]
    rates = {name: done.rates(name) for name in judges}  # one that is not there is told first
    console = _console()
    versions = ", ".join(f"{name} {version}" for name, version in plan.tasks.items())
    console.print(
        f"{done.folder.meta['model']}{'*' * bool(done.footnote)} on {versions}: {len(plan.items())} images of "
        f"{len(plan.prompts)} prompts, own verdicts by {plan.own or 'none'}",
        soft_wrap=True,
    )
    console.print("Percent, with 95 % intervals over prompts and the counts behind each figure.")
    for name, found in rates.items():
        outside = name or ", ".join(plan.judges) or "none"
        console.print(f"Outside judge: {outside}\n")
        tables.show(found, console)
    if done.footnote:
        console.print(done.footnote, soft_wrap=True)
    for first, second, agreed in done.agreements():
        console.print(f"{first} and {second} {tables.agreement(agreed)}", soft_wrap=True)
    for name in judges:
        tables.show_corrected(done.corrected(name), name or ", ".join(plan.judges), console)
    for name, warning in done.checks().items():
        console.print(f"WARNING: {name} failed the check: {warning}", style="bold red")


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


def _facts(**facts: Any) -> None:
    from rich.table import Table

    table = Table(box=None, show_header=False)
    for key, value in facts.items():
        if value is not None:
            table.add_row(key, str(value))
    _console().print(table)
