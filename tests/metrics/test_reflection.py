"""What trying again brings, against hand-made frames."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from gapbench.metrics.reflection import record, reflection, ways

NAN = float("nan")


def frame(rows: list[tuple[Any, ...]], most: int = 3) -> pd.DataFrame:
    """From rows of (category, images, accepted, first, kept), a prompt each."""
    names = ("category", "images", "accepted", "first", "kept")
    made = pd.DataFrame(rows, columns=names).astype({"accepted": float})
    made["prompt"] = made["cluster"] = [f"{i}" for i in range(len(made))]
    return made.assign(task="t", most=most, abstained=0, refused=0)


def test_figures_are_means_over_categories() -> None:
    rows = [("a", 1, 1, 1.0, 1.0), ("a", 3, 1, 0.0, 1.0), ("a", 4, 0, 0.0, 0.0), ("a", 2, 1, 1, 0)]
    made = reflection(frame([*rows, ("b", 2, 1, 0.0, 1.0), ("b", 2, 1, 0.0, 1.0)]))
    whole = made.overall
    assert (made.most, made.images, whole.prompts, whole.judged) == (3, 14, 6, 6)
    assert [each.name for each in made.tasks] == ["t"]
    assert whole.images.value == pytest.approx((10 / 4 + 2) / 2)
    assert whole.accepted.value == pytest.approx((3 / 4 + 1) / 2)
    assert whole.first is not None
    assert whole.kept is not None
    assert whole.gain is not None
    assert whole.first.value == pytest.approx((2 / 4 + 0) / 2)
    assert whole.kept.value == pytest.approx((2 / 4 + 1) / 2)
    assert whole.gain.value == pytest.approx(0.5)
    assert 1 <= whole.images.low < whole.images.value < whole.images.high <= 4
    for each in (whole.accepted, whole.first, whole.kept):
        assert 0 <= each.low <= each.value <= each.high <= 1
    assert whole.gain.low < 0.5 < whole.gain.high
    assert record(made)["tasks"][0]["gain"] == {**whole.gain._asdict()}
    assert [(each.name, each.prompts) for each in made.categories] == [("t/a", 4), ("t/b", 2)]
    gains = [each.gain.value for each in made.categories if each.gain]
    assert gains == [pytest.approx(0), pytest.approx(1)]
    assert record(made)["categories"][1]["kept"]["value"] == 1


def test_the_difference_is_paired_by_prompt() -> None:
    """Prompts that are right both times tell the two apart less than prompts that change."""
    same = [("a", 1, 1, float(i % 2), float(i % 2)) for i in range(40)]
    one = reflection(frame([*same[1:], ("a", 2, 1, 0.0, 1.0)])).overall.gain
    mixed = [("a", 2, 1, float(i % 2), float(i // 2 % 2)) for i in range(40)]
    other = reflection(frame([*mixed[1:], ("a", 2, 1, 0.0, 1.0)])).overall.gain
    assert one is not None
    assert other is not None
    assert one.high - one.low < (other.high - other.low) / 2


def test_prompts_without_a_verdict_on_either_image_count_for_the_model_alone() -> None:
    rows = [("a", 1, 1, 1.0, 1.0), ("a", 3, 0, NAN, 1.0), ("a", 3, 0, 0.0, NAN)]
    whole = reflection(frame(rows)).overall
    assert (whole.prompts, whole.judged) == (3, 1)
    assert whole.accepted.value == pytest.approx(1 / 3)
    assert whole.images.value == pytest.approx(7 / 3)
    assert whole.first is not None
    assert whole.first.value == 1
    nobody = reflection(frame([(*row[:3], NAN, NAN) for row in rows]))
    assert (nobody.overall.judged, nobody.overall.first, nobody.overall.gain) == (0, None, None)
    assert record(nobody)["overall"]["kept"] is None


def test_training_and_drawing_again_are_told_apart_over_the_same_prompts() -> None:
    before = [
        ("a", 3, 1, 0.0, 1.0),
        ("a", 1, 1, 1.0, 1.0),
        ("b", 2, 1, 0.0, 0.0),
        ("b", 4, 0, 0, 0),
    ]
    after = [
        ("a", 1, 1, 1.0, 1.0),
        ("a", 1, 1, 1.0, 1.0),
        ("b", 1, 1, 1.0, 1.0),
        ("b", 4, 0, NAN, 0),
    ]
    made = ways(frame(before), frame(after)[::-1])
    assert [(way.side, way.again) for way in made] == [
        ("before", False), ("before", True), ("after", False), ("after", True),
    ]  # fmt: skip
    # The last prompt has no verdict on AFTER's first image and counts on neither side.
    assert [way.right.value for way in made] == pytest.approx([0.25, 0.5, 1, 1])
    assert [way.images.value for way in made] == pytest.approx([1, 2, 1, 1])
    assert made[0].change is None
    assert [way.change.value for way in made if way.change] == pytest.approx([0.25, 0.75, 0.75])
    assert all(
        way.change.low < way.change.value < way.change.high for way in made[1:] if way.change
    )
    assert ways(frame(before[3:]), frame(after[3:])) == []
