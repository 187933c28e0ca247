"""How texts go on: greedy decoding with stop words, and turns as chat templates want them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gapbench.models.base import IMAGE
from gapbench.models.checkpoint import unwarned
from gapbench.models.turns import cut
from gapbench.types import GapbenchError


def greedy(
    module: Any, tokenizer: Any, batch: Mapping[str, Tensor], tokens: int, until: Sequence[str] = ()
) -> list[str]:
    """How each row goes on: up to its end, so many tokens, or the first of the words in `until`."""
    from transformers import StoppingCriteriaList

    start, words = batch["input_ids"].shape[1], [word for word in until if word]

    def said(ids: Tensor) -> list[str]:
        return list(tokenizer.batch_decode(ids[:, start:], skip_special_tokens=True))

    def stop(ids: Tensor, _scores: Tensor, **_more: Any) -> Tensor:
        ended = [any(word in text for word in words) for text in said(ids)]
        return torch.tensor(ended, device=ids.device)

    with unwarned():  # of the checkpoint's sampling and length, which are for drawing
        out = module.generate(
            **batch,
            do_sample=False,
            max_new_tokens=tokens,
            pad_token_id=tokenizer.pad_token_id,
            stopping_criteria=StoppingCriteriaList([stop] if words else []),
        )
    return [cut(text, words) for text in said(out)]


def require_room(who: str, batch: Mapping[str, Tensor], more: int, room: int) -> None:
    """Raises GapbenchError unless each row and so many more tokens have room."""
    longest = int(batch["attention_mask"].sum(1).max())
    if longest + more > room:
        raise GapbenchError(
            f"{who}: a text takes {longest} tokens and up to {more} more, it has room for {room}"
        )


def shared(
    tokenized: Callable[[list[str]], list[list[int]]],
    images: Sequence[Sequence[object]],
    texts: Sequence[str],
    endings: Sequence[str],
    who: str,
) -> tuple[list[int], list[tuple[int, ...]], list[tuple[int, tuple[int, ...]]]]:
    """Which texts to compute, each with the tokens behind it but for the last one; and for every
    ending its place among them and its tokens. Endings of one text that differ in their last token
    only share a row.

    An ending's tokens are those that the whole text has after the text alone, as in lm-eval. Raises
    GapbenchError for an ending that has none.
    """
    rows: dict[tuple[str, tuple[int, ...], tuple[int, ...]], int] = {}
    places: list[int] = []
    tails: list[tuple[int, tuple[int, ...]]] = []
    for place, (text, ending) in enumerate(zip(texts, endings, strict=True)):
        begin, whole = tokenized([text, text + ending])
        tail = tuple(whole[len(begin) :])
        if not tail:
            raise GapbenchError(
                f"{who}: the ending {ending!r} has no token of its own after {text[-60:]!r}"
            )
        key = (text, tuple(map(id, images[place])), tail[:-1])
        if key not in rows:
            rows[key] = len(places)
            places.append(place)
        tails.append((rows[key], tail))
    return places, [head for _, _, head in rows], tails


def parts(text: str) -> list[dict[str, str]]:
    """A turn's text as a chat template wants it: texts, and an image for each IMAGE."""
    said = re.split(f"({IMAGE})", text)
    return [{"type": "image"} if p == IMAGE else {"type": "text", "text": p} for p in said if p]
