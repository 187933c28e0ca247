"""Kill `gapbench run` and `gapbench fix` with -9 at random moments: the same command again has to
end with the same bytes as one that was left alone.

    python benchmarks/kills.py --runs 80 --fixes 20 --in-cluster 10

In a Ray cluster of two nodes on this machine, three kinds of processes are killed, each in as many
runs as --in-cluster says: the command itself, which is then given again; a worker; and a whole
node, which another one replaces. The last two have to end by themselves.
Compares every image, token file and trained weight byte by byte, and every record of a drawing or a
verdict but for the seconds that it took. Exit code 1 if one differs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path

RUN = ("run", "--tasks", "shapes/colors", "--limit", "8", "--samples", "2", "--batch-size", "2")
FIX = (
    "fix", "sft", "--prompts", "shapes:train/colors", "--limit", "6", "--samples", "4",
    "--check", "4", "--despite-check", "--epochs", "3", "--batch-size", "4", "--save-steps", "2",
    "--out", "fixed",
)  # fmt: skip
SIGKILL = -9
ADAPTER = """
import os, time
from pathlib import Path

import numpy as np
from PIL import Image

from gapbench.models.base import Batches, Drawing
from gapbench.types import Answer

HERE = Path(__file__).parent


def note():
    with (HERE / "calls").open("a") as file:
        file.write(f"{os.getpid()}\\n")
    time.sleep(0.1)


class Toy:
    fingerprint, batches = "toy-1", Batches(2, 4)

    def generate(self, prompts, seeds):
        note()
        noise = [np.random.default_rng(s).integers(0, 256, (8, 8, 3), np.uint8) for s in seeds]
        return [Drawing(Image.fromarray(n), n[0, :, 0].astype(np.int32)) for n in noise]

    def judge(self, images, questions, answers):
        note()
        yes = np.array([np.asarray(image).mean() / 256 for image in images])
        return np.log(np.stack([1 - yes, yes], 1))


class Bright:
    fingerprint, batches = "bright-1", Batches(2, 4)

    def judge(self, images, prompts):
        note()
        return [Answer(verdict=int(np.asarray(image).mean() > 127)) for image in images]
