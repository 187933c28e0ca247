"""DynEval: a tuned Qwen3-VL that asks about each element of a prompt and scores it from 1 to 5.

| argument | model | use |
|---|---|---|
| none, `4b` | vcl-iisc/DynEval-Evaluator, its folder DynEval-4B | what its authors run by default |
| `2b` | the same, DynEval-2B | the smaller one |
| `OWNER/NAME`, `OWNER/NAME@REVISION`, a folder | a checkpoint with DynEval's tokens | one's own |

What is asked, how replies are read and what they come to is that of the authors' script
(vcl-iisc/dyneval_code at 0e3b8eb, run_inference.py; arXiv 2607.11199), in three turns, each a chat
of its own with a system message and greedily decoded:

1. the elements of the prompt (`<|T2IA|>`, no image);
2. a yes/no question about each of them (`<|T2IA|>`, no image);
3. a score for each question about the image (`<|EVALUATION|>`, without the prompt).

Questions depend on the prompt alone, and are made once for all of its images. Only alignment is
judged: the authors' overall score mixes it with one of image quality, half and half.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any, ClassVar, Final, NamedTuple

import torch
from PIL import Image

from gapbench.fetch.hub import Unreachable
from gapbench.fetch.sources import Source, cached, texts_of
from gapbench.judges.vlm import Named, VlmJudge
from gapbench.judges.weights import batches
from gapbench.types import Answer, GapbenchError, Prompt, Scale

REPO: Final = "vcl-iisc/DynEval-Evaluator"
LOW, HIGH = 1, 5
ENOUGH: Final = 4.5
"""The mean from which a verdict is 1; ours. One element that is scored 1 beside others of 5 is then
a 0 where a prompt has up to seven elements."""
PROBABLY: Final = 4
"""The score that stands for "yes, probably"; reasons name the elements below it."""
ELEMENTS_TOKENS, QUESTION_TOKENS, SCORES_TOKENS = 256, 256, 768
"""The most new tokens of a reply in each turn; the script's defaults."""
TEXTS: Final = 32
"""Turns without an image that are computed at once."""

SCRIPT: Final = Source(
    url="https://raw.githubusercontent.com/vcl-iisc/dyneval_code/"
    "0e3b8eb00cac0f712bc1f6d260e26d04e4027a2f/run_inference.py",
    texts=("T2IA_ELEMENT_SYSTEM", "T2IA_SINGLE_QUESTION_SYSTEM", "EVALUATION_SYSTEM"),
    sha256="0390f90f49dd6de0a30e60c494cd409d86c9bfc7221649178a9ac6533ae0c425",
    bytes=0,
    license="unknown",
)
"""The authors' script, of which the system messages are read; nothing of it is run."""
FRAMING: Final = frozenset(
    {
        "photo", "photograph", "photography", "image", "picture", "pic", "shot", "snapshot",
        "render", "rendering", "3d render", "illustration", "drawing", "sketch", "painting",
        "artwork", "wallpaper", "poster", "portrait",
    }
)  # fmt: skip
"""Elements that are about the medium; the script leaves them out."""


class Item(NamedTuple):
    """An element of a prompt with the question about it, and whether the right answer is yes."""

    element: str
    question: str
    yes: bool


class Systems(NamedTuple):
    """The system message of each turn."""

    elements: str
    question: str
    scores: str


class Reply(NamedTuple):
    """What the model said."""

    text: str


