"""The runs of a folder, and a run by a short name."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field
from pydantic.dataclasses import dataclass

from gapbench.files import read_object
from gapbench.runs.folder import RunFolder
from gapbench.runs.settings import Part
from gapbench.runs.whole import stored_plan, whole
from gapbench.tasks.spec import explain
from gapbench.types import PERCENT, GapbenchError

RESULTS: Final = "results.json"
RUNS: Final = "runs"
LAST: Final = "@last"


class _Drawn(BaseModel, strict=True):
    effective: int


class _Results(BaseModel, strict=True):
    """What the list takes from results.json."""

    drawn: dict[str, _Drawn] = Field(alias="n-samples")
    groups: dict[str, dict[str, Any]]
    finished: bool


@dataclass(
    frozen=True, slots=True, kw_only=True, config=ConfigDict(strict=True, allow_inf_nan=False)
)
class Listed:
    """A run in a list. The overall figures are those of its results.json, by the first judge, and
    `unit` is that of generation. Without such a file (the run was stopped, or is older) they are
    None, and so is `finished` where all images are there."""

    run: str
    model: str
    changed: dict[str, Any]
    shard: str | None
    seed: int
    tasks: list[str]
    images: int
    planned: int
    finished: bool | None
    generation: float | None
    unit: str
    non_unification: float | None
    date: str | None


def runs_in(folder: Path) -> tuple[list[Listed], list[str]]:
    """The runs of a folder, the latest first, and what is wrong with those whose files are broken.
    Reads no verdicts."""
    listed, broken = list[Listed](), list[str]()
    for path in reversed(_paths(folder)):
        try:
            listed.append(_listed(path))
        except GapbenchError as error:
            broken.append(str(error))
    return listed, broken


def find_run(given: str | Path) -> Path:
    """A run folder: a path, or in runs/ a model's name (its latest run), the start of a folder's
    name, or @last. Raises GapbenchError where several start so."""
    name, paths = str(given), _paths(Path(RUNS))
    if (Path(given) / "run.json").exists() or not paths:  # a checkpoint may have its run's name
        return Path(given)
    of_model = [path for path in paths if _model(path) == name]
    if name == LAST or of_model:
        return (of_model or paths)[-1]
    starting = [path for path in paths if path.name.startswith(name)]
    if len(starting) > 1:
        there = ", ".join(path.name for path in starting)
        raise GapbenchError(f"{name}: several runs start so: {there}; give more of the name")
    return starting[0] if starting else Path(given)


def run_of(fingerprint: str) -> Path | None:
    """The latest run in runs/ of the model with this fingerprint; None without one."""
    for path in reversed(_paths(Path(RUNS))):
        try:
            if RunFolder.open(path).meta["identity"].get("model") == fingerprint:
                return path
        except GapbenchError:
            continue
    return None


def _paths(folder: Path) -> list[Path]:
    """Run folders, the one with the latest command last."""
    plans = folder.glob("*/plan.json")
    return [plan.parent for plan in sorted(plans, key=lambda plan: plan.stat().st_mtime_ns)]


def _model(path: Path) -> str | None:
    """A run's model; None where its files are broken."""
    try:
        return str(RunFolder.open(path).meta["model"])
    except GapbenchError:
        return None


def _listed(path: Path) -> Listed:
    folder, file = RunFolder.open(path), path / RESULTS
    plan = whole(stored_plan(folder), Part())
    judge, items = next(iter(plan.judges), "none"), plan.items()
    asked = len(items)
    raw = read_object(file) if file.exists() else None
    try:
        known = None if raw is None else _Results.model_validate(raw)
        if known:
            images = sum(each.effective for each in known.drawn.values())
        else:
            drawn = folder.generations()
            images = sum((item.prompt.text, item.seed) in drawn for item in items)
        overall = known.groups.get("overall", {}) if known else {}
        return Listed(
            run=path.name,
            model=folder.meta["model"],
            changed=folder.meta.get("model_about", {}).get("changed", {}),
            shard=str(plan.shard) if plan.shard else None,
            seed=plan.seed,
            tasks=list(plan.tasks),
            images=images,
            planned=asked,
            finished=known.finished if known else None if images >= asked else False,
            generation=overall.get(f"generation,{judge}"),
            unit=overall.get(f"generation_unit,{judge}", PERCENT),
            non_unification=overall.get(f"non_unification,{judge}"),
            date=folder.meta.get("started"),
        )
    except ValueError as error:
        raise GapbenchError(
            f"{file}: broken ({explain(error)}); the same run command again writes it"
        ) from error
