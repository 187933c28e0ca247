"""Whether a model got worse elsewhere: the models of two runs on lm-eval's tasks, question by
question."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np

from gapbench.lmeval import harness
from gapbench.metrics.paired import Change, scored
from gapbench.models.base import Model
from gapbench.runs.about import model_of
from gapbench.runs.run import Run
from gapbench.types import GapbenchError

FOLDER: Final = "lm-eval"
"""Of a run: what lm-eval wrote about its model, a folder for each task."""

Question = tuple[int, str]
"""Its number in the task, and a digest of what was asked: lm-eval's doc_hash of a question with
pictures holds their addresses in memory."""


@dataclass(frozen=True, slots=True)
class Sheet:
    """lm-eval's results of a model on a task, and its scores ("metric,filter") by leaf task."""

    folder: Path
    results: dict[str, Any]
    scores: dict[str, dict[str, dict[Question, object]]]


def regressions(
    before: Run, after: Run, tasks: Sequence[str], models: Sequence[str], limit: int | None
) -> tuple[list[Change], list[str]]:
    """What changed on lm-eval's tasks: a figure for each task (or group with a mean of its own) and
    metric, and notes about metrics that cannot be tested.

    Both models are evaluated where their run folders do not hold the results yet: those depend on
    the weights, the task, `limit` and the versions of lm-eval and gapbench. `models` says where a
    model is that was moved. Raises GapbenchError as `harness.evaluate` does, and where the two were
    asked different questions.
    """
    old, new = (_sheets(run, tasks, models, limit) for run in (before, after))
    changes: list[Change] = []
    notes: list[str] = []
    for task, one, two in zip(tasks, old, new, strict=True):
        for name, leaves in _figures(task, one):
            for key in _keys(one, name):
                change = _change(name, key, leaves, one, two)
                if change is None:
                    notes.append(
                        f"lm-eval {name}: {_told(key)} is no mean over questions of scores from 0 "
                        "to 1, so it is not compared"
                    )
                else:
                    changes.append(change)
    return changes, notes


def _sheets(
    run: Run, tasks: Sequence[str], models: Sequence[str], limit: int | None
) -> list[Sheet]:
    about = run.folder.meta.get("model_about", {})
    versions = [version("lm-eval"), version("gapbench")]
    model: Model | None = None
    sheets = []
    for task in tasks:
        key = json.dumps([about.get("fingerprint"), task, limit, *versions])
        name = re.sub(r"\W+", "_", task)[:60] + "-" + hashlib.sha256(key.encode()).hexdigest()[:12]
        folder = run.path / FOLDER / name
        if not folder.exists():
            model = model or model_of(run, models, "answer lm-eval's questions")
            with run.folder.lock():
                part = folder.with_name(f".{name}")
                shutil.rmtree(part, ignore_errors=True)
                harness.evaluate(model, str(about.get("given") or model.name), [task], part, limit)
                part.rename(folder)
        sheets.append(_read(folder))
    return sheets


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
            f"{folder}: lm-eval's results cannot be read ({type(error).__name__}); remove the "
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
    """(name, leaf tasks) of what lm-eval gives a figure for: a group with a mean, or each leaf."""
    leaves = list(sheet.scores)
    if task in sheet.results.get("groups", {}):
        return [(task, leaves)]
    return [(leaf, [leaf]) for leaf in leaves]


def _keys(sheet: Sheet, name: str) -> list[str]:
    figures = sheet.results["results"][name]
    return [key for key in figures if "," in key and "_stderr," not in key]


def _change(name: str, key: str, leaves: list[str], one: Sheet, two: Sheet) -> Change | None:
    """None where lm-eval's figure is not the mean of scores from 0 to 1, over questions or leaf
    tasks."""
    parts: list[tuple[list[object], list[object]]] = []
    for leaf in leaves:
        old, new = (sheet.scores[leaf].get(key, {}) for sheet in (one, two))
        if old.keys() != new.keys():
            raise GapbenchError(
                f"lm-eval {name}: the two models were asked different questions; remove "
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
