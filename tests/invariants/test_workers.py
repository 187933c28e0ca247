"""The number of worker processes changes no answer, and what befalls one costs no other's work."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import COMMAND, Start, finish

import gapbench
from gapbench.engines.processes import DIED, Copies, places
from gapbench.types import GapbenchError

from .test_batching import measure, same_images, same_verdicts
from .test_resume import PROMPTS, assert_same, count, lines, undisturbed

__all__ = ["undisturbed"]
ADAPTER = """
import os, signal
from pathlib import Path

import numpy as np
from PIL import Image

from gapbench.models.base import Drawing
from gapbench.types import Answer, GapbenchError, Unfinished

HERE = Path(__file__).parent


class {name}:
    name, fingerprint, recipe = "{name}", "{name}-1", {{}}
    capabilities = frozenset({{"generate", "judge_logits"}})
    pair = True

    def __init__(self, device="auto", dtype="auto"):
        self.device = device

    def load(self):
        {load}

    def release(self):
        pass

    def refuses(self, text):
        return None

    def generate(self, prompts, seeds):
        with (HERE / "calls").open("a") as file:
            file.write(f"{{os.getpid()}} {{len(prompts)}}\\n")
        drawings = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
            drawings.append(Drawing(Image.fromarray(noise), None, prompt, None))
        if not (HERE / "mended").exists():
            {draw}
        return drawings

    def judge(self, images, questions, answers):
        yes = np.array([np.asarray(image).mean() / 256 for image in images])
        return np.log(np.stack([1 - yes, yes], 1))

    {more}
"""
ANSWERS = """
    def answers(self, images, questions, words):
        with (HERE / "answered").open("a") as file:
            file.write(f"{os.getpid()} {len(images)}\\n")
        return [Answer(verdict=1, text="by itself") for _ in images]

    def check_seeds(self, prompt, seed):
        return f"tried in {os.getpid()}"
"""
USUAL = {"load": "pass", "draw": "pass", "more": ""}


@pytest.fixture(autouse=True)
def _forked(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of this process come from the server that has imported all, which saves seconds
    each; those of the command that Ctrl-C stops are spawned, as a user's are."""
    server = multiprocessing.get_context("forkserver")
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: server)


