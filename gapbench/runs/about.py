"""What a run records of its model, and the model found again by it."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from gapbench import adapters
from gapbench.models import from_anywhere, load_model
from gapbench.models.base import Model
from gapbench.models.checkpoint import gpu, versions
from gapbench.runs.folder import RunFolder
from gapbench.runs.plan import Prepared
from gapbench.runs.run import Run
from gapbench.runs.settings import RunSettings
from gapbench.types import GapbenchError

LOG: Final = logging.getLogger("gapbench")


def about(model: Model, settings: RunSettings, changed: Mapping[str, object]) -> dict[str, Any]:
    """Versions, machine, where the model was and what the command changed of it, recorded with a
    run; not part of its identity."""
    return {
        "model_about": {
            "fingerprint": model.fingerprint,
            "recipe": dict(model.recipe),
            "pair": model.pair,
            "pairing": model.pairing if model.pair else None,
            "given": _place(settings.model),
            "changed": dict(changed),
            "device": model.device,
            "dtype": model.dtype,
            "gpu": gpu(model.device),
            "versions": model.versions,
        },
        "versions": {"python": platform.python_version(), **versions()},
        "machine": {"system": platform.system(), "processor": platform.machine()},
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def model_of(run: Run, models: Sequence[str], task: str) -> Model:
    """The model that made a run: where the run found it, or among `models` (as --model takes them).

    Raises GapbenchError, which says for which task, where it is not there with the same weights.
    """
    meta = run.folder.meta
    about = meta.get("model_about", {})
    tried = []
    for spec in [*models, about.get("given") or meta["model"]]:
        try:
            model = load_model(spec, dtype=about.get("dtype") or "auto")
        except GapbenchError as error:
            tried.append(str(error))
            continue
        if model.fingerprint == about.get("fingerprint"):
            return model
        tried.append(
            f"{spec} holds other weights or settings than that run's model, or gapbench has "
            "changed since how it draws"
        )
    raise GapbenchError(
        f"{run.path}: its model has to {task}, but {'; '.join(tried)}; give its folder or name "
        "with --model"
    )


def _place(given: str | Model) -> str:
    """What finds a model again from any folder, as load_model takes it."""
    if not isinstance(given, str):
        return given.name
    return from_anywhere(given)


def note_edit(made: Prepared, path: Path) -> None:
    """Say that this run is a new one because an adapter of the user's own has changed."""
    place = _place(made.settings.model)
    if adapters.parse(place) is None:
        return
    for file in Path(made.settings.out).glob("*/run.json"):
        with suppress(GapbenchError):
            meta = RunFolder.open(file.parent).meta
            same = {**meta["identity"], "model": made.identity["model"]} == made.identity
            edited = same and meta["identity"] != made.identity  # else it is a shard of it
            if edited and meta.get("model_about", {}).get("given") == place:
                LOG.warning(
                    "%s is not what it was in %s (its fingerprint is another), so this is a new "
                    "run, in %s", made.settings.model, file.parent, path,
                )  # fmt: skip
                return
