"""Kill `gapbench run` and `gapbench fix` with -9 at random moments: the same command again has to
end with the same bytes as one that was left alone.

    python benchmarks/kills.py --runs 80 --fixes 20

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
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

RUN = ("run", "--tasks", "shapes/colors", "--limit", "8", "--samples", "2", "--batch-size", "2")
FIX = (
    "fix", "sft", "--prompts", "shapes:train/colors", "--limit", "6", "--samples", "4",
    "--check", "4", "--despite-check", "--epochs", "3", "--batch-size", "4", "--save-steps", "2",
    "--out", "fixed",
)  # fmt: skip
SIGKILL = -9


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=80)
    parser.add_argument("--fixes", type=int, default=20)
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
    if any(same[kind] < kinds[kind][1] for kind in same):
        raise SystemExit(1)
    shutil.rmtree(place)


if __name__ == "__main__":
    main()
