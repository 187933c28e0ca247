"""A judge that answers from elsewhere judges while images are drawn."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import Start, finish
from stubs import records

import gapbench
from gapbench.runs.run import Run
from gapbench.types import GapbenchError

ADAPTER = """
import time
from pathlib import Path

import numpy as np
from PIL import Image

from gapbench.models.base import Batches, Drawing
from gapbench.types import Answer, GapbenchError

HERE = Path(__file__).parent


def until(name):
    end = time.monotonic() + 20
    while not (HERE / name).exists() and time.monotonic() < end:
        time.sleep(0.01)
    return (HERE / name).exists()


class Toy:
    fingerprint, batches = "toy-1", Batches(4, 4)
    drawn = 0

    def generate(self, prompts, seeds):
        noise = [np.random.default_rng(s).integers(0, 256, (8, 8, 3), np.uint8) for s in seeds]
        self.drawn += len(seeds)
        if self.drawn > 16 and not (HERE / "alone").exists() and until("asked"):
            (HERE / "seen").touch()
        return [Drawing(Image.fromarray(each)) for each in noise]

    def judge(self, images, questions, answers):
        yes = np.array([np.asarray(image).mean() / 256 for image in images])
        return np.log(np.stack([1 - yes, yes], 1))


class Far:
    fingerprint, batches = "far-1", Batches(4, 4)
    gpus, remote = None, True

    def judge(self, images, prompts):
        (HERE / "asked").touch()
        if (HERE / "hangs").exists():
            time.sleep(600)
        if (HERE / "away").exists():
            (HERE / "away").unlink()
            raise GapbenchError("the server is away")
        with (HERE / "judged").open("a") as file:
            file.write("1" * len(images))
        return [Answer(verdict=int(np.asarray(image).mean() > 127)) for image in images]
"""


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Run]:
    file = tmp_path / "adapter.py"
    file.write_text(ADAPTER)

    def call(out: str, limit: int = 28) -> Run:
        given = {"judges": [f"{file}:Far"], "limit": limit, "samples": 1}
        return gapbench.run(f"{file}:Toy", "shapes", out=tmp_path / out, **given)

    return call


def test_each_image_is_judged_once_and_the_records_are_the_same(
    run: Callable[..., Run], tmp_path: Path
) -> None:
    found = run("beside")
    assert (tmp_path / "seen").exists()
    asked = len((tmp_path / "judged").read_text())
    assert asked == len({key for key in found.folder.verdicts() if key[2] == "far-1"})
    (tmp_path / "alone").touch()
    alone = run("first", limit=14)  # fewer than a judge waits for
    assert not alone.unfinished
    assert records(run("first")) == records(found)


def test_a_judge_that_fails_meanwhile_costs_nothing(
    run: Callable[..., Run], tmp_path: Path
) -> None:
    (tmp_path / "away").touch()
    found = run("beside")
    assert not (tmp_path / "away").exists()
    assert not found.unfinished
    assert not found.failures()


def test_an_error_of_the_model_ends_the_judge(run: Callable[..., Run], tmp_path: Path) -> None:
    found = run("beside")
    text = (tmp_path / "adapter.py").read_text()
    broken = text.replace("self.drawn += len(seeds)", "raise GapbenchError('no more')")
    (tmp_path / "adapter.py").write_text(broken)
    with pytest.raises(GapbenchError, match="no more"):
        run("beside", limit=42)
    assert found.folder.generations()


def test_a_second_ctrl_c_does_not_wait_for_a_judge_that_hangs(
    start: Start, wait_until: Any, run: Callable[..., Run], tmp_path: Path
) -> None:
    (tmp_path / "hangs").touch()
    process = start(
        tmp_path, "run", "--model", "adapter.py:Toy", "--judge", "adapter.py:Far", "--tasks",
        "shapes", "--limit", "28", "--samples", "1", "--out", "beside",
    )  # fmt: skip

    def own() -> int:
        files = tmp_path.glob("beside/*/verdicts.jsonl")
        return sum(file.read_bytes().count(b"\n") for file in files)

    wait_until(lambda: own() == 56, process)  # of each image, and of each mismatched pair
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    process.join(3)  # where a batch was in hand, it ends that, and waits for the judge's too
    if process.is_alive():
        os.kill(process.pid, signal.SIGINT)
    assert finish(process) in {1, 2, 130}
    assert "Traceback" not in (tmp_path / "err").read_text()
    (tmp_path / "hangs").unlink()
    done = run("beside")
    assert not done.unfinished
    assert done.failures() == {}
