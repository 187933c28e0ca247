"""Going on with texts, in transformers' own classes: what lm-eval asks of a model."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from gapbench.models.autoregressive.answers import following
from gapbench.models.base import IMAGE
from gapbench.types import GapbenchError

Images = Sequence[Sequence[Image.Image]]


@dataclass(frozen=True, slots=True)
class Reader:
    """The side of a model that reads.

    `batch` makes left-padded rows, with `input_ids` and `attention_mask`, of texts with `mark` for
    each of their images; `cut` makes the token ids of a text without its images. Rows have `room`
    for so many tokens.
    """

    who: str
    module: Any
    tokenizer: Any
    batch: Callable[[Images, Sequence[str]], dict[str, Tensor]]
    cut: Callable[[str], list[int]]
    mark: str
    room: int

    def rows(self, images: Images, texts: Sequence[str], more: int) -> dict[str, Tensor]:
        """A batch of texts behind which there is room for so many tokens more."""
        marked = [text.replace(IMAGE, self.mark) for text in texts]
        for text, own in zip(marked, images, strict=True):
            if text.count(self.mark) != len(own):
                raise GapbenchError(
                    f"{self.who}: a text has places for {text.count(self.mark)} images and comes "
                    f"with {len(own)}: {text[-60:]!r}"
                )
        batch = self.batch(images, marked)
        longest = int(batch["attention_mask"].sum(1).max())
        if longest + more > self.room:
            raise GapbenchError(
                f"{self.who}: a text takes {longest} tokens and up to {more} more, it has room "
                f"for {self.room}"
            )
        return batch


class Continuing(ABC):
    """An adapter's `complete` and `score` (capability text)."""

    @abstractmethod
    def _reader(self) -> Reader:
        """The loaded side that reads."""

    @torch.inference_mode()
    def complete(
        self, images: Images, texts: Sequence[str], tokens: int, until: Sequence[str] = ()
    ) -> list[str]:
        reader = self._reader()
        batch = reader.rows(images, texts, tokens)
        return greedy(reader.module, reader.tokenizer, batch, tokens, until)

    @torch.inference_mode()
    def score(
        self, images: Images, texts: Sequence[str], endings: Sequence[str]
    ) -> list[tuple[float, bool]]:
        """An ending's tokens are those that the whole text has after the text alone, as in lm-eval.
        Endings of one text that differ in their last token only share a row."""
        reader = self._reader()
        rows: dict[tuple[str, tuple[int, ...], tuple[int, ...]], int] = {}
        places: list[int] = []
        tails: list[tuple[int, tuple[int, ...]]] = []
        for place, (text, ending) in enumerate(zip(texts, endings, strict=True)):
            tail = tuple(reader.cut(text + ending)[len(reader.cut(text)) :])
            if not tail:
                raise GapbenchError(
                    f"{reader.who}: the ending {ending!r} has no token of its own after "
                    f"{text[-60:]!r}"
                )
            key = (text, tuple(map(id, images[place])), tail[:-1])
            if key not in rows:
                rows[key] = len(places)
                places.append(place)
            tails.append((rows[key], tail))
        heads = [head for _, _, head in rows]
        shown, asked = [images[place] for place in places], [texts[place] for place in places]
        batch = reader.rows(shown, asked, max(map(len, heads)))
        logprobs = following(reader.module, batch, heads, reader.tokenizer.pad_token_id)
        found = []
        for row, tail in tails:
            said = logprobs[row, : len(tail)]
            total = said.gather(1, torch.tensor(tail).unsqueeze(1)).sum()
            found.append((float(total), said.argmax(1).tolist() == list(tail)))
        return found


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

    out = module.generate(
        **batch,
        do_sample=False,
        max_new_tokens=tokens,
        pad_token_id=tokenizer.pad_token_id,
        stopping_criteria=StoppingCriteriaList([stop] if words else []),
    )
    return [
        min((text.partition(word)[0] for word in words), key=len, default=text)
        for text in said(out)
    ]


def parts(text: str) -> list[dict[str, str]]:
    """A turn's text as a chat template wants it: texts, and an image for each IMAGE."""
    cut = re.split(f"({IMAGE})", text)
    return [{"type": "image"} if p == IMAGE else {"type": "text", "text": p} for p in cut if p]
