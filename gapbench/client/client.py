"""A client of servers that speak OpenAI's protocol (vLLM, SGLang, llama.cpp, a provider).

The judge `server:` and the model `server:` both ask through it.
"""

from __future__ import annotations

import json
import math
import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from email.utils import parsedate_to_datetime
from typing import Any, Final, Literal, TypeVar
from urllib.parse import parse_qsl

import httpx
import tenacity
from PIL import Image

from gapbench.client.addresses import KEYS, Addresses
from gapbench.client.messages import content
from gapbench.client.replies import Reply, Said, read, verdict
from gapbench.fetch.http import open_client
from gapbench.types import Answer, Failure, GapbenchError, Unfinished

LOGPROBS: Final = {"logprobs": True, "top_logprobs": 20}
MAX_TOKENS: Final = 64
OURS: Final = ("model", "messages", "n", "stream")
RENAMED: Final = {"max_tokens": "max_completion_tokens"}
"""Fields that newer models take by another name."""
LARGEST: Final = 10_000_000
"""Bytes of a reply that are read."""
LONGEST_PAUSE: Final = 60.0
"""Seconds between two attempts, whatever the server asks for."""
LIMITS: Final = {"concurrency": 256, "timeout": 86400, "attempts": 100}
"""The options of a client, each with its largest value."""
AWAY: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError)
T = TypeVar("T")


