"""What a server replies, and the verdict in a chat completion."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

import numpy as np

from gapbench.types import Answer, Failure
from gapbench.verdict import READ, parse, weigh

CUT: Final = ("length", "max_tokens")
"""What servers call the end of a reply at the limit of tokens."""
LATER: Final = (402, 408, 409, 425, 429)
"""Statuses below 500 that say nothing about the request: no credit, too busy, too many."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answered; `body` is its JSON, whatever type it is sent as, or None."""

    status: int
    headers: Mapping[str, str]
    text: str
    body: Any = field(init=False)

    def __post_init__(self) -> None:
        try:
            body = json.loads(self.text)
        except (ValueError, RecursionError):
            body = None
        object.__setattr__(self, "body", body)

    @property
    def trouble(self) -> str | None:
        """Why the server did not get to the request, also where it says so with status 200."""
        error = self.body.get("error") if isinstance(self.body, dict) else None
        if self.status != 200:
            says_nothing = self.status in LATER or not 400 <= self.status < 500
            return f"the server gave status {self.status}" if says_nothing else None
        if error:
            return f"the server gave status 200 with the error {_short(error)}"
        if self.body is None:
            kind = self.headers.get("content-type", "")
            return f"the reply is {'broken' if 'json' in kind else kind or 'of no type'}, not JSON"
        return None

    def short(self) -> str:
        """Its first words, in one line."""
        return _short(self.text)


def _short(said: object) -> str:
    return " ".join(str(said)[:200].split())


class Said(NamedTuple):
    """What a model said: its text, whether it was cut at the limit of tokens, and the
    log-probabilities of its tokens as the server tells them, in any form."""

    text: str
    cut: bool
    logprobs: Any

    def first(self, word: str) -> dict[str, float]:
        """The probabilities of the likeliest tokens at the first place; empty where the token there
        is not the whole of the text's first `word`, or none are told."""
        try:
            place = self.logprobs["content"][0]
            if place["token"].strip() != word:
                return {}
            likely = [(each["token"], each["logprob"]) for each in place["top_logprobs"]]
            return {token: math.exp(value) for token, value in likely if -math.inf < value <= 0}
        except (LookupError, TypeError, AttributeError):
            return {}  # not of the documented form


def read(reply: Reply) -> Said | Answer | Failure:
    """What stands in a chat completion; an abstention where that is a refusal or nothing."""
    try:
        choice = reply.body["choices"][0]
        message, ended = choice["message"], str(choice.get("finish_reason")).lower()
        refusal, text = message.get("refusal"), _text(message.get("content"))
        reasoning = message.get("reasoning_content") or message.get("reasoning")
    except (LookupError, TypeError, AttributeError):
        return Failure("the reply is no chat completion")
    if error := choice.get("error"):
        return Failure(f"the server gave the error {_short(error)}")
    if refusal or ended == "content_filter":
        return Answer(verdict=None, reason=f"the server refused: {_short(refusal or ended)}")
    cut = ended in CUT
    if not text.strip() and reasoning:
        until = ", cut at the limit of tokens: raise max_tokens" if cut else ""
        return Answer(verdict=None, reason=f"only reasoning came{until}")
    # Half a surrogate pair is JSON, but no text that can be written down.
    return Said(text.encode("utf-8", "replace").decode(), cut, choice.get("logprobs"))


def verdict(said: Said) -> Answer:
    """The verdict in a reply: by the probabilities of the two digits where it has both among the
    likeliest tokens, else by the words; abstained where it has neither."""
    spoken = replace(parse(said.text, cut=said.cut), text=said.text[-READ:])
    odds = None if spoken.verdict is None else _odds(said.logprobs)
    weighed = weigh(*odds) if odds else spoken
    return spoken if weighed.verdict is None else replace(weighed, text=spoken.text)


def _text(content: Any) -> str:
    """The text of a message: it may come in parts, of which some are reasoning."""
    if isinstance(content, str) or content is None:
        return content or ""
    return "".join(part["text"] for part in content if part["type"] in ("text", "output_text"))


def _odds(logprobs: Any) -> tuple[float, float] | None:
    """Log-probabilities of 0 and 1 at the digit that decides; None where either is not told."""
    try:
        places = logprobs["content"][-READ:]
        tokens = [place["token"] for place in places]
        digits = [index for index, token in enumerate(tokens) if token.strip() in {"0", "1"}]
        for index in reversed(digits[-20:]):
            # The digit that decides is where another one would have changed the verdict.
            token, rest = tokens[index], tokens[index + 1 :]
            texts = [
                "".join([*tokens[:index], token.replace(token.strip(), d), *rest]) for d in "01"
            ]
            if [parse(text).verdict for text in texts] != [0, 1]:
                continue
            odds: dict[str, list[float]] = {"0": [], "1": []}
            for likely in places[index]["top_logprobs"]:
                value = likely["logprob"]
                if likely["token"].strip() in odds and -math.inf < value <= 0:
                    odds[likely["token"].strip()].append(float(value))
            if all(odds.values()):
                no, yes = (float(np.logaddexp.reduce(odds[digit])) for digit in "01")
                return no, yes
            return None
    except (LookupError, TypeError, AttributeError, ValueError, OverflowError):
        pass  # not of the documented form: then the words decide
    return None
