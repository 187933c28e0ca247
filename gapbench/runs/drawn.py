"""Files of what a model drew: pixels as PNG, token ids for NumPy, latents as safetensors."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load, save

from gapbench.files import first_line
from gapbench.types import GapbenchError


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
