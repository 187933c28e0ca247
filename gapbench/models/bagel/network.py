"""BAGEL's network: a Qwen2 whose layers hold two sets of weights, one for text and seen pictures,
one for latents that are drawn; all tokens attend to one another.

Modules are named as in the published ema.safetensors. Source: ByteDance-Seed/Bagel 056b5fd,
modeling/bagel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint
from transformers import Qwen2Config as Qwen2Config
from transformers import SiglipVisionConfig as SiglipVisionConfig
from transformers.activations import ACT2FN
from transformers.models.qwen2.modeling_qwen2 import (
    Qwen2MLP,
    Qwen2RMSNorm,
    Qwen2RotaryEmbedding,
    apply_rotary_pos_emb,
    repeat_kv,
)
from transformers.models.siglip.modeling_siglip import SiglipEncoder

from gapbench.models.bagel.pictures import Geometry

SETS: Final = ("", "_moe_gen")
"""Endings of the modules' names: of the weights that understand, and of those that draw."""
ACTIVATION: Final = "gelu_pytorch_tanh"
FREQUENCIES: Final = 256
"""Of the embedding of times."""
Streams = Sequence[Tensor]
"""Hidden states (B, T, W) of the tokens of each set, in the order of SETS."""
Held = tuple[Tensor, Tensor]
"""A layer's keys and values (B, G, T, D)."""


@dataclass(frozen=True, slots=True)
class Context:
    """What rows have read and seen: each layer's keys and values, which of them are real (B, keys),
    and the place of the next token (B,)."""

    held: Sequence[Held]
    real: Tensor
    place: Tensor

    def rows(self, which: Any) -> Context:
        """Some of the rows, by a slice or by their numbers."""
        held = [(keys[which], values[which]) for keys, values in self.held]
        return Context(held, self.real[which], self.place[which])

    def sight(self, new: int, causal: bool) -> Tensor | None:
        """Which keys (B, 1, new or 1, keys) so many new tokens see; None where all see all."""
        if not causal and not self.real.shape[1]:
            return None
        own = torch.ones(new if causal else 1, new, dtype=torch.bool, device=self.real.device)
        own = own.tril() if causal else own
        before = self.real[:, None, None].expand(-1, -1, len(own), -1)
        return torch.cat([before, own.expand(len(before), 1, -1, -1)], 3)


class Attention(nn.Module):
    """Attention of both sets' tokens to all keys."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        wide, heads = config.hidden_size, config.num_attention_heads
        self.groups, self.width = config.num_key_value_heads, wide // heads
        self.repeats = heads // self.groups
        for end in SETS:
            for name, out in (("q", heads), ("k", self.groups), ("v", self.groups)):
                setattr(self, f"{name}_proj{end}", nn.Linear(wide, out * self.width))
            setattr(self, f"o_proj{end}", nn.Linear(heads * self.width, wide, bias=False))
            for name in ("q_norm", "k_norm"):
                norm = Qwen2RMSNorm(self.width, eps=config.rms_norm_eps)
                setattr(self, f"{name}{end}", norm)

    def forward(
        self, streams: Streams, turns: Held, past: Held | None, mask: Tensor | None
    ) -> tuple[list[Tensor], Held]:
        """Each stream's attention (B, T, W), and the keys and values of past and present."""
        heads = {name: self._heads(name, streams) for name in "qkv"}
        queries, keys = apply_rotary_pos_emb(heads["q"], heads["k"], *turns)
        values = heads["v"]
        if past is not None:
            keys, values = torch.cat([past[0], keys], 2), torch.cat([past[1], values], 2)
        seen = scaled_dot_product_attention(
            queries, repeat_kv(keys, self.repeats), repeat_kv(values, self.repeats), attn_mask=mask
        )
        parts = torch.split(seen.transpose(1, 2).flatten(2), [s.shape[1] for s in streams], 1)
        return each(self, "o_proj", parts), (keys, values)

    def _heads(self, name: str, streams: Streams) -> Tensor:
        """Queries, keys or values of all streams, (B, heads, T, D)."""
        made = each(self, f"{name}_proj", streams)
        made = [part.view(*part.shape[:2], -1, self.width) for part in made]
        if name != "v":
            made = each(self, f"{name}_norm", made)
        return torch.cat(list(made), 1).transpose(1, 2)


