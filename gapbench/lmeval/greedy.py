"""How an answer is decoded for a task of lm-eval or lmms-eval: greedily, or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gapbench.types import GapbenchError


def decoding(
    harness: str, given: Mapping[str, Any], key: str, most: int
) -> tuple[int, tuple[str, ...]]:
    """Tokens of an answer at most (the task's `key`, else `most`), and the words to stop at.

    Raises GapbenchError where a task samples its answers.
    """
    if given.get("do_sample") or given.get("temperature"):
        raise GapbenchError(
            f"{harness}: a task samples its answers (do_sample, temperature); models of gapbench's "
            f"answer greedily, say --gen_kwargs do_sample=False,temperature=0 to {harness}"
        )
    until = given.get("until") or ()
    return int(given.get(key) or most), (until,) if isinstance(until, str) else tuple(until)
