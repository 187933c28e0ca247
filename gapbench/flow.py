"""The whole flow: plan -> stages (draw, own verdicts, outside verdicts) -> rates.

A stage lists the keys that are wanted, drops those the run folder has, works off the rest in
batches and appends. Resuming, more samples, another judge and another task all follow from that.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gapbench.engines.local import work
from gapbench.judges import load_judge
from gapbench.judges.base import Judge
from gapbench.judges.own import NEEDS, Mode, OwnJudge
from gapbench.models import load_model
from gapbench.models.base import CAPABILITIES, Drawing, Model
from gapbench.store import RunFolder, folder_for
from gapbench.tasks import Task, select
from gapbench.types import GapbenchError, Generation, Prompt, Rates, Verdict

if TYPE_CHECKING:
    import pandas as pd

Progress = Callable[[str, int, int], Callable[[int], None]]
"""Told (stage, items that are there already, items in all); returns what to call with each batch's
size."""

CALIBRATION: Final = 8
"""Images drawn in memory to estimate a run."""


def _silent(_stage: str, _there: int, _total: int) -> Callable[[int], None]:
    return lambda _count: None


@dataclass(frozen=True, slots=True)
class Plan:
    """What a command asked for; a table is computed for a plan.

    `judges` maps each task to its outside judges' names and fingerprints, the one that rates are
    computed against first. For each prompt, `partner` is the index of another prompt of its
    category that asks for something else, or None, and `asks` what each judge is asked.
    """

    tasks: dict[str, str]
    prompts: list[Prompt]
    partner: list[int | None]
    asks: list[dict[str, str]]
    samples: dict[str, int]
    judges: dict[str, dict[str, str]]
    own: str
    own_fingerprint: str
    seed: int

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Plan:
        return cls(**{**raw, "prompts": [Prompt(**p) for p in raw["prompts"]]})

    def items(self) -> list[Item]:
        """Every planned image, prompt by prompt."""
        return [
            Item(
                prompt,
                sample,
                seed_of(self.seed, prompt.text, sample),
                self.asks[i],
                self._partner(i, sample),
            )
            for i, prompt in enumerate(self.prompts)
            for sample in range(self.samples[prompt.task])
        ]

    def _partner(self, index: int, sample: int) -> Prompt | None:
        partner = self.partner[index]
        return None if partner is None or sample else self.prompts[partner]


@dataclass(frozen=True, slots=True)
class Item:
    """One planned image; `partner` is the prompt it is also held against, as a mismatched pair
    (first samples only: one pair a prompt carries the rate)."""

    prompt: Prompt
    sample: int
    seed: int
    asks: Mapping[str, str]
    partner: Prompt | None


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run would still take. `seconds` and `bytes` come from a short calibration, None where
    nothing is left to do."""

    images: int
    own_verdicts: int
    outside_verdicts: int
    seconds: float | None
    bytes: int | None


class Run:
    """A run folder with a plan: its frame and its rates."""

    def __init__(self, folder: RunFolder, plan: Plan) -> None:
        self.folder, self.plan = folder, plan

    @property
    def path(self) -> Path:
        return self.folder.path

    def judges(self) -> list[str]:
        """Names of the outside judges, in order of first use."""
        return list(dict.fromkeys(name for names in self.plan.judges.values() for name in names))

    def frame(self, judge: str | None = None) -> pd.DataFrame:
        """One row for each planned image that was drawn.

        Columns: task, category, tier, prompt (id), text, sample, seed, image (sha256), own, p_yes,
        own_reason, outside, score, outside_reason, judge, mismatched, mismatched_asked. Verdicts
        are 1.0, 0.0 or NaN (abstained). `judge` picks an outside judge; by default each task's
        first.
        """
        import pandas as pd

        if judge is not None and judge not in self.judges():
            raise GapbenchError(
                f"{self.path} has no verdicts of judge {judge!r}; it has {', '.join(self.judges())}"
            )
        drawn, verdicts = self.folder.generations(), self.folder.verdicts()
        rows = []
        for item in self.plan.items():
            judges = self.plan.judges[item.prompt.task]
            name = judge if judge is not None else next(iter(judges), None)
            generation = drawn.get((item.prompt.text, item.seed))
            if generation is None or (judge is not None and judge not in judges):
                continue

            def find(
                question: str, fingerprint: str, image: str = generation.image
            ) -> Verdict | None:
                return verdicts.get((image, question, fingerprint))

            own = find(item.prompt.question, self.plan.own_fingerprint)
            outside = find(item.asks[name], judges[name]) if name else None
            other = find(item.partner.question, self.plan.own_fingerprint) if item.partner else None
            rows.append(
                {
                    "task": item.prompt.task,
                    "category": item.prompt.category,
                    "tier": item.prompt.tier,
                    "prompt": item.prompt.id,
                    "text": item.prompt.text,
                    "sample": item.sample,
                    "seed": item.seed,
                    "image": generation.image,
                    "own": _number(own, "verdict"),
                    "p_yes": _number(own, "p_yes"),
                    "own_reason": own.reason if own else None,
                    "outside": _number(outside, "verdict"),
                    "score": _number(
                        outside, "verdict" if outside and outside.score is None else "score"
                    ),
                    "outside_reason": outside.reason if outside else None,
                    "judge": name,
                    "mismatched": _number(other, "verdict"),
                    "mismatched_asked": item.partner is not None,
                }
            )
        return pd.DataFrame(rows)

    def rates(self, judge: str | None = None) -> list[Rates]:
        """The figures of paper section 2, per category, task, tier and overall."""
        from gapbench.metrics import rates

        return rates(self.frame(judge))


