"""The model before and after a fix, each as two heads over the parameters that the fix trained."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from gapbench.explain.kernel import Heads
from gapbench.files import read_object
from gapbench.fix import network
from gapbench.fix.settings import FixSettings
from gapbench.models import load_model
from gapbench.models.base import Model, require
from gapbench.models.checkpoint import FIX_RECORD
from gapbench.runs.run import Run
from gapbench.types import GapbenchError

if TYPE_CHECKING:
    from datasets import Dataset

NEEDS: Final = ("image_tokens", "generation_loss", "train", "gradients")
WHY: Final = "gapbench explain needs the gradients of both heads"
LARGE: Final = 200_000_000
"""Trained weights from which the kernel is estimated from projected gradients by default."""
RANK: Final = 64


@dataclass(frozen=True, slots=True)
class Fix:
    """A finished fix: its folder, its record, its settings with the base as it is found now, and
    that base, not loaded."""

    folder: Path
    record: dict[str, Any]
    settings: FixSettings
    base: Model


def find_fix(before: Run, after: Run, folder: str | None) -> Fix:
    """The fix that made AFTER's model out of BEFORE's.

    It is where AFTER's run found its model, or in `folder`. Raises GapbenchError where there is
    none, or it is of another base, or of a model whose heads share no parameters.
    """
    for run in (before, after):
        if run.pairing:
            raise GapbenchError(
                "gapbench explain is about parameters that drawing and judging share; model "
                f"{run.folder.meta['model']} of {run.path} is {run.pairing}"
            )
    place = _place(after, folder)
    record = read_object(place / FIX_RECORD)
    if not record.get("done"):
        raise GapbenchError(f"{place}: the fix is not finished; run gapbench fix again")
    try:
        settings = FixSettings(**{**record["settings"], "out": place})
        wanted = record["base"]
        dtype, fingerprint = str(wanted["dtype"]), str(wanted["fingerprint"])
    except (KeyError, TypeError, GapbenchError) as error:
        raise GapbenchError(f"{place / FIX_RECORD}: broken; fix the model anew") from error
    if not (place / "data" / "state.json").is_file():
        raise GapbenchError(f"{place}: its training set, {place / 'data'}, is not there")
    about = before.folder.meta.get("model_about", {})
    given = str(about.get("given") or before.folder.meta["model"])
    tried = []
    for name in dict.fromkeys([settings.model, given]):
        try:
            if load_model(name, dtype=dtype, recipe=settings.set).fingerprint == fingerprint:
                break
            tried.append(f"{name} has other weights")
        except GapbenchError as error:
            tried.append(str(error))
    else:
        raise GapbenchError(
            f"{place}: the model that it was trained on is not found: {'; '.join(tried)}"
        )
    base = load_model(name, dtype=about.get("dtype") or "auto", recipe=settings.set)
    if base.fingerprint != before.folder.meta["identity"]["model"]:
        raise GapbenchError(
            f"{place} is a fix of {name}, and {before.path} is a run of another model (or recipe); "
            "give the run of the model that was fixed as BEFORE"
        )
    _require(base)
    return Fix(place, record, replace(settings, model=name), base)


def _require(model: Model) -> None:
    """Raises GapbenchError for a model whose images have no likelihood or no gradients."""
    if not model.likelihood and "generation_loss" in model.capabilities:
        raise GapbenchError(
            f"gapbench explain is about the likelihood of images, and model {model.name} has none: "
            "it is trained by a loss that is no likelihood. gapbench compare works for it"
        )
    require(model, NEEDS, WHY)


def _place(after: Run, folder: str | None) -> Path:
    """The folder of the fix that made AFTER's model."""
    about = after.folder.meta.get("model_about", {})
    given = folder or str(about.get("given") or after.folder.meta["model"])
    path = Path(given)
    if (path / "adapter_config.json").is_file() and (path.parent / FIX_RECORD).is_file():
        path = path.parent
    if not (path / FIX_RECORD).is_file():
        if not folder:
            _require(load_model(given, dtype=about.get("dtype") or "auto"))
        raise GapbenchError(
            f"{given} holds no {FIX_RECORD}: gapbench explain takes, as AFTER, a run of what "
            "gapbench fix made; where that is elsewhere now, give its folder with --fix"
        )
    wanted = after.folder.meta["identity"]["model"]
    for each in (path, path / "adapter"):
        if (each / "config.json").is_file() or (each / "adapter_config.json").is_file():
            model = load_model(str(each), dtype=about.get("dtype") or "auto")
            if model.fingerprint == wanted:
                return path
    raise GapbenchError(f"{path} holds other weights than {after.path} was run with; run it again")


