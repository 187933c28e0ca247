"""The contract of a judge: its defaults, also for one that has no base class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import gapbench
from gapbench import GapbenchError, judges
from gapbench.judges import load_judge
from gapbench.judges.base import Judge
from gapbench.models.base import Batches
from gapbench.types import Answer, Prompt


class Bright:
    """Of no base class, with what such judges had to have and no more."""

    name, fingerprint = "bright", "bright-1"
    needs = ()

    def __init__(self, argument: str | None = None, device: str = "auto") -> None:
        self.sizes: list[int] = []

    def question(self, prompt: Prompt) -> str:
        return "is it bright?"

    def judge(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Answer]:
        self.sizes.append(len(images))
        return [Answer(verdict=int(np.asarray(image).mean() > 128)) for image in images]

    def release(self) -> None:
        pass


class ByDigest(Bright):
    name = "by-digest"

    def judge_digests(self, digests: Sequence[str], prompts: Sequence[Prompt]) -> list[Answer]:
        return [Answer(verdict=1, text=digest[:4]) for digest in digests]

    def check_picture(self) -> str:
        return "it sees no picture"


class Blind:
    name = "blind"

    def __init__(self, argument: str | None, device: str) -> None:
        pass


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The judges above, as a package's entry points."""
    found = [
        SimpleNamespace(name=kind.name, load=lambda kind=kind: kind)
        for kind in (Bright, ByDigest, Blind)
    ]
    monkeypatch.setattr(judges, "entry_points", lambda group: found)


def test_a_judge_without_the_base_class_gets_its_defaults(tmp_path: Path) -> None:
    made: Any = load_judge("bright")
    assert made.batches == Judge.batches == Batches(1, 64)
    assert made.judge_digests(["a"], []) is None
    assert made.check_picture() is None
    assert made.estimate_cost(5) is None
    run = gapbench.run(samples=1, limit=3, judges=["bright"], out=tmp_path)
    said = [v for v in run.folder.verdicts().values() if v.judge == "bright"]
    assert len(said) == 3
    assert {v.question for v in said} == {"is it bright?"}
    assert {v.verdict for v in said} <= {0, 1}


def test_a_judge_that_knows_images_by_their_digest_never_sees_them(tmp_path: Path) -> None:
    run = gapbench.run(samples=1, limit=3, judges=["by-digest"], out=tmp_path)
    said = [v for v in run.folder.verdicts().values() if v.judge == "by-digest"]
    assert len(said) == 3
    assert all(v.text == v.image[:4] for v in said)
    assert run.folder.read("checks.json") == {"judge by-digest": "it sees no picture"}


def test_what_is_required_and_missing_is_named_in_one_line() -> None:
    with pytest.raises(GapbenchError) as caught:
        load_judge("blind")
    assert str(caught.value) == ("judge blind: Blind has no judge; see gapbench.judges.base.Judge")


def test_a_threshold_makes_another_judge() -> None:
    usual, strict = load_judge("vqa"), load_judge("vqa@0.7")
    assert (usual.threshold, strict.threshold) == (0.5, 0.7)
    assert strict.name == "vqa@0.7"
    assert strict.fingerprint != usual.fingerprint
    assert [strict.scored(score).verdict for score in (0.69, 0.7)] == [0, 1]
    same = load_judge("vqa@0.50")
    assert (same.name, same.fingerprint) == (usual.name, usual.fingerprint)
    assert load_judge("clip").scored(0.31).verdict is None
    assert load_judge("clip@0.3").scored(0.31).verdict == 1


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("pixel@0.7", "judge pixel@0.7: its verdicts are not made from scores; leave out @0.7"),
        ("vqa@1.5", "judge vqa@1.5: give a threshold above 0 and up to 1"),
        ("clip@high", "judge clip@high: give a threshold above -1 and up to 1"),
    ],
)
def test_a_threshold_that_cannot_be_is_refused(spec: str, why: str) -> None:
    with pytest.raises(GapbenchError) as caught:
        load_judge(spec)
    assert str(caught.value) == why


def test_the_base_class_asks_the_tasks_own_question() -> None:
    class Short(Judge):
        name, fingerprint = "short", "short-1"

    prompt = next(iter(gapbench.load_task("shapes").prompts()))
    assert Short().question(prompt) == prompt.question
    with pytest.raises(GapbenchError, match="judge short has no method judge"):
        Short().judge([], [])
