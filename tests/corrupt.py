"""Files of a run folder or a submission, broken at random."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from gapbench.files import without_checksum

VALUES: list[Any] = [
    None, True, -1, 0, 7, 2**70, 1e308, float("nan"), float("inf"), "", "x", "\x1b[2J", "\ud800",
    "../../etc/passwd", "a" * 64, "x" * 5000, [], [[]], {}, {"a": None},
]  # fmt: skip


def replaced(value: Any, chance: random.Random) -> Any:
    """A JSON value with one part of it exchanged, left out or put twice."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice([*value])
        if chance.random() < 0.2:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: replaced(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.9:
        place = chance.randrange(len(value))
        more = [] if chance.random() < 0.2 else [replaced(value[place], chance)]
        return [*value[:place], *more, *value[place + 1 :]]
    return chance.choice(VALUES)


def bitten(data: bytes, chance: random.Random) -> bytes:
    """Bytes with a bit flipped, a piece missing, or something put in."""
    place = chance.randrange(len(data) + 1)
    kind = chance.randrange(4)
    if kind == 0 and place < len(data):
        return data[:place] + bytes([data[place] ^ (1 << chance.randrange(8))]) + data[place + 1 :]
    if kind == 1:
        return data[:place]
    if kind == 2:
        return data[:place] + data[place + chance.randrange(1, 40) :]
    return (
        data[:place] + chance.choice([b"\n", b"\0", b"\xff\xfe", b'"', b"[" * 9000]) + data[place:]
    )


def edited(file: Path, chance: random.Random) -> None:
    """Exchange a value of a JSON file or of a line of one, and drop the checksum."""
    lines = [file.read_text()] if file.suffix == ".json" else file.read_text().splitlines()
    place = chance.randrange(len(lines))
    value = replaced(without_checksum(json.loads(lines[place])), chance)
    lines[place] = json.dumps(value)
    file.write_text("\n".join(lines) + "\n")


def broken(folder: Path, chance: random.Random) -> None:
    """Break one file of a folder."""
    files = sorted(f for f in folder.rglob("*") if f.is_file() and f.name != ".lock")
    records = [f for f in files if f.suffix in (".json", ".jsonl")]
    file = chance.choice(records if chance.random() < 0.8 else files)
    kind = chance.randrange(10)
    if kind < 5 and file in records:
        edited(file, chance)
    elif kind < 9:
        file.write_bytes(bitten(file.read_bytes(), chance))
    else:
        file.unlink()
        if chance.random() < 0.5:
            file.mkdir()
