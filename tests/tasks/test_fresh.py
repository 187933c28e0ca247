"""New prompts of GenEval's form: the official rules, and nothing of the official list."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from here import end
from hypothesis import given, settings
from hypothesis import strategies as st
from stubs import Stub

import gapbench
from gapbench import GapbenchError, Prompt
from gapbench.runs.merge import merge
from gapbench.runs.run import Run
from gapbench.tasks.prompts.geneval import CLASSES, COLORS, NUMBERS, make
from gapbench.tasks.task import load_task

OFFICIAL = load_task("geneval").prompts()
SEEDS = st.integers(0, 999_999_999)
COLOR = f"({'|'.join(COLORS)})"
ONE = f"({'|'.join(CLASSES)})"
SHAPES = {
    "two_object": f"an? {ONE} and an? {ONE}",
    "counting": f"({'|'.join(NUMBERS.values())}) ({'|'.join(CLASSES)})e?s",
    "colors": f"an? {COLOR} {ONE}",
    "position": f"an? {ONE} (left of|right of|above|below) an? {ONE}",
    "color_attr": f"an? {COLOR} {ONE} and an? {COLOR} {ONE}",
}


JUDGE = """
from gapbench import Answer

class Odd:
    fingerprint = "odd-1"
    def judge(self, images, prompts):
        return [Answer(verdict=sum(image.getpixel((0, 0))) % 2) for image in images]