def training_rows(fix: Fix) -> Dataset:
    """The training set: columns prompt, tokens, image; of a pair of DPO's the chosen one."""
    from datasets import disable_progress_bars, load_from_disk

    disable_progress_bars()
    try:
        rows: Any = load_from_disk(fix.folder / "data")
    except (OSError, ValueError) as error:
        raise GapbenchError(f"{fix.folder / 'data'}: no training set ({error})") from error
    if "tokens_chosen" in rows.column_names:
        rows = rows.rename_columns({"tokens_chosen": "tokens", "image_chosen": "image"})
    lacks = {"prompt", "tokens", "image"} - set(rows.column_names)
    if lacks or not len(rows):
        raise GapbenchError(f"{fix.folder / 'data'} is empty or lacks {', '.join(sorted(lacks))}")
    kept: Dataset = rows.select_columns(["prompt", "tokens", "image"])
    return kept


class Side:
    """A model that is loaded, as it was before a fix or (`trained`) as it is after it."""

    def __init__(
        self, fix: Fix, trained: bool, device: str, dtype: str, rank: int, seed: int
    ) -> None:
        settings = fix.settings
        if trained and not settings.lora:
            settings = replace(settings, model=str(fix.folder))
        if dtype == "auto" and device != "cpu" and torch.cuda.is_available():
            dtype = network.train_dtype(settings)  # what a fix of whole weights did is finer
        self.model = network.base_model(settings, device, dtype)
        self.dtype = self.model.dtype or "auto"
        adapter = fix.folder / "adapter" if trained and settings.lora else None
        self.heads = heads_of(self.model, settings, adapter, rank, seed)

    def release(self) -> None:
        """Free the weights."""
        del self.heads
        self.model.release()


def heads_of(
    model: Model,
    settings: FixSettings,
    adapter: Path | None = None,
    rank: int = 0,
    seed: int = 0,
) -> Heads:
    """A model's heads over the parameters that a fix of these settings trains, with a trained
    `adapter` (peft's folder) if one is given.

    `rank` above 0 estimates instead: a linear weight's gradient is replaced by its product with a
    random matrix, (inputs, rank) of independent normal numbers of variance 1 / rank, drawn once
    from `seed`, and other weights are left out; inner products and J g_u keep their expectation
    over the linear weights. It is the gradient by LoRA's B at B = 0.
    """
    if rank:
        settings = replace(settings, lora=rank)
    prepared = network.prepare(model, settings)
    if adapter:
        network.load_trained(prepared, adapter / "adapter_model.safetensors", "fix it anew")
    if rank:
        _project(prepared, rank, seed)
    keep_precision(prepared.eval())
    moved = {name: p for name, p in prepared.named_parameters() if p.requires_grad}
    return Heads(model, prepared, moved)


def rank_for(fix: Fix, asked: int | None) -> int:
    """The rank of the projection: what was asked for, else 0 (exact) unless the fix trained more
    than LARGE weights themselves. Raises GapbenchError for one where LoRA was trained."""
    if fix.settings.lora:
        if asked:
            raise GapbenchError(
                f"--projection {asked}: the fix trained LoRA, whose kernel is computed exactly"
            )
        return 0
    if asked is not None:
        return asked
    from gapbench.models.checkpoint import require_weights

    files = require_weights("gapbench explain", fix.folder)
    size = sum(file.stat().st_size for file in files) / 4
    return RANK if size > LARGE else 0


def _project(prepared: nn.Module, rank: int, seed: int) -> None:
    """Make of fresh LoRA layers the projection that `Side` describes."""
    stream = torch.Generator().manual_seed(seed)
    for module in prepared.modules():
        if isinstance(scaling := getattr(module, "scaling", None), dict) and "default" in scaling:
            weight: Tensor = module.lora_A["default"].weight  # type: ignore[index, union-attr]
            drawn = torch.randn(weight.shape, generator=stream, dtype=torch.float64)
            with torch.no_grad():
                weight.copy_(drawn / (scaling["default"] * math.sqrt(rank)))
            weight.requires_grad_(False)


def keep_precision(module: nn.Module) -> None:
    """Let root mean square norms compute in float64 where the weights are: transformers' go through
    float32, whose rounding is larger than a small step's effect."""
    for part in module.modules():
        if not type(part).__name__.endswith("RMSNorm") or not hasattr(part, "variance_epsilon"):
            continue
        weight = part.weight
        if isinstance(weight, Tensor) and weight.dtype == torch.float64:
            part.forward = MethodType(_norm, part)


def _norm(self: Any, hidden: Tensor) -> Tensor:
    return nn.functional.rms_norm(hidden, self.weight.shape, self.weight, self.variance_epsilon)


def summary(fix: Fix, heads: Heads, rank: int) -> dict[str, Any]:
    """What a fix was, for people and for explain.json."""
    settings = fix.settings
    kind = f"LoRA of rank {settings.lora}" if settings.lora else "the weights themselves"
    return {
        "folder": str(fix.folder),
        "method": settings.method,
        "base": settings.model,
        "trained": f"{kind}, {settings.train}",
        "rows": fix.record["data"]["rows"],
        "parameters": heads.size,
        "projection": rank or None,
    }
