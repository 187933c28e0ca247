"""What the computed values say: the paper's three pieces of evidence, and what stands beside them.

Every figure's unit is the prompt (`figures.mean`). A piece of evidence is a quantity that the
theory puts above 0; it holds, is reversed or is not shown by Holm's p over all pieces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

import numpy as np
import pandas as pd

from gapbench.explain.figures import Correlation, Mean, correlation, mean, word
from gapbench.explain.groups import CORRECTED, Tested
from gapbench.metrics.paired import holm

PIECES: Final = {
    "prompts": "corrected prompts lie nearer the training set than their controls",
    "images": "corrected images lie nearer the training set than their controls",
    "kernel": "|K(Y0, Yu)| is larger than |K(Yi, Yu)|",
    "likelihood": "corrected images became less likely",
    "together": "likelihood and verdict moved together",
}
HEADS: Final = ("likelihood", "verdict")
Records = Mapping[str, Any]


def gather(
    frame: pd.DataFrame, tested: Sequence[Tested], records: Records, layers: Sequence[str]
) -> dict[str, Any]:
    """Everything for explain.json.

    `frame` is `groups.coded`'s; `records` the journal's, with every image and every tested pair.
    """
    values = _values(frame, records)
    members = [t for t in tested if t.group == CORRECTED]
    controls = [t for t in tested if t.matched is not None]
    similarity = _similarity(members, tested, records)
    kernel = _kernel(tested, records, layers)
    kernel["log_ratio_corrected"] = _kernel(members, records, layers)["log_ratio"]
    shift = _shift(values, tested)
    raw = {
        "prompts": similarity["prompt"]["difference"],
        "images": similarity["image"]["difference"],
        "kernel": kernel["log_ratio"],
        "likelihood": shift["fall"],
        "together": shift["correlation"],
    }
    ps = holm([figure["p"] if figure else None for figure in raw.values()])
    adjusted = dict(zip(raw, ps, strict=True))
    evidence = {}
    for name, figure in raw.items():
        value = figure and figure["rho" if "rho" in figure else "value"]
        verdict = word(value, adjusted[name])
        evidence[name] = {"says": PIECES[name], "verdict": verdict, "p_holm": adjusted[name]}
    return {
        "layers": list(layers),
        "groups": {
            f"{code:03b}": int((values["group"] == f"{code:03b}").sum()) for code in range(8)
        },
        "members": len(members),
        "controls": len(controls),
        "others": len(tested) - len(members) - len(controls),
        "evidence": evidence,
        "similarity": similarity,
        "kernel": kernel,
        "first_order": _first_order(tested, records),
        "shift": shift,
        "effective_rank": {when: records[f"rank/{when}"] for when in ("before", "after")},
        "alignment": {
            "before": _alignment(tested, "pair", records, layers),
            "after": _alignment(tested, "align", records, layers),
        },
        "tested": [{**asdict(t), **records[f"pair/{t.key}"]} for t in tested],
        "images": values.to_dict("records"),
    }


def _values(frame: pd.DataFrame, records: Records) -> pd.DataFrame:
    """A row an image: key, text, category, group, and both values before, after and their change,
    in nats."""
    values = frame[["key", "text", "category", "group"]].reset_index(drop=True)
    for when in ("before", "after"):
        known = np.array([records[f"value-{when}/{key}"] for key in values["key"]], dtype=float)
        values[[f"{head}_{when}" for head in HEADS]] = known.reshape(-1, 2)
    for head in HEADS:
        values[head] = values[f"{head}_after"] - values[f"{head}_before"]
    return values


def _mean(values: Sequence[float], tested: Sequence[Tested]) -> Mean:
    """Of a value for each tested pair, over their prompts."""
    return mean(values, [t.text for t in tested])


def _similarity(
    members: Sequence[Tested], tested: Sequence[Tested], records: Records
) -> dict[str, Any]:
    controls = {t.matched: t for t in tested if t.matched is not None}
    paired = [t for t in members if t.key in controls]
    others = [controls[t.key] for t in paired]
    cells = {}
    for kind in ("prompt", "image"):
        cosine = {t.key: float(records[f"pair/{t.key}"]["similarity"][kind]) for t in tested}
        differences = [cosine[t.key] - cosine[controls[t.key].key] for t in paired]
        cells[kind] = {
            "corrected": _mean([cosine[t.key] for t in members], members),
            "control": _mean([cosine[t.key] for t in others], others),
            "difference": _mean(differences, paired),
        }
    return cells


def _kernel(tested: Sequence[Tested], records: Records, layers: Sequence[str]) -> dict[str, Any]:
    """Of tested pairs, each with its nearest training pair: norms, entries and their signs."""
    pairs = [records[f"pair/{t.key}"] for t in tested]

    def others(norms: Sequence[float]) -> float:
        """Mean of the alternatives'."""
        return float(np.mean(norms[1:])) if norms[1:] else float("nan")

    def ratios(norms: Sequence[Sequence[float]]) -> Mean:
        """Of log(own / mean of the alternatives')."""
        known = [(each[0], others(each)) for each in norms]
        logs = [np.log(own / other) if own > 0 and other > 0 else np.nan for own, other in known]
        return _mean(logs, tested)

    figures: dict[str, Any] = {
        "log_ratio": ratios([p["norms"] for p in pairs]),
        "log_ratio_random": ratios([p["random_norms"] for p in pairs]),
        "own": _mean([p["norms"][0] for p in pairs], tested),
        "alternatives": _mean([others(p["norms"]) for p in pairs], tested),
        "log_ratio_by_layer": {
            layer: ratios([[row[place] for row in p["norms_by_layer"]] for p in pairs])
            for place, layer in enumerate(layers)
        },
        "forward_against_backward": max(
            (
                abs(p["likelihoods"][0] - sum(p["nearest"]["likelihood"]))
                / max(abs(p["likelihoods"][0]), 1e-300)
                for p in pairs
            ),
            default=None,
        ),
    }
    for other in ("nearest", "random", "mean"):
        for head, square in (("likelihood", "drawing"), ("verdict", "judging")):
            cosines = [_cosine(p[other][head], p[square], p[other]["square"]) for p in pairs]
            raised = [sum(p[other][head]) > 0 for p in pairs]
            figures[f"{other}_{head}"] = {
                "cosine": _mean(cosines, tested),
                "raised": float(np.mean(raised)) if raised else None,
            }
    return figures