class Client:
    """A model behind `BASE_URL[,BASE_URL...]#MODEL?KEY=VALUE&...`, each address asked `concurrency`
    requests at a time.

    The key comes from GAPBENCH_SERVER_KEY or OPENAI_API_KEY and goes to these addresses alone. All
    of them serve the same; the first, `url`, stands for them. One that fails rests while the others
    are asked.
    `timeout` is seconds a request, all in all; `attempts` of it are made, `pause` seconds before
    the second, doubled for each further one. `concurrency`, `timeout` and `attempts` may stand
    after the `?`; all else there are `fields` of a chat request, such as max_tokens. `largest`
    bounds the bytes of a reply. `served` is what the server calls the model, once it has said so.
    Raises GapbenchError for an address that is not taken (`Addresses`), and for options that cannot
    be used.
    """

    def __init__(
        self,
        kind: Literal["judge", "model"],
        argument: str,
        *,
        timeout: float,
        concurrency: int = 8,
        attempts: int = 5,
        pause: float = 1.0,
        largest: int = LARGEST,
    ) -> None:
        base, _, named = argument.partition("#")
        self._addresses = Addresses(base, kind)
        self.url, *_ = self._addresses.urls
        self.model, _, query = named.partition("?")
        if not self.model:
            raise GapbenchError(
                f"{kind} server needs an address and a model: --{kind} server:BASE_URL#MODEL"
            )
        self.name = f"server-{self.model.rsplit('/', 1)[-1]}"
        self._who = f"{kind} {self.name}"
        options = {"concurrency": concurrency, "timeout": timeout, "attempts": attempts}
        self.fields = _fields(self._who, query, options)
        addresses = len(self._addresses.urls)
        self.concurrency = int(options["concurrency"]) * addresses
        self._attempts = int(options["attempts"]) * addresses
        self._timeout, self._pause, self._largest = options["timeout"], pause, largest
        self._key = next((value for name in KEYS if (value := os.environ.get(name))), "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise GapbenchError(f"{' or '.join(KEYS)} holds characters that no key has")
        # Also as JSON may escape it.
        signs = (rf"(?:\\?{re.escape(sign)}|\\u{ord(sign):04x})" for sign in self._key)
        self._secret = re.compile("".join(signs), re.IGNORECASE) if self._key else None
        self.served: str | None = None
        self._refused: frozenset[str] | None = None
        self._http: dict[str, httpx.Client] = {}
        self.max_tokens: int = self.fields.get(self.limit, MAX_TOKENS)
        """The limit of an answer's tokens."""
        if type(self.max_tokens) is not int or self.max_tokens < 1:
            given = f"{self._who}: {self.limit}={self.max_tokens}"
            raise GapbenchError(f"{given}: give a whole number, 1 or more")

    @property
    def limit(self) -> str:
        """The field that limits an answer's tokens."""
        names = (name for pair in RENAMED.items() for name in pair)
        return next((name for name in names if name in self.fields), "max_tokens")

    def reach(self) -> None:
        """Raises GapbenchError where there is no server at an address."""
        for url in self._addresses.urls:
            try:
                with self._connect(url).stream("GET", url + "/models", timeout=10):
                    pass  # whatever it says: it is there
            except AWAY as error:
                raise self._away(url, error) from error
            except httpx.TransportError:
                pass

    def rows(self, calls: Sequence[Callable[[threading.Event], T | Failure]]) -> list[T]:
        """What each call returns, in order.

        A call is given an event; when it is set, no further attempt is worth a wait. Raises
        Unfinished where calls fail: one that raises GapbenchError ends the others.
        """
        for url in self._addresses.urls:
            self._connect(url)
        stop = threading.Event()
        pool = ThreadPoolExecutor(self.concurrency)
        fatal: list[GapbenchError] = []

        def one(call: Callable[[threading.Event], T | Failure]) -> T | Failure | None:
            try:
                return None if fatal else call(stop)
            except GapbenchError as error:
                fatal.append(error)  # the server is away, or refuses the key: no use to go on
                stop.set()
            return None

        try:
            rows = dict(enumerate(pool.map(one, calls)))
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
        failed = {place: row for place, row in rows.items() if isinstance(row, Failure)}
        done: dict[int, T] = {
            place: row
            for place, row in rows.items()
            if row is not None and not isinstance(row, Failure)
        }
        if fatal:
            raise Unfinished(str(fatal[0]), done) from fatal[0]
        if failed:
            if self._refused is None:  # nothing was ever taken: the fault need not be the row's
                failed = {place: replace(row, final=False) for place, row in failed.items()}
            first = next(iter(failed.values()))
            raise Unfinished(
                f"{self._who}: {len(failed)} of {len(rows)} requests failed: {first.reason}",
                done,
                failed,
            )
        return list(done.values())

    def close(self) -> None:
        for each in self._http.values():
            each.close()
        self._http = {}

    def chat(
        self,
        image: Image.Image,
        question: str,
        optional: Sequence[Mapping[str, Any]],
        stop: threading.Event,
    ) -> Answer | Failure:
        """The verdict on an image; `optional` are fields as `send` takes them."""
        said = self.ask(image, question, optional, stop)
        return verdict(said) if isinstance(said, Said) else said

    def ask(
        self,
        image: Image.Image,
        question: str,
        optional: Sequence[Mapping[str, Any]],
        stop: threading.Event,
    ) -> Said | Answer | Failure:
        """What the model says of an image, or an abstention where it says nothing."""
        messages = [{"role": "user", "content": content([image, question])}]
        payload = {"messages": messages, self.limit: MAX_TOKENS, **self.fields}
        reply = self.send("/chat/completions", payload, optional, stop)
        return reply if isinstance(reply, Failure) else read(reply)

    def send(
        self,
        path: str,
        payload: Mapping[str, Any],
        optional: Sequence[Mapping[str, Any]],
        stop: threading.Event,
    ) -> Reply | Failure:
        """The reply to the payload, or why there is none.

        Some servers refuse some of the `optional` fields: one that the refusal names is left out;
        where it names none and nothing was taken yet, one group after the other. So are later
        requests then sent. The limit of an answer's tokens is renamed, and never left out.
        """
        mine = {name: value for group in optional for name, value in group.items()} | {**payload}
        groups = [set(group) - set(payload) for group in optional]
        may_go = set().union(*groups, RENAMED)
        refused, first = set(self._refused or ()), None
        while True:
            fields = {name: value for name, value in mine.items() if name not in refused}
            for old, new in RENAMED.items():
                if old in mine and old in refused and new not in refused:
                    fields[new] = mine[old]
            reply = self._send(path, {"model": self.model, **fields}, stop)
            if isinstance(reply, Failure):
                return reply
            if reply.status == 200:
                self._refused = frozenset(refused)
                self.served = self._served(reply)
                return reply
            first = first or reply
            named = _named(reply.text, may_go & set(fields))
            if named is None and self._refused is None:
                named = next((group & set(fields) for group in groups if group & set(fields)), None)
            if reply.status not in (400, 422) or not named:
                break
            refused |= named
        self._check(first, path)
        return Failure(f"the server gave status {first.status}: {first.short()}", final=True)

    def _check(self, reply: Reply, path: str) -> None:
        """Raises GapbenchError where a refusal is of the key or the model, not of the request."""
        if reply.status == 401 or (reply.status == 403 and self._refused is None):
            raise GapbenchError(
                f"{self._who}: {self.url} refuses the key (status {reply.status}); set {KEYS[0]}"
            )
        if reply.status == 404:
            raise GapbenchError(
                f"{self._who}: {self.url}{path} knows no model {self.model!r}, or the "
                f"address is wrong (status 404: {reply.short()})"
            )

    def _served(self, reply: Reply) -> str | None:
        said = reply.body.get("model") if isinstance(reply.body, dict) else None
        return said[:200] if isinstance(said, str) and said else self.served

    def _connect(self, url: str) -> httpx.Client:
        if url not in self._http:
            headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
            self._http[url] = open_client(
                httpx.URL(url),
                # No compression: a small reply cannot unpack to a large one.
                headers={**headers, "Accept-Encoding": "identity"},
                timeout=self._timeout,
                limits=httpx.Limits(max_connections=self.concurrency),
            )
        return self._http[url]

    def _send(self, path: str, payload: dict[str, Any], stop: threading.Event) -> Reply | Failure:
        """The reply, or why there is none after all attempts."""
        doubled = tenacity.wait_exponential(self._pause)
        last = self.url

        def post() -> Reply:
            nonlocal last
            with self._addresses.taken() as last:
                reply = self._post(last, path, payload)
            if not reply.trouble:
                self._addresses.fine(last)
            return reply

        def pause(tried: tenacity.RetryCallState) -> float:
            return self._addresses.rest(last, _wait(tried, doubled(tried)), LONGEST_PAUSE)

        asking = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(httpx.TransportError)
            | tenacity.retry_if_result(lambda reply: reply.trouble and reply.status != 402),
            wait=pause,
            # The pause is made here: the event ends it, and no further attempt is made.
            stop=lambda tried: (
                tried.attempt_number == self._attempts or stop.wait(tried.upcoming_sleep)
            ),
            sleep=lambda _seconds: None,
        )
        try:
            reply = asking(post)
        except tenacity.RetryError as over:
            error = over.last_attempt.exception()
            if error is None:
                reason = over.last_attempt.result().trouble
            elif isinstance(error, AWAY):
                raise self._away(last, error) from error
            elif isinstance(error, httpx.TimeoutException):
                reason = f"the server did not answer within {self._timeout:g} s"
            else:
                reason = f"the connection failed ({self._told(error)})"
            return Failure(f"{reason}, {self._attempts} times")
        if reply.trouble:
            return Failure(f"{reply.trouble}: {reply.short()}")
        return reply

    def _away(self, url: str, error: BaseException) -> GapbenchError:
        return GapbenchError(
            f"{self._who}: {url} cannot be reached: the connection failed "
            f"({self._told(error)}); start the server and run the same command again"
        )

    def _told(self, error: BaseException) -> str:
        return self._clean(str(error)) or type(error).__name__

    def _post(self, url: str, path: str, payload: dict[str, Any]) -> Reply:
        """One request. The time-out bounds it whole: a server may also trickle for ever."""
        deadline, body = time.monotonic() + self._timeout, bytearray()
        with self._connect(url).stream("POST", url + path, json=payload) as response:
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
        return self._secret.sub("***", text) if self._secret else text


