"""The main job as a user meets it: `gapbench run` twice, `gapbench --help`, and what they cost.

    python benchmarks/bench_run.py

References, measured in the same run: starting Python, and the model's own forward time (drawing and
own verdicts called directly in this process, without run folder, progress or records).
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SAMPLES, BATCH = 4, 64


def timed(command: list[str], cwd: Path) -> tuple[float, float]:
    """Wall seconds and peak memory in MB of a process."""
    start = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return seconds, usage.ru_maxrss / 1024


def in_process(folder: Path, cores: int) -> tuple[float, float]:
    """Seconds of a run once everything is imported and loaded, and of the model's forward alone:
    every planned image drawn and judged once, nothing else. Storing has a thread of its own: where
    the model leaves it a core, it costs nothing."""
    import torch

    import gapbench
    import gapbench.metrics  # like flow: imported when it is first needed
    import gapbench.runs.flow
    from gapbench import load_model, load_task
    from gapbench.judges.own import OwnJudge
    from gapbench.runs.seeds import seed_of

    torch.set_num_threads(cores)
    model = load_model("janus-mini")
    model.generate(["a red circle"], [0])
    start = time.perf_counter()
    gapbench.run(model, out=folder)
    run = time.perf_counter() - start

    model.load()
    own = OwnJudge(model, "logits")
    prompts = [p for p in load_task("shapes").prompts() for _ in range(SAMPLES)]
    seeds = [seed_of(0, p.text, i % SAMPLES) for i, p in enumerate(prompts)]
    asked = []
    start = time.perf_counter()
    for at in range(0, len(prompts), BATCH):
        batch = prompts[at : at + BATCH]
        drawn = model.generate([p.text for p in batch], seeds[at : at + BATCH])
        for place, (drawing, prompt) in enumerate(zip(drawn, batch, strict=True)):
            asked.append((drawing.image, prompt))
            if place % SAMPLES == 0:  # first samples are also held against a partner prompt
                asked.append((drawing.image, batch[place - SAMPLES]))
    for at in range(0, len(asked), BATCH):
        images, about = zip(*asked[at : at + BATCH], strict=True)
        own.judge(images, about)
    return run, time.perf_counter() - start


def main() -> None:
    gapbench = [sys.executable, "-c", "from gapbench.cli.main import main; main()"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = min(timed([sys.executable, "-c", "pass"], folder)[0] for _ in range(5))
        help_ = min(timed([*gapbench, "--help"], folder)[0] for _ in range(5))
        first, memory = timed([*gapbench, "run"], folder)
        again, _ = timed([*gapbench, "run"], folder)
        one, alone = in_process(folder / "one", 1)
        harness, forward = in_process(folder / "all", os.cpu_count() or 1)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    print(
        f"gapbench --help     {help_:6.2f} s  {help_ / python:5.1f} x bare Python ({python:.2f} s)"
    )
    print(f"gapbench run        {first:6.1f} s  {first / forward:5.2f} x forward, {forward:.1f} s")
    print(f"  started, loaded   {harness:6.1f} s  {harness / forward:5.2f} x forward")
    print(f"  the model on one core {one:.1f} s  {one / alone:5.2f} x forward, {alone:.1f} s")
    print(f"  its peak memory   {memory:6.0f} MB")
    print(f"gapbench run, again {again:6.2f} s  prints the table, loads no model")


if __name__ == "__main__":
    main()
