"""The engine that works batches off in processes of Ray, on this machine or on many."""

from __future__ import annotations

import logging
import math
import os
import time
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Generic, Literal, NamedTuple, TypeVar

import ray
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    WorkerCrashedError,
)

from gapbench.engines.base import BatchSize, Done, Engine, Job, Source
from gapbench.engines.cluster import connect, need, room, threads
from gapbench.engines.local import Local, Pace
from gapbench.engines.rows import HOPELESS, Rows
from gapbench.engines.worker import Loaded, Start, Worker, saved
from gapbench.files import first_line
from gapbench.models.checkpoint import versions
from gapbench.types import Failure, GapbenchError

S = TypeVar("S")
T = TypeVar("T")
LOG: Final = logging.getLogger("gapbench")
GONE: Final = (RayActorError, ObjectLostError, NodeDiedError, OutOfMemoryError, WorkerCrashedError)
"""What Ray raises where a worker, or what it gave, is there no more."""
TRIES: Final = 3
"""So often an item may be alone with a worker that dies."""
WHY: Final = "perhaps because memory ran out: take fewer --workers or a smaller --batch-size"
PASSED: Final = ("GAPBENCH_", "HF_", "TRANSFORMERS_", "XDG_CACHE_HOME")
"""Variables that workers get from this process, but for keys and tokens."""
LOOK: Final = 1.0
"""Seconds after which the engine looks for workers that died and for new room."""
SAVING: Final = 3
"""Batches of a copy that are worked on or saved at most; memory holds them."""
SAVE: Final = ray.remote(num_cpus=0)(saved)
PATIENCE: Final = 60.0
"""Seconds without a worker after which the user is told."""


class Batch(NamedTuple, Generic[S]):
    """Items that go to one worker, and how many workers died of just these."""

    items: Sequence[S]
    died: int = 0


class Hand(NamedTuple, Generic[S, T]):
    """A batch in hand: the copy that works on it, and the reference of its rows where they do not
    come with the answer; without a copy, what was done, while its rows are saved."""

    batch: Batch[S]
    copy: Any = None
    rows: Any = None
    done: Done[T] | None = None


class Queue(Generic[S]):
    """What is left of a stage."""

    def __init__(self, items: Sequence[S], pace: Pace) -> None:
        self._items, self._start, self.pace = items, 0, pace
        self._again = deque[Batch[S]]()

    def __bool__(self) -> bool:
        return self._start < len(self._items) or bool(self._again)

    def take(self, copies: int) -> Batch[S]:
        """The next batch. The last items are shared out over the copies, but for batches that are
        too small to be fast; what is tried again comes last."""
        if self._start == len(self._items):
            return self._again.popleft()
        share = math.ceil((len(self._items) - self._start) / copies)
        size = min(self.pace.size, max(self.pace.first, share))
        batch = Batch(self._items[self._start : self._start + size])
        self._start += len(batch.items)
        return batch

    def again(self, batch: Batch[S]) -> None:
        """Try a batch once more, in halves if it has any."""
        middle = len(batch.items) // 2
        halves = (batch.items[:middle], batch.items[middle:])
        self._again += [Batch(half) for half in halves] if middle else [batch]