def open_run(path: str | Path) -> Run:
    """A run folder as it stands, with the plan of the latest command."""
    folder = RunFolder.open(Path(path))
    raw = folder.read("plan.json")
    try:
        return Run(folder, Plan.from_json(raw))
    except (TypeError, KeyError) as error:
        raise GapbenchError(f"{folder.path / 'plan.json'}: broken ({error}); run again") from error


def run(
    model: str | Model = "janus-mini",
    tasks: str | Sequence[str] = "shapes",
    *,
    samples: int | None = None,
    limit: int | None = None,
    judges: Sequence[str] | None = None,
    verdict: Mode = "logits",
    batch_size: int = 64,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    out: str | Path = "runs",
    progress: Progress = _silent,
) -> Run:
    """Measure a model: draw, let it judge itself, let outside judges judge, keep everything.

    `tasks` are `all`, tiers, tasks, task/category or folders; `samples` images a prompt (each
    task's own number by default); `limit` prompts a task, spread over its categories; `judges`
    outside judges (each task's own by default). The same call again goes on where it stopped.
    Raises GapbenchError for input that cannot be run, before anything is written.
    """
    made = prepare(model, tasks, samples, limit, judges, verdict, seed, device, dtype, Path(out))
    items, drawn = made.plan.items(), {}
    path = folder_for(Path(out), made.model.name, made.identity)
    if (path / "run.json").exists():
        drawn = RunFolder.open(path).generations()
    _refuse_prompts(made.model, {i.prompt.text: i.prompt for i in _missing(items, drawn)}.values())

    folder = RunFolder.create(Path(out), made.model.name, made.identity, about(made.model))
    with folder.lock():
        folder.write("plan.json", asdict(made.plan))
        _draw(made.model, folder, items, batch_size, progress)
        drawn = folder.generations()
        asked = [(i.prompt, drawn[i.prompt.text, i.seed].image) for i in items]
        crossed = [(i.partner, drawn[i.prompt.text, i.seed].image) for i in items if i.partner]
        _judge("own verdicts", made.own, folder, asked + crossed, batch_size, progress)
        made.model.release()
        for judge in made.judges:
            mine = [(p, image) for p, image in asked if judge.name in made.plan.judges[p.task]]
            _judge(f"verdicts of {judge.name}", judge, folder, mine, batch_size, progress)
        finished = Run(folder, made.plan)
        names: list[str | None] = [*finished.judges()] or [None]
        folder.write(
            "rates.json",
            {name or "none": [asdict(r) for r in finished.rates(name)] for name in names},
        )
    return finished


@dataclass(frozen=True, slots=True)
class Prepared:
    """A checked command: nothing loaded, nothing written."""

    model: Model
    own: OwnJudge
    judges: list[Judge]
    plan: Plan
    identity: dict[str, Any]


