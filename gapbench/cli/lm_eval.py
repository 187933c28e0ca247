"""The command `gapbench lm-eval`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from gapbench.fetch.libraries import go_offline, quiet
from gapbench.runs.settings import MODEL, Device, Dtype, Offline, Recipe, names


def lm_eval(
    model: Annotated[str, typer.Argument(help=MODEL, metavar="MODEL")],
    tasks: Annotated[Sequence[str], typer.Option(parser=names, help="Tasks and groups of lm-eval, separated by commas; gapbench_shapes comes with gapbench.")],
    limit: Annotated[int | None, typer.Option(help="Use at most this many questions of each task.", show_default="all", min=1)] = None,
    batch_size: Annotated[int, typer.Option(help="Texts per batch. Does not change answers.", min=1)] = 8,
    out: Annotated[Path, typer.Option(help="Folder for lm-eval's results and logs.")] = Path("lm-eval"),
    include_path: Annotated[Path | None, typer.Option(help="Folder with lm-eval tasks of your own.")] = None,
    recipe: Recipe = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    offline: Offline = False,
) -> None:  # fmt: skip
    """Run lm-eval's tasks on a model."""
    go_offline(offline)
    quiet()
    from gapbench.cli.progress import bars

    with bars(f"evaluating {model}"):
        from gapbench.lmeval import harness
        from gapbench.models import load_model

        loaded = load_model(model, device, dtype, recipe)
        results, folder = harness.evaluate(
            loaded, model, tasks, out, limit=limit, batch_size=batch_size, include=include_path
        )
    typer.echo(harness.table(results))
    typer.echo(f"lm-eval's results and a log of each question: {folder}")
