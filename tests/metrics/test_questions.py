"""What a model draws and sees by skill, against the formulas written out."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gapbench.metrics.questions import Questions, Skill, by_skill, figures, record, scored


def answers(own: Any, outside: Any, skill: Any = "color", images: int = 4) -> pd.DataFrame:
    """A row a question; as many questions of an image as divide them."""
    own, outside = np.asarray(own, dtype=float), np.asarray(outside, dtype=float)
    place = np.arange(len(own)) % (len(own) // images)
    image = np.arange(len(own)) // (len(own) // images)
    return pd.DataFrame(
        {
            "task": "t", "category": "c", "tier": "easy", "prompt": image.astype(str),
            "cluster": image.astype(str), "sample": 0, "seed": 1, "image": image.astype(str),
            "place": place, "question": [f"{p}?" for p in place], "skill": skill,
            "own": own, "own_asked": True, "outside": outside, "outside_asked": True,
        }
    )  # fmt: skip


def of(frame: pd.DataFrame) -> Questions:
    images = frame.drop_duplicates("image").assign(
        score=1.0, mismatched=np.nan, mismatched_asked=False
    )
    made = figures(frame, images, None, [])
    assert made is not None
    return made


def test_every_figure_is_its_formula() -> None:
    rng = np.random.default_rng(3)
    own, outside = rng.random(1200) < 0.6, rng.random(1200) < 0.7
    own[::3] = outside[::3]
    skill = of(answers(own, outside, images=300)).overall
    n, alike, chance = len(own), (own == outside).mean(), own.mean() * outside.mean()
    chance += (1 - own.mean()) * (1 - outside.mean())
    assert skill.questions == n
    assert skill.prompts == 300
    assert skill.draws is not None
    assert skill.both is not None
    assert skill.more is not None
    assert skill.draws.value == pytest.approx(outside.mean())
    assert skill.agrees.raw == pytest.approx(alike)
    assert skill.agrees.kappa == pytest.approx((alike - chance) / (1 - chance))
    assert skill.both.value == pytest.approx((own & outside).mean())
    assert skill.more.value == pytest.approx(alike - outside.mean())
    for each in (skill.draws, skill.both, skill.more):
        assert each.low < each.value < each.high
    error = np.std((own == outside).astype(float) - outside, ddof=1) / n**0.5
    assert (skill.more.high - skill.more.low) / 2 == pytest.approx(1.96 * error, rel=0.25)


def test_answers_that_know_nothing_of_the_image_are_called_so() -> None:
    rng = np.random.default_rng(4)
    blind, outside = rng.random(900) < 0.9, rng.random(900) < 0.9
    skill = of(answers(blind, outside, images=300)).overall
    assert skill.agrees.raw is not None
    assert skill.agrees.raw > 0.8  # at rates like these chance alone agrees
    assert skill.agrees.kappa_low is not None
    assert skill.agrees.kappa_high is not None
    assert skill.agrees.kappa_low < 0 < skill.agrees.kappa_high
    assert skill.finding == "draws, does not see"
    assert of(answers(blind, 1 - outside, images=300)).overall.finding == "does not see"


@pytest.mark.parametrize(
    ("right", "sees", "finding"),
    [
        (0.3, 0.95, "sees more than it draws"),
        (0.9, 0.75, "draws more than it sees"),
        (0.8, 0.8, "draws and sees alike"),
    ],
)
def test_what_the_intervals_show_is_told_in_words(right: float, sees: float, finding: str) -> None:
    outside = np.arange(1000) % 100 < 100 * right
    own = np.where(np.random.default_rng(1).permutation(1000) < 1000 * sees, outside, ~outside)
    assert of(answers(own, outside, images=500)).overall.finding == finding


def test_skills_stand_apart_and_missing_answers_are_counted() -> None:
    frame = answers([1, 0, 1, np.nan] * 20, [1, 1, np.nan, 0] * 20, ["a", "a", "b", "c"] * 20, 20)
    made = of(frame)
    assert [(s.name, s.questions, s.abstained) for s in made.skills] == [
        ("a", 40, 0), ("b", 0, 20), ("c", 0, 20),
    ]  # fmt: skip
    assert (made.overall.questions, made.overall.abstained) == (40, 40)
    assert [s.finding for s in made.skills[1:]] == ["not known"] * 2
    alike = of(answers([1] * 40, [1] * 40)).overall
    assert alike.finding == "not known, since all answers are alike"
    told = json.loads(json.dumps(record(made), allow_nan=False))
    assert told["skills"][0]["draws"]["value"] == 1.0
    assert figures(answers([1, 1], [np.nan, np.nan], images=1), frame, None, []) is None


def test_changes_by_skill_are_over_the_questions_that_both_were_asked() -> None:
    rng = np.random.default_rng(6)
    outside = rng.random(800) < 0.5
    skills = ["color", "shape"] * 400
    before = answers(rng.random(800) < 0.5, outside, skills, 200)
    better = np.where(np.arange(800) % 2 == 0, 1.0, outside)
    after = answers(outside, better, skills, 200)
    made = {(c.name, c.metric): c for c in by_skill(before, after.sample(frac=1, random_state=0))}
    assert made["t/color", "generation"].difference == pytest.approx(1 - outside[::2].mean())
    assert made["t/shape", "generation"].difference == 0
    assert made["t/shape", "self_accuracy"].after == 1
    assert made["overall", "self_accuracy"].p is not None
    assert made["t/color", "generation"].images == 400
    half = by_skill(before, after[after["skill"] == "shape"])
    assert {c.name for c in half} == {"overall", "t/shape"}
    assert by_skill(before, after.assign(seed=2)) == []


def test_a_skill_is_none_of_its_numbers_without_answers() -> None:
    skill: Skill = of(answers([np.nan] * 4, [1] * 4)).overall
    assert (skill.draws, skill.both, skill.more, skill.questions) == (None, None, None, 0)


def test_a_judges_probabilities_by_skill_are_its_authors_means() -> None:
    """Pooled over questions, whatever prompt they are of: as GenEval 2's script adds them up."""
    rng = np.random.default_rng(3)
    rows = [
        {"task": "t", "category": str(len(skills)), "cluster": f"{prompt}", "prompt": f"{prompt}",
         "skill": skill, "chance": float(rng.random() * (2 if skill == "count" else 1))}
        for prompt in range(40)
        for skills in [["object", "count", "verb"][: 1 + prompt % 3]]
        for skill in skills
    ]  # fmt: skip
    made = scored(pd.DataFrame(rows))
    assert [each.skill for each in made] == ["object", "count", "verb"]  # the commonest first
    for each in made:
        chances = [row["chance"] for row in rows if row["skill"] == each.skill]
        assert each.score.value == pytest.approx(sum(chances) / len(chances))
        assert (each.questions, each.prompts) == (len(chances), len(chances))
        # Soft-TIFA may exceed 1, where the interval is no share's.
        assert each.score.low < each.score.value < each.score.high
    assert made[1].score.high > 1
    assert scored(pd.DataFrame()) == []


