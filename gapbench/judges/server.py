"""Any server that speaks OpenAI's chat completions (vLLM, SGLang, llama.cpp, a provider)."""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import json
import math
import os
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from io import BytesIO
from typing import Any, Final

import httpx
from PIL import Image

from gapbench.fetch import Source
from gapbench.hub import Checkpoint
from gapbench.judges.own import parse, weigh
from gapbench.types import Answer, GapbenchError, Prompt

KEYS: Final = ("GAPBENCH_SERVER_KEY", "OPENAI_API_KEY")
SETTINGS: Final = {"temperature": 0, "max_tokens": 64, "seed": 0, "n": 1}
LOGPROBS: Final = {"logprobs": True, "top_logprobs": 20}
LARGEST: Final = 10_000_000
"""Bytes of a reply that are read."""
LONGEST: Final = 2000
"""Characters of a reply that are kept."""
LONGEST_PAUSE: Final = 60.0
"""Seconds between two attempts, whatever the server asks for."""
PATCH: Final = 28 * 28
"""Pixels a token stands for in Qwen2.5-VL; other models differ, so a cost from it is rough."""


class ServerJudge:
    """`server:BASE_URL#MODEL`, say server:http://localhost:8000/v1#Qwen/Qwen2.5-VL-72B-Instruct.

    The key comes from GAPBENCH_SERVER_KEY or OPENAI_API_KEY and goes to that address alone.
    The verdict comes from the probabilities of 0 and 1 at the digit that decides, where the server
    gives both among the likeliest tokens (`mass` is then their sum at that place), else from the
    words. A refusal, a time-out, and a reply that is no chat completion are abstentions. What the
    server runs under a model's name is its own: the fingerprint holds the address and the name.
    `timeout` (seconds a request, all in all), `attempts`, `pause` (seconds before the second,
    doubled for each further one) and `concurrency` (requests at a time) change no answer.
    Raises GapbenchError for an address that is neither https nor this machine.
    """

    needs: Sequence[Source | Checkpoint] = ()

    def __init__(
        self,
        argument: str | None = None,
        device: str = "auto",  # noqa: ARG002
        *,
        concurrency: int = 8,
        timeout: float = 120.0,
        attempts: int = 5,
        pause: float = 1.0,
    ) -> None:
        base, _, self.model = (argument or "").partition("#")
        self.url = _checked(base) + "/chat/completions"
        if not self.model:
            raise GapbenchError(
                "judge server needs an address and a model: --judge server:BASE_URL#MODEL"
            )
        self.name = f"server-{self.model.rsplit('/', 1)[-1]}"
        recipe = json.dumps([self.url, self.model, SETTINGS], sort_keys=True)
        self.fingerprint = hashlib.sha256(f"server-1 {recipe}".encode()).hexdigest()
        self._concurrency, self._timeout = concurrency, timeout
        self._attempts, self._pause = attempts, pause
        self._key = next((value for name in KEYS if (value := os.environ.get(name))), "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise GapbenchError(f"{' or '.join(KEYS)} holds characters that no key has")
        self._logprobs = True
        self._client: httpx.Client | None = None

    def question(self, prompt: Prompt) -> str:
        return prompt.question

    def judge(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Answer]:
        """Answer for each (image, prompt), in order, `concurrency` at a time.

        Raises GapbenchError where the server cannot be reached, refuses the key or has no such
        model.
        """
        self._connect()
        stop = threading.Event()
        pool = ThreadPoolExecutor(self._concurrency)
        try:
            questions = [prompt.question for prompt in prompts]
            asked = [
                pool.submit(self._ask, image, question, stop)
                for image, question in zip(images, questions, strict=True)
            ]
            return [each.result() for each in asked]
        finally:
            stop.set()  # those that wait for another attempt need not
            pool.shutdown(cancel_futures=True)

    def release(self) -> None:
        if self._client is not None:
            self._client.close()
        self._client = None

    def estimate_cost(self, images: int, pixels: int = 512 * 512) -> str:
        """What judging that many images of that size asks of the server, in words."""
        tokens = images * (150 + math.ceil(pixels / PATCH))
        return (
            f"{images:,} requests to {self.url}, roughly {tokens:,} input tokens and at most "
            f"{images * SETTINGS['max_tokens']:,} output tokens"
        )

    # -- one request -----------------------------------------------------------------------

    def _connect(self) -> httpx.Client:
        if self._client is None:
            headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
            self._client = httpx.Client(
                # No compression: a small reply cannot unpack to a large one.
                headers={**headers, "Accept-Encoding": "identity"},
                timeout=self._timeout,
                # No proxy stands between this machine and itself.
                trust_env=not _is_loopback(httpx.URL(self.url).host),
                limits=httpx.Limits(max_connections=self._concurrency),
            )
        return self._client

    def _ask(self, image: Image.Image, question: str, stop: threading.Event) -> Answer:
        buffer = BytesIO()
        image.save(buffer, "PNG")
        picture = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
        content = [
            {"type": "image_url", "image_url": {"url": picture}},
            {"type": "text", "text": question},
        ]
        message = {"role": "user", "content": content}
        plain = {"model": self.model, "messages": [message], **SETTINGS}
        reply = self._send({**plain, **LOGPROBS} if self._logprobs else plain, stop)
        if isinstance(reply, _Reply) and reply.status in (400, 422) and self._logprobs:
            # Some servers refuse the request for log-probabilities, or for that many.
            second = self._send(plain, stop)
            if isinstance(second, _Reply) and second.status == 200:
                self._logprobs, reply = False, second
        return Answer(verdict=None, reason=reply) if isinstance(reply, str) else _read(reply)

    def _send(self, payload: dict[str, Any], stop: threading.Event) -> _Reply | str:
        """The reply, or why there is none after all attempts."""
        reason = ""
        for attempt in range(self._attempts):
            wait = self._pause * 2**attempt
            unreachable = False
            try:
                reply = self._post(payload)
            except httpx.TimeoutException as error:
                reason = f"the server did not answer within {self._timeout:g} s"
                unreachable = isinstance(error, httpx.ConnectTimeout)
            except httpx.TransportError as error:
                reason = (
                    f"the connection failed ({self._clean(str(error)) or type(error).__name__})"
                )
                unreachable = isinstance(error, httpx.ConnectError)
            else:
                if reply.status in (401, 403):
                    raise GapbenchError(
                        f"judge {self.name}: {self.url} refuses the key (status {reply.status}); "
                        f"set {KEYS[0]}"
                    )
                if reply.status == 404:
                    raise GapbenchError(
                        f"judge {self.name}: {self.url} knows no model {self.model!r}, or the "
                        f"address is wrong (status 404: {' '.join(reply.text[:200].split())})"
                    )
                if reply.status != 429 and reply.status < 500:
                    return reply
                reason = f"the server gave status {reply.status}"
                wait = _retry_after(reply.headers, wait)
            if attempt + 1 == self._attempts or stop.wait(min(wait, LONGEST_PAUSE)):
                break
        if unreachable:
            raise GapbenchError(
                f"judge {self.name}: {self.url} cannot be reached: {reason}; start the server and "
                "run the same command again"
            )
        return f"{reason}, {self._attempts} times"

    def _post(self, payload: dict[str, Any]) -> _Reply:
        """One request. The time-out bounds it whole: a server may also trickle for ever."""
        deadline, body = time.monotonic() + self._timeout, bytearray()
        with self._connect().stream("POST", self.url, json=payload) as response:
            for piece in response.iter_raw():
                body += piece
                if len(body) > LARGEST:
                    break
                if time.monotonic() > deadline:
                    raise httpx.ReadTimeout("trickle")
            text = self._clean(body.decode("utf-8", "replace"))
            return _Reply(response.status_code, response.headers, text)

    def _clean(self, text: str) -> str:
        """Some servers quote the key that they refuse."""
        return text.replace(self._key, "***") if self._key else text


@dataclass(frozen=True, slots=True)
class _Reply:
    status: int
    headers: Mapping[str, str]
    text: str


def _checked(base: str) -> str:
    """The address without its last slash. Raises GapbenchError where it is not one to send to."""
    try:
        url = httpx.URL(base.rstrip("/"))
        fine = url.scheme in {"http", "https"} and url.host and not (url.query or url.fragment)
    except httpx.InvalidURL:
        fine = False
    if not fine:
        raise GapbenchError(
            f"judge server: {base.rpartition('@')[2]!r} is no address; use --judge "
            "server:https://HOST/v1#MODEL"
        )
    if url.userinfo:
        raise GapbenchError(f"judge server: take the key out of the address and set {KEYS[0]}")
    if url.scheme != "https" and not _is_loopback(url.host):
        raise GapbenchError(
            f"judge server: {url.host} is another machine, so the address must be https; images "
            "and the key would travel in the clear"
        )
    return str(url)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _retry_after(headers: Mapping[str, str], otherwise: float) -> float:
    """Seconds that the server asks to wait: a number, or a date."""
    said = headers.get("retry-after", "")
    try:
        seconds = float(said)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(said).timestamp() - time.time()
        except (ValueError, TypeError):
            return otherwise
    return max(seconds, 0.0) if math.isfinite(seconds) else otherwise


def _read(reply: _Reply) -> Answer:
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
    said = parse(text)
    said = replace(said, text=text[:LONGEST])
    odds = None if said.verdict is None else _odds(choice.get("logprobs"))
    weighed = weigh(*odds) if odds else said
    return said if weighed.verdict is None else replace(weighed, text=said.text)


def _odds(logprobs: Any) -> tuple[float, float] | None:
    """Log-probabilities of 0 and 1 at the digit that decides; None where either is not told."""
    try:
        places = logprobs["content"]
        tokens = [place["token"] for place in places]
        for index in reversed(range(len(tokens))):
            before = "".join(tokens[:index])
            # The digit that decides is where another one would have changed the verdict.
            if tokens[index].strip() not in {"0", "1"} or any(
                parse(before + tokens[index].replace(tokens[index].strip(), digit)).verdict
                != int(digit)
                for digit in "01"
            ):
                continue
            found: dict[str, list[float]] = {"0": [], "1": []}
            for likely in places[index]["top_logprobs"]:
                value = likely["logprob"]
                if likely["token"].strip() in found and math.isfinite(value):
                    found[likely["token"].strip()].append(value)
            if all(found.values()):
                return _log_sum(found["0"]), _log_sum(found["1"])
            return None
    except (LookupError, TypeError, AttributeError, ValueError, OverflowError):
        pass  # not of the documented form: then the words decide
    return None


def _log_sum(logprobs: Sequence[float]) -> float:
    """Log of the summed probabilities; servers write very small ones as -9999."""
    largest = max(logprobs)
    return largest + math.log(sum(math.exp(value - largest) for value in logprobs))
