"""Texts with any number of pictures in them, as BAGEL reads a conversation.

Texts and pictures follow one another, each between marks, and nothing says who speaks. Source:
ByteDance-Seed/Bagel 056b5fd, inferencer.py (interleave_inference with understanding_output).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from gapbench.models.bagel.checkpoint import MARKS
from gapbench.models.bagel.reader import Reader
from gapbench.models.base import IMAGE
from gapbench.models.turns import cut
from gapbench.types import GapbenchError

BEGIN, END = MARKS[:2]


@dataclass(frozen=True)
class Texts:
    """What goes on with texts. Each is read alone, so none depends on those beside it; `reader` has
    blocks of one row."""

    who: str
    reader: Reader
    tokenizer: Any

    def chat(self, turns: Sequence[Mapping[str, str]]) -> str:
        """The text of a chat up to the answer."""
        said = [p for turn in turns for p in re.split(f"({IMAGE})", turn["content"]) if p]
        return "".join(p if p == IMAGE else f"{BEGIN}{p}{END}" for p in said) + BEGIN

    def complete(
        self, images: Sequence[Image.Image], text: str, tokens: int, until: Sequence[str]
    ) -> str:
        """How a text goes on, as `Model.complete`."""
        *before, last = self._parts(images, text, tokens)
        _, context = self.reader.follow([*before, last[:-1]])
        rows = self.reader.say(context, tokens + 1, last[-1])
        words = str(self.tokenizer.decode(rows[0], skip_special_tokens=True))
        return cut(words, until)

    def score(self, images: Sequence[Image.Image], text: str, ending: str) -> tuple[float, bool]:
        """How likely an ending is, as `Model.score`."""
        if text.endswith(BEGIN):  # after it the model begins with a word, not with a space
            ending = ending.lstrip()
        start = len(self._parts(images, text)[-1])
        *before, whole = self._parts(images, text + ending)
        if not (tail := list(whole[start:])):
            raise GapbenchError(
                f"{self.who}: the ending {ending!r} has no token of its own after {text[-60:]!r}"
            )
        states, _ = self.reader.follow([*before, whole[:-1]])
        head = self.reader.network.language_model.lm_head
        said = head(states[0, start - 1 : len(whole) - 1]).double().log_softmax(-1)
        total = float(said[range(len(tail)), tail].sum())
        return total, said.argmax(-1).tolist() == tail

    def _parts(self, images: Sequence[Image.Image], text: str, more: int = 0) -> list[Any]:
        """Token ids of each piece of text, and the pictures between them; the last are ids. What
        has no marks gets them. Raises GapbenchError where so many more tokens have no room."""
        parts: list[Any] = []
        pieces, pictures = text.split(IMAGE), iter(images)
        for place, piece in enumerate(pieces):
            if place:
                parts.append(next(pictures))
            last = place == len(pieces) - 1
            if (piece or last) and not piece.startswith(BEGIN):
                piece = f"{BEGIN}{piece}{END * (not last)}"
            if piece:
                parts.append(self.tokenizer.encode(piece))
        places = sum(1 if isinstance(part, Image.Image) else len(part) for part in parts) + more
        if places > (room := self.reader.sizes.room):
            raise GapbenchError(f"{self.who}: a text takes {places} places, it has room for {room}")
        return parts
