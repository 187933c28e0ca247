"""Drawing long rows of tokens: prefixes computed once, then one token a row at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import DynamicCache

from gapbench.models.autoregressive.answers import cache_name, positions
from gapbench.models.autoregressive.sampling import Recipe, draw, guide, uniforms, warp

SPAN: Final = 128
"""On a GPU attention looks over a multiple of this many tokens: one CUDA graph for each."""


class Decoder:
    """Rows of tokens in a Llama-like core of transformers' (Llama, Emu3), in inference mode.

    `ids` and `mask` (R, T) are the rows' beginnings, padded on the left; rows that begin alike are
    computed once. `hidden` (R, W) is what the core gives for the last token, `step` gives that for
    one more token a row, at most `room` times.

    A step calls the core's own layers and computes what its `forward` does, bit for bit, without
    building masks, positions and outputs anew. Keys and values go into buffers made once:
    transformers' growing cache copies all of them at each token, its static one attends over the
    room that is still empty.
    """

    def __init__(self, core: Any, ids: Tensor, mask: Tensor, room: int) -> None:
        begins = [tuple(row) for row in torch.cat([ids, mask], 1).tolist()]
        place = {begin: number for number, begin in enumerate(dict.fromkeys(begins))}
        rows = [place[begin] for begin in begins]
        ids, mask = torch.tensor(list(place), device=ids.device).chunk(2, 1)
        embeds, cache = core.get_input_embeddings()(ids), DynamicCache()
        self.hidden: Tensor = core(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=positions(mask),
            use_cache=True,
            **{cache_name(core): cache},
        ).last_hidden_state[rows, -1]
        self._core, self._length, self._start = core, ids.shape[1], ids.shape[1]
        self._total = self._start + room
        # With room, which holds zeros, since what is masked is still multiplied by 0.
        self._held = [
            (pad(layer.keys[rows], (0, 0, 0, room)), pad(layer.values[rows], (0, 0, 0, room)))
            for layer in cache.layers
        ]
        mask = mask[rows]
        self._mask = embeds.new_full((len(rows), 1, 1, self._total), -torch.inf)
        self._mask[..., : self._start].masked_fill_(mask[:, None, None].bool(), 0)
        steps = mask.sum(1, keepdim=True) + torch.arange(room, device=ids.device)
        # (R, 1, room, D) each: what the rotary embedding multiplies by, for all steps.
        self._turns = tuple(t.unsqueeze(1) for t in core.rotary_emb(embeds, position_ids=steps))
        self._at = torch.tensor([self._start], device=ids.device)
        self._fed = torch.empty_like(self.hidden)
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] | None = (
            {} if embeds.is_cuda else None
        )

    def step(self, embeds: Tensor) -> Tensor:
        """(R, W) embeddings of one more token a row to (R, W) hidden states."""
        self._length += 1
        after = None
        if self._graphs is not None:
            after = self._replayed(embeds, min(self._total, -(-self._length // SPAN) * SPAN))
        if after is None:
            after = self._forward(embeds, self._length)
        self._at += 1
        return after

    def _forward(self, hidden: Tensor, span: int) -> Tensor:
        """A step at place `_at` that looks over the first `span` places."""
        cos, sin = (turns.index_select(2, self._at - self._start) for turns in self._turns)
        mask = self._mask.index_fill_(3, self._at, 0)[..., :span]
        for layer, (keys, values) in zip(self._core.layers, self._held, strict=True):
            attention, normed = layer.self_attn, layer.input_layernorm(hidden)
            query, key, value = (
                project(normed).unflatten(1, (-1, 1, attention.head_dim))
                for project in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            keys.index_copy_(2, self._at, _turned(key, cos, sin))
            values.index_copy_(2, self._at, value)
            seen = scaled_dot_product_attention(
                _turned(query, cos, sin),
                keys[:, :, :span],
                values[:, :, :span],
                attn_mask=mask,
                scale=attention.scaling,
                enable_gqa=attention.num_key_value_groups > 1,
            )
            hidden = hidden + attention.o_proj(seen.flatten(1))
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        last: Tensor = self._core.norm(hidden)
        return last

    def _replayed(self, embeds: Tensor, span: int) -> Tensor | None:
        """`_forward` as a CUDA graph, since launching its kernels one by one takes longer than they
        run; None, from then on, where it cannot be made one or gives something else."""
        assert self._graphs is not None
        self._fed.copy_(embeds)
        if span not in self._graphs:
            try:
                plain = self._forward(self._fed, span)  # warms up; done twice it gives the same
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    out = self._forward(self._fed, span)
                graph.replay()
                same = torch.allclose(out, plain, rtol=0.05, atol=0.05)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:
                same = False
            if not same:
                self._graphs = None
                return None
            self._graphs[span] = graph, out
        graph, out = self._graphs[span]
        graph.replay()
        return out


def _turned(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The rotary embedding of (R, H, 1, D) as transformers lays it out: in halves, not pairs."""
    one, two = states.chunk(2, -1)
    return states * cos + torch.cat((-two, one), -1) * sin


def draw_tokens(
    hidden: Tensor,
    head: Callable[[Tensor], Tensor],
    feed: Callable[[Tensor, int], Tensor],
    recipe: Recipe,
    seeds: Sequence[int],
    steps: int,
) -> tuple[NDArray[np.int32], list[float]]:
    """(B, steps) tokens, each row from its seed's own stream, and their log-probabilities' sums.

    `hidden` goes before the first token: (2B, W), conditional rows first, where the recipe guides,
    else (B, W). `head` makes logits of it, `feed` the next from the (B,) tokens drawn at a step.
    """
    uniform = uniforms(list(seeds), steps).to(hidden.device)
    tokens = torch.empty(len(seeds), steps, dtype=torch.long, device=hidden.device)
    total = torch.zeros(len(seeds), dtype=torch.float64, device=hidden.device)
    for step in range(steps):
        logits = head(hidden).double()
        logprobs = warp(guide(logits, recipe.guidance) if recipe.guided else logits, recipe)
        token = draw(logprobs, uniform[:, step])
        tokens[:, step] = token
        total += logprobs.gather(1, token.unsqueeze(1)).squeeze(1)
        if step + 1 < steps:
            hidden = feed(token, step)
    return tokens.to("cpu", torch.int32).numpy(), total.tolist()