def _shift(values: pd.DataFrame, tested: Sequence[Tested]) -> dict[str, Any]:
    groups = {
        group: {head: mean(rows[head], rows["text"]) for head in HEADS}
        for group, rows in values[values["group"].notna()].groupby("group")
    }
    corrected = values[values["group"] == CORRECTED]
    change = dict(zip(values["key"], values["likelihood"], strict=True))
    pairs = [(t.key, t.matched) for t in tested if t.matched is not None]
    apart = [change[control] - change[member] for control, member in pairs]
    by_text = dict(zip(values["key"], values["text"], strict=True))
    return {
        "groups": groups,
        "fall": mean(-corrected["likelihood"], corrected["text"]),
        "fall_below_control": mean(apart, [by_text[member] for _, member in pairs]),
        "correlation": _together(values),
        "correlation_in_corrected": _together(corrected),
    }


def _together(values: pd.DataFrame) -> Correlation | None:
    return correlation(values["likelihood"], values["verdict"], values["text"])


def _first_order(tested: Sequence[Tested], records: Records) -> list[dict[str, Any]]:
    """For each step length and head: actual over predicted change by least squares through 0 over
    the checked pairs, and the ratio that is farthest from 1."""
    steps = [step for t in tested for step in records.get(f"step/{t.key}", ())]
    rows = []
    for share in dict.fromkeys(step["share"] for step in steps):
        for head in HEADS:
            mine = [s for s in steps if (s["share"], s["head"]) == (share, head)]
            predicted = np.array([s["predicted"] for s in mine])
            actual = np.array([s["actual"] for s in mine])
            each = actual[predicted != 0] / predicted[predicted != 0]
            square = float(predicted @ predicted)
            rows.append(
                {
                    "share": share,
                    "head": head,
                    "ratio": float(predicted @ actual) / square if square else None,
                    "farthest": float(each[np.abs(each - 1).argmax()]) if len(each) else None,
                    "steps": mine,
                }
            )
    return rows


def _alignment(
    tested: Sequence[Tested], stage: str, records: Records, layers: Sequence[str]
) -> dict[str, Any]:
    """Cosine of a pair's generation and verdict gradients, and their norms, by layer and in all."""
    rows = [records[f"{stage}/{t.key}"] for t in tested]

    def part(cut: slice) -> dict[str, Any]:
        cosines = [_cosine(r["both"][cut], r["drawing"][cut], r["judging"][cut]) for r in rows]
        norms = {
            head: _mean([sum(r[head][cut]) ** 0.5 for r in rows], tested)
            for head in ("drawing", "judging")
        }
        return {"cosine": _mean(cosines, tested), **norms}

    by_layer = {layer: part(slice(place, place + 1)) for place, layer in enumerate(layers)}
    return {"all": part(slice(None)), "by_layer": by_layer}


def _cosine(both: Sequence[float], one: Sequence[float], two: Sequence[float]) -> float:
    length = (sum(one) * sum(two)) ** 0.5
    return sum(both) / length if length > 0 else float("nan")
