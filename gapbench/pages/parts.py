"""What pages are put together from: a figure with its table, a small picture."""

from __future__ import annotations

import base64
import io
from typing import Any, Final

from PIL import Image

from gapbench.pages.plots import Plot
from gapbench.types import GapbenchError

SIDE: Final = 160
LARGEST: Final = 7000
"""Bytes a thumbnail takes at most: 2,000 of them in base64 are 18.7 MB."""
Table = tuple[list[str], list[list[str]]]


def figure(
    name: str, title: str, about: str, plot: Plot | None, table: Table | tuple[list[str], list[Any]]
) -> dict[str, Any]:
    """A section of a page, as the template's macro takes it."""
    drawn = None
    if plot is not None:
        light, dark = (
            "data:image/svg+xml;base64," + base64.b64encode(svg).decode()
            for svg in (plot.light, plot.dark)
        )
        drawn = {"light": light, "dark": dark, "width": plot.width, "height": plot.height}
    return {"name": name, "title": title, "about": about, "plot": drawn, "table": table}


def thumbnail(data: bytes, sha256: str) -> str:
    """A small picture as a data address. Raises GapbenchError where the bytes are not a picture."""
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            if max(picture.size) <= SIDE and len(data) <= LARGEST:
                return "data:image/png;base64," + base64.b64encode(data).decode()
            small = picture.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as problem:
        raise GapbenchError(f"image {sha256} of the run is no picture ({problem})") from problem
    small.thumbnail((SIDE, SIDE), reducing_gap=2)
    for quality in (75, 55, 35, 15, 0):
        buffer = io.BytesIO()
        small.save(buffer, "WEBP", quality=quality, method=2)
        if buffer.tell() <= LARGEST:
            break
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
