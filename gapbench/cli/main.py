"""The command line: parse, call one function, print."""

from __future__ import annotations

import os
import signal
import sys
import traceback as tracebacks
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO

import typer

from gapbench.cli import catalog, compare, explain, fix, leaderboard, lm_eval, report
from gapbench.cli.options import Command, Judge, RunPath, command
from gapbench.cli.terminal import console
from gapbench.fetch.libraries import go_offline, quiet
from gapbench.runs.settings import Offline, RunSettings
from gapbench.types import STOPS, GapbenchError, Interrupted, counted, printable

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def run(
    settings: RunSettings,
    offline: Offline = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the remaining work, with time and disk space, and exit.")] = False,
    config: Annotated[Path | None, typer.Option(help="YAML file with these options. Options on the command line override it.")] = None,  # noqa: ARG001
) -> None:  # fmt: skip
    """Measure a model: generate images, judge them, print a table.

    To continue an interrupted run, give the same command again.
    """
    go_offline(offline)
    quiet()
    if dry_run:
        from gapbench.runs.estimate import estimate
        from gapbench.runs.plan import prepare

        made = prepare(settings)
        typer.echo("\n".join([estimate(made).words(), *made.plan.notes()]))
        return
    from gapbench.cli.progress import bars
    from gapbench.report.sheets import write_sheets
    from gapbench.report.summary import show_run
    from gapbench.runs.flow import measure

    with bars() as progress:
        done = measure(replace(settings, progress=progress))
    sheets = write_sheets(done)
    show_run(done, None, console())
    console().print(
        f"Pictures: {done.path / 'sheets'} ({counted(len(sheets), 'contact sheet')}). The table "
        f"again: gapbench show {done.path}",
        soft_wrap=True,
    )
    if failed := done.failures():
        count = sum(sum(reasons.values()) for reasons in failed.values())
        raise GapbenchError(
            f"{count} of the images and verdicts are missing, as said above; run the same command "
            "again to try them again"
        )


def show(
    path: RunPath,
    form: Annotated[Literal["text", "markdown", "csv", "json", "latex"], typer.Option("--format", help="Format of the table.")] = "text",
    judge: Judge = None,
) -> None:  # fmt: skip
    """Print the table of a stored run."""
    from gapbench.report.summary import show_run
    from gapbench.report.tables import render
    from gapbench.runs.run import open_run

    opened = open_run(path)
    if form == "text":
        show_run(opened, judge, console())
    else:
        typer.echo(printable(render(opened.rates(judge), form, opened.footnote)).rstrip("\n"))


COMMANDS: tuple[Callable[..., None], ...] = (
    run, show, compare.compare, compare.power, lm_eval.lm_eval, explain.explain, catalog.tasks,
    catalog.models, catalog.check_model, catalog.prepare, fix.fix, report.report, report.view, report.label,
    leaderboard.submit, leaderboard.verify, leaderboard.leaderboard, leaderboard.push,
)  # fmt: skip
for function in COMMANDS:
    app.command(cls=Command)(command(function))
USAGE_ERROR: Any = typer.BadParameter.__mro__[1]  # typer gives it no public name


@app.callback()
def options(
    traceback: Annotated[bool, typer.Option("--traceback", help="Print errors whole, with Python's traceback. May stand anywhere.")] = False,
) -> None:  # fmt: skip
    """Measure the gap between what a unified multimodal model can generate and what it understands."""
    if traceback:
        import logging

        logging.basicConfig(format="%(message)s")
        logging.getLogger("gapbench").setLevel(logging.DEBUG)


def main() -> None:
    """Entry point: errors for people are one line on stderr and exit code 2. SIGTERM and SIGHUP end
    a command as Ctrl-C does."""
    for stop in STOPS:
        if signal.getsignal(stop) == signal.SIG_DFL:
            signal.signal(stop, signal.default_int_handler)
    whole = "--traceback" in sys.argv
    arguments = [word for word in sys.argv[1:] if word != "--traceback"] or ["--help"]
    try:
        code = app(["--traceback"] * whole + arguments, prog_name="gapbench", standalone_mode=False)
    except USAGE_ERROR as error:
        told = error.format_message().rstrip(".")
        place = error.ctx.command_path if error.ctx else "gapbench"
        more = "" if told.endswith("?") else f"; see `{place} --help`"
        typer.echo(printable(f"gapbench: {told}{more}"), err=True)
        sys.exit(2)
    except Interrupted:
        typer.echo(
            "gapbench: stopped after the batch in hand; run the same command again to go on",
            err=True,
        )
        sys.exit(130)
    except BaseException as error:  # an adapter may raise anything
        from gapbench.files import blamed

        if isinstance(error, BrokenPipeError) and _is_closed(sys.stdout):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        if whole:
            tracebacks.print_exception(error)
        told = isinstance(error, GapbenchError)
        more = "" if told else "; --traceback prints the whole error"
        typer.echo(printable(f"gapbench: {blamed(error)}{more}"), err=True)
        sys.exit(2)
    sys.exit(code)


def _is_closed(stream: TextIO) -> bool:
    """Whether nobody reads a stream any more, as in `gapbench show ... | head`."""
    try:
        stream.flush()
    except BrokenPipeError:
        return True
    return False
