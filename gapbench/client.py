"""A client of servers that speak OpenAI's protocol (vLLM, SGLang, llama.cpp, a provider).

The judge `server:` and the model `server:` both ask through it.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import math
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from io import BytesIO
from typing import Any, Final, Literal, TypeVar

import httpx
import numpy as np
import tenacity
from PIL import Image

from gapbench.types import Answer, GapbenchError
from gapbench.verdict import READ, parse, weigh

KEYS: Final = ("GAPBENCH_SERVER_KEY", "OPENAI_API_KEY")
LOGPROBS: Final = {"logprobs": True, "top_logprobs": 20}
LARGEST: Final = 10_000_000
"""Bytes of a reply that are read."""
CUT: Final = ("length", "max_tokens")
"""What servers call the end of a reply at the limit of tokens."""
LONGEST_PAUSE: Final = 60.0
"""Seconds between two attempts, whatever the server asks for."""
T = TypeVar("T")


class Client:
    """A model behind `BASE_URL#MODEL`, asked `concurrency` requests at a time.

    The key comes from GAPBENCH_SERVER_KEY or OPENAI_API_KEY and goes to that address alone.
    `timeout` is seconds a request, all in all; `attempts` of it are made, `pause` seconds before
    the second, doubled for each further one. None of these changes an answer. `largest` bounds the
    bytes of a reply. Raises GapbenchError for an address that is neither https nor this machine.
    """

    def __init__(
        self,
        kind: Literal["judge", "model"],
        argument: str,
        *,
        concurrency: int,
        timeout: float,
        attempts: int,
        pause: float,
        largest: int = LARGEST,
    ) -> None:
        base, _, self.model = argument.partition("#")
        self.url = _checked(base, kind)
        if not self.model:
            raise GapbenchError(
                f"{kind} server needs an address and a model: --{kind} server:BASE_URL#MODEL"
            )
        self.name = f"server-{self.model.rsplit('/', 1)[-1]}"
        self._who = f"{kind} {self.name}"
        self._concurrency, self._timeout = concurrency, timeout
        self._attempts, self._pause, self._largest = attempts, pause, largest
        self._key = next((value for name in KEYS if (value := os.environ.get(name))), "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise GapbenchError(f"{' or '.join(KEYS)} holds characters that no key has")
        self._taken: int | None = None
        self._http: httpx.Client | None = None

    def together(self, calls: Sequence[Callable[[threading.Event], T]]) -> list[T | GapbenchError]:
        """What each call returns, in order, or the GapbenchError that ended them all.

        A call is given an event; when it is set, no further attempt is worth a wait.
        """
        self._connect()
        stop = threading.Event()
        pool = ThreadPoolExecutor(self._concurrency)
        fatal: list[GapbenchError] = []

        def one(call: Callable[[threading.Event], T]) -> T | GapbenchError:
            try:
                if not fatal:
                    return call(stop)
            except GapbenchError as error:
                fatal.append(error)  # the server is away, or refuses the key: no use to go on
                stop.set()
            return fatal[0]

        try:
            return list(pool.map(one, calls))
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)

    def close(self) -> None:
        if self._http is not None:
            self._http.close()
        self._http = None

    def chat(
        self,
        image: Image.Image,
        question: str,
        variants: Sequence[Mapping[str, Any]],
        stop: threading.Event,
    ) -> Answer:
        """The verdict on an image: by the probabilities of the two digits where the server gives
        both among the likeliest tokens, else by the words; abstained where it gives neither.

        `variants` are settings to ask with, the fullest first.
        """
        buffer = BytesIO()
        image.save(buffer, "PNG")
        picture = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
        content = [
            {"type": "image_url", "image_url": {"url": picture}},
            {"type": "text", "text": question},
        ]
        message = {"role": "user", "content": content}
        said = self.send("/chat/completions", {"messages": [message]}, variants, stop)
        return Answer(verdict=None, reason=said) if isinstance(said, str) else _read(said)

    def send(
        self,
        path: str,
        payload: Mapping[str, Any],
        variants: Sequence[Mapping[str, Any]],
        stop: threading.Event,
    ) -> Reply | str:
        """The reply to the payload with the first variant of settings that the server takes (the
        one it is asked with from then on), or why there is none."""
        replies: list[Reply | str] = []
        for place in range(len(variants)) if self._taken is None else [self._taken]:
            reply = self._send(path, {"model": self.model, **payload, **variants[place]}, stop)
            if not isinstance(reply, str) and reply.status == 200:
                self._taken = place
                return reply
            replies.append(reply)
            if isinstance(reply, str) or reply.status not in (400, 422):
                break
        return replies[0]

    def _connect(self) -> httpx.Client:
        if self._http is None:
            headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
            self._http = httpx.Client(
                # No compression: a small reply cannot unpack to a large one.
                headers={**headers, "Accept-Encoding": "identity"},
                timeout=self._timeout,
                # No proxy stands between this machine and itself.
                trust_env=not _is_loopback(httpx.URL(self.url).host),
                limits=httpx.Limits(max_connections=self._concurrency),
            )
        return self._http

    def _send(self, path: str, payload: dict[str, Any], stop: threading.Event) -> Reply | str:
        """The reply, or why there is none after all attempts."""
        doubled = tenacity.wait_exponential(self._pause)
        asking = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(httpx.TransportError)
            | tenacity.retry_if_result(lambda reply: reply.status == 429 or reply.status >= 500),
            wait=lambda tried: _wait(tried, doubled(tried)),
            # The pause is made here: the event ends it, and no further attempt is made.
            stop=lambda tried: (
                tried.attempt_number == self._attempts or stop.wait(tried.upcoming_sleep)
            ),
            sleep=lambda _seconds: None,
        )
        try:
            reply = asking(self._post, path, payload)
        except tenacity.RetryError as over:
            error = over.last_attempt.exception()
            if error is None:
                reason = f"the server gave status {over.last_attempt.result().status}"
            elif isinstance(error, httpx.TimeoutException):
                reason = f"the server did not answer within {self._timeout:g} s"
            else:
                what = self._clean(str(error)) or type(error).__name__
                reason = f"the connection failed ({what})"
            if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
                raise GapbenchError(
                    f"{self._who}: {self.url} cannot be reached: {reason}; start the server and "
                    "run the same command again"
                ) from error
            return f"{reason}, {self._attempts} times"
        if reply.status in (401, 403):
            raise GapbenchError(
                f"{self._who}: {self.url} refuses the key (status {reply.status}); set {KEYS[0]}"
            )
        if reply.status == 404:
            raise GapbenchError(
                f"{self._who}: {self.url}{path} knows no model {self.model!r}, or the "
                f"address is wrong (status 404: {' '.join(reply.text[:200].split())})"
            )
        return reply

    def _post(self, path: str, payload: dict[str, Any]) -> Reply:
        """One request. The time-out bounds it whole: a server may also trickle for ever."""
        deadline, body = time.monotonic() + self._timeout, bytearray()
        with self._connect().stream("POST", self.url + path, json=payload) as response:
            for piece in response.iter_raw():
                body += piece
                if len(body) > self._largest:
                    break
                if time.monotonic() > deadline:
                    raise httpx.ReadTimeout("trickle")
            text = self._clean(body.decode("utf-8", "replace"))
            return Reply(response.status_code, response.headers, text)

    def _clean(self, text: str) -> str:
        """Some servers quote the key that they refuse."""
        return text.replace(self._key, "***") if self._key else text


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answered."""

    status: int
    headers: Mapping[str, str]
    text: str


