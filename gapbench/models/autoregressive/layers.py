"""The layers of a Llama-like core, a few launches each: what transformers' `forward` computes,
without building masks, positions, caches and outputs anew."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

Held = tuple[Tensor, Tensor]
"""A layer's keys and values."""
Attend = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""Of queries (R, H, D), a layer's keys and values (N, G, room, D), and the scale of their products:
(R, H * D)."""


class Layers:
    """The layers and the last norm of a core of transformers' (Llama, Emu3), whose small functions
    are those of `ops` (see `plain`)."""

    def __init__(self, core: Any, ops: Any) -> None:
        self._core, self._ops = core, ops
        self._layers = [_Layer(layer) for layer in core.layers]
        self.device: torch.device = core.get_input_embeddings().weight.device

    def __len__(self) -> int:
        return len(self._layers)

    def buffer(self, rows: int, room: int) -> Held:
        """Place for the keys and values of rows of so many tokens, (rows, G, room, D) each."""
        config, width = self._core.config, self._core.layers[0].self_attn.head_dim
        shape = 2, rows, config.num_key_value_heads, room, width
        keys, values = self._core.get_input_embeddings().weight.new_empty(shape)
        return keys, values

    def turns(self, length: int) -> list[Tensor]:
        """Cosines and sines (length, D) of the rotary embedding at the first places."""
        weight = self._core.get_input_embeddings().weight
        places = torch.arange(length, device=weight.device)
        return [turn[0] for turn in self._core.rotary_emb(weight[:1], position_ids=places[None])]

    def forward(
        self,
        embeds: Tensor,
        places: Tensor,
        turns: Sequence[Tensor],
        held: Iterable[Held],
        attend: Attend,
        states: bool = True,
    ) -> Tensor:
        """(R, W): the last hidden states of embeddings (R, W) of tokens at places (R,); without
        `states`, where keys and values alone are wanted, what goes into the last layer.

        `held` are the buffers (N, G, room, D) of each layer's keys and values, which the tokens'
        own go into: R / N tokens that follow one another are a row's.
        """
        hidden: Tensor = embeds
        ops, more = self._ops, torch.zeros_like(embeds)
        for layer, (keys, values) in zip(self._layers, held, strict=True):
            hidden, normed = ops.add_norm(hidden, more, *layer.first)
            joined = layer.attention(normed)
            query = ops.rotate_and_keep(joined, *turns, places, keys, values)
            if not states and layer is self._layers[-1]:
                return hidden
            seen = attend(query, keys, values, layer.scale)
            hidden, normed = ops.add_norm(hidden, layer.out(seen), *layer.second)
            more = layer.down(ops.swiglu(layer.up(normed)))
        norm = self._core.norm
        last: Tensor = ops.add_norm(hidden, more, norm.weight, norm.variance_epsilon)[1]
        return last


def sent(given: Tensor, device: torch.device | str) -> Tensor:
    """A tensor of the CPU on a device. A GPU gets it in its turn: the copy does not wait for what
    is computed there, and the next block can be prepared meanwhile."""
    if torch.device(device).type != "cuda":
        return given.to(device)
    return given.pin_memory().to(device, non_blocking=True)


def causal(query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """(N * T, H * D): attention of each row's last T tokens, whose queries are (N * T, H, D), over
    its keys and values (N, G, S, D), up to each token's own."""
    rows, groups, seen, width = keys.shape
    asked = query.view(rows, -1, *query.shape[1:]).transpose(1, 2)
    heads, tokens = asked.shape[1:3]
    if groups < heads:
        keys, values = (each.repeat_interleave(heads // groups, 1) for each in (keys, values))
    mask = None
    if tokens < seen:
        whole = torch.ones(tokens, seen, dtype=torch.bool, device=query.device)
        mask = whole.tril(seen - tokens)
    out: Tensor = scaled_dot_product_attention(
        asked, keys, values, attn_mask=mask, is_causal=mask is None, scale=scale
    )
    return out.transpose(1, 2).reshape(-1, heads * width)


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
