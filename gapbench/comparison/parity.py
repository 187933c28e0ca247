"""Two backends of one model: the same prompts, seeds and images through both, and whether their
figures may stand on one board."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import quote

from gapbench.comparison.compare import Pair, pair_runs
from gapbench.files import checksum
from gapbench.judges.own import SINGLE, OwnJudge, needed
from gapbench.metrics.metric import METRICS
from gapbench.metrics.paired import changes
from gapbench.metrics.rates import rates
from gapbench.models import as_model
from gapbench.models.base import Model
from gapbench.runs.flow import measure
from gapbench.runs.plan import prepare
from gapbench.runs.run import Run
from gapbench.runs.settings import Advance, RunSettings
from gapbench.runs.stages import judge_images
from gapbench.tasks.content import cluster
from gapbench.types import PERCENT, SHARE, GapbenchError, Prompt, Scale, Verdict

SEEN: Final = {"verdicts": 0.02, "p_yes": 0.01}
"""How far apart verdicts on the same images may be: between what rounding does and what the
smallest known fault does (docs/parity.md)."""
DRAWN: Final = 0.05
"""How far apart rates of drawn images may be: the change that `gapbench power` looks for."""
LEAST: Final = 1e-9
"""Smaller shares of an answer count as this: of 1 - p_yes no more digits are stored."""
NATS: Final = Scale("nats", -math.inf, math.inf)
POINTS: Final = Scale(PERCENT, -math.inf, math.inf)
"""Distances between shares: where all are 0, that is no small sample of yes and no."""
Outcome = Literal["within", "beyond", "open"]
LONGEST: Final = 120
"""Characters of a folder's name, before its digest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """How far A and B are apart in one respect.

    `value` is the mean over images, in `unit`, of how far apart they are, or, where `a` and `b`
    have values of their own, b - a; `low` and `high` bound its 95 % interval. `largest` is the
    largest distance of a single image, None where each is 0 or 1. `margin` is how far apart they
    may be on one board, None where that does not depend on it.
    """

    name: str
    a: float | None = None
    b: float | None = None
    value: float
    low: float
    high: float
    largest: float | None = None
    unit: str = PERCENT
    images: int
    prompts: int
    margin: float | None = None

    @property
    def outcome(self) -> Outcome | None:
        """Whether the interval lies within the margin, beyond it, or reaches across it."""
        if self.margin is None:
            return None
        if self.low > self.margin or self.high < -self.margin:
            return "beyond"
        return "within" if self.low >= -self.margin and self.high <= self.margin else "open"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """What two backends of one model say and draw; `a` and `b` are their run folders.

    `own` is how own verdicts were made: logits, text or none. Of the pairs of image and question
    that both judged, B `rejects` and `accepts` so many on which A says the opposite. `missing` says
    what could not be compared and would have decided, `left_out` which images were not.
    """

    a: str
    b: str
    a_model: str
    b_model: str
    judges: list[str]
    own: str
    rows: list[Row]
    rejects: int
    accepts: int
    missing: list[str]
    left_out: list[str]

    @property
    def same(self) -> bool | None:
        """Whether figures of A and B may stand on one board; None where that is not shown."""
        outcomes = [row.outcome for row in self.rows]
        if "beyond" in outcomes:
            return False
        return None if self.missing or "open" in outcomes else True


def parity(a: RunSettings, b: RunSettings) -> Parity:
    """Let A and B draw the same prompts from the same seeds and judge their own images, and let B
    judge A's images, each with its own prompt and some with a mismatched one.

    Each side has a run folder of its own under the `out` of its settings, B's with its verdicts on
    A's images; the same call again goes on where it stopped. The settings should differ in model,
    recipe, device and dtype alone. Where `verdict` is None, it is logits if both sides give them,
    else text, else none. Raises GapbenchError for input that cannot be run, and where some image or
    verdict failed.
    """
    if Path(a.out).is_file():
        raise GapbenchError(f"--out {a.out} is a file; give a folder")
    verdict = a.verdict or _mode([as_model(s.model, s.device, s.dtype, s.recipe) for s in (a, b)])
    one, two = (replace(s, verdict=verdict, out=Path(s.out) / _place(s)) for s in (a, b))
    if one.out == two.out:
        two = replace(two, out=f"{two.out},again")
    prepare(one)  # both are checked before the first draws
    judge = prepare(two).own
    first, second = _measured("A", one), _measured("B", two)
    pair = pair_runs(first, second, None, ("A", "B"))
    said = _said(first, second, judge, two) if judge else []
    rows = [*_verdicts(said), *_images(pair), *_rates(pair)]
    missing = [
        why
        for name, why in (
            ("verdicts", "own verdicts were not compared"),
            ("generation", "no outside judge compared the images (--tasks or --judge takes one)"),
        )
        if not any(row.margin and row.name == name for row in rows)
    ]
    return Parity(
        a=str(first.path),
        b=str(second.path),
        a_model=first.name,
        b_model=second.name,
        judges=sorted({str(name) for name in pair.old["judge"].dropna()}),
        own=first.mode,
        rows=rows,
        rejects=sum(x.verdict == 1 and y.verdict == 0 for _, x, y in said),
        accepts=sum(x.verdict == 0 and y.verdict == 1 for _, x, y in said),
        missing=missing,
        left_out=pair.left_out,
    )


def _measured(name: str, settings: RunSettings) -> Run:
    """A side's run, whose stages are told with its name. Raises GapbenchError where it lacks some
    image or verdict."""

    def progress(stage: str, there: int, total: int) -> Advance:
        return settings.progress(f"{name}: {stage}", there, total)

    run = measure(replace(settings, progress=progress))
    if run.unfinished:
        raise GapbenchError(f"{run.path}: {run.unfinished}")
    if (refused := run.refused()) and not len(run.frame()):
        why, count = max(refused.items(), key=lambda each: each[1])
        raise GapbenchError(f"{name} ({run.path}) refused all prompts, {count} of them: {why}")
    return run


def _mode(models: Sequence[Model]) -> Literal["logits", "text", "none"]:
    """How both give verdicts."""
    for mode in SINGLE:
        if all(needed(model, mode) in model.capabilities for model in models):
            return mode
    return "none"


def _place(of: RunSettings) -> str:
    """A folder's name for all that tells one backend from another: a run's own name does not tell
    devices apart."""
    model = of.model if isinstance(of.model, str) else of.model.name
    spec = str(Path(model).resolve()) if Path(model).is_dir() else model
    said = [of.device, of.dtype, *(f"{key}={value}" for key, value in (of.recipe or {}).items())]
    name = ",".join(quote(each, safe="=") for each in (spec, *said) if each != "auto")
    name = re.sub(r"^\.", "%2E", name)  # no hidden folder
    short = f"{name[:LONGEST]},{checksum({'place': name})}"
    return name if len(name) <= LONGEST else short


Key = tuple[Prompt, int]
"""A prompt, and the number of an image of it that is shown."""
Said = tuple[Key, Verdict, Verdict]
"""What A and B said of one of A's images."""


