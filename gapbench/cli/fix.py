"""The command `gapbench fix`."""

from __future__ import annotations

import os

from gapbench.cli.terminal import console
from gapbench.fetch.libraries import go_offline, quiet
from gapbench.fix.settings import FixSettings
from gapbench.runs.settings import Offline


def fix(settings: FixSettings, offline: Offline = False) -> None:
    """Post-train a model on the candidates that it accepts itself; the same command again goes on."""
    go_offline(offline)
    quiet()
    from gapbench.cli.progress import bars
    from gapbench.fix.run import fix as run_fix

    screen, first = console(), int(os.environ.get("RANK", "0")) == 0

    def say(line: str) -> None:
        screen.print(line, soft_wrap=True)

    with bars() as progress:
        done = run_fix(settings, progress if first else lambda *_: lambda _count: None, say)
    if first:
        for line in done.words():
            say(line)
