"""A model that answers at once, and what its run folders hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from PIL import Image

from gapbench import Generation, Verdict
from gapbench.files import checksum
from gapbench.models.base import Drawing, Model
from gapbench.runs.run import Run


class Stub(Model):
    """Draws a colour for each seed, and says yes or no by it."""

    name, capabilities, fingerprint = "stub", ("generate", "judge_text"), "stub-1"

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Drawing]:
        colours = [(seed % 251, seed % 241, seed % 239) for seed in seeds]
        return [Drawing(image=Image.new("RGB", (24, 24), colour)) for colour in colours]

    def reply(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[str]:
        pixels = [image.getpixel((0, 0)) for image in images]
        return [str(sum(p) % 2) for p in pixels if isinstance(p, tuple)]


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and file.name != ".lock"
    }


def records(of: Run) -> dict[type, Counter[str]]:
    """Checksums of all records; how long drawing took is told apart."""
    generations = [replace(g, seconds=0.0) for g in of.folder.each(Generation)]
    verdicts = of.folder.each(Verdict)
    return {
        Generation: Counter(checksum(asdict(g)) for g in generations),
        Verdict: Counter(checksum(asdict(v)) for v in verdicts),
    }
