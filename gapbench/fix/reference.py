"""DPO's reference: the generation losses of pairs under the weights before training."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gapbench.engines.local import work
from gapbench.files import Journal
from gapbench.fix.data import PAIR, Drawn, stacked
from gapbench.fix.losses import Reduce, reduced
from gapbench.models.base import Model


def references(
    model: Model,
    steps: Drawn,
    file: Path,
    how: Reduce,
    batch: int,
    progress: Callable[[str, int, int], Callable[[int], None]],
) -> dict[int, list[list[float]]]:
    """[chosen, rejected] generation losses of each row in each epoch, at its noise: of whole images
    or a token's share. One epoch does for all where nothing in the losses is random.

    Computed once and kept in the journal `file`. The model must still be as it was loaded.
    """
    rows, journal = steps.rows, Journal(file)
    exact = [0] * len(rows)
    noise = {epoch: exact if model.likelihood else steps.noise(epoch) for epoch in steps.turns}
    digests = [_digest(row) for row in rows]
    every = {
        f"{digest} {seed}": (place, seed)
        for seeds in noise.values()
        for place, (digest, seed) in enumerate(zip(digests, seeds, strict=True))
    }
    if missing := [key for key in every if key not in journal.there]:
        advance = progress("reference", len(every) - len(missing), len(every))

        @torch.no_grad()
        def do(keys: Sequence[str]) -> list[list[float]]:
            places, seeds = zip(*(every[key] for key in keys), strict=True)
            some, ends = [rows[place] for place in places], []
            for column in PAIR:
                drawings = stacked(some, column)
                losses = model.generation_loss([row["prompt"] for row in some], drawings, seeds)
                ends.append(reduced(losses, how, drawings).tolist())
            return ends

        def keep(keys: Sequence[str], ends: list[list[float]]) -> None:
            journal.add({key: pair for key, *pair in zip(keys, *ends, strict=True)})

        work(missing, batch, do, keep, advance)
    return {
        epoch: [journal.there[f"{d} {seed}"] for d, seed in zip(digests, seeds, strict=True)]
        for epoch, seeds in noise.items()
    }


def _digest(row: dict[str, Any]) -> str:
    hasher = hashlib.sha256(json.dumps(row["prompt"]).encode())
    for column in PAIR:
        hasher.update(np.ascontiguousarray(row[column]).data)
    return hasher.hexdigest()
