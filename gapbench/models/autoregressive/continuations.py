"""How texts go on: greedy decoding with stop words, and turns as chat templates want them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gapbench.models.base import IMAGE
from gapbench.models.checkpoint import unwarned


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
    return [
        min((text.partition(word)[0] for word in words), key=len, default=text)
        for text in said(out)
    ]


def parts(text: str) -> list[dict[str, str]]:
    """A turn's text as a chat template wants it: texts, and an image for each IMAGE."""
    cut = re.split(f"({IMAGE})", text)
    return [{"type": "image"} if p == IMAGE else {"type": "text", "text": p} for p in cut if p]
