"""The whole flow: plan -> stages (draw, own verdicts, outside verdicts) -> rates.

A stage lists the keys that are wanted, drops those the run folder has, works off the rest in
batches and appends. Resuming, more samples, another judge and another task all follow from that.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from inspect import Signature, signature
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar, get_type_hints

from gapbench.engines.local import BatchSize, work
from gapbench.files import with_checksum
from gapbench.judges.base import Judge
from gapbench.models import load_model
from gapbench.models.base import Drawing, Model, Unfinished
from gapbench.runs.folder import RunFolder, folder_for
from gapbench.runs.plan import Item, Prepared, missing_items, prepare, refuse_prompts
from gapbench.runs.run import HUMAN, Run
from gapbench.runs.settings import Progress, RunSettings
from gapbench.types import Answer, GapbenchError, Generation, Prompt, Verdict

P = ParamSpec("P")
T = TypeVar("T")
_Done = tuple[Mapping[int, T], Unfinished | None]
"""What a batch gave by place, and what stopped it, if anything did."""
SEEDS: Final = "the model's seeds"


def measure(settings: RunSettings) -> Run:
    """Measure a model: draw, let it judge itself, let outside judges judge, keep everything.

    `recipe` changes keys of the model's sampling recipe, which makes it another run. `tasks` are
    `all`, tiers, tasks, task/category or folders; `samples` images a prompt (each
    task's own number by default); `limit` prompts a task, spread over its categories; `judges`
    outside judges (each task's own by default; none where the list is empty); `workers` processes
    that draw and give own verdicts, each with a copy of the model; `only` the texts of the prompts
    to keep. The same call again goes on where it stopped.
    Raises GapbenchError for input that cannot be run, before anything is written.
    """
    made = prepare(settings)
    items, drawn = made.plan.items(), {}
    path = folder_for(settings.out, made.model.name, made.identity)
    if (path / "run.json").exists():
        drawn = RunFolder.open(path).generations()
    missing = missing_items(items, drawn)
    refuse_prompts(made.model, {i.prompt.text: i.prompt for i in missing}.values())
    try:
        if missing:
            made.model.load()  # weights that cannot be loaded leave nothing behind
        return _work(made, items)
    finally:
        made.model.release()


def _by_keyword(
    function: Callable[[RunSettings], Run], record: Callable[P, RunSettings]
) -> Callable[P, Run]:
    """`function` with the fields of its record as keywords, which its help lists."""

    def run(*args: P.args, **keywords: P.kwargs) -> Run:
        return function(record(*args, **keywords))

    hints = get_type_hints(record, localns={"Model": Model})
    fields = [p.replace(annotation=hints[p.name]) for p in signature(record).parameters.values()]
    vars(run)["__signature__"] = Signature(fields, return_annotation=Run)
    run.__doc__ = function.__doc__
    return run


run = _by_keyword(measure, RunSettings)
"""`measure`, with the fields of RunSettings as keywords."""


def _work(made: Prepared, items: list[Item]) -> Run:
    """The stages of a checked command, kept in its run folder."""
    batch_size, progress = made.settings.batch_size, made.settings.progress
    recorded = about(made.model, made.settings)
    folder = RunFolder.create(made.settings.out, made.model.name, made.identity, recorded)
    with folder.lock():
        folder.write("plan.json", with_checksum(asdict(made.plan)))
        _draw(made.model, folder, items, batch_size, progress)
        drawn = folder.generations()
        asked = [(i.prompt, drawn[i.prompt.text, i.seed].image) for i in items]
        crossed = [(i.partner, drawn[i.prompt.text, i.seed].image) for i in items if i.partner]
        if made.own:
            judge_images("own verdicts", made.own, folder, asked + crossed, batch_size, progress)
        made.model.release()
        for judge in made.judges:
            mine = [
                (prompt, drawn[i.prompt.text, i.seed].image)
                for i in items
                for prompt in i.asked(judge.name)
            ]
            judge_images(f"verdicts of {judge.name}", judge, folder, mine, batch_size, progress)
            judge.release()
        finished = Run(folder, made.plan)
        names: list[str | None] = [*(made.plan.judges or [None])]
        names += [HUMAN] * (HUMAN in finished.judges())
        folder.write(
            "rates.json",
            {name or "none": [asdict(r) for r in finished.rates(name)] for name in names},
        )
    return finished


def about(model: Model, settings: RunSettings) -> dict[str, Any]:
    """Versions, machine, where the model was and what the command changed of it, recorded with a
    run; not part of its identity."""
    changed = {key: model.recipe[key] for key in settings.recipe or ()}
    packages = ("gapbench", "torch", "transformers", "numpy", "pillow")
    return {
        "model_about": {
            "fingerprint": model.fingerprint,
            "recipe": dict(model.recipe),
            "pair": model.pair,
            "given": _place(settings.model),
            "changed": changed | ({} if settings.dtype == "auto" else {"dtype": model.dtype}),
            "device": model.device,
            "dtype": model.dtype,
            "versions": model.versions,
        },
        "versions": {"python": platform.python_version(), **{p: version(p) for p in packages}},
        "machine": {"system": platform.system(), "processor": platform.machine()},
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def model_of(run: Run, models: Sequence[str], task: str) -> Model:
    """The model that made a run: where the run found it, or among `models` (as --model takes them).

    Raises GapbenchError, which says for which task, where it is not there with the same weights.
    """
    meta = run.folder.meta
    about = meta.get("model_about", {})
    tried = []
    for spec in [*models, about.get("given") or meta["model"]]:
        try:
            model = load_model(spec, dtype=about.get("dtype") or "auto")
        except GapbenchError as error:
            tried.append(str(error))
            continue
        if model.fingerprint == about.get("fingerprint"):
            return model
        tried.append(
            f"{spec} holds other weights or settings than that run's model, or gapbench has "
            "changed since how it draws"
        )
    raise GapbenchError(
        f"{run.path}: its model has to {task}, but {'; '.join(tried)}; give its folder or name "
        "with --model"
    )


def _place(given: str | Model) -> str:
    """What finds a model again from any folder, as load_model takes it."""
    if not isinstance(given, str):
        return given.name
    return str(Path(given).resolve()) if Path(given).is_dir() else given


def _draw(
    model: Model, folder: RunFolder, items: list[Item], batch_size: BatchSize, progress: Progress
) -> None:
    missing = missing_items(items, folder.generations())
    if missing:
        _note_check(folder, SEEDS, model.check_seeds(missing[0].prompt.text, missing[0].seed))
    total = len({(item.prompt.text, item.seed) for item in items})
    advance = progress("images", total - len(missing), total)

    def do(batch: Sequence[Item]) -> tuple[_Done[Drawing], float]:
        start = time.perf_counter()
        drawn = _done(
            lambda: model.generate([i.prompt.text for i in batch], [i.seed for i in batch])
        )
        return drawn, (time.perf_counter() - start) / len(batch)

    def keep(batch: Sequence[Item], made: tuple[_Done[Drawing], float]) -> None:
        (drawings, stop), seconds = made
        images = folder.add_images([drawing.image for drawing in drawings.values()])
        folder.append(
            Generation(
                prompt=item.prompt.text,
                sample=item.sample,
                seed=item.seed,
                image=image,
                tokens=None if drawing.tokens is None else folder.add_tokens(drawing.tokens),
                effective_prompt=drawing.effective_prompt,
                logprob=drawing.logprob,
                seconds=seconds,
            )
            for item, drawing, image in zip(
                (batch[place] for place in drawings), drawings.values(), images, strict=True
            )
        )
        _go_on(stop)

    work(missing, batch_size, do, keep, advance, model.batches)


def judge_images(
    stage: str,
    judge: Judge,
    folder: RunFolder,
    asked: Iterable[tuple[Prompt, str]],
    batch_size: BatchSize,
    progress: Progress,
) -> None:
    """Let a judge judge images (by sha256) of a run folder that is locked, each against its prompt,
    and keep the verdicts there; those that it has are not made again."""
    wanted = {(image, judge.question(p), judge.fingerprint): (p, image) for p, image in asked}
    there = folder.verdicts()
    missing = [pair for key, pair in wanted.items() if key not in there]
    # Side by side, since questions about one image share most of their work.
    place = {image: number for number, (_, image) in enumerate(reversed(missing))}
    missing.sort(key=lambda pair: -place[pair[1]])
    if missing:
        _note_check(folder, f"judge {judge.name}", judge.check_picture())
    advance = progress(stage, len(wanted) - len(missing), len(wanted))

    def do(batch: Sequence[tuple[Prompt, str]]) -> _Done[Answer]:
        prompts, digests = [prompt for prompt, _ in batch], [image for _, image in batch]

        def ask() -> list[Answer]:
            known = judge.judge_digests(digests, prompts)
            return judge.judge(folder.images(digests), prompts) if known is None else known

        return _done(ask)

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

    work(missing, batch_size, do, keep, advance, judge.batches)


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
