"""Tasks: a folder with task.yaml, read into Prompts."""

from __future__ import annotations

import hashlib
import importlib
import json
import unicodedata
from collections.abc import Iterable, Mapping
from functools import cached_property
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gapbench.types import TIERS, GapbenchError, Prompt, Tier

LONGEST: Final = 10_000
"""Characters a prompt may have; the benchmarks' longest has under 2,000."""


class Split(BaseModel):
    """What a split must be: `sha256` is of its records as JSON lines."""

    model_config = ConfigDict(extra="forbid")
    prompts: int = Field(gt=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class TaskFile(BaseModel):
    """task.yaml. Prompts come from `generator` (a module of gapbench.prompts) or from `file`."""

    model_config = ConfigDict(extra="forbid")
    title: str
    version: str
    license: str = "unknown"
    generator: str | None = Field(default=None, pattern="^[a-z][a-z0-9_]*$")
    file: str | None = None
    samples: int = Field(default=4, gt=0)
    judge: str | None = None
    splits: dict[str, Split] = {}
    tiers: dict[Tier, list[str]]
    question: str


class Task:
    """A named list of prompts with tiers, a verdict question and a judge."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.spec = _read_spec(folder / "task.yaml")
        self.version = self.spec.version
        self.samples = self.spec.samples
        self.judge = self.spec.judge

    @cached_property
    def tier_of(self) -> dict[str, Tier]:
        """Category -> tier, in the order of task.yaml."""
        return {c: tier for tier in TIERS for c in self.spec.tiers.get(tier, ())}

    def prompts(self, split: str = "test") -> list[Prompt]:
        """All prompts of a split, in order.

        Raises GapbenchError where the split does not exist, a record is broken, or the prompts
        are not the ones task.yaml names by digest.
        """
        if self.spec.splits and split not in self.spec.splits:
            raise GapbenchError(
                f"task {self.name}: no split {split!r}; it has {', '.join(self.spec.splits)}"
            )
        records, where = self._records(split)
        if self.spec.splits:
            self._check_digest(split, records)
        return self._prompts(records, where)

    def _records(self, split: str) -> tuple[list[Any], list[str]]:
        if self.spec.generator:
            try:
                module = importlib.import_module(f"gapbench.prompts.{self.spec.generator}")
            except ModuleNotFoundError as error:
                raise GapbenchError(
                    f"{self.folder / 'task.yaml'}: no generator {self.spec.generator!r} in "
                    "gapbench.prompts; a task of your own lists its prompts with `file:`"
                ) from error
            records = list(module.make(split))
            return records, [f"task {self.name}, prompt {i + 1}" for i in range(len(records))]
        if self.spec.file is None:
            raise GapbenchError(f"{self.folder / 'task.yaml'}: needs `file:` or `generator:`")
        return self._read_file(self.folder / self.spec.file)

    def _read_file(self, file: Path) -> tuple[list[Any], list[str]]:
        if not file.resolve().is_relative_to(self.folder.resolve()):
            raise GapbenchError(f"{self.folder / 'task.yaml'}: file {file} is outside the task")
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise GapbenchError(f"{file}: cannot be read as UTF-8 text ({error})") from error
        records, where = [], []
        for number, line in enumerate(lines, 1):
            place = f"{file}:{number}"
            if file.suffix == ".jsonl":
                try:
                    record = json.loads(line)
                except ValueError as error:
                    raise GapbenchError(f"{place}: not a line of JSON ({error})") from error
            else:
                record = {"text": line}
            if not isinstance(record, dict):
                raise GapbenchError(
                    f"{place}: a prompt is an object with `text`, not {line[:40]!r}"
                )
            record.setdefault("id", f"{number:05d}")
            record.setdefault("category", next(iter(self.tier_of), None))
            records.append(record)
            where.append(place)
        return records, where

    def _check_digest(self, split: str, records: list[Any]) -> None:
        lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records)
        digest, wanted = hashlib.sha256(lines.encode()).hexdigest(), self.spec.splits[split]
        if (len(records), digest) != (wanted.prompts, wanted.sha256):
            raise GapbenchError(
                f"task {self.name}: the {split} split has {len(records)} prompts with sha256 "
                f"{digest}, task.yaml names {wanted.prompts} with {wanted.sha256}; changed prompts "
                "need a new version"
            )

    def _prompts(self, records: list[Any], where: list[str]) -> list[Prompt]:
        if not records:
            raise GapbenchError(f"task {self.name}: {self.spec.file} holds no prompts")
        prompts, seen = [], dict[str, str]()
        for record, place in zip(records, where, strict=True):
            self._check(record, place)
            if record["id"] in seen:
                raise GapbenchError(
                    f"{place}: id {record['id']!r} is already at {seen[record['id']]}; "
                    "ids must differ"
                )
            seen[record["id"]] = place
            prompts.append(
                Prompt(
                    id=record["id"],
                    task=self.name,
                    category=record["category"],
                    tier=self.tier_of[record["category"]],
                    text=record["text"],
                    # Not str.format: the question's "{your score}" is literal.
                    question=self.spec.question.replace("{prompt}", record["text"]),
                    requirement=record.get("requirement", {}),
                )
            )
        return prompts

    def _check(self, record: Mapping[str, Any], place: str) -> None:
        unknown = set(record) - {"id", "category", "text", "requirement"}
        if unknown:
            raise GapbenchError(f"{place}: unknown key {sorted(unknown)[0]!r}")
        text = record.get("text")
        if not isinstance(text, str) or not text.strip():
            raise GapbenchError(f"{place}: the prompt is empty; every prompt needs a text")
        if len(text) > LONGEST:
            raise GapbenchError(
                f"{place}: the prompt has {len(text):,} characters, more than {LONGEST:,}"
            )
        for letter in text:
            if unicodedata.category(letter) in {"Cc", "Cs"}:
                raise GapbenchError(
                    f"{place}: the prompt holds the control character {letter!r}; remove it"
                )
        if not isinstance(record["id"], str) or not record["id"]:
            raise GapbenchError(f"{place}: the id {record['id']!r} is not a text")
        if record["category"] not in self.tier_of:
            raise GapbenchError(
                f"{place}: category {record['category']!r} is not in task.yaml, which has "
                f"{', '.join(self.tier_of)}"
            )
        if not isinstance(record.get("requirement", {}), dict):
            raise GapbenchError(f"{place}: the requirement is not an object")


def _read_spec(file: Path) -> TaskFile:
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise GapbenchError(f"{file}: cannot be read; a task is a folder with task.yaml") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise GapbenchError(f"{file}: not YAML ({' '.join(str(error).split())})") from error
    try:
        spec = TaskFile.model_validate(raw)
    except ValidationError as error:
        raise GapbenchError(f"{file}: {explain(error)}") from error
    if "{prompt}" not in spec.question:
        raise GapbenchError(f"{file}: question does not contain {{prompt}}")
    categories = [c for names in spec.tiers.values() for c in names]
    twice = {c for c in categories if categories.count(c) > 1}
    if twice:
        raise GapbenchError(f"{file}: category {sorted(twice)[0]!r} is listed twice")
    return spec


def explain(error: ValidationError) -> str:
    """A pydantic error in one line: the first culprit and what is wrong with it."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        return f"unknown key {where!r}"
    return f"{where}: {first['msg']}" if where else str(first["msg"])


def _shipped() -> Path:
    """The tasks/ folder: inside the wheel, or beside the package in a checkout."""
    inside = Path(__file__).parent / "_tasks"
    return inside if inside.exists() else Path(__file__).parent.parent / "tasks"


def task_folders() -> dict[str, Path]:
    """Name -> folder of every installed task, third parties' (group gapbench.tasks) last."""
    found = {file.parent.name: file.parent for file in sorted(_shipped().glob("*/task.yaml"))}
    for entry in entry_points(group="gapbench.tasks"):
        found.setdefault(entry.name, Path(entry.load()))
    return found


def load_task(name: str) -> Task:
    """A task by its name or by the path of its folder.

    Raises GapbenchError where there is none, naming those there are.
    """
    folders = task_folders()
    if name in folders:
        return Task(name, folders[name])
    path = Path(name)
    if (path / "task.yaml").is_file():
        return Task(path.resolve().name, path)
    raise GapbenchError(
        f"no task {name!r}; installed: {', '.join(folders)} (or give a folder that holds task.yaml)"
    )


def select(selections: Iterable[str]) -> list[tuple[Task, list[Prompt]]]:
    """Tasks with the prompts that selections name: `all`, a tier, a task, or task/category.

    Raises GapbenchError for a name that selects nothing.
    """
    chosen: dict[str, tuple[Task, set[str]]] = {}

    def add(task: Task, categories: Iterable[str]) -> None:
        chosen.setdefault(task.name, (task, set()))[1].update(categories)

    for selection in selections:
        if selection == "all" or selection in TIERS:
            for name in task_folders():
                task = load_task(name)
                add(task, (c for c, t in task.tier_of.items() if selection in ("all", t)))
            continue
        name, _, category = selection.rpartition("/")
        if name in task_folders() or (Path(name) / "task.yaml").is_file():
            task = load_task(name)
            if category not in task.tier_of:
                raise GapbenchError(
                    f"task {task.name} has no category {category!r}; it has "
                    f"{', '.join(task.tier_of)}"
                )
            add(task, [category])
        else:
            task = load_task(selection)
            add(task, task.tier_of)
    found = [
        (task, [p for p in task.prompts() if p.category in categories])
        for task, categories in chosen.values()
        if categories
    ]
    if not found:
        raise GapbenchError("no tasks selected; see `gapbench tasks`")
    return found
