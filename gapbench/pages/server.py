"""Pages that only this machine can reach.

The server listens on the loopback only. Its address holds a token; a request without it, under
another host name (a page elsewhere that points its name here) or from another origin is refused.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from json import dumps
from typing import Any, Final

from gapbench.types import GapbenchError

SECONDS: Final = 30
"""How long a request may take to arrive."""
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


@contextmanager
def local(handler: type[LocalHandler], port: int) -> Iterator[tuple[str, Callable[[], None]]]:
    """Gives the page's address and what serves it until a signal. `port` 0 takes a free one.

    Raises GapbenchError where the port cannot be opened.
    """
    token = secrets.token_urlsafe(24)
    try:
        server = ThreadingHTTPServer(
            ("127.0.0.1", port), type("Handler", (handler,), {"secret": token})
        )
    except (OSError, OverflowError) as error:
        raise GapbenchError(f"--port {port} cannot be opened ({error}); try another") from error
    with server:
        yield f"http://127.0.0.1:{server.server_port}/{token}/", server.serve_forever


class LocalHandler(BaseHTTPRequestHandler):
    """Gives the allowed requests to `get` and `post`, with the path behind the token."""

    secret: str
    timeout = SECONDS
    server_version, sys_version = "gapbench", ""

    def get(self, path: str) -> None:  # noqa: ARG002 (a page's)
        """Answer a GET."""
        self.json(404, {"error": "there is no such page"})

    post = get

    def handle(self) -> None:
        """One that goes away while it is answered, as a browser does, is no error."""
        with suppress(ConnectionError):
            super().handle()

    def do_GET(self) -> None:
        path = self._allowed()
        try:
            if path is not None:
                self.get(path)
        except GapbenchError as error:
            self.json(500, {"error": str(error)})

    def do_POST(self) -> None:
        if (path := self._allowed()) is not None:
            self.post(path)

    def _allowed(self) -> str | None:
        """The path behind the token; None, after an answer, for a request that is not ours."""
        _, port = self.connection.getsockname()
        hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        ours: set[str | None] = {f"http://{host}" for host in hosts}
        if self.command == "GET":
            ours.add(None)  # browsers name the origin with every POST, and seldom with a GET
        elsewhere = self.headers.get("Sec-Fetch-Site") in ("cross-site", "same-site")
        first, _, path = self.path.partition("?")[0].removeprefix("/").partition("/")
        if self.headers.get("Host") not in hosts:
            self.json(403, {"error": "refused: another host"})
        elif self.headers.get("Origin") not in ours or elsewhere:
            self.json(403, {"error": "refused: another origin"})
        elif not hmac.compare_digest(first.encode(), self.secret.encode()):
            self.json(403, {"error": "refused: the address lacks its token"})
        else:
            return path
        return None

    def json(self, status: int, value: Any) -> None:
        """Answer with JSON."""
        self.send(status, "application/json", dumps(value).encode())

    def send(self, status: int, kind: str, data: bytes) -> None:
        """Answer with bytes of a media type."""
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
