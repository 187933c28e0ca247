"""Runs whose judges' verdicts a test gives, without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image

from gapbench import Generation, Prompt, Verdict, open_run
from gapbench.runs.folder import RunFolder
from gapbench.runs.plan import Plan
from gapbench.runs.run import Run
from gapbench.runs.seeds import seed_of

Said = Sequence[int | None]
PROMPTS = 40
TRUE = [1, 0] * (PROMPTS // 2)


def made(folder: Path, name: str, own: Said, judges: Mapping[str, Said], samples: int = 1) -> Run:
    """A run whose verdicts are given, of one image a prompt; of a further sample, those of the next
    prompt's. The judges' are also of the image against the next prompt's text."""
    run = RunFolder.create(folder, name, {"model": name, "seed": 0}, {})
    prompts = [
        Prompt(id=f"{i}", task="odd", category="c", tier="easy", text=f"thing {i}",
               question=f"{i}?", requirement={})
        for i in range(PROMPTS)
    ]  # fmt: skip
    partner = [(i + 1) % PROMPTS for i in range(PROMPTS)]
    records: list[Generation | Verdict] = []
    for i, sample in product(range(PROMPTS), range(samples)):
        prompt, pixels = prompts[i], np.full((8, 8), i, dtype=np.uint8)
        pixels[0], pixels[1] = len(name), i + sample
        image = run.add_image(Image.fromarray(pixels))
        seed = seed_of(0, prompt.text, sample)
        records.append(
            Generation(prompt=prompt.text, sample=sample, seed=seed, image=image, tokens=None,
                       effective_prompt=prompt.text, logprob=None, seconds=0.0)
        )  # fmt: skip
        for question, shift in ((f"{i}?", 0), (f"{partner[i]}?", 1)):
            for judge, said in {"self": own, **judges}.items():
                records.append(
                    Verdict(image=image, question=question, judge=judge, fingerprint=judge,
                            verdict=said[(i + sample + shift) % PROMPTS], reason="x")
                )  # fmt: skip
    run.append(records)
    asks = [dict.fromkeys(judges, p.question) for p in prompts]
    plan = Plan(
        tasks={"odd": "1"}, prompts=prompts, partner=partner, asks=asks, samples={"odd": samples},
        judges={judge: judge for judge in judges}, own="self", own_fingerprint="self", seed=0,
        partner_asks=[asks[place] for place in partner],
    )  # fmt: skip
    run.write("plan.json", asdict(plan))
    return open_run(run.path)