def of_references(own: Any, outside: Any, drawn: Any, prompts: int = 100) -> Skill:
    """Answers about reference images, of a model that draws so often what is asked for."""
    frame = answers(drawn, drawn, images=len(drawn))
    images = frame.assign(score=1.0, mismatched=np.nan, mismatched_asked=False)
    made = figures(frame, images, None, [], answers(own, outside, images=prompts))
    assert made is not None
    return made.overall


@given(st.lists(st.tuples(*[st.sampled_from([0.0, 1.0, np.nan])] * 2), min_size=2, max_size=60))
def test_sight_is_counted_as_written(pairs: list[tuple[float, float]]) -> None:
    """Against plain counting of the answers about reference images."""
    own, outside = map(list, zip(*pairs, strict=True))
    made = of_references(own, outside, [1.0, 0.0] * 20, len(pairs)).references
    known = [(m, j) for m, j in pairs if m == m and j == j]
    assert made is not None
    n = len(known)
    if not known:
        assert (made.n, made.raw, made.abstained) == (0, None, len(pairs))
        return
    alike = Fraction(sum(m == j for m, j in known), n)
    yes, right = (Fraction(int(sum(side)), n) for side in zip(*known, strict=True))
    chance = yes * right + (1 - yes) * (1 - right)
    assert (made.n, made.abstained) == (n, len(pairs) - n)
    assert made.raw == pytest.approx(float(alike))
    if right in (0, 1):
        assert made.kappa is None
    else:
        assert made.kappa == pytest.approx(float((alike - chance) / (1 - chance)))
    if made.kappa_low is not None and made.kappa_high is not None:
        assert made.kappa is not None
        assert made.kappa_low <= made.kappa <= made.kappa_high


@pytest.mark.parametrize(
    ("sight", "drawn", "finding"),
    [
        (0.95, 0.2, "sees, does not draw"),
        (0.95, 0.5, "sees, draws about half"),
        (0.95, 0.9, "sees and draws"),
        (1.0, 0.9, "sees and draws"),
        (0.5, 0.9, "draws, does not see"),
        (0.5, 0.2, "does not see"),
    ],
)
def test_reference_images_decide_whether_it_sees(sight: float, drawn: float, finding: str) -> None:
    outside = np.arange(400) % 2 == 0
    own = np.where(np.arange(400) // 2 % 100 < 100 * sight, outside, ~outside)
    made = np.arange(200) % 10 < 10 * drawn
    assert of_references(own, outside, made).finding == finding


def test_who_says_yes_to_everything_sees_nothing() -> None:
    outside, drawn = [1.0, 0.0] * 50, [1.0] * 200
    assert of_references([1.0] * 100, outside, drawn).finding == "draws, does not see"
    # Where nothing is to be told apart nothing is known, and of one prompt neither.
    alike = of_references(outside, [1.0] * 100, drawn)
    assert alike.finding == "not known, since all of the judge's answers about references are alike"
    assert of_references(outside, outside, drawn, 1).finding == "not known from so few prompts"
