"""Images are drawn in blocks of one size, whatever a batch holds: the shapes that the network sees
are always the same, and so are its kernels and the order of every sum."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gapbench.models.autoregressive.decode import Row
from gapbench.models.autoregressive.draw import Drawer, Language, operations
from gapbench.models.autoregressive.graphs import Graphs
from gapbench.models.autoregressive.layers import Layers
from gapbench.models.autoregressive.sampling import Recipe

SIZE: Final = {"cuda": 64, "cpu": 8}
"""Images of a block, by kind of device."""
PICTURES: Final = 16
"""Pictures that a GPU decodes together; a CPU is no faster with more than one."""
ASKED: Final = 16
"""Questions that are computed together at most: more are no faster, and fewer images with many
questions each would be padded further."""
SHARE: Final = 0.8
"""Of a GPU's memory, for weights, keys and values."""
CHECKED: Final = 16
"""Tokens of an image that are drawn twice before a run, to see whether its batch changes them."""

T = TypeVar("T")
Draw = Callable[[Sequence[str], Sequence[int]], NDArray[np.int32]]


def size_for(device: str, dtype: str, weights: int, image: Callable[[], int]) -> int:
    """How many images a block has: on a GPU as many as its memory has place for, by the bytes of
    the weights and of an image's keys and values; 0, as many as the batch, in float64 on a CPU,
    where no rounding is ever seen."""
    kind = torch.device(device).type
    if (kind, dtype) == ("cpu", "float64"):
        return 0
    size = SIZE.get(kind, SIZE["cpu"])
    if kind != "cuda":
        return size
    return fitting(size, torch.cuda.get_device_properties(device).total_memory, weights, image())


def fitting(size: int, memory: float, weights: int, image: int) -> int:
    """`size`, halved until the weights and so many images' keys and values fit into a memory; all
    in bytes."""
    while size > 1 and weights + size * image > SHARE * memory:
        size //= 2
    return size


def filled(
    items: Iterable[T], shape: Callable[[T], object], size: int
) -> Iterator[tuple[list[T], list[T]]]:
    """Items of one shape, in order, and the same filled up to a block of `size`; 0: as they are."""
    groups: dict[object, list[T]] = {}
    for item in items:
        groups.setdefault(shape(item), []).append(item)
    for alike in groups.values():
        step = size or len(alike)
        for first in range(0, len(alike), step):
            some = alike[first : first + step]
            yield some, [*some, *some[:1] * (step - len(some))]


def image_bytes(config: Any, tokens: int, dtype: str) -> int:
    """Of the keys and values of so many tokens in a Llama-like network of this configuration."""
    width = getattr(config, "head_dim", 0) or config.hidden_size // config.num_attention_heads
    numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * width
    return int(numbers * getattr(torch, dtype).itemsize * tokens)


class Blocks:
    """What draws a network's blocks of `size` images, or of as many as there are where it is 0."""

    def __init__(self, size: int) -> None:
        self.size, self.asked = size, min(size, ASKED)
        self._kept: dict[int, tuple[list[int], Drawer]] = {}
        self._asking: tuple[list[int], Layers, Graphs] | None = None

    def asking(self, network: Any, core: Any) -> tuple[Layers, Graphs]:
        """What a network is asked with, its core's layers and its graphs: kept from batch to batch,
        and made anew where its weights have moved."""
        if self._asking is None or self._asking[0] != _addresses(network):
            ops, _ = operations(core.get_input_embeddings().weight.device)
            layers = Layers(core, ops)
            self._asking = _addresses(network), layers, Graphs()
        return self._asking[1:]

    def drawer(
        self,
        network: Any,
        core: Any,
        language: Language,
        recipe: Recipe,
        steps: int,
        rows: Sequence[Row],
        stream: int = 0,
    ) -> Drawer:
        """What draws these rows, kept from block to block: made anew where a row does not fit, or
        the network's weights have moved."""
        weights, drawer = self._kept.get(stream, ([], None))
        longest = max(map(len, rows))
        if drawer is not None and longest <= drawer.length and weights == _addresses(network):
            return drawer
        self._kept.pop(stream, None)
        del drawer  # its memory goes before the next takes as much
        images = self.size or len(rows) // (2 if recipe.guided else 1)
        made = Drawer(core, language, recipe, images, steps, longest, bool(self.size), stream)
        if self.size:
            self._kept[stream] = _addresses(network), made
        return made

    def warnings(self, draw: Draw, prompt: str, seed: int) -> str | None:
        """What is not as it should be: found by drawing an image's first tokens alone, and as the
        last of a full block of others."""
        if not self.size:
            return None
        others = [f"{prompt} {number}" for number in range(1, self.size)]
        seeds = [*range(seed + 1, seed + self.size), seed]
        alone, beside = draw([prompt], [seed])[0], draw([*others, prompt], seeds)[-1]
        said = [drawer.why for _, drawer in self._kept.values() if drawer.why]
        if changed := np.count_nonzero(alone != beside):
            said.append(
                f"{changed} of an image's first {len(alone)} tokens change with the images beside "
                "it, so on this device images depend on their batch"
            )
        return "; ".join(said) or None

    def pictures(self, decode: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
        """What `decode` makes of (B, T) tokens, given so many at a time that the shape is the same
        for any B."""
        size = min(PICTURES, self.size or PICTURES) if tokens.is_cuda else 1
        made = []
        for some in torch.split(tokens, size):
            whole = torch.cat([some, some[:1].expand(size - len(some), -1)])
            made.append(decode(whole)[: len(some)])
        return torch.cat(made)

    def clear(self) -> None:
        """Give the memory back."""
        self._kept.clear()
        self._asking = None


def _addresses(network: Any) -> list[int]:
    return [weight.data_ptr() for weight in network.parameters()]