class DynEvalJudge(VlmJudge):
    """`dyneval`, with the arguments above. score: the mean of the questions' scores, 1 to 5, as the
    authors' script prints it; verdict 1 from 4.5 on, which is ours."""

    scores = True
    scale = Scale("DynEval", LOW, HIGH)
    threshold: float = ENOUGH
    base = "dyneval"
    adapter = "dyneval-1"
    models: ClassVar = {
        "4b": Named(REPO, None, "unknown", "8.9 GB", "DynEval-4B"),
        "2b": Named(REPO, None, "unknown", "4.3 GB", "DynEval-2B"),
    }
    default = "4b"

    def __init__(self, argument: str | None = None, device: str = "auto") -> None:
        try:
            super().__init__(argument, device)
        except Unreachable as error:
            error.needs += (SCRIPT,)
            raise
        self.needs = (*self.needs, SCRIPT)
        self._lists: dict[str, list[Item] | Answer] = {}

    @cached_property
    def systems(self) -> Systems:
        """Raises GapbenchError where the authors' script is not in the cache."""
        (script,) = cached([SCRIPT], f"judge {self.name}")
        return Systems(*texts_of(script, SCRIPT.texts))

    def question(self, prompt: Prompt) -> str:
        """The prompt's text. Raises GapbenchError where it holds a token that steers this model, or
        the model has no token for a turn."""
        self.refuse_marks(prompt, prompt.text)
        self.token("T2IA")
        self.token("EVALUATION")
        return prompt.text

    def put(self, text: str) -> str:
        return text

    def token(self, task: str) -> str:
        """What a turn of a task begins with. Checkpoints before the published ones spell it without
        bars. Raises GapbenchError where the tokenizer has neither form."""
        known = self.processor.tokenizer.get_added_vocab()
        for token in (f"<|{task}|>", f"<{task}>"):
            if token in known:
                return token
        raise GapbenchError(
            f"judge {self.name}: the tokenizer in {self.folder} has no token <|{task}|>, so this "
            "is no DynEval checkpoint; ask another model with --judge vlm:..."
        )

    # -- the three turns -------------------------------------------------------------------

    def _ask(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[Answer]:
        """Answers about images of the prompts that `questions` are."""
        self._make_lists(questions)
        answers: list[Answer | None] = []
        rows: list[tuple[Image.Image, list[Item]]] = []
        for image, text in zip(images, questions, strict=True):
            made = self._lists[text]
            answers.append(made if isinstance(made, Answer) else None)
            if not isinstance(made, Answer):
                rows.append((image, made))
        texts = [scores_turn(self.token("EVALUATION"), items) for _, items in rows]
        call = partial(self._replies, self.systems.scores, SCORES_TOKENS)
        said = iter(zip(rows, self.each(call, [image for image, _ in rows], texts), strict=True))
        return [answer or self._answer(*next(said)) for answer in answers]

    def _answer(self, row: tuple[Image.Image, list[Item]], said: Reply | str) -> Answer:
        if isinstance(said, str):
            return Answer(verdict=None, reason=said)
        return answer_of(row[1], said.text, self.threshold)

    def _make_lists(self, prompts: Sequence[str]) -> None:
        """Make the questions of prompts that have none yet; an abstention where that fails."""
        token = self.token("T2IA")
        new = [text for text in dict.fromkeys(prompts) if text not in self._lists]
        turns = [f"{token}\nPrompt: {text}\nElements:" for text in new]
        made: dict[str, list[Item] | Answer] = {}
        rows: list[tuple[str, str]] = []
        for text, said in zip(
            new, self._texts(self.systems.elements, ELEMENTS_TOKENS, turns), strict=True
        ):
            if isinstance(said, str):
                made[text] = Answer(verdict=None, reason=said)
            elif elements := elements_in(said.text):
                made[text] = []
                rows += [(text, element) for element in elements]
            else:
                made[text] = _abstain("the reply names no element of the prompt", said.text)
        turns = [question_turn(token, *row) for row in rows]
        replies = self._texts(self.systems.question, QUESTION_TOKENS, turns)
        for (text, element), said in zip(rows, replies, strict=True):
            items = made[text]
            if isinstance(items, Answer):
                continue
            if isinstance(said, str):
                made[text] = Answer(verdict=None, reason=said)
            elif question := question_in(said.text):
                items.append(Item(element, *question))
            else:
                made[text] = _abstain(f"the reply has no question about {element}", said.text)
        self._lists |= made

    def _texts(self, system: str, tokens: int, turns: Sequence[str]) -> list[Reply | str]:
        """Replies to turns without images, or why there is none."""
        said: list[Reply | str] = []
        for part in batches(turns, TEXTS):
            said += self.each(lambda _, some: self._replies(system, tokens, (), some), part, part)
        return said

    @torch.inference_mode()
    def _replies(
        self, system: str, tokens: int, images: Sequence[Image.Image], turns: Sequence[str]
    ) -> list[Reply]:
        self.load()
        said = self.chat.replies(self._model, images, turns, tokens, system)
        return [Reply(text) for text in said]


# -- what is asked -------------------------------------------------------------------------


def question_turn(token: str, prompt: str, element: str) -> str:
    """What is said to get the question about an element."""
    form = '{"question": "...", "answer": "yes/no"}'
    return f"{token}\nDescription: {prompt}\nElement: {element}\nReturn JSON:\n{form}"


def scores_turn(token: str, items: Sequence[Item]) -> str:
    """What is said to get the scores of questions."""
    listed = (f"{number}. Question: {item.question}" for number, item in enumerate(items, 1))
    return "\n".join([token, "Questions to score:", *listed])


# -- what replies say ----------------------------------------------------------------------


def first_json(reply: str) -> Any:
    """A reply that is JSON, also in a fence of Markdown; else the first list in it that is, else
    the first object. None where there is neither, or it is too deep."""
    text = reply.strip()
    if text.startswith("```"):
        lines = text.splitlines()[1:]
        text = "\n".join(lines[:-1] if lines and lines[-1].strip() == "```" else lines).strip()
    try:
        return json.loads(text)
    except RecursionError:
        return None
    except ValueError:  # also of a number of too many digits
        pass
    for opener in "[{":
        for found in re.finditer(re.escape(opener), text):
            try:
                return json.JSONDecoder().raw_decode(text, found.start())[0]
            except RecursionError:
                return None
            except ValueError:
                continue
    return None


def elements_in(reply: str) -> list[str]:
    """The elements that a reply lists, each once, without those of FRAMING; of a list that broke
    off, the whole ones that end with their type. Items that are no texts are left out."""
    said = first_json(reply)
    if isinstance(said, dict):
        said = next((s for k in ("elements", "Elements") if isinstance(s := said.get(k), list)), 0)
    listed = said if isinstance(said, list) else re.findall(r'"([^"]+\([^()]+\))"', reply)
    once: dict[str, str] = {}
    for item in listed:
        if isinstance(item, str) and item.strip():
            once.setdefault(_plain(item), item.strip())
    return [item for item in once.values() if not _is_framing(item)]


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text.strip().lower())


