"""Which images are looked at: the correction group, its controls, and the alternatives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd

from gapbench.types import Prompt

CORRECTED: Final = "010"
ALTERNATIVES: Final = 4
"""Alternative prompts y_i of each tested image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tested:
    """A tested pair Y0: an image of BEFORE and its prompt.

    `matched` is the key of the member of the correction group that it is the control of, or None.
    `alternatives` are other prompts y_i of its category, for the pairs Yi = (y_i, x0).
    """

    key: str
    matched: str | None
    group: str
    category: str
    text: str
    question: str
    image: str
    tokens: str
    alternatives: list[str]


def coded(old: pd.DataFrame, crossed: Sequence[float]) -> pd.DataFrame:
    """BEFORE's frame with `group` ("000" to "111": outside judge, own verdict before, after; None
    where one is missing) and `key`, which names an image."""
    codes = (
        4 * old["outside"].astype(float) + 2 * old["own"].astype(float) + np.asarray(crossed, float)
    )
    groups: list[Any] = [None if np.isnan(code) else f"{int(code):03b}" for code in codes]
    keys = old["task"] + "/" + old["prompt"] + "/" + old["sample"].astype(str)
    return old.assign(group=groups, key=keys)


def choose(frame: pd.DataFrame, prompts: Sequence[Prompt], count: int, seed: int) -> list[Tested]:
    """Up to `count` members of the correction group, over as many prompts as there are, each with
    a control: a random image of another prompt of its category that is not in the group.

    Where there are fewer members, random images of the other groups fill up. More begin with the
    same ones, and the same seed gives the same.
    """
    stream = np.random.default_rng([seed, 0])
    known = frame[frame["group"].notna()].reset_index(drop=True)
    group = known[known["group"] == CORRECTED]
    rest = known[known["group"] != CORRECTED]
    used: set[str] = set()
    chosen = []
    for row in _spread(group, count, stream):
        chosen.append(_tested(row, None, prompts, stream))
        pool = rest[
            (rest["task"] == row["task"])
            & (rest["category"] == row["category"])
            & (rest["text"] != row["text"])
            & ~rest["key"].isin(used)
        ]
        if len(pool):
            control = pool.iloc[int(stream.integers(len(pool)))]
            used.add(control["key"])
            chosen.append(_tested(control, row["key"], prompts, stream))
    more = count - min(count, len(group))
    fill = _spread(rest[~rest["key"].isin(used)], more, stream) if more else []
    return chosen + [_tested(row, None, prompts, stream) for row in fill]


def _spread(frame: pd.DataFrame, count: int, stream: np.random.Generator) -> list[pd.Series]:
    """`count` random rows, prompts in turn."""
    mixed = frame.iloc[stream.permutation(len(frame))]
    turn = mixed.groupby(["task", "prompt"]).cumcount().to_numpy()
    chosen = mixed.iloc[np.argsort(turn, kind="stable")[:count]]
    return [row for _, row in chosen.iterrows()]


def _tested(
    row: pd.Series, matched: str | None, prompts: Sequence[Prompt], stream: np.random.Generator
) -> Tested:
    own = next(p for p in prompts if (p.task, p.id) == (row["task"], row["prompt"]))
    near = {p.text for p in prompts if (p.task, p.category) == (own.task, own.category)}
    far = {p.text for p in prompts if p.task == own.task} - near
    order = [
        texts[int(place)]
        for texts in (sorted(near - {own.text}), sorted(far - {own.text}))
        for place in stream.permutation(len(texts))
    ]
    return Tested(
        key=row["key"], matched=matched, group=row["group"], category=own.category, text=own.text,
        question=own.question, image=row["image"], tokens=row["tokens"],
        alternatives=order[:ALTERNATIVES],
    )  # fmt: skip
