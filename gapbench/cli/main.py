"""The command line: parse, call one function, print."""

from __future__ import annotations

import os
import select
import signal
import sys
import traceback as tracebacks
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from gapbench.cli import (
    catalog,
    compare,
    explain,
    fix,
    init,
    leaderboard,
    lm_eval,
    report,
    runs,
    serve,
)
from gapbench.cli.options import Command, ReportTo, RunPath, SeveralJudges, TableForm, command
from gapbench.cli.terminal import QUIET, console
from gapbench.fetch import libraries
from gapbench.fetch.libraries import go_offline, quiet
from gapbench.runs.settings import Offline, Part, RunSettings
from gapbench.types import STOPS, GapbenchError, Interrupted, counted, printable

app = typer.Typer(
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def run(
    settings: RunSettings,
    offline: Offline = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the remaining work, with the time by earlier runs in --out, and exit. Downloads, loads and asks nothing.")] = False,
    calibrate: Annotated[bool, typer.Option("--calibrate", help="The same, with the time by a few images that are drawn and judged for it. Downloads nothing, but asks a model behind a server.")] = False,
    form: TableForm = "text",
    report_to: ReportTo = (),
    config: Annotated[Path | None, typer.Option(help="YAML file with these options. Options on the command line override it.")] = None,  # noqa: ARG001
) -> None:  # fmt: skip
    """Measure a model: generate images, judge them, print a table.

    To continue an interrupted run, give the same command again.
    """
    go_offline(offline or dry_run or calibrate)
    quiet()
    if dry_run or calibrate:
        if form != "text":
            raise GapbenchError(
                "--dry-run and --calibrate print text; leave out --format or --json"
            )
        from gapbench.runs.estimate import estimate
        from gapbench.runs.plan import prepare

        made = prepare(settings)
        typer.echo("\n".join([estimate(made, calibrate).words(), *made.plan.notes()]))
        return
    from gapbench.cli.progress import bars

    # What an adapter prints is no part of the table.
    with redirect_stdout(sys.stderr), bars(f"loading {settings.model}") as progress:
        from gapbench.report import trackers
        from gapbench.report.sheets import write_sheets
        from gapbench.report.summary import show_overall, show_run
        from gapbench.report.tables import render
        from gapbench.runs.flow import measure

        trackers.check(report_to)
        done = measure(replace(settings, progress=progress))
        sheets = write_sheets(done)
    if form != "text":
        table = render(done.rates(), form, done.footnote, done.unfinished)
        typer.echo(printable(table).rstrip("\n"))
    else:
        screen = console()  # a log or a pipe gets the whole table
        show_overall(done, screen) if screen.is_terminal else show_run(done, (), screen, True)
    if form == "text" and not QUIET.get():
        pictures = f"{done.path / 'sheets'} ({counted(len(sheets), 'contact sheet')})"
        console().print(f"Pictures: {pictures}")
        console().print(f"Whole table: gapbench show {done.path}")
        console().print(f"All images on a page: gapbench report {done.path}")
    if report_to:
        figures = trackers.figures(done.rates())
        trackers.log(report_to, done.path.name, done.folder.meta, figures, done.path)
    if failed := done.failures():
        count = sum(sum(reasons.values()) for reasons in failed.values())
        raise GapbenchError(
            f"{count} of the images and verdicts are missing, as said above; run the same command "
            "again to try them again"
        )


def show(
    path: RunPath,
    form: TableForm = "text",
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Add the counts behind each figure.")] = False,
    judge: SeveralJudges = (),
    *,
    settings: Part,
) -> None:  # fmt: skip
    """Print the table of a stored run: of all that was ever asked of its folder, or a part."""
    from gapbench.cli.progress import bars

    with bars(f"reading {path}"):
        from gapbench.report import judges, tables
        from gapbench.report.summary import show_run
        from gapbench.runs.run import open_run

        opened = open_run(path, **vars(settings))
    if form == "text":
        show_run(opened, judge, console(), verbose)
        return
    if len(judge) > 1:
        table = judges.render(opened, judge, form)
    else:
        if not judge and any(len(asks) > 1 for asks in opened.plan.asks):
            every = ",".join(opened.plan.judges)
            typer.echo(f"These are against each task's first judge; all: --judge {every}", err=True)
        rates = opened.rates(next(iter(judge), None))
        table = tables.render(rates, form, opened.footnote, opened.unfinished)
    typer.echo(printable(table).rstrip("\n"))


COMMANDS: tuple[Callable[..., None], ...] = (
    run, runs.runs, runs.judge, runs.merge, show, compare.compare, compare.power, compare.parity, lm_eval.lm_eval, explain.explain,
    catalog.tasks, catalog.models, init.init, catalog.check_model, catalog.check_judge,
    catalog.prepare, fix.fix, serve.serve_judge, report.report, report.view, report.label,
    leaderboard.submit, leaderboard.verify, leaderboard.leaderboard, leaderboard.push,
)  # fmt: skip
for function in COMMANDS:
    app.command(cls=Command)(command(function))
ANYWHERE: Final = ("--traceback", "--quiet", "-q", "--allow-http")
"""The program's options that may also stand after a command."""
USAGE_ERROR: Any = typer.BadParameter.__mro__[1]  # typer gives it no public name


def _version(asked: bool) -> None:
    if asked:
        from gapbench import __version__

        typer.echo(f"gapbench {__version__}")
        raise typer.Exit


@app.callback()
def options(
    traceback: Annotated[bool, typer.Option("--traceback", help="Print errors whole, with Python's traceback. May stand anywhere.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only results: no progress and no advice. May stand anywhere.")] = False,
    allow_http: Annotated[bool, typer.Option("--allow-http", help="Send images, and the key, to servers on other machines by plain http. May stand anywhere.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")] = False,  # noqa: ARG001
) -> None:  # fmt: skip
    """Measure the gap between what a unified multimodal model can generate and what it understands."""
    QUIET.set(quiet)
    libraries.allow_http(allow_http)
    if traceback:
        import logging

        logging.basicConfig(format="%(message)s")
        logging.getLogger("gapbench").setLevel(logging.DEBUG)


def main() -> None:
    """Entry point: errors for people are one line on stderr and exit code 2. SIGTERM and SIGHUP end
    a command as Ctrl-C does."""
    # Torch's threads that wait spin for a millisecond by default: beside any other work that makes
    # a run several times slower (benchmarks/README.md).
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    for stop in STOPS:
        if signal.getsignal(stop) == signal.SIG_DFL:
            signal.signal(stop, signal.default_int_handler)
    whole = "--traceback" in sys.argv
    words = sys.argv[1:] or ["--help"]
    words.sort(key=lambda word: word not in ANYWHERE)
    if "_GAPBENCH_COMPLETE" in os.environ or words[0].endswith("-completion"):
        app(words, prog_name="gapbench")  # typer's own, which ends the process
    try:
        code = app(words, prog_name="gapbench", standalone_mode=False)
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

        # typer leaves by sys.exit where a pipe broke
        if isinstance(error.__context__ or error, BrokenPipeError) and _is_closed(1):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.exit(1)
        if whole:
            tracebacks.print_exception(error)
        told = isinstance(error, GapbenchError)
        more = "" if told else "; --traceback prints the whole error"
        typer.echo(printable(f"gapbench: {blamed(error)}{more}"), err=True)
        sys.exit(2)
    sys.exit(code)


def _is_closed(pipe: int) -> bool:
    """Whether nobody reads a pipe any more, as in `gapbench show ... | head`."""
    poll = select.poll()
    poll.register(pipe, 0)
    return bool(poll.poll(0))
