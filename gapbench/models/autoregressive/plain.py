"""The small functions of a decoding step in torch, which round as transformers' Llama does.

`kernels` has the same functions for a GPU.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention, silu

from gapbench.models.autoregressive.noise import gumbel

SPAN: Final = 64
"""Attention on a CPU adds in vectors: over a multiple of this many places, how many of them are
empty changes no sum."""

__all__ = ["add_norm", "attend", "gumbel", "rotate_and_keep", "swiglu"]


def add_norm(hidden: Tensor, more: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The sum of two (R, W), and its root-mean-square norm times `weight` (W,)."""
    hidden = hidden + more
    wide = hidden.float()  # also of float64, as in transformers
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return hidden, weight * wide.to(hidden.dtype)


def rotate_and_keep(
    joined: Tensor, cos: Tensor, sin: Tensor, places: Tensor, keys: Tensor, values: Tensor
) -> Tensor:
    """Queries (R, H, D), turned by the rotary embedding at each token's place (R,), from the
    queries, keys and values (R, (H + 2G) * D) of R tokens; keys and values go into the buffers
    (N, G, room, D) at that place, R / N tokens that follow one another into a row. `cos` and `sin`
    (room, D) are laid out in halves, not pairs."""
    groups, width = keys.shape[1], keys.shape[3]
    heads = joined.reshape(len(joined), -1, width)
    turned, value = heads[:, :-groups], heads[:, -groups:]
    one, two = turned.chunk(2, -1)
    at = places.unsqueeze(1)
    turned = turned * cos[at] + torch.cat((-two, one), -1) * sin[at]
    rows = torch.arange(len(places), device=places.device) // (len(places) // len(keys))
    keys[rows, :, places], values[rows, :, places] = turned[:, -groups:], value
    queries: Tensor = turned[:, :-groups]
    return queries


def attend(
    query: Tensor, keys: Tensor, values: Tensor, places: Tensor, scale: float, span: int
) -> Tensor:
    """(R, H * D): attention of one query (R, H, D) a row over the keys and values up to its place.

    `span` is at least every place + 1; what lies between a place and it must be finite.
    """
    mask = torch.arange(span, device=places.device) > places.view(-1, 1, 1, 1)
    seen: Tensor = scaled_dot_product_attention(
        query.unsqueeze(2),
        keys[:, :, :span],
        values[:, :, :span],
        attn_mask=torch.zeros_like(mask, dtype=query.dtype).masked_fill(mask, -torch.inf),
        scale=scale,
        enable_gqa=keys.shape[1] < query.shape[1],
    )
    return seen.flatten(1)


def swiglu(joined: Tensor) -> Tensor:
    """silu(gate) * up of (R, 2F), the gates first."""
    gate, up = joined.chunk(2, -1)
    return silu(gate) * up
