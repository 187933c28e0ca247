"""What a run folder costs: its images, and its records when there are a million.

    python benchmarks/bench_store.py [--images 64] [--prompts 100000] [--samples 10]
        [--skip images|records] [--keep FOLDER]

images: storing and reading images on all cores, against one at a time. Smooth pictures with a
little noise, 384 x 384 pixels as Janus-Pro draws them, packed as PNG and written to disk with their
digest, then read again and checked against it.
records: a run of prompts x samples whose images have 4 x 4 pixels, with own verdicts, outside
verdicts and mismatched pairs: 3.1 records an image. A thousandth of each prompt's last image is
missing. How long the same command takes from its start to the first image that it asks for, and
how long the table and the list of runs take; each in a process of its own, with its peak memory.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from io import BytesIO
from itertools import islice, product
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from gapbench.files import on_all_cores, with_checksum
from gapbench.models.base import Drawing, Model
from gapbench.runs.about import about
from gapbench.runs.folder import RunFolder
from gapbench.runs.plan import Item, Prepared, prepare
from gapbench.runs.settings import RunSettings
from gapbench.types import Answer, Generation, Prompt, Verdict

SIDE = 384
PLACES = [
    f"{size} {place}"
    for size in ("small", "large", "new", "old", "clean")
    for place in ("table", "shelf", "street", "field", "boat", "roof", "wall", "box")
]
THINGS = ["apple", "bird", "car", "dog", "cup", "tree", "ball", "book", "chair", "clock", "fish",
          "hat", "kite", "lamp", "pen", "ring", "shoe", "spoon", "tent", "vase"]  # fmt: skip
COLOURS = ["red", "blue", "green", "yellow", "black", "white", "brown", "pink", "grey", "orange"]


class Synthetic(Model):
    """Stands for a model whose images are there."""

    name, fingerprint = "synthetic", "synthetic-1"
    capabilities = frozenset(["generate", "judge_logits"])

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Drawing]:  # noqa: ARG002
        print(f"first image {time.perf_counter() - BEGUN:.2f} {time.process_time():.2f}")
        report()
        os._exit(0)


class Outside:
    """Stands for an outside judge."""

    fingerprint = "outside-1"

    def judge(self, images: list[Image.Image], prompts: list[Prompt]) -> list[Answer]:  # noqa: ARG002
        return [Answer(verdict=1) for _ in images]


BEGUN = time.perf_counter()


def pictures(count: int) -> list[Image.Image]:
    random = np.random.default_rng(0)
    made = []
    for _ in range(count):
        noise = Image.fromarray(random.integers(0, 256, (SIDE, SIDE, 3), np.uint8))
        smooth = np.asarray(noise.filter(ImageFilter.GaussianBlur(8)), np.int16)
        grain = random.integers(-1, 2, smooth.shape, np.int16)
        made.append(Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)))
    return made


def a_second(count: int, call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return count / (time.perf_counter() - start)


def images(count: int, out: Path) -> None:
    made, digests = pictures(count), list[str]()
    one, all_ = (RunFolder.create(out, name, {"of": name}, {}) for name in ("one", "all"))
    alone = a_second(count, lambda: digests.extend(map(one.add_image, made)))
    spread = a_second(count, lambda: all_.add([Drawing(each) for each in made]))
    print(f"stored: {spread:.1f} images/s on {os.cpu_count()} cores, {alone:.1f} one at a time")
    alone = a_second(count, lambda: list(map(one.image, digests)))
    spread = a_second(count, lambda: on_all_cores(all_.image, digests))
    print(f"read: {spread:.1f} images/s on {os.cpu_count()} cores, {alone:.1f} one at a time")


def task(count: int, folder: Path) -> Path:
    """A task of so many prompts in 19 categories, in which most have nothing in common."""
    folder.mkdir(parents=True)
    (folder / "task.yaml").write_text(
        json.dumps({
            "title": "synthetic", "version": "1", "file": "prompts.jsonl",
            "tiers": {"easy": [f"set-{k}" for k in range(19)]},
            "question": "Does this image show {prompt}? Answer: The score is {x}.",
        })
    )  # fmt: skip
    every = [*product(PLACES, COLOURS, range(1, 14), COLOURS, THINGS)]
    with (folder / "prompts.jsonl").open("w") as file:
        for k in range(count):
            place, colour, number, other, thing = every[k * 7919 % len(every)]
            text = f"{number} {colour} {thing}s, and {other} on a {place}"
            of = {"class": thing, "count": number, "color": colour, "others": other, "on": place}
            row = {"text": text, "category": f"set-{k % 19}", "requirement": {"include": [of]}}
            file.write(json.dumps(row) + "\n")
    return folder


def settings(prompts: Path, samples: int, out: Path) -> RunSettings:
    here = str(Path(__file__).resolve())
    return RunSettings(
        f"{here}:Synthetic", [str(prompts)], samples=samples, judges=[f"{here}:Outside"], out=out
    )


def picture(item: Item) -> bytes:
    """A picture of 4 x 4 pixels for an image, as PNG."""
    colours, png = hashlib.sha256(f"{item.prompt.text} {item.seed}".encode()).digest(), BytesIO()
    Image.frombytes("L", (4, 4), colours[:16]).convert("RGB").save(png, "PNG")
    return png.getvalue()


def records(made: Prepared, items: list[Item]) -> Iterator[Generation | Verdict]:
    """What a run of these items leaves behind."""
    plan = made.plan
    assert made.own
    for item in items:
        image = hashlib.sha256(picture(item)).hexdigest()
        yield Generation(
            prompt=item.prompt.text, sample=item.sample, seed=item.seed, image=image, tokens=None,
            effective_prompt=item.prompt.text, logprob=-float(item.seed % 1000), seconds=0.05,
        )  # fmt: skip
        for prompt in filter(None, (item.prompt, item.partner)):
            yield Verdict(
                image=image, question=prompt.question, judge=made.own.name,
                fingerprint=plan.own_fingerprint, verdict=item.seed % 2,
                p_yes=(item.seed % 997) / 997, mass=0.98,
            )  # fmt: skip
        for judge, question in item.asks.items():
            yield Verdict(
                image=image, question=question, judge=judge, fingerprint=plan.judges[judge],
                verdict=item.seed % 3 % 2, score=(item.seed % 101) / 101,
            )  # fmt: skip


def write(asked: RunSettings) -> Path:
    """A run folder in which a thousandth of the images is missing."""
    made = prepare(asked)
    recorded = about(made.model, asked, made.changed)
    folder = RunFolder.create(asked.out, made.model.name, made.identity, recorded, made.changed)
    folder.write("plan.json", with_checksum(asdict(made.plan)))
    items = [item for number, item in enumerate(made.plan.items()) if number % 1000]
    for item in items:
        data = picture(item)
        place = folder.image_path(hashlib.sha256(data).hexdigest())
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    every = records(made, items)
    while batch := list(islice(every, 50_000)):
        folder.append(batch)
    return folder.path


def report() -> None:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(f"memory {usage.ru_maxrss / 2**20:.2f}")
    sys.stdout.flush()


def measured(what: str, code: str) -> None:
    """Run code in a process of its own; print its seconds, by the clock and of its CPU time."""
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
         f"import bench_store as b, time\n{code}"],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONHASHSEED": "0"},
    )  # fmt: skip
    took = time.perf_counter() - begun
    if done.returncode:
        raise SystemExit(f"{what}: {done.stderr[-3000:]}")
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)
    cpu = said["cpu"] if "cpu" in said else said["first"].split()[-1]
    print(f"{what}: {took:.1f} s, {float(cpu):.1f} s of CPU time, {said['memory']} GiB", flush=True)


END = "\nprint(f'cpu {time.process_time():.2f}'); b.report()"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=100_000)
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--skip", choices=("images", "records"))
    parser.add_argument("--keep", type=Path)
    args = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f} before")
    with tempfile.TemporaryDirectory() as name:
        out = (args.keep or Path(name)).resolve()
        if args.skip != "images":
            images(args.images, out / "images")
        if args.skip == "records":
            return
        prompts = out / "task"
        if not prompts.exists():
            task(args.prompts, prompts)
        asked = f"b.settings(b.Path({str(prompts)!r}), {args.samples}, b.Path({str(out)!r}))"
        if not list(out.glob("*/generations.jsonl")):
            measured("written", f"b.write({asked})" + END)
        [run] = [file.parent for file in out.glob("*/generations.jsonl")]
        from_ = "from gapbench.runs"
        measured("resume", f"{from_}.flow import measure\nmeasure({asked})")
        show = f"{from_}.run import open_run\nassert open_run({str(run)!r}).rates()"
        measured("rates", show + END)
        table = f"import sys; sys.argv[1:] = ['show', {str(run)!r}, '--format', 'csv']\n"
        table += "from gapbench.cli.main import main\ntry:\n    main()\nexcept SystemExit: pass"
        measured("gapbench show", table + END)
        table = table.replace("'show'", "'report'").replace(
            "'--format', 'csv'", f"'--out', {str(out / 'page.html')!r}"
        )
        measured("gapbench report", table + END)
        listed = f"{from_}.listing import runs_in\nassert runs_in(b.Path({str(out)!r}))[0]"
        measured("list", listed + END)


if __name__ == "__main__":
    main()
