"""What a row of the table of models says, and what rows have in common."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from gapbench.fetch.hub import Checkpoint, cached
from gapbench.models.base import CAPABILITIES
from gapbench.types import GapbenchError

Family = Literal["janus", "emu3", "showo", "bagel", "worker"]
NATIVE: Final = frozenset(CAPABILITIES) - {"image_latents"}
"""Capabilities of a model in this process, which draws tokens."""
SETTINGS: Final = "*.[jt]*"
"""Files in JSON, Jinja and plain text."""
EITHER: Final = "*model*.[bs]*"
"""Weights in safetensors or PyTorch's .bin: of some checkpoints it is not on record which."""

DIFFUSERS: Final = "diffusers:"
"""Before a pipeline's hub id or folder."""
_HUB: Final = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+)(?:@([\w.-]+))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """The code of a model that runs as a worker.

    `script` is the worker's file and `lock` the list of its packages; `pythons` are the versions
    that these have wheels for, the best first; `dtype` is what upstream computes in. The files
    in the folder `replaces[0]` of the source go over those of the package `replaces[1]`.
    """

    url: str
    commit: str
    script: Path
    lock: Path
    pythons: Sequence[str]
    dtype: str
    replaces: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A model that can be named.

    `recipe` is upstream's default sampling, `source` where that stands, `convention` how its
    guidance combines the two branches. `memory` is about what weights and a small batch take.
    `needs` names checkpoints by role ("model"; "gen" and "und" of a pair; ...). A `pair` draws and
    judges with different weights: "the same model" is then two.
    """

    summary: str
    family: Family
    license: str
    parameters: str
    memory: str
    capabilities: frozenset[str]
    recipe: Mapping[str, Any]
    source: str
    convention: str = "uncond + guidance * (cond - uncond); 1 is no guidance"
    needs: Mapping[str, Checkpoint] = field(default_factory=dict)
    pair: bool = False
    folder: Path | None = None
    """Of weights that ship with gapbench, with the sha256 of their model.safetensors."""
    sha256: str = ""
    upstream: Upstream | None = None
    """Of a worker."""

    @property
    def runs(self) -> Literal["native", "worker"]:
        """In this process, or in a process with an environment of its own."""
        return "worker" if self.family == "worker" else "native"


def hub(repo: str, license: str, gigabytes: float, *files: str) -> Checkpoint:
    """A hub checkpoint of which no commit is on record: the named files, or its settings and
    safetensors. The run records the commit that was fetched."""
    return Checkpoint(
        repo=repo,
        revision="main",
        license=license,
        files=dict.fromkeys(files or (SETTINGS, "*.safetensors")),
        bytes=int(gigabytes * 1e9),
    )


def pipeline_checkpoint(name: str) -> Checkpoint:
    """What the hub has to give for diffusers:OWNER/NAME or diffusers:OWNER/NAME@REVISION. Raises
    GapbenchError for another name."""
    place = name.removeprefix(DIFFUSERS)
    if not (found := _HUB.fullmatch(place)):
        raise GapbenchError(
            f"model {name}: {place!r} is no folder with a model_index.json and no hub id "
            "(OWNER/NAME or OWNER/NAME@REVISION)"
        )
    return Checkpoint(
        repo=found[1],
        revision=found[2] or "main",
        license="see its page",
        files=dict.fromkeys(("model_index.json", "*/*.[jtm]*", "*/*.safetensors")),
    )


def changed(name: str, recipe: Mapping[str, Any], changes: Mapping[str, object]) -> dict[str, Any]:
    """A recipe with some keys changed; a text is read as the kind of value that it replaces.

    Raises GapbenchError for a key that the recipe lacks or a value of another kind.
    """
    whole = dict(recipe)
    for key, value in changes.items():
        if key not in recipe:
            keys = f"only {', '.join(recipe)}" if recipe else "none"
            raise GapbenchError(f"--set {key}: {name} has no such sampling parameter, {keys}")
        whole[key] = _like(recipe[key], value, f"--set {key}")
    return whole


def _like(old: object, value: object, where: str) -> object:
    new = value
    if isinstance(value, str) and not isinstance(old, str):
        with suppress(ValueError):
            new = json.loads(value)
    if isinstance(old, float) and isinstance(new, int) and not isinstance(new, bool):
        new = float(new)
    if type(new) is not type(old):
        kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
        kind = kinds.get(type(old), type(old).__name__)
        raise GapbenchError(f"{where} must be {kind}, not {value!r}")
    return new


def weights(name: str, role: str, checkpoint: Checkpoint) -> Path:
    """The folder of a named model's checkpoint in the hub's cache.

    Raises GapbenchError that says how to fetch it.
    """
    folder = cached(checkpoint)
    if folder is None:
        raise GapbenchError(
            f"model {name}: its {role} checkpoint, {checkpoint.repo} (about "
            f"{checkpoint.bytes / 1e9:.0f} GB), is not here; run `gapbench prepare --model {name}`"
            ", or give --model a folder of your own copy"
        )
    return folder


def pick_device(name: str, entry: Entry, device: str) -> str:
    """`auto` as a device. Raises GapbenchError where the model wants a GPU and there is none."""
    import torch

    if device != "auto" or torch.cuda.is_available():
        return "cuda" if device == "auto" else device
    raise GapbenchError(
        f"model {name} takes about {entry.memory} on a GPU, and this machine has none that torch "
        "sees; --device cpu runs it all the same, in float32 and very slowly"
    )
