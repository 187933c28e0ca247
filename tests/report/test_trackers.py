"""Figures go to trackers under stable names, through the trackers' own calls."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from gapbench import GapbenchError, Rates
from gapbench.report import trackers

SOME = [
    Rates(
        level=level, name=name, metric=metric, value=value, low=None, high=None, numerator=1.0,
        denominator=2.0, n_prompts=2, deff=None, abstained=0,
    )
    for level, name, metric, value in (
        ("category", "shapes/colors", "generation", 0.25),
        ("category", "shapes/colors", "false_positive", None),
        ("task", "shapes", "generation", 0.987),
        ("overall", "overall", "generation", 0.3),
        ("official", "geneval", "generation", 0.25),
    )
]  # fmt: skip
NAMED = {
    "gap/shapes/colors/generation": 0.25,
    "gap/shapes/generation": 0.987,
    "gap/generation": 0.3,
    "gap/official/geneval/generation": 0.25,
}


def test_figures_have_stable_names() -> None:
    assert trackers.figures(SOME) == NAMED


def test_each_tracker_is_told_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told: list[Any] = []

    class Writer(SimpleNamespace):
        def __enter__(self) -> Writer:
            return self

        def __exit__(self, *_error: object) -> None:
            told.append("closed")

        def add_scalar(self, *scalar: object) -> None:
            told.append((self.log_dir, *scalar))

    for name in ("wandb", "trackio"):
        stub: Any = ModuleType(name)
        stub.init = lambda name, **given: told.append((name, given))
        stub.log = lambda values: told.append(values)
        stub.finish = lambda: told.append("finished")
        monkeypatch.setitem(sys.modules, name, stub)
    board: Any = ModuleType("torch.utils.tensorboard")
    board.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    trackers.check(list(trackers.MODULES))
    trackers.log(["wandb", "trackio", "tensorboard"], "a run", {"seed": 0}, NAMED, tmp_path)
    assert told[0] == told[3] == ("a run", {"project": "gapbench", "config": {"seed": 0}})
    assert told[1] == told[4] == NAMED
    assert told[2] == told[5] == "finished"
    place = str(tmp_path / "tensorboard")
    assert told[6:] == [*((place, key, value, 0) for key, value in NAMED.items()), "closed"]


def test_a_tracker_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(GapbenchError, match="--report-to wandb: `pip install wandb` brings it"):
        trackers.check(["wandb"])
    with pytest.raises(GapbenchError, match="there are tensorboard, trackio, wandb"):
        trackers.check(["mlflow"])
