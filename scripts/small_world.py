"""What post-training on its own verdicts does to janus-mini, over seeds, and with planted verdicts.

    python scripts/small_world.py search --work DIR    # recipes, on a validation part
    python scripts/small_world.py final --work DIR     # the methods over seeds, on the test split
    python scripts/small_world.py planted --work DIR   # verdicts inverted and drawn by lot
    python scripts/small_world.py table --work DIR     # what they said, as Markdown

Every step is a gapbench command that goes on where it stopped, so this script does too. The
validation part is the 340 prompts of the shapes world that are in neither split (the easy tier has
none to spare but of colours).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from tabulate import tabulate

from gapbench.models.janus.adapter import JanusModel
from gapbench.models.registry import MODELS

SFT = "--samples 8 --accept mixed --epochs 3 --learning-rate 3e-4 --lora 0"
DPO = "--samples 8 --accept best:2 --epochs 4 --learning-rate 3e-5 --lora 0"
RECIPES = {
    "sft": ["sft", *SFT.split()],
    "c-sft": ["c-sft", *SFT.split(), "--replay-at", "2"],
    "dpo": ["dpo", *DPO.split()],
    "c-dpo": ["c-dpo", *DPO.split(), "--replay-at", "2"],
}
"""What the search chose."""
SEARCH = {
    "balanced": "sft --samples 8 --accept best:2 --epochs 4 --learning-rate 3e-4 --lora 0",
    "faster": "sft --samples 8 --accept best:2 --epochs 4 --learning-rate 1e-3 --lora 0",
    "mixed": f"sft {SFT}",
    "dpo": f"dpo {DPO}",
}
SEEDS = (0, 1, 2)
HEADS = {
    "generation": "generation",
    "non_unification": "non-unification",
    "false_positive": "false positive",
    "understanding": "understanding",
}


class Planted(JanusModel):
    """janus-mini with verdicts that are wrong on purpose."""

    def __init__(self, device: str = "auto", dtype: str = "auto", folder: str | None = None):
        home = folder or MODELS["janus-mini"].folder
        super().__init__(type(self).__name__.lower(), Path(str(home)), None, device, dtype)
        self.fingerprint += type(self).__name__


class Inverted(Planted):
    """Says no where janus-mini says yes."""

    def judge(self, images: Any, questions: Any, answers: Any) -> Any:
        """As every adapter's, (images, 2)."""
        return super().judge(images, questions, answers)[:, ::-1]


class Random(Planted):
    """Verdicts drawn by lot, the same for the same image and question."""

    def judge(self, images: Any, questions: Any, answers: Any) -> Any:  # noqa: ARG002
        """As every adapter's, (images, 2)."""
        lots = [
            hashlib.sha256(image.tobytes() + question.encode()).digest()[0] / 256
            for image, question in zip(images, questions, strict=True)
        ]
        yes = np.clip(np.array(lots), 0.01, 0.99)
        return np.log(np.stack([1 - yes, yes], 1))


def gapbench(work: Path, *arguments: str) -> str:
    """A command's standard output."""
    code = "from gapbench.cli.main import main; main()"
    here = os.pathsep.join([str(Path(__file__).parent.resolve()), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=work,
        env=os.environ | {"PYTHONPATH": here},
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"gapbench {' '.join(arguments)} ended with {done.returncode}")
    return done.stdout


def validation(work: Path) -> str:
    """A task folder of prompts that neither split holds."""
    from gapbench.tasks.prompts.shapes import CATEGORIES, universe

    folder = work / "validation"
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for category, sizes in CATEGORIES.items():
        spare = universe(category)[0][sizes.train :]
        rows += [
            {"id": f"{category}-{i}", "category": category, "text": c.text,
             "requirement": c.requirement}
            for i, c in enumerate(spare[: sizes.test])
        ]  # fmt: skip
    tiers: dict[str, list[str]] = {}
    for category, sizes in CATEGORIES.items():
        tiers.setdefault(sizes.tier, []).append(category)
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "task.yaml").write_text(
        yaml.safe_dump(
            {"title": "Spare prompts of shapes", "version": "1", "file": "prompts.jsonl",
             "judge": "pixel", "tiers": tiers}
        )
    )  # fmt: skip
    return "./validation"


