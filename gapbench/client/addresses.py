"""The addresses at which servers serve one model alike, and which of them to ask next."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import httpx

from gapbench.fetch.http import is_loopback
from gapbench.fetch.libraries import may_use_http
from gapbench.types import GapbenchError

LOG: Final = logging.getLogger("gapbench")
KEYS: Final = ("GAPBENCH_SERVER_KEY", "OPENAI_API_KEY")


@dataclass(slots=True)
class _Address:
    url: str
    busy: int = 0
    rests_until: float = 0.0
    failed: int = 0


class Addresses:
    """Addresses, separated by commas. Raises GapbenchError for one that is neither https nor this
    machine, unless plain http was allowed."""

    def __init__(self, text: str, kind: str) -> None:
        urls = [_checked(base.strip(), kind) for base in text.split(",")]
        if twice := {url for url in urls if urls.count(url) > 1}:
            raise GapbenchError(f"{kind} server: {min(twice)} is given twice; give it once")
        self._all = [_Address(url) for url in urls]
        self._lock = threading.Lock()

    @property
    def urls(self) -> list[str]:
        return [each.url for each in self._all]

    @contextmanager
    def taken(self) -> Iterator[str]:
        """The address with the fewest requests under way, of those that do not rest; the one that
        rests shortest where all do."""
        with self._lock:
            now = time.monotonic()
            chosen = min(self._all, key=lambda a: (max(0.0, a.rests_until - now), a.busy))
            chosen.busy += 1
        try:
            yield chosen.url
        finally:
            with self._lock:
                chosen.busy -= 1

    def fine(self, url: str) -> None:
        """An address has answered."""
        with self._lock:
            next(each for each in self._all if each.url == url).failed = 0

    def rest(self, url: str, seconds: float, most: float) -> float:
        """Ask an address no more for `seconds`, doubled up to `most` with each time in a row that
        it fails while others are there; gives the seconds until one may be asked."""
        if len(self._all) == 1:
            return seconds
        with self._lock:
            now = time.monotonic()
            failed = next(each for each in self._all if each.url == url)
            if failed.rests_until <= now:  # else it is known from another request
                if not failed.failed:
                    LOG.warning("%s does not answer as it should; asking the others", url)
                failed.rests_until = now + min(most, seconds * 2**failed.failed)
                failed.failed = min(failed.failed + 1, 20)
            return max(0.0, min(each.rests_until for each in self._all) - now)


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
    if url.scheme != "https" and not is_loopback(url.host) and not may_use_http():
        raise GapbenchError(
            f"{kind} server: {url.host} is another machine, and by plain http images and the key "
            "travel in the clear; use https, or --allow-http in a network that you trust"
        )
    return str(url)
