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

SAMPLES = 4


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


def forward_seconds() -> float:
    """Drawing and judging every planned image once, nothing else."""
    from gapbench import load_model, load_task
    from gapbench.judges.own import OwnJudge
    from gapbench.plan import seed_of

    prompts = [p for p in load_task("shapes").prompts() for _ in range(SAMPLES)]
    seeds = [seed_of(0, p.text, i % SAMPLES) for i, p in enumerate(prompts)]
    model = load_model("janus-mini")
    model.load()
    own = OwnJudge(model, "logits")
    start = time.perf_counter()
    for at in range(0, len(prompts), 64):
        batch = prompts[at : at + 64]
        drawn = model.generate([p.text for p in batch], seeds[at : at + 64])
        own.judge([d.image for d in drawn], batch)
        # First samples are also held against a partner prompt.
        partners = [(d.image, p) for d, p in zip(drawn[::SAMPLES], batch[::SAMPLES], strict=True)]
        own.judge(*zip(*partners, strict=True))
    return time.perf_counter() - start


def main() -> None:
    gapbench = [sys.executable, "-c", "from gapbench.cli import main; main()"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = min(timed([sys.executable, "-c", "pass"], folder)[0] for _ in range(5))
        help_ = min(timed([*gapbench, "--help"], folder)[0] for _ in range(5))
        first, memory = timed([*gapbench, "run"], folder)
        again, _ = timed([*gapbench, "run"], folder)
    forward = forward_seconds()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    print(
        f"gapbench --help     {help_:6.2f} s  {help_ / python:5.1f} x bare Python ({python:.2f} s)"
    )
    print(f"gapbench run        {first:6.1f} s  {first / forward:5.2f} x forward, {forward:.1f} s")
    print(f"  its peak memory   {memory:6.0f} MB")
    print(f"gapbench run, again {again:6.2f} s  prints the table, loads no model")


if __name__ == "__main__":
    main()
