"""Which images are the same, and what is told of values that are not finite."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from gapbench.models.autoregressive.answers import distinct
from gapbench.models.autoregressive.finite import watched
from gapbench.types import GapbenchError


def test_images_that_differ_anywhere_are_distinct() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    image, other = Image.fromarray(pixels), pixels.copy()
    other[39, 29, 2] ^= 1
    images = [image, Image.fromarray(other), image.copy(), image.resize((30, 41)), image]
    images += [image.convert("L"), Image.fromarray(other)]
    assert distinct(images) == [0, 1, 0, 3, 0, 5, 1]


def test_palettes_count() -> None:
    pair = [Image.new("P", (20, 20)) for _ in range(2)]
    pair[0].putpalette([255, 0, 0])
    pair[1].putpalette([0, 255, 0])
    assert distinct(pair) == [0, 1]


def test_a_layer_that_gives_nan_once_is_named() -> None:
    layer = nn.Identity()

    def computed() -> None:
        with watched("x", {"vision tower": layer, "language model": nn.Identity()}):
            for value in (1.0, float("nan"), 2.0):
                layer(torch.tensor([value]))

    with pytest.raises(GapbenchError, match="x: its vision tower gives NaN"):
        computed()
    layer(torch.tensor([float("nan")]))  # no longer watched