def _said(first: Run, second: Run, judge: OwnJudge, b: RunSettings) -> list[Said]:
    """What both say of A's images; B, which `judge` asks, only for what is not in its folder."""
    folder, plan, drawn = second.folder, first.plan, first.folder.generations()
    shown: list[tuple[Key, Prompt, str]] = []
    for item in plan.items():
        generation = drawn.get((item.prompt.text, item.seed))
        for number, asked in enumerate((item.prompt, item.partner)):
            if generation is not None and asked is not None:
                place = item.sample + number * plan.samples[item.prompt.task]
                shown.append(((item.prompt, place), asked, generation.image))
    with folder.lock():
        folder.take_images(first.folder, [image for _, _, image in shown])
        asked_of_b = [(asked, image) for _, asked, image in shown]
        stage = "B: verdicts on A"
        try:
            failed = judge_images(stage, judge, folder, asked_of_b, b.batch_size, b.progress)
        finally:
            judge.release()
    if failed:
        raise GapbenchError(
            f"{second.path}: {failed.total()} verdicts on A's images failed, the first: "
            f"{next(iter(failed))}; run the same command again"
        )
    mine, theirs = first.folder.verdicts(), folder.verdicts()
    return [
        (
            key,
            mine[image, plan.own_question(asked), plan.own_fingerprint],
            theirs[image, plan.own_question(asked), judge.fingerprint],
        )
        for key, asked, image in shown
    ]


def _verdicts(said: Sequence[Said]) -> Iterator[Row]:
    """Of what both said of the same images."""
    if not said:
        return
    keys = [key for key, _, _ in said]
    # A side that abstains where the other answers is not the same either.
    unlike = [float(x.verdict != y.verdict) for _, x, y in said]
    yield _mean("verdicts", keys, unlike, margin=SEEN["verdicts"])
    known = [(key, x, y) for key, x, y in said if x.p_yes is not None and y.p_yes is not None]
    if not known:
        return
    keys = [key for key, _, _ in known]
    apart = [abs(_p(x) - _p(y)) for _, x, y in known]
    yield replace(_mean("p_yes", keys, apart, POINTS, SEEN["p_yes"]), largest=max(apart))
    odds = [(_logs(x), _logs(y)) for _, x, y in known]
    apart = [max(abs(m - n) for m, n in zip(*each, strict=True)) for each in odds]
    yield replace(_mean("log-probabilities", keys, apart, NATS), largest=max(apart))


