"""What a terminal shows: a line at once, bars, and only results where that is asked for."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

import gapbench
from gapbench.cli.main import main
from gapbench.cli.progress import bars
from gapbench.cli.terminal import QUIET, say

Cli = Callable[..., subprocess.CompletedProcess[str]]
CODES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    return Terminal()


def lines(terminal: Terminal) -> list[str]:
    """Every state that a line of the terminal had."""
    return [line.strip() for line in re.split(r"[\r\n]+", CODES.sub("", terminal.getvalue()))]


def test_bars_say_what_is_elapsed_and_what_is_left(screen: Terminal) -> None:
    with redirect_stderr(screen), bars("loading m") as stage:
        advance = stage("training, epochs 11-20", 2, 1000)
        for _ in range(499):
            advance(2, "loss 1.234")
        stage("verdicts", 7, 7)
    shown = lines(screen)
    assert any(line.endswith("loading m ...") for line in shown)
    assert not any("verdicts" in line for line in shown)  # all of them were there
    assert not any(re.search(r"left(?! \d)", line) for line in shown)
    states = [line for line in shown if line.startswith("training, epochs 11-20")]
    assert states
    assert all(re.search(r"elapsed \d+:\d\d", line) and len(line) <= 80 for line in states)
    assert re.search(r"1000/1000 .*/s elapsed 0:0\d loss 1\.234$", states[-1])


def test_a_finished_bar_stays_above_what_is_printed_after_it(screen: Terminal) -> None:
    with redirect_stderr(screen), bars() as stage:
        stage("images", 0, 3)(3)
        print("said", file=sys.stderr)
        stage("verdicts", 0, 3)(3)
    shown = screen.getvalue()
    QUIET.set(True)
    with redirect_stderr(screen), bars("loading m") as stage:
        stage("images", 0, 3)(3)
    QUIET.set(False)
    assert screen.getvalue() == shown
    after = "\n".join(lines(screen)).partition("said")[2]
    assert "verdicts" in after
    assert "images" not in after


def test_a_line_is_printed_above_a_bar_and_not_into_it(screen: Terminal) -> None:
    with redirect_stderr(screen), redirect_stdout(screen), bars("loading m") as stage:
        say("left out [2]: a copy")
        stage("images", 0, 3)(1)
        say("checked")
    assert {"left out [2]: a copy", "checked"} <= {*lines(screen)}


def test_a_long_name_of_a_bar_is_cut_and_nothing_else(screen: Terminal) -> None:
    with redirect_stderr(screen), bars() as stage:
        stage("fetch " + "long-" * 20 + "name", 0, 1)
    assert re.search(
        r"^fetch long-.*… ━+ +0/1 +elapsed 0:0\d$", lines(screen)[-1] or lines(screen)[-2]
    )


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (("run",), "loading janus-mini ..."),
        (("fix", "sft", "--out", "new"), "loading janus-mini ..."),
        (("compare", "one", "two"), "comparing ..."),
        (("show", "one"), "reading one ..."),
    ],
)
def test_a_line_comes_before_anything_slow(
    fresh_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...],
    told: str,
) -> None:  # fmt: skip
    """The libraries that take seconds end the process as they are imported."""
    for name in ("torch", "pandas", "scipy", "transformers"):
        (tmp_path / f"{name}.py").write_text("import os; os._exit(9)")
    path = [str(tmp_path), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    monkeypatch.setenv("TERM", "xterm")
    done = fresh_cli(*command)
    assert done.returncode == 9, done.stderr
    assert told in CODES.sub("", done.stderr)


def test_waiting_threads_give_up_their_core_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for own, used in ((None, "5000"), ("7", "7")):  # a user's own stays
        monkeypatch.setenv("GOMP_SPINCOUNT", own or "")
        if own is None:
            monkeypatch.delenv("GOMP_SPINCOUNT")
        monkeypatch.setattr(sys, "argv", ["gapbench", "--version"])
        with pytest.raises(SystemExit):
            main()
        assert os.environ["GOMP_SPINCOUNT"] == used


def test_short_options_the_version_and_completion(
    fresh_cli: Cli, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("--version").stdout == f"gapbench {gapbench.__version__}\n"
    assert cli("show", "-h").stdout == cli("show", "--help").stdout
    assert cli("-h").stdout == cli().stdout
    for name, value in (("COMPLETE", "complete_bash"), ("COMP_WORDS", "gapbench lead")):
        monkeypatch.setenv(name if name.startswith("COMP_") else f"_GAPBENCH_{name}", value)
    monkeypatch.setenv("COMP_CWORD", "1")
    done = fresh_cli()
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "leaderboard", "")


@pytest.mark.parametrize("word", ["models", "--version"])  # by rich, by typer
def test_a_pipe_that_nobody_reads_ends_a_command_without_a_word(word: str) -> None:
    read, write = os.pipe()
    os.close(read)  # as `head` does, after its lines
    command = [sys.executable, "-m", "gapbench", word]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")
