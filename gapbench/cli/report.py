"""The commands `gapbench report`, `gapbench view` and `gapbench label`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Annotated

import typer

from gapbench.cli.options import RunPath, SeveralJudges
from gapbench.runs.settings import Part
from gapbench.types import GapbenchError, counted, printable

Port = Annotated[
    int,
    typer.Option(help="Port of the page, for example for an SSH tunnel; 0 takes a free one."),
]


def report(
    runs: Annotated[list[Path], typer.Argument(help="One or more run folders. Of two, the first is before and the second after.", metavar="RUN")],
    out: Annotated[Path | None, typer.Option(help="The file to write.", show_default="report.html in the run's folder; for several runs, in this folder")] = None,
    judge: SeveralJudges = (),
    figures: Annotated[Path | None, typer.Option(help="Folder for every figure as SVG, PDF, CSV and LaTeX table.")] = None,
    *,
    settings: Part,
) -> None:  # fmt: skip
    """Write runs as one HTML page: figures, plots and all images."""
    from gapbench.cli.progress import bars

    with bars("writing the report"):
        from gapbench.report.page import write_report
        from gapbench.runs.run import open_run

        opened = [open_run(path, **vars(settings)) for path in runs]
        file = out or (opened[0].path if len(runs) == 1 else Path()) / "report.html"
        write_report(opened, file, judge, figures)
    typer.echo(f"Report: {file} ({file.stat().st_size / 1e6:.1f} MB)")
    if figures is not None:
        typer.echo(f"Figures: {figures}")


def view(
    folder: Annotated[Path, typer.Argument(help="A folder of run folders.", metavar="DIR")] = Path("runs"),
    port: Port = 0,
) -> None:  # fmt: skip
    """Open a local page with all runs of a folder, their images side by side."""
    from gapbench.cli.progress import bars
    from gapbench.report.view import Album, serve

    with bars(f"reading {folder}"):
        album = Album(folder)
    _open(serve(album, port), f"{counted(len(album.runs), 'run')} in {folder}")


def label(
    run: RunPath,
    rater: Annotated[str, typer.Option(help="Your name. The labels of each rater are stored separately.")] = "rater",
    port: Port = 0,
    sheet: Annotated[bool, typer.Option("--sheet", help="Print instead what a paper has to say of the labels of all raters, in Markdown: question, sampling, agreement.")] = False,
) -> None:  # fmt: skip
    """Open a local page where a person judges the images of a run."""
    from gapbench.report.label import Labels, serve
    from gapbench.runs.run import open_run

    if sheet:
        from gapbench.report.study import study

        if (rater, port) != ("rater", 0):
            raise GapbenchError("--sheet is of all raters; leave out --rater and --port")

        typer.echo(printable(study(open_run(run))))
        return

    labels = Labels(open_run(run), rater)
    total = len(labels.items)
    _open(serve(labels, port), f"{labels.there()} of {total} images are labelled by {rater}")
    typer.echo(
        f"\n{labels.there()} of {total} images are labelled in {labels.file}; the same command "
        f"continues. How far the judges agree with them: gapbench show {labels.run.path}"
    )


def _open(served: AbstractContextManager[tuple[str, Callable[[], None]]], told: str) -> None:
    """Open a local page and serve it until Ctrl-C."""
    import webbrowser

    with served as (address, forever):
        typer.echo(f"{told}. This page is open until Ctrl-C:\n{address}")
        webbrowser.open(address)
        with suppress(KeyboardInterrupt):
            forever()