"""


def asked(prompt: Prompt) -> tuple[object, ...]:
    """What a text asks for, in one order and from one side; read from the text alone."""
    found = re.fullmatch(f"a photo of {SHAPES[prompt.category]}", prompt.text)
    assert found, prompt.text
    parts: Sequence[str] = found.groups()
    if prompt.category == "position":
        first, relation, second = parts
        if relation in ("right of", "below"):
            relation = {"right of": "left of", "below": "above"}[relation]
            first, second = second, first
        return first, relation, second
    if prompt.category == "color_attr":
        return tuple(sorted([parts[:2], parts[2:]]))
    return tuple(sorted(parts)) if prompt.category == "two_object" else tuple(parts)


KNOWN = {(p.category, asked(p)) for p in OFFICIAL if p.category != "single_object"}


@settings(max_examples=25)
@given(SEEDS)
def test_no_requirement_is_of_the_official_list_or_there_twice(seed: int) -> None:
    prompts = load_task(f"geneval@fresh:{seed}").prompts()
    mine = [(p.category, asked(p)) for p in prompts]
    assert KNOWN.isdisjoint(mine)
    assert len(set(mine)) == len(mine) == 473
    counts = Counter(p.category for p in OFFICIAL)
    del counts["single_object"]
    assert Counter(p.category for p in prompts) == counts


@settings(max_examples=25)
@given(SEEDS)
def test_they_keep_the_official_rules(seed: int) -> None:
    """What a text says is what its requirement asks for, written as the official texts are."""
    for record in make(str(seed)):
        include, text = record["requirement"]["include"], record["text"]
        for article, letter in re.findall(r"\b(an?) (\w)", text.removeprefix("a photo of ")):
            assert article == ("an" if letter in "aeiou" else "a")
        named = [f"{item['color']} {item['class']}" if "color" in item else item["class"]
                 for item in include]  # fmt: skip
        assert all(name in text for name in named)
        assert len({item["class"] for item in include}) == len(include)
        assert "person" not in [item["class"] for item in include if "color" in item]
        match record["category"]:
            case "counting":
                [item], [more] = include, record["requirement"]["exclude"]
                name, plural = item["class"], "es" if item["class"].endswith("s") else "s"
                assert text == f"a photo of {NUMBERS[item['count']]} {name}{plural}"
                assert more == {"class": name, "count": item["count"] + 1}
            case "position":
                relation, other = include[1]["position"]
                first, second = include[1]["class"], include[other]["class"]
                assert re.fullmatch(f"a photo of an? {first} {relation} an? {second}", text)
            case "color_attr":
                assert len({item["color"] for item in include}) == 2
        assert record["category"] == "counting" or all(item["count"] == 1 for item in include)


def test_a_seed_makes_the_same_prompts_and_another_others() -> None:
    first, again, other = (load_task(f"geneval@fresh:{seed}") for seed in (1, 1, 2))
    assert first.prompts() == again.prompts()
    assert (first.name, first.version) == (again.name, again.version)
    assert {first.name, other.name} == {"geneval@fresh:1", "geneval@fresh:2"}
    assert first.version != other.version
    texts, others = ({p.text for p in task.prompts()} for task in (first, other))
    assert len(texts & others) < len(texts) / 3
    # Anybody's prompts of this seed, whatever made their numpy.
    assert first.version == "1.0-fresh+bcebe70f"


@pytest.mark.parametrize("name", ["geneval@fresh", *(f"geneval@fresh:{s}" for s in
    ("", "x", "-1", "1.5", "07", "test", "train", "1000000000", "٣", "1 "))])  # fmt: skip
def test_what_is_no_seed_is_said(name: str) -> None:
    with pytest.raises(GapbenchError, match="give a seed, a whole number from 0 to 999999999, as"):
        load_task(name)


def run(out: Path, tasks: str = "geneval@fresh:1", shard: str | None = None, more: int = 1) -> Run:
    judge = [f"{out.parent / 'odd.py'}:Odd"]
    (out.parent / "odd.py").write_text(JUDGE)
    return gapbench.run(
        Stub(), tasks, judges=judge, limit=10, samples=more, out=out, shard=shard  # type: ignore[arg-type]
    )  # fmt: skip


def test_a_run_with_them_resumes_and_its_shards_merge(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    assert [r.value for r in whole.rates() if (r.level, r.metric) == ("task", "generation")]
    # The mean of six categories is not that of five.
    assert not [r for r in whole.rates() if r.level in ("official", "paper")]
    said = (
        "Skipped geneval@fresh:1/single_object: the official list has all 80 classes, so no new "
        "prompt exists."
    )
    assert said in whole.notes()
    shards = [run(tmp_path / "shards", shard=f"{k}/3") for k in (1, 2, 3)]
    merged = merge([shard.path for shard in shards], tmp_path / "merged")
    assert merged.plan == whole.plan
    assert merged.rates() == whole.rates()
    grown = run(tmp_path / "whole", more=2)
    assert (grown.path, grown.stages()["images"]) == (whole.path, (20, 20))
    beside = run(tmp_path / "whole", "geneval@fresh:2")
    assert beside.path == whole.path
    both = gapbench.open_run(whole.path)
    assert set(both.plan.tasks) == {"geneval@fresh:1", "geneval@fresh:2"}
    part = gapbench.open_run(whole.path, "geneval@fresh:2/counting")
    assert {p.category for p in part.plan.prompts} == {"counting"}


def test_seeds_are_never_compared_as_one(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    one, two, both = (
        gapbench.run("janus-mini", tasks, judges=[], limit=2, samples=1, out=tmp_path / name)
        for name, tasks in (
            ("1", "geneval@fresh:1/colors"),
            ("2", "geneval@fresh:2/colors"),
            ("both", "geneval@fresh:1/colors,geneval@fresh:2/colors"),
        )
    )
    code, _, told = end(capfd, "compare", str(one.path), str(two.path))
    assert (code, told.count("\n")) == (2, 1)
    [shared] = gapbench.compare(one.path, [both.path])
    assert (shared.images, shared.prompts) == (2, 2)
    [left_out] = shared.left_out
    assert "geneval@fresh:2" in left_out


def test_the_board_takes_none(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = run(tmp_path / "runs").path
    code, _, told = end(capfd, "submit", str(path), "--contact", "me")
    assert (code, told.count("\n")) == (2, 1)
    assert "task geneval@fresh:1 has prompts of its own for each seed" in told
    assert told.endswith("submit geneval\n")


def test_the_list_of_tasks_says_what_there_is_not(capfd: pytest.CaptureFixture[str]) -> None:
    assert "long, fresh:SEED" in end(capfd, "tasks", "geneval")[1]
    shown = end(capfd, "tasks", "geneval@fresh:3")[1]
    assert re.search(r"single_object +0 +\(the official list has all 80 classes", shown)
