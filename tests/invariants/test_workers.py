"""The number of workers changes no record, and what befalls one costs no other's work: with real
processes of a Ray cluster whose nodes are all on this machine."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import COMMAND, Start, finish
from ray.cluster_utils import Cluster
from stubs import files, records

import gapbench
from gapbench.engines.base import Source
from gapbench.engines.cluster import need, room
from gapbench.judges import load_judge
from gapbench.models.base import Model
from gapbench.models.checkpoint import versions
from gapbench.runs.away import Away
from gapbench.runs.estimate import estimate
from gapbench.runs.judge import judge_run
from gapbench.runs.plan import prepare
from gapbench.runs.run import Run
from gapbench.runs.settings import RunSettings
from gapbench.types import GapbenchError

from .test_resume import PROMPTS, count, lines

ADAPTER = """
import os, signal, time
from pathlib import Path

import numpy as np
from PIL import Image

from gapbench.models.base import Batches, Drawing
from gapbench.types import Answer, GapbenchError, Unfinished

HERE = Path(__file__).parent


class Toy:
    fingerprint = "toy-1"
    batches = Batches(2, 4)

    def __init__(self, device="auto"):
        self.device = device

    def load(self):
        {load}

    def generate(self, prompts, seeds):
        with (HERE / "calls").open("a") as file:
            file.write(f"{{os.getpid()}} {{len(prompts)}}\\n")
        drawings = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
            drawings.append(Drawing(Image.fromarray(noise), np.arange(3, dtype=np.int32), prompt))
        if not (HERE / "mended").exists():
            {draw}
        return drawings

    def judge(self, images, questions, answers):
        yes = np.array([np.asarray(image).mean() / 256 for image in images])
        return np.log(np.stack([1 - yes, yes], 1))

    def check_seeds(self, prompt, seed):
        return f"tried in {{os.getpid()}}" if (HERE / "check").exists() else None


class Bright:
    fingerprint = "bright-1"

    def judge(self, images, prompts):
        with (HERE / "judged").open("a") as file:
            file.write(f"{{os.getpid()}} {{len(images)}}\\n")
        return [Answer(verdict=int(np.asarray(image).mean() > 127)) for image in images]
"""


BOTH = """any(
                len({line.split()[0] for line in (HERE / "calls").read_text().splitlines()}) > 1
                or time.sleep(0.01)
                for _ in range(6000)
            )"""
"""What a toy waits for as it draws: that both workers have begun, or a minute."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head that has no room for workers, and a node that has it for two."""
    fast = {
        "worker_niceness": 0,
        "health_check_period_ms": 500,
        "health_check_failure_threshold": 3,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        made = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "include_dashboard": False,
                "_system_config": {"worker_niceness": 0, **fast},
            },
        )
        made.add_node(num_cpus=2)
        yield made
        made.shutdown()


@pytest.fixture
def toy(tmp_path: Path) -> Callable[..., str]:
    """Write an adapter and a judge that have a trouble; gives the file."""

    def write(load: str = "pass", draw: str = "pass") -> str:
        file = tmp_path / "adapter.py"
        file.write_text(ADAPTER.format(load=load, draw=draw))
        return str(file)

    return write


@pytest.fixture
def run(cluster: Cluster, tmp_path: Path) -> Callable[..., Run]:
    """A run of a toy; with workers, in the cluster."""

    def call(file: str, workers: Any = 2, limit: int = 12, **more: Any) -> Run:
        where = {"workers": workers, "ray_address": cluster.address} if workers else {}
        given = {"samples": 1, "judges": [f"{file}:Bright"], "out": tmp_path / f"by-{workers}"}
        return gapbench.run(f"{file}:Toy", "shapes", limit=limit, **(where | given | more))

    return call


def calls(folder: Path, name: str = "calls") -> list[list[int]]:
    """(process, rows) of each call."""
    file = folder / name
    there = file.read_text().splitlines() if file.exists() else []
    return [[int(n) for n in line.split()] for line in there]


def same(found: Run, wanted: Run) -> None:
    """Every record and every file of an image, but for the seconds and the order."""
    assert found.path.name == wanted.path.name
    assert records(found) == records(wanted)
    for kind in ("images", "tokens"):
        assert files(found.path / kind) == files(wanted.path / kind)
    assert found.rates() == wanted.rates()
    assert found.failures() == {}


def test_two_workers_give_the_records_of_this_process(cluster: Cluster, tmp_path: Path) -> None:
    given: dict[str, Any] = {"samples": 2, "limit": 12, "batch_size": 8, "reflect": 2}
    alone = gapbench.run("janus-mini", "shapes", out=tmp_path / "alone", **given)
    more = {"workers": 2, "ray_address": cluster.address}
    together = gapbench.run("janus-mini", "shapes", out=tmp_path / "two", **more, **given)
    assert len(together.frame()) == 24 < len(together.folder.generations())
    same(together, alone)


