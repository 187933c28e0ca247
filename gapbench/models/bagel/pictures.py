"""Pictures as BAGEL's vision tower gets them, and latents as its language model does.

Source: ByteDance-Seed/Bagel 056b5fd, data/transforms.py, data/data_utils.py, inferencer.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

MOST_PIXELS: Final = 14 * 14 * 9 * 1024
LEAST: Final = 224
"""Pixels of a seen picture's shorter side, if its longer side allows."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes that a checkpoint's files tell. Sides of grids are in tokens, a patch's in latents, or
    in pixels where it is seen."""

    latent_side: int
    latent_patch: int
    latent_channels: int
    latent_scale: int
    """Pixels of an image's side for each latent."""
    vision_side: int
    vision_patch: int
    vision_pixels: int
    """The most of a seen picture's side."""
    room: int
    """The most tokens of a text."""
    layers: int
    """Of the language model."""
    layer_numbers: int
    """That a layer holds at its widest for each token."""

    @property
    def latent_stride(self) -> int:
        """Pixels of an image's side for each token."""
        return self.latent_patch * self.latent_scale

    @property
    def latent_width(self) -> int:
        """Numbers of a token."""
        return self.latent_patch**2 * self.latent_channels

    @property
    def latent_pixels(self) -> int:
        """The most of an image's side."""
        return self.latent_side * self.latent_stride


def fitted(size: tuple[int, int], largest: int, smallest: int, stride: int) -> tuple[int, int]:
    """Width and height that a picture is scaled to, both multiples of `stride`."""

    def scaled(scale: float) -> tuple[int, int]:
        edges = [max(stride, round(round(edge * scale) / stride) * stride) for edge in size]
        return edges[0], edges[1]

    size = scaled(max(min(largest / max(size), 1.0), smallest / min(size)))
    if size[0] * size[1] > MOST_PIXELS:
        size = scaled(MOST_PIXELS / (size[0] * size[1]))
    if max(size) > largest:
        size = scaled(largest / max(size))
    return size


def prepared(image: Image.Image, geometry: Geometry) -> Image.Image:
    """A picture at the size that the tower sees. As in upstream's inferencer it is first scaled as
    if it were to be drawn again."""
    side, stride = geometry.latent_pixels, geometry.latent_stride
    image = _opaque(image)
    for largest, smallest, step in (
        (side, side // 2, stride),
        (geometry.vision_pixels, LEAST, geometry.vision_patch),
    ):
        image = image.resize(fitted(image.size, largest, smallest, step), Image.Resampling.BICUBIC)
    return image


def _opaque(image: Image.Image) -> Image.Image:
    """In RGB, where it is transparent on white."""
    if image.mode != "RGBA" and image.info.get("transparency") is None:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image.getchannel("A"))
    return white


def patches(images: list[Image.Image], patch: int) -> Tensor:
    """(N, T, 3 * patch squared) from -1 to 1, of N pictures of one size, in float32."""
    levels = np.stack([np.asarray(image) for image in images])
    pixels = torch.from_numpy(levels).permute(0, 3, 1, 2).float().div(255).sub(0.5).div(0.5)
    return packed(pixels, patch)


def packed(values: Tensor, patch: int) -> Tensor:
    """(N, T, patch * patch * C) of values (N, C, H, W), in the order of reading."""
    count, channels, high, wide = values.shape
    cut = values.reshape(count, channels, high // patch, patch, wide // patch, patch)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(count, -1, patch * patch * channels)


def unpacked(tokens: Tensor, patch: int) -> Tensor:
    """(N, C, H, W) of the tokens of N squares: undoes `packed`."""
    side = round(tokens.shape[1] ** 0.5)
    cut = tokens.reshape(len(tokens), side, side, patch, patch, -1)
    return cut.permute(0, 5, 1, 3, 2, 4).reshape(len(tokens), -1, side * patch, side * patch)


def grid(high: int, wide: int, side: int) -> Tensor:
    """(high * wide,) places of a grid in the upper left of one with `side` columns."""
    return (torch.arange(high)[:, None] * side + torch.arange(wide)).flatten()
