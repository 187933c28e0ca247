"""What `--workers` costs and brings.

    python benchmarks/engine.py [--records 50000] [--images 960] [--rounds 2]
        [--skip records|workers]

records: a judge that answers at once. How many verdicts a second the first process hands out, takes
back and stores, with two workers, and with none.
workers: the drawing stage of janus-mini with two workers and with one, each on one thread, in
turn. Starting Ray and loading the copies is told apart.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")

from PIL import Image

from gapbench import load_model
from gapbench.engines import make_engine
from gapbench.engines.base import Engine, Source
from gapbench.judges.base import Judge
from gapbench.models.base import Batches
from gapbench.runs.flow import measure
from gapbench.runs.folder import RunFolder
from gapbench.runs.settings import RunSettings, silent
from gapbench.runs.stages import judge_images
from gapbench.types import Answer, Prompt


class Ready(Judge):
    """Says yes at once, to an image that it does not open."""

    name, fingerprint, batches = "ready", "ready-1", Batches(512, 512)

    def judge_digests(
        self,
        digests: Sequence[str],
        prompts: Sequence[Prompt],  # noqa: ARG002
    ) -> list[Answer]:
        return [Answer(verdict=1) for _ in digests]


def ready(_device: str) -> Judge:
    return Ready()


@contextmanager
def engine_of(workers: int, source: Source) -> Iterator[Engine]:
    engine = make_engine("ray" if workers > 1 else "local", workers, None, source)
    try:
        yield engine
    finally:
        engine.release(source)
        engine.close()


def records(count: int, workers: int, out: Path) -> tuple[float, float]:
    """Verdicts a second, and a second of this process's CPU time, which other work on the machine
    does not change."""
    folder = RunFolder.create(out, f"records-{workers}", {"workers": workers}, {})
    image = folder.add_image(Image.new("RGB", (24, 24)))
    asked = [
        (
            Prompt(
                id=str(number), task="t", category="c", tier="easy", text="a red circle",
                question=f"Does it show {number} red circles?", requirement={"number": number},
            ),
            image,
        )
        for number in range(count)
    ]  # fmt: skip
    ready_here = Ready()
    source = Source(ready_here, ready)
    with engine_of(workers, source) as engine:
        few = RunFolder.create(out, f"few-{workers}", {"few": workers}, {})
        few.add_image(Image.new("RGB", (24, 24)))
        judge = partial(judge_images, "verdicts", ready_here, where=(engine, source))
        judge(few, asked[: 512 * workers], 512, silent)  # which starts the workers
        begun = time.perf_counter(), time.process_time()
        judge(folder, asked, 512, silent)
        ended = time.perf_counter(), time.process_time()
    assert len(folder.verdicts()) == count
    return count / (ended[0] - begun[0]), count / (ended[1] - begun[1])


def drawing(images: int, workers: int, out: Path) -> tuple[float, float]:
    """Seconds of the drawing stage, and of the command before it."""
    first: list[float] = []
    last: list[float] = []

    def progress(stage: str, _there: int, _total: int):  # type: ignore[no-untyped-def]
        def advance(_count: int, _note: str = "") -> None:
            last.append(time.perf_counter())

        if stage == "images":
            first.append(time.perf_counter())
            return advance
        return lambda _count, note="": None  # noqa: ARG005

    begun = time.perf_counter()
    measure(
        RunSettings(
            "janus-mini", ["shapes"], samples=max(1, images // 60), limit=60, verdict="none",
            judges=[], workers=workers, out=out, progress=progress,
        )
    )  # fmt: skip
    return last[-1] - first[0], first[0] - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=50_000)
    parser.add_argument("--images", type=int, default=960)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--skip", choices=("records", "workers"))
    args = parser.parse_args()
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} cores, load {load:.1f} before")
    with tempfile.TemporaryDirectory() as name:
        if args.skip != "records":
            for workers in (1, 2):
                pace, by_cpu = records(args.records, workers, Path(name))
                where = "in this process" if workers == 1 else "from two workers"
                print(f"verdicts {where}: {pace:,.0f}/s, {by_cpu:,.0f} a second of CPU time")
        if args.skip != "workers":
            load_model("janus-mini").load()  # what is imported is no part of the first run
            times: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
            for number in range(args.rounds):
                for workers, taken in times.items():
                    taken.append(drawing(args.images, workers, Path(name) / f"{number}-{workers}"))
            for workers, taken in times.items():
                stage, before = (median(each) for each in zip(*taken, strict=True))
                print(
                    f"{workers} workers: {args.images} images in {stage:.1f} s, "
                    f"{before:.1f} s before"
                )
            one, two = (median(stage for stage, _ in times[workers]) for workers in (1, 2))
            print(f"two workers draw {one / two:.2f} x as fast")


if __name__ == "__main__":
    main()
