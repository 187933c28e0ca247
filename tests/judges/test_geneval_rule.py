"""GenEval: the prompts against the official file, the rule against cases worked out by hand."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gapbench.fetch.sources import adopt
from gapbench.judges import geneval_rule as rule
from gapbench.tasks.prompts.geneval import CLASSES, COLORS, RELATIONS, make
from gapbench.tasks.task import load_task
from gapbench.types import GapbenchError

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "geneval"
OFFICIAL_SHA256 = "5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13"
"""Of evaluation_metadata.jsonl of djghosh13/geneval at af4902f."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAPBENCH_CACHE", str(tmp_path / "cache"))


# -- prompts -------------------------------------------------------------------------------


def test_prompts_are_the_official_ones_byte_for_byte() -> None:
    lines = [
        {"tag": record["category"], **record["requirement"], "prompt": record["text"]}
        for record in make("test")
    ]
    ours = "".join(json.dumps(line) + "\n" for line in lines).encode()
    assert hashlib.sha256(ours).hexdigest() == OFFICIAL_SHA256
    official = DATA / "evaluation_metadata.jsonl"
    if official.is_file():  # the digest above is of the same bytes
        assert ours == official.read_bytes()


def test_task_reads_its_prompts() -> None:
    task = load_task("geneval")
    prompts = task.prompts()
    counts = {c: sum(p.category == c for p in prompts) for c in task.tier_of}
    assert counts == {
        "single_object": 80,
        "two_object": 99,
        "counting": 80,
        "colors": 94,
        "position": 100,
        "color_attr": 100,
    }
    assert task.samples == 4
    assert set(task.tier_of.values()) == {"easy"}
    assert len({p.id for p in prompts}) == 553
    assert all(p.text in p.question for p in prompts)
    assert all(rule.trouble(p.requirement) is None for p in prompts)


def test_verdict_question_is_that_of_every_task() -> None:
    assert load_task("geneval").spec.question == load_task("shapes").spec.question


def test_only_counting_prompts_exclude() -> None:
    """The rule reads the counting threshold off `exclude` rather than off the category."""
    for record in make("test"):
        assert ("exclude" in record["requirement"]) == (record["category"] == "counting")


def test_no_other_split() -> None:
    with pytest.raises(GapbenchError, match="'test' alone"):
        make("train")


# -- rule ----------------------------------------------------------------------------------


def boxes(*rows: tuple[float, ...]) -> rule.Boxes:
    return np.array(rows, np.float32).reshape(-1, 5)


def scored(*scores: float) -> rule.Boxes:
    """Disjoint boxes of 10 pixels, with these scores."""
    return boxes(*((20 * i, 0, 20 * i + 10, 10, score) for i, score in enumerate(scores)))


def no_color(name: str, rows: Any) -> list[str]:
    raise AssertionError(f"asked for the colour of {name}")


def one(name: str, **more: Any) -> dict[str, Any]:
    return {"class": name, "count": 1, **more}


def exactly(name: str, count: int) -> dict[str, Any]:
    return {
        "include": [{"class": name, "count": count}],
        "exclude": [{"class": name, "count": count + 1}],
    }


@pytest.mark.parametrize(
    ("score", "correct"),
    [(0.31, True), (0.3, False), (float(np.nextafter(np.float32(0.3), 1)), True)],
)
def test_score_must_exceed_its_threshold(score: float, correct: bool) -> None:
    verdict, reason = rule.decide({"dog": scored(score)}, {"include": [one("dog")]}, no_color)
    assert verdict is correct
    assert reason == (None if correct else "0 dog, 1 wanted")


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ((0.95, 0.91), None),
        ((0.95, 0.91, 0.9, 0.5), None),  # neither 0.9 nor 0.5 counts
        ((0.95,), "1 cat, 2 wanted"),
        ((0.95, 0.94, 0.93), "3 cat, fewer than 3 wanted"),
    ],
)
def test_counting_is_exact_among_the_certain(scores: tuple[float, ...], reason: str | None) -> None:
    assert rule.decide({"cat": scored(*scores)}, exactly("cat", 2), no_color) == (
        reason is None,
        reason,
    )


def test_other_classes_do_not_matter_and_every_miss_is_named() -> None:
    found = {"dog": scored(0.9), "person": scored(0.99, 0.98)}
    assert rule.decide(found, {"include": [one("dog")]}, no_color) == (True, None)
    wanted = {"include": [one("cat"), one("dog"), one("bus")]}
    assert rule.decide(found, wanted, no_color) == (False, "0 cat, 1 wanted; 0 bus, 1 wanted")


def test_best_sixteen_are_kept_best_first() -> None:
    scores = [0.4 + 0.01 * i for i in range(20)]
    kept = rule.select({"apple": scored(*scores)}, {"include": [one("apple")]})
    assert kept == {"apple": list(range(19, 3, -1))}


def test_colors_of_the_best_boxes() -> None:
    found = {"car": scored(0.5, 0.8, 0.6)}
    asked = []

    def color_of(name: str, rows: Any) -> list[str]:
        asked.append((name, list(rows)))
        return [{0: "red", 1: "blue", 2: "red"}[row] for row in rows]

    def judged(color: str, count: int) -> tuple[bool, str | None]:
        wanted = {"include": [{"class": "car", "count": count, "color": color}]}
        kept = rule.wanted_colors(rule.select(found, wanted), wanted)
        verdict = rule.decide(found, wanted, color_of)
        assert asked in ([], [("car", kept.get("car"))])
        asked.clear()
        return verdict

    assert judged("blue", 1) == (True, None)
    assert judged("red", 1) == (False, "car is blue, red wanted")  # the best box is the blue one
    assert judged("red", 2) == (False, "car is blue and red, red wanted")
    assert judged("red", 4) == (False, "3 car, 4 wanted")  # and no colour is asked for


