"""check-judge: gapbench's judges keep the contract, broken ones do not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gapbench import Answer, GapbenchError, Judge, Prompt, load_judge
from gapbench.judges.check import check
from gapbench.tasks.task import load_task


class Bright(Judge):
    name, fingerprint = "bright", "bright-1"

    def judge(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Answer]:
        return [Answer(verdict=int(np.asarray(image).mean() > 99)) for image in images]


class Sociable(Bright):
    def judge(self, images: Any, prompts: Any) -> list[Answer]:
        return [Answer(verdict=None, score=len(images)) for _ in images]


class Unscored(Bright):
    scores = False

    def judge(self, images: Any, prompts: Any) -> list[Answer]:
        return [Answer(verdict=1, score=0.5) for _ in images]


class Random(Bright):
    def judge(self, images: Any, prompts: Any) -> list[Answer]:
        return [Answer(verdict=None, score=np.random.random()) for _ in images]


class Short(Bright):
    def judge(self, images: Any, prompts: Any) -> list[Answer]:
        return super().judge(images, prompts)[1:]


class Bare(Bright):
    def judge(self, images: Any, prompts: Any) -> Any:
        return [1 for _ in images]


class Tired(Bright):
    said = 1

    def judge(self, images: Any, prompts: Any) -> list[Answer]:
        return [Answer(verdict=self.said) for _ in images]

    def release(self) -> None:
        self.said = 0


class Choosy(Bright):
    def question(self, prompt: Prompt) -> str:
        raise GapbenchError("it judges no shapes")


class Crashing(Bright):
    def judge(self, images: Any, prompts: Any) -> list[Answer]:
        raise BaseException(len(images))


def failures(judge: Judge) -> dict[str, str]:
    prompts = load_task("shapes").prompts()[:3]
    return {found.rule: found.failure for found in check(judge, prompts) if found.failure}


@pytest.mark.parametrize("judge", [Bright(), load_judge("pixel")])
def test_judges_that_keep_the_contract(judge: Judge) -> None:
    assert failures(judge) == {}


@pytest.mark.parametrize(
    ("judge", "rule", "words"),
    [
        (Sociable(), "an answer does not depend on its batch", "an image alone has another answer"),
        (Unscored(), "gives an answer for each image", "it says scores = False, and"),
        (Random(), "global random state", "its answers follow torch's or NumPy's"),
        (Short(), "gives an answer for each image", "it was asked for 3 and gave 2 answers"),
        (Bare(), "gives an answer for each image", "judge gave a int, not an Answer"),
        (Tired(), "a released judge comes back", "after release() it answers otherwise"),
        (Choosy(), "has a question for each prompt", "it judges no shapes"),
        (Crashing(), "gives an answer for each image", "it raised BaseException: 3"),
    ],
)
def test_broken_judges_fail_once_in_the_right_words(judge: Judge, rule: str, words: str) -> None:
    broken = failures(judge)
    [said] = [failure for name, failure in broken.items() if rule in name]
    assert said.startswith(words)
    assert f"({__file__}, line " in said
    assert len(broken) == 1 or isinstance(judge, Random)
