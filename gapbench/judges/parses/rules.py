"""What T2I-CompBench++ reads from a spaCy parse, as functions of tokens (sections 2.2 to 2.8).

Everything is a character span of the prompt, so that a shipped parse holds no prompt text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

Span = tuple[int, int]
"""First character, and the character after the last."""

STOP: Final = frozenset({"top", "the side", "the left", "the right"})
"""Noun chunks that are about places rather than things (section 2.2)."""
PREPOSITIONS: Final = frozenset(
    {"on top of", "on bottom of", "on the left", "on the right", "next to", "on side of", "near"}
)
"""What stands between the two objects of a complex prompt (section 2.7)."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token: its text, its universal part of speech and its first character in the prompt."""

    text: str
    pos: str
    start: int

    @property
    def span(self) -> Span:
        return self.start, self.start + len(self.text)


def chunks(text: str, spans: Iterable[Span]) -> list[Span]:
    """Noun chunks without the stop chunks."""
    return [(a, b) for a, b in spans if text[a:b] not in STOP]


def ends(tokens: Sequence[Token]) -> list[Span]:
    """The first and the last noun (the same one twice where there is one); none without nouns."""
    nouns = [token.span for token in tokens if token.pos == "NOUN"]
    return [nouns[0], nouns[-1]] if nouns else []


def kept(tokens: Sequence[Token]) -> list[Span]:
    """All tokens but adjectives."""
    return [token.span for token in tokens if token.pos != "ADJ"]


def objects(text: str, tokens: Sequence[Token]) -> list[Span]:
    """The two objects around a preposition of a complex prompt; none unless exactly two are found.

    Before it: the nearest noun or proper noun. After it: the nearest noun, or else the last token
    of the first run of proper nouns, unless that run ends the prompt.
    """
    around: list[Span] = []
    for i in range(len(tokens)):
        length = next(
            (n for n in (3, 2, 1) if _joined(text, tokens[i : i + n]) in PREPOSITIONS), None
        )
        if length is None:
            continue
        before = [t for t in tokens[:i] if t.pos in ("NOUN", "PROPN")]
        around += [token.span for token in before[-1:]]
        after = tokens[i + length :]
        nouns = [token.span for token in after if token.pos == "NOUN"]
        if nouns:
            around.append(nouns[0])
            continue
        pairs = pairwise(after)
        around += [a.span for a, b in pairs if a.pos == "PROPN" != b.pos][:1]
    return around if len(around) == 2 else []


def _joined(text: str, tokens: Sequence[Token]) -> str:
    """The prompt's own characters from the first token to the last."""
    return text[tokens[0].start : tokens[-1].span[1]] if tokens else ""