def value(given: Any) -> Any:
    """A field's value: JSON where it is, else the text. 5.0 is 5: one value makes one run."""
    with suppress(ValueError, TypeError):
        return json.loads(given, parse_float=_number)
    return given


def _number(text: str) -> float:
    number = float(text)
    return int(number) if number.is_integer() else number


def _fields(who: str, query: str, options: dict[str, float]) -> dict[str, Any]:
    """The fields of a request among KEY=VALUE&...; what else is there replaces `options`."""
    try:
        given = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError as error:
        raise GapbenchError(
            f"{who}: what stands after ? must be KEY=VALUE, several joined by &, not {query!r}"
        ) from error
    fields = {key: value(text) for key, text in given}
    for name, most in LIMITS.items():
        if name not in fields:
            continue
        number, least = fields.pop(name), 0 if name == "timeout" else 1
        whole = name == "timeout" or isinstance(number, int)
        fine = type(number) in (int, float) and whole and least <= number <= most and number
        if not fine:
            raise GapbenchError(f"{who}: {name} must be a number up to {most}, not {number!r}")
        options[name] = number
    if ours := [name for name in OURS if name in fields]:
        raise GapbenchError(f"{who}: gapbench sets {ours[0]} in each request; take it out")
    return fields


def _named(text: str, names: set[str]) -> set[str] | None:
    """Of the names, the one that a refusal names first."""
    places = {
        match.start(): name
        for name in names
        if (match := re.search(rf"(?<![\w\\]){re.escape(name)}(?!\w)", text))
    }
    return {places[min(places)]} if places else None


def _wait(tried: tenacity.RetryCallState, least: float) -> float:
    """Seconds that the server asks to wait, as a number or a date; `least` where they are less."""
    last, seconds = tried.outcome, math.nan
    said = "" if last is None or last.failed else last.result().headers.get("retry-after")
    with suppress(ValueError, TypeError):
        seconds = parsedate_to_datetime(said).timestamp() - time.time()
    with suppress(ValueError, TypeError):
        seconds = float(said)
    return min(max(seconds, least) if math.isfinite(seconds) else least, LONGEST_PAUSE)
