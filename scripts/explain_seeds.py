"""The table of docs/explain.md: run, fix, run and explain janus-mini for several seeds.

    python scripts/explain_seeds.py --work DIR [--seeds 0 1 2] [--limit 110] [-- FIX OPTIONS]

FIX OPTIONS go to `gapbench fix sft` as they are. A seed is that of the images, of the candidates,
of the training and of what explain chooses. What is in DIR is not made again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

GAPBENCH = [sys.executable, "-m", "gapbench"]


def call(*args: object) -> None:
    print("gapbench", *args, file=sys.stderr, flush=True)
    subprocess.run([*GAPBENCH, *map(str, args)], check=True, stdout=sys.stderr)


def explained(work: Path, seed: int, run: list[str], fix: list[str]) -> dict[str, Any]:
    folder = work / f"seed-{seed}"
    model = folder / f"fixed-{seed}"
    call("run", "--seed", seed, "--out", folder, *run)
    call("fix", "sft", "--draw-seed", seed, "--seed", seed, "--out", model,
         "--candidates", folder / "candidates", *fix)  # fmt: skip
    call("run", "--model", model, "--seed", seed, "--out", folder, *run)
    [before], [after] = (
        list(folder.glob(f"{name}-????????")) for name in ("janus-mini", model.name)
    )
    call("explain", before, after, "--seed", seed, "--out", folder / "explain")
    found: dict[str, Any] = json.loads((folder / "explain" / "explain.json").read_text())
    return found


def cell(figure: dict[str, Any] | None) -> str:
    if figure is None:
        return "n/a"
    value = figure.get("value", figure.get("rho"))
    if value is None or figure["low"] is None:
        return "n/a"
    return f"{value:+.3g} [{figure['low']:+.3g}, {figure['high']:+.3g}]"


def rows(found: dict[str, Any]) -> dict[str, str]:
    def said(name: str, figure: dict[str, Any] | None) -> str:
        return f"{cell(figure)}, {found['evidence'][name]['verdict']}"

    ends = [found["alignment"][when]["all"]["cosine"] for when in ("before", "after")]
    last = [row for row in found["first_order"] if row["share"] == 1e-6]
    near = found["similarity"]
    return {
        "correction group": str(found["groups"]["010"]),
        "(a) prompts: difference of cosines": said("prompts", near["prompt"]["difference"]),
        "(a) images: difference of cosines": said("images", near["image"]["difference"]),
        "(b) log of the ratio of norms": said("kernel", found["kernel"]["log_ratio"]),
        "(c) fall of log p, nats": said("likelihood", found["shift"]["fall"]),
        "correlation of the two changes": said("together", found["shift"]["correlation"]),
        "cosine of the gradients before": cell(ends[0]),
        "cosine of the gradients after": cell(ends[1]),
        "first order, actual / predicted": ", ".join(f"{row['ratio']:.6f}" for row in last),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--limit", type=int, help="prompts of the runs before and after")
    own, fix = sys.argv[1:], []
    if "--" in own:
        own, fix = own[: own.index("--")], own[own.index("--") + 1 :]
    args = parser.parse_args(own)
    run = ["--limit", str(args.limit)] if args.limit else []
    columns = [rows(explained(args.work, seed, run, fix)) for seed in args.seeds]
    print(f"| figure | {' | '.join(f'seed {seed}' for seed in args.seeds)} |")
    print(f"|---|{'---|' * len(args.seeds)}")
    for name in columns[0]:
        print(f"| {name} | {' | '.join(column[name] for column in columns)} |")


if __name__ == "__main__":
    main()
