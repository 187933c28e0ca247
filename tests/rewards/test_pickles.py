"""Pickles are read as plain values, and nothing of them is ever called."""

from __future__ import annotations

import datetime
import io
import os
import pickle
import pickletools
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gapbench import GapbenchError
from gapbench.rewards.pickles import plain

SCALARS = st.one_of(
    st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.binary()
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=30
)


@given(VALUES, st.sampled_from([3, 4, 5]))
def test_plain_values_come_back(value: Any, protocol: int) -> None:
    """As pickle reads them, with the same types."""
    data = pickle.dumps(value, protocol)
    assert plain(data) == pickle.loads(data) == value
    assert repr(plain(data)) == repr(value)


def test_a_request_of_flow_grpo_comes_back() -> None:
    about = {"tag": "position", "include": [{"class": "cat", "position": ["left of", 0]}]}
    asked = {"images": [b"\xff\xd8" * 500, b""], "meta_datas": [about] * 2, "only_strict": True}
    for protocol in (3, 4, 5):
        assert plain(pickle.dumps(asked, protocol)) == asked


class Call:
    """Unpickled, it makes a file."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.system, (f"touch {self.place}",)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickled_object_is_refused_and_not_run(tmp_path: Path, protocol: int) -> None:
    place = tmp_path / "ran"
    data = pickle.dumps({"images": [], "prompts": [Call(place)]}, protocol)
    with pytest.raises(GapbenchError, match="pickle"):
        plain(data)
    assert not place.exists()
    pickle.loads(data)  # what would have happened
    assert place.exists()


@pytest.mark.parametrize(
    "value",
    [None, (1, 2), {1, 2}, bytearray(b"x"), np.float32(1), np.array([1]), datetime.date.min, 1j,
     len, {1: "key"}, {b"k": 1}],
    ids=repr,
)  # fmt: skip
def test_other_values_are_refused(value: Any) -> None:
    for made in (value, {"images": [value]}):
        with pytest.raises(GapbenchError, match=r"plain values"):
            plain(pickle.dumps(made))


def doubled(times: int) -> list[Any]:
    inner: list[Any] = []
    for _ in range(times):
        inner = [inner, inner]
    return inner


def itself() -> list[Any]:
    made: list[Any] = []
    made.append(made)
    return made


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\x80", b"\x80\x04.", b"garbage", b"\x80\x04]", b"\x80\x04]]." , b"\x80\x04(.",
        b"\x80\x04a.", b"\x80\x04K\x01a.", b"\x80\x04h\x00.", b"\x80\x04}K\x01K\x02u.",
        b"\x80\x04K\x01K\x02a.", b"\x80\x04e.", b"\x80\x04](K\x01(e.", b"\x80\x04}(K\x01u.",
        b"\x80\x04B" + struct.pack("<I", 2**32 - 1) + b"x.",  # bytes that are not there
        b"\x80\x05\x96" + struct.pack("<Q", 2**50) + b".",  # a buffer of a petabyte
        b"\x80\x04]r" + struct.pack("<I", 2**32 - 1) + b"2.",  # a memo of four thousand million
        pickle.dumps(doubled(60)), pickle.dumps(itself()),
        pickle.dumps(doubled(25)), b"cos\nsystem\n(S'true'\ntR.", b"\x80\x02\x82\x01.", b"P1\n.",
    ],
)  # fmt: skip
def test_broken_and_hostile_data_is_one_line(data: bytes) -> None:
    with pytest.raises(GapbenchError, match="pickle") as told:
        plain(data)
    assert "\n" not in str(told.value)


@given(VALUES, st.integers(0, 400), st.binary(max_size=3))
def test_altered_data_is_read_or_refused(value: Any, place: int, other: bytes) -> None:
    """Whatever stands there: a plain value or one error, as fast."""
    data = pickle.dumps(value)
    data = data[:place] + other + data[place + len(other) :]
    try:
        made = plain(data)
    except GapbenchError:
        return
    names = {opcode.name for opcode, _, _ in pickletools.genops(io.BytesIO(data))}
    assert not names & {"GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "INST", "OBJ", "NEWOBJ"}
    assert isinstance(made, dict | list | str | bytes | float | int)
