"""An HTTP server in a thread that answers as a test says, for the judge and the model `server:`."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from gapbench.client.client import KEYS

Asked = dict[str, Any]
Play = Callable[[Any, Asked], None]


class Handler(BaseHTTPRequestHandler):
    """Answers as the server's `play` says; keeps what was asked."""

    server: Server

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked.append(asked)
            self.server.headers.append(dict(self.headers))
            self.server.paths.append(self.path)
        self.server.play(self, asked)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def send(
        self, body: object, status: int = 200, kind: str = "application/json", **headers: str
    ) -> None:
        if not isinstance(body, bytes):
            body = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", headers.pop("length", str(len(body))))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def say(self, text: object, logprobs: object = None, **message: object) -> None:
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text, **message},
            "logprobs": logprobs,
            "finish_reason": "stop",
        }
        self.send({"object": "chat.completion", "choices": [choice]})


class Server(ThreadingHTTPServer):
    daemon_threads = True
    handler = Handler
    play: Play

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), self.handler)
        self.lock = threading.Lock()
        self.asked: list[Asked] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that gave up waiting is part of these tests

    @contextmanager
    def serving(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """Serve in a thread, to a client without a key."""
        for name in KEYS:
            monkeypatch.delenv(name, raising=False)
        thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        thread.start()
        yield
        self.shutdown()
        thread.join()
        self.server_close()
