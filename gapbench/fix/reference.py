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
from gapbench.fix.losses import Reduce, reduced
from gapbench.models.base import TrainableModel

if TYPE_CHECKING:
    from datasets import Dataset


def reference(
    model: TrainableModel,
    rows: Dataset,
    file: Path,
    how: Reduce,
    batch: int,
    progress: Callable[[str, int, int], Callable[[int], None]],
) -> list[tuple[float, float]]:
    """(chosen, rejected) log-probabilities in nats of each row, summed or averaged over tokens.

    Computed once and kept in `file`, a JSON line a pair; a torn last line is made anew. The model
    must still be as it was loaded.
    """
    keys = [_key(row) for row in rows]
    known: dict[str, tuple[float, float]] = {}
    if file.exists():
        whole, _, torn = file.read_bytes().rpartition(b"\n")
        if torn:
            file.write_bytes(whole + b"\n" if whole else b"")
        for line in whole.splitlines():
            key, chosen, rejected = json.loads(line)
            known[key] = (chosen, rejected)
    missing = [index for index, key in enumerate(keys) if key not in known]
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
            with file.open("a") as opened:
                for index, chosen, rejected in zip(indices, *ends, strict=True):
                    known[keys[index]] = (chosen, rejected)
                    opened.write(json.dumps([keys[index], chosen, rejected]) + "\n")

        work(missing, batch, do, keep, advance)
    return [known[key] for key in keys]


def _ids(rows: Sequence[dict[str, Any]], key: str) -> Any:
    return np.array([row[key] for row in rows], dtype=np.int32)


def _key(row: dict[str, Any]) -> str:
    kept = [row["prompt"], row["tokens_chosen"], row["tokens_rejected"]]
    return hashlib.sha256(json.dumps(kept).encode()).hexdigest()
