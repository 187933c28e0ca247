"""Tasks: a folder with task.yaml, read into Prompts."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from functools import cached_property
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gapbench.fetch import Source, cached
from gapbench.records import Placed, mapped, read
from gapbench.types import TIERS, GapbenchError, Prompt, Tier

LONGEST: Final = 10_000
"""Characters a prompt may have; the benchmarks' longest has under 2,000."""
QUESTION: Final = (
    "You are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using natural "
    "language. Does this original image describe {prompt}? If it describes the scene, score 1; if "
    "it does not fully describe, score 0. Please answer in the following format: The score is "
    "{your score}."
)
"""The paper's verdict question (section 1), word for word; "{your score}" is literal."""
_CATEGORY: Final = re.compile(r"[\w-]{1,80}", re.ASCII)


class Split(BaseModel):
    """What a split must be: `sha256` is of its records as JSON lines."""

    model_config = ConfigDict(extra="forbid")
    prompts: int = Field(gt=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Download(BaseModel):
    """A file of prompts that is fetched, not shipped; `category` where all of it is of one."""

    model_config = ConfigDict(extra="forbid")
    path: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int = Field(gt=0)
    category: str | None = None
    split: str = "test"


class TaskFile(BaseModel):
    """task.yaml. Prompts come from `generator`, a module of gapbench.prompts, from `file`, beside
    task.yaml, or from `downloads`, paths under the address `base`, which pins a commit.

    `fields` maps text, id, category and requirement to the columns of somebody else's records.
    `variants` are further versions of the task: keys that replace its own, downloads those of
    their category and split.
    """

    model_config = ConfigDict(extra="forbid")
    title: str
    version: str
    license: str = "unknown"
    generator: str | None = Field(default=None, pattern="^[a-z][a-z0-9_]*$")
    file: str | None = None
    base: str = ""
    downloads: list[Download] = []
    fields: dict[str, str | list[str]] = {}
    samples: int = Field(default=4, gt=0)
    judge: str | None = None
    judges: dict[str, str] = {}
    splits: dict[str, Split] = {}
    tiers: dict[Tier, list[str]]
    question: str = QUESTION
    variants: dict[str, dict[str, Any]] = {}


class Task:
    """A named list of prompts with tiers, a verdict question and a judge."""

    def __init__(self, name: str, folder: Path, variant: str = "", split: str = "test") -> None:
        self.name = name + f"@{variant}" * bool(variant) + f":{split}" * (split != "test")
        self.folder, self.split = folder, split
        self.spec = _read_spec(folder / "task.yaml", variant)
        self.version = self.spec.version
        self.samples = self.spec.samples

    def judge(self, category: str) -> str | None:
        """The outside judge of a category, where it has one."""
        return self.spec.judges.get(category, self.spec.judge)

    def sources(self) -> list[Source]:
        """The files that the task needs and does not ship."""
        return [
            Source(
                url=download.path if "://" in download.path else self.spec.base + download.path,
                sha256=download.sha256,
                bytes=download.bytes,
                license=self.spec.license,
            )
            for download in self.spec.downloads
        ]

    @cached_property
    def tier_of(self) -> dict[str, Tier]:
        """Category -> tier, in the order of task.yaml."""
        return {c: tier for tier in TIERS for c in self.spec.tiers.get(tier, ())}

    def splits(self) -> list[str]:
        """The splits there are; a task that names none has one, test."""
        named = [*self.spec.splits, *(download.split for download in self.spec.downloads)]
        return list(dict.fromkeys(named)) or ["test"]

    def prompts(self, split: str | None = None) -> list[Prompt]:
        """All prompts of a split, in order; of the task's own by default.

        Raises GapbenchError where the split does not exist, a record is broken, or the prompts
        are not the ones task.yaml names by digest.
        """
        split = split or self.split
        if split not in self.splits():
            raise GapbenchError(
                f"task {self.name}: no split {split!r}; it has {', '.join(self.splits())}"
            )
        placed = self._records(split)
        if self.spec.splits:
            self._check_digest(split, [record for record, _ in placed])
        return self._prompts(placed)

    def _records(self, split: str) -> Placed:
        if self.spec.generator:
            try:
                module = importlib.import_module(f"gapbench.prompts.{self.spec.generator}")
            except ModuleNotFoundError as error:
                raise GapbenchError(
                    f"{self.folder / 'task.yaml'}: no generator {self.spec.generator!r} in "
                    "gapbench.prompts; a task of your own lists its prompts with `file:`"
                ) from error
            return [
                (record, f"task {self.name}, prompt {number}")
                for number, record in enumerate(module.make(split), 1)
            ]
        if self.spec.downloads:
            return self._downloaded(split)
        if self.spec.file is None:
            raise GapbenchError(
                f"{self.folder / 'task.yaml'}: needs `file:`, `downloads:` or `generator:`"
            )
        file = self.folder / self.spec.file
        if not file.resolve().is_relative_to(self.folder.resolve()):
            raise GapbenchError(f"{self.folder / 'task.yaml'}: file {file} is outside the task")
        return self._read(file, None)

    def _read(self, file: Path, category: str | None) -> Placed:
        fields = self.spec.fields
        columns = [c for v in fields.values() for c in (v if isinstance(v, list) else [v])]
        placed = []
        for number, (record, place) in enumerate(read(file, columns), 1):
            try:
                made = mapped(record, fields) if fields else dict(record)
            except KeyError as error:
                raise GapbenchError(f"{place}: no field {error}; the records changed") from error
            made.setdefault("category", category or next(iter(self.tier_of), None))
            made.setdefault("id", f"{category}-{number:03d}" if category else f"{number:05d}")
            placed.append((made, place))
        return placed

    def _downloaded(self, split: str) -> Placed:
        files = cached(self.sources(), f"task {self.name}")

        def of(name: str) -> Placed:
            return [
                pair
                for download, file in zip(self.spec.downloads, files, strict=True)
                if download.split == name
                for pair in self._read(file, download.category)
            ]

        placed = of(split)
        if split == "test":
            return placed
        # What is trained on is never tested on, and counts once.
        seen = {record["text"] for record, _ in of("test")}
        return [p for p in placed if not (p[0]["text"] in seen or seen.add(p[0]["text"]))]  # type: ignore[func-returns-value]

    def _check_digest(self, split: str, records: list[Any]) -> None:
        lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records)
        digest, wanted = hashlib.sha256(lines.encode()).hexdigest(), self.spec.splits[split]
        if (len(records), digest) != (wanted.prompts, wanted.sha256):
            raise GapbenchError(
                f"task {self.name}: the {split} split has {len(records)} prompts with sha256 "
                f"{digest}, task.yaml names {wanted.prompts} with {wanted.sha256}; changed prompts "
                "need a new version"
            )

    def _prompts(self, placed: Placed) -> list[Prompt]:
        if not placed:
            raise GapbenchError(f"task {self.name}: {self.spec.file} holds no prompts")
        prompts, seen = [], dict[str, str]()
        for record, place in placed:
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
            if unicodedata.category(letter) in {"Cc", "Cs"} and letter not in "\n\t":
                raise GapbenchError(
                    f"{place}: the prompt holds the control character {letter!r}; remove it"
                )
        if not isinstance(record["id"], str) or not record["id"]:
            raise GapbenchError(f"{place}: the id {record['id']!r} is not a text")
        if not isinstance(record["category"], str) or record["category"] not in self.tier_of:
            raise GapbenchError(
                f"{place}: category {record['category']!r} is not in task.yaml, which has "
                f"{', '.join(self.tier_of)}"
            )
        if not isinstance(record.get("requirement", {}), dict):
            raise GapbenchError(f"{place}: the requirement is not an object")


