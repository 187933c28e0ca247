"""What stands below a run's tables."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

import gapbench
from gapbench import Verdict
from gapbench.metrics.verification import prediction
from gapbench.report.summary import show_run
from gapbench.runs.run import Run

Make = Callable[..., Run]


def printed(run: Run) -> str:
    text = io.StringIO()
    show_run(run, (), Console(file=text, width=200, markup=False, highlight=False))
    return text.getvalue()


def own(run: Run, mass: float | None) -> Run:
    """The run with the model's own verdicts of a known mass."""
    run.folder.append(
        Verdict(
            image=image, question=question, judge="self", fingerprint="self", verdict=1, p_yes=0.9,
            mass=mass,
        )
        for (image, question, judge) in run.folder.verdicts()
        if judge == "self"
    )  # fmt: skip
    return run


@pytest.mark.parametrize(("mass", "start"), [(0.8, "Own verdicts: "), (1e-5, "WARNING: ")])
def test_the_mass_of_own_verdicts(odd: Make, mass: float, start: str) -> None:
    [line] = [line for line in printed(own(odd(("a", "b")), mass)).splitlines() if "mass" in line]
    assert line.startswith(start)
    assert f"the median probability of the two answers together (mass) is {mass:g}" in line
    assert ("not answering the question" in line) == (mass < 0.1)


def test_what_own_verdicts_are_worth_is_told_if_images_are_judged(
    pair: tuple[Path, Path], odd: Make
) -> None:
    run = gapbench.open_run(pair[0])
    worth, text = run.verification(), printed(run)
    assert worth is not None
    assert worth.own is not None
    assert worth.auroc is not None
    assert f"\nAUROC {worth.auroc.value:.3f} [" in text
    assert re.search(rf"by its own verdict +{100 * worth.own.value:.1f} \[", text)
    assert prediction(worth) in text
    assert sum(each.images for each in worth.confidence) == worth.images == 44
    assert "AUROC" not in printed(odd(("a", "b")))


def test_without_probabilities_there_is_no_line(odd: Make) -> None:
    assert "mass" not in printed(own(odd(("a",)), None))


def test_a_judge_that_mostly_abstains_is_told_with_its_reason(odd: Make) -> None:
    """Four of seven images have a verdict of the outside judge that is not an abstention: three
    have none, which is no majority."""
    few, many = odd(tuple("abcdefg")), "7 of 7 verdicts of pixel are abstentions"
    text = printed(few)
    assert many in text
    assert "the commonest reason, 7 times, is: <img" in text
    few.folder.append(
        Verdict(
            image=image,
            question=question,
            judge="pixel",
            fingerprint="pixel",
            verdict=0,
            reason="a 0 may have a reason too",
        )
        for image, question, judge in list(few.folder.verdicts())[:8]
        if judge == "pixel"
    )
    assert "abstentions" not in printed(few)