@pytest.fixture
def adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Write an adapter that has a trouble; gives its import path."""

    def write(name: str, **does: str) -> str:
        module = f"{name.lower()}_adapter"
        (tmp_path / f"{module}.py").write_text(ADAPTER.format(name=name, **USUAL | does))
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, module, raising=False)
        return f"{module}:{name}"

    return write


def calls(folder: Path, name: str = "calls") -> list[list[int]]:
    """(process, rows) of each call for images, or of those that were "answered"."""
    return [[int(n) for n in line.split()] for line in (folder / name).read_text().splitlines()]


def test_three_workers_give_the_images_and_verdicts_of_one(tmp_path: Path) -> None:
    alone = measure("janus-mini", "shapes", 16, tmp_path / "alone", 8)
    # 13 rows share themselves out unevenly, and the last 3 leave each with one.
    copies = Copies("janus-mini", "auto", "auto", None, 3)
    together = measure(copies, "shapes", 13, tmp_path / "together", 8)
    copies.release()
    assert len(alone.files) == 16
    same_images(together, alone)
    same_verdicts(together.verdicts, alone.verdicts)


def test_rows_are_shared_and_each_goes_once(adapter: Callable[..., str], tmp_path: Path) -> None:
    spec = adapter("Steady")
    run = gapbench.run(
        spec,
        "shapes",
        samples=1,
        limit=10,
        judges=[],
        batch_size=5,
        workers=3,
        out=tmp_path / "runs",
    )
    assert sorted(rows for _, rows in calls(tmp_path)) == [1, 1, 2, 2, 2, 2]
    processes = {process for process, _ in calls(tmp_path)}
    assert len(processes) == 3
    assert os.getpid() not in processes
    assert len(run.folder.generations()) == 10
    alone = gapbench.run(spec, "shapes", samples=1, limit=10, judges=[], out=tmp_path / "alone")
    assert alone.rates() == run.rates()
    gapbench.run(spec, "shapes", samples=13, limit=10, judges=[], workers=2, out=tmp_path / "auto")
    sizes = [1, 1, 2, 2, 2, 2, 4, 4, 8, 8, 16, 16, 32, 32]
    assert sorted(rows for _, rows in calls(tmp_path)[-14:]) == sizes
    assert {g.image for g in alone.folder.generations().values()} == {
        g.image for g in run.folder.generations().values()
    }
    for process in processes:  # none is left over
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def test_an_adapter_that_gives_verdicts_itself_gives_them_in_the_workers(
    adapter: Callable[..., str], tmp_path: Path
) -> None:
    adapter("Answering", more=ANSWERS)
    spec = f"{tmp_path / 'answering_adapter.py'}:Answering"  # a file, which each process loads
    run = gapbench.run(
        spec,
        "shapes",
        samples=1,
        limit=8,
        judges=[],
        batch_size=8,
        workers=2,
        out=tmp_path / "runs",
    )
    drew = {process for process, _ in calls(tmp_path)}
    answered = calls(tmp_path, "answered")
    assert {process for process, _ in answered} == drew
    assert os.getpid() not in drew
    assert {rows for _, rows in answered} == {4}
    assert {verdict.text for verdict in run.folder.verdicts().values()} == {"by itself"}
    [warning] = run.folder.read("checks.json").values()
    assert int(warning.removeprefix("tried in ")) in drew
    alone = gapbench.run(spec, "shapes", samples=1, limit=8, judges=[], out=tmp_path / "alone")
    assert alone.rates() == run.rates()


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        ("raise GapbenchError('it is not well')", "it is not well"),
        ("raise Unfinished('it is not well', {0: drawings[0]})", "it is not well"),
        ("os.kill(os.getpid(), signal.SIGKILL)", DIED[:40]),
    ],
    ids=["refuses", "does a part", "dies"],
)
def test_what_befalls_one_worker_costs_no_other_its_work(
    adapter: Callable[..., str], tmp_path: Path, trouble: str, words: str
) -> None:
    spec = adapter("Ailing", draw=f"if self.device == 'cpu' and self.takes_its_turn(): {trouble}")
    file = tmp_path / "ailing_adapter.py"
    # The one that makes the folder first is the one with the trouble.
    file.write_text(
        file.read_text()
        + "    def takes_its_turn(self):\n"
        + "        try:\n            (HERE / 'turn').mkdir()\n"
        + "        except FileExistsError:\n            return False\n        return True\n"
    )
    given: dict[str, Any] = {
        "tasks": "shapes", "samples": 1, "limit": 8, "judges": [], "batch_size": 8, "device": "cpu",
        "out": tmp_path / "runs",
    }  # fmt: skip
    with pytest.raises(GapbenchError, match=words) as caught:
        gapbench.run(spec, workers=2, **given)
    assert "the rest is kept" in str(caught.value)
    (folder,) = (tmp_path / "runs").iterdir()
    kept = (folder / "generations.jsonl").read_text().splitlines()
    assert len(kept) == 4 + ("Unfinished" in trouble)
    (tmp_path / "mended").touch()
    run = gapbench.run(spec, workers=2, **given)
    assert len(run.folder.generations()) == 8
    assert (folder / "generations.jsonl").read_text().splitlines()[: len(kept)] == kept


def test_memory_that_runs_out_in_a_worker_halves_the_batch(
    adapter: Callable[..., str], tmp_path: Path
) -> None:
    spec = adapter("Large", draw="if len(prompts) > 3: raise RuntimeError('CUDA out of memory.')")
    run = gapbench.run(
        spec,
        "shapes",
        samples=1,
        limit=12,
        judges=[],
        batch_size=12,
        workers=2,
        out=tmp_path / "runs",
    )
    assert len(run.folder.generations()) == 12
    assert sorted(rows for _, rows in calls(tmp_path)) == [3, 3, 3, 3, 6, 6]


def test_other_errors_of_an_adapter_come_with_their_place(
    adapter: Callable[..., str], tmp_path: Path
) -> None:
    spec = adapter("Broken", draw="{}['colour']")
    with pytest.raises(
        GapbenchError, match=r"KeyError: 'colour' \(.*broken_adapter.py, line \d+\)"
    ):
        gapbench.run(
            spec, "shapes", samples=1, limit=4, judges=[], workers=2, out=tmp_path / "runs"
        )


def test_weights_that_no_worker_can_load_leave_nothing_behind(
    adapter: Callable[..., str], tmp_path: Path
) -> None:
    spec = adapter("Missing", load="raise GapbenchError('no weights here')")
    with pytest.raises(GapbenchError, match="no weights here"):
        gapbench.run(spec, "shapes", limit=4, judges=[], workers=2, out=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_workers_need_weights_to_copy(tmp_path: Path) -> None:
    for spec in ("images:somewhere", "server:http://127.0.0.1:1#model"):
        with pytest.raises(GapbenchError, match="--workers copies a model's weights"):
            gapbench.run(spec, workers=2, out=tmp_path / "runs")
    with pytest.raises(GapbenchError, match="workers must be at least 1, not 0"):
        gapbench.run(workers=0, out=tmp_path / "runs")
    with pytest.raises(GapbenchError, match="by its name"):
        gapbench.run(gapbench.load_model("janus-mini"), workers=2, out=tmp_path / "runs")


def test_copies_take_the_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    assert places("cpu", 2) == ["cpu", "cpu"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert places("auto", 3) == places("cuda", 3) == ["cuda:0", "cuda:1", "cuda:0"]
    assert places("cuda:1", 2) == ["cuda:1", "cuda:1"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert places("auto", 2) == ["auto", "auto"]


def test_ctrl_c_keeps_the_batch_in_hand_and_one_process_completes_the_run(
    start: Start, wait_until: Any, undisturbed: Any, tmp_path: Path
) -> None:
    arguments = [
        "run", "--model", "janus-mini", "--tasks", "shapes", "--limit", str(PROMPTS),
        "--samples", "1", "--batch-size", "4",
    ]  # fmt: skip
    # A terminal sends Ctrl-C to all processes of the command.
    code = "import os; os.setpgid(0, 0)\n" + COMMAND
    process = start(tmp_path, *arguments, "--workers", "2", code=code)
    wait_until(lambda: count(tmp_path) >= 4, process)
    assert process.pid is not None
    os.killpg(process.pid, signal.SIGINT)
    assert finish(process) == 130
    assert "stopped after the batch in hand" in (tmp_path / "err").read_text()
    there = lines(tmp_path, "generations.jsonl")
    assert len(there) % 4 == 0
    assert finish(start(tmp_path, *arguments)) == 0
    assert lines(tmp_path, "generations.jsonl")[: len(there)] == there
    assert_same(tmp_path, undisturbed)
