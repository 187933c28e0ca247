"""The whole flow: plan -> stages (draw, own verdicts, outside verdicts) -> rates.

A stage lists the keys that are wanted, drops those the run folder has, works off the rest in
batches and appends. Resuming, more samples, another judge and another task all follow from that.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from gapbench.engines.local import FIRST, BatchSize, work
from gapbench.judges.base import DigestJudge, Judge, PictureJudge
from gapbench.judges.own import Mode
from gapbench.models.base import PAIR, Drawing, Model, SeedlessModel, Unfinished, is_pair
from gapbench.plan import Item, Plan, missing_items, prepare, refuse_prompts
from gapbench.store import RunFolder, folder_for, read_json
from gapbench.types import Answer, GapbenchError, Generation, Prompt, Rates, Verdict

if TYPE_CHECKING:
    import pandas as pd

    from gapbench.judges.human import HumanJudge
    from gapbench.metrics.agreement import Agreement
    from gapbench.metrics.corrected import Corrected

Progress = Callable[[str, int, int], Callable[[int], None]]
"""Told (stage, items that are there already, items in all); returns what to call with each batch's
size."""

T = TypeVar("T")
_Done = tuple[Mapping[int, T], Unfinished | None]
"""What a batch gave by place, and what stopped it, if anything did."""
LARGEST: Final = 1024
SEEDS: Final = "the model's seeds"
HUMAN: Final = "human"
LABELS: Final = "labels.jsonl"
"""The judge that people are, and the file in a run folder where `gapbench label` keeps what they
say."""
IMAGE: Final = ["task", "category", "tier", "prompt", "sample"]
OWN_METRICS: Final = frozenset({"non_unification", "mismatch_acceptance"})
"""Those that need no outside judge."""


def silent(_stage: str, _there: int, _total: int) -> Callable[[int], None]:
    """A Progress that shows nothing."""
    return lambda _count: None


class Run:
    """A run folder with a plan: its frame and its rates."""

    def __init__(self, folder: RunFolder, plan: Plan) -> None:
        self.folder, self.plan = folder, plan

    @property
    def path(self) -> Path:
        return self.folder.path

    @property
    def footnote(self) -> str:
        """What every table of the run has to say about its model, if anything."""
        return f"* {PAIR}" if self.folder.meta.get("model_about", {}).get("pair") else ""

    def judges(self) -> list[str]:
        """Names of the outside judges, in order of first use; last, where people labelled images,
        "human"."""
        return [*self.plan.judges, *([HUMAN] if (self.path / LABELS).exists() else [])]

    def people(self) -> HumanJudge | None:
        """The labels that `gapbench label` gathered, if any."""
        from gapbench.judges.human import HumanJudge

        file = self.path / LABELS
        return HumanJudge(str(file)) if file.exists() else None

    def checks(self) -> dict[str, str]:
        """What was tried -> what was wrong with it: a judge's answers about a picture of known
        truth ("judge NAME"), or a model's seeds; empty if nothing was."""
        file = self.path / "checks.json"
        return {str(k): str(v) for k, v in read_json(file).items()} if file.exists() else {}

    def agreements(self) -> list[tuple[str, str, Agreement]]:
        """Agreement of each two outside judges, and of each two people ("human:NAME"), on the
        images that both were asked about."""
        from gapbench.metrics.agreement import agreement

        people = self.people()
        raters = [f"{HUMAN}:{rater}" for rater in people.raters()] if people else []
        frames = {name: self.frame(name) for name in [*self.judges(), *raters]}
        found = []
        for first, second in [*combinations(self.judges(), 2), *combinations(raters, 2)]:
            if not len(frames[first]) or not len(frames[second]):
                continue
            both = frames[first].merge(
                frames[second][[*IMAGE, "outside"]], on=IMAGE, suffixes=("_first", "_second")
            )
            if len(both):
                found.append((first, second, agreement(both, "outside_first", "outside_second")))
        return found

    def corrected(self, judge: str | None = None) -> list[Corrected]:
        """The rates by an outside judge (each task's first, by default) as people's labels correct
        them; empty without labels."""
        from gapbench.metrics.corrected import corrected

        if HUMAN not in self.judges() or judge == HUMAN:
            return []
        frame, people = self.frame(judge), self.frame(HUMAN)
        if not len(people) or not len(frame):
            return []
        labels = people[[*IMAGE, "outside"]].rename(columns={"outside": HUMAN})
        return corrected(frame.merge(labels, on=IMAGE, how="left"))

    def frame(self, judge: str | None = None) -> pd.DataFrame:
        """One row for each planned image that was drawn.

        Columns: task, category, tier, prompt (id), text, sample, seed, image (sha256), own, p_yes,
        own_reason, outside, score, outside_reason, judge, mismatched, mismatched_asked. Verdicts
        are 1.0, 0.0 or NaN (abstained). `judge` picks an outside judge, and with it the images it
        was asked about; by default each task's first. "human" is the people who labelled the run,
        "human:NAME" one of them.
        """
        import pandas as pd

        name_of, _, rater = (judge or "").partition(":")
        people = self.people() if name_of == HUMAN else None
        raters = [f"{HUMAN}:{name}" for name in people.raters()] if people else []
        if judge is not None and judge not in [*self.judges(), *raters]:
            raise GapbenchError(
                f"{self.path} has no verdicts of judge {judge!r}; it has {', '.join(self.judges())}"
            )
        drawn, verdicts = self.folder.generations(), self.folder.verdicts()
        rows = []
        for item in self.plan.items():
            name = judge if judge is not None else next(iter(item.asks), None)
            generation = drawn.get((item.prompt.text, item.seed))
            if generation is None:
                continue
            outside: Answer | None = None
            if people is not None:
                outside = people.answer(generation.image, item.prompt.text, rater or None)
                if outside is None:
                    continue
            elif judge is not None and judge not in item.asks:
                continue

            def find(
                question: str, fingerprint: str, image: str = generation.image
            ) -> Verdict | None:
                return verdicts.get((image, question, fingerprint))

            own = find(item.prompt.question, self.plan.own_fingerprint)
            if name and people is None:
                outside = find(item.asks[name], self.plan.judges[name])
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

        frame = self.frame(judge)
        if not self.plan.own:
            return [rate for rate in rates(frame) if rate.metric == "generation"]
        judged = frame[frame["judge"].notna()] if len(frame) else frame
        if len(judged) == len(frame):
            return rates(frame)
        # Prompts that no outside judge was asked about are not its abstentions.
        alone = [rate for rate in rates(frame) if rate.metric in OWN_METRICS]
        return alone + [rate for rate in rates(judged) if rate.metric not in OWN_METRICS]


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
    recipe: Mapping[str, object] | None = None,
    samples: int | None = None,
    limit: int | None = None,
    judges: Sequence[str] | None = None,
    verdict: Mode | Literal["none"] = "logits",
    batch_size: BatchSize = "auto",
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    out: str | Path = "runs",
    only: Collection[str] | None = None,
    progress: Progress = silent,
) -> Run:
    """Measure a model: draw, let it judge itself, let outside judges judge, keep everything.

    `recipe` changes keys of the model's sampling recipe, which makes it another run. `tasks` are
    `all`, tiers, tasks, task/category or folders; `samples` images a prompt (each
    task's own number by default); `limit` prompts a task, spread over its categories; `judges`
    outside judges (each task's own by default; none where the list is empty); `only` the texts of
    the prompts to keep. The same call again goes on where it stopped.
    Raises GapbenchError for input that cannot be run, before anything is written.
    """
    if batch_size != "auto" and batch_size < 1:
        raise GapbenchError(f'batch_size is {batch_size}, must be "auto" or at least 1')
    made = prepare(
        model, tasks, samples, limit, judges, verdict, seed, device, dtype, Path(out), recipe, only
    )
    items, drawn = made.plan.items(), {}
    path = folder_for(Path(out), made.model.name, made.identity)
    if (path / "run.json").exists():
        drawn = RunFolder.open(path).generations()
    missing = missing_items(items, drawn)
    refuse_prompts(made.model, {i.prompt.text: i.prompt for i in missing}.values())
    if missing:
        made.model.load()  # weights that cannot be loaded leave nothing behind

    folder = RunFolder.create(Path(out), made.model.name, made.identity, about(made.model, model))
    with folder.lock():
        folder.write("plan.json", asdict(made.plan))
        _draw(made.model, folder, items, batch_size, progress)
        drawn = folder.generations()
        asked = [(i.prompt, drawn[i.prompt.text, i.seed].image) for i in items]
        crossed = [(i.partner, drawn[i.prompt.text, i.seed].image) for i in items if i.partner]
        if made.own:
            _judge("own verdicts", made.own, folder, asked + crossed, batch_size, progress)
        made.model.release()
        for judge in made.judges:
            mine = [
                (i.prompt, drawn[i.prompt.text, i.seed].image)
                for i in items
                if judge.name in i.asks
            ]
            _judge(f"verdicts of {judge.name}", judge, folder, mine, batch_size, progress)
            judge.release()
        finished = Run(folder, made.plan)
        names: list[str | None] = [*(made.plan.judges or [None])]
        names += [HUMAN] * (HUMAN in finished.judges())
        folder.write(
            "rates.json",
            {name or "none": [asdict(r) for r in finished.rates(name)] for name in names},
        )
    return finished


