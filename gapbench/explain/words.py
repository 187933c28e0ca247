"""An explanation in words: the lines that the terminal shows and the page begins with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from gapbench.types import counted

ORTHOGONAL: Final = 0.1
"""Cosine below which two gradients are called nearly orthogonal."""
FEW: Final = 10
"""Images of the correction group below which nothing is concluded."""
EMPTY: Final = (
    "Too little to say: the false-positive correction group (0, 1, 0) is empty. No image that the "
    "outside judge rejects went from accepted to rejected. (a) and (c) are n/a; the rest is on "
    "random images."
)


def summary(results: Mapping[str, Any]) -> list[str]:
    """At most 14 lines; the first says so where there is too little to say."""
    fix, evidence, kernel = results["fix"], results["evidence"], results["kernel"]
    counts = ", ".join(f"{code} {count}" for code, count in results["groups"].items())
    how = "exact"
    if fix["projection"]:
        how = f"estimated from gradients projected to rank {fix['projection']}"
    near, norms = results["similarity"], kernel["log_ratio"]
    lines = [
        _too_few(results),
        f"{fix['method']} of {fix['base']} on {fix['rows']} rows ({fix['trained']}; kernel over "
        f"{fix['parameters']:,} parameters, {how}, {fix['dtype']}).",
        f"Images of BEFORE by (outside judge, before, after): {counts}."
        + "".join(f" Left out: {reason}." for reason in results["left_out"]),
    ]
    for kind in ("prompt", "image") if results["members"] else ():
        cell = near[kind]
        lines.append(
            f"(a) {kind}s: cosine with the nearest training pair {number(cell['corrected'])}, of "
            f"controls {number(cell['control'])}; difference {interval(cell['difference'])}: "
            f"{_said(evidence[f'{kind}s'])}"
        )
    lines.append(
        f"(b) |K(Y0, Yu)| {number(kernel['own'])} against |K(Yi, Yu)| "
        f"{number(kernel['alternatives'])} over {norms['images']} images; log ratio "
        f"{interval(norms)}: {_said(evidence['kernel'])}. Of corrected images "
        f"{tested(kernel['log_ratio_corrected'])}; for a random training pair as Yu "
        f"{tested(kernel['log_ratio_random'])}"
    )
    shift = results["shift"]
    if results["members"]:
        group = shift["groups"]["010"]["likelihood"]
        lines.append(
            f"(c) change of log p(image | prompt) of corrected images: {interval(group)} nats: "
            f"{_said(evidence['likelihood'])}. Below their controls' by "
            f"{tested(shift['fall_below_control'])}"
        )
    lines.append(
        "Changes of log p and of the verdict logit correlate over prompts: "
        f"{correlation(shift['correlation'])}: {_said(evidence['together'])}"
    )
    ends = [results["alignment"][when]["all"]["cosine"] for when in ("before", "after")]
    lines.append(
        f"Cosine of generation and verdict gradients: before {interval(ends[0])}, after "
        f"{interval(ends[1])}{_nearly(ends)}."
    )
    ranks = results["effective_rank"]
    if ranks["before"] is not None:
        lines.append(
            f"Effective rank of the prompts' representations: before {ranks['before']:.4g}, after "
            f"{ranks['after']:.4g}."
        )
    moved = [kernel[f"nearest_{head}"]["raised"] for head in ("likelihood", "verdict")]
    if moved[0] is not None:
        lines.append(
            f"A step on the nearest training pair raises log p of {100 * moved[0]:.0f} % of the "
            f"tested images and the verdict on {100 * moved[1]:.0f} %."
        )
    lines.append(_check(results))
    lines.append(_conclusion(results))
    return [line for line in lines if line]


def _too_few(results: Mapping[str, Any]) -> str:
    """Why nothing can be concluded; empty where something can."""
    members, group = results["members"], results["groups"]["010"]
    if members >= FEW:
        return ""
    if not members:
        return EMPTY
    more = f"--pairs {FEW} looks at enough" if group >= FEW else f"{FEW} or more can tell"
    return f"{counted(group, 'image')} in the correction group: too little to say; {more}."


def _check(results: Mapping[str, Any]) -> str:
    rows = results["first_order"]
    if not rows:
        return ""
    share = min(row["share"] for row in rows)
    ratios = ", ".join(
        f"{row['head']} {row['ratio']:.4f}"
        for row in rows
        if row["share"] == share and row["ratio"] is not None
    )
    note = (
        "" if results["fix"]["dtype"] == "float64" else f" (in {results['fix']['dtype']}, rounded)"
    )
    return f"First-order check, actual over predicted change at the smallest step: {ratios}{note}."


def _conclusion(results: Mapping[str, Any]) -> str:
    names = {"prompts": "(a) prompts", "images": "(a) images", "kernel": "(b)",
             "likelihood": "(c)", "together": "moving together"}  # fmt: skip
    verdicts = {
        verdict: [
            names[n] for n, piece in results["evidence"].items() if piece["verdict"] == verdict
        ]
        for verdict in ("holds", "not shown", "reversed", "n/a")
    }
    said = "; ".join(
        f"{verdict}: {', '.join(which)}" for verdict, which in verdicts.items() if which
    )
    if _too_few(results):
        return f"Nothing is concluded about the shared-kernel account. {said}."
    if len(verdicts["holds"]) == len(names):
        return f"The evidence supports the shared-kernel account. {said}."
    if not verdicts["holds"]:
        return f"The evidence does not support the shared-kernel account here. {said}."
    return f"The evidence supports the shared-kernel account in part only. {said}."


def _nearly(ends: list[Mapping[str, Any]]) -> str:
    values = [end["value"] for end in ends]
    close = all(value is not None and abs(value) < ORTHOGONAL for value in values)
    return ": nearly orthogonal" if close else ""


def _said(piece: Mapping[str, Any]) -> str:
    p = piece["p_holm"]
    return piece["verdict"] if p is None else f"{piece['verdict']} (Holm p {p:.4f})"


def number(figure: Mapping[str, Any]) -> str:
    """A mean in three digits."""
    return "n/a" if figure["value"] is None else f"{figure['value']:.3g}"


def interval(figure: Mapping[str, Any]) -> str:
    """A mean with its interval."""
    if figure["value"] is None:
        return "n/a"
    if figure["low"] is None:
        return f"{figure['value']:+.3g} [n/a]"
    return f"{figure['value']:+.3g} [{figure['low']:+.3g}, {figure['high']:+.3g}]"


def tested(figure: Mapping[str, Any]) -> str:
    """A mean with its interval and the p of its own test, which Holm's does not count."""
    p = figure["p"]
    return interval(figure) + ("" if p is None else f" (p {p:.4f})")


def correlation(figure: Mapping[str, Any] | None) -> str:
    """A correlation with its interval."""
    if figure is None:
        return "n/a"
    return (
        f"rho {figure['rho']:+.2f} [{figure['low']:+.2f}, {figure['high']:+.2f}], rank "
        f"{figure['rank']:+.2f}, {figure['prompts']} prompts"
    )
