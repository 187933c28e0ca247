"""Models: one file a family; `load_model` finds one by name, folder or import path."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from gapbench import adapters
from gapbench.files import read_object, sha256_of
from gapbench.models.base import CAPABILITIES, REQUIRED, Model, has_own, require
from gapbench.models.entry import DIFFUSERS, Entry, changed
from gapbench.models.registry import FAMILIES, FOLDERS, MODELS
from gapbench.types import GapbenchError


def model_names() -> list[str]:
    """Names of the models there are, third parties' (group gapbench.models) last."""
    return list(dict.fromkeys([*MODELS, *(e.name for e in entry_points(group="gapbench.models"))]))


def load_model(
    name: str,
    device: str = "auto",
    dtype: str = "auto",
    recipe: Mapping[str, object] | None = None,
) -> Model:
    """A model by name, by folder (a checkpoint, a pipeline of diffusers, or a LoRA adapter on one),
    as diffusers:OWNER/NAME, or as file.py:Class or module:Class, also file.py:Class@FOLDER with a
    checkpoint of its own. In place of a class there may be a function that makes an adapter, or an
    adapter.

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
    if name.startswith(DIFFUSERS):
        return _factory("gapbench.models.pipelines.make:make")(
            name, recipe=changes, device=device, dtype=dtype
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
    if (folder / "model_index.json").is_file():
        return _factory("gapbench.models.pipelines.make:from_folder")(
            folder.resolve().name, folder, recipe=changes, device=device, dtype=dtype
        )
    if spec := _own(name):
        made = adapters.find(f"model {name}", spec)
        return _third_party(name, made, changes, device, dtype, spec.rest[1:])
    if name.endswith(".py"):
        raise adapters.which(f"model {name}", name)
    if folder.is_dir():
        raise GapbenchError(
            f"model {name}: the folder holds no checkpoint (no config.json, no model_index.json)"
        )
    if name.startswith(".") or "/" in name:
        raise GapbenchError(f"model {name}: there is no such folder")
    raise GapbenchError(
        f"no model {name!r}; there are {', '.join(model_names())} (or give a folder that holds a "
        "checkpoint with config.json, diffusers:OWNER/NAME, images:FOLDER, server:URL#MODEL, or "
        "./my.py:Class)"
    )


def from_anywhere(name: str) -> str:
    """A name that finds the same model from any folder."""
    if (spec := adapters.parse(name)) and spec.home.endswith(".py"):
        return f"{Path(spec.home).resolve()}:{spec.name}{spec.rest}"
    kind, place = ("", name) if Path(name).is_dir() else name.rpartition(DIFFUSERS)[1:]
    return f"{kind}{Path(place).resolve()}" if Path(place).is_dir() else name


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
    return _whole(model, f"model {type(model).__name__}")


def load_saved(
    name: str, folder: Path, device: str, dtype: str, recipe: Mapping[str, object]
) -> Model:
    """The model called `name`, with the weights that its adapter saved into a folder and a whole
    recipe."""
    for entry_point in entry_points(group="gapbench.models"):
        if entry_point.name == name and name not in MODELS:
            return _third_party(name, entry_point.load(), {}, device, dtype, str(folder))
    return load_model(saved_name(name, folder), device, dtype, None if _own(name) else recipe)


def saved_name(name: str, folder: Path) -> str:
    """What `load_model` takes for the model called `name` with the weights that it saved."""
    spec = _own(name)
    return f"{spec.home}:{spec.name}@{folder}" if spec else str(folder)


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


def _own(name: str) -> adapters.Spec | None:
    """The parts of file.py:Class or module:Class, also with @FOLDER; None for another name."""
    spec = None if name in MODELS or Path(name).exists() else adapters.parse(name)
    return None if spec is None or spec.rest.startswith(":") else spec


def _third_party(
    name: str,
    source: Any,
    changes: Mapping[str, object],
    device: str,
    dtype: str,
    folder: str = "",
) -> Model:
    """An adapter of somebody else's, made with what is given and what it takes besides."""
    who, place = f"model {name}", Path(folder) if folder else None
    given: dict[str, Any] = {"recipe": changes or None, "folder": place}
    given |= {"device": device, "dtype": dtype}
    asked = {key: value for key, value in given.items() if value not in (None, "auto")}
    made = adapters.make(who, source, asked, device=device, dtype=dtype)
    return _whole(made, who, place)


def _whole(made: Any, who: str, folder: Path | None = None) -> Model:
    """An adapter with defaults for what it does not say."""
    model = adapters.with_defaults(made, Model, REQUIRED, who, folder)
    if not hasattr(model, "capabilities"):
        model.capabilities = frozenset(
            name
            for name, each in CAPABILITIES.items()
            if each.methods and all(has_own(model, method) for method in each.methods)
        )
    return model


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
