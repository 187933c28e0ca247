"""The figures of janus-mini's model card.

    python scripts/janus_mini/evaluate.py [--model FOLDER] [--sweep]

Held-out prompts, the pixel judge, and for the model as judge also clean renders whose truth is
known: for each test prompt and round one scene that shows it and one of another prompt of its
category that does not. `--sweep` compares recipes on train prompts instead.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from scenes import sample_scene

from gapbench import load_judge, load_model, load_task, run
from gapbench.judges.own import OwnJudge
from gapbench.models.autoregressive.sampling import Recipe
from gapbench.models.janus.adapter import JanusModel
from gapbench.report.tables import render
from gapbench.tasks.world import render as draw
from gapbench.tasks.world import unmet
from gapbench.types import Prompt


def renders(
    prompts: list[Prompt], rounds: int
) -> tuple[list[Image.Image], list[Prompt], list[int]]:
    """Clean renders with the prompts they are held against and the truth, half and half."""
    rng = np.random.default_rng(7)
    images, asked, truth = [], [], []
    for prompt in prompts:
        others = [p for p in prompts if p.category == prompt.category and p is not prompt]
        for _ in range(rounds):
            scene = sample_scene(prompt.requirement, rng)
            while True:
                other = others[int(rng.integers(len(others)))]
                wrong = sample_scene(other.requirement, rng)
                if unmet(wrong, prompt.requirement) is not None:
                    break
            for shown, label in ((scene, 1), (wrong, 0)):
                images.append(Image.fromarray(draw(shown)))
                asked.append(prompt)
                truth.append(label)
    return images, asked, truth


def card(name: str) -> None:
    task = load_task("shapes")
    with tempfile.TemporaryDirectory() as out:
        done = run(name, "shapes", out=out)
        print(render(done.rates(), "markdown"))
        frame = done.frame()
    model = load_model(name)
    images, asked, truth = renders(task.prompts(), rounds=4)
    own = OwnJudge(model, "logits")
    answers = [
        answer.verdict
        for start in range(0, len(images), 64)
        for answer in own.judge(images[start : start + 64], asked[start : start + 64])
    ]
    said, true = np.array(answers, float), np.array(truth, float)
    print()
    print(f"own verdict right on its own images: {(frame.own == frame.outside).mean():.1%}")
    print(f"own verdict right on clean renders, half mismatched: {(said == true).mean():.1%}")
    print(f"  accepts matched renders: {said[true == 1].mean():.1%}")
    print(f"  accepts mismatched renders: {said[true == 0].mean():.1%}")
    for tier in ("easy", "medium", "hard"):
        here = np.array([prompt.tier == tier for prompt in asked])
        print(f"  {tier}: right {(said == true)[here].mean():.1%}, "
              f"accepts mismatched {said[here & (true == 0)].mean():.1%}")  # fmt: skip


def sweep(folder: Path) -> None:
    prompts = load_task("shapes").prompts("train")[::6]
    judge = load_judge("pixel")
    base = Recipe(guidance=1.0)
    for recipe in [
        *(replace(base, guidance=g) for g in (1.0, 1.5, 2.0, 3.0, 5.0)),
        *(replace(base, temperature=t) for t in (0.5, 0.7)),
        *(replace(base, guidance=g, temperature=0.7) for g in (1.5, 2.0)),
    ]:
        model = JanusModel("sweep", folder, recipe)
        right = []
        for start in range(0, len(prompts), 64):
            batch = prompts[start : start + 64]
            drawn = model.generate([p.text for p in batch], list(range(start, start + len(batch))))
            right += [a.verdict for a in judge.judge([d.image for d in drawn], batch)]
        by_tier = {
            tier: np.mean([r for r, p in zip(right, prompts, strict=True) if p.tier == tier])
            for tier in ("easy", "medium", "hard")
        }
        print(recipe, f"{np.mean(np.array(right, float)):.1%}",
              {tier: f"{share:.0%}" for tier, share in by_tier.items()}, flush=True)  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="janus-mini", help="name or folder")
    parser.add_argument("--sweep", action="store_true")
    args = parser.parse_args()
    if args.sweep:
        sweep(Path(args.model))
    else:
        card(args.model)
