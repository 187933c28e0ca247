"""Drawing and judging on one GPU, measured by one command: it writes one page in Markdown.

    python benchmarks/gpu.py [--only PART ...] [--out PAGE] [--tiny]

It takes about 8 minutes on an H100 or H200, no network and no weights: the networks have
Janus-Pro's published geometry and random numbers. A part that fails leaves its error on the page
and costs no other; the page is written again after each part. `--tiny` tries the program itself,
on any machine: small networks in float32, whose figures say nothing.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read as triton is imported

import bench_generate
from floors import Geometry
from gpu_parts import PARTS, table

from gapbench.models.autoregressive import plain
from gapbench.models.autoregressive.sampling import Recipe
from gapbench.models.janus.adapter import JanusModel
from gapbench.runs.folder import RunFolder

ROOT = Path(__file__).parents[1]
GAPBENCH = [sys.executable, "-c", "from gapbench.cli.main import main; main()"]


class Bench:
    """A device, the random Janus on it, and the figures that are known by now."""

    def __init__(self, folder: Path, tiny: bool) -> None:
        self.tiny = tiny
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.name = torch.cuda.get_device_name() if self.device == "cuda" else "a CPU"
        self.size, self.dtype = ("tiny", "float32") if tiny else ("1b", "bfloat16")
        self.batches = (1, 2, 4) if tiny else (1, 16, 64)
        self.block, self.few = self.batches[-1], 2 if tiny else 32
        self.checkpoint, self.scratch = folder / f"janus-{self.size}", folder
        self.figures: dict[str, float] = {}

    @cached_property
    def model(self) -> JanusModel:
        """The random Janus, from a checkpoint that is written first."""
        bench_generate.build(self.checkpoint, self.size, self.device, self.dtype)
        model = self.adapter(self.checkpoint, self.block)
        # As `gapbench run` loads it: made on a GPU, its rotary frequencies would round otherwise.
        model.load()
        return model

    def adapter(self, folder: Path, block: int) -> JanusModel:
        """What drives a checkpoint, for blocks of so many images."""
        recipe = Recipe(guidance=5.0, block=block)
        return JanusModel("random", folder, recipe, self.device, self.dtype, origin="random")

    def around(self, network: Any, folder: Path, block: int) -> JanusModel:
        """The same of a network that is there."""
        model = self.adapter(folder, block)
        model.use(network)
        return model

    def free(self) -> None:
        """Give back what the model holds on the device."""
        if "model" in vars(self):
            self.model.release()
            del self.model
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()

    @cached_property
    def ceilings(self) -> tuple[float, float]:
        """Bytes that are copied, read and written, and FLOPs of a matmul, a second."""
        count, side = (2**20, 256) if self.tiny else (2**30, 8192)
        kind = getattr(torch, self.dtype)
        one, two = torch.ones(2, count, dtype=torch.uint8, device=self.device)
        left, right = torch.randn(2, side, side, device=self.device).to(kind)
        copied = self.seconds(lambda: two.copy_(one), 20)
        multiplied = self.seconds(lambda: left @ right, 20)
        return 2 * count / copied, 2 * side**3 / multiplied

    def seconds(self, do: Callable[[], object], times: int = 1, warm: int | None = None) -> float:
        """Of one call, the device's work included; after some calls that do not count."""
        for _ in range(min(3, times) if warm is None else warm):
            do()
        self.wait()
        start = time.perf_counter()
        for _ in range(times):
            do()
        self.wait()
        return (time.perf_counter() - start) / times

    def wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def floor(self, batch: int, size: str | None = None) -> float:
        """The seconds of a step at least."""
        wide, (bandwidth, flops) = getattr(torch, self.dtype).itemsize, self.ceilings
        moved, work = Geometry.of(size or self.size).step(2 * batch, wide)
        return max(moved / bandwidth, work / flops)

    def limit(self, batch: int, size: str | None = None) -> float:
        """The images a second that steps of so many images allow."""
        return batch / self.floor(batch, size) / Geometry.of(size or self.size).tokens

    def figure(self, batch: int) -> str:
        """The name of what is drawn at a batch size, images a second."""
        return "drawing_block" if batch == self.block else f"drawing_{batch}"

    @torch.inference_mode()
    def begin(self, model: JanusModel, prompts: list[str], steps: int = 8) -> None:
        """Draw a block's first tokens."""
        model._tokens(prompts, range(len(prompts)), steps)

    def way(self, model: JanusModel) -> str:
        """How a block's steps are computed."""
        drawer = model.blocks._kept[0][1]
        graph = "a CUDA graph" if drawer._graph else "no CUDA graph"
        ops = "torch's functions" if drawer._ops is plain else "Triton's kernels"
        return f"Steps: {graph}, {ops}{f' ({drawer.why})' if drawer.why else ''}."

    def reset_peak(self) -> None:
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> str:
        """GiB of the device that were in use at most."""
        if self.device == "cpu":
            return "not measured"
        return f"{torch.cuda.max_memory_allocated() / 2**30:.1f}"

    def start(self, out: Path, limit: int, *more: str) -> subprocess.Popen[str]:
        """A `gapbench run` of the checkpoint on GenEval without outside judges."""
        self.model  # noqa: B018 (its checkpoint)
        config = self.scratch / "no-judges.yaml"
        config.write_text("judge: []\n")
        told = {
            "--model": self.checkpoint, "--tasks": "geneval", "--limit": limit, "--samples": 1,
            "--config": config, "--out": out, "--device": self.device, "--dtype": self.dtype,
            "--set": "guidance=5",
        }  # fmt: skip
        words = [str(word) for pair in told.items() for word in pair]
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        return subprocess.Popen(
            [*GAPBENCH, "run", "--offline", *words, "--set", f"block={self.block}", *more],
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, out: Path, limit: int, *more: str) -> RunFolder:
        """The folder of such a run, when it is done."""
        process = self.start(out, limit, *more)
        try:
            said, _ = process.communicate(timeout=300)
        finally:
            process.kill()
        if process.returncode:
            raise RuntimeError(f"gapbench run: {said[-2000:]}")
        return RunFolder.open(next(out.glob("*/run.json")).parent)