"""


def command(folder: str, arguments: Sequence[str]) -> None:
    """What a killed process runs."""
    os.chdir(folder)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.argv = ["gapbench", *arguments]
    from gapbench.cli.main import main

    main()


def started(folder: Path, arguments: Sequence[str]) -> BaseProcess:
    # Forked from a process that has imported what takes seconds: a kill rarely meets an import.
    server = multiprocessing.get_context("forkserver")
    process = server.Process(target=command, args=(str(folder), arguments))
    process.start()
    return process


def finish(folder: Path, arguments: Sequence[str]) -> float:
    """Seconds that a command takes to its end."""
    start = time.perf_counter()
    process = started(folder, arguments)
    process.join()
    if process.exitcode:
        raise SystemExit(f"gapbench {' '.join(arguments)} failed; see {folder / 'err'}")
    return time.perf_counter() - start


def stored(folder: Path) -> dict[str, object]:
    """What has to be the same: by file its bytes, by file of records the records in any order."""
    there: dict[str, object] = {}
    for file in sorted(folder.rglob("*")):
        name = str(file.relative_to(folder))
        if file.name in ("generations.jsonl", "verdicts.jsonl"):
            there[name] = sorted(map(_record, file.read_text().splitlines()))
        elif file.suffix in (".png", ".npy", ".safetensors", ".part"):
            there[name] = file.read_bytes()
    return there


def _record(line: str) -> str:
    record = json.loads(line)
    return json.dumps({k: v for k, v in record.items() if k not in ("seconds", "checksum")})


def killed(arguments: Sequence[str], count: int, chance: random.Random, place: Path) -> int:
    """How many of so many killed commands end as one that is left alone."""
    calm = place / "calm"
    calm.mkdir(parents=True)
    seconds, wanted, same = finish(calm, arguments), stored(calm), 0
    for number in range(count):
        folder = place / str(number)
        folder.mkdir()
        process, moment = started(folder, arguments), chance.random() * seconds
        time.sleep(moment)
        process.kill()
        process.join()
        hit = process.exitcode == SIGKILL
        finish(folder, arguments)
        now = stored(folder)
        other = sorted(n for n in wanted.keys() | now.keys() if wanted.get(n) != now.get(n))
        same += not other
        said = f"OTHER: {', '.join(other[:3])} in {folder}" if other else "the same bytes"
        when = f"after {moment:.2f} s" if hit else "after its end"
        print(f"{arguments[0]} {number + 1}, killed {when}: {said}", flush=True)
    return same


def _strike(process: BaseProcess, calls: Path) -> None:
    """Kill the worker of the latest call; where that has ended, that of the next."""
    while process.is_alive():
        with suppress(ProcessLookupError, IndexError):
            os.kill(int(calls.read_text().split()[-1]), signal.SIGKILL)
            return
        time.sleep(0.01)


def in_cluster(count: int, chance: random.Random, place: Path) -> dict[str, int]:
    """For each kind of process that is killed, how many runs end as one that is left alone."""
    from ray.cluster_utils import Cluster

    place.mkdir(parents=True)
    adapter = place / "adapter.py"
    adapter.write_text(ADAPTER)
    toy = (
        "run", "--model", f"{adapter}:Toy", "--judge", f"{adapter}:Bright", "--tasks", "shapes",
        "--limit", "40", "--samples", "1",
    )  # fmt: skip
    calm, calls = place / "calm", place / "calls"
    calm.mkdir()
    finish(calm, toy)
    wanted, total = stored(calm), len(calls.read_text().split())
    fast = {"health_check_period_ms": 500, "health_check_failure_threshold": 3}
    head = {"num_cpus": 0, "include_dashboard": False}
    system = {"worker_niceness": 0, **fast}
    cluster = Cluster(initialize_head=True, head_node_args={**head, "_system_config": system})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    there = ("--ray-address", cluster.address, "--workers", "all")
    same = dict.fromkeys(("command", "worker", "node"), 0)
    for kind in same:
        for number in range(count):
            folder = place / f"{kind}-{number}"
            folder.mkdir()
            calls.write_text("")
            moment, more = chance.randrange(total - 4), chance.random() / 5
            process = started(folder, [*toy, *there])
            while process.is_alive() and len(calls.read_text().split()) <= moment:
                time.sleep(0.01)
            time.sleep(more)
            if kind == "command":
                process.kill()
            elif kind == "worker":
                _strike(process, calls)
            else:
                dying = nodes.pop(chance.randrange(2))
                cluster.remove_node(dying, allow_graceful=False)
                nodes.append(cluster.add_node(num_cpus=1))
            process.join()
            if kind == "command":
                finish(folder, [*toy, *there])
            elif process.exitcode:
                raise SystemExit(f"a {kind} was killed and the run failed; see {folder / 'err'}")
            now = stored(folder)
            other = sorted(n for n in wanted.keys() | now.keys() if wanted.get(n) != now.get(n))
            same[kind] += not other
            said = f"OTHER: {', '.join(other[:3])} in {folder}" if other else "the same bytes"
            print(f"{kind} {number + 1}, killed in call {moment + 1}: {said}", flush=True)
    cluster.shutdown()
    return same


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=80)
    parser.add_argument("--fixes", type=int, default=20)
    parser.add_argument("--in-cluster", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(
        ["gapbench.cli.main", "gapbench.fix.run", "gapbench.fix.trainer", "gapbench.metrics",
         "gapbench.models.janus.adapter", "gapbench.report.sheets", "gapbench.report.tables",
         "pandas", "peft", "datasets"]
    )  # fmt: skip
    first = server.Process(target=os.getpid)
    first.start()
    first.join()
    chance, place = random.Random(asked.seed), Path(tempfile.mkdtemp(prefix="kills-"))
    kinds = {"run": (RUN, asked.runs), "fix": (FIX, asked.fixes)}
    same = {k: killed(a, n, chance, place / k) for k, (a, n) in kinds.items() if n}
    for kind, count in same.items():
        print(f"gapbench {kind}: {count} of {kinds[kind][1]} killed ones end with the same bytes")
    wrong = any(same[kind] < kinds[kind][1] for kind in same)
    if count := asked.in_cluster:
        ended = in_cluster(count, chance, place / "cluster")
        print("| killed | runs | end with the same bytes |\n|---|---|---|")
        for kind, right in ended.items():
            print(f"| {kind} | {count} | {right} |")
        wrong = wrong or min(ended.values()) < count
    if wrong:
        raise SystemExit(1)
    shutil.rmtree(place)


if __name__ == "__main__":
    main()