def _is_framing(element: str) -> bool:
    return re.sub(r"\(.*?\)", "", element).strip().lower().strip(" .'\"") in FRAMING


def question_in(reply: str) -> tuple[str, bool] | None:
    """The question that a reply asks, and whether its right answer is yes; None without one."""
    said = first_json(reply)
    if isinstance(said, dict):
        question, answer = said.get("question"), said.get("answer", "yes")
        if isinstance(question, str) and question.strip():
            no = isinstance(answer, str) and answer.strip().lower().startswith("no")
            return question.strip(), not no
    found = re.search(r"(?:Q:|Question:)\s*(.+?)(?:\n|$)", reply, re.IGNORECASE)
    return (found[1].strip(), True) if found else None


def scores_in(reply: str, count: int) -> list[int | None] | None:
    """The scores that a reply gives to so many questions, in order; None for one that has none, or
    none from 1 to 5. None instead of a list where the reply holds no list of answers, as where it
    broke off.

    Upstream then takes the digits from 1 to 5 in the reply for scores, also those of questions.
    """
    said = first_json(reply)
    if isinstance(said, dict):
        said = said.get("answers", said.get("scores"))
    if not isinstance(said, list):
        return None
    given = [s.get("score", s.get("answer")) if isinstance(s, dict) else s for s in said[:count]]
    return [*map(_score, given), *[None] * (count - len(given))]


def _score(given: Any) -> int | None:
    """A number, rounded, or the first of 1 to 5 that stands alone in a text."""
    if isinstance(given, bool) or not isinstance(given, int | float | str):
        return None
    try:
        score = round(float(given))
    except (ValueError, OverflowError):  # no number, not a finite one, or too large
        found = re.search(r"\b([1-5])\b", given) if isinstance(given, str) else None
        score = int(found[1]) if found else 0
    return score if LOW <= score <= HIGH else None


def answer_of(items: Sequence[Item], reply: str, threshold: float = ENOUGH) -> Answer:
    """What the scores in a reply come to; an abstention, with the reply as its text, where a
    question has none.

    The score is their mean, whatever the right answers are; the verdict is 1 where it is at least
    `threshold`. The reason names the elements that are scored below PROBABLY. The text is JSON, a
    list of the elements with question, right answer and score.
    """
    scores = scores_in(reply, len(items))
    if scores is None:
        return _abstain("the reply holds no list of scores", reply)
    known = [score for score in scores if score is not None]
    if len(known) < len(items):
        missing = items[scores.index(None)]
        return _abstain(f"no score from {LOW} to {HIGH} for {missing.element}", reply)
    rows, mean = list(zip(items, known, strict=True)), sum(known) / len(known)
    kept = [
        {"element": i.element, "question": i.question, "answer": "yes" if i.yes else "no",
         "score": score}
        for i, score in rows
    ]  # fmt: skip
    return Answer(
        verdict=int(mean >= threshold),
        score=mean,
        text=json.dumps(kept, ensure_ascii=False),
        reason="; ".join(item.element for item, score in rows if score < PROBABLY) or None,
    )


def _abstain(why: str, reply: str) -> Answer:
    return Answer(verdict=None, text=reply, reason=why)
