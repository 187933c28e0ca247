"""Models: one file a family; `load_model` finds one by name or folder."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final

from gapbench.models.base import Model
from gapbench.types import GapbenchError

_BUNDLED: Final = Path(__file__).parent / "bundled"


@dataclass(frozen=True, slots=True)
class Entry:
    """A model that can be named."""

    summary: str
    license: str
    parameters: str
    folder: Path
    sha256: str
    """Of model.safetensors."""


MODELS: Final = {
    "janus-mini": Entry(
        summary="a Janus of 3.8 M parameters trained on the shapes world; ships with gapbench",
        license="Apache-2.0",
        parameters="3.8 M",
        folder=_BUNDLED / "janus-mini",
        sha256="212704a58b31c8a25c30c26f39a1043991b456c848b21bedb844608352cc1dab",
    ),
}


def model_names() -> list[str]:
    """Names of the models there are, third parties' (group gapbench.models) last."""
    return list(dict.fromkeys([*MODELS, *(e.name for e in entry_points(group="gapbench.models"))]))


def load_model(name: str, device: str = "auto", dtype: str = "auto") -> Model:
    """A model by its name or by the folder of a checkpoint; weights come in at first use.

    Raises GapbenchError where there is none, or where the weights are not the named ones.
    """
    if name.startswith("images:"):
        from gapbench.models.images import ImagesModel

        return ImagesModel(Path(name.removeprefix("images:")), device=device, dtype=dtype)
    from gapbench.models.janus import JanusModel

    if name in MODELS:
        entry = MODELS[name]
        _check_weights(name, entry)
        return JanusModel(name, entry.folder, device=device, dtype=dtype)
    for found in entry_points(group="gapbench.models"):
        if found.name == name:
            made: Model = found.load()(device=device, dtype=dtype)
            return made
    folder = Path(name)
    if (folder / "config.json").is_file():
        kind = _model_type(folder / "config.json")
        if kind != "janus":
            raise GapbenchError(
                f"{folder} holds a {kind!r} checkpoint; gapbench drives folders of type 'janus'"
            )
        return JanusModel(folder.resolve().name, folder, device=device, dtype=dtype)
    raise GapbenchError(
        f"no model {name!r}; there are {', '.join(model_names())} "
        "(or give a folder that holds a checkpoint with config.json, or images:FOLDER)"
    )


def _model_type(config: Path) -> Any:
    try:
        return json.loads(config.read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError) as error:
        raise GapbenchError(f"{config}: not a JSON object ({error})") from error


def _check_weights(name: str, entry: Entry) -> None:
    file = entry.folder / "model.safetensors"
    try:
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise GapbenchError(
            f"model {name}: {file} cannot be read; install gapbench again"
        ) from error
    if digest != entry.sha256:
        raise GapbenchError(
            f"model {name}: {file} is not the one that ships (sha256 {digest[:12]}..., expected "
            f"{entry.sha256[:12]}...); install gapbench again, or give an altered copy's folder "
            "to --model"
        )
