"""The commands around what there is: tasks, models, check-model, check-judge, prepare."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gapbench.cli.options import Form
from gapbench.cli.terminal import console, facts, say
from gapbench.fetch.libraries import go_offline, quiet
from gapbench.runs.settings import (
    MODEL,
    TASKS,
    Device,
    Dtype,
    Judges,
    Limit,
    Offline,
    Recipe,
    RunSettings,
    names,
)
from gapbench.types import GapbenchError, counted

if TYPE_CHECKING:
    from rich.table import Table

    from gapbench.models.base import Model
    from gapbench.models.check.rules import Finding
    from gapbench.models.entry import Entry
    from gapbench.tasks.task import Task


def tasks(
    name: Annotated[str | None, typer.Argument(help="A task to describe.", metavar="NAME")] = None,
    form: Form = "text",
) -> None:
    """List the tasks, or describe one."""
    from rich.table import Table

    from gapbench.judges.lists import items_of
    from gapbench.tasks.task import load_task, task_folders

    if name is None:
        listed = [_task(load_task(each)) for each in task_folders()]
        table = Table("task", "version", "prompts", "samples", "title", box=None)
        for row in listed:
            about = f"{row['title']} (judge: {', '.join(row['judges'])})"
            table.add_row(
                *(_text(row[key]) for key in ("task", "version", "prompts", "samples")), about
            )
        _print(listed, form, table)
        return
    task = load_task(name)
    prompts = task.prompts() if task.ready() else []
    lists = {
        prompt.id: items_of(prompt.requirement, f"task {task.name}, prompt {prompt.id}")
        for prompt in prompts
    }
    asked = Counter(item.skill or "question" for items in lists.values() for item in items)
    head = ("category", "tier", "judge", "prompts", *["questions"] * bool(asked), "for example")
    table = Table(*head, box=None)
    categories = []
    for category, tier in task.tier_of.items():
        mine = [prompt for prompt in prompts if prompt.category == category]
        row = {"category": category, "tier": tier, "judge": task.judge(category)}
        row |= {"prompts": len(mine) if task.ready() else None}
        if asked:
            row["questions"] = sum(len(lists[prompt.id]) for prompt in mine)
        categories.append(row)
        example = next((p.text for p in mine), "") if task.ready() else "(gapbench prepare)"
        table.add_row(*map(_text, row.values()), example)
    for category, why in task.spec.without.items():
        table.add_row(category, "", "", "0", *[""] * bool(asked), f"({why})")
    parts = ", ".join(f"{k} ({counted(v.prompts, 'prompt')})" for k, v in task.spec.splits.items())
    variants = [k + ":SEED" * bool(v.get("seeded")) for k, v in task.spec.variants.items()]
    if form == "text":
        facts(
            title=task.spec.title, version=task.version, license=task.spec.license,
            splits=parts or "seed " * task.spec.seeded + ", ".join(task.splits()), samples=f"{counted(task.samples, 'image')} per prompt",
            variants=", ".join(variants) or None, question=task.spec.question,
            asked=", ".join(f"{skill} ({count:,})" for skill, count in asked.most_common()) or None,
        )  # fmt: skip
    told = _task(task) | {"categories": categories, "without": task.spec.without}
    if asked:
        told["asked"] = dict(asked.most_common())
    _print(told, form, table)


def _task(task: Task) -> dict[str, Any]:
    """What a list says of a task; the number of prompts is None where they are not here."""
    splits = task.spec.splits
    count = splits["test"].prompts if splits else len(task.prompts()) if task.ready() else None
    return {
        "task": task.name, "version": task.version, "prompts": count, "samples": task.samples,
        "judges": list(dict.fromkeys(task.judge(c) or "none" for c in task.tier_of)),
        "title": task.spec.title, "license": task.spec.license,
    }  # fmt: skip


def models(
    name: Annotated[str | None, typer.Argument(help="A model to describe.", metavar="NAME")] = None,
    form: Form = "text",
) -> None:
    """List the models, or describe one."""
    from rich.table import Column, Table

    from gapbench.fetch.hub import present
    from gapbench.models import load_model, model_names
    from gapbench.models.base import PAIR
    from gapbench.models.registry import MODELS
    from gapbench.models.workers.environment import prepared

    if name is None:
        listed = []
        sizes = [Column(head, max_width=10) for head in ("parameters", "memory")]
        table = Table(Column("model", overflow="fold"), *sizes, "what it is", box=None)
        for each in model_names():
            row: dict[str, Any] = {"model": each, "summary": "installed"}
            if entry := MODELS.get(each):
                row |= {
                    "summary": entry.summary, "parameters": entry.parameters,
                    "memory": entry.memory, "license": entry.license, "runs": entry.runs,
                    "capabilities": sorted(entry.capabilities), "pair": entry.pair,
                }  # fmt: skip
            listed.append(row)
            more = f"\n({row['license']}; {row['runs']})" if entry else ""
            head = each + "*" * row.get("pair", False)
            size = (_text(row.get(key)) for key in ("parameters", "memory"))
            table.add_row(head, *size, row["summary"] + more)
        _print(listed, form, table)
        if form == "text":
            console().print(f"* {PAIR}")
            console().print(
                "native: in gapbench's own process. worker: in an environment of its own."
            )
            console().print(
                "gapbench models NAME: capabilities, recipe and checkpoints of a model."
            )
        return
    entry = MODELS.get(name)
    known: dict[str, Any] = {}
    if entry:
        known = {
            "what": entry.summary, "license": entry.license, "parameters": entry.parameters,
            "memory": entry.memory, "runs": entry.runs, "capabilities": _listed(entry),
            "pair": PAIR if entry.pair else None, "folder": entry.folder,
        }  # fmt: skip
        for role, item in entry.needs.items():
            here = "here" if present(item) else f"gapbench prepare --model {name}"
            known[f"{role} checkpoint"] = f"{item.repo} at {item.revision} ({here})"
        if entry.runs == "worker":
            ready = prepared(name, entry)
            known["environment"] = "here" if ready else f"gapbench prepare --model {name}"
        known |= {f"recipe: {key}": value for key, value in entry.recipe.items()}
        known |= {"recipe's source": entry.source, "guidance": entry.convention}
    if entry is None or entry.folder:
        model = load_model(name)
        known |= {"fingerprint": model.fingerprint, "capabilities": _listed(model)}
        known |= {"pair": model.pairing if model.pair else None}
        known |= {f"recipe: {key}": value for key, value in model.recipe.items()}
    if form == "json":
        _print(known, form)
    else:
        facts(**known)


def _print(records: Any, form: str, table: Table | None = None) -> None:
    """Records as JSON, or the table of them."""
    if form == "json":
        typer.echo(json.dumps(records, indent=1, default=str))
    else:
        console().print(table)


def _text(value: object) -> str:
    return "" if value is None else str(value)


def check_model(
    model: Annotated[str, typer.Argument(help=MODEL, metavar="MODEL")],
    recipe: Recipe = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    published: Annotated[bool, typer.Option("--published", help="Instead, run the model's own recipe on benchmarks of which figures of it are published, and say whether they lie in the intervals here.")] = False,
    limit: Limit = None,
    out: Annotated[Path | None, typer.Option(help="Folder in which the run folder of --published is created.", show_default="runs")] = None,
) -> None:  # fmt: skip
    """Check whether an adapter follows the contract.

    The exit code is 1 if a rule is broken, or a published figure lies outside. To continue
    --published, give the same command again.
    """
    from gapbench.cli.progress import bars

    quiet()
    if published:
        if recipe:
            raise GapbenchError("--set: --published runs the model's own recipe; leave it out")
        told = {"device": device, "dtype": dtype, "limit": limit, "out": out or "runs"}
        _published(model, told)
        return
    if limit is not None or out is not None:
        raise GapbenchError("--limit and --out are for --published")
    with bars(f"checking {model}"):
        from gapbench.models import load_model
        from gapbench.models.check import check

        def load(name: str, changes: Mapping[str, object]) -> Model:
            return load_model(name, device, dtype, {**(recipe or {}), **changes})

        _tell(model, check(model, load))


def _published(model: str, settings: Mapping[str, Any]) -> None:
    """Run what the published figures of a model take, and hold them against it."""
    from gapbench.cli.progress import bars
    from gapbench.leaderboard import published

    rows = published.figures_of(model)
    with redirect_stdout(sys.stderr), bars(f"loading {model}") as progress:
        from gapbench.runs.flow import measure

        given = RunSettings(model, progress=progress, **settings)
        planned = published.commands(rows, given)
        say(published.cost(planned))
        found = []
        for wanted, mine in planned:
            run = measure(wanted)
            if run.unfinished:
                raise GapbenchError(f"{run.path}: {run.unfinished}")
            found += published.check(run, mine)
    console().print(published.told(found, given.limit))
    if not all(each.inside for each in found):
        raise typer.Exit(1)


def check_judge(
    judge: Annotated[str, typer.Argument(help="The judge: a name, ./my.py:Class, or my_package.module:Class, with :ARGUMENT behind it where it takes one.", metavar="JUDGE")],
    tasks: Annotated[Sequence[str], typer.Option(parser=names, help="Tasks whose first prompts it is asked about.")] = ("shapes",),
    device: Device = "auto",
) -> None:  # fmt: skip
    """Check whether a judge follows the contract."""
    from gapbench.cli.progress import bars

    quiet()
    with bars(f"checking {judge}"):
        from gapbench.judges import load_judge
        from gapbench.judges.check import check
        from gapbench.tasks.task import select

        prompts = [prompt for _, of_task in select(tasks) for prompt in of_task]
        _tell(judge, check(load_judge(judge, device), prompts[:3]))


def _tell(who: str, found: Iterable[Finding]) -> None:
    """Print what a check finds; the exit code is 1 where a rule is broken."""
    failed = tried = 0
    for result in found:
        word = "skip" if result.skipped else "FAIL" if result.failure else "ok"
        why = result.failure or result.skipped
        say(f"{word:4}  {result.rule}{f': {why}' if why else ''}")
        failed, tried = failed + bool(result.failure), tried + (result.skipped is None)
    say(f"{who} keeps {tried - failed} of the {tried} rules that it was tried on.")
    if failed:
        raise typer.Exit(1)


def prepare(
    tasks: Annotated[Sequence[str] | None, typer.Option(parser=names, show_default="all; none if a model or a judge is named", help=TASKS)] = None,
    model: Annotated[Sequence[str], typer.Option(parser=names, help="Models, by name or as diffusers:OWNER/NAME; separate several with commas.")] = (),
    judges: Judges = None,
    worker_python: Annotated[Path | None, typer.Option(help="Python interpreter of your own environment, for a model that runs as a worker.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder with files that you already have; they are found by digest, whatever their names.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be downloaded, with sizes and licenses, and exit.")] = False,
    offline: Offline = False,
) -> None:  # fmt: skip
    """Download what tasks, models and judges need."""
    from rich.table import Column, Table

    from gapbench.cli.progress import bars
    from gapbench.runs import needs as preparing

    go_offline(offline)
    wanted = preparing.needs(tasks or ([] if model or judges else ["all"]), judges, model)
    table = Table(
        Column("needed", overflow="fold"), "for", "MB", "license", "pinned by", "here", box=None
    )
    for need in wanted:
        size = f"{need.item.bytes / 1e6:,.2f}" if need.item.bytes else "unknown"
        here = "yes" if need.ready() else "no"
        table.add_row(
            need.name, need.wanted_by, size, need.item.license, need.pin or "NOTHING", here
        )
    workers = preparing.workers(model, worker_python)
    for name, ready in workers.items():
        here = "yes" if ready else "no"
        table.add_row("source and environment", f"model {name}", "", "", "", here)
    console().print(table if wanted else "Nothing is needed: all of it ships with gapbench.")
    for need in wanted:
        if need.pin is None:
            console().print(
                f"UNPINNED: no commit of {need.name} is on record; the first fetch pins what its "
                "branch holds then, which need not be what others measured with.",
                style="bold red",
            )
    if dry_run:
        return
    preparing.bring_workers(workers, worker_python, typer.echo)
    with bars(in_bytes=True) as progress:
        preparing.bring(wanted, data, lambda name, size: progress(name, 0, size))
    typer.echo("All of it is here." if wanted else "")


def _listed(model: Entry | Model) -> str:
    return ", ".join(sorted(model.capabilities))