def measured(work: Path, model: str, tasks: str) -> str:
    """The run folder of a model."""
    gapbench(work, "run", "--model", model, "--tasks", tasks)
    stem = Path(model).name.replace(":", "-")
    return str(max((work / "runs").glob(f"{stem}-*"), key=lambda p: p.stat().st_mtime))


def changed(work: Path, before: str, after: str) -> dict[str, Any]:
    """What `gapbench compare` says, as JSON."""
    found: dict[str, Any] = json.loads(
        gapbench(work, "compare", before, after, "--format", "json")
    )["comparisons"][0]
    return found


def table(work: Path) -> str:
    """The figures of every fix, a row each."""
    rows = []
    for what in ("search", "final", "planted"):
        file = work / f"{what}.json"
        for name, each in json.loads(file.read_text()).items() if file.exists() else ():
            said = each["compare"]
            figures = {change["metric"]: change for change in said["changes"]}
            wins = said["win_rate"]
            pooled = "50" if wins["pooled"] is None else f"{100 * wins['pooled']:.0f}"
            rows.append(
                {
                    "": f"{what}: {name}",
                    "images or pairs": each["rows"],
                    "pool": " > ".join(
                        str(count)
                        for count in [r["pool"] for r in each["replays"]]
                        + [r["left"] for r in each["replays"][-1:]]
                    ),
                    **{HEADS[metric]: _shift(figures[metric]) for metric in HEADS},
                    "pooled win rate": f"{pooled} ({wins['wins']}:{wins['losses']})",
                    "corrected": said["groups"]["010"],
                    "verdict": said["verdict"],
                }
            )
    return tabulate(rows, headers="keys", tablefmt="pipe")


def _shift(change: dict[str, Any]) -> str:
    star = "*" if change["p_holm"] < 0.05 else ""
    return (
        f"{100 * change['before']:.1f} > {100 * change['after']:.1f}"
        f" ({100 * change['difference']:+.1f}{star})"
    )


def main() -> None:
    """Run the commands and keep what they say in DIR/<what>.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("search", "final", "planted", "table"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", help="Names of recipes or methods, with commas.")
    given = parser.parse_args()
    work: Path = given.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if given.what == "table":
        print(table(work))
        return
    tasks = validation(work) if given.what == "search" else "shapes"
    before = measured(work, "janus-mini", tasks)
    plan: dict[str, list[str]] = {}
    if given.what == "search":
        plan = {name: line.split() for name, line in SEARCH.items()}
    elif given.what == "final":
        plan = {
            f"{name}, seed {seed}": [*line, "--seed", str(seed)]
            for seed in SEEDS
            for name, line in RECIPES.items()
        }
    else:
        plan = {
            f"sft, {kind}": [
                *RECIPES["sft"],
                "--model",
                f"small_world:{kind}",
                "--limit",
                "600",
                "--despite-check",
            ]
            for kind in ("Inverted", "Random")
        }
    only = given.only.split(",") if given.only else [name.split(",")[0] for name in plan]
    chosen = [name for name in plan if name.split(",")[0] in only]
    file = work / f"{given.what}.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    for name in chosen:
        if name in found:
            continue
        out = "".join(c if c.isalnum() else "-" for c in f"{given.what}-{name}")
        said = gapbench(work, "fix", *plan[name], "--out", out)
        after = measured(work, out, tasks)
        comparison = changed(work, before, after)
        record = json.loads((work / out / "fix.json").read_text())
        found[name] = {
            "command": " ".join(plan[name]), "said": said, "compare": comparison,
            "counts": record["counts"], "replays": record["replays"], "check": record["check"],
            "rows": record["data"]["rows"],
        }  # fmt: skip
        file.write_text(json.dumps(found, indent=1) + "\n")
        figures = ", ".join(
            f"{c['metric']} {100 * c['before']:.1f} -> {100 * c['after']:.1f}"
            for c in comparison["changes"]
        )
        print(f"{name}: {comparison['verdict']}; {figures}", flush=True)


if __name__ == "__main__":
    main()
