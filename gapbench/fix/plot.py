"""Loss and acceptance over a fix, as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def plot(record: Mapping[str, Any], file: Path) -> None:
    """Draw the curves of a fix's record (fix.json) into a PNG: the loss by epoch, and the share of
    images that the model accepted, first of all prompts, then at each replay of its pool."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    points = record["curves"]
    for name in ("loss", "dpo", "nll"):
        known = [(point["epoch"], point[name]) for point in points if name in point]
        if known:
            left.plot(*zip(*known, strict=True), label=name)
    for replay in record["replays"]:
        left.axvline(replay["epoch"], color="grey", linestyle=":", label=None)
    left.set(xlabel="epoch", ylabel="nats", title="loss")
    left.legend(frameon=False)
    drawn = [
        (0, record["candidates"]["acceptance"]),
        *(
            (replay["epoch"], replay["acceptance"])
            for replay in record["replays"]
            if replay["acceptance"] is not None
        ),
    ]
    right.plot(*zip(*drawn, strict=True), "o-")
    right.set(
        xlabel="epoch",
        ylabel="share",
        xlim=(-0.5, record["settings"]["epochs"]),
        ylim=(0, 1),
        title="accepted of what was drawn",
    )
    if len(drawn) > 1:
        right.annotate("all prompts", drawn[0], xytext=(5, 5), textcoords="offset points")
        right.annotate("pool", drawn[1], xytext=(5, 5), textcoords="offset points")
    figure.savefig(file, dpi=120)
