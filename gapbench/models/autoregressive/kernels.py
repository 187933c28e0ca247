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
"""Bytes of a key's number, times the keys that one turn of the attention's loop looks at."""
HEADS: Final = 8
"""Heads of a token that one program turns."""
STAGES: Final = 3
"""Turns of that loop whose keys and values are on their way at once."""
LEAST = tl.constexpr(-1e30)
"""A place that sees nothing: not infinite, since the difference of two such is taken."""
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
    tokens, heads = len(joined), joined.shape[1] // width - 2 * groups
    query = joined.new_empty(tokens, heads, width)
    grid = (tokens, triton.cdiv(heads + 2 * groups, HEADS))
    _launch(
        _rotate_and_keep, grid, joined, cos, sin, places, query, keys, values,
        heads, groups, room, tokens // rows, HEADS=HEADS,
        HALF=width // 2, SIZE=triton.next_power_of_2(width // 2), WIDE=_wide(query),
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
        EACH=heads // groups, WIDTH=width, SIZE=triton.next_power_of_2(width),
        TILE=TILE // query.element_size(), STAGES=STAGES, WIDE=_wide(query),
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
    joined, cos, sin, places, query, keys, values, heads, groups, room, each,
    HALF: tl.constexpr, SIZE: tl.constexpr, HEADS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    row, place = token // each, tl.load(places + token)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    half = tl.arange(0, SIZE)[None, :]
    inside = half < HALF
    kind = query.dtype.element_ty
    start = joined + (token * (heads + 2 * groups) + head) * 2 * HALF + half
    real = inside & (head < heads + 2 * groups)
    one = tl.load(start, mask=real, other=0.0)
    two = tl.load(start + HALF, mask=real, other=0.0)
    turn = place * 2 * HALF + half
    first, second = one.to(WIDE), two.to(WIDE)
    # Each product is rounded where torch rounds it.
    a = (first * tl.load(cos + turn, mask=inside, other=0.0).to(WIDE)).to(kind)
    b = (second * tl.load(sin + turn, mask=inside, other=0.0).to(WIDE)).to(kind)
    c = (second * tl.load(cos + turn + HALF, mask=inside, other=0.0).to(WIDE)).to(kind)
    d = (first * tl.load(sin + turn + HALF, mask=inside, other=0.0).to(WIDE)).to(kind)
    turned = head < heads + groups
    one = tl.where(turned, (a.to(WIDE) - b.to(WIDE)).to(kind), one)
    two = tl.where(turned, (c.to(WIDE) + d.to(WIDE)).to(kind), two)
    to = query + (token * heads + head) * 2 * HALF + half
    asks = real & (head < heads)
    tl.store(to, one, mask=asks)
    tl.store(to + HALF, two, mask=asks)
    to = ((row * groups + head - heads) * room + place) * 2 * HALF + half
    own = real & turned & (head >= heads)
    tl.store(keys + to, one, mask=own)
    tl.store(keys + to + HALF, two, mask=own)
    to = ((row * groups + head - heads - groups) * room + place) * 2 * HALF + half
    own = real & (head >= heads + groups)
    tl.store(values + to, one, mask=own)
    tl.store(values + to + HALF, two, mask=own)


@triton.jit
def _attend(
    query, keys, values, places, out, room, SCALE: tl.constexpr,
    EACH: tl.constexpr, WIDTH: tl.constexpr, SIZE: tl.constexpr, TILE: tl.constexpr,
    STAGES: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    heads = tl.num_programs(1)
    place, inner = tl.arange(0, TILE), tl.arange(0, SIZE)
    own = inner < WIDTH
    at = (row * heads + head) * WIDTH + inner
    asked = tl.load(query + at, mask=own, other=0.0).to(WIDE) * SCALE
    start = (row * (heads // EACH) + head // EACH) * room * WIDTH
    seen = tl.load(places + row) + 1
    # Each place of the tile has a maximum and sums of its own, which are joined in the end: a turn
    # then waits for its own keys and values alone.
    most = tl.full([TILE], LEAST, WIDE)
    whole = tl.zeros([TILE], WIDE)
    total = tl.zeros([TILE, SIZE], WIDE)
    for first in tl.range(0, seen, TILE, num_stages=STAGES):
        real = first + place < seen
        where = start + (first + place)[:, None] * WIDTH + inner[None, :]
        kept = real[:, None] & own[None, :]
        key = tl.load(keys + where, mask=kept, other=0.0).to(WIDE)
        value = tl.load(values + where, mask=kept, other=0.0).to(WIDE)
        match = tl.where(real, tl.sum(asked[None, :] * key, 1), LEAST)
        higher = tl.maximum(most, match)
        shrink, weight = tl.exp(most - higher), tl.exp(match - higher)
        total = total * shrink[:, None] + weight[:, None] * value
        whole = whole * shrink + weight
        most = higher
    part = tl.exp(most - tl.max(most, 0))
    mean = tl.sum(total * part[:, None], 0) / tl.sum(whole * part, 0)
    tl.store(out + at, mean.to(out.dtype.element_ty), mask=own)


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
