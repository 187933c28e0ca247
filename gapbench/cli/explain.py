"""The command `gapbench explain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gapbench.cli.terminal import console
from gapbench.fetch.libraries import quiet
from gapbench.runs.settings import Device, Dtype
from gapbench.types import GapbenchError


def explain(
    before: Annotated[Path, typer.Argument(help="A run folder of the model that was fixed.", metavar="BEFORE")],
    after: Annotated[Path, typer.Argument(help="A run folder of the fixed model, of the same prompts and seeds.", metavar="AFTER")],
    out: Annotated[Path | None, typer.Option(help="Folder for explain.html and explain.json.", show_default="explain in AFTER")] = None,
    fix: Annotated[Path | None, typer.Option(help="The fix's folder, if you moved it.", show_default="where AFTER found its model")] = None,
    pairs: Annotated[int, typer.Option(min=1, help="Number of images of the correction group to look at, each with a control image.")] = 32,
    encoder: Annotated[str | None, typer.Option(help="What measures similarity: clip, clip:FOLDER (open_clip's layout), or model (the model's own encoders).", show_default="clip if its weights are here, else model")] = None,
    projection: Annotated[int | None, typer.Option(min=0, help="Project gradients to this many dimensions, which takes less memory and is an estimate; 0 computes exactly.", show_default="0; 64 if more than 200 M weights were trained")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed for what is chosen at random.")] = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:  # fmt: skip
    """Explain with gradients why understanding changed after a fix."""
    if out is not None and out.is_file():
        raise GapbenchError(f"--out {out} is a file; give a folder")
    quiet()
    from gapbench.cli.progress import bars

    with bars(f"loading {before} and {after}") as progress:
        from gapbench.explain.page import write_page
        from gapbench.explain.run import explain as run_explain
        from gapbench.explain.words import summary

        done = run_explain(
            before, after, fix=None if fix is None else str(fix), out=out, pairs=pairs, seed=seed,
            encoder=encoder, projection=projection, device=device, dtype=dtype, progress=progress,
        )  # fmt: skip
    file = write_page(done)
    screen = console()
    for line in summary(done.results):
        screen.print(line)
    screen.print(f"Page: {file} ; every number: {done.folder / 'explain.json'}")
