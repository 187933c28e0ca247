"""The questions of a prompt: its own list, or made from what it requires.

A requirement of GenEval's form (`include` and `exclude`, as in GenEval and shapes) gives questions
about its things, one after the other:

| skill | question | right answer |
|---|---|---|
| object, shape | Is there a circle? | Yes |
| color | Is there a red circle? | Yes |
| texture | Is there a striped red circle? | Yes |
| count | How many red circles are there? | the number, where `exclude` has one more |
| count | Are there at least two red circles? | Yes, else |
| position | Is there a red circle left of a square? | Yes |

A thing that `exclude` forbids is asked for in the same way, and the right answer is No. An image
that meets each part shows the prompt, as far as things are not told apart: two questions may be
answered by two things.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from PIL import Image

from gapbench.judges.base import Judge
from gapbench.judges.lists import DIGITS, OTHERWISE, Item, answer_of, asked, items_of
from gapbench.tasks.prompts.words import article, plural
from gapbench.types import Answer, GapbenchError, Prompt

RULES: Final = 1
"""The version of the questions, part of the fingerprint of a model that answers them."""
NOUNS: Final = {"class": "object", "shape": "shape"}
"""The keys that name a thing -> the skill that drawing it is."""
ATTRIBUTES: Final = ("color", "texture")
_WORDS: Final = {int(digits): word for word, digits in DIGITS.items()}


def questions(prompt: Prompt) -> list[Item]:
    """The questions of a prompt, each once, with what each asks about; where its list does not say
    that, its category.

    Raises GapbenchError, naming the prompt, where it has neither a list nor a requirement of
    GenEval's form, or a broken one.
    """
    where = f"task {prompt.task}, prompt {prompt.id}"
    items = items_of(prompt.requirement, where)
    if not items and "include" in prompt.requirement:
        try:
            items = list({item.question: item for item in _made(prompt.requirement)}.values())
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise GapbenchError(
                f"{where}: no questions can be made from its requirement: {error}"
            ) from error
    if not items:
        raise GapbenchError(
            f"{where}: the prompt has neither a list of questions nor things that it requires, so "
            "no own verdicts by questions; choose other tasks with --tasks, or another --verdict"
        )
    return [item if item.skill else item._replace(skill=prompt.category) for item in items]


def _made(requirement: Mapping[str, Any]) -> Iterator[Item]:
    include, exclude = requirement["include"], list(requirement.get("exclude", []))
    things = [_thing(item) for item in include]
    for item in exclude:
        _thing(item)
    for place, (item, thing) in enumerate(zip(include, things, strict=True)):
        yield from _attributes(thing)
        limit = {**thing, "count": item["count"] + 1}
        if limit in exclude:
            exclude.remove(limit)
            part = {"include": [{**thing, "count": item["count"]}], "exclude": [limit]}
            yield _asked(f"How many {_several(thing)} are there?", part, _number(item), "count")
        elif item["count"] > 1:
            yield _least({**thing, "count": item["count"]}, "Yes")
        if "position" in item:
            relation, target = item["position"]
            if not 0 <= target < place:
                raise ValueError(f"position {item['position']!r} names no earlier thing")
            other = {**things[target], "count": include[target]["count"]}
            here = {**thing, "count": item["count"], "position": [relation, 0]}
            question = f"Is there {_one(thing)} {relation} {_one(other)}?"
            yield _asked(question, {"include": [other, here]}, "Yes", "position")
    for item in exclude:
        if item["count"] > 1:
            yield _least(item, "No")
        else:
            *_, last = _attributes(_thing(item))
            yield last._replace(answer="No")


def _thing(item: Any) -> dict[str, Any]:
    """What an item says of each of its things. Raises ValueError for what is no item."""
    if not isinstance(item, Mapping) or not {*item} <= {*NOUNS, *ATTRIBUTES, "count", "position"}:
        raise ValueError(f"{item!r} is no thing with a class or shape, colour, texture and count")
    if type(item.get("count")) is not int or item["count"] < 1:
        raise ValueError(f"{item!r} has no count of at least 1")
    thing = {key: value for key, value in item.items() if key not in ("count", "position")}
    if not thing or not all(isinstance(value, str) and value for value in thing.values()):
        raise ValueError(f"{item!r} does not say in words what it is")
    return thing


def _attributes(thing: Mapping[str, Any]) -> Iterator[Item]:
    """A question for each thing that is said, the last for all of them."""
    known: dict[str, Any] = {}
    for key in (*NOUNS, *ATTRIBUTES):
        if key in thing:
            known[key] = thing[key]
            part = {"include": [{**known, "count": 1}]}
            yield _asked(f"Is there {_one(known)}?", part, "Yes", NOUNS.get(key, key))


def _least(item: Mapping[str, Any], answer: str) -> Item:
    question = f"Are there at least {_number(item)} {_several(item)}?"
    return _asked(question, {"include": [dict(item)]}, answer, "count")


def _number(item: Mapping[str, Any]) -> str:
    return _WORDS.get(item["count"], str(item["count"]))


def _one(thing: Mapping[str, Any]) -> str:
    return article(_named(thing))


def _several(thing: Mapping[str, Any]) -> str:
    return _named(thing, plural)


def _named(thing: Mapping[str, Any], form: Callable[[str], str] = str) -> str:
    noun = form(next((thing[key] for key in NOUNS if key in thing), "shape"))
    return " ".join([*(thing[key] for key in ("texture", "color") if key in thing), noun])


def _asked(question: str, part: Mapping[str, Any], answer: str, skill: str) -> Item:
    return Item(question, answer, (), skill, part)


def has_parts(prompt: Prompt) -> bool:
    """Whether each of a prompt's questions is about a part of its requirement."""
    return all(item.part is not None for item in questions(prompt))


class PartsJudge(Judge):
    """An outside judge that answers a prompt's questions from what it found in the image, each by
    its part of the requirement; of a list of its own it has answered them already."""

    def __init__(self, whole: Judge) -> None:
        self.whole = whole
        self.name, self.fingerprint = whole.name, whole.fingerprint
        self.batches, self.gpus, self.remote = whole.batches, whole.gpus, whole.remote

    def question(self, prompt: Prompt) -> str:
        return asked(questions(prompt))

    def judge(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Answer]:
        lists = [questions(prompt) for prompt in prompts]
        parts = [[item.part or {} for item in items] for items in lists]
        answers = []
        for items, found in zip(lists, self.whole.judge_parts(images, parts), strict=True):
            if isinstance(found, str):
                answers.append(Answer(verdict=None, reason=found))
                continue
            right = [
                met is (item.answer != OTHERWISE["yes"])
                for item, met in zip(items, found, strict=True)
            ]
            answers.append(answer_of(items, [float(each) for each in right]))
        return answers

    def check_ready(self) -> None:
        self.whole.check_ready()

    def release(self) -> None:
        self.whole.release()
