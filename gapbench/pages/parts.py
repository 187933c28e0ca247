"""Small pictures of pages."""

from __future__ import annotations

import io
from typing import Final

from PIL import Image

from gapbench.pages.plots import data_address
from gapbench.types import GapbenchError

SIDE: Final = 160
LARGEST: Final = 7000
"""Bytes a thumbnail takes at most: 2,000 of them in base64 are 18.7 MB."""


def thumbnail(data: bytes, sha256: str) -> str:
    """A small picture as a data address. Raises GapbenchError where the bytes are not a picture."""
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            if max(picture.size) <= SIDE and len(data) <= LARGEST:
                return data_address("png", data)
            small = picture.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as problem:
        raise GapbenchError(f"image {sha256} of the run is no picture ({problem})") from problem
    small.thumbnail((SIDE, SIDE), reducing_gap=2)
    for quality in (75, 55, 35, 15, 0):
        buffer = io.BytesIO()
        small.save(buffer, "WEBP", quality=quality, method=2)
        if buffer.tell() <= LARGEST:
            break
    return data_address("webp", buffer.getvalue())
