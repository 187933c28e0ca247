"""What a run would still take: counted, and timed by earlier runs or on a few images in memory."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from gapbench.judges.base import Judge
from gapbench.judges.parts import PartsJudge
from gapbench.models.base import Drawing
from gapbench.runs.folder import SPEEDS, RunFolder, recorded_speeds, worked_off
from gapbench.runs.missing import missing_items, refusals
from gapbench.runs.plan import Item, Plan, Prepared
from gapbench.runs.references import wanted_of
from gapbench.runs.reflect import chains, tried
from gapbench.types import Prompt, counted

CALIBRATION: Final = 8
"""Images that are drawn to estimate a run."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of what is left: `count` images or verdicts by the model or judge with this
    `fingerprint`; None as `judge` for images."""

    name: str
    count: int
    fingerprint: str
    judge: Judge | None = None


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run would still take. `seconds` are of the stages whose speed is known, `unknown`
    names the others; `bytes` are None where the size of an image is not known. `source` says where
    the speeds come from."""

    images: int
    own_verdicts: int
    outside_verdicts: int
    seconds: float = 0.0
    bytes: int | None = None
    source: str = ""
    unknown: tuple[str, ...] = ()
    costs: tuple[str, ...] = ()
    """What judges that are paid by the answer would take; they are not asked to find out."""
    reflections: int = 0
    """Prompts that the model may still be made to draw again."""

    def left(self) -> str:
        """What is left to do, and the time that it takes where that is known."""
        if not self.images + self.own_verdicts + self.outside_verdicts + self.reflections:
            return "Nothing is left to do"
        left = (
            f"Left to do: {counted(self.images, 'image')}, "
            f"{counted(self.own_verdicts, 'own verdict')}, "
            f"{counted(self.outside_verdicts, 'outside verdict')}"
        )
        if self.source:
            size = "" if self.bytes is None else f" and {self.bytes / 1e6:.1f} MB"
            but = f" (not counting {' and '.join(self.unknown)})" * bool(self.unknown)
            left += f"; about {self.seconds:.0f} s{size}{but}, {self.source}"
        return left

    def words(self) -> str:
        """What is left to do, in words, and why the time is not known."""
        if not self.images + self.own_verdicts + self.outside_verdicts + self.reflections:
            return f"{self.left()}: the same command prints the table."
        unknown = (
            f"Time not known: {', '.join(self.unknown)}. No earlier run in the same --out tells; "
            "--calibrate draws and judges a few images to measure it."
        )
        costs = [f"Not counted in the time: {cost}." for cost in self.costs]
        if self.reflections:
            prompts = counted(self.reflections, "prompt")
            costs.append(f"Not counted: what --reflect draws and judges again, of up to {prompts}.")
        return "\n".join(
            [f"{self.left()}. Nothing was written.", *[unknown] * bool(self.unknown), *costs]
        )


