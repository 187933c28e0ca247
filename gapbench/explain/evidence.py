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

from gapbench.explain.figures import Correlation, Mean, correlation, mean, plain, word
from gapbench.explain.groups import CORRECTED, Tested
from gapbench.metrics.paired import holm

PIECES: Final = {
    "prompts": "corrected prompts lie nearer the training set than their controls",
    "images": "corrected images lie nearer the training set than their controls",
    "kernel": "|K(Y0, Yu)| is larger than |K(Yi, Yu)|",
    "likelihood": "corrected images became less likely",
    "together": "likelihood and verdict moved together",
}
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
    evidence = {
        name: {
            "says": PIECES[name],
            "verdict": word(_middle(figure), adjusted[name]),
            "p_holm": adjusted[name],
        }
        for name, figure in raw.items()
    }
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
        "alignment": {
            "before": _alignment(tested, "pair", records, layers),
            "after": _alignment(tested, "align", records, layers),
        },
        "tested": [{**asdict(t), **records[f"pair/{t.key}"]} for t in tested],
        "images": values.to_dict("records"),
    }


def _values(frame: pd.DataFrame, records: Records) -> pd.DataFrame:
    """A row an image: key, text, group, and both values before and after in nats."""
    rows = []
    for key, text, category, group in zip(
        frame["key"], frame["text"], frame["category"], frame["group"], strict=True
    ):
        old, new = records[f"value-before/{key}"], records[f"value-after/{key}"]
        rows.append(
            {
                "key": key, "text": text, "category": category, "group": group,
                "likelihood_before": old[0], "likelihood_after": new[0],
                "verdict_before": old[1], "verdict_after": new[1],
                "likelihood": new[0] - old[0], "verdict": new[1] - old[1],
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def _similarity(
    members: Sequence[Tested], tested: Sequence[Tested], records: Records
) -> dict[str, Any]:
    controls = {t.matched: t for t in tested if t.matched is not None}
    cells = {}
    for kind in ("prompt", "image"):

        def cosine(t: Tested, kind: str = kind) -> float:
            return float(records[f"pair/{t.key}"]["similarity"][kind])

        paired = [t for t in members if t.key in controls]
        others = [controls[t.key] for t in paired]
        differences = [cosine(t) - cosine(o) for t, o in zip(paired, others, strict=True)]
        cells[kind] = {
            "corrected": asdict(mean([cosine(t) for t in members], _texts(members))),
            "control": asdict(mean([cosine(t) for t in others], _texts(others))),
            "difference": asdict(mean(differences, _texts(paired))),
        }
    return cells


def _kernel(tested: Sequence[Tested], records: Records, layers: Sequence[str]) -> dict[str, Any]:
    """Of tested pairs, each with its nearest training pair: norms, entries and their signs."""
    texts = _texts(tested)
    pairs = [records[f"pair/{t.key}"] for t in tested]

    def ratios(norms: Sequence[Sequence[float]]) -> Mean:
        """Of log(own / mean of the alternatives')."""
        logs = []
        for own, *others in norms:
            other = float(np.mean(others)) if others else 0.0
            logs.append(np.log(own / other) if own > 0 and other > 0 else np.nan)
        return mean(logs, texts)

    figures: dict[str, Any] = {
        "log_ratio": asdict(ratios([p["norms"] for p in pairs])),
        "own": asdict(mean([p["norms"][0] for p in pairs], texts)),
        "alternatives": asdict(
            mean([np.mean(p["norms"][1:]) if p["norms"][1:] else np.nan for p in pairs], texts)
        ),
        "log_ratio_by_layer": {
            layer: asdict(ratios([[row[place] for row in p["norms_by_layer"]] for p in pairs]))
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
            raised = [float(sum(p[other][head]) > 0) for p in pairs]
            figures[f"{other}_{head}"] = {
                "cosine": asdict(mean(cosines, texts)),
                "raised": float(np.mean(raised)) if raised else None,
            }
    return figures


def _shift(values: pd.DataFrame, tested: Sequence[Tested]) -> dict[str, Any]:
    groups = {
        group: {
            head: asdict(mean(rows[head].tolist(), rows["text"].tolist()))
            for head in ("likelihood", "verdict")
        }
        for group, rows in values[values["group"].notna()].groupby("group")
    }
    corrected = values[values["group"] == CORRECTED]
    change = dict(zip(values["key"], values["likelihood"], strict=True))
    pairs = [(t.key, t.matched) for t in tested if t.matched is not None]
    apart = [change[control] - change[member] for control, member in pairs]
    by_text = dict(zip(values["key"], values["text"], strict=True))
    return {
        "groups": groups,
        "fall": asdict(mean((-corrected["likelihood"]).tolist(), corrected["text"].tolist())),
        "fall_below_control": asdict(mean(apart, [by_text[member] for _, member in pairs])),
        "correlation": plain(_together(values)),
        "correlation_in_corrected": plain(_together(corrected)),
    }


def _together(values: pd.DataFrame) -> Correlation | None:
    return correlation(
        values["likelihood"].tolist(), values["verdict"].tolist(), values["text"].tolist()
    )


def _first_order(tested: Sequence[Tested], records: Records) -> list[dict[str, Any]]:
    """For each step length and head: actual over predicted change by least squares through 0 over
    the checked pairs, and the ratio that is farthest from 1."""
    steps = [step for t in tested for step in records.get(f"step/{t.key}", ())]
    rows = []
    for share in dict.fromkeys(step["share"] for step in steps):
        for head in ("likelihood", "verdict"):
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
    rows, texts = [records[f"{stage}/{t.key}"] for t in tested], _texts(tested)

    def part(place: int | None) -> dict[str, Any]:
        cut = [{k: r[k] if place is None else [r[k][place]] for k in _KINDS} for r in rows]
        cosines = [_cosine(r["both"], r["drawing"], r["judging"]) for r in cut]
        return {
            "cosine": asdict(mean(cosines, texts)),
            "drawing": asdict(mean([sum(r["drawing"]) ** 0.5 for r in cut], texts)),
            "judging": asdict(mean([sum(r["judging"]) ** 0.5 for r in cut], texts)),
        }

    return {
        "all": part(None),
        "by_layer": {layer: part(place) for place, layer in enumerate(layers)},
    }


_KINDS: Final = ("both", "drawing", "judging")


def _cosine(both: Sequence[float], one: Sequence[float], two: Sequence[float]) -> float:
    length = (sum(one) * sum(two)) ** 0.5
    return sum(both) / length if length > 0 else float("nan")


def _texts(tested: Sequence[Tested]) -> list[str]:
    return [t.text for t in tested]


def _middle(figure: Mapping[str, Any] | None) -> float | None:
    if figure is None:
        return None
    value = figure["value"] if "value" in figure else figure["rho"]
    return None if value is None else float(value)
