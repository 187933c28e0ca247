"""A key-value cache for drawing long rows of tokens."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """Keeps keys and values in a buffer with room for `room` more tokens.

    transformers' growing layer copies all of it at each token, its static one attends over the
    room that is still empty; this does neither.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self._view: Tensor | None = None
        self._buffers: tuple[Tensor, Tensor] = (torch.empty(0), torch.empty(0))

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append (B, H, new, D) keys and values; returns all of them, as views."""
        before = self.get_seq_length()
        if not before:
            first: tuple[Tensor, Tensor] = super().update(key_states, value_states)
            return first
        now = before + key_states.shape[-2]
        if self.keys is not self._view or now > self._buffers[0].shape[-2]:
            # At the first token after the prefix, or where rows were selected since.
            self._buffers = (self._grown(self.keys), self._grown(self.values))
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., before:now, :] = new
        self.keys, self.values = (buffer[..., :now, :] for buffer in self._buffers)
        self._view = self.keys
        return self.keys, self.values

    def _grown(self, held: Tensor) -> Tensor:
        *rows, length, width = held.shape
        buffer = held.new_empty(*rows, length + self.room, width)
        buffer[..., :length, :] = held
        return buffer


def roomy(tokens: int) -> Cache:
    """A cache for a prefix and `tokens` more tokens."""
    return Cache(layer_class_to_replicate=partial(RoomyLayer, tokens))
