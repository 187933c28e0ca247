"""Training by the trainer of `gapbench fix`, on rows that a test makes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gapbench.fix import data, network
from gapbench.fix.losses import ImageLoss
from gapbench.fix.reference import references
from gapbench.fix.settings import FixSettings
from gapbench.fix.trainer import train_phase


def trained(
    folder: Path,
    out: Path,
    prompts: Sequence[str],
    columns: dict[str, Any],
    *,
    lora: int = 0,
    **more: Any,
) -> Any:
    """A model after training all its weights, or an adapter, on rows: its prompts with the arrays
    in `columns` ("drawing", or "drawing_chosen" and "drawing_rejected")."""
    settings = FixSettings(
        model=str(folder), out=out, batch_size=len(prompts), lora=lora, bf16=False, device="cpu",
        **more,
    )  # fmt: skip
    model = network.base_model(settings, "cpu", "float32")
    rows: Any = [
        {"prompt": prompt, **dict(zip(columns, drawings, strict=True))}
        for prompt, *drawings in zip(prompts, *columns.values(), strict=True)
    ]
    epochs = (0, settings.epochs)
    steps = data.Drawn(rows, epochs, settings.batch_size, settings.prompt_dropout, settings.seed)

    def progress(*_stage: object) -> Any:
        return lambda *_done: None

    if settings.loss == "dpo":
        steps.reference = references(model, steps, out / "r.jsonl", "sum", len(rows), progress)
        assert len({json.dumps(rows) for rows in steps.reference.values()}) == settings.epochs
    loss = ImageLoss(model, network.prepare(model, settings), settings.beta)
    train_phase(loss, steps, settings, out / "phase", "cpu", False, progress)
    model.network.eval()
    return model
