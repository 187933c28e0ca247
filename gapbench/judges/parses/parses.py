"""Reads the shipped parses; spaCy parses what is not among them.

Which words a noun chunk or a "first noun" is differs between spaCy's models (section 2.8 of the
benchmark notes), so scores come from one file, made by scripts/make_parses.py and known by digest.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.resources import files
from typing import Any, Final, Literal

from gapbench.judges.parses import rules
from gapbench.types import GapbenchError

MODEL: Final = "en_core_web_sm"
MODEL_VERSION: Final = "3.8.0"
FILE: Final = f"{MODEL}-{MODEL_VERSION}.json.gz"
SHA256: Final = "6f74351042507b4c25c5815ebbc213b5946b2ba3551374076cf772c44d3df8fe"
"""Of the unpacked file."""
FINGERPRINT: Final = f"parses-{SHA256[:16]}"

Kind = Literal["spatial", "action", "spatialaction"]
"""Which parts of the 3-in-1 score a complex prompt has (section 2.7)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spans:
    """Character spans of one prompt; None where the file has no such parse of it.

    `chunks` are noun chunks, `nouns` the first and the last noun, `kept` the tokens that are no
    adjectives, `objects` the two objects of a complex prompt (empty where there are not two).
    """

    chunks: tuple[rules.Span, ...] | None = None
    nouns: tuple[rules.Span, ...] | None = None
    kept: tuple[rules.Span, ...] | None = None
    objects: tuple[rules.Span, ...] | None = None
    kind: Kind | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Parse:
    """The words that a prompt's spans mark, as the scorers use them."""

    chunks: tuple[str, ...]
    nouns: tuple[str, ...]
    without_adjectives: str
    objects: tuple[str, ...]
    kind: Kind


@cache
def _file() -> dict[str, Any]:
    try:
        content = gzip.decompress((files(__package__) / FILE).read_bytes())
    except (OSError, EOFError) as error:
        raise GapbenchError(f"{FILE} cannot be read ({error}); install gapbench again") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256:
        raise GapbenchError(
            f"{FILE} has sha256 {digest}, expected {SHA256}; install gapbench again"
        )
    loaded: dict[str, Any] = json.loads(content)
    return loaded


def OBJECTS() -> dict[str, str]:  # noqa: N802 - a constant, read at first use
    """Singular -> plural of the things that numeracy prompts count (section 2.5)."""
    return dict(_file()["objects"])


def spans(text: str) -> Spans | None:
    """What the file says of a prompt; None where it is not in it."""
    entry = _file()["prompts"].get(hashlib.sha256(text.encode()).hexdigest())
    return None if entry is None else unpack(entry)


def unpack(entry: dict[str, Any]) -> Spans:
    """An entry of the file: lists of start, length, start, length ... under one letter each."""

    def pairs(letter: str) -> tuple[rules.Span, ...] | None:
        flat: list[int] | None = entry.get(letter)
        if flat is None:
            return None
        return tuple(
            (start, start + length) for start, length in zip(flat[::2], flat[1::2], strict=True)
        )

    return Spans(
        chunks=pairs("c"),
        nouns=pairs("n"),
        kept=pairs("k"),
        objects=pairs("o"),
        kind=entry.get("kind"),
    )


def parse(text: str, *needs: Literal["chunks", "nouns", "kept", "objects"]) -> Parse:
    """A prompt's parse: from the file where it has what is needed, else by spaCy.

    Raises GapbenchError where the prompt is new and spaCy or its model is not installed.
    """
    parsed = spans(text)
    if parsed is None or any(getattr(parsed, need) is None for need in needs):
        parsed = _by_spacy(text)

    def words(marked: Sequence[rules.Span] | None) -> tuple[str, ...]:
        return tuple(text[a:b] for a, b in marked or ())

    return Parse(
        chunks=words(parsed.chunks),
        nouns=words(parsed.nouns),
        without_adjectives=" ".join(words(parsed.kept)),
        objects=words(parsed.objects),
        # A prompt that is in neither of the official lists is scored on all three parts.
        kind=parsed.kind or "spatialaction",
    )


@cache
def _language() -> Any:
    hint = (
        f"install spaCy and its model {MODEL} {MODEL_VERSION}: pip install spacy && "
        f"python -m spacy download {MODEL}-{MODEL_VERSION} --direct"
    )
    try:
        language = import_module("spacy").load(MODEL)  # optional, hence not imported above
    except (ImportError, OSError) as error:
        raise GapbenchError(f"a prompt is not among the shipped parses; {hint}") from error
    if language.meta["version"] != MODEL_VERSION:
        raise GapbenchError(f"{MODEL} {language.meta['version']} parses otherwise; {hint}")
    return language


def _by_spacy(text: str) -> Spans:
    document = _language()(text)
    tokens = [rules.Token(token.text, token.pos_, token.idx) for token in document]
    noun_chunks = [(chunk.start_char, chunk.end_char) for chunk in document.noun_chunks]
    return Spans(
        chunks=tuple(rules.chunks(text, noun_chunks)),
        nouns=tuple(rules.ends(tokens)),
        kept=tuple(rules.kept(tokens)),
        objects=tuple(rules.objects(text, tokens)),
    )
