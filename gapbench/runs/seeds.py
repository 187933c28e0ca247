"""The seeds of a run's images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable


def seed_of(run_seed: int, text: str, sample: int) -> int:
    """The seed of a prompt's k-th image: equal prompts get equal images, in any task or order."""
    return seeds_of(run_seed, text, [sample])[0]


def seeds_of(run_seed: int, text: str, samples: Iterable[int]) -> list[int]:
    """The seeds of several images of a prompt."""
    begun, seeds = hashlib.sha256(json.dumps([run_seed, text])[:-1].encode()), list[int]()
    for sample in samples:  # of json.dumps([run_seed, text, sample])
        digest = begun.copy()
        digest.update(f", {sample}]".encode())
        seeds.append(int.from_bytes(digest.digest()[:8], "big") >> 1)
    return seeds
