"""Which candidates are accepted, which make pairs, and which prompts go to the discard pool.

Pure functions of a run's frame (`Run.frame()`): one row a candidate with its text, sample, seed,
own verdict `own` (1, 0 or NaN) and probability `p_yes`. Source: paper, section 3, algorithms 1, 2.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import pandas as pd

from gapbench.types import GapbenchError

_RULE: Final = re.compile(r"all|mixed|best:[1-9]\d*|above:(0?\.\d+|0)")
SHOWN: Final = ("all", "mixed", "best:1", "best:2", "best:4", "above:0.9", "above:0.99")
"""The rules whose counts are shown before training, beside the one that is asked for."""


@dataclass(frozen=True, slots=True)
class Rule:
    """An acceptance rule.

    all: every candidate with verdict 1 (the paper's); mixed: those of prompts that also have a
    verdict 0; best: the `value` most probable with verdict 1 of each prompt; above: those whose
    probability is above `value`.
    """

    kind: str
    value: float


def parse(text: str) -> Rule:
    """A rule as --accept gives it: all, mixed, best:K or above:P."""
    if not _RULE.fullmatch(text):
        raise GapbenchError(
            f"--accept {text}: there are all, mixed, best:K and above:P (0 <= P < 1)"
        )
    kind, _, value = text.partition(":")
    return Rule(kind, float(value or 0))


def accepted(frame: pd.DataFrame, rule: Rule) -> pd.DataFrame:
    """The rows that a rule accepts, in the frame's order."""
    frame = frame.drop_duplicates(["text", "seed"])
    chosen = frame[_positive(frame, rule)]
    if rule.kind == "mixed":
        chosen = chosen[chosen["text"].isin(set(frame.loc[frame["own"] == 0, "text"]))]
    if rule.kind == "best":
        order = chosen.sort_values(["p_yes", "sample"], ascending=[False, True])
        chosen = chosen.loc[order.groupby("text").head(int(rule.value)).index.sort_values()]
    return chosen


def discarded(frame: pd.DataFrame, rule: Rule) -> list[str]:
    """The texts of which no candidate is positive: the discard pool, in the frame's order."""
    hopeful = set(frame.loc[_positive(frame, rule), "text"])
    return [text for text in dict.fromkeys(frame["text"]) if text not in hopeful]


def pairs(frame: pd.DataFrame, rule: Rule, margin: float) -> pd.DataFrame:
    """For each text its most probable accepted candidate and its least probable one.

    Columns are those of the frame with the suffixes _chosen and _rejected, and `text`. Texts whose
    two differ by less than `margin` in probability, or not at all, are left out.
    """
    frame = frame.drop_duplicates(["text", "seed"])
    best = accepted(frame, rule).sort_values(["p_yes", "sample"], ascending=[False, True])
    worst = frame[frame["p_yes"].notna()].sort_values(["p_yes", "sample"])
    both = best.drop_duplicates("text").merge(
        worst.drop_duplicates("text"), on="text", suffixes=("_chosen", "_rejected")
    )
    apart = both["p_yes_chosen"] - both["p_yes_rejected"]
    both = both[(apart >= margin) & (apart > 0)]
    order = {text: place for place, text in enumerate(dict.fromkeys(frame["text"]))}
    return both.sort_values("text", key=lambda texts: texts.map(order)).reset_index(drop=True)


def counts(frame: pd.DataFrame, asked: str, margin: float) -> pd.DataFrame:
    """What each rule would accept: columns rule, images, prompts, pairs, pool."""
    rows = []
    for text in dict.fromkeys([*SHOWN, asked]):
        rule = parse(text)
        chosen = accepted(frame, rule)
        rows.append(
            {
                "rule": text,
                "images": len(chosen),
                "prompts": chosen["text"].nunique(),
                "pairs": len(pairs(frame, rule, margin)),
                "pool": len(discarded(frame, rule)),
            }
        )
    return pd.DataFrame(rows)


def _positive(frame: pd.DataFrame, rule: Rule) -> pd.Series[bool]:
    if rule.kind == "above":
        return frame["p_yes"] > rule.value
    return frame["own"] == 1
