"""task.yaml: what it may say, and reading it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gapbench.files import read_yaml
from gapbench.types import GapbenchError, Tier
from gapbench.verdict import QUESTION

ANY: Final = "*"
"""In task.yaml: every category that the records have and no tier names."""
_CATEGORY: Final = re.compile(r"[\w-]{1,80}", re.ASCII)


Overalls = dict[Literal["official_gm", "official", "paper"], list[str] | dict[str, float]]
"""Patterns of categories over which a mean is taken, or such with their weights."""


class Split(BaseModel):
    """What a split must be: `sha256` is of its records as JSON lines, which have the sha256 of a
    reference image's file as `reference`; without one, only their number is checked."""

    model_config = ConfigDict(extra="forbid")
    prompts: int = Field(gt=0)
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")


class Download(BaseModel):
    """A file of prompts that is fetched, not shipped; `category` where all of it is of one.

    It is checked by its `sha256`, or by the id of its blob in git (`git_blob`, as `git ls-tree`
    prints it), which is known of a file in a repository that nobody here has read. `bytes` may be
    left out where nobody knows them.
    """

    model_config = ConfigDict(extra="forbid")
    path: str
    sha256: str = Field(default="", pattern="^[0-9a-f]{64}$")
    git_blob: str = Field(default="", pattern="^[0-9a-f]{40}$")
    bytes: int = Field(default=0, gt=0)
    category: str | None = None
    split: str = "test"

    @model_validator(mode="after")
    def _pinned_once(self) -> Self:
        if bool(self.sha256) == bool(self.git_blob):
            raise ValueError("a download takes one digest, sha256 or git_blob")
        return self


class Dataset(BaseModel):
    """A data set that the user brings; `id` begins its prompts' ids. See gapbench.tasks.copies."""

    model_config = ConfigDict(extra="forbid")
    id: str
    name: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    rows: list[int] = Field(min_length=1)
    bytes: int = Field(gt=0)


class TaskFile(BaseModel):
    """task.yaml. Prompts come from `generator`, a module of tasks/prompts, from `file`, beside
    task.yaml, from `downloads`, paths under the address `base`, which pins a commit, or from
    `datasets`, copies of the user's own with these text `columns`.

    `overalls` has the categories, or patterns of them, over which a benchmark's own overall figure
    ("official") and the paper's are means, plain ones or with the weights that are given; a
    pattern's images are taken together. "official_gm" is a mean of the geometric means over a
    judge's questions (GenEval 2).

    `fields` maps text, id, category and requirement to the columns of somebody else's records; the
    category may be several columns, joined. The category "*" stands for every one that the records
    have and `tiers` does not name. Records in a row with one value in the column `group`, such as
    the rows of a CSV about one prompt, are one: of the requirement's columns it has lists, of the
    others the value that they share. `variants` are further versions of the task: keys that replace
    its own, downloads those of their category and split. The prompts of a `seeded` one are made
    anew for each seed, which stands for the split: geneval@fresh:7. `without` says of categories
    that a reader may miss why they are not there.
    """

    model_config = ConfigDict(extra="forbid")
    title: str
    version: str
    license: str = "unknown"
    generator: str | None = Field(default=None, pattern="^[a-z][a-z0-9_]*$")
    file: str | None = None
    base: str = ""
    downloads: list[Download] = []
    datasets: list[Dataset] = []
    columns: list[str] = []
    fields: dict[str, str | list[str]] = {}
    group: str | None = None
    samples: int = Field(default=4, gt=0, le=10_000)
    judge: str | None = None
    judges: dict[str, str] = {}
    splits: dict[str, Split] = {}
    tiers: dict[Tier, list[str]]
    overalls: Overalls = {}
    question: str = QUESTION
    seeded: bool = False
    without: dict[str, str] = {}
    variants: dict[str, dict[str, Any]] = {}


def read_spec(file: Path, variant: str) -> TaskFile:
    """The checked contents of a task.yaml, of a variant where `variant` names one.

    Raises GapbenchError, naming the file and the first thing that is wrong with it.
    """
    raw = read_yaml(file)
    if variant:
        variants = raw.get("variants", {})
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
    if spec.group and not isinstance(spec.fields.get("requirement"), list):
        raise GapbenchError(
            f"{file}: group takes fields, with a list of columns as the requirement"
        )
    categories = [c for names in spec.tiers.values() for c in names]
    twice = {c for c in categories if categories.count(c) > 1}
    if twice:
        raise GapbenchError(f"{file}: category {sorted(twice)[0]!r} is listed twice")
    odd = [c for c in categories if c != ANY and not _CATEGORY.fullmatch(c)]
    if odd:
        raise GapbenchError(
            f"{file}: category {odd[0]!r} is no name; use up to 80 letters, digits, - and _"
        )
    return spec


def explain(error: ValueError) -> str:
    """An error in one line; of pydantic's, the first culprit and what is wrong with it."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        return f"unknown key {where!r}"
    what = str(first["msg"]).removeprefix("Value error, ")
    return f"{where}: {what}" if where else what
