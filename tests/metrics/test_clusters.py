"""The unit of every figure is the cluster: prompts of one count as images of one prompt."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from gapbench.metrics import rates
from gapbench.metrics.agreement import agreement
from gapbench.metrics.calibration import reliability
from gapbench.metrics.corrected import corrected
from gapbench.metrics.paired import changes
from gapbench.metrics.power import spread
from gapbench.metrics.ranking import standings
from gapbench.types import GapbenchError


def frame(seed: int) -> pd.DataFrame:
    """24 prompts of 2 images in 2 categories; the 3 prompts of a cluster are alike."""
    stream = np.random.default_rng(seed)
    rows = []
    for prompt in range(24):
        hard = (prompt // 3) % 2
        for sample in range(2):
            own, outside, human, crossed = (stream.random(4) < 0.15 + 0.7 * hard).astype(float)
            rows.append(
                {"task": "t", "category": f"c{prompt // 12}", "tier": "easy",
                 "prompt": str(prompt), "cluster": f"k{prompt // 3}", "sample": sample, "own": own,
                 "outside": outside, "score": outside, "human": human, "mismatched": crossed,
                 "mismatched_asked": True, "p_yes": 0.5}
            )  # fmt: skip
    return pd.DataFrame(rows)


def merged(rows: pd.DataFrame) -> pd.DataFrame:
    """The same with each cluster as one prompt of six images."""
    sample = 2 * (rows["prompt"].astype(int) % 3) + rows["sample"]
    return rows.assign(prompt=rows["cluster"], sample=sample).drop(columns="cluster")


def all_figures(one: pd.DataFrame, two: pd.DataFrame) -> list[Any]:
    made: list[Any] = [
        *rates(one),
        agreement(one, "outside", "human"),
        *reliability(one),
        *corrected(one),
    ]
    made += [*changes(one, two, "overall"), spread(one, "generation")]
    return [*made, standings({"one": one, "two": two})]


def test_a_cluster_counts_as_one_prompt() -> None:
    one, two = frame(0), frame(1)
    assert all_figures(one, two) == all_figures(merged(one), merged(two))


def test_without_clusters_prompts_are_the_units() -> None:
    rows = frame(0)
    alone = rows.drop(columns="cluster")
    assert rates(alone) == rates(rows.assign(cluster=rows["prompt"]))
    wide, narrow = (next(r for r in rates(f) if r.metric == "generation") for f in (rows, alone))
    assert (wide.value, wide.n_prompts, narrow.n_prompts) == (narrow.value, 4, 12)
    assert wide.high - wide.low > 1.2 * (narrow.high - narrow.low)  # type: ignore[operator]


def test_a_prompt_has_one_cluster() -> None:
    rows = frame(0)
    rows.loc[0, "cluster"] = "k9"
    with pytest.raises(GapbenchError, match="the prompt is in two clusters"):
        rates(rows)
