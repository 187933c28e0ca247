"""DPO's reference: the log-probabilities of pairs under the weights before training."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gapbench.engines.local import work
from gapbench.files import Journal
from gapbench.fix.losses import Reduce, reduced
from gapbench.models.base import Model

if TYPE_CHECKING:
    from datasets import Dataset


def reference(
    model: Model,
    rows: Dataset,
    file: Path,
    how: Reduce,
    batch: int,
    progress: Callable[[str, int, int], Callable[[int], None]],
) -> list[list[float]]:
    """[chosen, rejected] log-probabilities in nats of each row, summed or averaged over tokens.

    Computed once and kept in the journal `file`. The model must still be as it was loaded.
    """
    keys, journal = [_key(row) for row in rows], Journal(file)
    missing = [index for index, key in enumerate(keys) if key not in journal.there]
    if missing:
        advance = progress("reference", len(rows) - len(missing), len(rows))

        @torch.no_grad()
        def do(indices: Sequence[int]) -> list[list[float]]:
            some = [rows[index] for index in indices]
            prompts = [row["prompt"] for row in some]
            return [
                reduced(model.image_logprobs(prompts, _ids(some, key)), how).tolist()
                for key in ("tokens_chosen", "tokens_rejected")
            ]

        def keep(indices: Sequence[int], ends: list[list[float]]) -> None:
            journal.add({keys[i]: pair for i, *pair in zip(indices, *ends, strict=True)})

        work(missing, batch, do, keep, advance)
    return [journal.there[key] for key in keys]


def _ids(rows: Sequence[dict[str, Any]], key: str) -> Any:
    return np.array([row[key] for row in rows], dtype=np.int32)


def _key(row: dict[str, Any]) -> str:
    kept = [row["prompt"], row["tokens_chosen"], row["tokens_rejected"]]
    return hashlib.sha256(json.dumps(kept).encode()).hexdigest()
