"""Lists of questions about an image, in the benchmarks' own forms, and what their answers come to.

| requirement | of | right answer |
|---|---|---|
| Checklist: [{"question"}] | T2I-CoReBench | yes |
| vqa_list: [[question, answer]] | GenEval 2 | as given |
| the columns DPG of its CSV, a list each | DPG-Bench | yes |

In DPG-Bench a question counts only where those that it depends on are met. `skills` of GenEval 2
and `category_broad` of DPG-Bench say, a text for each question, what it asks about.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Any, Final, NamedTuple

from gapbench.types import Answer, GapbenchError, Prompt

ENOUGH: Final = 0.5
"""Probability of the right answer from which a question counts as met."""
RIGHT: Final = "right"
"""The key of an answer's text, {"right": [...]}: the probability of each question's right answer,
in the order of the list; null where there is none."""


DPG: Final = ("proposition_id", "dependency", "question_natural_language")
"""The columns of DPG-Bench's CSV that a list is made of."""
ASK: Final = "{question} Answer with one word."
"""How a question of a list is put to a model."""
OTHERWISE: Final = {"yes": "No", "no": "Yes"}
DIGITS: Final = {
    word: str(number)
    for number, word in enumerate(
        ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"), 1
    )
}


class Item(NamedTuple):
    """A question with its right answer; `parents` are the places in the list, from 0, of the
    questions that it depends on. `skill` is what it asks about, if that is known, and `part` the
    requirement that an image meets which shows what is asked (`gapbench.judges.parts`)."""

    question: str
    answer: str
    parents: tuple[int, ...] = ()
    skill: str = ""
    part: Mapping[str, Any] | None = None


def listed(prompt: Prompt) -> list[Item]:
    """The questions of a prompt's requirement.

    Raises GapbenchError, naming the prompt, where there are none, or where one is broken, depends
    on one that is not there, or on itself through others.
    """
    where = f"task {prompt.task}, prompt {prompt.id}"
    items = items_of(prompt.requirement, where)
    if not items:
        raise GapbenchError(
            f"{where}: the prompt has no list of questions; choose another judge with --judge"
        )
    return items


def items_of(requirement: Mapping[str, Any], where: str) -> list[Item]:
    """The questions of a requirement. Raises GapbenchError as `listed` does, but for none."""
    try:
        items = _items(requirement)
        _order(items)
    except (KeyError, TypeError, ValueError) as error:
        why = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise GapbenchError(f"{where}: its list of questions is broken: {why}") from error
    return items


def asked(items: Iterable[Item]) -> str:
    """A list as the question of a verdict, as JSON."""
    return json.dumps([item[:3] if item.parents else item[:2] for item in items])


def _items(requirement: Mapping[str, Any]) -> list[Item]:
    if "Checklist" in requirement:
        return [Item(_text(item["question"]), "Yes") for item in _list(requirement["Checklist"])]
    if "question_natural_language" in requirement:
        return _dpg(requirement)
    pairs = [_list(pair) for pair in _list(requirement.get("vqa_list", []))]
    if odd := next((pair for pair in pairs if len(pair) != 2), None):
        raise ValueError(f"{odd!r} is no pair of a question and its answer")
    skills = _skills(requirement, "skills", len(pairs))
    return [
        Item(_text(question), _text(answer), skill=skill)
        for (question, answer), skill in zip(pairs, skills, strict=True)
    ]


def _skills(requirement: Mapping[str, Any], name: str, count: int) -> list[str]:
    """What each question asks about; empty texts where nothing says it."""
    if name not in requirement:
        return [""] * count
    skills = [_text(skill) for skill in _list(requirement[name])]
    if len(skills) != count:
        raise ValueError(f"{name} are {len(skills)}, of {count} questions")
    return skills


def _dpg(requirement: Mapping[str, Any]) -> list[Item]:
    ids, given, questions = (_list(requirement[name]) for name in DPG)
    if not len(ids) == len(given) == len(questions):
        raise ValueError(f"{', '.join(DPG)} are not equally many")
    places = {int(one): place for place, one in enumerate(ids)}
    if len(places) < len(ids):
        raise ValueError("a proposition_id is there twice")
    items = []
    skills = _skills(requirement, "category_broad", len(ids))
    for one, parents, question, skill in zip(ids, given, questions, skills, strict=True):
        named = [int(parent) for parent in str(parents).split(",")]
        if gone := [parent for parent in named if parent and parent not in places]:
            raise ValueError(f"question {one} depends on question {gone[0]}, which is not there")
        above = tuple(places[parent] for parent in named if parent)
        items.append(Item(_text(question), "Yes", above, skill))
    return items


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise TypeError(f"{str(value)[:40]!r} is no list")
    return list(value)


