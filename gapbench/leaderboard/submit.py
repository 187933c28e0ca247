"""A submission out of a run folder."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from gapbench.files import part_of, read_object, sweep, write_atomic
from gapbench.judges.own import NAMES
from gapbench.leaderboard.answers import answers_of
from gapbench.leaderboard.expected import Installed, rows_of, said_in, told_by
from gapbench.leaderboard.submission import (
    MISMATCHED,
    SEED,
    Card,
    Origin,
    Training,
    contents,
    name_of,
)
from gapbench.leaderboard.verify import TEST_MODELS, check
from gapbench.models import load_model
from gapbench.models.checkpoint import FIX_RECORD
from gapbench.models.registry import MODELS
from gapbench.runs.run import Run
from gapbench.tasks.spec import explain
from gapbench.types import GapbenchError, counted

_CHECKPOINT: Final = re.compile(r"([\w.-]+/[\w.-]+)@([0-9a-f]{40})", re.ASCII)


def submit(
    run: Run,
    results: Path = Path("results"),
    contact: str = "",
    checkpoint: str | None = None,
    test_model: bool = False,
    name: str | None = None,
    say: Callable[[str], None] = lambda _line: None,
) -> Path:
    """Write results/<name>/ for a run, whole or not at all. Returns the folder. The name is the
    model's unless one is given.

    `checkpoint`, REPO@COMMIT, is where others find weights that were given as a folder;
    `test_model` puts the submission into the leaderboard's section for test models, which asks for
    no checkpoint; `say` is told in a line whether answers to questions are in it, or why not.
    Raises GapbenchError for a run that is not complete, was not drawn with seed 0, holds other task
    versions than are installed, or whose checkpoint nothing pins; and where the folder is there
    already.
    """
    meta, plan = run.folder.meta, run.plan
    name = name_of(name or str(meta["model"]))
    place = results / name
    if place.exists():
        raise GapbenchError(f"{place} is there already; remove it to submit {name} anew")
    if plan.shard:
        raise GapbenchError(
            f"{run.path} is shard {plan.shard} of a run; join all shards with `gapbench merge` "
            "and submit the run that it writes"
        )
    if not plan.own:
        raise GapbenchError(
            f"{run.path} has no own verdicts; run the same command without --verdict none"
        )
    if plan.own == NAMES["questions"]:
        raise GapbenchError(
            f"{run.path} has own verdicts by questions, and a leaderboard ranks those of one "
            "question; run the same command with --verdict logits or text"
        )
    if plan.seed != SEED:
        raise GapbenchError(
            f"{run.path} was drawn with seed {plan.seed}; a leaderboard takes seed {SEED}, so that "
            "nobody picks a lucky one"
        )
    if plan.mismatched != MISMATCHED:
        raise GapbenchError(
            f"{run.path} has other mismatched pairs than a leaderboard takes; run the same command "
            f"again with --mismatched {MISMATCHED}"
        )
    installed = Installed()
    _check_tasks(run, installed)
    tasks = {task: installed.card(task, plan.samples[task]) for task in plan.tasks}
    judges = {judge for task in tasks.values() for judge in task.judges.values()}
    for judge in judges - set(plan.judges):
        raise GapbenchError(
            f"{run.path} has no verdicts of {judge}, which ranks its task; run with --judge "
            f"{','.join([judge, *plan.judges])}"
        )
    try:
        card = Card(
            name=name,
            checkpoints=_origins(run, checkpoint, test_model),
            test_model=test_model,
            tasks=tasks,
            contact=contact,
            files={},
            training=_training(str(meta.get("model_about", {}).get("given", ""))),
            **told_by(run, tasks),
        )
    except ValidationError as error:
        raise GapbenchError(f"{run.path} makes no card: {explain(error)}") from error
    rows = list(rows_of(run, card, installed))
    asked = _answers(run, card, installed, say)
    files = contents(card.model_dump(exclude={"files"}), rows, asked)
    part = part_of(results / f".{name}")
    try:
        sweep(results.glob(".*.part"))
        part.mkdir(parents=True)
        for file, data in files.items():
            write_atomic(part / file, data)
        faults = check(part, name, installed)
        if faults:
            fault = faults[0].removeprefix(f"{part}: ")
            raise GapbenchError(f"{run.path} cannot be submitted: {fault}")
        part.rename(place)
    except OSError as error:
        raise GapbenchError(f"{place} cannot be written ({error}); nothing was") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return place


def _answers(
    run: Run, card: Card, installed: Installed, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """The answers to questions of those tasks whose images all have them; says why others are left
    out."""
    rows, lacking = list[dict[str, Any]](), dict[str, list[str]]()
    for task in card.tasks:
        try:
            rows += answers_of(run, card, installed, task)
        except GapbenchError as why:
            lacking.setdefault(str(why), []).append(task)
    if tasks := [*dict.fromkeys(row["task"] for row in rows)]:
        count = counted(len(rows) // 2, "image")
        say(f"Answers to questions about {count} of {', '.join(tasks)} are in it.")
    for reason, tasks in lacking.items():
        say(f"No answers to questions about images of {', '.join(tasks)} are in it: {reason}.")
    return rows


def _check_tasks(run: Run, installed: Installed) -> None:
    """The run's tasks are the installed ones, and whole."""
    for name, version in run.plan.tasks.items():
        task = installed.task(name)
        if task.version != version:
            raise GapbenchError(
                f"{run.path} ran task {name} {version}, installed is {task.version}; run it again"
            )
        planned = {p.id: said_in(p) for p in run.plan.prompts if p.task == name}
        prompts = {p.id: said_in(p) for p in task.prompts()}
        missing = len(prompts.keys() - planned.keys())
        if missing:
            raise GapbenchError(
                f"{run.path} is not complete: it lacks {missing} of the {len(prompts)} prompts of "
                f"task {name}; run with --tasks {name} and without --limit, or submit others with "
                "--tasks"
            )
        if planned != prompts:
            raise GapbenchError(f"{run.path}: its prompts are not those of task {name} {version}")
        if run.plan.samples[name] < task.samples:
            raise GapbenchError(
                f"{run.path} is not complete: {counted(run.plan.samples[name], 'image')} a prompt, "
                f"task {name} has {task.samples}; run without --samples"
            )


