"""The verdict question, its two answers, and what a reply says (paper, section 1)."""

from __future__ import annotations

import math
import re
from typing import Final

from gapbench.types import Answer

QUESTION: Final = (
    "You are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using natural "
    "language. Does this original image describe {prompt}? If it describes the scene, score 1; if "
    "it does not fully describe, score 0. Please answer in the following format: The score is "
    "{your score}."
)
"""The paper's verdict question (section 1), word for word; "{your score}" is literal."""
ANSWERS: Final = (" The score is 0", " The score is 1")
"""What the verdict question asks for (paper section 1), up to the digit that decides."""
_SCORE: Final = re.compile(
    r"\bscore[\s*]*(?:is|of)?[\s*]*[:=]?[\s{\[(\"'`*]*([01])\b(?![.,]\d)"
    r"(?!\s*(?:/|out\s+of)\s*(?!1\b)\d)",  # 1 of 10 is no 1
    re.IGNORECASE,
)
_BARE: Final = re.compile(r"^[{\[\"'*\s]*([01])[}\]\"'*\s.]*$")


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
