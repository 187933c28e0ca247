"""The probability of whole answers to questions about images in two passes: what questions begin
with, up to the end of the image, once for each image; then the rest of each.

`answers` does it in one pass, for any model of transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor
from transformers import DynamicCache

from gapbench.models.autoregressive.answers import cache_name
from gapbench.models.autoregressive.decode import BUCKET, Row

T = TypeVar("T")
Asked = tuple[int, int, Row]
"""The number of a question's beginning in its block, the question's own, and an answer's tokens but
for the last."""


@dataclass(frozen=True)
class Reader:
    """A network that is asked: `embed` makes embeddings (B, T, W) of token ids (B, T), with the
    images in them that the batch has at these places, if any; `core` makes hidden states of them,
    and `head` logits."""

    embed: Callable[[Tensor, Sequence[int]], Tensor]
    core: Any
    head: Callable[[Tensor], Tensor]
    size: int
    """So many rows are computed together, padded by their own length alone, so that a row's
    companions do not change its rounding; 0: as many as there are, padded to the longest."""


def answer_logprobs(
    reader: Reader,
    batch: Mapping[str, Tensor],
    images: Sequence[Image.Image],
    end: int,
    tails: Sequence[Row],
) -> Tensor:
    """Log-probability in nats of each answer, (N, answers), float64, on the CPU.

    `batch` has the left-padded `input_ids` and `attention_mask` of N questions about `images`, each
    with a token `end` behind its image. Answers that differ in their last token only share a row.
    """
    padded = zip(batch["input_ids"].tolist(), batch["attention_mask"].tolist(), strict=True)
    rows = [tuple(compress(row, keep)) for row, keep in padded]
    seen = [(image.mode, image.size, image.tobytes()) for image in images]
    begins: dict[tuple[Row, object], list[int]] = {}
    for number, row in enumerate(rows):
        start = min(len(row) - row[::-1].index(end), len(row) - 1)  # some token must be left
        begins.setdefault((row[:start], seen[number]), []).append(number)
    contexts = list(dict.fromkeys(tail[:-1] for tail in tails))
    logprobs: dict[tuple[int, Row], Tensor] = {}
    for start, some in _blocks(begins, lambda begin: len(begin[0]), reader.size):
        whole = [*some, *[some[0]] * (reader.size - len(some))]
        cache = _begun(reader, [row for row, _ in whole], [begins[each][0] for each in whole])
        asked = [
            (place, number, context)
            for place, begin in enumerate(some)
            for number in begins[begin]
            for context in contexts
        ]
        logprobs |= _ended(reader, cache, start, rows, asked)
    columns = [torch.tensor(tail, device=batch["input_ids"].device).unsqueeze(1) for tail in tails]
    return torch.stack(
        [
            torch.stack(
                [
                    logprobs[number, tail[:-1]].gather(1, column).sum()
                    for tail, column in zip(tails, columns, strict=True)
                ]
            )
            for number in range(len(rows))
        ]
    ).cpu()


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


def _begun(reader: Reader, rows: Sequence[Row], images: Sequence[int]) -> DynamicCache:
    """The keys and values of beginnings of one length."""
    device, cache = reader_device(reader), DynamicCache()
    embeds = reader.embed(torch.tensor(rows, device=device), images)
    reader.core(inputs_embeds=embeds, use_cache=True, **{cache_name(reader.core): cache})
    return cache


def _ended(
    reader: Reader, begun: DynamicCache, start: int, rows: Sequence[Row], asked: Sequence[Asked]
) -> dict[tuple[int, Row], Tensor]:
    """Log-probabilities (tokens of the answer, vocabulary) in float64 of what comes behind each
    question and each token of its answer but for the last."""

    def padded(each: Asked) -> int:
        length = len(rows[each[1]]) - start + len(each[2])
        return -(-length // BUCKET) * BUCKET if reader.size else longest

    longest = max(len(rows[number]) - start + len(context) for _, number, context in asked)
    most = 1 + max(len(context) for _, _, context in asked)
    device, made = reader_device(reader), {}
    for width, some in _blocks(asked, padded, reader.size):
        whole = [*some, *[some[0]] * (reader.size - len(some))]
        ends = [rows[number][start:] + context for _, number, context in whole]
        ids = torch.tensor([[*end, *[0] * (width - len(end))] for end in ends], device=device)
        own, cache = torch.tensor([place for place, _, _ in whole], device=device), DynamicCache()
        for number, layer in enumerate(begun.layers):
            cache.update(layer.keys[own], layer.values[own], number)
        states = reader.core(
            inputs_embeds=reader.embed(ids, ()),
            position_ids=torch.arange(start, start + width, device=device).unsqueeze(0),
            use_cache=True,
            **{cache_name(reader.core): cache},
        ).last_hidden_state
        # What is padded lies behind, where a causal network does not look. The head gets as many
        # states of each row: its rounding follows from their number.
        last = torch.tensor([len(end) for end in ends], device=device).unsqueeze(1)
        places = (last + torch.arange(-most, 0, device=device)).clamp(min=0)
        logits = reader.head(states.take_along_dim(places.unsqueeze(2), 1))
        said = logits.double().log_softmax(-1)
        for (_, number, context), each in zip(some, said, strict=False):
            made[number, context] = each[most - len(context) - 1 :]
    return made


def reader_device(reader: Reader) -> torch.device:
    """Where its weights are."""
    device: torch.device = reader.core.get_input_embeddings().weight.device
    return device