def estimate(prepared: Prepared, calibrate: bool = False) -> Estimate:
    """Count what is left of a run. Its time is by the speeds that earlier runs in the same folder
    recorded, so that nothing is loaded or asked; `calibrate` times a few images in memory instead.
    Writes nothing."""
    items = prepared.plan.items()
    path = prepared.path
    folder = RunFolder.open(path) if (path / "run.json").exists() else None
    drawn = folder.generations() if folder else {}
    there = folder.verdicts() if folder else {}
    again = prepared.settings.retry_refused
    refused = dict(folder.refusals()) if folder and not again else {}
    refused |= refusals(prepared.model, missing_items(items, drawn, refused))
    missing = missing_items(items, drawn, refused)

    def unjudged(judge: Judge, pairs: Iterable[tuple[Prompt, Item]]) -> int:
        wanted = set()
        for prompt, item in pairs:
            if (item.prompt.text, item.seed) in refused:
                continue
            image = drawn.get((item.prompt.text, item.seed))
            question = judge.question(prompt)
            if image is None or (image.image, question, judge.fingerprint) not in there:
                wanted.add((item.prompt.text, item.seed, question))
        return len(wanted)

    references = {
        stage: len(keys - there.keys()) for stage, keys in wanted_of(prepared.plan, items).items()
    }
    stages = [Stage("images", len(missing), prepared.model.fingerprint)]
    if own := prepared.own:
        pairs = [(p, i) for i in items for p in (i.prompt, i.partner) if p is not None]
        count = unjudged(own, pairs) + references.get("own verdicts", 0)
        stages.append(Stage("own verdicts", count, own.fingerprint, own))
    for judge in prepared.judges:
        pairs = [(prompt, i) for i in items for prompt in i.asked(judge.name)]
        kinds: list[tuple[str, Judge]] = [("verdicts", judge)]
        kinds += [("answers", PartsJudge(judge))] * any(judge.name in i.answers for i in items)
        for kind, asks in kinds:
            if kind == "answers":
                pairs = [(i.prompt, i) for i in items if judge.name in i.answers]
            name = f"{kind} of {judge.name}"
            count = unjudged(asks, pairs) + references.get(name, 0)
            stages.append(Stage(name, count, judge.fingerprint, asks))
    left = [stage for stage in stages if stage.count]
    costs = {s.name: c for s in left if s.judge and (c := s.judge.estimate_cost(s.count))}
    timed = [stage for stage in left if stage.name not in costs]
    image: float | None
    if calibrate and timed:
        speeds, image = _calibrated(prepared, missing or items, timed)
        source = "from a short calibration"
    else:
        speeds, image, folders = _recorded(Path(prepared.settings.out), timed)
        source = f"by the speeds recorded in {', '.join(folders)}" * bool(folders)
    asked = prepared.settings.workers
    workers = 1 if asked == "all" else asked
    source += ", of one worker" * bool(source and asked == "all")
    verdicts = sum(stage.count for stage in stages[1:])
    own_verdicts = sum(stage.count for stage in stages[1:] if stage.judge is prepared.own)
    return Estimate(
        images=len(missing),
        own_verdicts=own_verdicts,
        outside_verdicts=verdicts - own_verdicts,
        seconds=sum(
            speeds[s.name] * s.count / (1 if (s.judge or prepared.model).gpus is None else workers)
            for s in timed
            if s.name in speeds
        ),
        bytes=None if image is None else round(len(missing) * image + verdicts * 900),
        source=source,
        unknown=tuple(stage.name for stage in timed if stage.name not in speeds),
        costs=tuple(f"{name}: {cost}" for name, cost in costs.items()),
        reflections=_reflections(prepared.plan, folder),
    )


def _reflections(plan: Plan, folder: RunFolder | None) -> int:
    """The prompts whose attempts have not ended."""
    if folder is None:
        return len(chains(plan))
    return sum(not chain.ended for chain in tried(plan, folder))


def _recorded(
    out: Path, stages: Sequence[Stage]
) -> tuple[dict[str, float], float | None, list[str]]:
    """Seconds of a row by stage, bytes of an image, and the folders that tell; the newest first."""
    speeds, folders = dict[str, float](), list[str]()
    image: float | None = None
    files = sorted(out.glob(f"*/{SPEEDS}"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in files:
        recorded, new = recorded_speeds(file.parent), dict[str, float]()
        for stage in stages:
            rows, seconds = worked_off(recorded, stage.fingerprint)
            if rows and stage.name not in speeds:
                new[stage.name] = seconds / rows
        if "images" in new:
            image = 700 + RunFolder.open(file.parent).bytes_of_an_image()
        speeds |= new
        folders += [str(file.parent)] * bool(new)
    return speeds, image, folders


def _calibrated(
    prepared: Prepared, items: Sequence[Item], stages: Sequence[Stage]
) -> tuple[dict[str, float], float]:
    """Seconds of a row by stage, and bytes of an image, of a few images."""
    sample = items[:: max(1, len(items) // CALIBRATION)][:CALIBRATION]
    if prepared.settings.batch_size != "auto":
        sample = sample[: prepared.settings.batch_size]
    prompts, seeds = [item.prompt for item in sample], [item.seed for item in sample]
    prepared.model.load()
    drawings: list[Drawing] = []

    def draw() -> None:
        drawings[:] = prepared.model.generate([p.text for p in prompts], seeds)

    speeds = {"images": _each(draw, len(sample))}
    images = [drawing.image for drawing in drawings]
    for stage in stages:
        if stage.judge:
            ask = partial(stage.judge.judge, images, prompts)
            speeds[stage.name] = _each(ask, len(sample))
    return speeds, sum(map(_bytes, drawings)) / len(drawings)


def _each(do: Callable[[], object], count: int) -> float:
    start = time.perf_counter()
    do()
    return (time.perf_counter() - start) / count


def _bytes(drawing: Drawing) -> int:
    buffer = io.BytesIO()
    drawing.image.save(buffer, "PNG")
    kept = [array.nbytes + 128 for array in (drawing.tokens, drawing.latents) if array is not None]
    return buffer.tell() + sum(kept) + 700