def test_model_and_judge_work_in_the_workers(
    toy: Callable[..., str], run: Callable[..., Run], tmp_path: Path
) -> None:
    file = toy(draw=BOTH)
    (tmp_path / "check").touch()
    found = run(file, limit=10)
    (tmp_path / "mended").touch()
    drew, judged = ({pid for pid, _ in calls(tmp_path, name)} for name in ("calls", "judged"))
    assert len(drew) == 2
    assert os.getpid() not in drew | judged
    assert sum(rows for _, rows in calls(tmp_path)) == 10
    assert max(rows for _, rows in calls(tmp_path)) <= 4
    [warning] = found.folder.read("checks.json").values()
    assert int(warning.removeprefix("tried in ")) in drew
    for pid in drew | judged:  # none is left over
        wait(lambda pid=pid: not runs(pid))
    same(found, run(file, workers=None, limit=10))


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def wait(ready: Callable[[], object], seconds: float = 60) -> None:
    limit = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < limit
        time.sleep(0.05)


AHEAD = """len((HERE / "calls").read_text().splitlines()) < 8 or any(
                ((HERE / "judged").exists() and (HERE / "seen").write_text("1")) or time.sleep(0.01)
                for _ in range(6000)
            )"""
"""What a toy waits for once there are images to judge: that they are, or a minute."""


def test_a_judge_that_has_room_does_not_wait_for_the_last_image(
    toy: Callable[..., str], run: Callable[..., Run], tmp_path: Path
) -> None:
    file = toy(draw=AHEAD)
    found = run(file, workers=1, limit=32)
    assert (tmp_path / "seen").exists()
    (tmp_path / "mended").touch()
    same(found, run(file, workers=None, limit=32))


def test_a_judge_works_in_workers_on_a_run_that_is_there(
    cluster: Cluster, toy: Callable[..., str], run: Callable[..., Run], tmp_path: Path
) -> None:
    file = toy()
    plain = run(file, workers=None, limit=10, judges=[])
    wanted = run(file, workers=None, limit=10, out=tmp_path / "wanted")
    (tmp_path / "judged").unlink()
    judges = [f"{file}:Bright", "pixel"]
    given: dict[str, Any] = {"workers": 2, "ray_address": cluster.address}
    found = judge_run(plain.path, judges[:1], **given)
    same(found, wanted)
    judged = {pid for pid, _ in calls(tmp_path, "judged")}
    assert os.getpid() not in judged
    for pid in judged:  # none is left over
        wait(lambda pid=pid: not runs(pid))
    both = judge_run(plain.path, judges, **given)  # one has no weights, and stays in this process
    assert len(both.folder.verdicts()) == len(wanted.folder.verdicts()) + 20  # pairs too
    with pytest.raises(GapbenchError, match="--workers copies weights; pixel has none here"):
        judge_run(plain.path, ["pixel"], workers=2)