@dataclass(frozen=True)
class Target:
    """What is to be reached, of one of a bench's figures."""

    words: str
    figure: str
    bound: float
    form: str = "{:.2f}"
    most: bool = False
    """Whether the bound is the most that it may be, not the least."""

    def row(self, figures: dict[str, float]) -> list[str]:
        asked = f"at {'most' if self.most else 'least'} {self.form.format(self.bound)}"
        value = figures.get(self.figure)
        if value is None:
            return [self.words, asked, "not measured", ""]
        reached = value <= self.bound if self.most else value >= self.bound
        return [self.words, asked, self.form.format(value), "yes" if reached else "no"]


TARGETS = (
    Target("drawing at batch 64, images/s", "drawing_block", 18),
    Target("… against transformers at the same batch", "ratio_drawing_block", 3.5, "{:.2f} x"),
    Target("… of its limit", "share_drawing_block", 0.5, "{:.0%}"),
    Target("at batch 1, in a fixed block, images/s", "drawing_1", 0.431),
    Target("at batch 1, in a block of one, images/s", "block_of_one", 1.0),
    Target("… against transformers", "ratio_block_of_one", 12, "{:.1f} x"),
    Target("verdicts/s, one question an image", "verdicts_1", 250, "{:.0f}"),
    Target("320 GenEval prompts, whole command, s", "run", 45, "{:.1f}", most=True),
    Target("… without loading, against the model's own time", "run_ratio", 1.1, "{:.2f} x", True),
    Target("images that are equal when drawn twice", "twice", 1, "{:.0%}"),
    Target("… at batch 1, 16 and 64", "batches", 1, "{:.0%}"),
    Target("… after kill -9", "killed", 1, "{:.0%}"),
)


