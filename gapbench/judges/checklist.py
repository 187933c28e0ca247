"""A vision-language model, here or behind a server, that answers a prompt's own list of questions.

| judge | a question is followed by | the probability of the right answer |
|---|---|---|
| `vlm-list` | "Answer with one word." | of the whole word, for yes and no against the other one |
| `soft-tifa` | "Answer in one word." | of the first tokens of some words, as in GenEval 2 |

T2I-CoReBench asks other models by other templates and parses what they write, so figures of
`vlm-list` are not its own.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar, Final

from PIL import Image

from gapbench.client.client import Client
from gapbench.client.replies import Said
from gapbench.judges.base import Judge
from gapbench.judges.lists import (
    ASK,
    DIGITS,
    OTHERWISE,
    Item,
    answer_of,
    asked,
    first_word,
    heard,
    listed,
    same,
)
from gapbench.judges.server import OPTIONAL, ServerJudge
from gapbench.judges.vlm import VlmJudge
from gapbench.judges.weights import batches
from gapbench.types import Answer, Failure, GapbenchError, Prompt
from gapbench.verdict import weigh

DEFAULT: Final = "8b"
SERVER: Final = "server:"
YES: Final = ("Yes", "yes", " yes", " Yes")
COUNTS: Final = "How many"
"""What a question about a number begins with."""


class ChecklistJudge(Judge):
    """`vlm-list`, `vlm-list:ARGUMENT` with an argument of judge `vlm`, or
    `vlm-list:server:URL#MODEL`; Qwen3-VL-8B-Instruct by default.

    `score` is the mean probability of the right answers, `verdict` whether each is at least 0.5
    (`gapbench.judges.lists`). A server's probabilities are those that it gives of the likeliest 20
    tokens at the reply's first place, 0 for others; where it gives none, or the reply's first word
    is no single token, the word counts: 1 if it is right, else 0.
    """

    base: ClassVar[str] = "vlm-list"
    arithmetic: ClassVar[str] = "checklist-2"
    ask: ClassVar[str] = ASK

    def __init__(self, argument: str | None = None, device: str = "auto") -> None:
        given = DEFAULT if argument is None else argument
        self._asked: VlmJudge | ServerJudge = (
            ServerJudge(given.removeprefix(SERVER))
            if given.startswith(SERVER)
            else VlmJudge(given, device)
        )
        self.name = f"{self.base}-{self._asked.name.removeprefix('vlm-')}"
        self.fingerprint = f"{self.arithmetic}-{self._asked.fingerprint}"
        self.needs, self.batches = self._asked.needs, self._asked.batches
        self.gpus, self.remote = self._asked.gpus, self._asked.remote
        self.unpinned = self._asked.unpinned

    def question(self, prompt: Prompt) -> str:
        items = listed(prompt)
        if isinstance(self._asked, VlmJudge):
            self._asked.refuse_marks(prompt, "\n".join(item.question for item in items))
        return asked(items)

    def judge(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Answer]:
        """Answer for each (image, prompt), in order. Raises Unfinished as judge `server` does."""
        lists = [listed(prompt) for prompt in prompts]
        if isinstance(self._asked, ServerJudge):
            client = self._asked.client
            each = zip(images, lists, strict=True)
            return client.rows([partial(self._replies, client, *row) for row in each])
        rows_of: dict[tuple[str, ...], list[tuple[int, int]]] = {}
        for index, items in enumerate(lists):
            for place, item in enumerate(items):
                rows_of.setdefault(self.strings(item), []).append((index, place))
        chances: dict[tuple[int, int], float | str] = {}
        for strings, rows in rows_of.items():
            for part in batches(rows, max(1, len(images))):
                said = self._asked.each(
                    partial(self.likely, self._asked, strings),
                    [images[index] for index, _ in part],
                    [self.text(lists[index][place]) for index, place in part],
                )
                chances |= zip(part, said, strict=True)
        return [
            answer_of(items, [_number(chances[index, place]) for place in range(len(items))])
            for index, items in enumerate(lists)
        ]

    def text(self, item: Item) -> str:
        """What the model is asked."""
        return self.ask.replace("{question}", item.question)

    # -- which words are right -------------------------------------------------------------

    def strings(self, item: Item) -> tuple[str, ...]:
        """The right answer, and its opposite where it has one."""
        other = OTHERWISE.get(item.answer.lower())
        return (item.answer, other) if other else (item.answer,)

    def likely(
        self,
        vlm: VlmJudge,
        strings: tuple[str, ...],
        images: Sequence[Image.Image],
        texts: Sequence[str],
    ) -> list[float | str]:
        """For each question the probability of the right answer, or what went wrong."""
        logprobs = vlm.logprobs(images, texts, [f" {string}" for string in strings]).tolist()
        if len(strings) == 1:  # the rest of the probability is every other reply
            return [math.exp(row[0]) for row in logprobs]
        said = [weigh(no, yes) for yes, no in logprobs]
        return [s.reason or "" if s.p_yes is None else s.p_yes for s in said]

    def told(self, tokens: Mapping[str, float], strings: tuple[str, ...]) -> float | None:
        """The same by what a server says of tokens; None where it does not say it."""
        right, *other = (
            sum(p for token, p in tokens.items() if same(token, string)) for string in strings
        )
        both = right + sum(other)
        if not both:
            return None
        return right / both if other else right

    # -- a server --------------------------------------------------------------------------

    def _replies(
        self, client: Client, image: Image.Image, items: Sequence[Item], stop: threading.Event
    ) -> Answer | Failure:
        """The verdict on an image, a request for each question."""
        chances: list[float | str] = []
        for item in items:
            said = client.ask(image, self.text(item), OPTIONAL, stop)
            if isinstance(said, Failure):
                return said
            chances.append(self._read(said, item) if isinstance(said, Said) else said.reason or "")
        return answer_of(items, chances)

    def _read(self, said: Said, item: Item) -> float | str:
        strings = self.strings(item)
        word = first_word(said.text)
        tokens = said.first(word) if word else None
        chance = self.told(tokens, strings) if tokens else None
        if chance is not None:
            return chance
        yes_or_no = item.answer.strip().lower() in OTHERWISE
        return heard(word, item, (item.answer,) if yes_or_no else strings)

    def served(self) -> str | None:
        return self._asked.served()

    def check_ready(self) -> None:
        self._asked.check_ready()

    def estimate_cost(self, images: int) -> str | None:
        if isinstance(self._asked, VlmJudge):
            return None
        return f"a request to {self._asked.url} for each question about {images:,} images"

    def release(self) -> None:
        self._asked.release()


class SoftTifaJudge(ChecklistJudge):
    """`soft-tifa`, with the arguments of `vlm-list`: GenEval 2's Soft-TIFA (arXiv 2512.16853).

    A question's probability is the sum, over the strings of `strings`, of the probability of each
    string's first token at the reply's first place, of the whole vocabulary (facebookresearch/
    GenEval2 at a6e82d2, evaluation.py). Two strings with one first token count it twice. Its mean
    over a list, the score, is Soft-TIFA AM, its geometric mean Soft-TIFA GM; the verdict is ours.
    No token that a tokenizer puts before each text counts as a first one: Qwen's has none. Of a
    server, tokens that are one of the strings count.
    """

    base = "soft-tifa"
    arithmetic = "soft-tifa-1"
    ask = "{question} Answer in one word."

    def question(self, prompt: Prompt) -> str:
        for item in listed(prompt):
            if not item.question.startswith(COUNTS) and not same(item.answer, "yes"):
                raise GapbenchError(
                    f"task {prompt.task}, prompt {prompt.id}: {item.question!r} is answered "
                    f"{item.answer!r}; judge {self.base} takes yes as the right answer of all "
                    f'questions but those that begin with "{COUNTS}"; use vlm-list'
                )
        return super().question(prompt)

    def strings(self, item: Item) -> tuple[str, ...]:
        """Six spellings of a number, "other" for the numeral of a word that is none of ten; four of
        yes."""
        if not item.question.startswith(COUNTS):
            return YES
        numeral = DIGITS.get(item.answer, "other")
        words = (item.answer, item.answer.capitalize(), numeral)
        return tuple(string for word in words for string in (word, f" {word}"))

    def likely(
        self,
        vlm: VlmJudge,
        strings: tuple[str, ...],
        images: Sequence[Image.Image],
        texts: Sequence[str],
    ) -> list[float | str]:
        cut = vlm.processor.tokenizer(list(strings), add_special_tokens=False)["input_ids"]
        firsts = [ids[0] for ids in cut]
        chances = vlm.next_logprobs(images, texts)[:, firsts].exp().sum(1)
        return [float(chance) for chance in chances]

    def told(self, tokens: Mapping[str, float], strings: tuple[str, ...]) -> float | None:
        return sum(tokens.get(string, 0.0) for string in strings)


def _number(chance: float | str) -> float | str:
    """A probability that is a number, or that it is none."""
    if isinstance(chance, str) or math.isfinite(chance):
        return chance
    return f"has an answer whose probability is {chance}"
