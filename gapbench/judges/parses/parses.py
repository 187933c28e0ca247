"""Reads the shipped parses; spaCy parses what is not among them.

Which words a noun chunk or a "first noun" is differs between spaCy's models (section 2.8 of the
benchmark notes), so scores come from one file, made by scripts/make_parses.py and known by digest.
"""

from __future__ import annotations

import gzip
import hashlib
import json
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
Need = Literal["chunks", "nouns", "kept", "objects"]
LETTERS: Final[dict[Need, str]] = {"chunks": "c", "nouns": "n", "kept": "k", "objects": "o"}
"""Keys of the file; each has a list of start, length, start, length ... of spans of the prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parse:
    """Words of a prompt as the scorers use them: its noun chunks, its first and its last noun, all
    but its adjectives, and the two objects of a complex prompt (empty where there are not two)."""

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


def parse(text: str, *needs: Need) -> Parse:
    """A prompt's parse: from the file where it has what is needed, else by spaCy.

    Raises GapbenchError where the prompt is new and spaCy or its model is not installed.
    """
    entry = _file()["prompts"].get(hashlib.sha256(text.encode()).hexdigest())
    if entry is None or any(LETTERS[need] not in entry for need in needs):
        entry = _by_spacy(text)

    def words(need: Need) -> tuple[str, ...]:
        flat = entry.get(LETTERS[need], ())
        return tuple(text[a : a + n] for a, n in zip(flat[::2], flat[1::2], strict=True))

    return Parse(
        chunks=words("chunks"),
        nouns=words("nouns"),
        without_adjectives=" ".join(words("kept")),
        objects=words("objects"),
        # A prompt that is in neither of the official lists is scored on all three parts.
        kind=entry.get("kind", "spatialaction"),
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


def _by_spacy(text: str) -> dict[str, Any]:
    """An entry as the file has it."""
    document = _language()(text)
    tokens = [rules.Token(token.text, token.pos_, token.idx) for token in document]
    noun_chunks = [(chunk.start_char, chunk.end_char) for chunk in document.noun_chunks]
    spans: dict[Need, list[rules.Span]] = {
        "chunks": rules.chunks(text, noun_chunks),
        "nouns": rules.ends(tokens),
        "kept": rules.kept(tokens),
        "objects": rules.objects(text, tokens),
    }
    return {LETTERS[need]: [n for a, b in some for n in (a, b - a)] for need, some in spans.items()}
