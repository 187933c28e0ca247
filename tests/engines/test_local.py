"""The engine: batches that do not fit are halved, and what was computed is kept whatever comes."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gapbench
from gapbench import GapbenchError, load_model
from gapbench.engines.local import FIRST, BatchSize, work
from gapbench.models.base import Drawing
from gapbench.models.janus.adapter import JanusModel


def batches(
    count: int, batch_size: BatchSize, room: int, most: int = FIRST
) -> tuple[list[int], list[int]]:
    """Items kept in order, and the sizes of the batches that were done with memory for `room`."""
    kept: list[int] = []
    sizes: list[int] = []

    def do(batch: Sequence[int]) -> list[int]:
        if len(batch) > room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        sizes.append(len(batch))
        return [2 * item for item in batch]

    work(range(count), batch_size, do, lambda _batch, made: kept.extend(made), lambda _: None, most)
    return kept, sizes


@given(
    count=st.integers(0, 400),
    batch_size=st.one_of(st.just("auto"), st.integers(1, 90)),
    room=st.integers(1, 300),
    most=st.integers(1, 512),
)
def test_everything_is_done_once_in_order(
    count: int, batch_size: BatchSize, room: int, most: int
) -> None:
    kept, sizes = batches(count, batch_size, room, most)
    assert kept == [2 * item for item in range(count)]
    assert max(sizes, default=0) <= min(room, most if batch_size == "auto" else batch_size)


def test_auto_finds_the_size_that_fits() -> None:
    assert batches(1000, "auto", room=300, most=1024)[1] == [64, 128, 256, 256, 256, 40]
    assert batches(100, "auto", room=20)[1] == [16] * 6 + [4]


def test_one_item_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        batches(10, "auto", room=0)


def test_another_error_is_not_tried_again() -> None:
    tried = []

    def do(batch: Sequence[int]) -> None:
        tried.append(len(batch))
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        work(range(10), 4, do, lambda _b, _m: None, lambda _: None)
    assert tried == [4]


def test_the_next_batch_is_computed_while_the_last_is_kept() -> None:
    second_is_done = threading.Event()
    waited = []

    def do(batch: Sequence[int]) -> None:
        if batch[0] == 1:
            second_is_done.set()

    def keep(batch: Sequence[int], _made: None) -> None:
        if batch[0] == 0:
            waited.append(second_is_done.wait(timeout=30))

    work(range(2), 1, do, keep, lambda _: None)
    assert waited == [True]


def test_batches_are_kept_in_order_however_long_one_takes() -> None:
    kept: list[int] = []

    def keep(batch: Sequence[int], _made: None) -> None:
        time.sleep(0.2 if batch[0] == 0 else 0)
        kept.extend(batch)

    work(range(3), 1, lambda _batch: None, keep, lambda _: None)
    assert kept == [0, 1, 2]


def test_what_was_computed_is_kept_when_keeping_fails() -> None:
    kept = []

    def keep(batch: Sequence[int], _made: None) -> None:
        if batch[0] == 0:
            raise GapbenchError("the first could not be written")
        kept.extend(batch)

    with pytest.raises(GapbenchError, match="the first"):
        work(range(6), 2, lambda _batch: None, keep, lambda _: None)
    assert kept == [2, 3]


def test_images_do_not_depend_on_memory(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model("janus-mini")
    whole = gapbench.run(model, "shapes/colors", samples=1, limit=5, out=tmp_path / "whole")
    generate, tight = type(model).generate, load_model("janus-mini")

    def short(self: Any, prompts: Sequence[str], seeds: Sequence[int]) -> list[Drawing]:
        if len(prompts) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return generate(self, prompts, seeds)

    monkeypatch.setattr(type(tight), "generate", short)
    parts = gapbench.run(tight, "shapes/colors", samples=1, limit=5, out=tmp_path / "parts")
    assert list(parts.frame()["image"]) == list(whole.frame()["image"])


@pytest.mark.parametrize(("small", "most"), [(1, 8), (100_000_000, 64)])
def test_auto_leaves_a_large_model_on_a_cpu_its_memory(
    tiny_janus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: int, most: int
) -> None:
    """There is no error to halve at: the process would be killed."""
    monkeypatch.setattr("gapbench.models.janus.adapter.SMALL", small)
    model, sizes = JanusModel("tiny", tiny_janus, device="cpu"), []
    generate, judge = model.generate, model.judge

    def drawn(prompts: Sequence[str], seeds: Sequence[int]) -> list[Drawing]:
        sizes.append(len(prompts))
        return generate(prompts, seeds)

    def judged(images: Any, questions: Any, answers: Any) -> Any:
        sizes.append(len(images))
        return judge(images, questions, answers)

    monkeypatch.setattr(model, "generate", drawn)
    monkeypatch.setattr(model, "judge", judged)
    gapbench.run(model, "shapes", samples=1, limit=18, out=tmp_path)
    assert max(sizes) == min(most, sum(sizes) - 18)