def _p(said: Verdict) -> float:
    return 0.0 if said.p_yes is None else said.p_yes


def _logs(said: Verdict) -> tuple[float, float]:
    """Log-probabilities of the two answers, as far as they are stored."""
    p, mass = _p(said), math.log(max(said.mass or 0.0, sys.float_info.min))
    return math.log(max(LEAST, 1 - p)) + mass, math.log(max(LEAST, p)) + mass


def _images(pair: Pair) -> Iterator[Row]:
    """Of what both drew from the same prompts and seeds."""
    one, two = pair.before.folder, pair.after.folder
    drawn, again = one.generations(), two.generations()
    prompts = {(p.task, p.id): p for p in pair.before.plan.prompts}
    rows: list[tuple[Any, ...]] = [
        *pair.old[["task", "prompt", "text", "sample", "seed"]].itertuples(index=False, name=None)
    ]
    both = [
        ((prompts[task, prompt], int(sample)), drawn[text, seed], again[text, seed])
        for task, prompt, text, sample, seed in rows
    ]
    keys = [key for key, _, _ in both]
    yield _mean("images", keys, [float(x.image != y.image) for _, x, y in both])
    unlike: list[tuple[Key, float]] = []
    likely: list[tuple[Key, float, float]] = []
    for key, x, y in both:
        if x.tokens is None or y.tokens is None:
            continue
        mine, theirs = one.tokens(x.tokens), two.tokens(y.tokens)
        same = mine.shape == theirs.shape
        unlike.append((key, float((mine != theirs).mean()) if same else 1.0))
        if x.logprob is not None and y.logprob is not None:
            likely.append((key, x.logprob / len(mine), y.logprob / len(theirs)))
    if unlike:
        keys, apart = [key for key, _ in unlike], [share for _, share in unlike]
        yield replace(_mean("tokens", keys, apart), largest=max(apart))
    if likely:
        keys, moved = [key for key, _, _ in likely], [y - x for _, x, y in likely]
        a, b = (
            _mean("", keys, values, NATS).value
            for values in ([x for _, x, _ in likely], [y for _, _, y in likely])
        )
        largest = max(map(abs, moved))
        yield replace(_mean("token_logprob", keys, moved, NATS), a=a, b=b, largest=largest)


def _rates(pair: Pair) -> Iterator[Row]:
    """Of how both judge what they drew themselves, and how outside judges do."""
    asked = [METRICS["non_unification"], METRICS["generation"]]
    for change in changes(pair.old, pair.new, "overall", asked):
        if change.difference is None or change.low is None or change.high is None:
            continue
        yield Row(
            name=change.metric, a=change.before, b=change.after, value=change.difference,
            low=change.low, high=change.high, unit=change.unit, images=change.images,
            prompts=change.prompts, margin=DRAWN if change.unit == PERCENT else None,
        )  # fmt: skip


def _mean(
    name: str,
    keys: Sequence[Key],
    values: Sequence[float],
    scale: Scale = SHARE,
    margin: float | None = None,
) -> Row:
    """The mean of a number for each image, with the interval that a mean of scores has in `rates`:
    categories weigh equally, and prompts that ask for the same are one cluster."""
    import pandas as pd

    frame = pd.DataFrame([
        _scored(prompt, place, value, scale)
        for (prompt, place), value in zip(keys, values, strict=True)
    ])  # fmt: skip
    made = next(r for r in rates(frame) if (r.level, r.metric) == ("overall", "generation"))
    if made.value is None or made.low is None or made.high is None:
        raise AssertionError("every image has a number")
    return Row(
        name=name, value=made.value, low=made.low, high=made.high, unit=made.unit,
        images=len(keys), prompts=made.n_prompts, margin=margin,
    )  # fmt: skip


def _scored(prompt: Prompt, place: int, value: float, scale: Scale) -> Mapping[str, Any]:
    """A row of a frame of `rates` with a score alone."""
    none = dict.fromkeys(("own", "outside", "mismatched"), float("nan"))
    return {
        "task": prompt.task, "category": prompt.category, "tier": prompt.tier,
        "prompt": prompt.id, "cluster": cluster(prompt), "sample": place,
        **none, "mismatched_asked": False, "score": value, "scale": scale,
    }  # fmt: skip
