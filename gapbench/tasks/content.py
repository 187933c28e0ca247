"""What prompts ask for: which are wordings of one content, and which are far apart."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from random import Random
from typing import Any, Final, Literal, TypeVar

from gapbench.types import Prompt

T = TypeVar("T")
Difficulty = Literal["far", "near"]
INVERSE: Final = {"right of": "left of", "below": "above"}
MOST: Final = 1000
"""Prompts of a category, drawn at random, among which a partner is looked for."""
FUNCTION_WORDS: Final = frozenset(
    ["a", "an", "the", "and", "or", "of", "in", "on", "at", "to", "by", "with", "for", "from", "as",
     "is", "are", "it", "its", "there", "that", "this", "which", "who", "photo", "picture", "image"]
)  # fmt: skip


def words(text: str) -> list[str]:
    """A text's words in lower case, without punctuation."""
    return re.findall(r"\w+", text.casefold())


def cluster(prompt: Prompt) -> str:
    """A name that the prompts of a category share if they have the same requirement, whatever the
    order of its things and the side from which it names a relation; without one, its words, since
    equal texts get equal images.
    """
    if not prompt.requirement:
        return " ".join(words(prompt.text)) or prompt.text
    return content_of(prompt.requirement)


def content_of(requirement: Mapping[str, Any]) -> str:
    """A name that requirements share which ask for the same, as `cluster` says."""
    content: Any = dict(requirement)
    if things := _things(requirement):
        relations = []
        for thing, item in zip(things, content["include"], strict=True):
            if "position" in item:
                relation, other = item["position"]
                ends = [thing, things[other]]
                if relation in INVERSE:
                    relation, ends = INVERSE[relation], ends[::-1]
                relations.append([relation, *ends])
        content["include"] = [sorted(things), sorted(relations)]
        if isinstance(content.get("exclude"), list):
            content["exclude"] = sorted(json.dumps(i, sort_keys=True) for i in content["exclude"])
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def partners(
    prompts: Iterable[Prompt], category: Sequence[Prompt], difficulty: Difficulty, seed: int
) -> list[Prompt | None]:
    """For some prompts of a category the one that their images are also held against, or None.

    `far` shares as few content words with it as possible, `near` differs in as few; `seed` chooses
    among equals. Content words are those of the text and the values of the requirement. No prompt
    is a partner whose content contains, or is part of, that of the other in any order or relation,
    or is of its cluster, since one image may show both.
    """
    # By text, so that neither the order of the file nor the ids change a choice.
    listed = sorted(category, key=lambda other: other.text)
    known = [(other, _asked(other), _facts(other), cluster(other)) for other in listed]
    of = {id(each[0]): each for each in known}
    chosen: list[Prompt | None] = []
    for prompt in prompts:
        _, asked, facts, mine = of.get(id(prompt)) or (
            prompt, _asked(prompt), _facts(prompt), cluster(prompt),
        )  # fmt: skip
        stream = Random(f"{seed} {prompt.task} {prompt.text}")  # noqa: S311 (no secret)
        best, least = None, float("inf")
        for other, theirs, their_facts, its in _sampled(stream, known, min(len(known), MOST)):
            apart = facts & their_facts if difficulty == "far" else facts ^ their_facts
            one_image = asked <= theirs or asked >= theirs or mine == its
            if len(apart) < least and not one_image:
                best, least = other, len(apart)
            if not least:
                break
        chosen.append(best)
    return chosen


def _sampled(stream: Random, of: Sequence[T], count: int) -> Iterator[T]:
    """What `stream.sample(of, count)` gives, one at a time: the first few are mostly enough."""
    left = len(of)
    # As sample does it: few of many are drawn until they differ, of others none is left in place.
    if left > 21 + (4 ** math.ceil(math.log(3 * count, 4)) if count > 5 else 0):
        taken = set[int]()
        while len(taken) < count:
            if (place := stream.randrange(left)) not in taken:
                taken.add(place)
                yield of[place]
        return
    moved = dict[int, int]()
    for last in range(left - 1, left - 1 - count, -1):
        place = stream.randrange(last + 1)
        yield of[moved.get(place, place)]
        moved[place] = moved.get(last, last)


def _things(requirement: Mapping[str, Any]) -> list[str] | None:
    """The things that a requirement includes, without their places, as JSON; None where it does not
    list things as GenEval does."""
    include = requirement.get("include")
    if not isinstance(include, list):
        return None
    for item in include:
        if not isinstance(item, dict):
            return None
        match item.get("position", ["", 0]):
            case [str(), int(other)] if 0 <= other < len(include):
                pass
            case _:
                return None
    return [
        json.dumps({k: v for k, v in item.items() if k != "position"}, sort_keys=True)
        for item in include
    ]


def _asked(prompt: Prompt) -> frozenset[str]:
    """What an image must show, wherever: the things of the requirement, else the content words."""
    content = _content_words(prompt.text)
    return frozenset(_things(prompt.requirement) or content - _PLACES or content)


def _facts(prompt: Prompt) -> frozenset[str]:
    """The content words of a text, and the values of its requirement's things."""
    facts = _content_words(prompt.text)
    for thing in _things(prompt.requirement) or ():
        facts |= {str(value)[:5].rstrip("es") for value in json.loads(thing).values() if value != 1}
    return facts


def _content_words(text: str) -> frozenset[str]:
    """Cut short, so that a plural is the same word; the text itself if it has none."""
    content = {w[:5].rstrip("es") or w for w in words(text) if w not in FUNCTION_WORDS}
    return frozenset(content or {text})


_PLACES: Final = _content_words(
    "left right top bottom side front behind above below under over near next beside hidden"
)
