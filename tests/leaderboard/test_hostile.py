"""Submissions that mean harm: each is told in one line, within a minute and a gigabyte."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from corrupt import broken

from gapbench import GapbenchError
from gapbench.leaderboard.parquet import MOST_ROWS
from gapbench.leaderboard.submission import (
    CARD,
    QUESTIONS,
    RATES,
    SKILLS,
    VERDICTS,
    schema,
    sha256,
)
from gapbench.leaderboard.verify import check

TEXT = 200_000_000
MEASURED = """
import atexit, re
from pathlib import Path
from gapbench.cli.main import main
peak = lambda: re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]
atexit.register(lambda: print("peak", int(peak()) // 1024))
main()
"""


def filled(rows: int, file: str = VERDICTS, **values: Any) -> pa.Table:
    """So many rows of one text and zeros, with other values in some columns."""
    made = {}
    for field in schema(file):
        value = values.get(field.name, "" if field.type == pa.string() else 0)
        if field.type == pa.string() and isinstance(value, str):  # the text is there once
            value = pa.DictionaryArray.from_arrays(np.zeros(rows, np.int32), [value])
        elif not isinstance(value, pa.Array):
            value = pa.repeat(pa.scalar(value, field.type), rows)
        made[field.name] = value
    return pa.table(made)


def lying(data: bytes) -> bytes:
    """The file, with a footer that says kilobytes where its pages are hundreds of megabytes."""
    meta = pq.ParquetFile(pa.BufferReader(data)).metadata

    def varint(number: int, length: int = 0) -> bytes:
        number, digits = 2 * number, []
        while number or len(digits) < length:
            digits.append(number & 127 | 128)
            number >>= 7
        return bytes([*digits[:-1], digits[-1] & 127])

    column = next(i for i in range(meta.num_columns) if meta.schema.column(i).name == "reply")
    group = meta.row_group(0)
    for size in (group.column(column).total_uncompressed_size, group.total_byte_size):
        honest = varint(size)
        assert data.count(honest) >= 1
        data = data.replace(honest, varint(1000, len(honest)))
    return data


def parquet(table: pa.Table, file: Path) -> bytes:
    pq.write_table(table, file, compression="zstd", store_schema=False)
    return file.read_bytes()


def asked(rows: int = 1, **values: Any) -> dict[str, Any]:
    """Answers to questions beside the rows of a submission."""
    return {QUESTIONS: filled(rows, QUESTIONS, **values), SKILLS: b"{}"}


def hostile(good: Path, place: Path) -> dict[str, Path]:
    """Copies of a submission, each with one thing that is wrong, signed anew."""
    card = json.loads((good / CARD).read_text())
    files = {name: (good / name).read_bytes() for name in (VERDICTS, RATES)}
    deep = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    big, bomb = "x" * 1_000_000, pa.array(["x" * TEXT])
    task, numbers = card["tasks"]["few-shapes"], pa.array(map(str, range(MOST_ROWS)))
    cases: dict[str, dict[str, Any]] = {
        "samples": {CARD: {"tasks": {"few-shapes": {**task, "samples": 2_000_000_000}}}},
        "many-samples": {CARD: {"tasks": {"few-shapes": {**task, "samples": MOST_ROWS}}}},
        "judges": {CARD: {"judges": {f"j{n}": "x" for n in range(30_000)}}},
        "some-judges": {CARD: {"judges": {**card["judges"], **{f"j{n}": "x" for n in range(99)}}}},
        "tasks": {CARD: {"tasks": {f"t{n}": task for n in range(100)}}},
        "digits": {CARD: {"seed": 10**4000}},
        "surrogate": {CARD: {"model": "janus\ud800-mini"}},
        "escape": {CARD: {"contact": "\x1b]0;owned\x07"}},
        "escaped-key": {CARD: {"\x1b[2J": 1}},
        "deep-card": {CARD: deep},
        "card-bytes": {CARD: b'{"name": "\xff\xfe"}'},
        "deep-rates": {RATES: deep},
        "long": {VERDICTS: filled(1, prompt="\x1b[2J" * 100_000)},
        "rates-names": {RATES: json.dumps({"\x1b[31m": []}).encode()},
        "one-text-in-each-row": {VERDICTS: filled(4000, reply=big)},
        "one-text": {VERDICTS: filled(1, reply=bomb)},
        "rows": {VERDICTS: filled(5_000_000)},
        "most-rows": {VERDICTS: filled(MOST_ROWS, prompt=numbers)},
        "bytes": {VERDICTS: filled(1, reply=pa.array([b"\xff"]).view(pa.string()))},
        "garbage": {VERDICTS: b"PAR1" + bytes(np.arange(5000) % 251) + b"PAR1"},
        "columns": {VERDICTS: pa.table({f"c{n}": [0] for n in range(3000)})},
        "answers-bomb": asked(text=bomb),
        "answers-rows": asked(5_000_000),
        "answers-most": asked(
            MOST_ROWS, prompt=numbers, text='{"right": [1.0]}', skills='["x"]'
        ) | {VERDICTS: filled(MOST_ROWS, prompt=numbers)},
        "answers-none": asked(0),
        "answers-columns": {QUESTIONS: filled(1), SKILLS: b"{}"},
        "answers-deep": {**asked(1), SKILLS: deep},
    }  # fmt: skip
    made = {}
    for name, changes in cases.items():
        folder = place / name / good.name
        folder.mkdir(parents=True)
        now, own = dict(files), card
        for file, change in changes.items():
            if isinstance(change, pa.Table):
                change = parquet(change, folder / file)
            if file == CARD:
                own = change if isinstance(change, bytes) else {**card, **change}
            else:
                now[file] = change
        if isinstance(own, dict):
            own = {**own, "files": {file: sha256(data) for file, data in now.items()}}
            own = json.dumps(own).encode()
        for file, data in {**now, CARD: own}.items():
            (folder / file).write_bytes(data)
        made[name] = folder
    twin = place / "lying" / good.name
    twin.mkdir(parents=True)
    now = {**files, VERDICTS: lying((made["one-text"] / VERDICTS).read_bytes())}
    own = {**card, "files": {file: sha256(data) for file, data in now.items()}}
    for file, data in {**now, CARD: json.dumps(own).encode()}.items():
        (twin / file).write_bytes(data)
    return {**made, "lying": twin}


def test_verify_cannot_be_starved(made: Any, tmp_path: Path) -> None:
    folders = hostile(made.folder, tmp_path / "results")
    path = os.pathsep.join([str(made.site), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, "verify", *map(str, folders.values())],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=100,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, ""), done.stderr[-3000:]
    *said, peak = done.stdout.splitlines()
    for folder in folders.values():
        assert any(line.startswith(f"FAIL  {folder}") for line in said), done.stdout
    for line in said:
        assert line.startswith("FAIL  ")
        assert len(line) < 1000
        assert line.isprintable()
    assert int(peak.split()[1]) < 1000


def test_broken_submissions(made: Any, copy: Path, cases: int) -> None:
    for number in range(cases):
        chance = random.Random(number)
        shutil.rmtree(copy)
        shutil.copytree(made.folder, copy)
        broken(copy, chance)
        # A digest that is wrong hides what else is: most are signed anew.
        with suppress(ValueError, TypeError, KeyError, OSError, RecursionError):
            card = json.loads((copy / CARD).read_text())
            for name in [*card["files"]]:
                card["files"][name] = sha256((copy / name).read_bytes())
            (copy / CARD).write_text(json.dumps(card))
        try:
            faults = check(copy)
        except GapbenchError as error:
            faults = [str(error)]
        assert all("\n" not in fault for fault in faults), number
