"""What small_world.py measured, as pictures."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from small_world_tables import TASK, by_name, by_tier, change, over_seeds, spread

from gapbench import open_run
from gapbench.comparison.compare import cross, pair_runs
from gapbench.runs.settings import silent

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SHOWN = 12
"""Images of the correction group in its picture, at most."""


def figures(work: Path, folder: Path) -> None:
    """All pictures that the series in `work` give."""
    folder.mkdir(parents=True, exist_ok=True)
    for what, draws in {
        "claims": (_claims, _tiers, _corrected),
        "sensitivity": (_choices,),
    }.items():
        file = work / f"{what}.json"
        if file.exists():
            for draw in draws:
                draw(json.loads(file.read_text()), folder)


def _save(figure: Figure, file: Path) -> None:
    figure.tight_layout()
    figure.savefig(file, dpi=150)
    plt.close(figure)


def _claims(found: dict[str, Any], folder: Path) -> None:
    """Change of generation and of understanding by method, with intervals."""
    fixes = by_name(found)
    figure, axes = plt.subplots(1, 2, figsize=(9, 0.5 * len(fixes) + 1.4), sharey=True)
    for axis, metric in zip(axes, ("generation", "understanding"), strict=True):
        for at, seeds in enumerate(fixes.values()):
            told = [spread(change(seed["compare"], metric)) for seed in seeds]
            mean, low, high = over_seeds(told)
            axis.plot([low, high], [at, at], color="0.55", linewidth=2, zorder=1)
            axis.scatter([100 * t[0] for t in told], [at] * len(told), s=14, color="0.55", zorder=2)
            axis.scatter([mean], [at], s=46, color="tab:blue", zorder=3)
        axis.axvline(0, color="0.3", linewidth=0.8)
        axis.set_title(f"change of {metric}, points")
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(fixes)), list(fixes))
    axes[0].invert_yaxis()
    _save(figure, folder / "claims.png")


def _tiers(found: dict[str, Any], folder: Path) -> None:
    """Images that the judge accepts, by tier, before and after each method."""
    tiers = by_tier(found)
    names = list(next(iter(tiers.values())))
    figure, axis = plt.subplots(figsize=(9, 4))
    width = 0.86 / len(names)
    colors = ["0.6", *plt.get_cmap("tab10").colors]  # type: ignore[attr-defined]
    for place, name in enumerate(names):
        values, lows, highs = np.array([cells[name] for cells in tiers.values()]).T
        at = np.arange(len(tiers)) + (place - (len(names) - 1) / 2) * width
        axis.bar(at, values, 0.92 * width, yerr=[values - lows, highs - values], capsize=2,
                 color=colors[place], error_kw={"elinewidth": 1}, label=name)  # fmt: skip
    axis.set_xticks(range(len(tiers)), list(tiers))
    axis.set_ylabel("images that are right, %")
    axis.set_ylim(0, 100)
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)
    axis.legend(ncols=4, loc="upper right", fontsize=8)
    _save(figure, folder / "tiers.png")


def _corrected(found: dict[str, Any], folder: Path) -> None:
    """Images of before that it accepts, and that the judge and a fixed model reject."""
    shown: dict[str, tuple[Any, str, list[str]]] = {}
    for name, seed in found.items():
        before = open_run(seed["compare"]["before"], tasks=TASK)
        pair = pair_runs(before, open_run(seed["compare"]["after"], tasks=TASK), None)
        crossed = np.array(cross(pair, None, silent), float)
        rows = pair.old[(pair.old["outside"] == 0) & (pair.old["own"] == 1) & (crossed == 0)]
        for row in rows.to_dict("records"):
            image = before.folder.image(row["image"])
            shown.setdefault(row["image"], (image, row["text"], []))[2].append(name)
    if not shown:
        return
    most = sorted(shown.values(), key=lambda each: -len(each[2]))[:SHOWN]
    columns = 4
    lines = -(-len(most) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(9, 2.9 * lines), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, (image, text, names) in zip(axes.flat, most, strict=False):
        axis.imshow(image, interpolation="nearest")
        times = f"rejected after {len(names)} of {len(found)} fixes"
        axis.set_title(f"{textwrap.fill(text, 30)}\n{times}", fontsize=8)
    _save(figure, folder / "corrected.png")


def _choices(found: dict[str, Any], folder: Path) -> None:
    """A picture a choice: generation and understanding against its values."""
    for choice in dict.fromkeys(name.split(": ")[0] for name in found):
        values = {k.split(": ")[1]: e for k, e in found.items() if k.startswith(f"{choice}: ")}
        figure, axis = plt.subplots(figsize=(5, 3.2))
        for metric, color in (("generation", "tab:blue"), ("understanding", "tab:orange")):
            middle, low, high = (
                100 * np.array([spread(change(e["compare"], metric)) for e in values.values()]).T
            )
            axis.errorbar(range(len(values)), middle, [middle - low, high - middle], marker="o",
                          capsize=3, color=color, label=metric)  # fmt: skip
        axis.axhline(0, color="0.3", linewidth=0.8)
        axis.set_xticks(range(len(values)), list(values))
        axis.set_xlabel(LABELS[choice])
        axis.set_ylabel("change, points")
        axis.legend()
        _save(figure, folder / f"sensitivity-{choice}.png")


LABELS = {
    "candidates": "candidates a prompt, N",
    "threshold": "accepted above this probability of the own verdict",
    "replay": "epoch after which the discard pool is drawn again",
    "easy": "share of easy prompts",
}