class RayEngine:
    """Workers with a copy each, of the model or of a judge in turn.

    Batches are handed out as workers become free. A worker or a node that dies is replaced, and
    its batch is tried again in halves; an item that was alone with TRIES workers that died fails.
    With "all", there are as many workers as there is room for, also on nodes that join later.
    """

    def __init__(self, workers: int | Literal["all"], address: str | None) -> None:
        self._asked, self._address = workers, address
        self._joined = False
        self._source: Source | None = None
        self._copies = set[Any]()
        self._free: list[Any] = []
        self._loading: dict[Any, Any] = {}  # Ray's reference of what a copy will say -> the copy
        self._deaths = 0  # since a copy was loaded or a batch was done
        self._told = set[str]()

    def load(self, source: Source) -> None:
        self._open(source, strict=True)
        while not self._free:
            for _ in self._ready([]):
                pass

    def results(
        self,
        source: Source,
        job: Job[S, T],
        items: Sequence[S],
        batch_size: BatchSize,
        stop: Collection[object] = (),
    ) -> Iterator[tuple[Sequence[S], Done[T]]]:
        if source.here.gpus is None:
            yield from Local().results(source, job, items, batch_size, stop)
            return
        if not items:
            return
        self._open(source)
        queue, sent = Queue(items, Pace(batch_size, source.here.batches)), ray.put(job)
        apart = job.away is not None and sum(node["Alive"] for node in ray.nodes()) > 1
        busy: dict[Any, Hand[S, T]] = {}
        trouble: Exception | None = None
        while busy or (queue and not (stop or trouble)):
            most = SAVING * len(self._copies)
            while self._free and queue and len(busy) < most and not (stop or trouble):
                copy, batch, rows = self._free.pop(), queue.take(len(self._copies)), None
                if apart:
                    reference, rows = copy.apart.options(num_returns=2).remote(sent, batch.items)
                else:
                    reference = copy.answer.remote(sent, batch.items)
                busy[reference] = Hand(batch, copy, rows)
            try:
                for reference in self._ready([*busy]):
                    hand = busy.pop(reference)
                    if hand.copy is None:
                        done = self._saved(hand, reference, queue)
                    else:
                        done = self._done(job, hand.copy, hand.batch, reference, queue)
                        if done and hand.rows is not None and hand.copy in self._copies:
                            # On the node that has them, while the copy works on.
                            saving = SAVE.remote(sent, hand.rows)
                            busy[saving], done = Hand(hand.batch, done=done), None
                    if done is not None:
                        yield hand.batch.items, done
            except (GapbenchError, RuntimeError, MemoryError, RayError) as error:
                trouble = trouble or error
        if trouble:
            raise trouble

    def beside(self, judge: Source) -> Engine | None:
        if judge.here.gpus is None:
            return Local().beside(judge)
        if self._source is None:
            return None
        needed, total = need(judge, ray.nodes()), ray.cluster_resources()
        left = {key: total.get(key, 0) - self._wanted * self._need.get(key, 0) for key in needed}
        fits = min(int(left[key] / each + 1e-9) for key, each in needed.items())
        copies = fits if self._asked == "all" else min(fits, self._asked)
        return RayEngine(copies, self._address) if copies > 0 else None

    def release(self, source: Source) -> None:
        source.here.release()
        for copy in self._copies:
            ray.kill(copy)
        self._source, self._copies, self._free, self._loading = None, set(), [], {}

    def close(self) -> None:
        if self._joined:
            ray.shutdown()
            self._joined = False

    def _open(self, source: Source, strict: bool = False) -> None:
        """Start copies, unless those that there are are of this model or judge. Raises
        GapbenchError where none fits; if `strict`, where not all do."""
        if source is self._source:
            return
        if not ray.is_initialized():
            connect(self._address, 1 if self._asked == "all" else self._asked)
            self._joined = True
        nodes = ray.nodes()
        self._need = need(source, nodes)
        fits = room(nodes, self._need)
        wanted = fits if self._asked == "all" else self._asked
        if not 0 < wanted <= fits:
            gpus = self._need.get("GPU")
            takes = "a core" if gpus is None else f"{gpus:g} GPU{'s' * (gpus != 1)}"
            why = f"each copy of {source.here.name} takes {takes}, and Ray has room for {fits}"
            if strict or not fits:
                take = f"take --workers {fits} or all" if fits else "start nodes that have that"
                raise GapbenchError(f"--workers {self._asked}: {why}; {take}")
            LOG.warning("%s: %s; that many are started", f"--workers {wanted}", why)
        self._source, self._wanted, self._deaths = source, min(wanted, fits), 0
        passed = {k: v for k, v in os.environ.items() if k.startswith(PASSED)}
        passed = {k: v for k, v in passed.items() if not k.endswith(("KEY", "TOKEN"))}
        assert source.make  # as make_engine has seen to
        self._start = Start(
            source.make, source.device, str(Path.cwd()), passed, threads(nodes, self._wanted)
        )
        self._looked = 0.0
        self._patient = time.monotonic() + PATIENCE

    def _ready(self, busy: list[Any]) -> Iterator[Any]:
        """Those of the references that are ready, once some are or LOOK is over. Takes copies that
        were loaded, and starts those that are missing."""
        now = time.monotonic()
        if now - self._looked > LOOK:
            if self._asked == "all":
                self._wanted = max(1, room(ray.nodes(), self._need))
            while len(self._copies) < self._wanted:
                copy = (
                    ray.remote(Worker)
                    .options(
                        num_cpus=self._need["CPU"],
                        num_gpus=self._need.get("GPU", 0),
                        scheduling_strategy="SPREAD",
                    )
                    .remote()
                )
                self._copies.add(copy)
                self._loading[copy.load.remote(self._start)] = copy
            self._looked = now
        if busy or self._free:
            self._patient = now + PATIENCE
        elif now > self._patient:
            LOG.warning(
                "no worker is ready after %.0f s: the weights take long, or other work has the "
                "cluster (`ray status`)", PATIENCE,
            )  # fmt: skip
            self._patient = math.inf
        if not busy and not self._loading:
            time.sleep(LOOK / 10)  # all died: others are started soon
        ready, _ = ray.wait([*busy, *self._loading], timeout=LOOK)
        for reference in ready:
            if reference in self._loading:
                self._take(self._loading.pop(reference), reference)
            else:
                yield reference

    def _take(self, copy: Any, reference: Any) -> None:
        """Take a copy that was loaded. Raises what stopped it, and GapbenchError where it is not a
        copy of what is here."""
        try:
            said: Loaded | Exception = ray.get(reference)
        except GONE as error:
            self._lost(copy, f"while they loaded ({first_line(error)})")
            return
        if isinstance(said, Exception):
            raise said
        here = versions()
        if wrong := [f"{k} {v} (here {here[k]})" for k, v in said.versions.items() if v != here[k]]:
            raise GapbenchError(
                f"node {said.node} has {', '.join(wrong)}; install the same versions on all nodes"
            )
        assert self._source
        if said.fingerprint != self._source.here.fingerprint:
            raise GapbenchError(
                f"node {said.node} makes another {self._source.here.name}: its files or its kind "
                "of device differ from those here; start the command in a folder that all nodes "
                "share, and give --device and --dtype"
            )
        self._deaths = 0
        self._free.append(copy)

    def _done(
        self, job: Job[S, T], copy: Any, batch: Batch[S], reference: Any, queue: Queue[S]
    ) -> Done[T] | None:
        """What a copy gave for a batch; None where the batch is tried again."""
        try:
            gave: Done[T] | Exception = ray.get(reference)
        except GONE:
            first = job.told(batch.items[0])
            self._lost(copy, f"the last at {first}")
            batch = batch._replace(died=batch.died + 1)
            if len(batch.items) == 1 and batch.died == TRIES:
                why = f"{first}: {TRIES} workers died of it, {WHY}"
                return Done(Rows({}, {0: Failure(why)}), 0.0)
            queue.again(batch)
            return None
        self._free.append(copy)
        self._deaths = 0
        if isinstance(gave, MemoryError) and len(batch.items) > 1:
            queue.pace.too_large(len(batch.items))
            queue.again(batch)
            return None
        if isinstance(gave, Exception):
            raise gave
        queue.pace.took(len(batch.items), gave.seconds)
        return gave

    def _saved(self, hand: Hand[S, T], reference: Any, queue: Queue[S]) -> Done[T] | None:
        """A batch whose rows were saved; None where it is tried again, as its node died."""
        assert hand.done
        try:
            gave: tuple[dict[int, T], str | None] | Exception = ray.get(reference)
        except GONE:
            queue.again(hand.batch)
            return None
        if isinstance(gave, Exception):
            raise gave
        rows, note = gave
        if note and note not in self._told:
            LOG.warning(note)
            self._told.add(note)
        return replace(hand.done, rows=replace(hand.done.rows, done=rows))

    def _lost(self, copy: Any, when: str) -> None:
        """Note that a copy is gone; another is started soon. Raises GapbenchError where nothing
        else happens any more: then it is no accident."""
        self._copies.discard(copy)
        ray.kill(copy)  # it may be out of reach alone
        self._deaths += 1
        if self._deaths >= max(HOPELESS, 2 * self._wanted):
            raise GapbenchError(
                f"{self._deaths} workers died one after another, {when}, {WHY}"
            ) from None
