"""The probability of whole answers to a question about an image, from one batched forward pass.

Serves any model of transformers whose processor makes left-padded rows that end with the question.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from gapbench.types import GapbenchError


def answer_ids(
    cut: Callable[[list[str]], list[list[int]]],
    texts: Sequence[str],
    answers: Sequence[str],
    who: str,
) -> list[tuple[int, ...]]:
    """Token ids of each answer after the texts, as `cut` tokenizes each of a list.

    Raises GapbenchError where an answer changes how a text before it is cut, or is itself cut
    differently after different texts: its probability would not be that of its tokens.
    """
    ids_of_answers: list[tuple[int, ...]] = []
    unlike = list(dict.fromkeys(texts))
    asked = cut(unlike)
    for answer in answers:
        # A template that ends in white space stands for the answer's leading blank.
        words = [answer.lstrip() if text[-1:].isspace() else answer for text in unlike]
        fulls = cut([text + said for text, said in zip(unlike, words, strict=True)])
        tails = set()
        for begin, full, said in zip(asked, fulls, words, strict=True):
            if full[: len(begin)] != begin:
                raise GapbenchError(
                    f"{who}: the answer {said!r} merges with the question's last token, so it "
                    "cannot be scored; give the answer a leading space"
                )
            tails.add(tuple(full[len(begin) :]))
        if len(tails) != 1:
            raise GapbenchError(
                f"{who}: the answer {answer!r} is cut differently after different questions, so "
                "it cannot be scored"
            )
        ids_of_answers.append(tails.pop())
    return ids_of_answers


def distinct(images: Sequence[Image.Image]) -> list[int]:
    """For each image the place of the first that is equal to it."""
    firsts: dict[object, list[int]] = {}
    places = []
    for number, image in enumerate(images):
        # Few bytes tell most images apart: PIL takes long to give all.
        few = image.resize((16, 16), Image.Resampling.NEAREST).tobytes()
        alike = firsts.setdefault((image.mode, image.size, few), [])
        place = next((p for p in alike if images[p] is image or images[p] == image), number)
        alike += [number] if place == number else []
        places.append(place)
    return places


def require_places(
    texts: Sequence[str], images: Sequence[Sequence[Image.Image]], mark: str, who: str
) -> None:
    """Raises GapbenchError unless each text has as many marks as images."""
    for text, own in zip(texts, images, strict=True):
        if text.count(mark) != len(own):
            raise GapbenchError(
                f"{who}: a text has places for {text.count(mark)} images and comes with "
                f"{len(own)}: {text[-60:]!r}"
            )


def answer_logprobs(
    model: Any,
    batch: Mapping[str, Tensor],
    tails: Sequence[tuple[int, ...]],
    pad: int,
    images: Sequence[Image.Image],
) -> Tensor:
    """Log-probability in nats of each answer, (images, answers), float64, on the CPU.

    `batch` is what the processor made of N questions about `images`, left-padded, with `input_ids`
    and `attention_mask`. Answers that differ in their last token only share one row; what several
    questions about one image begin with is computed once, where the model's kind allows it.
    """
    contexts = list(dict.fromkeys(tail[:-1] for tail in tails))
    count, rows = len(batch["input_ids"]), len(contexts)
    given, cache = dict(batch), None
    if _placed(model):
        start, cache = _begun(model, given, images)
        if cache is not None:
            # What is left of each row, padded on the left again behind `start` real tokens.
            mask = given["attention_mask"]
            here = torch.arange(start, device=mask.device)
            mask = (mask.cumsum(1) > start).type_as(mask).index_fill(1, here, 1)
            given = {"input_ids": given["input_ids"][:, start:], "attention_mask": mask}
            if rows > 1:
                cache.batch_select_indices(torch.arange(count, device=mask.device).repeat(rows))
    given = {key: torch.cat([value] * rows) for key, value in given.items()}
    heads = [context for context in contexts for _ in range(count)]
    logprobs = following(model, given, heads, pad, cache)
    logprobs = logprobs.reshape(rows, count, *logprobs.shape[1:])
    total = torch.zeros(count, len(tails), dtype=torch.float64)
    for column, tail in enumerate(tails):
        row = logprobs[contexts.index(tail[:-1])]
        for place, token in enumerate(tail):
            total[:, column] += row[:, place, token]
    return total


def following(
    model: Any,
    batch: Mapping[str, Tensor],
    heads: Sequence[tuple[int, ...]],
    pad: int,
    cache: Any = None,
) -> Tensor:
    """Log-probabilities of the token that comes after each row and after each token of its head,
    (rows, longest head + 1, vocabulary), float64, on the CPU.

    `batch` is left-padded, with `input_ids` and `attention_mask`; a head is put behind its row.
    Where `cache` holds what the rows begin with, the mask covers that too.
    """
    width = max(map(len, heads))
    given: dict[str, Any] = dict(batch)
    ids = given.pop("input_ids")
    more = torch.tensor([[*h, *[pad] * (width - len(h))] for h in heads], device=ids.device)
    more = more.long().reshape(len(heads), width)
    whole = given["attention_mask"].shape
    for key, value in given.items():
        if value.shape == whole:  # a mask or a type for each token: the heads are text
            fill = torch.full_like(more, int(key == "attention_mask"), dtype=value.dtype)
            given[key] = torch.cat([value, fill], 1)
    if _placed(model):
        given["position_ids"] = positions(given["attention_mask"])[:, whole[1] - ids.shape[1] :]
    if cache is not None:
        given[cache_name(model)] = cache
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        given["logits_to_keep"] = width + 1
    ids = torch.cat([ids, more], 1)
    logits = model(input_ids=ids, use_cache=cache is not None, **given).logits[:, -(width + 1) :]
    logprobs: Tensor = logits.double().log_softmax(-1).cpu()
    return logprobs


def _placed(model: Any) -> bool:
    """Whether positions are to be given; models with positions of their own for image patches work
    them out from the mask."""
    own = hasattr(getattr(model, "model", None), "get_rope_index")
    return "position_ids" in inspect.signature(model.forward).parameters and not own


def _begun(
    model: Any, batch: Mapping[str, Tensor], images: Sequence[Image.Image]
) -> tuple[int, Any]:
    """How many tokens questions about one image have in common, and their keys and values, (N, ...)
    each; (0, None) where no two are about one image, or where it cannot be known to be exact."""
    seen = distinct(images)
    group = {key: number for number, key in enumerate(dict.fromkeys(seen))}
    ids, mask, pixels = batch["input_ids"], batch["attention_mask"], batch.get("pixel_values")
    if (
        len(group) == len(seen)
        or batch.keys() - {"input_ids", "attention_mask", "pixel_values"}
        or (pixels is not None and len(pixels) != len(ids))
    ):
        return 0, None
    whole = [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)]
    member = [group[key] for key in seen]
    # Every row needs a token of its own.
    start = min(len(row) for row in whole) - 1
    for number in range(len(group)):
        rows = [row for row, other in zip(whole, member, strict=True) if other == number]
        columns = zip(*(row[:start] for row in rows), strict=True)
        start = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
    token = getattr(model.config, "image_token_id", None)
    if start < 1 or any(token in row[start:] for row in whole):
        return 0, None
    first = [member.index(number) for number in range(len(group))]
    more = {} if pixels is None else {"pixel_values": pixels[first]}
    begun = torch.tensor([whole[row][:start] for row in first], device=ids.device)
    output = model(input_ids=begun, use_cache=True, logits_to_keep=1, **more)
    cache = getattr(output, cache_name(model))
    cache.batch_select_indices(torch.tensor(member, device=ids.device))
    return start, cache


def cache_name(model: Any) -> str:
    """What a model calls its cache of keys and values: transformers 5.24 renamed it."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def positions(mask: Tensor) -> Tensor:
    """Position ids that start at 0 with each row's first real token."""
    return (mask.cumsum(1) - 1).clamp(min=0)
