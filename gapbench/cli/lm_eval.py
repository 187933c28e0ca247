"""The command `gapbench lm-eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gapbench.cli.terminal import names, pairs
from gapbench.fetch.libraries import go_offline, quiet
from gapbench.types import GapbenchError


def lm_eval(
    model: Annotated[str, typer.Argument(help="As for run: a name, a folder, or my_package.module:Class.")],
    tasks: Annotated[str, typer.Option(help="Tasks and groups of lm-eval, with commas; gapbench_shapes is ours.")],
    limit: Annotated[int | None, typer.Option(help="Questions a task. [all]", min=1)] = None,
    batch_size: Annotated[int, typer.Option(help="Texts at a time; never changes an answer.", min=1)] = 8,
    out: Annotated[Path, typer.Option(help="Folder for lm-eval's results and logs.")] = Path("lm-eval"),
    include_path: Annotated[Path | None, typer.Option(help="A folder of further lm-eval tasks.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Change a key of the model's recipe.", metavar="KEY=VALUE")] = None,
    device: Annotated[str, typer.Option(help="As for run.")] = "auto",
    dtype: Annotated[str, typer.Option(help="As for run.")] = "auto",
    offline: Annotated[bool, typer.Option("--offline", help="Never touch the network.")] = False,
) -> None:  # fmt: skip
    """Evaluate a model with lm-eval's own tasks and evaluator."""
    wanted = names(tasks)
    if not wanted or not all(wanted):
        raise GapbenchError(f"--tasks {tasks!r}: give names of lm-eval tasks, with commas")
    go_offline(offline)
    quiet()
    from gapbench.lmeval import harness
    from gapbench.models import load_model

    loaded = load_model(model, device, dtype, {**(pairs(set_) or {})})
    results, folder = harness.evaluate(
        loaded, model, wanted, out, limit=limit, batch_size=batch_size, include=include_path
    )
    typer.echo(harness.table(results))
    typer.echo(f"lm-eval's results and a log of each question: {folder}")
