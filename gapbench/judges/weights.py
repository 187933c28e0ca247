"""What the judges with checkpoints share: where weights come from, and how pixels go in."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gapbench.fetch import hub
from gapbench.files import digest, first_line
from gapbench.judges.base import Judge
from gapbench.models.base import Batches
from gapbench.models.checkpoint import device_here, load_pretrained
from gapbench.types import GapbenchError

CLIP_FILES: Final = (
    "config.json", "model.safetensors", "vocab.json", "merges.txt", "tokenizer_config.json",
)  # fmt: skip
"""Of a checkpoint of transformers with CLIP's tokenizer."""
CLIP_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Final = (0.26862954, 0.26130258, 0.27577711)
SUFFIXES: Final = frozenset({".safetensors", ".bin", ".pth", ".json", ".txt"})
"""Files of a user's checkpoint that an answer may depend on."""

T = TypeVar("T")


class WeightsJudge(Judge):
    """A judge around one checkpoint: the pinned one, or the user's own in a folder.

    An own checkpoint's judge is named `<base>-<folder name>`, never the pinned one's name. A
    subclass has what it loads as the cached property `loaded`.
    """

    base: ClassVar[str]
    arithmetic: ClassVar[str]
    """Name of how a score comes about; changes with it."""
    checkpoints: ClassVar[tuple[hub.Checkpoint, ...]]

    def __init__(self, argument: str | None = None, device: str = "auto") -> None:
        self.own = None if argument is None else Path(argument)
        if self.own is not None and not self.own.is_dir():
            raise GapbenchError(f"judge {self.base}: {argument} is no folder with a checkpoint")
        self.name = self.base if self.own is None else f"{self.base}-{self.own.resolve().name}"
        self.device = device_here(f"judge {self.name}", device)
        parts = [self.arithmetic, *self._weights()]
        self.fingerprint = hashlib.sha256(" ".join(parts).encode()).hexdigest()
        self.batches = Batches.on(self.device, small=False)
        self.needs = self.checkpoints if self.own is None else ()

    def _weights(self) -> list[str]:
        """Names of the weights, by content."""
        if self.own is None:
            return [checkpoint.fingerprint for checkpoint in self.checkpoints]
        files = sorted(f for f in self.own.rglob("*") if f.suffix in SUFFIXES and f.is_file())
        if not any(file.suffix in {".safetensors", ".bin", ".pth"} for file in files):
            raise GapbenchError(f"judge {self.base}: {self.own} holds no weights")
        return [digest("", files, self.own)]

    def _model(self, kind: str, folder: Path, **more: Any) -> Any:
        """The class `kind` of transformers with a checkpoint's weights, on `device`."""
        who = f"judge {self.name}"
        return load_pretrained(who, kind, folder, "float32", self.device, pickled=True, **more)

    def _clip_tokenizer(self, folder: Path, length: int) -> Callable[[list[str]], Any]:
        """transformers' CLIPTokenizer, padding to `length` tokens.

        Raises GapbenchError where the folder has no files of one.
        """
        from transformers import CLIPTokenizer

        try:
            tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # transformers raises many kinds
            raise GapbenchError(
                f"judge {self.name}: {folder} holds no CLIP tokenizer: {first_line(error)}"
            ) from error
        how = {"padding": "max_length", "truncation": True, "max_length": length}
        return partial(tokenizer, return_tensors="pt", **how)

    def release(self) -> None:
        vars(self).pop("loaded", None)
        free_memory()


def free_memory() -> None:
    """Give the device the memory back that nothing holds any more."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def unpickled(who: str, file: Path, key: str) -> Any:
    """What a file of torch's own format holds under a key.

    Raises GapbenchError, for `who`, where it cannot be read.
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True)[key]
    except Exception as error:  # pickle and torch raise many kinds
        raise GapbenchError(f"{who}: {file} cannot be read: {first_line(error)}") from error


def batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Consecutive parts of at most `size` items."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def tensor(
    image: Image.Image,
    mean: tuple[float, float, float] = CLIP_MEAN,
    std: tuple[float, float, float] = CLIP_STD,
) -> Tensor:
    """(3, H, W) float32: channels in 0..1, less the mean, by the deviation."""
    array = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255
    return (array - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def crop(image: Image.Image, size: int, middle: Callable[[float], int] = round) -> Image.Image:
    """CLIP's view: shorter side to `size`, bicubic, then the square in the middle.

    `middle` says where an odd margin goes: round is torchvision's way, math.floor transformers'.
    """
    width, height = image.size
    short = min(width, height)
    wide, high = (
        (size, int(size * height / width)) if width == short else (int(size * width / height), size)
    )
    resized = image.convert("RGB").resize((wide, high), Image.Resampling.BICUBIC)
    left, top = middle((wide - size) / 2), middle((high - size) / 2)
    return resized.crop((left, top, left + size, top + size))


def cosines(images: Tensor, texts: Tensor) -> Tensor:
    """(n,) cosines of (n, d) image with (n, d) text embeddings."""
    images = images / images.norm(dim=-1, keepdim=True)
    texts = texts / texts.norm(dim=-1, keepdim=True)
    return (images * texts).sum(-1)