def _origins(run: Run, checkpoint: str | None, test_model: bool) -> list[Origin]:
    """Where others can download the run's weights, pinned."""
    name, meta = str(run.folder.meta["model"]), run.folder.meta
    fingerprint = meta["identity"]["model"]
    if checkpoint is not None:
        matched = _CHECKPOINT.fullmatch(checkpoint)
        if matched is None:
            raise GapbenchError(
                f"--checkpoint {checkpoint}: give OWNER/NAME@COMMIT, the commit in 40 hex digits"
            )
        return [Origin(role="model", repo=matched[1], revision=matched[2])]
    entry = MODELS.get(name)
    if entry is not None:
        # A folder may be named like a model; only its weights tell.
        about = meta.get("model_about", {})
        device = str(about.get("device") or "auto")
        model = load_model(name, device, about.get("dtype") or "auto")
        if model.fingerprint != fingerprint:
            raise GapbenchError(
                f"{run.path} was drawn by other weights than those of {name} here (an older "
                "release, or a folder of that name); run again"
            )
        if name in TEST_MODELS and not test_model:
            raise GapbenchError(
                f"{name} is a test model; --allow-test-model enters it in a section of its own"
            )
        if entry.folder is not None:
            return [Origin(role="model", repo="gapbench", revision=entry.sha256)]
        return [_commit(name, role) for role in entry.needs]
    if test_model:
        return []
    raise GapbenchError(
        f"model {name}: nothing pins its weights; publish them and name the commit with "
        "--checkpoint OWNER/NAME@COMMIT, or enter a test model with --allow-test-model"
    )


def _training(given: str) -> Training | None:
    """What the model in a folder was trained on, where its fix.json tells."""
    file = Path(given) / FIX_RECORD
    if not given or not file.is_file():
        return None
    record = read_object(file)
    settings = record["settings"]
    return Training(
        base=str(settings["model"]),
        method=settings["method"],
        prompts=settings["prompts"],
        leaks=record.get("leaks"),
    )


def _commit(name: str, role: str) -> Origin:
    from gapbench.fetch.hub import cached

    need = MODELS[name].needs[role]
    folder = cached(need)
    revision = folder.name if folder else need.revision
    if not re.fullmatch("[0-9a-f]{40}", revision):
        raise GapbenchError(
            f"model {name}: its {role} checkpoint {need.repo} is not pinned, and not here to tell "
            f"its commit; run `gapbench prepare --model {name}` and submit again"
        )
    return Origin(role=role, repo=need.repo, revision=revision)
