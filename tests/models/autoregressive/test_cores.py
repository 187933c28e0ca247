"""A small model's batches in parts, side by side on a CPU's cores."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from gapbench.models.autoregressive.cores import LEAST, Cores


@pytest.fixture(params=[1, 2, 16])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """How many threads torch has, before a model takes the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("rows", [1, 2 * LEAST - 1, 2 * LEAST, 2 * LEAST + 5])
def test_a_batch_is_cut_in_two_where_there_are_cores_and_rows_enough(
    threads: int, rows: int
) -> None:
    cores, weights = Cores(), torch.eye(3, requires_grad=True)
    both = threading.Barrier(2 if threads > 1 and rows >= 2 * LEAST else 1, timeout=20)
    calls: list[tuple[slice, int, bool]] = []

    def call(part: slice) -> list[int]:
        both.wait()  # breaks where parts come one after the other
        calls.append((part, torch.get_num_threads(), (weights @ weights).requires_grad))
        return list(range(rows))[part]

    cores.take()
    with torch.inference_mode():
        assert cores.split(call, rows) == list(range(rows))
    cores.give_back()
    assert len(calls) == both.parties
    assert all(used == 1 and not kept for _, used, kept in calls)
    assert torch.get_num_threads() == threads


def test_with_gradients_and_without_the_cores_a_batch_stays_whole(threads: int) -> None:
    cores, calls = Cores(), []

    def call(part: slice) -> list[int]:
        calls.append((part, threading.current_thread()))
        return [0] * 100

    with torch.inference_mode():
        cores.split(call, 100)
    cores.take()
    cores.split(call, 100)
    cores.give_back()
    with torch.inference_mode():
        cores.split(call, 100)
    assert calls == [(slice(0, 100), threading.current_thread())] * 3


def test_what_fails_in_a_part_is_raised(threads: int) -> None:
    cores = Cores()

    def call(part: slice) -> list[int]:
        if part.stop == 100:
            raise MemoryError("too little")
        return []

    cores.take()
    try:
        with torch.inference_mode(), pytest.raises(MemoryError, match="too little"):
            cores.split(call, 100)
    finally:
        cores.give_back()