def prepare(
    model: str | Model,
    tasks: str | Sequence[str],
    samples: int | None,
    limit: int | None,
    judges: Sequence[str] | None,
    verdict: Mode,
    seed: int,
    device: str,
    dtype: str,
    out: Path,
) -> Prepared:
    """Resolve and check everything a command names."""
    for name, value in (("samples", samples), ("limit", limit)):
        if value is not None and value < 1:
            raise GapbenchError(f"{name} is {value}, must be at least 1")
    if out.exists() and not out.is_dir():
        raise GapbenchError(f"--out {out} is a file; give a folder")
    selected = select([tasks] if isinstance(tasks, str) else tasks)
    adapter = load_model(model, device, dtype) if isinstance(model, str) else model
    for need in ("generate", NEEDS[verdict]):
        if need not in adapter.capabilities:
            raise GapbenchError(f"model {adapter.name} lacks {need}: it {CAPABILITIES[need]}")
    own = OwnJudge(adapter, verdict)
    loaded: dict[str, Judge] = {}
    judges_of: dict[str, dict[str, str]] = {}
    for task, _ in selected:
        names = list(judges) if judges else [task.judge] if task.judge else []
        for name in names:
            loaded.setdefault(name, load_judge(name))
        judges_of[task.name] = {name: loaded[name].fingerprint for name in names}
    prompts, partner = _choose(selected, limit)
    asks = [{name: loaded[name].question(p) for name in judges_of[p.task]} for p in prompts]
    plan = Plan(
        tasks={task.name: task.version for task, _ in selected},
        prompts=prompts,
        partner=partner,
        asks=asks,
        samples={task.name: samples or task.samples for task, _ in selected},
        judges=judges_of,
        own=own.name,
        own_fingerprint=own.fingerprint,
        seed=seed,
    )
    identity = {"model": adapter.fingerprint, "recipe": dict(adapter.recipe), "seed": seed}
    return Prepared(adapter, own, list(loaded.values()), plan, identity)