def same(one: str, other: str) -> bool:
    """Whether two words are the same."""
    return one.strip().casefold() == other.strip().casefold()


def first_word(reply: str) -> str:
    """A reply's first word, without signs around it; empty where it has none."""
    words = reply.split()
    return words[0].strip(".,;:!*\"'") if words else ""


def heard(word: str, item: Item, right: Iterable[str]) -> float | str:
    """1.0 where a word is one of the `right` ones, else 0.0; why it is no answer where neither."""
    if not word:
        return "the reply is empty"
    if item.answer.strip().casefold() in OTHERWISE and word.casefold() not in OTHERWISE:
        return f"the reply is {word[:20]!r}, not yes or no"
    return float(any(same(word, string) for string in right))


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{str(value)[:40]!r} is no text")
    return value


def _order(items: Sequence[Item]) -> list[int]:
    """Places, each behind those that it depends on."""
    try:
        graph = {place: item.parents for place, item in enumerate(items)}
        return list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        about = items[error.args[1][0]].question
        raise ValueError(f"{about!r} depends on itself, also through others") from error


def answer_of(items: Sequence[Item], chances: Sequence[float | str]) -> Answer:
    """What the probabilities of the right answers come to; a text says why there is none.

    The verdict is 1 where each is at least ENOUGH. The score is their mean, in which a question
    counts 0 if one that it depends on, directly or through others, is not met. The reason names
    what is not met, and the text keeps the probabilities as they are, whatever depends on what.
    """
    # Of a sum of floats, 1.0000000000000002 is 1.
    told = [None if isinstance(each, str) else float(f"{each:.10g}") for each in chances]
    text = json.dumps({RIGHT: told})
    for item, chance in zip(items, chances, strict=True):
        if isinstance(chance, str):
            return Answer(verdict=None, text=text, reason=f"{item.question} {chance}")
    known = [chance for chance in told if chance is not None]
    met = [chance >= ENOUGH for chance in known]
    counts = [True] * len(items)
    for place in _order(items):
        counts[place] = all(met[parent] and counts[parent] for parent in items[place].parents)
    return Answer(
        verdict=int(all(met)),
        score=math.fsum(c for c, counted in zip(known, counts, strict=True) if counted)
        / len(known),
        text=text,
        reason="; ".join(item.question for item, m in zip(items, met, strict=True) if not m)
        or None,
    )


def answers_in(text: str | None) -> list[float | None] | None:
    """What an answer's text keeps of each question: the probability of the right answer, None where
    there was none. None where it keeps nothing."""
    if text is None or not text.startswith(f'{{"{RIGHT}": ['):
        return None
    try:
        kept = json.loads(text)[RIGHT]
        return [None if chance is None else float(chance) for chance in kept] or None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def chances_in(text: str | None) -> list[float] | None:
    """The probabilities that an answer's text keeps; None where it lacks one."""
    kept = answers_in(text) or []
    known = [chance for chance in kept if chance is not None]
    return known if known and len(known) == len(kept) else None


def geometric(text: str | None) -> float | None:
    """The geometric mean of the probabilities that an answer's text keeps (GenEval 2's Soft-TIFA
    GM); 0 where one of them is 0."""
    chances = chances_in(text)
    if chances is None or not all(0 <= chance < math.inf for chance in chances):
        return None
    if min(chances) == 0:
        return 0.0
    return math.exp(math.fsum(map(math.log, chances)) / len(chances))


def dpg_score(items: Sequence[Item], yes: Sequence[bool | None]) -> float | None:
    """An image's score as DPG-Bench computes it, from 0 to 1; None where its script leaves the
    image out (TencentQQGYLab/ELLA at 3c228f1, dpg_bench/compute_dpg_bench.py).

    `yes` says of each question whether the answer was yes. It is None for one that was never asked:
    the script skips the first row of its CSV, the first question of the first prompt, and stops
    with an error at an image with a question that depends on it. Questions are gone through in the
    order of the list, so one that was set to 0 sets those that depend on it to 0 only behind it.
    """
    scores = [None if said is None else float(said) for said in yes]
    for place, item in enumerate(items):
        if scores[place] is None:
            continue
        for parent in item.parents:
            if scores[parent] is None:
                return None
            if scores[parent] == 0:
                scores[place] = 0.0
                break
    there = [score for score in scores if score is not None]
    return sum(there) / len(there) if there else None
