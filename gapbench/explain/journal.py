"""What a stopped command goes on from: a JSON line for each thing that was computed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gapbench.types import GapbenchError


class Journal:
    """Records by key in an append-only file; a last line that a crash tore is dropped.

    `there` holds what is known. Raises GapbenchError where the file cannot be read or written.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self.there: dict[str, Any] = {}
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            data = file.read_bytes() if file.exists() else b""
            whole = data[: data.rfind(b"\n") + 1]
            if whole != data:
                file.write_bytes(whole)
            for line in whole.splitlines():
                key, value = json.loads(line)
                self.there[key] = value
        except (OSError, ValueError, TypeError) as error:
            raise GapbenchError(
                f"{file}: cannot be read or made ({error}); remove it and run the same command "
                "again"
            ) from error

    def add(self, records: Mapping[str, Any]) -> None:
        """Keep records: on disk when this returns."""
        self.there |= records
        lines = "".join(json.dumps(record) + "\n" for record in records.items())
        try:
            with self._file.open("ab") as opened:
                opened.write(lines.encode())
                opened.flush()
                os.fsync(opened.fileno())
        except OSError as error:
            raise GapbenchError(
                f"{self._file}: {error}; make room or mend it, then run the same command again"
            ) from error
