"""Tasks: a folder with task.yaml, read into Prompts."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final

from gapbench.fetch.sources import Source, cached, have
from gapbench.tasks.copies import Copy
from gapbench.tasks.records import Placed, joined, read
from gapbench.tasks.references import KEY, WORLD, Reference, made, named, pinned
from gapbench.tasks.spec import ANY, read_spec
from gapbench.types import TIERS, GapbenchError, Prompt, Tier

LONGEST: Final = 10_000
"""Characters a prompt may have; the benchmarks' longest has under 2,000."""
_SEED: Final = re.compile(r"0|[1-9][0-9]{0,8}")


class Task:
    """A named list of prompts with tiers, a verdict question and a judge."""

    def __init__(self, name: str, folder: Path, variant: str = "", split: str = "test") -> None:
        self.name = name + f"@{variant}" * bool(variant) + f":{split}" * (split != "test")
        self.folder, self.split = folder, split
        self.spec = read_spec(folder / "task.yaml", variant)
        self.samples = self.spec.samples
        if self.spec.seeded and not _SEED.fullmatch(split):
            given = f", not {split!r}" if split != "test" else ""
            raise GapbenchError(
                f"task {name}@{variant}: give a seed, a whole number from 0 to 999999999, as in "
                f"{name}@{variant}:1{given}"
            )
        self.overalls = self.spec.overalls if split == "test" else {}

    @cached_property
    def version(self) -> str:
        """task.yaml's, with the digests of the user's copies where those are the prompts, and of
        prompts that are made anew."""
        held = [copy.digest() for copy in self.copies()]
        if self.spec.seeded:
            held.append(_digest([record for record, _ in self._records(self.split)]))
        return "+".join([self.spec.version, *(digest[:8] for digest in held if digest)])

    def judge(self, category: str) -> str | None:
        """The outside judge of a category, where it has one."""
        return self.spec.judges.get(category, self.spec.judge)

    def judges(self, categories: Iterable[str]) -> list[str]:
        """The outside judges of these categories, each once."""
        return list(dict.fromkeys(judge for each in categories if (judge := self.judge(each))))

    def unpinned(self) -> list[str]:
        """The data sets of which no revision is on record, each at the commit it was taken from."""
        return [f"{c.dataset} at commit {c.commit()}" for c in self.copies() if c.commit()]

    def sources(self) -> list[Source]:
        """The files that the task needs and does not ship."""
        return [
            Source(
                url=download.path if "://" in download.path else self.spec.base + download.path,
                sha256=download.sha256,
                git_blob=download.git_blob,
                bytes=download.bytes,
                license=self.spec.license,
            )
            for download in self.spec.downloads
        ]

    def copies(self) -> list[Copy]:
        """The data sets that the task needs and that the user brings."""
        return [
            Copy(
                dataset=dataset.name,
                columns=tuple(self.spec.columns),
                rows=tuple(dataset.rows),
                bytes=dataset.bytes,
                license=self.spec.license,
            )
            for dataset in self.spec.datasets
        ]

    def ready(self) -> bool:
        """Whether all that it needs and does not ship is here."""
        return all(map(have, self.sources())) and all(copy.digest() for copy in self.copies())

    @cached_property
    def tier_of(self) -> dict[str, Tier]:
        """Category -> tier, in the order of task.yaml, "*" last as the records have them."""
        named = {c: tier for tier in TIERS for c in self.spec.tiers.get(tier, ())}
        if ANY in named and self.ready():
            tier = named.pop(ANY)
            for record, _ in self._records("test"):
                named.setdefault(record["category"], tier)
        return named

    def splits(self) -> list[str]:
        """The splits there are; a task that names none has one, test."""
        if self.spec.seeded:
            return [self.split]
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
            self._check_digest(split, pinned(placed, self.folder))
        return self._prompts(placed)

    def references(self, prompts: Sequence[Prompt]) -> Mapping[str, Reference]:
        """The reference image of each of its prompts, by id; none of a task that has none."""
        if self.spec.generator in WORLD:
            return {prompt.id: made(prompt) for prompt in prompts}
        return named(self._records(self.split), self.folder)

    def _records(self, split: str) -> Placed:
        if self.spec.generator:
            try:
                module = importlib.import_module(f"gapbench.tasks.prompts.{self.spec.generator}")
            except ModuleNotFoundError as error:
                raise GapbenchError(
                    f"{self.folder / 'task.yaml'}: no generator {self.spec.generator!r} in "
                    "gapbench.tasks.prompts; a task of your own lists its prompts with `file:`"
                ) from error
            return [
                (record, f"task {self.name}, prompt {number}")
                for number, record in enumerate(module.make(split), 1)
            ]
        if self.spec.downloads:
            return self._downloaded(split)
        if self.spec.datasets:
            return self._copied()
        if self.spec.file is None:
            raise GapbenchError(
                f"{self.folder / 'task.yaml'}: needs `file:`, `downloads:`, `datasets:` or "
                "`generator:`"
            )
        file = self.folder / self.spec.file
        if not file.resolve().is_relative_to(self.folder.resolve()):
            raise GapbenchError(f"{self.folder / 'task.yaml'}: file {file} is outside the task")
        return self._read(file, None)

    def _read(self, file: Path, category: str | None) -> Placed:
        fields = self.spec.fields
        columns = [c for v in fields.values() for c in (v if isinstance(v, list) else [v])]
        if by := self.spec.group:
            lists = [c for c in columns if c in fields["requirement"]]
            records = joined(read(file, [by, *columns]), by, set(columns) - {*lists}, lists)
        else:
            records = read(file, columns)
        placed = []
        for number, (record, place) in enumerate(records, 1):
            made = self._mapped(record, place)
            made.setdefault("category", category or next(iter(self.tier_of), None))
            made.setdefault("id", f"{category}-{number:03d}" if category else f"{number:05d}")
            placed.append((made, place))
        return placed

    def _mapped(self, record: Mapping[str, Any], place: str) -> dict[str, Any]:
        """A record of somebody else's as ours: `fields` names the column of each key; of a list of
        columns, those that are there make an object."""
        if not self.spec.fields:
            return dict(record)
        try:
            made: dict[str, Any] = {
                key: {c: record[c] for c in source if c in record}
                if isinstance(source, list)
                else record[source]
                for key, source in self.spec.fields.items()
            }
        except KeyError as error:
            raise GapbenchError(f"{place}: no field {error}; the records changed") from error
        if isinstance(made.get("category"), dict):
            joined = "-".join(str(part) for part in made["category"].values())
            made["category"] = re.sub(r"[^\w-]+", "-", joined, flags=re.ASCII)
        return made

    def _copied(self) -> Placed:
        """The rows of the user's copies; one that an earlier data set has, by its first column, is
        not taken again."""
        placed, seen = [], set[str]()
        for dataset, copy in zip(self.spec.datasets, self.copies(), strict=True):
            rows = copy.records(f"task {self.name}")
            for number, row in enumerate(rows, 1):
                if row[copy.columns[0]] not in seen:
                    made = self._mapped(row, f"{dataset.name}, row {number}")
                    made["id"] = f"{dataset.id}-{number:03d}"
                    placed.append((made, f"{dataset.name}, row {number}"))
            seen.update(row[copy.columns[0]] for row in rows)
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
        digest, wanted = _digest(records), self.spec.splits[split]
        if (len(records), wanted.sha256 or digest) != (wanted.prompts, digest):
            named = f"{wanted.prompts} with {wanted.sha256}" if wanted.sha256 else wanted.prompts
            raise GapbenchError(
                f"task {self.name}: the {split} split has {len(records)} prompts with sha256 "
                f"{digest}, task.yaml names {named}; changed prompts need a new version"
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
        named(placed, self.folder)  # what is wrong with references is told here
        return prompts

    def _check(self, record: Mapping[str, Any], place: str) -> None:
        unknown = set(record) - {"id", "category", "text", "requirement", KEY}
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


def _digest(records: Sequence[Mapping[str, Any]]) -> str:
    """The sha256 of records as JSON lines."""
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    return hashlib.sha256(lines.encode()).hexdigest()


def _shipped() -> Path:
    """The tasks/ folder: inside the wheel, or beside the package in a checkout."""
    package = Path(__file__).parent.parent
    inside = package / "_tasks"
    return inside if inside.exists() else package.parent / "tasks"


def task_folders() -> dict[str, Path]:
    """Name -> folder of every installed task, third parties' (group gapbench.tasks) last."""
    folders = {file.parent.name: file.parent for file in sorted(_shipped().glob("*/task.yaml"))}
    for entry in entry_points(group="gapbench.tasks"):
        folders.setdefault(entry.name, Path(entry.load()))
    return folders


def load_task(name: str) -> Task:
    """A task by its name or by the path of its folder, `@variant` behind a name for a variant and
    `:split` for another split than test, or for the seed of a variant that has one.

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


Take = Callable[[Task, Sequence[str], bool], bool]
"""Whether to take a task, for these of its categories ("*" for those that records which are not
here would have), before its prompts are read; told whether the task was named, and not found by
`all` or a tier."""


def select(
    selections: Sequence[str], take: Take = lambda *_: True
) -> list[tuple[Task, list[Prompt]]]:
    """The prompts of `selected_tasks`, by task."""
    return [
        (task, [prompt for prompt in task.prompts() if prompt.category in categories])
        for task, categories in selected_tasks(selections, take)
    ]


def selected_tasks(
    selections: Sequence[str], take: Take = lambda *_: True
) -> list[tuple[Task, set[str]]]:
    """Tasks with the categories that selections name: `all`, a tier, a task (`task:split` for
    another split than test), task/category or task/tier; those of them that `take` takes.

    Raises GapbenchError for a name that selects nothing.
    """
    if not selections:
        raise GapbenchError("no tasks selected; see `gapbench tasks`")
    chosen: dict[str, tuple[Task, set[str]]] = {}

    def add(name: str, part: str, named: bool) -> None:
        task = load_task(name)
        categories = _part(task, part)
        if not (categories or named) or not take(task, categories or [ANY], named):
            return
        task = load_task(name)  # once more: its records may have come
        first, wanted = chosen.setdefault(task.name, (task, set()))
        if first.folder.resolve() != task.folder.resolve():
            raise GapbenchError(
                f"two tasks are named {task.name!r}: {first.folder} and {task.folder}; "
                "rename one's folder"
            )
        categories = _part(task, part)
        if named and not categories:
            raise GapbenchError(
                f"task {task.name} has no category {part!r}; it has {', '.join(task.tier_of)} "
                f"and the tiers {', '.join(dict.fromkeys(task.tier_of.values()))}"
            )
        wanted.update(categories)

    for selection in selections:
        if selection == "all" or selection in TIERS:
            for name in task_folders():
                add(name, selection, named=False)
            continue
        selection = selection.rstrip("/") or selection
        name, _, part = selection.rpartition("/")
        if re.split("[@:]", name)[0] in task_folders() or (
            name and (Path(name) / "task.yaml").is_file()
        ):
            add(name, part, named=True)
        else:
            add(selection, "all", named=True)
    return [(task, categories) for task, categories in chosen.values() if categories]


def _part(task: Task, part: str) -> list[str]:
    """The categories of a task that are its part: one, those of a tier, or "all"."""
    if part in task.tier_of:
        return [part]
    return [category for category, tier in task.tier_of.items() if part in ("all", tier)]
