"""The model as judge of its own images."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Final, Literal

from PIL import Image

from gapbench.fetch import Source
from gapbench.hub import Checkpoint
from gapbench.models.base import AnsweringModel, Model, Unfinished
from gapbench.types import Answer, Prompt

ANSWERS: Final = (" The score is 0", " The score is 1")
"""What the verdict question asks for (paper section 1), up to the digit that decides."""
Mode = Literal["logits", "text"]
NAMES: Final[dict[Mode, str]] = {"logits": "self", "text": "self-text"}
NEEDS: Final[dict[Mode, str]] = {"logits": "judge_logits", "text": "judge_text"}
_SCORE: Final = re.compile(
    r"\bscore[\s*]*(?:is|of)?[\s*]*[:=]?[\s{\[(\"'`*]*([01])\b(?![.,]\d)"
    r"(?!\s*(?:/|out\s+of)\s*(?!1\b)\d)",  # 1 of 10 is no 1
    re.IGNORECASE,
)
_BARE: Final = re.compile(r"^[{\[\"'*\s]*([01])[}\]\"'*\s.]*$")


class OwnJudge:
    """Asks a model the verdict question: by the probabilities of the two answers, or in words."""

    def __init__(self, model: Model, mode: Mode) -> None:
        self.model, self.mode = model, mode
        self.name = NAMES[mode]
        self.fingerprint = f"{self.name}-1-{model.fingerprint}"
        self.needs: Sequence[Source | Checkpoint] = ()

    def question(self, prompt: Prompt) -> str:
        return prompt.question

    def judge(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Answer]:
        questions = [prompt.question for prompt in prompts]
        if isinstance(self.model, AnsweringModel):
            return self.model.answers(images, questions, words=self.mode == "text")
        try:
            if self.mode == "text":
                return [parse(text) for text in self.model.reply(images, questions)]
            found = self.model.judge(images, questions, ANSWERS)
            return [weigh(float(no), float(yes)) for no, yes in found]
        except Unfinished as stop:
            read = parse if self.mode == "text" else lambda odds: weigh(*odds)
            done = {place: read(said) for place, said in stop.done.items()}
            raise Unfinished(str(stop), done) from stop

    def release(self) -> None:
        self.model.release()


def weigh(no: float, yes: float) -> Answer:
    """An answer from the log-probabilities of "The score is 0" and "... 1"; a tie is a 0."""
    if math.isnan(no + yes) or math.isinf(max(no, yes)):
        return Answer(verdict=None, reason=f"log-probabilities of the answers are {no} and {yes}")
    p_yes = 1 / (1 + math.exp(min(no - yes, 700.0)))
    return Answer(verdict=int(p_yes > 0.5), p_yes=p_yes, mass=math.exp(no) + math.exp(yes))


def parse(text: str) -> Answer:
    """An answer from words: the last "score is 0" or "1", or a reply that is just the digit."""
    found = _SCORE.findall(text) or _BARE.findall(text)
    if not found:
        return Answer(verdict=None, text=text, reason="the reply names no score of 0 or 1")
    return Answer(verdict=int(found[-1]), text=text)
