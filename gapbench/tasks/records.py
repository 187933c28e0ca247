"""Prompt records out of files: text, JSON, JSON lines, CSV and Parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from gapbench.types import GapbenchError

Placed = list[tuple[dict[str, Any], str]]
"""Records, each with where it stands, for messages."""


def read(file: Path, columns: Sequence[str] = ()) -> Placed:
    """The records of a file by its suffix: .jsonl; .json, a list or an object of records; .csv with
    a row of names, a record a row, all texts; .parquet, `columns` only, so that pictures beside the
    text are not read; else text, a prompt a line.

    Raises GapbenchError naming file and line.
    """
    if file.suffix == ".parquet":
        return _parquet(file, columns)
    if file.suffix == ".csv":
        return _csv(file, columns)
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


def joined(placed: Placed, by: str, shared: Collection[str], lists: Collection[str]) -> Placed:
    """Records in a row with one value of the column `by` as one: the value of each column of
    `shared`, and the values of each of `lists`. It stands where the first of them does.

    Raises GapbenchError, naming the record, where one has no such column or another shared value.
    """
    for record, place in placed:
        if missing := [column for column in (by, *shared, *lists) if column not in record]:
            raise GapbenchError(f"{place}: no field {missing[0]!r}")
    made: Placed = []
    for value, together in groupby(placed, lambda pair: pair[0][by]):
        records = list(together)
        first, place = records[0]
        for record, at in records:
            if odd := [column for column in shared if record[column] != first[column]]:
                raise GapbenchError(
                    f"{at}: {odd[0]} differs from that in {place}, and both are of {by} {value}"
                )
        columns = {column: [record[column] for record, _ in records] for column in lists}
        made.append(({**{column: first[column] for column in shared}, **columns}, place))
    return made


def _csv(file: Path, columns: Sequence[str]) -> Placed:
    """Raises GapbenchError where it is no CSV with these columns."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            rows = csv.DictReader(opened, strict=True)
            there = rows.fieldnames or []
            missing = [column for column in columns if column not in there]
            if missing:
                raise GapbenchError(
                    f"{file}: it has no column {missing[0]!r}; it has {', '.join(there) or 'none'}"
                )
            placed = []
            for row in rows:
                place = f"{file}:{rows.line_num}"
                if None in row or None in row.values():
                    raise GapbenchError(f"{place}: not {len(there)} cells, as the first row has")
                placed.append((dict[str, Any](row), place))
            return placed
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise GapbenchError(f"{file}: cannot be read as CSV ({error})") from error


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
