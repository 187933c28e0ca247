"""The command `gapbench fix`."""

from __future__ import annotations

import os

from gapbench.cli.terminal import QUIET, say
from gapbench.fetch.libraries import go_offline, quiet
from gapbench.fix.settings import FixSettings
from gapbench.runs.settings import Offline, silent


def fix(settings: FixSettings, offline: Offline = False) -> None:
    """Train a model on the images that it accepts itself.

    To continue an interrupted fix, give the same command again.
    """
    go_offline(offline)
    quiet()
    from gapbench.cli.progress import bars

    first = int(os.environ.get("RANK", "0")) == 0
    with bars(f"loading {settings.model}" * first) as progress:
        from gapbench.fix.run import fix as run_fix

        tell = (lambda _line: None) if QUIET.get() else say
        done = run_fix(settings, progress if first else silent, tell)
    if first:
        for line in done.words():
            say(line)
