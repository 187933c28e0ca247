"""The whole flow: plan -> stages (draw, own verdicts, outside verdicts) -> rates.

A stage lists the keys that are wanted, drops those the run folder has, works off the rest in
batches and appends. Resuming, more samples, another judge and another task all follow from that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from inspect import Signature, signature
from typing import ParamSpec, get_type_hints

from gapbench.engines.base import Source
from gapbench.files import with_checksum
from gapbench.judges.base import Judge
from gapbench.judges.parts import PartsJudge
from gapbench.models.base import Model
from gapbench.models.checkpoint import gpu
from gapbench.runs.about import about, note_edit
from gapbench.runs.ahead import ahead
from gapbench.runs.folder import RunFolder
from gapbench.runs.listing import RESULTS
from gapbench.runs.missing import missing_items, refusals
from gapbench.runs.plan import Item, Plan, Prepared, prepare
from gapbench.runs.references import for_judge, for_model, keep
from gapbench.runs.reflect import attempts, kept_images
from gapbench.runs.results import results
from gapbench.runs.run import FAILURES, Run
from gapbench.runs.settings import Part, RunSettings
from gapbench.runs.stages import draw_images, judge_images, note_check, note_served
from gapbench.runs.whole import joined, stored_plan, whole
from gapbench.types import GapbenchError, Prompt, Refusal

P = ParamSpec("P")


def measure(settings: RunSettings) -> Run:
    """Measure a model: draw, let it judge itself, let outside judges judge, keep everything.

    `recipe` changes keys of the model's sampling recipe, which makes it another run. `tasks` are
    `all`, tiers, tasks, task/category or folders; `samples` images a prompt (each
    task's own number by default); `limit` prompts a task, spread over its categories; `judges`
    outside judges (each task's own by default; none where the list is empty); `reflect` draws
    again what the model rejects, so many times at most; `workers` processes with a copy of the
    model each, and then of each judge, by Ray; `pack_images` puts them into tar files; `only` the
    texts of the prompts to keep. The same call again goes on where it stopped. An image or a
    verdict that fails costs no other: what is missing at the end, `Run.failures` and `Run.refused`
    say.
    Raises GapbenchError for input that cannot be run, before anything is written, and where all
    fails.
    """
    made = prepare(settings)
    items, retry = made.plan.items(), settings.retry_refused
    with ExitStack() as held:
        folder = _locked(made, held) if (made.path / "run.json").exists() else None
        if folder:
            missing = _left(folder, items, retry)
        else:
            note_edit(made, made.path)
            missing = missing_items(items)
        refused = refusals(made.model, missing)
        try:
            if len(missing) > len(refused):  # what cannot be loaded leaves nothing behind
                made.engine.load(made.source)
                for judge in made.judges:
                    judge.check_ready()
            if folder is None:
                folder = _locked(made, held)
                missing = _left(folder, missing, retry)  # another command may have come first
            return _work(made, folder, items, missing, refused)
        finally:
            made.engine.release(made.source)
            made.engine.close()


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


def _locked(made: Prepared, held: ExitStack) -> RunFolder:
    """The run folder of a checked command, made if there is none, in which nobody else writes."""
    recorded = about(made.model, made.settings, made.changed)
    of = (made.settings.out, made.model.name, made.identity)
    folder = RunFolder.create(*of, recorded, made.changed, made.settings.shard)
    held.enter_context(folder.lock())
    return folder


def _work(
    made: Prepared,
    folder: RunFolder,
    items: Sequence[Item],
    missing: Sequence[Item],
    refused: Mapping[tuple[str, int], Refusal],
) -> Run:
    """The stages of a checked command, kept in its locked run folder; of the `missing` items,
    `refused` are not drawn."""
    settings, batch_size, progress = made.settings, made.settings.batch_size, made.settings.progress
    retry = settings.retry_refused
    failures: dict[str, Mapping[str, int]] = {}
    begun, here = folder.meta.get("model_about", {}).get("gpu"), gpu(made.model.device)
    other = f"begun with {begun}, gone on with {here}, which may round otherwise"
    note_check(folder, "the GPU", other if begun != here else None)
    if settings.pack_images:
        folder.pack()
    earlier: Plan | None = None
    with suppress(GapbenchError):  # none yet, or one that show calls broken
        earlier = stored_plan(folder)
    kept = joined(earlier, made.plan)
    (folder.path / RESULTS).unlink(missing_ok=True)  # of what is no longer all
    if kept is earlier:
        (folder.path / "plan.json").touch()  # it tells the latest command
    else:
        folder.write("plan.json", with_checksum(asdict(kept)))
    folder.append(refused.values())
    missing = [i for i in missing if (i.prompt.text, i.seed) not in refused]

    def judged(
        stage: str,
        judge: Judge,
        source: Source,
        pairs: Iterable[tuple[Prompt, str]],
        begun: bool = False,
    ) -> None:
        where = made.engine, source
        failures[stage] = judge_images(
            stage, judge, folder, pairs, batch_size, progress, retry, where, begun=begun
        )

    with ahead(made, folder, items if missing else ()) as note:
        failures["images"] = draw_images(made, folder, missing, note)
        note_served(folder, f"model {made.model.name}", made.model)
        drawn = folder.generations()
        found = ((item, drawn.get((item.prompt.text, item.seed))) for item in items)
        there = [(item, generation.image) for item, generation in found if generation]
        if made.own:
            asked = [(item.prompt, image) for item, image in there]
            crossed = [(item.partner, image) for item, image in there if item.partner]
            keep(folder, items, made.references)
            judged("own verdicts", made.own, made.source, asked + crossed + for_model(items))
            for attempt in attempts(made.plan, folder, retry):
                if attempt.missing:
                    stage = f"images, {attempt}"
                    failures[stage] = draw_images(made, folder, attempt.missing, note, stage)
                stage = f"own verdicts, {attempt}"
                judged(stage, made.own, made.source, attempt.there(), begun=True)
            note_served(folder, f"model {made.model.name}", made.model)
    made.engine.release(made.source)
    every = whole(kept, Part())  # what earlier commands drew again, this judge has to see too
    for judge in made.judges:
        mine = [(prompt, image) for item, image in there for prompt in item.asked(judge.name)]
        mine += kept_images(every, folder, judge.name)
        listed, parted = for_judge(items, judge.name)
        source = made.sources[judge.name]
        judged(f"verdicts of {judge.name}", judge, source, mine + listed)
        parted += [(i.prompt, image) for i, image in there if judge.name in i.answers]
        if parted:
            judged(f"answers of {judge.name}", PartsJudge(judge), source, parted)
        note_served(folder, f"judge {judge.name}", judge)
        made.engine.release(source)
    failures = {stage: reasons for stage, reasons in failures.items() if reasons}
    if failures or (folder.path / FAILURES).exists():
        folder.write(FAILURES, failures)
    finished = Run(folder, made.plan)
    folder.write(RESULTS, results(Run(folder, every)))
    return finished


def _left(folder: RunFolder, items: Sequence[Item], retry: bool) -> list[Item]:
    """The images that are neither drawn nor, but for `retry`, refused."""
    return missing_items(items, folder.generations(), {} if retry else folder.refusals())
