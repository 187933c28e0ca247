"""Seconds and memory for `gapbench report` on 20,000 images, and how fast its page filters.

    python benchmarks/bench_report.py

5,000 prompts x 4 images, two outside judges; the 2,000 images that become thumbnails are 384 x 384
pixels with a photograph's detail. The reference is the decoding of those, one after the other. The
browser's part needs Playwright and Debian's chromium: the time from typing into the search, or
choosing a filter, to the next frame.
"""

from __future__ import annotations

import hashlib
import io
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from gapbench import Generation, Prompt, Verdict
from gapbench.report.gallery import MOST
from gapbench.runs.folder import RunFolder
from gapbench.runs.plan import Plan
from gapbench.runs.seeds import seed_of

PROMPTS, SAMPLES, SIDE, FILES = 5000, 4, 384, 200
CATEGORIES = 20
CLI = [sys.executable, "-c", "from gapbench.cli.main import main; main()"]
FILTERS = (
    ("typing a word", "#q", "red"),
    ("typing another", "#q", "red thing 17"),
    ("no word", "#q", ""),
    ("a quadrant", "#quadrant", "10"),
    ("a category", "#category", "bench/c7"),
    ("an order", "#sort", "unsure"),
)


def picture(number: int) -> bytes:
    """A PNG file with about a photograph's detail; small where it becomes no thumbnail."""
    rng = np.random.default_rng(number)
    side = SIDE if number < FILES else 16
    noise = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    noise.filter(ImageFilter.GaussianBlur(2)).save(buffer, "PNG")
    return buffer.getvalue()


def make_run(out: Path) -> RunFolder:
    """A run folder of images and verdicts that no model made."""
    rng = np.random.default_rng(0)
    folder = RunFolder.create(out, "bench", {"model": "bench"}, {})
    files = [picture(number) for number in range(2 * FILES)]
    prompts: list[Prompt] = []
    records: list[Generation | Verdict] = []
    for number in range(PROMPTS * SAMPLES):
        prompt, sample = divmod(number, SAMPLES)
        text = f"a {('red', 'green', 'blue')[prompt % 3]} thing {prompt} beside something else"
        if sample == 0:
            prompts.append(
                Prompt(
                    id=str(prompt),
                    task="bench",
                    category=f"c{prompt % CATEGORIES}",
                    tier="easy",
                    text=text,
                    question=f"Does this show {text}?",
                    requirement={},
                )
            )
        # Bytes behind a PNG's end make a file of the same picture another file.
        data = files[number % FILES + FILES * (number >= MOST)] + number.to_bytes(4)
        image = hashlib.sha256(data).hexdigest()
        place = folder.image_path(image)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        records.append(
            Generation(
                prompt=text,
                sample=sample,
                seed=seed_of(0, text, sample),
                image=image,
                tokens=None,
                effective_prompt=text,
                logprob=None,
                seconds=0.0,
            )
        )
        for judge in ("self", "one", "two"):
            p = float(rng.random())
            records.append(
                Verdict(
                    image=image,
                    question=prompts[-1].question,
                    judge=judge,
                    fingerprint=judge,
                    verdict=int(p > 0.3),
                    p_yes=p if judge == "self" else None,
                )
            )
    for start in range(0, len(records), 1000):
        folder.append(records[start : start + 1000])
    plan = Plan(
        tasks={"bench": "1"},
        prompts=prompts,
        partner=[None] * PROMPTS,
        asks=[dict.fromkeys(("one", "two"), prompt.question) for prompt in prompts],
        samples={"bench": SAMPLES},
        judges={"one": "one", "two": "two"},
        own="self",
        own_fingerprint="self",
        seed=0,
    )
    folder.write("plan.json", asdict(plan))
    return folder


def in_browser(file: Path) -> None:
    from playwright.sync_api import sync_playwright

    script = """([id, value]) => new Promise(done => {
      const control = document.querySelector(id), start = performance.now();
      control.value = value;
      control.dispatchEvent(new Event("input", { bubbles: true }));
      requestAnimationFrame(() => setTimeout(() => done(performance.now() - start)));
    })"""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page()
        start = time.perf_counter()
        page.goto(file.as_uri())
        print(f"page opened: {time.perf_counter() - start:.2f} s")
        page.locator("#filters").scroll_into_view_if_needed()
        page.locator("[data-place='0'] img").first.wait_for()
        for name, control, value in FILTERS:
            times = [page.evaluate(script, [control, value]) for _ in range(5)]
            count = page.locator("#count").text_content()
            print(f"{name}: {max(times):.0f} ms at most of 5 ({count})")


def main() -> None:
    print(platform.processor() or platform.machine(), f"{os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as place:
        start = time.perf_counter()
        folder = make_run(Path(place))
        print(f"(made {PROMPTS * SAMPLES} images in {time.perf_counter() - start:.0f} s)")
        first = list(folder.generations().values())[:MOST]
        start = time.perf_counter()
        for generation in first:
            folder.image(generation.image).load()
        reference = time.perf_counter() - start
        file = Path(place) / "report.html"
        start = time.perf_counter()
        subprocess.run([*CLI, "report", str(folder.path), "--out", str(file)], check=True)
        took = time.perf_counter() - start
        memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        print(
            f"report: {took:.1f} s, {memory:.0f} MB of memory, {file.stat().st_size / 1e6:.1f} MB"
        )
        print(f"decoding {MOST} pictures: {reference:.1f} s; ratio {took / reference:.1f}")
        if shutil.which("chromium"):
            in_browser(file)
        else:
            print("no chromium: the page was not opened")


if __name__ == "__main__":
    main()
