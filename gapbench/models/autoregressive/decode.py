"""Rows of tokens in a Llama-like core: beginnings computed once, then one token a row at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import DynamicCache

from gapbench.models.autoregressive import plain
from gapbench.models.autoregressive.answers import cache_name

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
    that for one more token a row. A row's tokens lie from place 0 on. Where `fixed`, all shapes are
    the same whatever the rows are, so that none changes another's rounding.

    A step computes what the core's `forward` does without building masks, positions and outputs
    anew. Keys and values go into buffers made once: transformers' growing cache copies all of them
    at each token, its static one attends over the places that are still empty.
    """

    def __init__(
        self, core: Any, rows: int, length: int, room: int, fixed: bool, ops: Any = plain
    ) -> None:
        weight = core.get_input_embeddings().weight
        self._core, self._ops, self._fixed, self.rows = core, ops, fixed, rows
        self.length = -(-length // ROOM) * ROOM if fixed else length
        self.room = self.length + room
        config = core.config
        groups = config.num_key_value_heads
        width = core.layers[0].self_attn.head_dim
        # Zeros, since what is masked is still multiplied by 0.
        held = weight.new_zeros(config.num_hidden_layers, 2, rows, groups, self.room, width)
        self._held = [(keys, values) for keys, values in held]
        self._layers = [_Layer(layer) for layer in core.layers]
        places = torch.arange(self.room, device=weight.device)
        self._turns = [t[0] for t in core.rotary_emb(weight[:1], position_ids=places[None])]
        self._places = places.new_zeros(rows)
        self._end = 0
        self.hidden = weight.new_zeros(rows, weight.shape[1])
        """Of each row's last token."""

    def begin(self, rows: Sequence[Row]) -> None:
        """Compute the rows' beginnings; those that are alike once."""
        distinct = list(dict.fromkeys(rows))
        groups: dict[int, list[Row]] = {}
        for row in distinct:
            groups.setdefault(-(-len(row) // BUCKET) * BUCKET if self._fixed else 0, []).append(row)
        for width, alike in groups.items():
            size = self.rows if self._fixed else len(alike)
            for first in range(0, len(alike), size):
                self._fill(rows, alike[first : first + size], size, width or max(map(len, alike)))
        self._places.copy_(torch.tensor([len(row) for row in rows]))
        self._end = max(map(len, rows))

    def _fill(self, rows: Sequence[Row], alike: Sequence[Row], size: int, width: int) -> None:
        """Compute `size` beginnings padded on the right to a width, which a causal core does not
        see, and keep them for the rows that have them."""
        place = {row: number for number, row in enumerate(alike)}
        mine = [number for number, row in enumerate(rows) if row in place]
        padded = [[*row, *[0] * (width - len(row))] for row in alike]
        padded += [padded[0]] * (size - len(alike))
        device, cache = self.hidden.device, DynamicCache()
        states = self._core(
            input_ids=torch.tensor(padded, device=device),
            use_cache=True,
            **{cache_name(self._core): cache},
        ).last_hidden_state
        own = torch.tensor([place[rows[number]] for number in mine], device=device)
        last = torch.tensor([len(rows[number]) - 1 for number in mine], device=device)
        to = torch.tensor(mine, device=device)
        self.hidden[to] = states[own, last]
        for (keys, values), layer in zip(self._held, cache.layers, strict=True):
            keys[to, :, :width] = layer.keys[own]
            values[to, :, :width] = layer.values[own]

    def step(self, embeds: Tensor) -> None:
        """Put (R, W) embeddings of one more token a row through the core, into `hidden`."""
        self._end += 1
        span = -(-self._end // plain.SPAN) * plain.SPAN if self._fixed else self._end
        self.forward(embeds, min(span, self.room))

    def forward(self, embeds: Tensor, span: int) -> None:
        """`step` over the first `span` places: tensor operations alone, as a CUDA graph needs."""
        ops, places = self._ops, self._places
        hidden, more = embeds, torch.zeros_like(embeds)
        for layer, (keys, values) in zip(self._layers, self._held, strict=True):
            hidden, normed = ops.add_norm(hidden, more, *layer.first)
            joined = layer.attention(normed)
            query = ops.rotate_and_keep(joined, *self._turns, places, keys, values)
            seen = ops.attend(query, keys, values, places, layer.scale, span)
            hidden, normed = ops.add_norm(hidden, layer.out(seen), *layer.second)
            more = layer.down(ops.swiglu(layer.up(normed)))
        norm = self._core.norm
        _, last = ops.add_norm(hidden, more, norm.weight, norm.variance_epsilon)
        self.hidden.copy_(last)
        places += 1


class _Layer:
    """What a step needs of a decoder layer."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.first, self.second = (
            (norm.weight, norm.variance_epsilon)
            for norm in (layer.input_layernorm, layer.post_attention_layernorm)
        )
        self.attention = joined([attention.q_proj, attention.k_proj, attention.v_proj])
        self.scale = attention.scaling
        self.out, self.up, self.down = (
            attention.o_proj,
            joined([mlp.gate_proj, mlp.up_proj]),
            mlp.down_proj,
        )


@torch.inference_mode(False)
@torch.no_grad()
def joined(layers: Sequence[nn.Module]) -> Callable[[Tensor], Tensor]:
    """Linear layers of one input as one function, whose outputs follow one another.

    Their weights become views of one tensor, so that training one changes the other. Layers that
    are more than a linear map, such as those with a LoRA adapter, are called one by one.
    """
    if not all(type(layer) is nn.Linear for layer in layers):
        return lambda given: torch.cat([layer(given) for layer in layers], -1)
    whole: list[Tensor | None] = []
    for name in ("weight", "bias"):
        own = [getattr(layer, name) for layer in layers]
        if own[0] is None:
            whole.append(None)
            continue
        if not _follow(own):  # as they do where another decoder has joined them
            together = torch.cat([each.data for each in own])
            for each, part in zip(own, torch.split(together, list(map(len, own))), strict=True):
                each.data = part
        first = own[0].data
        whole.append(first.as_strided((sum(map(len, own)), *first.shape[1:]), first.stride()))
    weight, bias = whole
    assert weight is not None
    return lambda given: linear(given, weight, bias)


def _follow(tensors: Sequence[Tensor]) -> bool:
    """Whether each one begins where the one before it ends, in one tensor."""
    one = all(
        each.is_contiguous()
        and each.untyped_storage().data_ptr() == tensors[0].untyped_storage().data_ptr()
        for each in tensors
    )
    ends = (each.data_ptr() + each.nbytes for each in tensors)
    return one and all(end == each.data_ptr() for end, each in zip(ends, tensors[1:], strict=False))
