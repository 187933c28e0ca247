"""A local page on which people say whether images show their prompts, blind to all verdicts.

The server listens on the loopback only. Its address holds a token; a request without it, under
another host name (a page elsewhere that points its name here) or from another origin is refused.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import urlsplit

from filelock import FileLock

from gapbench.files import append_lines, drop_torn_line
from gapbench.pages.assets import asset, policy, template
from gapbench.runs.run import LABELS, Run
from gapbench.types import GapbenchError

LARGEST_BODY: Final = 1000
SECONDS: Final = 30
"""How long a request may take to arrive."""
WORDS: Final = ("yes", "no", "unsure")
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Labels:
    """The labels that one rater gives the images of a run, each on disk when `add` returns.

    Items are (sha256 of the image's file, prompt text), each once, in an order that is random but
    the same for every rater and session: wherever people stop, what is labelled is a random sample
    of the images, and raters meet on the same ones.
    """

    def __init__(self, run: Run, rater: str) -> None:
        if not rater.strip() or len(rater) > 100 or not rater.isprintable():
            raise GapbenchError(f"--rater {rater!r}: give a name of 1 to 100 printed characters")
        self.run, self.rater = run, rater
        self.file = run.path / LABELS
        frame = run.frame()
        if not len(frame):
            raise GapbenchError(f"{run.path} holds no image of its plan; run it again to finish it")
        pairs = set(zip(frame["image"], frame["text"], strict=True))
        self.items: list[tuple[str, str]] = sorted(
            pairs, key=lambda pair: hashlib.sha256("\n".join(pair).encode()).digest()
        )
        self.images = {image for image, _ in self.items}

    def given(self) -> list[str | None]:
        """What the rater said so far, item by item."""
        people = self.run.people()
        if people is None:
            return [None] * len(self.items)
        word = {1: "yes", 0: "no", None: "unsure"}
        answers = (people.answer(image, text, self.rater) for image, text in self.items)
        return [None if answer is None else word[answer.verdict] for answer in answers]

    def there(self) -> int:
        """How many items the rater has labelled."""
        return len(self.items) - self.given().count(None)

    def add(self, item: int, label: str) -> None:
        """Append a label, which replaces an earlier one of this rater's for that item."""
        image, text = self.items[item]
        row = {
            "image": image,
            "prompt": text,
            "label": label,
            "rater": self.rater,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        # Other raters' servers append to the same file.
        with FileLock(self.run.path / ".labels.lock"):
            drop_torn_line(self.file)
            append_lines(self.file, [row])


@contextmanager
def serve(labels: Labels, port: int = 0) -> Iterator[tuple[str, Callable[[], None]]]:
    """Gives the page's address and what serves it until a signal. `port` 0 takes a free one.

    Raises GapbenchError where the port cannot be opened.
    """
    token = secrets.token_urlsafe(24)
    script, style = asset("report/label.js"), asset("report/label.css")
    page = template("report/label.html").render(
        script=script, style=style, rater=labels.rater,
        policy=policy(script, style, "connect-src 'self'", "img-src 'self' data:"),
    ).encode()  # fmt: skip

    class Handler(_Handler):
        served, secret, html = labels, token, page

    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except (OSError, OverflowError) as error:
        raise GapbenchError(f"--port {port} cannot be opened ({error}); try another") from error
    with server:
        yield f"http://127.0.0.1:{server.server_port}/{token}/", server.serve_forever


class _Handler(BaseHTTPRequestHandler):
    served: Labels
    secret: str
    html: bytes
    timeout = SECONDS
    server_version, sys_version = "gapbench", ""

    def do_GET(self) -> None:
        path = self._allowed()
        if path is None:
            return
        kind, _, name = path.partition("/")
        try:
            if path == "":
                self._send(200, "text/html; charset=utf-8", self.html)
            elif path == "items":
                given = self.served.given()
                texts = [text for _, text in self.served.items]
                images = [image for image, _ in self.served.items]
                self._json(200, {"texts": texts, "images": images, "given": given})
            elif kind == "image" and name in self.served.images:
                self._send(200, "image/png", self.served.run.folder.image_bytes(name))
            else:
                self._json(404, {"error": "there is no such page"})
        except GapbenchError as error:
            self._json(500, {"error": str(error)})

    def do_POST(self) -> None:
        path = self._allowed()
        if path is None:
            return
        length = self.headers.get("Content-Length", "")
        if path != "label":
            self._json(404, {"error": "there is no such page"})
        elif not length.isascii() or not length.isdigit():
            self._json(411, {"error": "the request does not say how long it is"})
        elif len(length) > 9 or int(length) > LARGEST_BODY:
            self._json(413, {"error": f"a label takes at most {LARGEST_BODY} bytes"})
        else:
            self._label(self.rfile.read(int(length)))

    def _label(self, body: bytes) -> None:
        try:
            said = json.loads(body)
            item, label = said["item"], said["label"]
            if type(item) is not int or not 0 <= item < len(self.served.items):
                raise ValueError(f"there is no item {item!r}")
            if label not in WORDS:
                raise ValueError(f"label {label!r} is not one of {', '.join(WORDS)}")
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            self._json(400, {"error": f"not a label: {error}"})
            return
        try:
            self.served.add(item, label)
        except OSError as error:
            self._json(500, {"error": f"not saved: {error}"})
        else:
            self._json(200, {"saved": item})

    def _allowed(self) -> str | None:
        """The path behind the token; None, after an answer, for a request that is not ours."""
        _, port = self.connection.getsockname()
        hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        ours: set[str | None] = {f"http://{host}" for host in hosts}
        if self.command == "GET":
            ours.add(None)  # browsers name the origin with every POST, and seldom with a GET
        elsewhere = self.headers.get("Sec-Fetch-Site") in ("cross-site", "same-site")
        first, _, path = urlsplit(self.path).path.removeprefix("/").partition("/")
        if self.headers.get("Host") not in hosts:
            self._json(403, {"error": "refused: another host"})
        elif self.headers.get("Origin") not in ours or elsewhere:
            self._json(403, {"error": "refused: another origin"})
        elif not hmac.compare_digest(first.encode(), self.secret.encode()):
            self._json(403, {"error": "refused: the address lacks its token"})
        else:
            return path
        return None

    def _json(self, status: int, value: Any) -> None:
        self._send(status, "application/json", json.dumps(value).encode())

    def _send(self, status: int, kind: str, data: bytes) -> None:
        # What is left of a refused body is not read: the connection ends here.
        self.close_connection = True
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: requests hold the token."""
