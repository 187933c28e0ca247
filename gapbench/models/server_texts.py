"""Chats that a model behind a server goes on with, and answers in them that it scores.

Scores need a server that tells the log-probabilities of a prompt's tokens. vLLM's chat/completions
does (vllm/entrypoints/openai/chat_completion/protocol.py). The older `completions` with `echo`
takes no images and knows no chat format.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from gapbench.client.client import Client
from gapbench.client.messages import content
from gapbench.client.replies import Reply, Said, read
from gapbench.models.turns import Talk, cut
from gapbench.types import Failure, GapbenchError, Unfinished

IDS: Final = {"return_token_ids": True}
LOGPROBS: Final = {**IDS, "prompt_logprobs": 1}
CONTINUED: Final = {"add_generation_prompt": False, "continue_final_message": True}
EXTRA: Final = (*LOGPROBS, *CONTINUED)
"""vLLM's own fields."""
VLLM: Final = "or serve the model with vLLM, 0.10.2 or later"
SCORES: Final = (
    "cannot score a given answer, as multiple_choice and loglikelihood tasks want; choose tasks "
    f"that generate their answers, {VLLM}"
)
GOES_ON: Final = (
    "does not show that it goes on with an answer that is begun; choose tasks that begin none, "
    f"{VLLM}"
)
STOPS: Final = 4
"""Stop words that OpenAI's protocol takes. An answer is cut here at all of them."""
PART: Final = "\N{REPLACEMENT CHARACTER}"
"""In the text of a token that is a part of a character."""


@dataclass(frozen=True)
class Texts:
    """Asks `client`; `optional` are fields of each request, as `Client.send` takes them."""

    client: Client
    optional: Sequence[Mapping[str, Any]]

    def complete(self, talks: Sequence[Talk], tokens: int, until: Sequence[str]) -> list[str]:
        """How chats go on, as `Model.complete`. A limit of tokens in the client's address replaces
        `tokens`. Raises Unfinished, as `Client.rows` does."""
        return self.client.rows([partial(self._said, talk, tokens, until) for talk in talks])

    def score(self, talks: Sequence[Talk], endings: Sequence[str]) -> list[tuple[float, bool]]:
        """How likely endings are, as `Model.score`: by the tokens that a chat has with its ending
        and not without. Of a chat that comes again, the same object is asked for once.

        Raises Unfinished, as `Client.rows` does.
        """
        alone = {id(talk): talk for talk in talks}
        try:
            heads = self.client.rows([partial(self._head, talk) for talk in alone.values()])
        except Unfinished as stop:
            raise Unfinished(str(stop), {}) from stop  # its places are not those of the endings
        head = dict(zip(alone, heads, strict=True))
        rows = zip(talks, endings, strict=True)
        return self.client.rows([partial(self._scored, t, end, head[id(t)]) for t, end in rows])

    def _said(
        self, talk: Talk, tokens: int, until: Sequence[str], stop: threading.Event
    ) -> str | Failure:
        fields = {self.client.limit: tokens, **self.client.fields}
        words = [word for word in until if word][:STOPS]
        stops = [{"stop": words}] if words else []
        if talk.begun:
            reply = self._told(talk, fields | IDS, GOES_ON, stop, stops)
        else:
            reply = self._send(talk, fields, stop, stops)
        if isinstance(reply, Failure):
            return reply
        said = read(reply)
        if isinstance(said, Failure):
            return said
        if not isinstance(said, Said):
            return Failure(str(said.reason), final=True)
        used, most = _used(reply), fields[self.client.limit]
        if said.cut and used < most:
            why = f"the server cut the reply at {used} of {most} tokens, as it does a long text's"
            return Failure(why, final=True)
        return cut(said.text, until)

    def _head(self, talk: Talk, stop: threading.Event) -> list[int] | Failure:
        """The token ids of a chat up to the answer, or up to the end of what is begun of it."""
        reply = self._told(talk, self._least | IDS, SCORES, stop)
        return reply if isinstance(reply, Failure) else list(reply.body["prompt_token_ids"])

    def _scored(
        self, talk: Talk, ending: str, head: list[int], stop: threading.Event
    ) -> tuple[float, bool] | Failure:
        whole = Talk(talk.turns, talk.begun + ending)
        reply = self._told(whole, self._least | LOGPROBS, SCORES, stop)
        if isinstance(reply, Failure):
            return reply
        ids, start = reply.body["prompt_token_ids"], len(head)
        if ids[:start] != head or len(ids) == start:
            return Failure(
                f"the answer {ending!r} has no tokens of its own in the chat", final=True
            )
        try:
            told = list(zip(ids, reply.body["prompt_logprobs"], strict=True))[start:]
            tokens = [place[str(token)] for token, place in told]
            values = [float(token["logprob"]) for token in tokens]
            most = [max(float(one["logprob"]) for one in place.values()) for _, place in told]
            said = "".join(str(token.get("decoded_token") or PART) for token in tokens)
            if not all(-math.inf < value <= 1e-6 for value in values):
                raise ValueError
        except (LookupError, TypeError, ValueError, OverflowError, AttributeError):
            why = "its reply has no prompt_logprobs, or none of some tokens"
            raise self._cannot(SCORES, why) from None
        if PART not in said and _bare(said) != _bare(ending):
            return Failure(f"the chat's format makes {said!r} of the answer {ending!r}", final=True)
        return sum(values), values == most

    @property
    def _least(self) -> dict[str, Any]:
        """The fields of a request whose answer nobody reads."""
        return {**self.client.fields, self.client.limit: 1}

    def _told(
        self,
        talk: Talk,
        fields: Mapping[str, Any],
        cannot: str,
        stop: threading.Event,
        optional: Sequence[Mapping[str, Any]] = (),
    ) -> Reply | Failure:
        """A reply with the prompt's token ids. Raises GapbenchError where the server knows no
        such fields."""
        reply = self._send(talk, fields, stop, optional)
        if isinstance(reply, Failure):
            if any(name in reply.reason for name in EXTRA):
                raise self._cannot(cannot, reply.reason)
            return reply
        ids = reply.body.get("prompt_token_ids") if isinstance(reply.body, dict) else None
        if not (isinstance(ids, list) and ids):
            raise self._cannot(cannot, "its reply has no prompt_token_ids")
        return reply

    def _send(
        self,
        talk: Talk,
        fields: Mapping[str, Any],
        stop: threading.Event,
        optional: Sequence[Mapping[str, Any]] = (),
    ) -> Reply | Failure:
        messages = [{"role": role, "content": content(parts)} for role, parts in talk.turns]
        payload: dict[str, Any] = {"messages": messages, **fields}
        # The chat format has the blank before an answer.
        if begun := talk.begun.lstrip():
            messages.append({"role": "assistant", "content": begun})
            payload |= CONTINUED
        return self.client.send("/chat/completions", payload, [*optional, *self.optional], stop)

    def _cannot(self, cannot: str, why: str) -> GapbenchError:
        return GapbenchError(f"model {self.client.name}: its server {cannot} ({why})")


def _used(reply: Reply) -> float:
    """The tokens of an answer, as far as the server counts them."""
    usage = reply.body.get("usage")
    used = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return used if isinstance(used, int) else math.inf


def _bare(text: str) -> str:
    """Without blanks, which tokens alone may lack."""
    return "".join(text.split())
