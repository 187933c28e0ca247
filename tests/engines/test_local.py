"""The engine: batches that do not fit are halved, and what was computed is kept whatever comes."""

from __future__ import annotations

import signal
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
from gapbench.engines import local
from gapbench.engines.base import BatchSize
from gapbench.engines.keep import held_back
from gapbench.engines.local import work
from gapbench.models.base import Batches, Drawing, Model
from gapbench.models.janus.adapter import JanusModel
from gapbench.types import Interrupted


def sizes_of(
    count: int,
    batch_size: BatchSize,
    batches: Batches,
    room: int = 10**6,
    each: float = 0,
    extra: Sequence[float] = (),
) -> tuple[list[int], list[int]]:
    """Items kept in order, and the sizes of the batches that were done, with memory for `room`
    items and a clock on which one takes `each` seconds, and the first batches `extra` ones."""
    kept: list[int] = []
    sizes: list[int] = []
    now, more = 0.0, iter(extra)

    def do(batch: Sequence[int]) -> list[int]:
        nonlocal now
        if len(batch) > room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        sizes.append(len(batch))
        now += each * len(batch) + next(more, 0)
        return [2 * item for item in batch]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "monotonic", lambda: now)
        work(
            range(count), batch_size, do, lambda _batch, made: kept.extend(made), lambda _: None,
            batches,
        )  # fmt: skip
    return kept, sizes


@given(
    count=st.integers(0, 400),
    batch_size=st.one_of(st.just("auto"), st.integers(1, 90)),
    room=st.integers(1, 300),
    batches=st.builds(Batches, st.integers(1, 512), st.integers(1, 512)),
    each=st.floats(0, 20),
)
def test_everything_is_done_once_in_order(
    count: int, batch_size: BatchSize, room: int, batches: Batches, each: float
) -> None:
    kept, sizes = sizes_of(count, batch_size, batches, room, each)
    assert kept == [2 * item for item in range(count)]
    most = batches.most if batch_size == "auto" else batch_size
    assert max(sizes, default=0) <= min(room, most)


def test_auto_finds_the_size_that_fits() -> None:
    on_gpu = Batches.on("cuda:1", small=False)
    assert sizes_of(1000, "auto", on_gpu, room=300)[1] == [64, 128, 256, 256, 256, 40]
    assert sizes_of(100, "auto", Batches.on("cpu", small=True), room=20)[1] == [16] * 6 + [4]
    assert sizes_of(20, "auto", Batches.on("cpu", small=False))[1] == [8, 8, 4]


def test_auto_grows_while_a_batch_takes_under_ten_seconds() -> None:
    assert sizes_of(300, "auto", Model.batches)[1] == [1, 2, 4, 8, 16, 32, 64, 64, 64, 45]
    assert sizes_of(50, "auto", Model.batches, each=0.5)[1] == [1, 2, 4, 8, 16, 16, 3]
    assert sizes_of(4, "auto", Model.batches, each=60)[1] == [1, 1, 1, 1]


def test_a_slow_start_says_nothing_about_the_size() -> None:
    """A judge loads its weights in its first batch."""
    assert sizes_of(20, "auto", Model.batches, extra=[99])[1] == [1, 1, 2, 4, 8, 4]


def test_no_batch_is_smaller_than_the_first_for_its_time() -> None:
    assert sizes_of(400, "auto", Batches(64, 1024), each=1)[1] == [64] * 6 + [16]


def test_a_gpu_that_a_larger_batch_serves_better_gets_it_up_to_ten_seconds() -> None:
    extra = [5.0] * 9  # for a batch of any size
    found = sizes_of(1500, "auto", Batches(64, 1024), each=0.01, extra=extra)[1]
    assert found == [64, 128, 256, 512, 256, 256, 28]


def test_a_size_that_the_user_names_is_kept() -> None:
    assert sizes_of(100, 40, Batches(1, 8), each=3)[1] == [40, 40, 20]


def test_one_item_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        sizes_of(10, "auto", Model.batches, room=0)


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_waits_for_the_batch_in_hand_alone(number: int) -> None:
    done: list[int] = []
    kept: list[int] = []

    def do(batch: Sequence[int]) -> None:
        done.extend(batch)
        if len(done) == 3:
            signal.raise_signal(number)

    before = signal.signal(number, signal.default_int_handler)  # also where nohup starts the tests
    try:
        with pytest.raises(Interrupted):
            work(range(9), "auto", do, lambda batch, _: kept.extend(batch), lambda _: None)
    finally:
        signal.signal(number, before)
    assert done == kept == [0, 1, 2]


def test_under_nohup_the_end_of_the_terminal_is_not_heard() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with held_back() as asked:
            signal.raise_signal(signal.SIGHUP)
        assert not asked
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


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
    monkeypatch.setattr("gapbench.models.autoregressive.model.SMALL", small)
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
