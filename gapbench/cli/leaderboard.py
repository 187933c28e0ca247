"""The commands around the leaderboard: submit, verify, leaderboard, push."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gapbench.cli.options import Results, RunPath
from gapbench.types import GapbenchError, counted


def submit(
    path: RunPath,
    contact: Annotated[str, typer.Option(help="Who can be asked about the submission. This will be public.")] = "",
    checkpoint: Annotated[str | None, typer.Option(help="Where others can download the weights, if the model was a folder.", metavar="OWNER/NAME@COMMIT")] = None,
    allow_test_model: Annotated[bool, typer.Option("--allow-test-model", help="Submit a test model, which has its own section.")] = False,
    results: Results = Path("results"),
) -> None:  # fmt: skip
    """Create a run's submission to the leaderboard."""
    from gapbench.leaderboard.submit import submit as make
    from gapbench.runs.run import open_run

    made = make(open_run(path), results, contact, checkpoint, allow_test_model)
    typer.echo(
        f"{made} is written and verified. `gapbench leaderboard` puts it on the board; commit both."
    )


def verify(
    folders: Annotated[list[Path], typer.Argument(help="Submissions, results/<model>.", metavar="SUBMISSION")],
    run: Annotated[Path | None, typer.Option(help="The run folder, with the images.")] = None,
    rejudge: Annotated[int, typer.Option(help="Number of images of --run whose verdicts are computed again.", min=0)] = 0,
    model: Annotated[str | None, typer.Option(help="The model, if the card names only a checkpoint.")] = None,
    draw: Annotated[int, typer.Option(help="Seed for choosing these images.")] = 0,
) -> None:  # fmt: skip
    """Recompute the figures of submissions and check their rows."""
    from gapbench.leaderboard.expected import Installed
    from gapbench.leaderboard.verify import check, check_images

    if bool(rejudge) != (run is not None):
        raise GapbenchError("--rejudge takes the images of --run, and --run is for --rejudge")
    if run is not None and len(folders) > 1:
        raise GapbenchError("--run is of one submission; give one")
    installed, failed = Installed(), False
    for folder in folders:
        faults = check(folder, installed=installed)
        if run is not None and not faults:
            faults = check_images(folder, run, rejudge, model, draw)
        for fault in faults:
            typer.echo(f"FAIL  {fault}")
        if not faults:
            again = f", {counted(rejudge, 'image')} judged again" if rejudge else ""
            typer.echo(f"ok    {folder}: complete, every figure recomputed{again}")
        failed = failed or bool(faults)
    if failed:
        raise typer.Exit(1)


def leaderboard(
    results: Results = Path("results"),
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit with code 1 if leaderboard.md is out of date.")] = False,
) -> None:  # fmt: skip
    """Write leaderboard.md and leaderboard.html from results."""
    from gapbench.leaderboard.board import is_current, write
    from gapbench.leaderboard.submission import submissions

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
