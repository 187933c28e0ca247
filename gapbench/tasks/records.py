"""Prompt records out of files: text, JSON, JSON lines and Parquet."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gapbench.types import GapbenchError

Placed = list[tuple[dict[str, Any], str]]
"""Records, each with where it stands, for messages."""


def read(file: Path, columns: Sequence[str] = ()) -> Placed:
    """The records of a file by its suffix: .jsonl; .json, a list or an object of records; .parquet,
    `columns` only, so that pictures beside the text are not read; else text, a prompt a line.

    Raises GapbenchError naming file and line.
    """
    if file.suffix == ".parquet":
        return _parquet(file, columns)
    try:
        # Not splitlines(): a prompt may hold U+2028 and its like.
        with file.open(encoding="utf-8-sig") as opened:
            lines = [line.removesuffix("\n") for line in opened]
    except (OSError, UnicodeDecodeError) as error:
        raise GapbenchError(f"{file}: cannot be read as UTF-8 text ({error})") from error
    if file.suffix == ".json":
        whole = parsed("\n".join(lines), str(file))
        values = list(whole.values()) if isinstance(whole, dict) else whole
        if not isinstance(values, list):
            raise GapbenchError(f"{file}: neither a list nor an object of prompts")
        return [_record(value, f"{file}, record {i}") for i, value in enumerate(values, 1)]
    if file.suffix == ".jsonl":
        places = [f"{file}:{number}" for number in range(1, len(lines) + 1)]
        return [_record(parsed(line, p), p) for line, p in zip(lines, places, strict=True)]
    return [({"text": line}, f"{file}:{number}") for number, line in enumerate(lines, 1)]


def _record(value: Any, place: str) -> tuple[dict[str, Any], str]:
    if not isinstance(value, dict):
        raise GapbenchError(f"{place}: a prompt is an object with `text`, not {str(value)[:40]!r}")
    return value, place


def parsed(text: str | bytes, place: str) -> Any:
    """A JSON value. Raises GapbenchError, naming the place, where it is none."""
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()  # refuses lone surrogates
    except (ValueError, RecursionError) as error:
        raise GapbenchError(f"{place}: not JSON ({error})") from error
    return value


def _parquet(file: Path, columns: Sequence[str]) -> Placed:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        there = set(pq.read_schema(file).names)
        missing = [column for column in columns if column not in there]
        if missing:
            raise GapbenchError(
                f"{file}: the dataset's columns changed, {missing[0]!r} is gone; it has "
                f"{', '.join(sorted(there))}"
            )
        rows = pq.read_table(file, columns=list(columns)).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise GapbenchError(f"{file}: cannot be read as Parquet ({error})") from error
    return [(row, f"{file}, row {i}") for i, row in enumerate(rows, 1)]
