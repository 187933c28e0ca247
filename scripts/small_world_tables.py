"""What small_world.py measured, as Markdown tables and figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from scipy.stats import t as student
from tabulate import tabulate

HEADS = {
    "generation": "generation",
    "non_unification": "non-unification",
    "false_positive": "false positive",
    "understanding": "understanding",
}
Z = 1.96


def line(found: dict[str, Any]) -> str:
    """A fix in one line."""
    said = found["compare"]
    figures = ", ".join(
        f"{c['metric']} {100 * c['before']:.1f} -> {100 * c['after']:.1f}"
        for c in said["changes"]
        if c["difference"] is not None
    )
    return f"{said['verdict']}; {figures}; {found['rows']} rows"


def over_seeds(changes: Sequence[dict[str, Any]]) -> tuple[float, float, float]:
    """Mean change over seeds with its 95 % interval, in points.

    Its variance is that of one seed's change over prompts (the seeds share their prompts, so it
    does not shrink with them) and that of the seeds' mean (Student's t).
    """
    made = np.array([c["difference"] for c in changes]) * 100
    prompts = np.mean([(c["high"] - c["low"]) / 2 for c in changes]) * 100
    seeds = 0.0
    if len(made) > 1:
        seeds = student.ppf(0.975, len(made) - 1) * made.std(ddof=1) / np.sqrt(len(made))
    half = float(np.hypot(prompts, seeds))
    mean = float(made.mean())
    return mean, mean - half, mean + half


def _cell(changes: Sequence[dict[str, Any]]) -> str:
    told = [c for c in changes if c["difference"] is not None]
    if not told:
        return "n/a"
    mean, low, high = over_seeds(told)
    after = 100 * np.mean([c["after"] for c in told])
    return f"{after:.1f} ({mean:+.1f} [{low:+.1f}, {high:+.1f}])"


def _change(found: dict[str, Any], metric: str) -> dict[str, Any]:
    changes: list[dict[str, Any]] = found["compare"]["changes"]
    return next(c for c in changes if c["metric"] == metric)


def _range(values: Sequence[float], form: str = "{:.0f}") -> str:
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low} to {high}"


def _wins(seeds: Sequence[dict[str, Any]]) -> str:
    """The paper's win rate, averaged over seeds, with the widest of the seeds' intervals."""
    rates = [s["compare"]["win_rate"] for s in seeds]
    told = [r for r in rates if r["value"] is not None and r["low"] is not None]
    if not told:
        return "n/a"
    value = 100 * np.mean([r["value"] for r in told])
    half = max(r["high"] - r["low"] for r in told) * 50
    counts = " ".join(f"{r['wins']}:{r['losses']}" for r in rates)
    return f"{value:.0f} [{value - half:.0f}, {value + half:.0f}] ({counts})"


def _gap_gain(seeds: Sequence[dict[str, Any]]) -> str:
    told = [s["compare"]["gap_gain"] for s in seeds if s["compare"]["gap_gain"]]
    if not told:
        return "n/a"
    rho, low, high = np.array([c[:3] if isinstance(c, list) else [c["rho"], c["low"], c["high"]]
                               for c in told]).mean(0)  # fmt: skip
    return f"{rho:.2f} [{low:.2f}, {high:.2f}]"


def _rows(found: dict[str, Any]) -> list[dict[str, str]]:
    names = dict.fromkeys(name.split(", seed")[0] for name in found)
    rows = []
    for name in names:
        seeds = [each for key, each in found.items() if key.split(", seed")[0] == name]
        rows.append(
            {
                "": name,
                "seeds": str(len(seeds)),
                "trained on": _range([s["rows"] for s in seeds]),
                **{HEADS[m]: _cell([_change(s, m) for s in seeds]) for m in HEADS},
                "win rate": _wins(seeds),
                "corrected": _range([s["compare"]["groups"]["010"] for s in seeds]),
                "gap-gain": _gap_gain(seeds),
                "detectable": _range(
                    [100 * _change(s, "generation")["detectable"] for s in seeds], "{:.1f}"
                ),
            }
        )
    return rows


def tables(work: Path, figures: Path | None) -> str:
    """Every series as a table; with `figures` their pictures go there."""
    said = []
    for what in ("search", "claims", "sensitivity", "planted"):
        file = work / f"{what}.json"
        if not file.exists():
            continue
        found = json.loads(file.read_text())
        said.append(f"{what}:\n\n{tabulate(_rows(found), headers='keys', tablefmt='pipe')}")
        if figures is not None and what in ("claims", "sensitivity"):
            figures.mkdir(parents=True, exist_ok=True)
            {"claims": _claims, "sensitivity": _sensitivity}[what](found, figures)
    return "\n\n".join(said)


def _claims(found: dict[str, Any], folder: Path) -> None:
    """Change of generation and of understanding by method, with intervals."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(name.split(", seed")[0] for name in found))
    figure, axes = plt.subplots(1, 2, figsize=(9, 0.5 * len(names) + 1.4), sharey=True)
    for axis, metric in zip(axes, ("generation", "understanding"), strict=True):
        for at, name in enumerate(names):
            seeds = [_change(e, metric) for k, e in found.items() if k.split(", seed")[0] == name]
            mean, low, high = over_seeds(seeds)
            axis.plot([low, high], [at, at], color="0.55", linewidth=2, zorder=1)
            axis.scatter([100 * s["difference"] for s in seeds], [at] * len(seeds), s=14,
                         color="0.55", zorder=2)  # fmt: skip
            axis.scatter([mean], [at], s=46, color="tab:blue", zorder=3)
        axis.axvline(0, color="0.3", linewidth=0.8)
        axis.set_title(f"change of {metric}, points")
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(folder / "claims.png", dpi=150)
    plt.close(figure)


def _sensitivity(found: dict[str, Any], folder: Path) -> None:
    """A picture a choice: generation and understanding against its values."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    for choice in dict.fromkeys(name.split(": ")[0] for name in found):
        values = {k.split(": ")[1]: e for k, e in found.items() if k.startswith(f"{choice}: ")}
        figure, axis = plt.subplots(figsize=(5, 3.2))
        for metric, color in (("generation", "tab:blue"), ("understanding", "tab:orange")):
            changes = [_change(e, metric) for e in values.values()]
            middle = [100 * c["difference"] for c in changes]
            error = [[100 * (c["difference"] - c["low"]) for c in changes],
                     [100 * (c["high"] - c["difference"]) for c in changes]]  # fmt: skip
            axis.errorbar(range(len(values)), middle, error, marker="o", capsize=3, color=color,
                          label=metric)  # fmt: skip
        axis.axhline(0, color="0.3", linewidth=0.8)
        axis.set_xticks(range(len(values)), list(values))
        axis.set_xlabel(choice)
        axis.set_ylabel("change, points")
        axis.legend()
        figure.tight_layout()
        figure.savefig(folder / f"sensitivity-{choice}.png", dpi=150)
        plt.close(figure)
