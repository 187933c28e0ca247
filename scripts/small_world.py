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

import small_world_figures
import small_world_tables

from gapbench import run

Options = dict[str, object]
BASE: Options = {"samples": 10, "limit": 1200, "lora": 0}
SFT = BASE | {"accept": "best:2", "epochs": 4, "learning-rate": "3e-4"}
MIXED = SFT | {"accept": "mixed", "epochs": 3}
DPO = BASE | {"accept": "best:2", "epochs": 4, "learning-rate": "3e-5"}
METHODS = {
    "SFT": ("sft", SFT),
    "C-SFT": ("c-sft", SFT | {"replay-at": 2}),
    "DPO": ("dpo", DPO),
    "C-DPO": ("c-dpo", DPO | {"replay-at": 2}),
}
CONTROLS = {"SFT, judge's choice": "Outside", "SFT, by lot": "Lot"}
SEEDS = (0, 1, 2)
BUSY = "is being written"
"""What gapbench says of a run folder while a fix beside it draws its candidates there."""
SEARCH = {
    "mixed, 3e-4": ("sft", MIXED),
    "mixed, 1e-3": ("sft", MIXED | {"learning-rate": "1e-3"}),
    "best:2, 3e-4": ("sft", SFT),
    "dpo, 3e-5": ("dpo", DPO),
    "dpo, 1e-4": ("dpo", DPO | {"learning-rate": "1e-4"}),
}
SENSITIVITY = {
    "candidates": {str(n): ("sft", SFT | {"samples": n}) for n in (2, 5, 10)},
    "threshold": {str(p): ("sft", MIXED | {"accept": f"above:{p}"}) for p in (0.1, 0.5, 0.9)},
    "replay": {str(e): ("c-sft", SFT | {"replay-at": e}) for e in (1, 2, 3)},
    "easy": {
        "none": ("sft", SFT | {"prompts": "shapes:train/medium,shapes:train/hard"}),
        "a third": ("sft", SFT),
        "all": ("sft", SFT | {"prompts": "shapes:train/easy"}),
    },
}


def command(method: str, options: Options, seed: int = 0, planted: str = "") -> str:
    """A fix as typed; `planted` is a class of planted.py in the place of janus-mini."""
    model = ["--model", f"planted:{planted}", "--despite-check"] if planted else []
    given = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    return " ".join([method, *given, *model, "--seed", str(seed)])


def folder(what: str, name: str) -> str:
    """Where a fix of a series goes."""
    return "".join(c if c.isalnum() else "-" for c in f"{what}-{name}")


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
        if self.found.get(name, {}).get("command") == line:
            return
        out = self.equal(line) or folder(self.what, name)
        gapbench(self.work, "fix", *line.split(), "--out", out, OMP_NUM_THREADS="1", **environment)
        after = measured(self.work, out, self.tasks)
        pair = self.before, after, "--tasks", self.tasks, "--by", "tier", "--format", "json"
        with self.lock:  # the verdicts on the images of before go into one folder
            said = gapbench(self.work, "compare", *pair)
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

    def equal(self, line: str) -> str | None:
        """The folder of a fix by the same command in another series: it is not done twice."""
        for file in sorted(self.work.glob("*.json")):
            for name, other in json.loads(file.read_text()).items():
                if other["command"] == line:
                    return folder(file.stem, name)
        return None


def plan(work: Path, what: str) -> dict[str, tuple[str, dict[str, str]]]:
    """Name -> a fix as typed, and its environment."""
    if what == "search":
        return {name: (command(*fix), {}) for name, fix in SEARCH.items()}
    if what == "sensitivity":
        return {
            f"{choice}: {value}": (command(*fix), {})
            for choice, fixes in SENSITIVITY.items()
            for value, fix in fixes.items()
        }
    if what == "planted":
        return {"SFT, inverted": (command("sft", SFT, planted="Inverted"), {})}
    shares = acceptance(work)
    control = {
        "Outside": min(1.0, shares["own"] / shares["outside"]), "Lot": shares["own"]
    }  # fmt: skip
    chosen: dict[str, tuple[str, dict[str, str]]] = {}
    for seed in SEEDS:
        for name, fix in METHODS.items():
            chosen[f"{name}, seed {seed}"] = (command(*fix, seed), {})
        for name, kind in CONTROLS.items():
            line = command("sft", SFT, seed, kind)
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
        print(small_world_tables.tables(work))
        if given.figures is not None:
            small_world_figures.figures(work, given.figures)
        return
    tasks = "shapes:validation" if given.what == "search" else "shapes"
    series = Series(work, given.what, tasks)
    with ThreadPoolExecutor(given.jobs) as pool:
        todo = plan(work, given.what).items()
        for done in [pool.submit(series.fix, name, line, **env) for name, (line, env) in todo]:
            done.result()


if __name__ == "__main__":
    main()
