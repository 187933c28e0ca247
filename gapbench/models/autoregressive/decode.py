"""Rows of tokens in a Llama-like core: beginnings computed once, then one token a row at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

from gapbench.models.autoregressive import plain
from gapbench.models.autoregressive.layers import Layers, causal

Row = tuple[int, ...]
"""Token ids of what a row begins with."""
BUCKET: Final = 32
"""Beginnings are padded to a multiple of so many tokens: a shape that a row's companions do not
change."""
ROOM: Final = 64
"""Buffers have place for a multiple of so many tokens, so that most batches fit into one's."""


class Decoder:
    """Keys and values of `rows` rows in a core of transformers' (Llama, Emu3), with place for
    beginnings of `length` tokens and `room` tokens more; in inference mode.

    `begin` fills them and gives what the core gives for each row's last token, (R, W); `step` gives
    that for one more token a row. A row's tokens lie from place 0 on; one that begins with none
    stays empty, so that attention has nothing to read for it. Where `fixed`, all shapes are
    the same whatever the rows are, so that none changes another's rounding.

    Keys and values go into buffers made once: transformers' growing cache copies all of them at
    each token, its static one attends over the places that are still empty.
    """

    def __init__(
        self, core: Any, rows: int, length: int, room: int, fixed: bool, ops: Any = plain
    ) -> None:
        weight = core.get_input_embeddings().weight
        self._core, self._ops, self._fixed, self.rows = core, ops, fixed, rows
        self.length = -(-length // ROOM) * ROOM if fixed else length
        self.room = self.length + room
        self._layers = Layers(core, ops)
        # Zeros, since what is masked is still multiplied by 0.
        self._held = [self._layers.buffer(rows, self.room) for _ in core.layers]
        for buffers in self._held:
            for buffer in buffers:
                buffer.zero_()
        self._turns = self._layers.turns(self.room)
        self._places = torch.zeros(rows, dtype=torch.long, device=weight.device)
        self._more = torch.zeros_like(self._places)
        self._end = 0
        self.hidden = weight.new_zeros(rows, weight.shape[1])
        """Of each row's last token."""

    def begin(self, rows: Sequence[Row]) -> None:
        """Compute the rows' beginnings; those that are alike once."""
        distinct = list(dict.fromkeys(filter(None, rows)))
        groups: dict[int, list[Row]] = {}
        for row in distinct:
            groups.setdefault(-(-len(row) // BUCKET) * BUCKET if self._fixed else 0, []).append(row)
        for width, alike in groups.items():
            size = self.rows if self._fixed else len(alike)
            for first in range(0, len(alike), size):
                self._fill(rows, alike[first : first + size], size, width or max(map(len, alike)))
        self._places.copy_(torch.tensor([len(row) for row in rows]))
        self._more.copy_(self._places.clamp(max=1))
        self._end = max(map(len, rows))

    def _fill(self, rows: Sequence[Row], alike: Sequence[Row], size: int, width: int) -> None:
        """Compute `size` beginnings padded on the right to a width, which a causal core does not
        see, and keep them for the rows that have them."""
        place = {row: number for number, row in enumerate(alike)}
        mine = [number for number, row in enumerate(rows) if row in place]
        padded = [[*row, *[0] * (width - len(row))] for row in alike]
        padded += [padded[0]] * (size - len(alike))
        device, made = self.hidden.device, self._layers
        embeds = self._core.get_input_embeddings()(torch.tensor(padded, device=device))
        held = [made.buffer(size, width) for _ in self._held]
        here = torch.arange(width, device=device).repeat(size)
        states = made.forward(embeds.flatten(0, 1), here, self._turns, held, causal)
        own = torch.tensor([place[rows[number]] for number in mine], device=device)
        last = torch.tensor([len(rows[number]) - 1 for number in mine], device=device)
        to = torch.tensor(mine, device=device)
        self.hidden[to] = states.view(size, width, -1)[own, last]
        for whole, begun in zip(self._held, held, strict=True):
            for kept, theirs in zip(whole, begun, strict=True):
                kept[to, :, :width] = theirs[own]

    def step(self, embeds: Tensor) -> None:
        """Put (R, W) embeddings of one more token a row through the core, into `hidden`."""
        self._end += 1
        span = -(-self._end // plain.SPAN) * plain.SPAN if self._fixed else self._end
        self.forward(embeds, min(span, self.room))

    def forward(self, embeds: Tensor, span: int) -> None:
        """`step` over the first `span` places: tensor operations alone, as a CUDA graph needs."""
        ops, places = self._ops, self._places

        def attend(query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
            seen: Tensor = ops.attend(query, keys, values, places, scale, span)
            return seen

        last = self._layers.forward(embeds, places, self._turns, self._held, attend)
        self.hidden.copy_(last)
        places += self._more
