"""Whether a model got worse elsewhere: the models of two runs on tasks of lm-eval and lmms-eval,
question by question."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gapbench.files import digest
from gapbench.metrics.paired import Change, scored
from gapbench.models.base import Model
from gapbench.runs.about import model_of
from gapbench.runs.run import Run
from gapbench.types import GapbenchError

Harness = Literal["lm-eval", "lmms-eval"]
"""The name is also that of a run's folder with what it wrote, a folder for each task."""

Question = tuple[int, str]
"""Its number in the task, and a digest of what was asked: lm-eval's doc_hash of a question with
pictures holds their addresses in memory."""


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Tasks of a harness, `limit` questions of each; `include` is a folder of further tasks."""

    harness: Harness
    tasks: Sequence[str]
    limit: int | None = None
    include: Path | None = None


@dataclass(frozen=True, slots=True)
class Sheet:
    """A harness's results of a model on a task, and its scores ("metric,filter") by leaf task."""

    folder: Path
    results: dict[str, Any]
    scores: dict[str, dict[str, dict[Question, object]]]


def regressions(
    before: Run, after: Run, elsewhere: Elsewhere, models: Sequence[str]
) -> tuple[list[Change], list[str]]:
    """What changed on a harness's tasks: a figure for each task (or group with a mean of its own)
    and metric, and notes about metrics that cannot be tested.

    Both models are evaluated where their run folders do not hold the results yet: those depend on
    the weights, the task, `limit`, the tasks in `include` and the versions of the harness and of
    gapbench. `models` says
    where a model is that was moved. Raises GapbenchError as the harness's `evaluate` does, and
    where the two were asked different questions.
    """
    old, new = (_sheets(run, elsewhere, models) for run in (before, after))
    changes: list[Change] = []
    notes: list[str] = []
    for task, one, two in zip(elsewhere.tasks, old, new, strict=True):
        for name, leaves in _figures(task, one):
            for key in _keys(one, name):
                change = _change(elsewhere.harness, name, key, leaves, one, two)
                if change is None:
                    notes.append(
                        f"{elsewhere.harness} {name}: {_told(key)} is no mean over questions of "
                        "scores from 0 to 1, so it is not compared"
                    )
                else:
                    changes.append(change)
    return changes, notes


def _sheets(run: Run, elsewhere: Elsewhere, models: Sequence[str]) -> list[Sheet]:
    about = run.folder.meta.get("model_about", {})
    versions = [_version(elsewhere.harness), version("gapbench")]
    own = [] if elsewhere.include is None else [_digest(elsewhere.include)]
    model: Model | None = None
    sheets = []
    for task in elsewhere.tasks:
        key = json.dumps([about.get("fingerprint"), task, elsewhere.limit, *versions, *own])
        name = re.sub(r"\W+", "_", task)[:60] + "-" + hashlib.sha256(key.encode()).hexdigest()[:12]
        folder = run.path / elsewhere.harness / name
        if not folder.exists():
            model = model or model_of(run, models, f"answer {elsewhere.harness}'s questions")
            with run.folder.lock():
                part = folder.with_name(f".{name}")
                for results in part.glob("*/"):  # but not what is kept of the answers
                    shutil.rmtree(results)
                given = str(about.get("given") or model.name)
                _evaluate(elsewhere, model, given, task, part)
                part.rename(folder)
        sheets.append(_read(folder))
    return sheets


def _digest(include: Path) -> str:
    """Of the tasks in a folder: their settings and code."""
    files = (file for kind in ("*.yaml", "*.py") for file in include.rglob(kind))
    return digest("", sorted(files), include)


def _version(harness: Harness) -> str:
    try:
        return version(harness)
    except PackageNotFoundError:
        return ""  # what evaluates says what to install


def _evaluate(elsewhere: Elsewhere, model: Model, given: str, task: str, out: Path) -> None:
    if elsewhere.harness == "lm-eval":
        from gapbench.lmeval import harness

        limit, include = elsewhere.limit, elsewhere.include
        harness.evaluate(model, given, [task], out, limit, include=include)
    else:
        from gapbench.lmeval import lmms

        lmms.evaluate(model, [task], out, elsewhere.limit, elsewhere.include)


def _read(folder: Path) -> Sheet:
    try:
        (file,) = folder.glob("*/results_*.json")
        results = json.loads(file.read_text(encoding="utf-8"))
        scores = {
            leaf: _scores(file.with_name(f"samples_{leaf}_{file.stem.partition('_')[2]}.jsonl"))
            for leaf in results["configs"]
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GapbenchError(
            f"{folder}: these results cannot be read ({type(error).__name__}); remove the "
            "folder to evaluate again"
        ) from error
    return Sheet(folder, results, scores)


def _scores(file: Path) -> dict[str, dict[Question, object]]:
    scores: dict[str, dict[Question, object]] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        sample = json.loads(line)
        asked = json.dumps([sample["doc"], sample["target"]], sort_keys=True)
        question = (int(sample["doc_id"]), hashlib.sha256(asked.encode()).hexdigest())
        for metric in sample["metrics"]:
            scores.setdefault(f"{metric},{sample['filter']}", {})[question] = sample[metric]
    return scores


def _figures(task: str, sheet: Sheet) -> list[tuple[str, list[str]]]:
    """(name, leaf tasks) of what has a figure: a group with a mean of its own, or each leaf."""
    leaves = list(sheet.scores)
    if task in sheet.results.get("groups", {}):
        return [(task, leaves)]
    return [(leaf, [leaf]) for leaf in leaves]


def _keys(sheet: Sheet, name: str) -> list[str]:
    figures = sheet.results["results"][name]
    return [key for key in figures if "," in key and "_stderr," not in key]


def _change(
    harness: Harness, name: str, key: str, leaves: list[str], one: Sheet, two: Sheet
) -> Change | None:
    """None where the harness's figure is not the mean of scores from 0 to 1, over questions or leaf
    tasks."""
    parts: list[tuple[list[object], list[object]]] = []
    for leaf in leaves:
        old, new = (sheet.scores[leaf].get(key, {}) for sheet in (one, two))
        if old.keys() != new.keys():
            raise GapbenchError(
                f"{harness} {name}: the two models were asked different questions; remove "
                f"{one.folder} and {two.folder} to evaluate both again"
            )
        parts.append(([old[q] for q in old], [new[q] for q in old]))
    sides = [[part[side] for part in parts] for side in (0, 1)]
    if not all(
        isinstance(v, (bool, int, float)) and 0 <= v <= 1 for s in sides for p in s for v in p
    ):
        return None
    metric = key.partition(",")[0]
    lower = not one.results["higher_is_better"].get(name, {}).get(metric, True)
    for strata in (sides, [[[v for part in side for v in part]] for side in sides]):
        arrays = [[np.array(part, dtype=np.float64) for part in side] for side in strata]
        told = [float(sheet.results["results"][name][key]) for sheet in (one, two)]
        means = [float(np.mean([part.mean() for part in side])) for side in arrays]
        if np.allclose(told, means, rtol=0, atol=1e-6):
            return scored(f"{name}: {_told(key)}", arrays[0], arrays[1], lower)
    return None


def _told(key: str) -> str:
    metric, _, kind = key.partition(",")
    return metric if kind == "none" else f"{metric} ({kind})"
