"""A command in this process, which spares its start."""

from __future__ import annotations

import os
import sys
from unittest.mock import patch

import pytest

from gapbench.cli.main import main


def end(capture: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, str, str]:
    """The exit code of `gapbench ARGUMENTS`, what it printed, and what it printed to stderr."""
    with patch.dict(os.environ), patch.object(sys, "argv", ["gapbench", *arguments]):
        try:
            main()
            code: object = None
        except SystemExit as stop:
            code = stop.code
    said = capture.readouterr()
    return code, said.out, said.err
