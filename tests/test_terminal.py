"""The docs' pictures of the terminal are of the page's commands, and do not show where they ran."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from rich.text import Text

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
terminal = pytest.importorskip("terminal", exc_type=ImportError)  # it needs a pty


def test_every_command_has_its_picture_light_and_dark() -> None:
    page = (ROOT / "docs" / "terminal.md").read_text(encoding="utf-8")
    named = {name: command for command, name in terminal.COMMANDS.findall(page) if name}
    assert {*named} == {"run", "fix", "runs", "compare"}
    for name, command in named.items():
        for theme in terminal.THEMES:
            svg = (ROOT / "docs" / "terminal" / f"{name}-{theme}.svg").read_text(encoding="utf-8")
            text = re.sub(r"<[^>]*>", "", svg).replace("&#160;", " ")
            assert f"$ {command}" in text
            assert "/tmp" not in text
            assert "loading" not in text  # a line that goes away
            assert "url(http" not in svg


def test_a_screen_is_what_is_left_of_what_was_written() -> None:
    said = "loading\r\x1b[2K\x1b[32mone\x1b[0m\ntwo\n\x1b[2A\x1b[2Kthree\r\nTWO"
    assert Text.from_ansi(terminal.screen(said)).plain == "three\nTWO"