class Layer(nn.Module):
    """A layer of the language model."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        for end in SETS:
            setattr(self, f"mlp{end}", Qwen2MLP(config))
            for name in ("input_layernorm", "post_attention_layernorm"):
                norm = Qwen2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
                setattr(self, f"{name}{end}", norm)

    def forward(
        self, streams: Streams, turns: Held, past: Held | None, mask: Tensor | None
    ) -> tuple[Streams, Held]:
        """The streams after this layer, and its keys and values."""
        seen, held = self.self_attn(each(self, "input_layernorm", streams), turns, past, mask)
        streams = [stream + more for stream, more in zip(streams, seen, strict=True)]
        thought = each(self, "mlp", each(self, "post_attention_layernorm", streams))
        return [stream + more for stream, more in zip(streams, thought, strict=True)], held


class Core(nn.Module):
    """The language model without its head."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.checkpointing: dict[str, Any] | None = None
        for end in SETS:
            setattr(self, f"norm{end}", Qwen2RMSNorm(config.hidden_size, eps=config.rms_norm_eps))
        with torch.device("cpu"):  # no weights: not left empty where the others are, to be loaded
            self.rotary_emb = Qwen2RotaryEmbedding(config)

    def forward(
        self,
        streams: Streams,
        places: Tensor,
        past: Sequence[Held],
        mask: Tensor | None,
        keep: bool = True,
    ) -> tuple[Streams, list[Held]]:
        """Last hidden states of each stream, and each layer's keys and values, if they are kept.

        `places` (B, T) are the positions of all tokens, `past` (if any) is what they see besides
        themselves, `mask` as `Context.sight` gives it.
        """
        turns = self.rotary_emb(streams[0], places)
        held: list[Held] = []
        for number, layer in enumerate(self.layers):
            given = streams, turns, past[number] if past else None, mask
            if self.checkpointing is not None and torch.is_grad_enabled():
                streams, own = checkpoint(layer, *given, **self.checkpointing)
            else:
                streams, own = layer(*given)
            held += [own] * keep
        return each(self, "norm", streams), held


class Language(nn.Module):
    """The language model."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.model = Core(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)


class Table(nn.Module):
    """Fixed embeddings of the places of a grid."""

    def __init__(self, side: int, wide: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.empty(side * side, wide), requires_grad=False)


class Clock(nn.Module):
    """Embeddings of times."""

    def __init__(self, wide: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, wide), nn.SiLU(), nn.Linear(wide, wide))

    def forward(self, times: Tensor) -> Tensor:
        """(B, W) of times (B,) between 0 and 1."""
        half = FREQUENCIES // 2
        numbers = torch.arange(half, dtype=torch.float32, device=times.device)
        angles = times.float()[:, None] * torch.exp(-math.log(10000) * numbers / half)
        waves = torch.cat([angles.cos(), angles.sin()], 1)
        first: Any = self.mlp[0]
        made: Tensor = self.mlp(waves.to(first.weight.dtype))
        return made


class Connector(nn.Module):
    """From the vision tower to the language model."""

    def __init__(self, sees: int, wide: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(sees, wide), nn.Linear(wide, wide)
        self.activation = ACT2FN[ACTIVATION]

    def forward(self, states: Tensor) -> Tensor:
        made: Tensor = self.fc2(self.activation(self.fc1(states)))
        return made


class Tower(nn.Module):
    """SigLIP, fed with patches and their places in the largest grid, and without its head."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        patch, wide = config.num_channels * config.patch_size**2, config.hidden_size
        side = config.image_size // config.patch_size
        self.embeddings = nn.ModuleDict(
            {
                "patch_embedding": nn.Linear(patch, wide),
                "position_embedding": nn.Embedding(side * side, wide),
            }
        )
        self.encoder = SiglipEncoder(config)
        self.post_layernorm = nn.LayerNorm(wide, eps=config.layer_norm_eps)

    def forward(self, patches: Tensor, places: Tensor) -> Tensor:
        """(B, T, sees) of patches (B, T, 3 * side of a patch squared) at places (T,)."""
        embeds = self.embeddings["patch_embedding"](patches)
        embeds = embeds + self.embeddings["position_embedding"](places)
        made: Tensor = self.post_layernorm(self.encoder(inputs_embeds=embeds).last_hidden_state)
        return made