def _checked(base: str, kind: str) -> str:
    """The address without its last slash. Raises GapbenchError where it is not one to send to."""
    try:
        url = httpx.URL(base.rstrip("/"))
        fine = url.scheme in {"http", "https"} and url.host and not (url.query or url.fragment)
    except httpx.InvalidURL:
        fine = False
    if not fine:
        raise GapbenchError(
            f"{kind} server: {base.rpartition('@')[2]!r} is no address; use --{kind} "
            "server:https://HOST/v1#MODEL"
        )
    if url.userinfo:
        raise GapbenchError(f"{kind} server: take the key out of the address and set {KEYS[0]}")
    if url.scheme != "https" and not _is_loopback(url.host):
        raise GapbenchError(
            f"{kind} server: {url.host} is another machine, so the address must be https; images "
            "and the key would travel in the clear"
        )
    return str(url)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _wait(tried: tenacity.RetryCallState, otherwise: float) -> float:
    """Seconds that the server asks to wait, as a number or a date; else, `otherwise`."""
    last, seconds = tried.outcome, math.nan
    said = "" if last is None or last.failed else last.result().headers.get("retry-after")
    with suppress(ValueError, TypeError):
        seconds = parsedate_to_datetime(said).timestamp() - time.time()
    with suppress(ValueError, TypeError):
        seconds = float(said)
    return min(max(seconds, 0.0) if math.isfinite(seconds) else otherwise, LONGEST_PAUSE)


def _read(reply: Reply) -> Answer:
    """The answer in a reply that came through."""
    if reply.status != 200:
        reason = f"the server gave status {reply.status}: {reply.text[:200]}"
        return Answer(verdict=None, reason=reason)
    kind = reply.headers.get("content-type", "")
    if "json" not in kind:
        return Answer(verdict=None, reason=f"the reply is {kind or 'of no type'}, not JSON")
    try:
        choice = json.loads(reply.text)["choices"][0]
        message, ended = choice["message"], choice.get("finish_reason")
        refusal, text = message.get("refusal"), message.get("content")
    except (ValueError, RecursionError):
        return Answer(verdict=None, reason="the reply is not whole JSON")
    except (LookupError, TypeError, AttributeError):
        return Answer(verdict=None, reason="the reply is no chat completion")
    if refusal or ended == "content_filter":
        return Answer(verdict=None, reason=f"the server refused: {str(refusal or ended)[:200]}")
    if not isinstance(text, str):
        return Answer(verdict=None, reason="the reply is no chat completion")
    # Half a surrogate pair is JSON, but no text that can be written down.
    text = text.encode("utf-8", "replace").decode()
    said = replace(parse(text, cut=str(ended).lower() in CUT), text=text[-READ:])
    odds = None if said.verdict is None else _odds(choice.get("logprobs"))
    weighed = weigh(*odds) if odds else said
    return said if weighed.verdict is None else replace(weighed, text=said.text)


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
                if likely["token"].strip() in odds and math.isfinite(value):
                    odds[likely["token"].strip()].append(float(value))
            if all(odds.values()):
                no, yes = (float(np.logaddexp.reduce(odds[digit])) for digit in "01")
                return no, yes
            return None
    except (LookupError, TypeError, AttributeError, ValueError, OverflowError):
        pass  # not of the documented form: then the words decide
    return None
