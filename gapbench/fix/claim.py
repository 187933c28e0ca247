"""A fix's folder, checked before anything is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gapbench.files import read_object, write_json
from gapbench.fix.settings import FixSettings
from gapbench.models import load_saved
from gapbench.types import GapbenchError


def claim(file: Path, record: dict[str, Any]) -> None:
    """Start a fix's folder, or see that it is this fix's. Raises GapbenchError if it is not."""
    if file.parent.exists() and not file.parent.is_dir():
        raise GapbenchError(f"--out {file.parent} is a file; give a folder")
    if not file.exists():
        if file.parent.exists() and any(file.parent.iterdir()):
            raise GapbenchError(f"--out {file.parent} holds something else; give a new folder")
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {**record, "done": False})
        return
    there = read_object(file)
    old, new = there.get("settings", {}), record["settings"]
    differing = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    if differing:
        key = differing[0]
        raise GapbenchError(
            f"--out {file.parent} holds a fix with --{key.replace('_', '-')} {old.get(key)}, not "
            f"{new.get(key)}; give another --out (candidates are not drawn again)"
        )
    if there.get("base") != record["base"]:
        raise GapbenchError(
            f"--out {file.parent} holds a fix of other weights than {record['base']['name']} has; "
            "give another --out"
        )


def require_model(settings: FixSettings, recipe: Mapping[str, object]) -> None:
    """Raises GapbenchError where the model of a fix that was done is not whole any more."""
    try:
        load_saved(settings.model, settings.out, settings.device, settings.dtype, recipe)
    except GapbenchError as error:
        raise GapbenchError(
            f"{settings.out}: this fix was done, and its model does not load any more ({error}); "
            "delete the folder and run the same command again"
        ) from error