def _read_spec(file: Path, variant: str) -> TaskFile:
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise GapbenchError(f"{file}: cannot be read; a task is a folder with task.yaml") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise GapbenchError(f"{file}: not YAML ({' '.join(str(error).split())})") from error
    if variant:
        variants = raw.get("variants", {}) if isinstance(raw, dict) else {}
        if variant not in variants:
            raise GapbenchError(
                f"{file}: no variant {variant!r}; there are {', '.join(variants) or 'none'}"
            )
        changed = variants[variant]
        replaced = {(d.get("category"), d.get("split")): d for d in changed.get("downloads", ())}
        kept = [
            replaced.pop((d.get("category"), d.get("split")), d) for d in raw.get("downloads", ())
        ]
        raw = {**raw, "generator": None, **changed, "downloads": [*kept, *replaced.values()]}
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
    odd = [c for c in categories if not _CATEGORY.fullmatch(c)]
    if odd:
        raise GapbenchError(
            f"{file}: category {odd[0]!r} is no name; use up to 80 letters, digits, - and _"
        )
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
    """A task by its name or by the path of its folder, `@variant` behind a name for a variant and
    `:split` for another split than test.

    Raises GapbenchError where there is none, naming those there are.
    """
    folders = task_folders()
    whole, colon, split = name.rpartition(":")
    place, split = (whole, split) if colon and not Path(name).exists() else (name, "test")
    plain, _, variant = place.partition("@")
    if plain in folders:
        return Task(plain, folders[plain], variant, split)
    path = Path(place)
    if (path / "task.yaml").is_file():
        return Task(path.resolve().name, path, split=split)
    raise GapbenchError(
        f"no task {name!r}; installed: {', '.join(folders)} (or give a folder that holds task.yaml)"
    )


def select(selections: Iterable[str]) -> list[tuple[Task, list[Prompt]]]:
    """The prompts of `selected_tasks`, by task."""
    return [
        (task, [prompt for prompt in task.prompts() if prompt.category in categories])
        for task, categories in selected_tasks(selections)
    ]


def selected_tasks(selections: Iterable[str]) -> list[tuple[Task, set[str]]]:
    """Tasks with the categories that selections name: `all`, a tier, a task (`task:split` for
    another split than test), or task/category.

    Raises GapbenchError for a name that selects nothing.
    """
    chosen: dict[str, tuple[Task, set[str]]] = {}

    def add(task: Task, categories: Iterable[str]) -> None:
        first, wanted = chosen.setdefault(task.name, (task, set()))
        if first.folder.resolve() != task.folder.resolve():
            raise GapbenchError(
                f"two tasks are named {task.name!r}: {first.folder} and {task.folder}; "
                "rename one's folder"
            )
        wanted.update(categories)

    for selection in selections:
        if selection == "all" or selection in TIERS:
            for name in task_folders():
                task = load_task(name)
                add(task, (c for c, t in task.tier_of.items() if selection in ("all", t)))
            continue
        selection = selection.rstrip("/") or selection
        name, _, category = selection.rpartition("/")
        if re.split("[@:]", name)[0] in task_folders() or (
            name and (Path(name) / "task.yaml").is_file()
        ):
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
    found = [(task, categories) for task, categories in chosen.values() if categories]
    if not found:
        raise GapbenchError("no tasks selected; see `gapbench tasks`")
    return found
