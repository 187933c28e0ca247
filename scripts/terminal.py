"""The pictures of docs/terminal.md: what commands leave on a terminal, light and dark.

python scripts/terminal.py [COLUMNS [FOLDER]]: runs the commands of the page in a new folder.
"""

from __future__ import annotations

import io
import os
import pty
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import DEFAULT_TERMINAL_THEME, SVG_EXPORT_THEME
from rich.text import Text

DOCS = Path(__file__).parent.parent / "docs"
THEMES = {"light": DEFAULT_TERMINAL_THEME, "dark": SVG_EXPORT_THEME}
COMMANDS = re.compile(
    r"^    (gapbench [^\n]+)\n(?:\n<picture>.*?terminal/(\w+)-light)?", re.MULTILINE | re.DOTALL
)
CONTROL = re.compile(r"\x1b\[([\d;?]*)([A-Za-z])|(\r)|(\n)|(\x1b.)")
FONTS = re.compile(r"@font-face \{.*?\}\n", re.DOTALL)
"""What rich's pictures would fetch from a network."""


def record(command: str, columns: int, folder: Path) -> str:
    """Everything that a command writes to a terminal."""
    near, far = pty.openpty()
    env = {**os.environ, "COLUMNS": str(columns), "LINES": "50", "TERM": "xterm-256color"}
    process = subprocess.Popen(
        shlex.split(command), cwd=folder, env=env, stdin=far, stdout=far, stderr=far
    )
    os.close(far)
    said = b""
    try:
        while data := os.read(near, 65536):
            said += data
    except OSError:  # Linux tells of the end so
        pass
    if process.wait():
        sys.exit(f"{command}: {said.decode()}")
    return said.decode()


def screen(said: str) -> str:
    """What is left on the terminal: lines with their colours, after all that moved the cursor."""
    lines: list[list[str]] = [[]]
    row, column, style = 0, 0, ""
    place = 0
    for control in [*CONTROL.finditer(said), None]:
        for letter in said[place : control.start() if control else None]:
            line = lines[row]
            line += [" "] * (column + 1 - len(line))
            line[column], column = f"\x1b[0m{style}{letter}" if style else letter, column + 1
        if control is None:
            break
        place = control.end()
        number, name, back, down, _ = control.groups()
        if back:
            column = 0
        elif down:
            row, column = row + 1, 0
            lines += [[]] * (row == len(lines))
        elif name == "m":
            style = "" if number in ("", "0") else f"{style}\x1b[{number}m"
        elif name == "A":
            row = max(0, row - int(number or 1))
        elif name == "K":
            lines[row] = [] if number == "2" else lines[row][:column]
    while len(lines) > 1 and not lines[-1]:
        lines.pop()
    return "\n".join("".join(line) + "\x1b[0m" for line in lines)


def main(columns: str = "80", folder: str | None = None) -> None:
    to = Path(folder or DOCS / "terminal")
    with tempfile.TemporaryDirectory() as place:
        for command, name in COMMANDS.findall((DOCS / "terminal.md").read_text(encoding="utf-8")):
            text = screen(record(command, int(columns), Path(place)))
            for theme, colors in THEMES.items() if name else ():
                console = Console(record=True, width=int(columns), file=io.StringIO())
                console.print(Text.from_ansi(f"$ {command}\n{text}"), "")  # the last line is cut
                svg = console.export_svg(title="", theme=colors, unique_id=f"{name}-{theme}")
                (to / f"{name}-{theme}.svg").write_text(FONTS.sub("", svg), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