AT_LEFT, AT_RIGHT = (0, 0, 10, 10), (100, 0, 110, 10)


@pytest.mark.parametrize(
    ("a", "b", "held"),
    [
        (AT_LEFT, AT_RIGHT, {"left of"}),
        (AT_RIGHT, AT_LEFT, {"right of"}),
        ((0, 0, 10, 10), (0, 100, 10, 110), {"above"}),
        ((0, 100, 10, 110), (0, 0, 10, 10), {"below"}),
        ((0, 0, 10, 10), (100, 100, 110, 110), {"left of", "above"}),
        (AT_LEFT, AT_LEFT, set()),
        # Offset 2 = 0.1 * (10 + 10): nothing is left of it. At 3, (3 - 2) / 3 is not above 0.5.
        ((2, 0, 12, 10), AT_LEFT, set()),
        ((3, 0, 13, 10), AT_LEFT, set()),
        # Offset 5: (5 - 2) / 5 = 0.6.
        ((5, 0, 15, 10), AT_LEFT, {"right of"}),
        # Offset (60, -110), sides 20: (58, -108) over 125.3 is (0.463, -0.862).
        ((60, 0, 70, 10), (0, 110, 10, 120), {"above"}),
    ],
)
def test_relations(a: tuple[float, ...], b: tuple[float, ...], held: set[str]) -> None:
    assert rule.relations(*boxes((*a, 1), (*b, 1))) == held


def test_position_needs_every_pair_and_its_target() -> None:
    wanted = {"include": [one("bowl"), {"class": "cup", "count": 2, "position": ["left of", 0]}]}
    bowl = boxes((*AT_RIGHT, 0.9))
    left, right = (0, 0, 10, 10, 0.9), (200, 0, 210, 10, 0.8)
    assert rule.decide({"bowl": bowl, "cup": boxes(left, left)}, wanted, no_color)[0]
    assert rule.decide({"bowl": bowl, "cup": boxes(left, right)}, wanted, no_color) == (
        False,
        "cup is right of, left of wanted",
    )
    verdict, reason = rule.decide({"cup": boxes(left, left)}, wanted, no_color)
    assert not verdict
    assert reason == "0 bowl, 1 wanted; nothing there for cup to be left of"


@pytest.mark.parametrize(
    "requirement",
    [
        {},
        {"include": []},
        {"include": [{"shape": "circle", "count": 1}]},
        {"include": [one("unicorn")]},
        {"include": [{"class": "dog", "count": 0}]},
        {"include": [one("dog", color="cyan")]},
        {"include": [one("dog", position=["left of", 0])]},  # its own place
        {"include": [one("dog"), one("cat", position=["near", 0])]},
        {"include": [one("dog"), one("cat", position=["above"])]},
        {"include": [one("dog")], "exclude": [{"class": "cat"}]},
        {"include": [one("dog")], "exact": True},
    ],
)
def test_requirements_of_others_are_refused(requirement: dict[str, Any]) -> None:
    assert rule.trouble(requirement)


def test_fingerprint_names_every_threshold() -> None:
    stated = "geneval-1 score=0.3 counting=0.9 objects=16 overlap=1.0 margin=0.1"
    assert stated == rule.FINGERPRINT


coordinates = st.integers(0, 500).map(float)


@settings(max_examples=200, deadline=None)
@given(st.tuples(*[coordinates] * 4), st.tuples(coordinates, coordinates), st.integers(1, 99))
def test_relations_mirror(box: tuple[float, ...], move: tuple[float, float], size: int) -> None:
    """What a is to b, b is to a the other way round; and opposites never hold together."""
    x, y, w, h = box
    a = boxes((x, y, x + w, y + h, 1))[0]
    b = boxes((*move, move[0] + size, move[1] + size, 1))[0]
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    held = rule.relations(a, b)
    assert rule.relations(b, a) == {opposite[name] for name in held}
    assert not any(opposite[name] in held for name in held)


def test_names() -> None:
    assert len(CLASSES) == len(set(CLASSES)) == 80
    assert (len(COLORS), len(RELATIONS)) == (10, 4)
    names = [{"tv remote": "remote", "couch": "sofa"}.get(name, name) for name in CLASSES]
    assert rule.class_trouble(names) is None
    names[3], names[4] = names[4], names[3]
    assert rule.class_trouble(names) == "number 3 is 'airplane', 'motorcycle' wanted"
    assert rule.class_trouble(names[:-1]) == "79 in number, 80 wanted"
    official = DATA / "object_names.txt"
    if official.is_file():
        assert official.read_text().split("\n")[:80] == list(CLASSES)


# -- BAGEL's long prompts --------------------------------------------------------------------


def test_long_prompts_are_another_version_and_fetched() -> None:
    task = load_task("geneval@long")
    assert task.version == "1.0-long"
    assert [(s.bytes, s.sha256[:8]) for s in task.sources()] == [(397_873, "09472cc9")]
    assert not task.spec.generator
    with pytest.raises(GapbenchError, match=r"evaluation_metadata_long\.jsonl \(sha256 09472cc9"):
        task.prompts()
    with pytest.raises(GapbenchError, match="no variant 'short'; there are long"):
        load_task("geneval@short")


def test_long_prompts_ask_for_the_same_things() -> None:
    official = DATA / "bagel" / "evaluation_metadata_long.jsonl"
    if official.is_file():
        task = load_task("geneval@long")
        assert adopt(task.sources(), DATA) == []
        plain, long = load_task("geneval").prompts(), task.prompts()
        assert [p.category for p in long] == [p.category for p in plain]
        assert [p.requirement for p in long] == [p.requirement for p in plain]
        assert not {p.text for p in long} & {p.text for p in plain}
