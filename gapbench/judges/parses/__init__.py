"""Parses of the benchmark prompts, shipped so that everyone scores from the same ones."""

from gapbench.judges.parses.parses import (
    FINGERPRINT,
    OBJECTS,
    Kind,
    Parse,
    Spans,
    parse,
    spans,
)

__all__ = ["FINGERPRINT", "OBJECTS", "Kind", "Parse", "Spans", "parse", "spans"]