def about(bench: Bench) -> list[str]:
    """The machine and the libraries."""
    rows = [["date", time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())]]
    if bench.device == "cuda":
        found = torch.cuda.get_device_properties(0)
        rows += [
            ["device", f"{found.name}, {found.total_memory / 2**30:.0f} GiB"],
            ["compute capability", f"{found.major}.{found.minor}"],
            ["driver", driver()],
        ]
    else:
        rows.append(["device", platform.processor() or platform.machine()])
    rows += [
        ["CPU cores", str(os.cpu_count())],
        ["CUDA, cuDNN", f"{torch.version.cuda}, {torch.backends.cudnn.version()}"],  # type: ignore[no-untyped-call]
        ["Python", platform.python_version()],
        ["copy, read and written", f"{bench.ceilings[0] / 1e12:.3f} TB/s"],
        [f"matmul, {bench.dtype}", f"{bench.ceilings[1] / 1e12:.1f} TFLOP/s"],
        *([name, known(name)] for name in ("gapbench", "torch", "triton", "transformers")),
        ["model", f"Janus, {bench.size}, {bench.dtype}, random weights, guidance 5"],
    ]
    return table(["", ""], rows)


def known(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not there"


def driver() -> str:
    """Of NVIDIA, with the power limit, which bounds the matmul's speed."""
    if not shutil.which("nvidia-smi"):
        return "unknown"
    asked = ["nvidia-smi", "--query-gpu=driver_version,power.limit", "--format=csv,noheader"]
    said = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=False)
    return said.stdout.strip() or "unknown"


def page(bench: Bench, sections: dict[str, list[str]]) -> str:
    """What is known by now."""
    rows = [target.row(bench.figures) for target in TARGETS]
    lines = [
        f"# gapbench on {bench.name}",
        "",
        *about(bench),
        "",
        "## Targets",
        "",
        *table(["", "asked", "measured", "reached"], rows),
    ]
    for title, said in sections.items():
        lines += ["", f"## {title}", "", *said]
    return "\n".join(lines) + "\n"


def measured(part: Callable[[Bench], Iterator[str]], bench: Bench) -> tuple[list[str], bool]:
    """The lines of a part, the last of which says its seconds, and whether it came to its end."""
    bench.reset_peak()
    start, whole = time.perf_counter(), True
    lines: list[str] = []
    try:
        for line in part(bench):
            print(line, flush=True)
            lines.append(line)
    except Exception:
        whole = False
        lines += ["", "**failed**", "", "```", *traceback.format_exc().splitlines()[-12:], "```"]
        traceback.print_exc()
    gc.collect()
    if bench.device == "cuda":
        torch.cuda.empty_cache()
    return [*lines, "", f"{time.perf_counter() - start:.1f} s"], whole


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--out", type=Path, help="the page; by default benchmarks/gpu-DEVICE-DATE")
    parser.add_argument("--tiny", action="store_true", help="small networks, to try the program")
    args = parser.parse_args(given)
    if not args.tiny and not torch.cuda.is_available():
        parser.error("torch sees no GPU; --tiny tries the program without one")
    from transformers.utils import logging

    logging.set_verbosity_error()
    sections: dict[str, list[str]] = {}
    failed = []
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name), args.tiny)
        date = time.strftime("%Y-%m-%d", time.gmtime())
        device = bench.name.lower().replace(" ", "-")
        out = args.out or Path(__file__).with_name(f"gpu-{device}-{date}.md")
        for part in PARTS:
            if part not in args.only:
                continue
            print(f"\n## {part}", flush=True)
            sections[part], whole = measured(PARTS[part], bench)
            print(sections[part][-1], flush=True)
            failed += [] if whole else [part]
            out.write_text(page(bench, sections), encoding="utf-8")
    print(f"\n{out}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
