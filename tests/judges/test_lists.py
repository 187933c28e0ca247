"""Lists of questions: the benchmarks' arithmetic against references, and lists that are broken."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest

from gapbench import GapbenchError, Prompt
from gapbench.judges.lists import (
    Item,
    answer_of,
    answers_in,
    asked,
    chances_in,
    dpg_score,
    geometric,
    listed,
)

SETS = 1000


def prompt(**requirement: Any) -> Prompt:
    return Prompt(
        id="p", task="t", category="c", tier="hard", text="x", question="q", requirement=requirement
    )


def dpg(ids: Any, parents: Any, questions: Any = None) -> Prompt:
    questions = [f"q{one}?" for one in ids] if questions is None else questions
    return prompt(proposition_id=ids, dependency=parents, question_natural_language=questions)


def refused(broken: Prompt) -> str:
    with pytest.raises(GapbenchError) as caught:
        listed(broken)
    assert "\n" not in str(caught.value)
    assert "task t, prompt p" in str(caught.value)
    return str(caught.value)


def forest(rng: np.random.Generator) -> tuple[list[int], list[list[int]]]:
    """Ids in any order, and for each the ids of its parents, which need not stand before it."""
    ids = [int(one) for one in rng.permutation(np.arange(1, rng.integers(2, 14)))]
    rank = {one: int(place) for one, place in zip(ids, rng.permutation(len(ids)), strict=True)}
    parents = [
        [other for other in ids if rank[other] < rank[one] and rng.random() < 0.25] for one in ids
    ]
    return ids, parents


def standing(one: int, yes: dict[int, bool], above: dict[int, list[int]]) -> bool:
    """Whether all that a question depends on, through any number of others, is a yes."""
    return all(yes[other] and standing(other, yes, above) for other in above[one])


def test_soft_tifa_over_a_list_is_its_authors() -> None:
    rng = np.random.default_rng(1)
    for _ in range(SETS):
        chances = rng.beta(0.3, 0.3, rng.integers(1, 25))
        chances[rng.random(len(chances)) < 0.02] = 0.0
        items = [Item(f"q{number}?", "Yes") for number in range(len(chances))]
        answer = answer_of(items, chances.tolist())
        assert answer.score == pytest.approx(chances.mean(), rel=1e-8)
        with np.errstate(divide="ignore"):
            gm = np.exp(np.log(chances).mean())  # what scipy's gmean does
        assert geometric(answer.text) == pytest.approx(gm, rel=1e-8)
        assert answer.verdict == int((chances >= 0.5).all())
        assert chances_in(answer.text) == pytest.approx(chances, rel=1e-9)
        missed = [item.question for item, low in zip(items, chances < 0.5, strict=True) if low]
        assert answer.reason == ("; ".join(missed) or None)


def test_dpg_bench_is_its_authors_quirks_included() -> None:
    """The reference: a table of ids to scores that is written over while it is gone through."""
    rng = np.random.default_rng(2)
    quirks = {"late parent": 0, "left out": 0, "skipped": 0}
    for number in range(SETS):
        ids, parents = forest(rng)
        yes = (rng.random(len(ids)) < 0.7).tolist()
        skip = number % 3 == 0
        told = dpg([str(i) for i in ids], [", ".join(map(str, p)) or "0" for p in parents])
        items = listed(told)

        table = {one: float(said) for one, said in list(zip(ids, yes, strict=True))[skip:]}
        wanted: float | None
        try:
            for one, above in list(zip(ids, parents, strict=True))[skip:]:
                if not all(table[other] for other in above):
                    table[one] = 0.0
            wanted = sum(table.values()) / len(table)
        except (KeyError, ZeroDivisionError):
            wanted = None
        said: list[bool | None] = [None, *yes[1:]] if skip else [*yes]
        got = dpg_score(items, said)
        assert got == (None if wanted is None else pytest.approx(wanted))

        ours = answer_of(items, [float(y) for y in yes])
        said_of, above_of = dict(zip(ids, yes, strict=True)), dict(zip(ids, parents, strict=True))
        counted = [said_of[one] and standing(one, said_of, above_of) for one in ids]
        assert ours.score == pytest.approx(np.mean(counted))
        assert chances_in(ours.text) == [float(y) for y in yes]
        if not skip and wanted is not None:
            quirks["late parent"] += wanted != pytest.approx(np.mean(counted))
        quirks["left out"] += wanted is None
        quirks["skipped"] += skip and wanted is not None
    assert min(quirks.values()) > 10, quirks


def test_a_chain_shows_what_the_official_order_misses() -> None:
    """3 depends on 2, 2 on 1; 1 is no. Behind its parent each is zeroed; before it, it is not."""
    before = listed(dpg(["1", "2", "3"], ["0", "1", "2"]))
    behind = listed(dpg(["3", "2", "1"], ["2", "1", "0"]))
    assert dpg_score(before, [False, True, True]) == 0
    assert dpg_score(behind, [True, True, False]) == pytest.approx(1 / 3)
    for items, chances in ((before, [0.1, 0.9, 0.8]), (behind, [0.8, 0.9, 0.1])):
        assert answer_of(items, chances).score == pytest.approx(0.1 / 3)
        assert answer_of(items, chances).verdict == 0


def test_the_three_forms() -> None:
    checked = listed(prompt(Checklist=[{"question": "Is it red?", "tags": []}]))
    assert checked == [Item("Is it red?", "Yes")]
    pairs = listed(prompt(vqa_list=[["How many?", "two"], ("Is it?", "Yes")], skills=["a", "b"]))
    assert pairs == [Item("How many?", "two", skill="a"), Item("Is it?", "Yes", skill="b")]
    assert json.loads(asked(pairs)) == [["How many?", "two"], ["Is it?", "Yes"]]
    tree = listed(dpg(["2", "1", "3"], ["1", "0", "1, 2"]))
    assert [item.parents for item in tree] == [(1,), (), (1, 0)]
    assert json.loads(asked(tree))[0] == ["q2?", "Yes", [1]]


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (prompt(), "has no list of questions; choose another judge"),
        (prompt(vqa_list=[]), "has no list of questions"),
        (prompt(Checklist=[]), "has no list of questions"),
        (dpg([], []), "has no list of questions"),
        (prompt(vqa_list=[["Is it?"]]), "is no pair of a question and its answer"),
        (prompt(vqa_list="Is it?"), "'Is it?' is no list"),
        (prompt(vqa_list=[["", "Yes"]]), "'' is no text"),
        (prompt(vqa_list=[["Is it?", 2]]), "'2' is no text"),
        (prompt(Checklist=[{"tags": []}]), "broken: no 'question'"),
        (prompt(Checklist={"question": "Is it?"}), "is no list"),
        (prompt(question_natural_language=["q?"]), "broken: no 'proposition_id'"),
        (dpg(["1", "2"], ["0"]), "are not equally many"),
        (dpg(["1", "1"], ["0", "0"]), "a proposition_id is there twice"),
        (dpg(["1", "x"], ["0", "0"]), "invalid literal for int"),
        (dpg(["1", "2"], ["0", ""]), "invalid literal for int"),
        (dpg(["1", "2"], ["0", "7"]), "question 2 depends on question 7, which is not there"),
        (dpg(["1", "2", "3"], ["3", "1", "2"]), "depends on itself, also through others"),
        (dpg(["1"], ["1"]), "'q1?' depends on itself"),
    ],
)
def test_broken_lists_are_refused(broken: Prompt, why: str) -> None:
    assert re.search(re.escape(why), refused(broken)), refused(broken)


def test_what_went_wrong_with_one_question_is_an_abstention() -> None:
    items = [Item("a?", "Yes"), Item("b?", "Yes")]
    answer = answer_of(items, [0.9, "was not answered"])
    assert (answer.verdict, answer.score, answer.text) == (None, None, '{"right": [0.9, null]}')
    assert answers_in(answer.text) == [0.9, None]
    assert chances_in(answer.text) is None
    assert geometric(answer.text) is None
    assert answer.reason == "b? was not answered"


@pytest.mark.parametrize(
    "text", [None, "", "1", "[1]", '{"right": []}', '{"right": ["x"]}', '{"right": [-1]}',
             '{"right": [NaN]}', '{"right": [1', '{"right": [' + "[" * 100_000, '{"score": 1}'],
)  # fmt: skip
def test_other_texts_hold_no_geometric_mean(text: str | None) -> None:
    assert geometric(text) is None
