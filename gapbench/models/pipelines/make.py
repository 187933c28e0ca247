"""The adapter of a pipeline, by hub id or by folder."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from gapbench.fetch.hub import cached
from gapbench.models.entry import DIFFUSERS, pipeline_checkpoint
from gapbench.models.pipelines.adapter import PipelineModel
from gapbench.models.pipelines.checkpoint import INDEX, require_diffusers
from gapbench.types import GapbenchError

LOG: Final = logging.getLogger("gapbench")


def make(name: str, recipe: Mapping[str, object], device: str, dtype: str) -> PipelineModel:
    """The adapter of diffusers:FOLDER, or of diffusers:OWNER/NAME in the hub's cache."""
    require_diffusers(f"model {name}")
    folder = Path(name.removeprefix(DIFFUSERS))
    if (folder / INDEX).is_file():
        return from_folder(folder.resolve().name, folder, recipe, device, dtype)
    wanted = pipeline_checkpoint(name)
    found = cached(wanted)
    if found is None:
        raise GapbenchError(
            f"model {name}: {wanted.repo} at {wanted.revision} is not here; run `gapbench prepare "
            f"--model {name}`, or give the folder of your own copy"
        )
    if not wanted.pinned:
        LOG.warning(
            "%s is not pinned: here is the %s of when it was fetched, which %s%s@%s names",
            name, wanted.revision, DIFFUSERS, wanted.repo, found.name,
        )  # fmt: skip
    short, origin = wanted.repo.split("/")[1], f"{wanted.repo}@{found.name}"
    return PipelineModel(short, found, recipe, device, dtype, origin)


def from_folder(
    name: str, folder: Path, recipe: Mapping[str, object], device: str, dtype: str
) -> PipelineModel:
    """The adapter of a folder; `recipe` is what --set changes."""
    return PipelineModel(name, folder, recipe, device, dtype)
