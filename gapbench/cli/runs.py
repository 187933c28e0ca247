"""The commands `gapbench runs`, `gapbench judge` and `gapbench merge`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from gapbench.cli.options import Form, RunPath
from gapbench.cli.terminal import console
from gapbench.fetch.libraries import go_offline, quiet
from gapbench.runs.settings import InShards, Offline, RayAddress, Workers, device_name, names
from gapbench.types import PERCENT, GapbenchError, counted, printable


def runs(
    folder: Annotated[Path, typer.Argument(help="A folder of run folders.", metavar="DIR")] = Path("runs"),
    form: Form = "text",
) -> None:  # fmt: skip
    """List the runs of a folder, the latest first."""
    from rich.table import Table
    from rich.text import Text

    from gapbench.metrics.metric import printed
    from gapbench.runs.listing import runs_in

    if not folder.is_dir():
        raise GapbenchError(f"{folder}: there is no such folder; name the --out of a run")
    listed, broken = runs_in(folder)
    for error in broken:
        typer.echo(printable(f"WARNING: {error}"), err=True)
    if form == "json":
        typer.echo(printable(json.dumps([asdict(run) for run in listed], indent=1)))
        return
    if not listed:
        typer.echo(printable(f"{folder} holds no run folder that can be read."))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("run", "tasks"):
        table.add_column(head, overflow="fold")
    for head in ("images", "generation", "non-unif.", "date"):
        table.add_column(head, justify="right")
    for run in listed:
        images = f"{run.images:,}"
        figures = ((run.generation, run.unit), (run.non_unification, PERCENT))
        table.add_row(
            Text(run.run),
            Text(", ".join(run.tasks) + (f", shard {run.shard}" if run.shard else "")),
            f"{images} of {run.planned:,} UNFINISHED" if run.finished is False else images,
            *("n/a" if figure is None else printed(figure, unit) for figure, unit in figures),
            (run.date or "")[:10],
        )
    console().print(table)
    if any(run.finished is None for run in listed):
        console().print("n/a: no results.json; the same `gapbench run` command again writes it.")


def judge(
    run: RunPath,
    judges: Annotated[Sequence[str], typer.Option("--judge", parser=names, help="Outside judges, separated by commas, as `gapbench run` takes them.")],
    shard: InShards = None,
    out: Annotated[Path | None, typer.Option(help="Folder in which a shard's run folder is created.", show_default="beside RUN")] = None,
    device: Annotated[str, typer.Option(parser=device_name, help="Where the judges run: auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    workers: Workers = 1,
    ray_address: RayAddress = None,
    offline: Offline = False,
) -> None:  # fmt: skip
    """Let outside judges judge the images of a run, without its model.

    To continue, give the same command again.
    """
    from gapbench.cli.progress import bars

    go_offline(offline)
    quiet()
    with redirect_stdout(sys.stderr), bars("loading judges") as progress:
        from gapbench.report.sheets import write_sheets
        from gapbench.runs.judge import judge_run

        done = judge_run(run, judges, shard, out, device, progress, workers, ray_address)
        write_sheets(done)
    for stage, (there, planned) in done.stages().items():
        if stage.startswith("verdicts of "):
            console().print(f"{stage}: {there:,} of {planned:,} are there")
    console().print(f"Whole table: gapbench show {done.path}")
    if shard is not None:
        console().print("Join the shards: gapbench merge, with the folders of all of them")
    if failed := done.failures():
        console().print("\n".join(done.notes()))
        count = sum(sum(reasons.values()) for reasons in failed.values())
        raise GapbenchError(
            f"{counted(count, 'verdict')} missing, as said above; run the same command again to "
            "try again"
        )


def merge(
    runs: Annotated[list[Path], typer.Argument(help="Run folders of one model, recipe and seed.", metavar="RUN...")],
    out: Annotated[Path, typer.Option(help="Folder in which the joined run folder is created.")] = Path("runs"),
) -> None:  # fmt: skip
    """Join shards of a run, or runs of several tasks of one model, in one run folder."""
    from gapbench.cli.progress import bars

    with bars("merging"):
        from gapbench.report.sheets import write_sheets
        from gapbench.runs.merge import merge

        merged = merge(runs, out)
        write_sheets(merged)
    if merged.unfinished:
        lacks = merged.unfinished.partition("; ")[0]
        console().print(f"{lacks}; finish the shards and merge them again", style="bold red")
    images = f"{merged.stages()['images'][0]:,} images of {merged.plan.n_prompts():,} prompts"
    console().print(f"Merged into {merged.path}: {images}")
    console().print(f"Whole table: gapbench show {merged.path}")
