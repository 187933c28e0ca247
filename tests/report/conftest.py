"""Runs to report on: janus-mini before and after through the command line, and one of odd texts."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gapbench import Generation, Prompt, Verdict, open_run
from gapbench.runs.folder import RunFolder
from gapbench.runs.plan import Plan
from gapbench.runs.run import Run
from gapbench.runs.seeds import seed_of

CLI = [sys.executable, "-c", "from gapbench.cli.main import main; main()"]
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "BROWSER": "true"}
ATTACK = "<img src=x onerror=alert(1)>"
ODD = (
    ATTACK,
    "</script><script>alert(1)</script>",
    "<!-- <script> {{ 7 * 7 }} {% raw %}",
    '" onmouseover="alert(1)',
    "$\\frac{1}{2}$ & 円 naïve \u202e back \u2028 line 😀",
    "word " * 300,
)
Make = Callable[..., Run]
Said = Callable[..., str]


@pytest.fixture(scope="session")
def said_by(
    start: Callable[..., Any], end: Callable[..., int], tmp_path_factory: pytest.TempPathFactory
) -> Said:
    """What `gapbench ARGS`, which has to succeed, prints."""

    def call(*args: object) -> str:
        logs = tmp_path_factory.mktemp("said")
        code = end(start(logs, *map(str, args), environment=ENV))
        assert code == 0, (logs / "err").read_text()
        return (logs / "out").read_text()

    return call


@pytest.fixture(scope="session")
def pair(said_by: Said, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Runs of janus-mini before and after a change of temperature, with the verdicts between."""
    folder = tmp_path_factory.mktemp("pair")
    common = ("run", "--limit", 22, "--samples", 2, "--out", folder)
    said_by(*common)
    (before,) = folder.glob("janus-mini-*")
    said_by(*common, "--set", "temperature=0.5")
    (after,) = set(folder.glob("janus-mini-*")) - {before}
    said_by("compare", before, after)
    return before, after


@pytest.fixture
def odd(tmp_path: Path) -> Make:
    """A run folder of odd prompts, categories and reasons, without a model."""

    def make(
        texts: tuple[str, ...] = ODD, size: int = 8, name: str = "m<b>", count: int = 1
    ) -> Run:
        folder = RunFolder.create(tmp_path, name, {"model": name, "seed": 0}, {})
        rng = np.random.default_rng(0)
        prompts, records = [], []
        for number, text in enumerate(texts * count):
            text = text if number < len(texts) else f"{text} {number}"
            prompt = Prompt(
                id=f"{number}", task="odd", category=f"<i>{number % 3}</i>", tier="easy", text=text,
                question=f"{number}: {text}?", requirement={},
            )  # fmt: skip
            prompts.append(prompt)
            noise = rng.integers(0, 256, (size + number % 7, size), dtype=np.uint8)
            image = folder.add_image(Image.fromarray(noise))
            records.append(
                Generation(
                    prompt=text, sample=0, seed=seed_of(0, text, 0), image=image, tokens=None,
                    effective_prompt=text, logprob=None, seconds=0.0,
                )
            )  # fmt: skip
            for judge, verdict, p_yes in (
                ("self", number % 2, number % 10 / 10),
                ("pixel", None, None),
            ):
                records.append(
                    Verdict(
                        image=image, question=prompt.question, judge=judge, fingerprint=judge,
                        verdict=verdict, p_yes=p_yes, reason=None if p_yes is not None else ATTACK,
                    )
                )  # fmt: skip
        folder.append(records)
        plan = Plan(
            tasks={"odd": "1"}, prompts=prompts, partner=[None] * len(prompts),
            asks=[{"pixel": p.question} for p in prompts], samples={"odd": 1},
            judges={"pixel": "pixel"}, own="self", own_fingerprint="self", seed=0,
        )  # fmt: skip
        folder.write("plan.json", asdict(plan))
        return open_run(folder.path)

    return make
