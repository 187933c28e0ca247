"""The probability of whole answers to questions about images in two passes: what questions begin
with, up to the end of the image, once for each image; then the rest of each.

`answers` does it in one pass, for any model of transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from gapbench.models.autoregressive.answers import distinct
from gapbench.models.autoregressive.decode import BUCKET, Row
from gapbench.models.autoregressive.graphs import Graphs
from gapbench.models.autoregressive.layers import Held, Layers, causal, sent

T = TypeVar("T")
Asked = tuple[int, int, Row]
"""The number of a question's beginning in its block, the question's own, and an answer's tokens but
for the last."""


@dataclass(frozen=True)
class Reader:
    """A network that is asked: `embed` makes embeddings (B, T, W) of token ids (B, T), with the
    images in them that the batch has at these places, if any; `layers` make hidden states of them,
    and `head` logits."""

    embed: Callable[[Tensor, Sequence[int]], Tensor]
    layers: Layers
    graphs: Graphs
    head: Callable[[Tensor], Tensor]
    size: int
    """So many rows are computed together, padded by their own length alone, so that a row's
    companions do not change its rounding; 0: as many as there are, padded to the longest."""


def asked_logprobs(
    reader: Reader,
    rows: Sequence[Row],
    images: Sequence[Image.Image],
    end: int,
    tails: Sequence[Row],
) -> Tensor:
    """Log-probability in nats of each answer, (N, answers), float64, on the CPU.

    `rows` are the tokens of N questions about `images`, each with a token `end` behind its image.
    Answers that differ in their last token only share a row.
    """
    begins: dict[tuple[Row, int], list[int]] = {}
    for number, (row, image) in enumerate(zip(rows, distinct(images), strict=True)):
        start = min(len(row) - row[::-1].index(end), len(row) - 1)  # some token must be left
        begins.setdefault((row[:start], image), []).append(number)
    contexts = list(dict.fromkeys(tail[:-1] for tail in tails))
    places: list[tuple[int, int]] = []
    sums: list[Tensor] = []
    for start, some in _blocks(begins, lambda begin: len(begin[0]), reader.size):
        whole = [*some, *[some[0]] * (reader.size - len(some))]
        begun = _begun(reader, [row for row, _ in whole], [image for _, image in whole])
        asked = [
            (place, number, context)
            for place, begin in enumerate(some)
            for number in begins[begin]
            for context in contexts
        ]
        for part, said in _ended(reader, begun, start, rows, asked):
            for answer, tail in enumerate(tails):
                tokens = _there(reader, tail).expand(len(said), -1).unsqueeze(2)
                sums.append(said[:, said.shape[1] - len(tail) :].gather(2, tokens).sum((1, 2)))
                # Sums of rows with another context than this answer's mean nothing.
                mine = [number if tail[:-1] == context else -1 for _, number, context in part]
                places += [(number, answer) for number in mine + [-1] * (len(said) - len(mine))]
    total = torch.zeros(len(rows), len(tails), dtype=torch.float64)
    for place, value in zip(places, torch.cat(sums).tolist(), strict=True):
        if place[0] >= 0:
            total[place] = value
    return total


def _blocks(
    items: Iterable[T], shape: Callable[[T], int], size: int
) -> Iterator[tuple[int, list[T]]]:
    """Items of one shape, in order, up to so many at a time."""
    groups: dict[int, list[T]] = {}
    for item in items:
        groups.setdefault(shape(item), []).append(item)
    for own, alike in groups.items():
        for first in range(0, len(alike), size or len(alike)):
            yield own, alike[first : first + (size or len(alike))]


def _begun(reader: Reader, rows: Sequence[Row], images: Sequence[int]) -> list[Held]:
    """Each layer's keys and values (N, G, T, D) of beginnings of one length."""
    layers = reader.layers

    def begin(embeds: Tensor) -> list[Held]:
        count, length = embeds.shape[:2]
        held = [layers.buffer(count, length) for _ in range(len(layers))]
        places = torch.arange(length, device=embeds.device).repeat(count)
        turns = layers.turns(length)
        layers.forward(embeds.flatten(0, 1), places, turns, held, causal, states=False)
        return held

    made: list[Held] = reader.graphs("begin", begin, reader.embed(_there(reader, rows), images))
    return made


def _ended(
    reader: Reader, begun: Sequence[Held], start: int, rows: Sequence[Row], asked: Sequence[Asked]
) -> Iterator[tuple[list[Asked], Tensor]]:
    """Some of what is asked, and log-probabilities (rows, places, vocabulary) in float64 of what
    comes behind its last tokens; rows behind those asked are padding."""

    def padded(each: Asked) -> int:
        length = len(rows[each[1]]) - start + len(each[2])
        return -(-length // BUCKET) * BUCKET if reader.size else longest

    def held(own: Tensor, width: int) -> Iterator[Held]:
        """Buffers in which the beginnings that the rows go on from stand, layer by layer."""
        for keys, values in begun:
            room = reader.layers.buffer(len(own), start + width)
            for buffer, begin in zip(room, (keys, values), strict=True):
                torch.index_select(begin, 0, own, out=buffer[:, :, :start])
            yield room

    longest = max(len(rows[number]) - start + len(context) for _, number, context in asked)
    most = 1 + max(len(context) for _, _, context in asked)
    for width, some in _blocks(asked, padded, reader.size):
        whole = [*some, *[some[0]] * (reader.size - len(some))]
        ends = [rows[number][start:] + context for _, number, context in whole]
        ids = _there(reader, [[*end, *[0] * (width - len(end))] for end in ends])
        own = _there(reader, [place for place, _, _ in whole])
        states = reader.layers.forward(
            reader.embed(ids, ()).flatten(0, 1),
            torch.arange(start, start + width, device=ids.device).repeat(len(whole)),
            reader.layers.turns(start + width),
            held(own, width),
            causal,
        ).view(len(whole), width, -1)
        # What is padded lies behind, where a causal network does not look. The head gets as many
        # states of each row: its rounding follows from their number.
        last = _there(reader, [len(end) for end in ends]).unsqueeze(1)
        places = (last + torch.arange(-most, 0, device=ids.device)).clamp(min=0)
        logits = reader.head(states.take_along_dim(places.unsqueeze(2), 1))
        yield some, logits.double().log_softmax(-1)


def _there(reader: Reader, numbers: Sequence[Any]) -> Tensor:
    return sent(torch.tensor(numbers), reader.layers.device)
