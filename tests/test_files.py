"""What a folder's files hash to."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from gapbench import files


def test_a_large_file_is_hashed_by_its_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, data = tmp_path / "weights", os.urandom(1000)
    file.write_bytes(data)
    small = files.digest("head", [file])
    line = f"weights {hashlib.sha256(data).hexdigest()}\n"
    assert small == hashlib.sha256(f"head{line}".encode()).hexdigest()

    monkeypatch.setattr(files, "PIECE", 64)
    pieces = [hashlib.sha256(data[at : at + 64]).digest() for at in range(0, 1000, 64)]
    line = f"weights {hashlib.sha256(b''.join(pieces)).hexdigest()}\n"
    large = files.digest("head", [file])
    assert large == hashlib.sha256(f"head{line}".encode()).hexdigest()
    for at in (0, 500, 999):
        changed = bytearray(data)
        changed[at] ^= 1
        file.write_bytes(changed)
        assert files.digest("head", [file]) != large
    file.write_bytes(data)
    assert files.digest("head", [file]) == large
