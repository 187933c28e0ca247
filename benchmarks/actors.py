"""A thousand workers that fail, by a simulated clock.

    python benchmarks/actors.py [--actors 1000] [--images 1000000] [--between 3600] [--seed 0]

The engine is gapbench's own for Ray; what it asks of Ray and of the clock is simulated. An actor
loads for a minute, and lives for a random time, exponential with a mean of `between` seconds; what
it has in hand as it dies is lost. Half of the actors draw twice as fast as the others. Exit code 1
if an image is missing or drawn twice, or if 1 % of the work was done again.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random
from types import SimpleNamespace
from typing import Any, Final

from ray.exceptions import RayActorError

from gapbench.engines import ray as engine
from gapbench.engines.base import Done, Job, Source
from gapbench.engines.rows import Rows
from gapbench.engines.worker import Loaded
from gapbench.models.base import Batches, Model
from gapbench.models.checkpoint import versions

LOADS: Final = 60.0
IMAGE: Final = 3.0
"""Seconds of an image on a slow actor."""


class Drawn(Model):
    """Stands for a model with weights."""

    name, fingerprint, batches = "simulated", "simulated-1", Batches(1, 64)


@dataclass(frozen=True, eq=False)
class Reference:
    """What an actor will say, and when."""

    at: float
    says: Any


@dataclass(eq=False)
class Actor:
    """Answers until it dies."""

    ray: Simulated
    image: float
    dies: float
    busy: float = 0.0
    load: Any = field(init=False)
    answer: Any = field(init=False)

    def __post_init__(self) -> None:
        self.load = SimpleNamespace(remote=self._load)
        self.answer = SimpleNamespace(remote=self._answer)

    def _load(self, _start: object) -> Reference:
        return self._until(LOADS, Loaded("here", Drawn.fingerprint, self.ray.versions))

    def _answer(self, _job: object, items: Sequence[int]) -> Reference:
        seconds = 0.5 + self.image * len(items)
        self.ray.asked += len(items)
        return self._until(seconds, Done(Rows(dict(enumerate(items))), seconds))

    def _until(self, seconds: float, says: object) -> Reference:
        ends = self.ray.now + seconds
        return Reference(
            max(self.ray.now, min(ends, self.dies)), says if ends < self.dies else None
        )


class Simulated:
    """What the engine takes of the modules `ray` and `time`."""

    def __init__(self, actors: int, between: float, chance: Random) -> None:
        self.now, self.actors, self._between, self._chance = 0.0, actors, between, chance
        self.made = self.deaths = self.asked = 0
        self.versions = versions()

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def is_initialized(self) -> bool:
        return True

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": float(self.actors)}}]

    def put(self, value: object) -> object:
        return value

    def remote(self, _of: type) -> Simulated:
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=self._start))  # type: ignore[return-value]

    def _start(self) -> Actor:
        self.made += 1
        dies = self.now + self._chance.expovariate(1 / self._between)
        return Actor(self, IMAGE / (1 + self.made % 2), dies)

    def wait(
        self, references: Sequence[Reference], timeout: float
    ) -> tuple[list[Reference], list[Reference]]:
        """Until the first is ready, as ray.wait does."""
        if not references:
            return [], []
        first = min(references, key=lambda reference: reference.at)
        if first.at > self.now + timeout:
            self.now += timeout
            return [], [*references]
        self.now = max(self.now, first.at)
        return [first], []

    def get(self, reference: Reference) -> object:
        if reference.says is None:
            self.deaths += 1
            raise RayActorError
        return reference.says

    def kill(self, actor: Actor) -> None:
        """It is dead already."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--actors", type=int, default=1000)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--between", type=float, default=3600)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    simulated = Simulated(asked.actors, asked.between, Random(asked.seed))
    vars(engine).update(ray=simulated, time=simulated)
    source = Source(Drawn(), partial(Drawn), "cpu")
    job: Job[int, int] = Job("model", lambda _model, rows: rows)
    begun, drawn = time.process_time(), Counter[int]()
    work = engine.RayEngine("all", None)
    for _, done in work.results(source, job, range(asked.images), "auto"):
        drawn.update(done.rows.done.values())
    lost, twice = asked.images - len(drawn), sum(count > 1 for count in drawn.values())
    again = simulated.asked / asked.images - 1
    rate = asked.actors * (1 / IMAGE + 2 / IMAGE) / 2
    print(
        f"{asked.actors} actors drew {asked.images:,} images in {simulated.now / 3600:.2f} h "
        f"(without failures, loading and waiting: {asked.images / rate / 3600:.2f} h); "
        f"{simulated.deaths:,} died; {lost} images are missing, {twice} were drawn twice; "
        f"{again:.2%} of the work was done again; {time.process_time() - begun:.0f} s of CPU time"
    )
    if lost or twice or again >= 0.01:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
