"""Whether post-training on its own verdicts does to janus-mini what the paper says of its models.

    python scripts/small_world.py search --work DIR       # doses, on the validation split
    python scripts/small_world.py claims --work DIR       # methods and controls over seeds, tested
    python scripts/small_world.py sensitivity --work DIR  # one choice at a time, tested
    python scripts/small_world.py planted --work DIR      # verdicts inverted
    python scripts/small_world.py tables --work DIR [--figures FOLDER]

Every step is a gapbench command that goes on where it stopped, and so does this script; --jobs 2
runs two fixes side by side, a core each. What `compare` says is kept in DIR/<what>.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

import small_world_tables

from gapbench import run

BASE = "--samples 10 --limit 1200 --lora 0"
SFT = f"{BASE} --accept mixed --epochs 3 --learning-rate 3e-4"
DPO = f"{BASE} --accept best:2 --epochs 4 --learning-rate 3e-5"
METHODS = {
    "SFT": f"sft {SFT}",
    "C-SFT": f"c-sft {SFT} --replay-at 2",
    "DPO": f"dpo {DPO}",
    "C-DPO": f"c-dpo {DPO} --replay-at 2",
}
CONTROLS = {"SFT, judge's choice": "Outside", "SFT, by lot": "Lot"}
SEEDS = (0, 1, 2)
BUSY = "is being written"
"""What gapbench says of a run folder while a fix beside it draws its candidates there."""
SEARCH = {
    "mixed, 3e-4": f"sft {SFT}",
    "mixed, 1e-3": f"sft {SFT} --learning-rate 1e-3",
    "best:2, 3e-4": f"sft {SFT} --accept best:2 --epochs 4",
    "dpo, 3e-5": f"dpo {DPO}",
    "dpo, 1e-4": f"dpo {DPO} --learning-rate 1e-4",
}
SENSITIVITY = {
    "candidates": {str(n): f"sft {SFT} --samples {n}" for n in (2, 5, 10)},
    "threshold": {str(p): f"sft {SFT} --accept above:{p}" for p in (0.1, 0.5, 0.9)},
    "replay": {str(e): f"c-sft {SFT} --replay-at {e}" for e in (1, 2)},
    "easy": {
        name: f"sft {SFT} --prompts {prompts}"
        for name, prompts in {
            "none": "shapes:train/medium,shapes:train/hard",
            "a third": "shapes:train",
            "all": "shapes:train/easy",
        }.items()
    },
}


def gapbench(work: Path, *arguments: str, **environment: str) -> str:
    """A command's standard output."""
    code = "from gapbench.cli.main import main; main()"
    here = os.pathsep.join([str(Path(__file__).parent.resolve()), *filter(None, sys.path)])
    while True:
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=work,
            env=os.environ | {"PYTHONPATH": here} | environment,
            capture_output=True,
            text=True,
        )
        if done.returncode == 0:
            break
        if BUSY not in done.stderr:
            said = done.stderr[-3000:]
            raise SystemExit(f"gapbench {' '.join(arguments)} ended with {done.returncode}\n{said}")
        time.sleep(10)
    return done.stdout


def measured(work: Path, model: str, tasks: str) -> str:
    """The run folder of a model."""
    gapbench(work, "run", "--model", model, "--tasks", tasks)
    found = (work / "runs").glob(f"{Path(model).name}-????????")
    return str(max(found, key=lambda folder: folder.stat().st_mtime))


def acceptance(work: Path) -> dict[str, float]:
    """Share of the candidates that janus-mini accepts, and that the judge does."""
    frame = run(
        "janus-mini", "shapes:train", samples=10, limit=1200, out=work / "candidates"
    ).frame()
    return {"own": float((frame["own"] == 1).mean()), "outside": float(frame["outside"].mean())}


class Series:
    """Fixes of one kind with what `compare` says of each, kept as they come."""

    def __init__(self, work: Path, what: str, tasks: str) -> None:
        self.work, self.tasks = work, tasks
        self.file = work / f"{what}.json"
        self.what, self.lock = what, Lock()
        self.found: dict[str, Any] = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.before = measured(work, "janus-mini", tasks)

    def fix(self, name: str, line: str, **environment: str) -> None:
        """One fix, the run of its model, and their comparison."""
        if name in self.found:
            return
        out = "".join(c if c.isalnum() else "-" for c in f"{self.what}-{name}")
        gapbench(self.work, "fix", *line.split(), "--out", out, OMP_NUM_THREADS="1", **environment)
        after = measured(self.work, out, self.tasks)
        with self.lock:  # the verdicts on the images of before go into one folder
            said = gapbench(self.work, "compare", self.before, after, "--format", "json")
        record = json.loads((self.work / out / "fix.json").read_text())
        with self.lock:
            self.found[name] = {
                "command": line,
                "compare": json.loads(said)["comparisons"][0],
                **{key: record[key] for key in ("counts", "replays", "pool", "candidates")},
                "rows": record["data"]["rows"],
            }
            self.file.write_text(json.dumps(self.found, indent=1) + "\n")
        print(name, small_world_tables.line(self.found[name]), flush=True)


def plan(work: Path, what: str) -> dict[str, tuple[str, dict[str, str]]]:
    """Name -> options of a fix, and its environment."""
    if what == "search":
        return {name: (line, {}) for name, line in SEARCH.items()}
    if what == "sensitivity":
        return {
            f"{choice}: {value}": (line, {})
            for choice, lines in SENSITIVITY.items()
            for value, line in lines.items()
        }
    if what == "planted":
        line = f"{METHODS['SFT']} --model planted:Inverted --despite-check"
        return {"SFT, inverted": (line, {})}
    shares = acceptance(work)
    control = {
        "Outside": min(1.0, shares["own"] / shares["outside"]), "Lot": shares["own"]
    }  # fmt: skip
    chosen: dict[str, tuple[str, dict[str, str]]] = {}
    for seed in SEEDS:
        for name, line in METHODS.items():
            chosen[f"{name}, seed {seed}"] = (f"{line} --seed {seed}", {})
        for name, kind in CONTROLS.items():
            line = f"{METHODS['SFT']} --model planted:{kind} --despite-check --seed {seed}"
            chosen[f"{name}, seed {seed}"] = (line, {"SMALL_WORLD_SHARE": f"{control[kind]:.4f}"})
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = ("search", "claims", "sensitivity", "planted", "tables")
    parser.add_argument("what", choices=kinds)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=1, help="fixes side by side")
    parser.add_argument("--figures", type=Path, help="folder for the figures")
    given = parser.parse_args()
    work: Path = given.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if given.what == "tables":
        print(small_world_tables.tables(work, given.figures))
        return
    tasks = "shapes:validation" if given.what == "search" else "shapes"
    series = Series(work, given.what, tasks)
    with ThreadPoolExecutor(given.jobs) as pool:
        todo = plan(work, given.what).items()
        for done in [pool.submit(series.fix, name, line, **env) for name, (line, env) in todo]:
            done.result()


if __name__ == "__main__":
    main()
