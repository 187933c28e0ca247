"""Models: one file a family; `load_model` finds one by name, folder or import path."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Final

from gapbench.files import blamed, read_object, sha256_of
from gapbench.models.base import REQUIRED, Model, require, with_defaults
from gapbench.models.entry import Entry, changed
from gapbench.models.registry import FAMILIES, FOLDERS, MODELS
from gapbench.types import Crash, GapbenchError

_IMPORT: Final = re.compile(r"([A-Za-z_][\w.]*):([A-Za-z_]\w*)(?:@(.+))?")


def model_names() -> list[str]:
    """Names of the models there are, third parties' (group gapbench.models) last."""
    return list(dict.fromkeys([*MODELS, *(e.name for e in entry_points(group="gapbench.models"))]))


def load_model(
    name: str,
    device: str = "auto",
    dtype: str = "auto",
    recipe: Mapping[str, object] | None = None,
) -> Model:
    """A model by name, by folder (a checkpoint, or a LoRA adapter on one) or as module:Class, also
    module:Class@FOLDER with a checkpoint of its own.

    `recipe` changes keys of the model's own recipe; texts are read as --set gives them. Weights
    come in at first use. Raises GapbenchError where there is none, where weights, environment or
    device are missing, or where the recipe has no such key.
    """
    changes = dict(recipe or {})
    if name in MODELS:
        entry = MODELS[name]
        if entry.folder is not None:
            _check_weights(name, entry, entry.folder)
            return _from_folder(name, entry.folder, changes, device, dtype)
        whole = changed(name, entry.recipe, changes)
        return _factory(FAMILIES[entry.family])(
            name, entry, recipe=whole, device=device, dtype=dtype
        )
    if name.startswith("images:"):
        from gapbench.models.images import ImagesModel

        changed(name, {}, changes)
        return ImagesModel(Path(name.removeprefix("images:")), device=device, dtype=dtype)
    if name.startswith("server:"):
        return _factory("gapbench.models.server:ServerModel")(
            name.removeprefix("server:"), recipe=changes, device=device, dtype=dtype
        )
    for entry_point in entry_points(group="gapbench.models"):
        if entry_point.name == name:
            return _third_party(name, entry_point.load(), changes, device, dtype)
    folder = Path(name)
    if (folder / "adapter_config.json").is_file():
        from gapbench.models.lora import base_of

        _refuse_other_base(folder, base_of(folder), device)
        base = load_model(base_of(folder), device, dtype, recipe)
        require(base, ["lora"], f"it cannot take the adapter in {folder}")
        base.adapt(folder)
        return base
    if (folder / "gen" / "config.json").is_file() and (folder / "und" / "config.json").is_file():
        return _from_folder(folder.resolve().name, folder, changes, device, dtype, folder / "gen")
    if (folder / "config.json").is_file():
        return _from_folder(folder.resolve().name, folder, changes, device, dtype)
    if matched := _IMPORT.fullmatch(name):
        made = _imported(name, matched[1], matched[2])
        return _third_party(name, made, changes, device, dtype, matched[3])
    if folder.is_dir():
        raise GapbenchError(f"model {name}: the folder holds no checkpoint (no config.json)")
    if name.startswith(".") or "/" in name:
        raise GapbenchError(f"model {name}: there is no such folder")
    raise GapbenchError(
        f"no model {name!r}; there are {', '.join(model_names())} (or give a folder that holds a "
        "checkpoint with config.json, images:FOLDER, server:URL#MODEL, or my_package.module:Class)"
    )


def as_model(
    model: str | Model,
    device: str = "auto",
    dtype: str = "auto",
    recipe: Mapping[str, object] | None = None,
) -> Model:
    """A model as `load_model` takes it, or one that is made already.

    Raises GapbenchError also where a made one lacks what an adapter must have.
    """
    if isinstance(model, str):
        return load_model(model, device, dtype, recipe)
    return with_defaults(model, Model, REQUIRED, f"model {type(model).__name__}")


def load_saved(
    name: str, folder: Path, device: str, dtype: str, recipe: Mapping[str, object]
) -> Model:
    """The model called `name`, with the weights that its adapter saved into a folder and a whole
    recipe."""
    for entry_point in entry_points(group="gapbench.models"):
        if entry_point.name == name and name not in MODELS:
            return _third_party(name, entry_point.load(), {}, device, dtype, str(folder))
    if is_import(name):
        return load_model(f"{name.partition('@')[0]}@{folder}", device, dtype)
    return load_model(str(folder), device, dtype, recipe)


def _refuse_other_base(folder: Path, base: str, device: str) -> None:
    """Raises GapbenchError where `gapbench fix` trained an adapter on other weights than its base
    has now."""
    from gapbench.models.checkpoint import FIX_RECORD

    if not (folder / FIX_RECORD).is_file():
        return
    trained = read_object(folder / FIX_RECORD).get("base", {})
    if load_model(base, device, trained.get("dtype", "auto")).fingerprint != trained["fingerprint"]:
        raise GapbenchError(
            f"{folder}: this adapter was trained on other weights than {base} has, or gapbench has "
            "changed since how it draws; give the weights with fingerprint "
            f"{trained['fingerprint'][:12]}..., or train it anew"
        )


def _from_folder(
    name: str,
    folder: Path,
    changes: Mapping[str, object],
    device: str,
    dtype: str,
    first: Path | None = None,
) -> Model:
    from gapbench.models.checkpoint import model_type

    kind = model_type(first or folder)
    if kind not in FOLDERS:
        raise GapbenchError(
            f"{folder} holds a {kind!r} checkpoint; gapbench drives folders of type "
            f"{', '.join(map(repr, FOLDERS))}"
        )
    return _factory(FOLDERS[kind])(name, folder, recipe=changes, device=device, dtype=dtype)


def _factory(path: str) -> Callable[..., Model]:
    """What makes a family's adapters. Its module is imported only when one is asked for."""
    made: Callable[..., Model] = resolve_name(path)
    return made


def is_import(name: str) -> bool:
    """Whether a model's name is an import path, my_package.module:Class or ...:Class@FOLDER."""
    return name not in MODELS and not Path(name).exists() and bool(_IMPORT.fullmatch(name))


def _third_party(
    name: str,
    make: Any,
    changes: Mapping[str, object],
    device: str,
    dtype: str,
    folder: str | None = None,
) -> Model:
    """An adapter of somebody else's; recipe and folder are handed on only where they are given."""
    more: dict[str, Any] = {"folder": Path(folder)} if folder else {}
    if changes:
        if "recipe" not in inspect.signature(make).parameters:
            raise GapbenchError(
                f"model {name}: its adapter takes no recipe, so --set cannot be used"
            )
        more["recipe"] = changes
    try:
        made = make(device=device, dtype=dtype, **more)
    except StopIteration as error:  # would end a loop of ours
        raise Crash(blamed(error)) from error
    return with_defaults(made, Model, REQUIRED, f"model {name}")


def _imported(name: str, module: str, attribute: str) -> Any:
    try:
        return getattr(import_module(module), attribute)
    except ImportError as error:
        raise GapbenchError(
            f"model {name}: cannot import {module} ({error}); is it on PYTHONPATH?"
        ) from error
    except AttributeError as error:
        raise GapbenchError(f"model {name}: {module} has no {attribute!r}") from error


def _check_weights(name: str, entry: Entry, folder: Path) -> None:
    file = folder / "model.safetensors"
    try:
        digest = sha256_of(file)
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
