"""Test prompts among training prompts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gapbench import GapbenchError
from gapbench.fix.leaks import Leaks, find
from gapbench.tasks.task import Task, load_task
from gapbench.types import Prompt

UserTask = Callable[..., Path]


def test_a_test_split_takes_the_flag() -> None:
    for name in ("shapes", "shapes/colors", "geneval", "geneval@fresh:1"):
        with pytest.raises(GapbenchError, match="--despite-leak"):
            find([name], False)
    leaks, texts = find(["shapes:train", "shapes/colors"], True)
    assert (leaks, texts) == (Leaks(["shapes"]), None)
    assert "trains on test prompts (shapes)" in leaks.words()[0]


def test_a_folder_without_splits_is_for_training(user_task: UserTask) -> None:
    assert find([str(user_task([{"text": "a red circle"}]))], False) == (Leaks(), None)


def test_copies_are_left_out_and_near_ones_counted(
    user_task: UserTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    test = ["A red car and a blue bus.", "one two three four five six seven eight nine"]
    train = [
        "a red car, and a blue bus", "a blue bus and a red car", "a green car",
        "one two three four five six seven eight ten", "one two three four five six seven",
    ]  # fmt: skip
    texts = {"test": test, "train": train}
    folder = user_task([{"text": "x"}])
    monkeypatch.setattr(Task, "splits", lambda _self: ["test", "train"])
    monkeypatch.setattr(
        Task,
        "prompts",
        lambda self, split=None: [
            Prompt(id=t, task="t", category=next(iter(self.tier_of)), tier="easy", text=t,
                   question="?", requirement={})
            for t in texts[split or self.split]
        ],
    )  # fmt: skip
    leaks, kept = find([f"{folder}:train"], False)
    assert leaks == Leaks([], same=1, reordered=1, near=1)
    assert kept == set(train[2:])
    assert json.dumps(leaks.words())
    assert find([f"{folder}:train"], True) == (Leaks(), None)


def test_shapes_for_training_lacks_reordered_test_prompts() -> None:
    leaks, kept = find(["shapes:train"], False)
    assert leaks == Leaks([], same=0, reordered=21, near=249, reworded=0)
    assert kept is not None
    assert len(kept) == len({p.text for p in load_task("shapes").prompts("train")}) - 21
    assert leaks.words() == [
        "Left out as copies of test prompts: 0 prompts equal but for punctuation or case, 21 with "
        "the same words in another order",
        "Kept, although 80 % or more of the words are a test prompt's: 249 prompts",
    ]
