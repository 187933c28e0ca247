"""The probability of whole answers to a question about an image, from one batched forward pass.

Serves any model of transformers whose processor makes left-padded rows that end with the question.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gapbench.types import GapbenchError


def answer_ids(
    cut: Callable[[str], list[int]], texts: Sequence[str], answers: Sequence[str], who: str
) -> list[tuple[int, ...]]:
    """Token ids of each answer after the texts, as `cut` tokenizes them.

    Raises GapbenchError where an answer changes how a text before it is cut, or is itself cut
    differently after different texts: its probability would not be that of its tokens.
    """
    found: list[tuple[int, ...]] = []
    for answer in answers:
        tails = set()
        for text in dict.fromkeys(texts):
            # A template that ends in white space stands for the answer's leading blank.
            said = answer.lstrip() if text[-1:].isspace() else answer
            asked, full = cut(text), cut(text + said)
            if full[: len(asked)] != asked:
                raise GapbenchError(
                    f"{who}: the answer {said!r} merges with the question's last token, so it "
                    "cannot be scored; give the answer a leading space"
                )
            tails.add(tuple(full[len(asked) :]))
        if len(tails) != 1:
            raise GapbenchError(
                f"{who}: the answer {answer!r} is cut differently after different questions, so "
                "it cannot be scored"
            )
        found.append(tails.pop())
    return found


def answer_logprobs(
    model: Any, batch: Mapping[str, Tensor], tails: Sequence[tuple[int, ...]], pad: int
) -> Tensor:
    """Log-probability in nats of each answer, (images, answers), float64, on the CPU.

    `batch` is what the processor made of N questions, left-padded, with `input_ids` and
    `attention_mask`. Answers that differ in their last token only share one row.
    """
    contexts = list(dict.fromkeys(tail[:-1] for tail in tails))
    count, rows = len(batch["input_ids"]), len(contexts)
    given = {key: torch.cat([value] * rows) for key, value in batch.items()}
    heads = [context for context in contexts for _ in range(count)]
    logprobs = following(model, given, heads, pad)
    logprobs = logprobs.reshape(rows, count, *logprobs.shape[1:])
    total = torch.zeros(count, len(tails), dtype=torch.float64)
    for column, tail in enumerate(tails):
        row = logprobs[contexts.index(tail[:-1])]
        for place, token in enumerate(tail):
            total[:, column] += row[:, place, token]
    return total


def following(
    model: Any, batch: Mapping[str, Tensor], heads: Sequence[tuple[int, ...]], pad: int
) -> Tensor:
    """Log-probabilities of the token that comes after each row and after each token of its head,
    (rows, longest head + 1, vocabulary), float64, on the CPU.

    `batch` is left-padded, with `input_ids` and `attention_mask`; a head is put behind its row.
    """
    width = max(map(len, heads))
    given: dict[str, Any] = dict(batch)
    ids = given.pop("input_ids")
    more = torch.tensor([[*h, *[pad] * (width - len(h))] for h in heads], device=ids.device)
    more = more.long().reshape(len(heads), width)
    for key, value in given.items():
        if value.shape == ids.shape:  # a mask or a type for each token: the heads are text
            fill = torch.full_like(more, int(key == "attention_mask"), dtype=value.dtype)
            given[key] = torch.cat([value, fill], 1)
    accepted = inspect.signature(model.forward).parameters
    # Models with positions of their own for image patches work them out from the mask.
    own = hasattr(getattr(model, "model", None), "get_rope_index")
    if "position_ids" in accepted and not own:
        given["position_ids"] = positions(given["attention_mask"])
    if "logits_to_keep" in accepted:
        given["logits_to_keep"] = width + 1
    ids = torch.cat([ids, more], 1)
    logits = model(input_ids=ids, use_cache=False, **given).logits[:, -(width + 1) :]
    logprobs: Tensor = logits.double().log_softmax(-1).cpu()
    return logprobs


def positions(mask: Tensor) -> Tensor:
    """Position ids that start at 0 with each row's first real token."""
    return (mask.cumsum(1) - 1).clamp(min=0)
