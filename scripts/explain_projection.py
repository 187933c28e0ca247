"""The error of `gapbench explain --projection` against the exact kernel, from their files.

    gapbench explain BEFORE AFTER --out exact
    gapbench explain BEFORE AFTER --projection 64 --out rank-64
    python scripts/explain_projection.py exact/explain.json rank-64/explain.json

Entries are divided by the exact lengths of their two gradients, so that they are cosines; norms of
K(Y, Yu) r_u by the exact ones. The exact kernel counts embeddings and norms too, the estimate only
linear weights.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np


def values(tested: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Arrays by what they are, over tested pairs."""
    found = {
        f"{head} with {other}": np.array([sum(t[other][head]) for t in tested])
        for head in ("likelihood", "verdict")
        for other in ("nearest", "random", "mean")
    }
    found["norms"] = np.array([t["norms"] for t in tested])
    return found


def main() -> None:
    told = [json.loads(Path(file).read_text()) for file in sys.argv[1:]]
    exact = {t["key"]: t for t in told[0]["tested"]}
    print("| projection | entries | RMS error of the cosine | largest |\n|---|---|---|---|")
    for other in told[1:]:
        mine = [t for t in other["tested"] if t["key"] in exact]
        true = [exact[t["key"]] for t in mine]
        one, two = values(true), values(mine)
        for name in one:
            if name == "norms":
                error = two[name] / one[name] - 1
            else:
                head, _, row = name.partition(" with ")
                side = "drawing" if head == "likelihood" else "judging"
                lengths = [(sum(t[side]) * sum(t[row]["square"])) ** 0.5 for t in true]
                error = (two[name] - one[name]) / np.array(lengths)
            print(
                f"| {other['fix']['projection']} | {name} | {np.sqrt((error**2).mean()):.4f} | "
                f"{np.abs(error).max():.4f} |"
            )


if __name__ == "__main__":
    main()
