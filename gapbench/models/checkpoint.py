"""A checkpoint's folder: its files, and its weights in a class of transformers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gapbench.files import first_line, read_object
from gapbench.models import torchvision_shim
from gapbench.types import GapbenchError

if TYPE_CHECKING:
    from torch import Tensor


def device_here(who: str, device: str) -> str:
    """A device as torch names it, where `auto` is a GPU if there is one, else the CPU.

    Raises GapbenchError where torch does not see it on this machine.
    """
    import torch

    gpus = torch.cuda.device_count()
    if device == "auto":
        return "cuda" if gpus else "cpu"
    kind, _, number = device.partition(":")
    seen = {"cuda": gpus, "mps": int(torch.backends.mps.is_available())}
    if int(number or 0) >= seen.get(kind, 1):
        raise GapbenchError(
            f"{who}: --device {device}: torch does not see it on this machine; use --device cpu"
        )
    return device


def versions() -> dict[str, str]:
    """Of gapbench and of the packages that a result may depend on."""
    packages = ("gapbench", "torch", "transformers", "numpy", "pillow")
    return {package: version(package) for package in packages}


def gpu(device: str | None) -> dict[str, str] | None:
    """A GPU's name, and the versions of what computes on it; None for any other device."""
    import torch

    if device is None or not device.startswith("cuda") or not torch.cuda.is_available():
        return None
    triton = find_spec("triton") and version("triton")
    return {
        "name": torch.cuda.get_device_name(device),
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]
        "triton": str(triton),
    }


def model_type(folder: Path) -> str | None:
    """What a folder's config.json says it holds. Show-o's names a class, or neither."""
    config = read_object(folder / "config.json")
    kind = config.get("model_type", config.get("_class_name", "Showo" * ("w_clip_vit" in config)))
    return kind if isinstance(kind, str) and kind else None


def weights_in(who: str, folder: Path, whole: str) -> list[Path]:
    """A folder's weights as transformers looks for them: the file `whole`, else those that its
    index names. Others beside them, say of an earlier download, are not read.

    Without both, all files whose names begin so. Raises GapbenchError where the index is broken, or
    names a file that is missing.
    """
    file, index = folder / whole, folder / f"{whole}.index.json"
    if file.is_file():
        return [file]
    if not index.is_file():
        return sorted(folder.glob(f"{file.stem}*{file.suffix}"))
    named = read_object(index).get("weight_map")
    if not isinstance(named, dict) or not named:
        raise GapbenchError(f"{who}: {index} has no weight_map; download it again")
    files = sorted({folder / str(name) for name in named.values()})
    if missing := [file.name for file in files if not file.is_file()]:
        raise GapbenchError(
            f"{who}: {folder} lacks {len(missing)} of the {len(files)} files that {index.name} "
            f"names, {missing[0]} among them; download or save the checkpoint again"
        )
    return files


def require_weights(who: str, folder: Path) -> list[Path]:
    """A folder's safetensors files (`weights_in`). Raises GapbenchError also where it has none."""
    files = weights_in(who, folder, "model.safetensors")
    if not files:
        raise GapbenchError(
            f"{who}: no .safetensors file in {folder}; other weight formats are not loaded, save "
            "the checkpoint with save_pretrained first"
        )
    return files


def weight_files(who: str, folder: Path) -> list[Path]:
    """A folder's weights in a layout that is not transformers': safetensors where there are any,
    else PyTorch's .bin. Raises GapbenchError where it has neither."""
    for whole in ("model.safetensors", "pytorch_model.safetensors", "pytorch_model.bin"):
        if files := weights_in(who, folder, whole):
            return files
    raise GapbenchError(f"{who}: no .safetensors and no .bin file in {folder}")


def tensors_of(files: Sequence[Path]) -> dict[str, Tensor]:
    """All tensors of such files, on the CPU. Raises whatever safetensors and torch do for broken
    ones; nothing is unpickled but tensors."""
    import torch
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for file in files:
        if file.suffix == ".safetensors":
            tensors |= load_file(file)
        else:
            tensors |= torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    return tensors


FIX_RECORD: Final = "fix.json"
"""How `gapbench fix` made a checkpoint: beside the weights, and no part of the model."""


SETTINGS: Final = (
    "added_tokens.json", "chat_template.jinja", "chat_template.json", "config.json",
    "generation_config.json", "merges.txt", "preprocessor_config.json", "processor_config.json",
    "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.json",
)  # fmt: skip
"""What transformers reads beside the weights; training leaves other JSON there, such as logs."""


def settings_files(folder: Path) -> list[Path]:
    """A folder's settings: what is not weights and changes what a model does."""
    return [folder / name for name in SETTINGS if (folder / name).is_file()]


@contextmanager
def unwarned() -> Iterator[None]:
    """Keep back transformers' warnings about what gapbench does not use, or says in its own way."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def load_pretrained(
    who: str,
    kind: str,
    folder: Path,
    dtype: str,
    device: str | None,
    *,
    config: Any = None,
    tensors: Mapping[str, Any] | None = None,
    needless: tuple[str, ...] = (),
    pickled: bool = False,
) -> Any:
    """The class `kind` of transformers with a folder's safetensors, in eval mode on a device.

    `device` None spreads it over all GPUs; `dtype` "auto" is the checkpoint's own. `tensors` under
    the class's names, with their `config`, replace those of the folder. Tensors whose names end in
    one of `needless` may be missing. `pickled` allows PyTorch's .bin files where there are no
    safetensors. Raises GapbenchError where weights are broken, incomplete or of another shape:
    transformers would fill missing tensors with random numbers.
    """
    torchvision_shim.ensure()  # transformers imports torchvision where it is installed
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        with unwarned():
            model, info = getattr(transformers, kind).from_pretrained(
                folder if tensors is None else None,
                config=config,
                state_dict=tensors,
                dtype=dtype,
                device_map="auto" if device is None else None,
                use_safetensors=True if tensors is None and not pickled else None,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
        model = (model if device is None else model.to(device)).eval()
    except Exception as error:  # safetensors, torch and transformers raise many kinds
        raise GapbenchError(f"{who}: cannot load {folder}: {first_line(error)}") from error
    if missing := sorted(name for name in info["missing_keys"] if not name.endswith(needless)):
        raise GapbenchError(
            f"{who}: the weights in {folder} lack {len(missing)} tensors, {missing[0]} among them"
        )
    if misfits := sorted(info["mismatched_keys"]):
        name, given, wanted = misfits[0]
        empty = "; ZeRO left them empty: write whole weights with its zero_to_fp32.py"
        raise GapbenchError(
            f"{who}: {len(misfits)} tensors in {folder} do not have the shape that config.json "
            f"gives, {name} among them ({tuple(given)} for {tuple(wanted)})"
            f"{empty if 0 in given else ''}"
        )
    return model