class Bagel(nn.Module):
    """All weights but the autoencoder's."""

    def __init__(self, text: Any, vision: Any, geometry: Geometry) -> None:
        super().__init__()
        wide = text.hidden_size
        drawn = geometry.latent_width
        self.language_model = Language(text)
        self.vit_model = nn.ModuleDict({"vision_model": Tower(vision)})
        self.connector = Connector(vision.hidden_size, wide)
        self.vit_pos_embed = Table(geometry.vision_side, wide)
        self.time_embedder = Clock(wide)
        self.vae2llm, self.llm2vae = nn.Linear(drawn, wide), nn.Linear(wide, drawn)
        self.latent_pos_embed = Table(geometry.latent_side, wide)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.vae2llm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are in."""
        return self.vae2llm.weight.dtype

    def gradient_checkpointing_enable(self, given: Mapping[str, Any]) -> None:
        """Compute what is between the layers again when gradients are, as transformers' models."""
        self.language_model.model.checkpointing = dict(given)

    def blank(self, rows: int) -> Context:
        """Rows that have read nothing."""
        none = torch.zeros(rows, 0, dtype=torch.bool, device=self.device)
        return Context([], none, none.new_zeros(rows, dtype=torch.long))

    def read(self, context: Context, ids: Tensor, lengths: Tensor) -> tuple[Tensor, Context]:
        """Hidden states (B, T, W) of token ids (B, T), which are padded on the right to more than
        `lengths` (B,), and the rows that have read them."""
        if not ids.shape[1]:
            return self.vae2llm.weight.new_empty(*ids.shape, 0), context
        core, numbers = self.language_model.model, torch.arange(ids.shape[1], device=ids.device)
        places, mask = context.place[:, None] + numbers, context.sight(ids.shape[1], True)
        (states,), held = core([core.embed_tokens(ids)], places, context.held, mask)
        real = torch.cat([context.real, numbers < lengths[:, None]], 1)
        return states, Context(held, real, context.place + lengths)

    def see(self, context: Context, patches: Tensor, places: Tensor, marks: Tensor) -> Context:
        """The rows when they have seen pictures too, whose patches are as `Tower` takes them.

        `marks` (2,) are the token ids before and after a picture. All its tokens are at one place.
        """
        features = self.connector(self.vit_model["vision_model"](patches, places))
        features = features + self.vit_pos_embed.pos_embed[places]
        core, count = self.language_model.model, len(patches)
        before, after = core.embed_tokens(marks).expand(count, -1, -1).split(1, 1)
        tokens = torch.cat([before, features, after], 1)
        own = context.place[:, None].expand(-1, tokens.shape[1])
        _, held = core([tokens], own, context.held, context.sight(tokens.shape[1], False))
        real = torch.cat([context.real, context.real.new_ones(own.shape)], 1)
        return Context(held, real, context.place + 1)

    def velocity(
        self, context: Context, latents: Tensor, places: Tensor, times: Tensor, marks: Tensor
    ) -> Tensor:
        """How latents (B, S, C) at these places (S,) of the grid change with time (B,) towards
        noise, for rows that have read what to draw."""
        core = self.language_model.model
        drawn = self.vae2llm(latents.to(self.dtype)) + self.time_embedder(times)[:, None]
        drawn = drawn + self.latent_pos_embed.pos_embed[places]
        around = core.embed_tokens(marks).expand(len(latents), -1, -1)
        tokens = drawn.shape[1] + 2
        own = context.place[:, None].expand(-1, tokens)
        mask = context.sight(tokens, False)
        streams, _ = core([around, drawn], own, context.held, mask, keep=False)
        made: Tensor = self.llm2vae(streams[1])
        return made


def each(owner: nn.Module, name: str, streams: Streams) -> list[Tensor]:
    """What the module `name` of each set makes of that set's stream."""
    return [getattr(owner, name + end)(s) for end, s in zip(SETS, streams, strict=False)]