def estimate(prepared: Prepared, out: Path, batch_size: int) -> Estimate:
    """Count what is left of a run and time a few images of it in memory. Writes nothing."""
    items = prepared.plan.items()
    path = folder_for(out, prepared.model.name, prepared.identity)
    folder = RunFolder.open(path) if (path / "run.json").exists() else None
    drawn = folder.generations() if folder else {}
    there = folder.verdicts() if folder else {}
    missing = _missing(items, drawn)
    _refuse_prompts(prepared.model, {i.prompt.text: i.prompt for i in missing}.values())

    def unjudged(judge: Judge, pairs: Iterable[tuple[Prompt, Item]]) -> int:
        wanted = set()
        for prompt, item in pairs:
            image = drawn.get((item.prompt.text, item.seed))
            question = judge.question(prompt)
            if image is None or (image.image, question, judge.fingerprint) not in there:
                wanted.add((item.prompt.text, item.seed, question))
        return len(wanted)

    asked = [(item.prompt, item) for item in items]
    crossed = [(item.partner, item) for item in items if item.partner]
    own = unjudged(prepared.own, asked + crossed)
    outside = {
        judge.name: unjudged(
            judge, [(p, i) for p, i in asked if judge.name in prepared.plan.judges[p.task]]
        )
        for judge in prepared.judges
    }
    if not missing and not own and not any(outside.values()):
        return Estimate(0, 0, 0, None, None)

    sample = (missing or items)[:: max(1, len(missing or items) // CALIBRATION)][:CALIBRATION]
    sample = sample[:batch_size]
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
    seconds += own * _each(partial(prepared.own.judge, images, prompts), len(sample))
    for judge in prepared.judges:
        if outside[judge.name]:
            judging = partial(judge.judge, images, prompts)
            seconds += outside[judge.name] * _each(judging, len(sample))
    size = sum(_bytes(drawing) for drawing in drawings) / len(drawings)
    verdicts = own + sum(outside.values())
    return Estimate(
        len(missing),
        own,
        sum(outside.values()),
        seconds,
        round(len(missing) * size + verdicts * 900),
    )


def seed_of(run_seed: int, text: str, sample: int) -> int:
    """The seed of a prompt's k-th image: equal prompts get equal images, in any task or order."""
    digest = hashlib.sha256(json.dumps([run_seed, text, sample]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def about(model: Model) -> dict[str, Any]:
    """Versions and machine, recorded with a run; not part of its identity."""
    packages = ("gapbench", "torch", "transformers", "numpy", "pillow")
    return {
        "model_about": {
            "fingerprint": model.fingerprint,
            "recipe": dict(model.recipe),
            "device": getattr(model, "device", None),
            "dtype": getattr(model, "dtype", None),
        },
        "versions": {"python": platform.python_version(), **{p: version(p) for p in packages}},
        "machine": {"system": platform.system(), "processor": platform.machine()},
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _choose(
    selected: Sequence[tuple[Task, list[Prompt]]], limit: int | None
) -> tuple[list[Prompt], list[int | None]]:
    """The prompts to run, and for each the index of the next one of its category that asks for
    something else. A limit takes prompts from each category in turn."""
    prompts: list[Prompt] = []
    for _, found in selected:
        by_category: dict[str, list[Prompt]] = {}
        for prompt in found:
            by_category.setdefault(prompt.category, []).append(prompt)
        if limit is not None and limit < len(found):
            turns = sorted(
                (place, order, prompt)
                for order, group in enumerate(by_category.values())
                for place, prompt in enumerate(group)
            )[:limit]
            kept = {prompt.id for _, _, prompt in turns}
            found = [prompt for prompt in found if prompt.id in kept]
        prompts += found
    places: dict[tuple[str, str], list[int]] = {}
    for index, prompt in enumerate(prompts):
        places.setdefault((prompt.task, prompt.category), []).append(index)
    partner: list[int | None] = [None] * len(prompts)
    for group in places.values():
        wants = [_wants(prompts[index]) for index in group]
        for place, index in enumerate(group):
            others = range(place + 1, place + len(group))
            partner[index] = next(
                (group[o % len(group)] for o in others if wants[o % len(group)] != wants[place]),
                None,
            )
    return prompts, partner


def _wants(prompt: Prompt) -> str:
    """What a prompt asks for, the same for two that say it in another order or wording."""
    requirement = dict(prompt.requirement)
    if not requirement:
        return prompt.text
    if isinstance(requirement.get("include"), list):
        requirement["include"] = sorted(
            json.dumps(i, sort_keys=True) for i in requirement["include"]
        )
    return json.dumps(requirement, sort_keys=True)


def _missing(items: Iterable[Item], drawn: Mapping[tuple[str, int], Generation]) -> list[Item]:
    found: dict[tuple[str, int], Item] = {}
    for item in items:
        key = (item.prompt.text, item.seed)
        if key not in drawn:
            found.setdefault(key, item)
    return list(found.values())


def _refuse_prompts(model: Model, prompts: Iterable[Prompt]) -> None:
    for prompt in prompts:
        reason = model.refuses(prompt.text)
        if reason:
            raise GapbenchError(
                f"task {prompt.task}, prompt {prompt.id}: {reason}; change or remove the prompt"
            )


def _draw(
    model: Model, folder: RunFolder, items: list[Item], batch_size: int, progress: Progress
) -> None:
    missing = _missing(items, folder.generations())
    total = len({(item.prompt.text, item.seed) for item in items})
    advance = progress("images", total - len(missing), total)

    def do(batch: Sequence[Item]) -> None:
        start = time.perf_counter()
        drawings = model.generate([i.prompt.text for i in batch], [i.seed for i in batch])
        seconds = (time.perf_counter() - start) / len(batch)
        folder.append(
            Generation(
                prompt=item.prompt.text,
                sample=item.sample,
                seed=item.seed,
                image=folder.add_image(drawing.image),
                tokens=None if drawing.tokens is None else folder.add_tokens(drawing.tokens),
                effective_prompt=drawing.effective_prompt,
                logprob=drawing.logprob,
                seconds=seconds,
            )
            for item, drawing in zip(batch, drawings, strict=True)
        )

    work(missing, batch_size, do, advance)


def _judge(
    stage: str,
    judge: Judge,
    folder: RunFolder,
    asked: Iterable[tuple[Prompt, str]],
    batch_size: int,
    progress: Progress,
) -> None:
    wanted = {(image, judge.question(p), judge.fingerprint): (p, image) for p, image in asked}
    there = folder.verdicts()
    missing = [pair for key, pair in wanted.items() if key not in there]
    advance = progress(stage, len(wanted) - len(missing), len(wanted))

    def do(batch: Sequence[tuple[Prompt, str]]) -> None:
        answers = judge.judge([folder.image(sha) for _, sha in batch], [p for p, _ in batch])
        folder.append(
            Verdict(
                image=image,
                question=judge.question(prompt),
                judge=judge.name,
                fingerprint=judge.fingerprint,
                **asdict(answer),
            )
            for (prompt, image), answer in zip(batch, answers, strict=True)
        )

    work(missing, batch_size, do, advance)


def _number(verdict: Verdict | None, field: str) -> float:
    value = None if verdict is None else getattr(verdict, field)
    return float("nan") if value is None else float(value)


def _each(do: Callable[[], object], count: int) -> float:
    start = time.perf_counter()
    do()
    return (time.perf_counter() - start) / count


def _bytes(drawing: Drawing) -> int:
    import io

    buffer = io.BytesIO()
    drawing.image.save(buffer, "PNG")
    return buffer.tell() + (0 if drawing.tokens is None else drawing.tokens.nbytes + 128) + 700
