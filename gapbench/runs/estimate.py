"""What a run would still take: counted, and timed on a few images in memory."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Final

from gapbench.judges.base import Judge
from gapbench.models.base import Drawing
from gapbench.runs.folder import RunFolder
from gapbench.runs.plan import Item, Prepared, missing_items, refusals
from gapbench.types import Prompt, counted

CALIBRATION: Final = 8
"""Images that each process draws to estimate a run."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run would still take. `seconds` and `bytes` come from a short calibration, None where
    nothing is left to do."""

    images: int
    own_verdicts: int
    outside_verdicts: int
    seconds: float | None
    bytes: int | None
    costs: tuple[str, ...] = ()
    """What judges that are paid by the answer would take; they are not asked to find out."""

    def words(self) -> str:
        """What is left to do, in words."""
        if self.seconds is None or self.bytes is None:
            return "Nothing is left to do: the same command prints the table."
        left = (
            f"Left to do: {counted(self.images, 'image')}, "
            f"{counted(self.own_verdicts, 'own verdict')}, "
            f"{counted(self.outside_verdicts, 'outside verdict')}; about {self.seconds:.0f} s and "
            f"{self.bytes / 1e6:.1f} MB, from a short calibration. Nothing was written."
        )
        return "\n".join([left, *(f"Not counted in the time: {cost}" for cost in self.costs)])


def estimate(prepared: Prepared) -> Estimate:
    """Count what is left of a run and time a few images of it in memory. Writes nothing."""
    items = prepared.plan.items()
    path = prepared.path
    folder = RunFolder.open(path) if (path / "run.json").exists() else None
    drawn = folder.generations() if folder else {}
    there = folder.verdicts() if folder else {}
    refused = folder.refusals() if folder and not prepared.settings.retry_refused else {}
    refused |= refusals(prepared.model, missing_items(items, {**drawn, **refused}))
    missing = missing_items(items, {**drawn, **refused})

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

    asked: list[tuple[Judge, int]] = []
    if prepared.own:
        pairs = [(p, i) for i in items for p in (i.prompt, i.partner) if p is not None]
        asked.append((prepared.own, unjudged(prepared.own, pairs)))
    own = sum(count for _, count in asked)
    for judge in prepared.judges:
        pairs = [(prompt, i) for i in items for prompt in i.asked(judge.name)]
        asked.append((judge, unjudged(judge, pairs)))
    verdicts = sum(count for _, count in asked)
    if not missing and not verdicts:
        return Estimate(0, 0, 0, None, None)

    left = missing or items
    few = CALIBRATION * prepared.settings.workers
    sample = left[:: max(1, len(left) // few)][:few]
    if prepared.settings.batch_size != "auto":
        sample = sample[: prepared.settings.batch_size]
    start = time.perf_counter()
    prepared.model.load()
    seconds = time.perf_counter() - start
    prompts = [item.prompt for item in sample]
    drawings: list[Drawing] = []

    def draw() -> None:
        texts, seeds = [p.text for p in prompts], [item.seed for item in sample]
        drawings[:] = prepared.model.generate(texts, seeds)

    seconds += len(missing) * _each(draw, len(sample))
    images = [drawing.image for drawing in drawings]
    costs = []
    for judge, count in asked:
        cost = judge.estimate_cost(count)
        if count and cost:
            costs.append(f"{judge.name}: {cost}")
        elif count:
            seconds += count * _each(partial(judge.judge, images, prompts), len(sample))
    image = sum(_bytes(drawing) for drawing in drawings) / len(drawings)
    size = round(len(missing) * image + verdicts * 900)
    return Estimate(len(missing), own, verdicts - own, seconds, size, tuple(costs))


def _each(do: Callable[[], object], count: int) -> float:
    start = time.perf_counter()
    do()
    return (time.perf_counter() - start) / count


def _bytes(drawing: Drawing) -> int:
    buffer = io.BytesIO()
    drawing.image.save(buffer, "PNG")
    return buffer.tell() + (0 if drawing.tokens is None else drawing.tokens.nbytes + 128) + 700
