"""Chats as texts, where the chat format is known to a server or a worker alone; and stop words."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from PIL import Image

from gapbench.models.base import IMAGE
from gapbench.types import GapbenchError

Turns = list[tuple[str, list[str | Image.Image]]]
"""Who speaks ("user" or "assistant"), and the pieces of what is said, none of them empty."""
_KEY: Final = "turns"


class Talk(NamedTuple):
    """A chat, and how its answer begins ("" where it does not)."""

    turns: Turns
    begun: str


def written(turns: Sequence[Mapping[str, str]]) -> str:
    """The text of a chat up to the answer: a JSON object, after which an answer may begin.

    Whatever the turns contain, `talk` reads them from it again.
    """
    said = [{"role": turn["role"], "content": turn["content"]} for turn in turns]
    return json.dumps({_KEY: said}, ensure_ascii=False)


def talk(who: str, text: str, images: Sequence[Image.Image]) -> Talk:
    """The chat that a text of `written` is of, with its images in their places.

    Raises GapbenchError for any other text, and where it has more or fewer places than images.
    """
    try:
        said, end = json.JSONDecoder().raw_decode(text)
        pairs = [(str(turn["role"]), str(turn["content"])) for turn in said[_KEY]]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise GapbenchError(
            f"{who}: it answers chats alone, and {text[:60]!r} is none; give --apply_chat_template "
            "to lm-eval"
        ) from None
    places = sum(content.count(IMAGE) for _, content in pairs)
    if places != len(images):
        raise GapbenchError(f"{who}: a text has {IMAGE} {places} times, for {len(images)} images")
    left = iter(images)
    turns = [
        (role, [next(left) if p == IMAGE else p for p in re.split(f"({IMAGE})", content) if p])
        for role, content in pairs
    ]
    return Talk(turns, text[end:])


def cut(text: str, until: Sequence[str]) -> str:
    """The text up to the first of the words."""
    return min((text.partition(word)[0] for word in until if word), key=len, default=text)
