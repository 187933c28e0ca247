"""What small_world.py measured, as Markdown tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student
from tabulate import tabulate

from gapbench import open_run
from gapbench.comparison.compare import stored

CONTRASTS = (
    ("SFT", "C-SFT"),
    ("DPO", "C-DPO"),
    ("SFT, by lot", "SFT"),
    ("SFT", "SFT, judge's choice"),
)
TASK = ("shapes",)
"""The test split: `search` adds another to the same run folders."""
HEADS = {
    "generation": "generation",
    "non_unification": "non-unification",
    "false_positive": "false positive",
    "understanding": "understanding",
}


def line(found: dict[str, Any]) -> str:
    """A fix in one line."""
    said = found["compare"]
    figures = ", ".join(
        f"{c['metric']} {100 * c['before']:.1f} -> {100 * c['after']:.1f}"
        for c in said["changes"]
        if c["difference"] is not None
    )
    return f"{said['verdict']}; {figures}; {found['rows']} rows"


def over_seeds(figures: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    """Mean of a figure over seeds with its 95 % interval, in points; `figures` has the value and
    interval of each seed, as shares.

    Its variance is that of one seed's figure over prompts (the seeds share their prompts, so it
    does not shrink with them) and that of the seeds' mean (Student's t).
    """
    made, lows, highs = np.array(figures).T * 100
    prompts = (highs - lows).mean() / 2
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
    mean, low, high = over_seeds([spread(c) for c in told])
    after = 100 * np.mean([c["after"] for c in told])
    return f"{after:.1f} ({mean:+.1f} [{low:+.1f}, {high:+.1f}])"


def change(compared: dict[str, Any], metric: str) -> dict[str, Any]:
    """What `compare` says of a figure."""
    changes: list[dict[str, Any]] = compared["changes"]
    return next(c for c in changes if c["metric"] == metric)


def spread(figure: dict[str, Any]) -> tuple[float, float, float]:
    """A change with its interval, as shares."""
    return figure["difference"], figure["low"], figure["high"]


def by_name(found: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Method -> its fixes, a seed each, by seed."""
    fixes: dict[str, list[dict[str, Any]]] = {name.split(", seed")[0]: [] for name in found}
    for name in sorted(found):
        fixes[name.split(", seed")[0]].append(found[name])
    return fixes


def by_tier(found: dict[str, Any]) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Generation, percent with its interval, by tier, before and after each method."""
    fixes = by_name(found)
    runs = {"before": [next(iter(fixes.values()))[0]["compare"]["before"]]}
    runs |= {name: [seed["compare"]["after"] for seed in seeds] for name, seeds in fixes.items()}
    told: dict[str, dict[str, tuple[float, float, float]]] = {}
    for name, folders in runs.items():
        rates = [rate for folder in folders for rate in open_run(folder, tasks=TASK).rates()
                 if rate.metric == "generation" and rate.level == "tier"]  # fmt: skip
        for tier in ("easy", "medium", "hard"):
            of = [(r.value, r.low, r.high) for r in rates if r.name.endswith(tier)]
            told.setdefault(tier, {})[name] = over_seeds(of)  # type: ignore[arg-type]
    return told


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
    rows = []
    for name, seeds in by_name(found).items():
        rows.append(
            {
                "": name,
                "seeds": str(len(seeds)),
                "trained on": _range([s["rows"] for s in seeds]),
                **{HEADS[m]: _cell([change(s["compare"], m) for s in seeds]) for m in HEADS},
                "win rate": _wins(seeds),
                "corrected": _range([s["compare"]["groups"]["010"] for s in seeds]),
                "gap-gain": _gap_gain(seeds),
                "detectable": _range(
                    [100 * change(s["compare"], "generation")["detectable"] for s in seeds],
                    "{:.1f}",
                ),
            }
        )
    return rows


def contrasts(found: dict[str, Any]) -> list[dict[str, str]]:
    """Generation of one method less that of another, seed by seed; no model is asked."""
    fixes, rows = by_name(found), []
    for one, two in CONTRASTS:
        pairs = zip(fixes.get(one, ()), fixes.get(two, ()), strict=False)
        runs = [[open_run(seed["compare"]["after"], tasks=TASK) for seed in pair] for pair in pairs]
        each = [change(asdict(stored(before, after)), "generation") for before, after in runs]
        if each:
            mean, low, high = over_seeds([spread(c) for c in each])
            words = f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"
            rows.append({"": f"{two} - {one}", "generation": words})
    return rows


def tables(work: Path) -> str:
    """Every series as a table, and generation by tier."""
    said = []
    for what in ("search", "claims", "sensitivity", "planted"):
        file = work / f"{what}.json"
        if not file.exists():
            continue
        found = json.loads(file.read_text())
        said.append(f"{what}:\n\n{tabulate(_rows(found), headers='keys', tablefmt='pipe')}")
        if what == "claims":
            tiers = [
                {"": tier}
                | {n: f"{v:.1f} [{low:.1f}, {high:.1f}]" for n, (v, low, high) in cells.items()}
                for tier, cells in by_tier(found).items()
            ]
            said += [
                tabulate(rows, headers="keys", tablefmt="pipe")
                for rows in (tiers, contrasts(found))
            ]
    return "\n\n".join(said)
