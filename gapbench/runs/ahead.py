"""Outside judges at work while images are drawn: those of servers, and those for which a cluster
has room beside the model. What they leave or fail at, the stages after the drawing do."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from threading import Condition, Thread
from typing import Final

from gapbench.engines.base import Engine
from gapbench.judges.base import Judge
from gapbench.runs.folder import RunFolder
from gapbench.runs.plan import Item, Prepared
from gapbench.runs.settings import silent
from gapbench.runs.stages import judge_images
from gapbench.types import Generation

LOG: Final = logging.getLogger("gapbench")
FIRST: Final = 16
"""Images that a judge waits for."""
SHARE: Final = 8
"""A judge goes on once this part of the images that it had is there again: each time, all the
records that there are are looked through."""


@contextmanager
def ahead(
    made: Prepared, folder: RunFolder, items: Sequence[Item]
) -> Iterator[Callable[[Iterable[Generation]], None]]:
    """Let judges work on images of `items`, if there are any, until the end of the block; gives
    what is told of those that are kept. An error of a judge ends its work here, and is told by its
    stage."""
    feed = _Feed(items)
    judges = made.judges if items else []
    asked = [(judge, made.engine.beside(made.sources[judge.name])) for judge in judges]
    beside = [(judge, engine) for judge, engine in asked if engine]
    if beside:
        feed.add(folder.generations().values())
    stops: list[list[object]] = [[] for _ in beside]
    # As daemons: a second Ctrl-C does not wait for a judge that hangs.
    working = [
        Thread(target=_judge, args=(made, folder, feed, *each, stop), daemon=True)
        for each, stop in zip(beside, stops, strict=True)
    ]
    for thread in working:
        thread.start()
    try:
        yield feed.add
    finally:
        for stop in stops:
            stop.append("the end")
        feed.end()
        for thread in working:
            thread.join()


class _Feed:
    """The images that are there, as (item, sha256), in the order in which they came."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._of: dict[tuple[str, int], list[Item]] = {}
        for item in items:
            self._of.setdefault((item.prompt.text, item.seed), []).append(item)
        self._there: list[tuple[Item, str]] = []
        self._changed, self._ended = Condition(), False

    def add(self, images: Iterable[Generation]) -> None:
        with self._changed:
            for each in images:
                mine = self._of.get((each.prompt, each.seed), [])
                self._there += [(item, each.image) for item in mine]
            self._changed.notify_all()

    def end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def after(self, start: int) -> list[tuple[Item, str]]:
        """Those from a place on, once there are enough; none where it ended before."""
        enough = max(FIRST, start // SHARE)
        with self._changed:
            self._changed.wait_for(lambda: self._ended or len(self._there) - start >= enough)
            return [] if self._ended else self._there[start:]


def _judge(
    made: Prepared,
    folder: RunFolder,
    feed: _Feed,
    judge: Judge,
    engine: Engine,
    stop: list[object],
) -> None:
    source, done = made.sources[judge.name], 0
    stage = f"verdicts of {judge.name}"
    try:
        while there := feed.after(done):
            done += len(there)
            pairs = [(p, image) for item, image in there for p in item.asked(judge.name)]
            size, where = made.settings.batch_size, (engine, source)
            judge_images(stage, judge, folder, pairs, size, silent, where=where, stop=stop)
    except BaseException as error:  # its stage meets it again
        LOG.debug("%s, while images were drawn: %s", stage, error)
    finally:
        engine.release(source)