def about(model: Model, given: str | Model) -> dict[str, Any]:
    """Versions, machine and where the model was, recorded with a run; not part of its identity."""
    packages = ("gapbench", "torch", "transformers", "numpy", "pillow")
    return {
        "model_about": {
            "fingerprint": model.fingerprint,
            "recipe": dict(model.recipe),
            "pair": is_pair(model),
            "given": _place(given),
            "device": getattr(model, "device", None),
            "dtype": getattr(model, "dtype", None),
            "versions": getattr(model, "versions", None),
        },
        "versions": {"python": platform.python_version(), **{p: version(p) for p in packages}},
        "machine": {"system": platform.system(), "processor": platform.machine()},
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def judge_images(
    stage: str,
    judge: Judge,
    folder: RunFolder,
    asked: Iterable[tuple[Prompt, str]],
    progress: Progress,
) -> None:
    """Let a judge judge images (by sha256) of a run folder, each against its prompt, and keep the
    verdicts there; those that it has are not made again."""
    with folder.lock():
        _judge(stage, judge, folder, asked, "auto", progress)


def _place(given: str | Model) -> str:
    """What finds a model again from any folder, as load_model takes it."""
    if not isinstance(given, str):
        return given.name
    return str(Path(given).resolve()) if Path(given).is_dir() else given


def _draw(
    model: Model, folder: RunFolder, items: list[Item], batch_size: BatchSize, progress: Progress
) -> None:
    missing = missing_items(items, folder.generations())
    if missing and isinstance(model, SeedlessModel):
        _note_check(folder, SEEDS, model.check_seeds(missing[0].prompt.text, missing[0].seed))
    total = len({(item.prompt.text, item.seed) for item in items})
    advance = progress("images", total - len(missing), total)

    def do(batch: Sequence[Item]) -> tuple[_Done[Drawing], float]:
        start = time.perf_counter()
        found = _done(
            lambda: model.generate([i.prompt.text for i in batch], [i.seed for i in batch])
        )
        return found, (time.perf_counter() - start) / len(batch)

    def keep(batch: Sequence[Item], made: tuple[_Done[Drawing], float]) -> None:
        (drawings, stop), seconds = made
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
            for item, drawing in ((batch[place], found) for place, found in drawings.items())
        )
        _go_on(stop)

    work(missing, batch_size, do, keep, advance, _most(model))


