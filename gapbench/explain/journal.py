"""What a stopped command goes on from: a JSON line for each thing that was computed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gapbench.files import append_lines, drop_torn_line, read_lines
from gapbench.types import GapbenchError


class Journal:
    """Records by key in an append-only file; a last line that a crash tore is dropped.

    `there` holds what is known. Raises GapbenchError where the file cannot be read or written.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            drop_torn_line(file)
            self.there: dict[str, Any] = dict(read_lines(file, _pair))
        except OSError as error:
            raise GapbenchError(
                f"{file}: cannot be read or made ({error}); remove it and run the same command "
                "again"
            ) from error

    def add(self, records: Mapping[str, Any]) -> None:
        """Keep records: on disk when this returns."""
        self.there |= records
        try:
            append_lines(self._file, records.items())
        except OSError as error:
            raise GapbenchError(
                f"{self._file}: {error}; make room or mend it, then run the same command again"
            ) from error


def _pair(row: Any) -> tuple[str, Any]:
    key, value = row
    return key, value
