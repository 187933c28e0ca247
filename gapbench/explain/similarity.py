"""How near tested pairs are to the training set: cosines of prompts and of images.

An encoder is CLIP (open_clip, whose cosines are taken as they are) or the model's own towers, whose
embeddings share a large common part: they are centred on the training set's mean first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from gapbench.fetch import hub
from gapbench.judges.clip import CHECKPOINT, open_clip_model
from gapbench.judges.weights import batches, crop, tensor
from gapbench.models.base import Model
from gapbench.types import GapbenchError

Embeddings = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Encoder:
    """N texts or images to vectors (N, width); `centred` says whether these are centred first."""

    name: str
    centred: bool
    texts: Callable[[Sequence[str]], Embeddings]
    images: Callable[[Sequence[Image.Image]], Embeddings]


def check(asked: str | None) -> None:
    """Raises GapbenchError for an encoder that there is not, by what --encoder says."""
    name, _, folder = (asked or "model").partition(":")
    if name not in ("clip", "model") or (name == "model" and folder):
        raise GapbenchError(f"--encoder {asked}: there are model, clip and clip:FOLDER")
    if folder and not Path(folder).is_dir():
        raise GapbenchError(f"--encoder {asked}: {folder} is no folder with a checkpoint")


def own_towers(asked: str | None) -> bool:
    """Whether the model itself is the encoder: where it is asked for, or nothing is and CLIP's
    weights are not here."""
    return asked == "model" or (not asked and not hub.present(CHECKPOINT))


def encoder(asked: str | None, model: Model) -> Encoder:
    """`model`, `clip`, `clip:FOLDER`, or for None CLIP where its weights are here and else the
    model's own towers (capability embeddings)."""
    if own_towers(asked):
        name = "the model's own towers, centred"
        return Encoder(name, True, model.embed_texts, model.embed_images)
    folder, device = (asked or "").partition(":")[2], model.device or "cpu"
    clip, tokenizer, size = open_clip_model(
        Path(folder) if folder else hub.fetch(CHECKPOINT), not folder, device
    )

    @torch.inference_mode()
    def texts(some: Sequence[str]) -> Embeddings:
        return _array(clip.encode_text(tokenizer(list(some)).to(device)))

    @torch.inference_mode()
    def images(some: Sequence[Image.Image]) -> Embeddings:
        pixels = torch.stack([tensor(crop(image, size)) for image in some])
        return _array(clip.encode_image(pixels.to(device)))

    return Encoder(f"CLIP, {folder or CHECKPOINT.repo}", False, texts, images)


@dataclass(frozen=True, slots=True)
class Nearest:
    """The largest cosines of a tested pair with the training set: of prompts, of images, and the
    training pair whose mean of both is largest (`row`), with its two."""

    prompt: float
    image: float
    row: int
    row_prompt: float
    row_image: float


class TrainingSet:
    """A training set's embeddings: rows of prompts and of images, of length 1."""

    def __init__(self, prompts: Embeddings, images: Embeddings, centred: bool) -> None:
        self._middles = [each.mean(0) if centred else 0.0 for each in (prompts, images)]
        self._rows = [_unit(e - m) for e, m in zip((prompts, images), self._middles, strict=True)]

    def nearest(self, prompt: Embeddings, image: Embeddings) -> Nearest:
        """For one tested pair's embeddings, (width,) each."""
        nearest = [
            rows @ _unit((each - middle)[None])[0]
            for rows, each, middle in zip(self._rows, (prompt, image), self._middles, strict=True)
        ]
        row = int(np.argmax(nearest[0] + nearest[1]))
        return Nearest(
            float(nearest[0].max()), float(nearest[1].max()), row,
            float(nearest[0][row]), float(nearest[1][row]),
        )  # fmt: skip


def batched(
    encode: Callable[[Any], Embeddings], items: Sequence[Any], advance: Callable[[int], None]
) -> Embeddings:
    """Embeddings of many, 32 at a time."""
    parts = []
    for part in batches(items, 32):
        parts.append(encode(part))
        advance(len(part))
    return np.concatenate(parts)


def _unit(rows: Embeddings) -> Embeddings:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)


def _array(tensor: torch.Tensor) -> Embeddings:
    array: Embeddings = tensor.double().cpu().numpy()
    return array
