"""A picture as Show-o reads it (showlab/Show-o 45a5a2d, training/utils.py, image_transform)."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def pixels_of(image: Image.Image, size: int) -> Tensor:
    """(3, size, size) in [-1, 1], float32: its shorter side scaled to `size`, the middle cut out,
    with the roundings of torchvision's Resize and CenterCrop."""
    image = image.convert("RGB")
    width, height = image.size
    short = min(width, height)
    scaled = (size * width // short, size * height // short)
    image = image.resize(scaled, Image.Resampling.BICUBIC)
    left, top = (round((side - size) / 2) for side in scaled)
    cut = image.crop((left, top, left + size, top + size))
    return torch.from_numpy(np.asarray(cut, np.float32) / 255).permute(2, 0, 1) * 2 - 1
