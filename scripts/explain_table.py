"""The table of docs/explain.md: what explain says of several fixes of one model.

    python scripts/explain_table.py runs/BEFORE runs/AFTER... [--out DIR]

Explains each AFTER beside BEFORE, where that is not there yet, and prints a column for each.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def explained(before: Path, after: Path, out: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "gapbench", "explain", before, after, "--out", out]
    subprocess.run(list(map(str, command)), check=True, stdout=sys.stderr)
    found: dict[str, Any] = json.loads((out / "explain.json").read_text())
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
        piece = found["evidence"][name]
        p = "" if piece["p_holm"] is None else f" (Holm p {piece['p_holm']:.3f})"
        return f"{cell(figure)}, {piece['verdict']}{p}"

    ends = [found["alignment"][when]["all"]["cosine"] for when in ("before", "after")]
    smallest = min(row["share"] for row in found["first_order"])
    last = [row for row in found["first_order"] if row["share"] == smallest]
    near = found["similarity"]
    return {
        "correction group": str(found["groups"]["010"]),
        "(a) prompts: difference of cosines": said("prompts", near["prompt"]["difference"]),
        "(a) images: difference of cosines": said("images", near["image"]["difference"]),
        "(b) log of the ratio of norms": said("kernel", found["kernel"]["log_ratio"]),
        "(b) for a random training pair": cell(found["kernel"]["log_ratio_random"]),
        "(c) fall of log p, nats": said("likelihood", found["shift"]["fall"]),
        "correlation of the two changes": said("together", found["shift"]["correlation"]),
        "cosine of the gradients before": cell(ends[0]),
        "cosine of the gradients after": cell(ends[1]),
        "effective rank before, after": ", ".join(
            "n/a" if rank is None else f"{rank:.1f}" for rank in found["effective_rank"].values()
        ),
        "first order, actual / predicted": ", ".join(f"{row['ratio']:.6f}" for row in last),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("explained"))
    args = parser.parse_args()
    columns = [rows(explained(args.before, after, args.out / after.name)) for after in args.after]
    print(f"| figure | {' | '.join(after.name.rpartition('-')[0] for after in args.after)} |")
    print(f"|---|{'---|' * len(args.after)}")
    for name in columns[0]:
        print(f"| {name} | {' | '.join(column[name] for column in columns)} |")


if __name__ == "__main__":
    main()
