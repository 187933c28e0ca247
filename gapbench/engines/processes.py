"""The engine that works batches off in several processes, each with a copy of the model."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gapbench.fetch.libraries import quiet
from gapbench.files import blamed
from gapbench.models import load_model
from gapbench.models.base import Batches, Drawing, Model
from gapbench.types import Answer, Crash, Failure, GapbenchError, Unfinished

Make = Callable[..., Model]
DIED = (
    "a worker process died, perhaps because memory ran out: take fewer --workers or a smaller "
    '--batch-size (in a script, call run below `if __name__ == "__main__":`)'
)
_UNHEARD: Final = (signal.SIGINT, signal.SIGHUP)
"""What a terminal sends to all processes of a command."""
SHARED: Final = frozenset(
    {"generate", "judge_logits", "judge_text", "image_tokens", "image_latents"}
)
"""Capabilities that work on rows, each alone."""


class Copies(Model):
    """A model in `count` processes, which share the rows of each batch.

    Copies take the GPUs in turn where the device is left open, and share a CPU's cores. What a row
    gives does not depend on its batch, and so not on their number.
    """

    def __init__(
        self, spec: str, device: str, dtype: str, recipe: Mapping[str, object] | None, count: int
    ) -> None:
        if spec.startswith(("images:", "server:")):
            raise GapbenchError(f"--workers copies a model's weights; {spec} has none here")
        model = self.model = load_model(spec, device, dtype, recipe)
        self.name, self.fingerprint, self.recipe = model.name, model.fingerprint, model.recipe
        self.capabilities = model.capabilities & SHARED
        self.device, self.dtype = model.device, model.dtype
        self.pair, self.versions = model.pair, model.versions
        self.image_size = model.image_size
        self.reads_words = model.reads_words
        self.batches = Batches(*(count * size for size in model.batches))
        self.count = count
        self._make = partial(load_model, spec, dtype=dtype, recipe=recipe)
        self._device = device
        self._copies: list[tuple[BaseProcess, Connection]] = []

    def refuses(self, text: str) -> str | None:
        return self.model.refuses(text)

    def load(self) -> None:
        if self._copies:
            return
        import torch

        self.model.release()  # what it refuses, a model outside of this process says when it runs
        threads = max(1, torch.get_num_threads() // self.count)
        context = multiprocessing.get_context("spawn")
        with _deaf():
            for device in places(self._device, self.count):
                ours, theirs = context.Pipe()
                process = context.Process(
                    target=_serve, args=(theirs, self._make, device, threads), daemon=True
                )
                process.start()
                theirs.close()
                self._copies.append((process, ours))
        try:
            for copy in self._copies:
                _, stop = _received(copy)
                if stop is not None:
                    raise stop
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        for _, pipe in self._copies:
            pipe.close()  # which ends the process
        for process, _ in self._copies:
            process.join(5)
            process.kill()
        self._copies = []

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Drawing]:
        return self._spread("generate", prompts, seeds)

    def judge(
        self, images: Sequence[Image.Image], questions: Sequence[str], answers: Sequence[str]
    ) -> NDArray[np.float64]:
        return np.array(self._spread("judge", images, questions, answers))

    def reply(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[str]:
        return self._spread("reply", images, questions)

    def answers(
        self, images: Sequence[Image.Image], questions: Sequence[str], words: bool
    ) -> list[Answer]:
        return self._spread("answers", images, questions, words)

    def check_seeds(self, prompt: str, seed: int) -> str | None:
        warning: str | None = self._spread("check_seeds", [prompt], [seed])[0]
        return warning

    def _spread(
        self, method: str, one: Sequence[object], two: Sequence[object], *more: object
    ) -> list[Any]:
        self.load()
        edges = [len(one) * number // self.count for number in range(self.count + 1)]
        parts = [
            (copy, slice(start, end))
            for copy, start, end in zip(self._copies, edges[:-1], edges[1:], strict=True)
            if start < end
        ]
        for (_, pipe), rows in parts:
            with suppress(OSError):  # it died, which the answer that does not come tells
                pipe.send((method, (one[rows], two[rows], *more)))
        done: dict[int, Any] = {}
        failed: dict[int, Failure] = {}
        stops: list[Exception] = []
        for copy, rows in parts:
            values, stop = _received(copy)
            done |= {rows.start + place: value for place, value in values.items()}
            if isinstance(stop, Unfinished):
                failed |= {rows.start + place: why for place, why in stop.failed.items()}
            if stop is not None:
                stops.append(stop)
        for stop in stops:
            if not isinstance(stop, GapbenchError):
                raise stop
        if stops:
            raise Unfinished(str(stops[0]), done, failed) from stops[0]
        return [done[place] for place in range(len(one))]


def places(device: str, count: int) -> list[str]:
    """The devices of so many copies: all GPUs in turn where none is named."""
    import torch

    there = torch.cuda.device_count() if device in {"auto", "cuda"} else 0
    return [f"cuda:{number % there}" if there else device for number in range(count)]


@contextmanager
def _deaf() -> Iterator[None]:
    """What starts in it never hears Ctrl-C, or that the terminal was closed: the first process ends
    the batch in hand, then it."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say so; _serve does for itself
        return
    before = {each: signal.signal(each, signal.SIG_IGN) for each in _UNHEARD}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _received(copy: tuple[BaseProcess, Connection]) -> tuple[dict[int, Any], Exception | None]:
    """What a copy did, by place, and what stopped it."""
    try:
        done, stop = copy[1].recv()
    except (EOFError, OSError):
        return {}, GapbenchError(DIED)
    return done, stop


def _serve(pipe: Connection, make: Make, device: str, threads: int) -> None:
    """A copy's process: load, then answer calls until the pipe is closed."""
    sys.stdout = sys.stderr  # what an adapter prints is no part of the command's table
    for each in _UNHEARD:
        signal.signal(each, signal.SIG_IGN)
    quiet()
    model: list[Model] = []

    def load() -> list[Any]:
        import torch

        torch.set_num_threads(threads)
        model.append(make(device=device))
        model[0].load()
        return []

    pipe.send(_tried(load))
    while True:
        try:
            method, given = pipe.recv()
        except EOFError:
            return
        pipe.send(_tried(partial(_rows, model[0], method, given)))


def _rows(model: Model, method: str, given: Sequence[Any]) -> Sequence[Any]:
    """An answer for each row. All methods take rows but check_seeds, which is called for each."""
    call: Callable[..., Any] = getattr(model, method)
    said: Sequence[Any] = list(map(call, *given)) if method == "check_seeds" else call(*given)
    return said


def _tried(call: Callable[[], Sequence[Any]]) -> tuple[dict[int, Any], Exception | None]:
    """What a call gave by place, and what stopped it."""
    try:
        return dict(enumerate(call())), None
    except Unfinished as stop:
        return dict(stop.done), Unfinished(str(stop), {}, stop.failed)
    except GapbenchError as error:
        return {}, GapbenchError(str(error))
    except (Exception, SystemExit) as error:  # the adapter's own; the first process raises it
        crash = Crash(blamed(error))
        crash.add_note(traceback.format_exc())
        return {}, crash
