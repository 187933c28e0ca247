"""What a chat's messages hold."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from io import BytesIO
from typing import Any

from PIL import Image


def content(parts: Sequence[str | Image.Image]) -> str | list[dict[str, Any]]:
    """What a message holds; images are PNG files in their places."""
    if all(isinstance(part, str) for part in parts):
        return "".join(str(part) for part in parts)
    return [
        {"type": "text", "text": part} if isinstance(part, str) else _picture(part)
        for part in parts
    ]


def _picture(image: Image.Image) -> dict[str, Any]:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    address = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": address}}
