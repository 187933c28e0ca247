"""The error of projected gradients against exact ones, on janus-mini: a table of docs/explain.md.

    python scripts/explain_projection.py [--images 12] [--model janus-mini]

Draws images of training prompts, takes the gradients of their log-likelihoods and verdict logits,
and compares the cosines of all pairs: exact over all of the language model's weights, exact over
its linear ones, projected (ranks 16, 64, 256), and over LoRA of rank 32 as `gapbench fix` begins.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from gapbench import load_model, load_task
from gapbench.explain.kernel import Heads
from gapbench.explain.sides import heads_of
from gapbench.fix.settings import FixSettings


def gram(heads: Heads, images: list[Any]) -> np.ndarray:
    """Inner products of all gradients, generation's first."""
    sides = [heads.of_likelihood(text, drawing.tokens) for text, _, drawing in images]
    sides += [heads.of_verdict(drawing.image, question) for _, question, drawing in images]
    return np.array([[heads.inner(a, b).sum() for a in sides] for b in sides])


def cosines(found: np.ndarray) -> np.ndarray:
    lengths = np.sqrt(np.diag(found))
    return found / np.outer(lengths, lengths)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--model", default="janus-mini")
    args = parser.parse_args()
    prompts = load_task("shapes:train").prompts()
    chosen = prompts[:: len(prompts) // args.images][: args.images]
    first: Any = load_model(args.model, dtype="float64")
    drawings = first.generate([p.text for p in chosen], list(range(len(chosen))))
    images = [(p.text, p.question, d) for p, d in zip(chosen, drawings, strict=True)]

    def over(lora: int, rank: int = 0, linear: bool = False) -> np.ndarray:
        settings = FixSettings(method="sft", model=args.model, lora=lora, out=Path("unused"))
        model: Any = load_model(args.model, dtype="float64")
        heads = heads_of(model, settings, rank=rank)
        if linear:
            moved = {n: p for n, p in heads.moved.items() if n.endswith("_proj.weight")}
            heads = Heads(model, heads.network, moved)
        return gram(heads, images)

    exact = over(0)
    lengths = np.sqrt(np.diag(exact))
    count = len(images)
    blocks = {
        "generation, generation": np.triu_indices(count, 1),
        "generation, verdict": tuple(
            part.flatten() for part in np.mgrid[0:count, count : 2 * count]
        ),
    }
    print("| gradients | pairs | RMS error of the cosine | largest | mean length |")
    print("|---|---|---|---|---|")
    rows = {"linear weights, exact": over(0, linear=True)}
    rows |= {f"projected, rank {rank}": over(0, rank=rank) for rank in (16, 64, 256)}
    rows["LoRA, rank 32"] = over(32)
    for name, found in rows.items():
        for block, places in blocks.items():
            error = (cosines(found) - cosines(exact))[places]
            length = (np.sqrt(np.diag(found)) / lengths).mean()
            print(
                f"| {name} | {block} | {np.sqrt((error**2).mean()):.4f} | "
                f"{np.abs(error).max():.4f} | {length:.2f} |"
            )


if __name__ == "__main__":
    main()