def test_nodes_write_their_images_or_say_that_they_cannot(
    toy: Callable[..., str], run: Callable[..., Run], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    file = toy()
    alone = run(file, workers=None)
    with monkeypatch.context() as patch:
        patch.setattr("gapbench.runs.drawn.as_png", None)  # which this process does not need
        same(run(file), alone)
    assert "does not see" not in caplog.text
    seen = Away.of(alone.folder)
    assert seen
    monkeypatch.setattr("gapbench.runs.stages.Away.of", lambda _: replace(seen, mark=1))
    same(run(file, out=tmp_path / "far"), alone)
    assert caplog.text.count(f"does not see {seen.path}, so its images travel to the first") == 1


def test_workers_that_are_killed_at_random_lose_no_record(
    toy: Callable[..., str], run: Callable[..., Run], tmp_path: Path
) -> None:
    file, choice = toy(draw="time.sleep(0.2)"), random.Random(0)

    with ThreadPoolExecutor(1) as other:
        going = other.submit(run, file, limit=40)
        for kills in range(1, 4):
            wait(lambda kills=kills: len(calls(tmp_path)) >= 5 * kills)  # type: ignore[misc]
            there = sorted({pid for pid, _ in calls(tmp_path)[-4:] if runs(pid)})
            os.kill(choice.choice(there), signal.SIGKILL)
        found = going.result()
    assert len({pid for pid, _ in calls(tmp_path)}) >= 4
    (tmp_path / "mended").touch()
    same(found, run(file, workers=None, limit=40))


def test_a_killed_command_goes_on_with_other_workers(
    cluster: Cluster, toy: Callable[..., str], run: Callable[..., Run], start: Start,
    wait_until: Any, tmp_path: Path,
) -> None:  # fmt: skip
    file = toy(draw="time.sleep(0.2)")
    process = start(
        tmp_path, "run", "--model", f"{file}:Toy", "--judge", f"{file}:Bright", "--tasks",
        "shapes", "--limit", "40", "--samples", "1", "--workers", "2", "--ray-address",
        cluster.address,
    )  # fmt: skip
    wait_until(lambda: len(calls(tmp_path)) >= 5, process)
    process.kill()
    assert finish(process) == -signal.SIGKILL
    (tmp_path / "mended").touch()
    same(run(file, limit=40, out=tmp_path / "runs"), run(file, workers=None, limit=40))


def test_a_node_that_joins_is_used_and_one_that_dies_is_not_missed(
    cluster: Cluster, toy: Callable[..., str], run: Callable[..., Run], tmp_path: Path
) -> None:
    file = toy(draw="while not (HERE / 'mended').exists(): time.sleep(0.05)")
    with ThreadPoolExecutor(1) as other:
        going = other.submit(run, file, workers="all", batch_size=1)
        wait(lambda: len(calls(tmp_path)) == 2)
        node = cluster.add_node(num_cpus=1)
        wait(lambda: len(calls(tmp_path)) == 3)
        cluster.remove_node(node, allow_graceful=False)  # in the middle of its batch
        (tmp_path / "mended").touch()
        found = going.result()
    assert len(calls(tmp_path)) == 13
    same(found, run(file, workers=None))


def test_an_item_that_kills_its_worker_is_named_and_costs_no_other(
    toy: Callable[..., str], run: Callable[..., Run], tmp_path: Path
) -> None:
    file = toy()
    poison = run(file, workers=None, limit=6, out=tmp_path / "before").plan.prompts[2].text
    toy(draw=f"if {poison!r} in prompts: os.kill(os.getpid(), signal.SIGKILL)")
    found = run(file, limit=6, batch_size=4)
    [(reason, failed)] = found.failures()["images"].items()
    assert reason.startswith(f"image 0 of {poison!r}: 3 workers died of it, perhaps because memory")
    assert failed == 1
    assert len(found.folder.generations()) == 5
    (tmp_path / "mended").touch()
    assert len(run(file, workers=None, limit=6, out=tmp_path / "by-2").folder.generations()) == 6


@pytest.mark.parametrize(
    ("load", "draw", "words"),
    [
        ("raise GapbenchError('no weights here')", "pass", "no weights here"),
        ("pass", "{}['colour']", r"KeyError: 'colour' \(.*adapter.py, line \d+\)"),
        (
            "pass",
            "raise Unfinished('it is not well', {0: drawings[0]})",
            "it is not well; ",
        ),
    ],
    ids=["cannot load", "is broken", "does a part"],
)
def test_errors_of_workers_are_those_of_one_process(
    toy: Callable[..., str], run: Callable[..., Run], tmp_path: Path, load: str, draw: str,
    words: str,
) -> None:  # fmt: skip
    file = toy(load, draw)
    for workers in (2, None):
        with pytest.raises(GapbenchError, match=words):
            run(file, workers, limit=4)
        there = list((tmp_path / f"by-{workers}").glob("*/run.json"))
        assert bool(there) == ("no weights" not in words)


def test_memory_that_runs_out_in_a_worker_halves_the_batch(
    toy: Callable[..., str], run: Callable[..., Run], tmp_path: Path
) -> None:
    file = toy(draw="if len(prompts) > 3: raise RuntimeError('CUDA out of memory.')")
    found = run(file, limit=12, batch_size=6)
    assert len(found.folder.generations()) == 12
    sizes = [rows for _, rows in calls(tmp_path)]
    assert sizes.count(3) == 4
    assert sizes.count(6) == len(sizes) - 4 in (1, 2)  # 1 where the other worker came later


def test_what_cannot_be_run_is_told_before_anything_is_written(
    toy: Callable[..., str], run: Callable[..., Run], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    file = toy()
    wrong: dict[str, dict[str, Any]] = {
        "--workers 3: each copy of Toy takes a core, and Ray has room for 2; take --workers 2": {
            "workers": 3
        },
        "--ray-address 127.0.0.1:1: nobody answers there": {"ray_address": "127.0.0.1:1"},
        "--device cuda:1: Ray gives each worker GPUs of its own": {"device": "cuda:1"},
    }
    for words, given in wrong.items():
        with pytest.raises(GapbenchError, match=words):
            run(file, **given)
    monkeypatch.setattr("gapbench.engines.ray.versions", lambda: {**versions(), "torch": "9"})
    with pytest.raises(GapbenchError, match=r"has torch .* \(here 9\); install the same versions"):
        run(file)
    monkeypatch.undo()
    Path(file).write_text(Path(file).read_text().replace('"toy-1"', "str(os.getpid())"))
    with pytest.raises(GapbenchError, match="makes another Toy: its files or its kind of device"):
        run(file)
    assert not list(tmp_path.glob("by-*"))


def test_options_that_contradict_each_other() -> None:
    for words, given in (
        ("--workers copies weights; server-model has none here", {"model": "server:http://127.0.0.1:1#model"}),
        ("workers must be at least 1, not 0", {"workers": 0}),
        ("by its name", {"model": gapbench.load_model("janus-mini")}),
        ("--workers 2 needs --engine ray", {"engine": "local"}),
        ("--ray-address auto needs --engine ray", {"engine": "local", "ray_address": "auto",
                                                   "workers": 1}),
        ("ray_address must be auto or HOST:PORT", {"ray_address": "ray://here"}),
    ):  # fmt: skip
        with pytest.raises(GapbenchError, match=words):
            gapbench.run(**({"workers": 2} | given))


def test_without_ray_a_line_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gapbench.engines.ray", None)
    with pytest.raises(GapbenchError, match=r'pip install "gapbench\[ray\]"'):
        gapbench.run(workers=2)


def test_copies_take_the_gpus_that_they_declare(monkeypatch: pytest.MonkeyPatch) -> None:
    eight = {"Alive": True, "Resources": {"CPU": 32.0, "GPU": 8.0}}
    plain = {"Alive": True, "Resources": {"CPU": 4.0}}
    dead = {**eight, "Alive": False}
    model, half = Model(), Model()
    half.gpus = 0.5
    with pytest.raises(GapbenchError, match="Ray has nodes with GPUs, and torch sees none here"):
        need(Source(model), [eight])
    assert need(Source(model, device="cpu"), [eight]) == {"CPU": 1}
    assert need(Source(model), [plain]) == {"CPU": 1}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    nodes = [eight, plain, dead]
    assert room(nodes, need(Source(model), nodes)) == 8
    assert room(nodes, need(Source(half), nodes)) == 16
    assert room(nodes, need(Source(model, device="cpu"), nodes)) == 36
    assert load_judge("pixel").gpus is None


def test_an_estimate_shares_the_work_out(
    toy: Callable[..., str], run: Callable[..., Run], tmp_path: Path
) -> None:
    file = toy(draw="time.sleep(0.01)")
    run(file, workers=None, limit=4, judges=[])

    def seconds(workers: Any) -> float:
        given: dict[str, Any] = {"samples": 1, "limit": 8, "judges": [], "workers": workers}
        settings = RunSettings(f"{file}:Toy", ["shapes"], out=tmp_path / "by-None", **given)
        return estimate(prepare(settings)).seconds

    assert seconds(2) == seconds(1) / 2 > 0
    assert seconds("all") == seconds(1)


def test_ctrl_c_keeps_what_is_in_flight_and_one_process_completes_the_run(
    cluster: Cluster, start: Start, wait_until: Any, tmp_path: Path
) -> None:
    arguments = [
        "run", "--model", "janus-mini", "--tasks", "shapes", "--limit", str(PROMPTS),
        "--samples", "1", "--batch-size", "2",
    ]  # fmt: skip
    # A terminal sends Ctrl-C to all processes of the command.
    code = "import os; os.setpgid(0, 0)\n" + COMMAND
    more = ("--workers", "2", "--ray-address", cluster.address)
    process = start(tmp_path, *arguments, *more, code=code)
    wait_until(lambda: count(tmp_path) >= 4, process)
    assert process.pid is not None
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
    assert finish(process) == 130
    told = (tmp_path / "err").read_text()
    assert told.endswith("stopped after the batch in hand; run the same command again to go on\n")
    there = lines(tmp_path, "generations.jsonl")
    assert len(there) % 2 == 0
    given: dict[str, Any] = {"limit": PROMPTS, "samples": 1, "batch_size": 2}
    done = gapbench.run("janus-mini", "shapes", out=tmp_path / "runs", **given)
    assert lines(tmp_path, "generations.jsonl")[: len(there)] == there
    same(done, gapbench.run("janus-mini", "shapes", out=tmp_path / "whole", **given))


def test_ray_is_started_for_one_command_and_says_nothing(
    toy: Callable[..., str], cli: Callable[..., Any], tmp_path: Path
) -> None:
    model = f"{toy(draw=BOTH)}:Toy"
    done = cli("run", "--model", model, "--judge", "none", "--limit", "4", "--samples", "1",
               "--workers", "2", "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "ray" not in done.stderr.lower()
    assert done.stdout.startswith("[")
    assert len({pid for pid, _ in calls(tmp_path)}) == 2
