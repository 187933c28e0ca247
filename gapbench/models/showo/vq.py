"""MAGVIT-v2 as Show-o uses it: pictures to codes of a look-up-free codebook, and back.

A code's bits, the highest first, are the signs of the encoder's channels; there is no table to
learn. Facts from showlab/Show-o 45a5a2d, models/modeling_magvitv2.py and models/common_modules.py.
The names of the parts are those of the published tensors. Their shapes say how large the network
is: its config.json says nothing.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

GROUPS: Final = 32


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels, eps=1e-6)


def _conv(before: int, after: int, size: int = 3) -> nn.Conv2d:
    return nn.Conv2d(before, after, size, padding=size // 2)


class Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(before), _conv(before, after)
        self.norm2, self.conv2 = _norm(after), _conv(after, after)
        if before != after:
            self.nin_shortcut = _conv(before, after, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        inner = self.conv1(functional.silu(self.norm1(hidden)))
        inner = self.conv2(functional.silu(self.norm2(inner)))
        short = self.nin_shortcut(hidden) if hasattr(self, "nin_shortcut") else hidden
        total: Tensor = short + inner
        return total


class Attention(nn.Module):
    """One head over all places."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q, self.k, self.v, self.proj_out = (_conv(channels, channels, 1) for _ in range(4))

    def forward(self, hidden: Tensor) -> Tensor:
        normed = self.norm(hidden)
        query, key, value = (
            layer(normed).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        seen = functional.scaled_dot_product_attention(query, key, value)
        out: Tensor = hidden + self.proj_out(seen.transpose(1, 2).reshape_as(hidden))
        return out


class Middle(nn.Module):
    """What encoder and decoder have at the smallest size."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = Residual(channels, channels)
        self.attn_1 = Attention(channels)
        self.block_2 = Residual(channels, channels)

    def forward(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.block_2(self.attn_1(self.block_1(hidden)))
        return out


class Halve(nn.Module):
    """To half the size."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.conv(functional.pad(hidden, (0, 1, 0, 1)))
        return out


class Double(nn.Module):
    """To twice the size."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _conv(channels, channels)

    def forward(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.conv(functional.interpolate(hidden, scale_factor=2.0))
        return out


class Level(nn.Module):
    """The blocks of one size, and the way to the next one, if there is one."""

    def __init__(self, channels: list[int], step: str | None) -> None:
        super().__init__()
        self.block = nn.ModuleList(map(Residual, channels, channels[1:]))
        self.step = step
        if step:
            self.add_module(step, STEPS[step](channels[-1]))

    def forward(self, hidden: Tensor) -> Tensor:
        for block in self.block:
            hidden = block(hidden)
        return self.get_submodule(self.step)(hidden) if self.step else hidden


STEPS: Final[dict[str, type[Halve | Double]]] = {"downsample": Halve, "upsample": Double}


class Encoder(nn.Module):
    """(B, 3, H, W) in [-1, 1] to (B, bits, h, w)."""

    def __init__(self, first: int, levels: list[list[int]], bits: int) -> None:
        super().__init__()
        self.conv_in = _conv(3, first)
        steps = ["downsample"] * (len(levels) - 1) + [None]
        self.down = nn.ModuleList(map(Level, levels, steps))
        last = levels[-1][-1]
        self.mid, self.norm_out = Middle(last), _norm(last)
        self.conv_out, self.quant_conv = _conv(last, bits), _conv(bits, bits, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        hidden = self.conv_in(pixels)
        for level in self.down:
            hidden = level(hidden)
        hidden = self.conv_out(functional.silu(self.norm_out(self.mid(hidden))))
        out: Tensor = self.quant_conv(hidden)
        return out


class Decoder(nn.Module):
    """(B, bits, h, w) of -1 and 1 to (B, 3, H, W) about [-1, 1]; `levels` from the largest size."""

    def __init__(self, first: int, levels: list[list[int]], bits: int) -> None:
        super().__init__()
        self.post_quant_conv, self.conv_in = _conv(bits, bits, 1), _conv(bits, first)
        self.mid = Middle(first)
        steps = [None] + ["upsample"] * (len(levels) - 1)
        self.up = nn.ModuleList(map(Level, levels, steps))
        last = levels[0][-1]
        self.norm_out, self.conv_out = _norm(last), _conv(last, 3)

    def forward(self, signs: Tensor) -> Tensor:
        hidden = self.mid(self.conv_in(self.post_quant_conv(signs)))
        for level in reversed(self.up):
            hidden = level(hidden)
        out: Tensor = self.conv_out(functional.silu(self.norm_out(hidden)))
        return out


class MagvitV2(nn.Module):
    """Codes (B, T) of pictures and pictures of codes, row by row from the top left."""

    def __init__(self, encoder: Encoder, decoder: Decoder, bits: int) -> None:
        super().__init__()
        self.encoder, self.decoder, self.quantize = encoder, decoder, nn.Module()
        places = torch.arange(bits - 1, -1, -1)
        signs = ((torch.arange(2**bits)[:, None] >> places) & 1).float() * 2 - 1
        self.quantize.register_buffer("embedding", signs)
        self.quantize.register_buffer("power_vals", 2**places)
        self.codes = 2**bits
        self.scale = 2 ** (len(encoder.down) - 1)
        """Pixels of a side for each code."""

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] to (B, T)."""
        positive = (self.encoder(pixels) > 0).flatten(2).transpose(1, 2)
        powers: Any = self.quantize.power_vals
        codes: Tensor = (positive * powers).sum(2)
        return codes

    def decode(self, codes: Tensor) -> Tensor:
        """(B, T) of a square to (B, 3, H, W)."""
        side = int(codes.shape[1] ** 0.5)
        table: Any = self.quantize.embedding
        signs = table[codes].transpose(1, 2).unflatten(2, (side, side))
        pixels: Tensor = self.decoder(signs)
        return pixels


def built(tensors: Mapping[str, Tensor]) -> MagvitV2:
    """The network that these tensors belong to, with them in it.

    Raises KeyError where one is missing, ValueError where one is left over or of another shape.
    """
    bits = len(tensors["encoder.quant_conv.bias"])
    parts = []
    for side, ways in (("encoder", "down"), ("decoder", "up")):
        first = len(tensors[f"{side}.conv_in.bias"])
        stem = f"{side}.{ways}"
        levels = []
        for level in range(_count(tensors, stem)):
            blocks = [
                f"{stem}.{level}.block.{block}"
                for block in range(_count(tensors, f"{stem}.{level}.block"))
            ]
            channels = [tensors[f"{block}.conv1.weight"].shape[:2] for block in blocks]
            levels.append([channels[0][1], *(after for after, _ in channels)])
        parts.append((first, levels))
    with torch.device("meta"):
        made = MagvitV2(Encoder(*parts[0], bits), Decoder(*parts[1], bits), bits)
    wanted = made.state_dict()
    if missing := sorted(wanted.keys() - tensors.keys()):
        raise KeyError(missing[0])
    for name, tensor in tensors.items():
        if name not in wanted or tensor.shape != wanted[name].shape:
            raise ValueError(f"{name} does not fit")
    made.load_state_dict(dict(tensors), assign=True)
    return made


def _count(names: Collection[str], stem: str) -> int:
    """How many numbers stand behind a stem."""
    places = [re.match(rf"{re.escape(stem)}\.(\d+)\.", name) for name in names]
    return 1 + max(int(place[1]) for place in places if place)
