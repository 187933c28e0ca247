"""Files of what a model drew: pixels as PNG, token ids for NumPy, latents as safetensors; and an
image that takes its file along to another process."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load, save

from gapbench.files import first_line
from gapbench.models.image_folder import decode
from gapbench.types import GapbenchError


class Kept(NamedTuple):
    """The sha256 of the files of an image."""

    image: str
    tokens: str | None
    latents: str | None


class Written(NamedTuple):
    """What another process drew, and wrote into the run folder."""

    files: Kept
    size: tuple[int, int]
    effective_prompt: str | None
    logprob: float | None


class Stored:
    """An image of a run folder. Pickled, it takes along its file's bytes, or why they cannot be
    read, so that it can be opened where the folder is not."""

    def __init__(self, sha256: str, place: Path, read: Callable[[], bytes]) -> None:
        self.sha256, self.place, self._read = sha256, place, read

    def open(self) -> Image.Image:
        """The image, RGB. Raises GapbenchError where it is missing or broken."""
        return decode(self.place, self._read())

    def __reduce__(self) -> tuple[Any, ...]:
        try:
            read = partial(bytes, self._read())
        except GapbenchError as error:
            read = partial(_raise, error)
        return Stored, (self.sha256, self.place, read)


def _raise(error: GapbenchError) -> bytes:
    raise error


def as_png(image: Image.Image) -> bytes:
    """The bytes that an image is stored as."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def of_tokens(tokens: NDArray[np.int32]) -> bytes:
    """A file of token ids."""
    buffer = io.BytesIO()
    np.save(buffer, tokens, allow_pickle=False)
    return buffer.getvalue()


def tokens_in(place: Path, data: bytes) -> NDArray[np.int32]:
    """The token ids of a file at a place. Raises GapbenchError where it is of another form."""
    try:
        tokens: NDArray[np.int32] = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise GapbenchError(f"{place}: not a NumPy file ({first_line(error)})") from error
    return tokens


def of_latents(latents: NDArray[np.float32]) -> bytes:
    """A file of latents (channels, height, width)."""
    return save({"latents": np.ascontiguousarray(latents)})


def latents_in(place: Path, data: bytes) -> NDArray[np.float32]:
    """The latents of a file at a place. Raises GapbenchError where it is of another form."""
    try:
        latents: NDArray[np.float32] = load(data)["latents"]
    except (SafetensorError, KeyError) as error:
        raise GapbenchError(f"{place}: holds no latents ({first_line(error)})") from error
    return latents
