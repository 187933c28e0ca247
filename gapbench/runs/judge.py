"""Outside judges of a run whose images are there: no model is loaded, and the images may be shared
among several machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Literal

from gapbench.engines import make_engine
from gapbench.engines.base import Engine, Source
from gapbench.files import with_checksum
from gapbench.judges import load_judge
from gapbench.judges.base import Judge
from gapbench.judges.own import NAMES
from gapbench.judges.parts import PartsJudge
from gapbench.runs.folder import RunFolder, folder_for
from gapbench.runs.listing import RESULTS, find_run
from gapbench.runs.merge import add, add_labels
from gapbench.runs.needs import bring_judge
from gapbench.runs.plan import Item, Plan
from gapbench.runs.references import for_judge, held, of_item
from gapbench.runs.reflect import kept_images
from gapbench.runs.results import results
from gapbench.runs.run import FAILURES, Run
from gapbench.runs.settings import Part, Progress, Shard, silent
from gapbench.runs.stages import judge_images, note_served
from gapbench.runs.whole import joined, parts_of, stored_plan, whole
from gapbench.types import GapbenchError, Generation, Prompt, Refusal, Verdict, counted


def judge_run(
    run: str | Path,
    judges: Sequence[str],
    shard: Shard | None = None,
    out: Path | None = None,
    device: str = "auto",
    progress: Progress = silent,
    workers: int | Literal["all"] = 1,
    ray_address: str | None = None,
) -> Run:
    """Let outside judges (as `--judge` takes them) judge all images of a run (as `find_run` takes
    it) that are there, and keep the verdicts in its folder.

    With a `shard` those of its prompts, which are those of `gapbench run --shard`, in a run folder
    of its own under `out` (by default beside the run), which has all that the run has of these
    prompts. The run is then only read. `merge` joins the shards; with the run's folder, there.
    `workers` processes with a copy of each judge in turn, by Ray (at `ray_address`).
    The same call again judges what is missing. Raises GapbenchError, before anything is written,
    for judges that cannot judge the run's prompts, or a shard of a run that is a shard.
    """
    source = RunFolder.open(find_run(run))
    loaded = [load_judge(spec, device) for spec in judges]
    sources = [
        Source(judge, partial(load_judge, spec), device)
        for judge, spec in zip(loaded, judges, strict=True)
    ]
    if len({judge.name for judge in loaded}) < len(loaded):
        raise GapbenchError(f"--judge {','.join(judges)}: two of these are the same judge")
    if out is not None and shard is None:
        raise GapbenchError(
            f"--out {out} is for --shard; without it the verdicts go into {source.path}"
        )
    plan, meta = stored_plan(source), source.meta
    made = (meta["model"], meta["identity"], meta.get("model_about", {}).get("changed", {}))
    place = source.path
    if shard is not None:
        _check_shard(source, plan, shard)
        place = folder_for(source.path.parent if out is None else out, *made, shard)
        if (place / "run.json").exists():
            for part in parts_of(stored_plan(RunFolder.open(place))):
                plan = joined(plan, replace(part, shard=None))
    for part in parts_of(plan):
        plan = joined(plan, _asking(part, loaded))
    copied = next((each for each in sources if each.here.gpus is not None), sources[0])
    engine = make_engine(None, workers, ray_address, copied)
    for judge in loaded:
        bring_judge(judge)
    folder = source
    if shard is not None:
        parts = [replace(part, shard=shard) for part in parts_of(plan)]
        plan = replace(parts[-1], earlier=parts[:-1])
        about = {k: v for k, v in meta.items() if k not in ("format", "model", "identity")}
        folder = RunFolder.create(place.parent, *made[:2], about, made[2], shard)
    try:
        with folder.lock():
            pairs = [*zip(loaded, sources, strict=True)]
            return _work(source, folder, plan, engine, pairs, progress)
    finally:
        engine.close()


def _work(
    source: RunFolder,
    folder: RunFolder,
    plan: Plan,
    engine: Engine,
    judges: Sequence[tuple[Judge, Source]],
    progress: Progress,
) -> Run:
    """Ask judges about the images of a locked folder, which first takes what is the plan's of
    `source`, where that is another."""
    (folder.path / RESULTS).unlink(missing_ok=True)  # of what is no longer all
    folder.write("plan.json", with_checksum(asdict(plan)))
    run = Run(folder, whole(plan, Part()))
    if source is not folder:
        _take(source, folder, run.items)
    drawn = folder.generations()
    found = ((item, drawn.get((item.prompt.text, item.seed))) for item in run.items)
    there = [(item, generation.image) for item, generation in found if generation]
    failures: dict[str, Mapping[str, int]] = {}
    for judge, of in judges:
        asked = [(prompt, image) for item, image in there for prompt in item.asked(judge.name)]
        asked += kept_images(run.plan, folder, judge.name)
        listed, parted = for_judge(held(folder, run.items), judge.name)
        asked += listed
        parted += [(item.prompt, image) for item, image in there if judge.name in item.answers]
        stages: list[tuple[str, Judge, list[tuple[Prompt, str]]]]
        stages = [(f"verdicts of {judge.name}", judge, asked)]
        if parted:
            stages.append((f"answers of {judge.name}", PartsJudge(judge), parted))
        try:
            for stage, asking, pairs in stages:
                where = engine, of
                if failed := judge_images(
                    stage, asking, folder, pairs, "auto", progress, where=where
                ):
                    failures[stage] = failed
        finally:
            engine.release(of)
        note_served(folder, f"judge {judge.name}", judge)
    if failures or (folder.path / FAILURES).exists():
        folder.write(FAILURES, failures)
    folder.write(RESULTS, results(run))
    return run


def _check_shard(source: RunFolder, plan: Plan, shard: Shard) -> None:
    """Raises GapbenchError for a shard of a run that is one, or of more than there are prompts."""
    if there := plan.shard:
        raise GapbenchError(
            f"{source.path} is shard {there} of a run; judge it without --shard, or join all its "
            "shards with `gapbench merge` first"
        )
    texts = len({prompt.text for part in parts_of(plan) for prompt in part.prompts})
    if shard.of > texts:
        raise GapbenchError(
            f"--shard {shard}: there are only {counted(texts, 'prompt')}, so take fewer shards"
        )


def _asking(part: Plan, judges: Sequence[Judge]) -> Plan:
    """A plan that also asks these judges about all its images, and about its mismatched pairs
    those that can answer."""
    every = [*part.prompts, *part.others]
    asks, partner_asks = [], []
    pairs = part.partner_asks or [{} for _ in part.prompts]
    rows = zip(part.prompts, part.partner, part.asks, pairs, strict=True)
    for prompt, place, asked, of_pair in rows:
        asks.append({**asked, **{judge.name: judge.question(prompt) for judge in judges}})
        able = [judge for judge in judges if judge.any_prompt and place is not None]
        partner_asks.append(
            {**of_pair, **{judge.name: judge.question(every[place or 0]) for judge in able}}
        )
    by_parts = [j.name for j in judges if j.by_parts and part.own == NAMES["questions"]]
    thresholds = {j.name: j.threshold for j in judges if j.threshold is not None}
    return replace(
        part,
        asks=asks,
        partner_asks=partner_asks,
        by_parts=list(dict.fromkeys([*part.by_parts, *by_parts])),
        unpinned=list(dict.fromkeys([*part.unpinned, *(j.unpinned for j in judges if j.unpinned)])),
        judges={**part.judges, **{judge.name: judge.fingerprint for judge in judges}},
        scales={**part.scales, **{judge.name: judge.scale for judge in judges}},
        thresholds={**part.thresholds, **thresholds},
    )


def _take(source: RunFolder, folder: RunFolder, items: Sequence[Item]) -> None:
    """Let a folder have what another has of the prompts of some items: images by links, their
    verdicts, labels of people."""
    texts = {item.prompt.text for item in items}
    if source.packed:
        folder.pack()
    add(folder, [source], Generation, lambda generation: generation.prompt in texts)
    add(folder, [source], Refusal, lambda refusal: refusal.prompt in texts)
    references = {sha256 for item in items for _, sha256 in of_item(item)}
    folder.take_images(source, references)
    images = references | {generation.image for generation in folder.each(Generation)}
    add(folder, [source], Verdict, lambda verdict: verdict.image in images)
    add_labels(folder, [source])
    for name in ("checks.json", "served.json"):
        if (source.path / name).exists() and not (folder.path / name).exists():
            folder.write(name, source.read(name))
