"""The small functions of a decoding step as Triton kernels, one launch each: see `plain`.

No sum here depends on another row, on a row's place in the block, or on how many places are empty.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from __future__ import annotations

from typing import Any, Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from gapbench.models.autoregressive.noise import ROUNDS

TILE: Final = 64
"""Keys that one turn of the attention's loop looks at."""
WORDS: Final = 256
"""Counters, of four codes each, that one program makes noise of."""


def add_norm(hidden: Tensor, more: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    total, normed = torch.empty_like(hidden), torch.empty_like(hidden)
    rows, width = hidden.shape
    size = triton.next_power_of_2(width)
    _launch(
        _add_norm, (rows,), hidden, more, weight, total, normed, width,
        EPS=eps, SIZE=size, WIDE=_wide(hidden),
    )  # fmt: skip
    return total, normed


def rotate_and_keep(
    joined: Tensor, cos: Tensor, sin: Tensor, places: Tensor, keys: Tensor, values: Tensor
) -> Tensor:
    rows, groups, room, width = keys.shape
    heads = joined.shape[1] // width - 2 * groups
    query = joined.new_empty(rows, heads, width)
    _launch(
        _rotate_and_keep, (rows, heads + 2 * groups), joined, cos, sin, places, query, keys, values,
        heads, groups, room, HALF=width // 2, SIZE=triton.next_power_of_2(width // 2),
        WIDE=_wide(query),
    )  # fmt: skip
    return query


def attend(
    query: Tensor, keys: Tensor, values: Tensor, places: Tensor, scale: float, span: int
) -> Tensor:
    del span  # each row's own place ends its loop
    rows, groups, room, width = keys.shape
    heads = query.shape[1]
    out = torch.empty_like(query)
    _launch(
        _attend, (rows, heads), query, keys, values, places, out, room, SCALE=scale,
        EACH=heads // groups, WIDTH=width, SIZE=triton.next_power_of_2(width), TILE=TILE,
        WIDE=_wide(query),
    )  # fmt: skip
    return out.flatten(1)


def swiglu(joined: Tensor) -> Tensor:
    rows, width = joined.shape[0], joined.shape[1] // 2
    out = joined.new_empty(rows, width)
    _launch(
        _swiglu, (rows, triton.cdiv(width, 1024)), joined, out, width, SIZE=1024, WIDE=_wide(out)
    )
    return out


def gumbel(keys: Tensor, step: Tensor, codes: int, stream: int = 0) -> Tensor:
    out = torch.empty(len(keys), codes, dtype=torch.float64, device=keys.device)
    grid = (len(keys), triton.cdiv(codes, 4 * WORDS))
    _launch(_gumbel, grid, keys, step, out, codes, stream, ROUNDS=ROUNDS, SIZE=WORDS)
    return out


def _wide(states: Tensor) -> Any:
    """What sums of these are computed in."""
    return tl.float64 if states.dtype == torch.float64 else tl.float32


def _launch(kernel: Any, grid: tuple[int, ...], *given: Any, **constants: Any) -> None:
    kernel[grid](*given, **constants)


@triton.jit
def _add_norm(
    hidden, more, weight, total, normed, width, EPS: tl.constexpr, SIZE: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    row, place = tl.program_id(0).to(tl.int64), tl.arange(0, SIZE)
    inside = place < width
    at = row * width + place
    kind = total.dtype.element_ty
    own = tl.load(hidden + at, mask=inside, other=0.0).to(WIDE)
    # Rounded where torch rounds.
    own = (own + tl.load(more + at, mask=inside, other=0.0).to(WIDE)).to(kind)
    tl.store(total + at, own, mask=inside)
    wide = own.to(tl.float32)  # also of float64, as in transformers
    wide = wide * tl.rsqrt(tl.sum(wide * wide, 0) / width + EPS)
    scaled = tl.load(weight + place, mask=inside, other=0.0).to(WIDE) * wide.to(kind).to(WIDE)
    tl.store(normed + at, scaled.to(kind), mask=inside)


@triton.jit
def _rotate_and_keep(
    joined, cos, sin, places, query, keys, values, heads, groups, room,
    HALF: tl.constexpr, SIZE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    half = tl.arange(0, SIZE)
    inside = half < HALF
    kind = query.dtype.element_ty
    start = joined + (row * (heads + 2 * groups) + head) * 2 * HALF
    one = tl.load(start + half, mask=inside, other=0.0)
    two = tl.load(start + HALF + half, mask=inside, other=0.0)
    place = tl.load(places + row)
    if head < heads + groups:
        turn = place * 2 * HALF + half
        first, second = one.to(WIDE), two.to(WIDE)
        # Each product is rounded where torch rounds it.
        a = (first * tl.load(cos + turn, mask=inside, other=0.0).to(WIDE)).to(kind)
        b = (second * tl.load(sin + turn, mask=inside, other=0.0).to(WIDE)).to(kind)
        c = (second * tl.load(cos + turn + HALF, mask=inside, other=0.0).to(WIDE)).to(kind)
        d = (first * tl.load(sin + turn + HALF, mask=inside, other=0.0).to(WIDE)).to(kind)
        one = (a.to(WIDE) - b.to(WIDE)).to(kind)
        two = (c.to(WIDE) + d.to(WIDE)).to(kind)
    if head < heads:
        to = query + (row * heads + head) * 2 * HALF
    elif head < heads + groups:
        to = keys + ((row * groups + head - heads) * room + place) * 2 * HALF
    else:
        to = values + ((row * groups + head - heads - groups) * room + place) * 2 * HALF
    tl.store(to + half, one, mask=inside)
    tl.store(to + HALF + half, two, mask=inside)


@triton.jit
def _attend(
    query, keys, values, places, out, room, SCALE: tl.constexpr,
    EACH: tl.constexpr, WIDTH: tl.constexpr, SIZE: tl.constexpr, TILE: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    heads = tl.num_programs(1)
    place, inner = tl.arange(0, TILE), tl.arange(0, SIZE)
    own = inner < WIDTH
    at = (row * heads + head) * WIDTH + inner
    asked = tl.load(query + at, mask=own, other=0.0).to(WIDE) * SCALE
    start = (row * (heads // EACH) + head // EACH) * room * WIDTH
    seen = tl.load(places + row) + 1
    most = tl.full([], float("-inf"), WIDE)
    whole = tl.zeros([], WIDE)
    total = tl.zeros([SIZE], WIDE)
    for first in range(0, seen, TILE):
        real = first + place < seen
        where = start + (first + place)[:, None] * WIDTH + inner[None, :]
        kept = real[:, None] & own[None, :]
        key = tl.load(keys + where, mask=kept, other=0.0).to(WIDE)
        value = tl.load(values + where, mask=kept, other=0.0).to(WIDE)
        match = tl.where(real, tl.sum(asked[None, :] * key, 1), float("-inf"))
        higher = tl.maximum(most, tl.max(match, 0))
        shrink, weight = tl.exp(most - higher), tl.exp(match - higher)
        total = total * shrink + tl.sum(weight[:, None] * value, 0)
        whole = whole * shrink + tl.sum(weight, 0)
        most = higher
    tl.store(out + at, (total / whole).to(out.dtype.element_ty), mask=own)


@triton.jit
def _swiglu(joined, out, width, SIZE: tl.constexpr, WIDE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    inside = place < width
    kind = out.dtype.element_ty
    gate = tl.load(joined + row * 2 * width + place, mask=inside, other=0.0).to(WIDE)
    up = tl.load(joined + row * 2 * width + width + place, mask=inside, other=0.0).to(WIDE)
    open_ = (gate / (1 + tl.exp(-gate))).to(kind).to(WIDE)
    tl.store(out + row * width + place, (open_ * up).to(kind), mask=inside)


@triton.jit
def _gumbel(keys, step, out, codes, stream, ROUNDS: tl.constexpr, SIZE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    number = tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    left = tl.load(keys + 2 * row).to(tl.uint32)
    right = tl.load(keys + 2 * row + 1).to(tl.uint32)
    zero = (number * 0).to(tl.uint32)
    counter = (number.to(tl.uint32), zero + tl.load(step).to(tl.uint32), zero + stream, zero)
    words = tl.philox_impl(*counter, left, right, ROUNDS)
    for place in tl.static_range(4):
        share = (words[place].to(tl.float64) + 0.5) / 4294967296.0
        code = number * 4 + place
        tl.store(out + row * codes + code, -tl.log(-tl.log(share)), mask=code < codes)
