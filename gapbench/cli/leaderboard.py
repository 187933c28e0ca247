"""The commands around the leaderboard: submit, verify, leaderboard, push."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Annotated

import typer

from gapbench.cli.options import Results, RunPath
from gapbench.runs.settings import Part
from gapbench.types import GapbenchError, counted, printable


def submit(
    path: RunPath,
    contact: Annotated[str, typer.Option(help="Who can be asked about the submission. This will be public.")] = "",
    checkpoint: Annotated[str | None, typer.Option(help="Where others can download the weights, if the model was a folder.", metavar="OWNER/NAME@COMMIT")] = None,
    name: Annotated[str | None, typer.Option(help="Name on the leaderboard.", show_default="the model's")] = None,
    allow_test_model: Annotated[bool, typer.Option("--allow-test-model", help="Submit a test model, which has its own section.")] = False,
    results: Results = Path("results"),
    *,
    settings: Part,
) -> None:  # fmt: skip
    """Create a run's submission to the leaderboard."""
    from gapbench.cli.progress import bars

    with bars(f"reading {path}"):
        from gapbench.leaderboard.submit import submit as make
        from gapbench.runs.run import open_run

        run, notes = open_run(path, **vars(settings)), list[str]()
        made = make(run, results, contact, checkpoint, allow_test_model, name, notes.append)
    for note in notes:
        typer.echo(printable(note))
    typer.echo(
        f"{made} is written and verified. `gapbench leaderboard` puts it on the board; commit both."
    )


def verify(
    folders: Annotated[list[Path], typer.Argument(help="Submissions, results/<model>.", metavar="SUBMISSION")],
    run: Annotated[Path | None, typer.Option(help="The run folder. The card and all verdicts are compared with it.")] = None,
    rejudge: Annotated[int, typer.Option(help="Number of random images of --run whose verdicts are computed again.", min=0)] = 0,
    redraw: Annotated[int, typer.Option(help="Number of random images that the model generates again.", min=0)] = 0,
    model: Annotated[str | None, typer.Option(help="The model, if the card names only a checkpoint.")] = None,
    draw: Annotated[int | None, typer.Option(help="Seed for choosing these images.", show_default="a new one, which is printed")] = None,
) -> None:  # fmt: skip
    """Recompute the figures of submissions and check their rows."""
    from gapbench.leaderboard.again import check_again
    from gapbench.leaderboard.expected import Installed
    from gapbench.leaderboard.submission import QUESTIONS
    from gapbench.leaderboard.verify import check

    if rejudge and run is None:
        raise GapbenchError("--rejudge takes the images of a run; give --run")
    if (run or redraw) and len(folders) > 1:
        raise GapbenchError("--run and --redraw are of one submission; give one")
    draw = secrets.randbelow(2**32) if draw is None else draw
    installed, failed = Installed(), False
    for folder in folders:
        try:
            faults = check(folder, installed=installed)
            if (run or redraw) and not faults:
                faults = check_again(folder, run, rejudge, redraw, model, draw)
        except GapbenchError as error:  # the others are checked all the same
            if len(folders) == 1:
                raise
            faults = [f"{folder}: {error}"]
        for fault in faults:
            typer.echo(printable(f"FAIL  {fault}"))
        if not faults:
            said = ["complete", "every figure recomputed"]
            said += ["with answers to questions"] if (folder / QUESTIONS).exists() else []
            said += ["all as in its run"] if run else []
            said += [f"{counted(rejudge, 'image')} judged again"] if rejudge else []
            said += [f"{counted(redraw, 'image')} drawn again"] if redraw else []
            typer.echo(f"ok    {folder}: {', '.join(said)}")
        failed = failed or bool(faults)
    if rejudge or redraw:
        typer.echo(f"The same images again: --draw {draw}")
    if failed:
        raise typer.Exit(1)


def leaderboard(
    results: Results = Path("results"),
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit with code 1 if leaderboard.md is out of date.")] = False,
) -> None:  # fmt: skip
    """Write leaderboard.md and leaderboard.html from results."""
    from gapbench.leaderboard.board import is_current, write
    from gapbench.leaderboard.submission import submissions

    if not results.is_dir():
        raise GapbenchError(f"--results {results} is no folder; `gapbench submit` makes it")
    entries, file = submissions(results), results.parent / "leaderboard.md"
    if not check:
        write(entries, file)
        typer.echo(f"{file} and {file.with_suffix('.html')}: {counted(len(entries), 'submission')}")
    elif is_current(entries, file):
        typer.echo(f"{file} is what {results} gives: {counted(len(entries), 'submission')}")
    else:
        typer.echo(f"{file} is not what {results} gives; run `gapbench leaderboard`")
        raise typer.Exit(1)


def push(
    folder: Annotated[Path, typer.Argument(help="A run folder or a checkpoint folder.", metavar="FOLDER")],
    repo: Annotated[str, typer.Option(help="The repository on the hub.", metavar="OWNER/NAME")],
    yes: Annotated[bool, typer.Option("--yes", help="Upload it; without this, only print what would be uploaded.")] = False,
) -> None:  # fmt: skip
    """Upload a run or a checkpoint to the Hugging Face Hub."""
    from gapbench.leaderboard import push as pushing

    planned = pushing.plan(folder, repo)
    typer.echo(planned.words())
    if not yes:
        typer.echo("Nothing was uploaded; --yes uploads it.")
        return
    typer.echo(pushing.push(planned))