def _judge(
    stage: str,
    judge: Judge,
    folder: RunFolder,
    asked: Iterable[tuple[Prompt, str]],
    batch_size: BatchSize,
    progress: Progress,
) -> None:
    wanted = {(image, judge.question(p), judge.fingerprint): (p, image) for p, image in asked}
    there = folder.verdicts()
    missing = [pair for key, pair in wanted.items() if key not in there]
    if missing and isinstance(judge, PictureJudge):
        _note_check(folder, f"judge {judge.name}", judge.check_picture())
    advance = progress(stage, len(wanted) - len(missing), len(wanted))

    def do(batch: Sequence[tuple[Prompt, str]]) -> _Done[Answer]:
        prompts = [prompt for prompt, _ in batch]
        if isinstance(judge, DigestJudge):
            return _done(partial(judge.judge_digests, [image for _, image in batch], prompts))
        return _done(partial(judge.judge, [folder.image(image) for _, image in batch], prompts))

    def keep(batch: Sequence[tuple[Prompt, str]], made: _Done[Answer]) -> None:
        answers, stop = made
        folder.append(
            Verdict(
                image=image,
                question=judge.question(prompt),
                judge=judge.name,
                fingerprint=judge.fingerprint,
                **asdict(answer),
            )
            for (prompt, image), answer in ((batch[place], a) for place, a in answers.items())
        )
        _go_on(stop)

    work(missing, batch_size, do, keep, advance, _most(judge))


def _most(worker: Model | Judge) -> int:
    """The largest batch to try: on a CPU more at once is no faster, and takes the user's memory."""
    device = getattr(getattr(worker, "model", worker), "device", None)
    return LARGEST if str(device).startswith("cuda") else FIRST


def _done(call: Callable[[], Sequence[T]]) -> _Done[T]:
    try:
        return dict(enumerate(call())), None
    except Unfinished as stop:
        return stop.done, stop


def _go_on(stop: Unfinished | None) -> None:
    if stop is not None:
        raise GapbenchError(
            f"{stop}; the rest is kept, run the same command again to try what is left"
        ) from stop


def _note_check(folder: RunFolder, what: str, warning: str | None) -> None:
    """Mark in the run what a check found; an earlier mark goes when all is right."""
    checks = folder.read("checks.json") if (folder.path / "checks.json").exists() else {}
    if warning is not None or what in checks:
        checks.pop(what, None)
        folder.write("checks.json", checks | ({what: warning} if warning else {}))


def _number(verdict: Answer | None, field: str) -> float:
    value = None if verdict is None else getattr(verdict, field)
    return float("nan") if value is None else float(value)
