"""An HTTP server in a thread that answers as a test says, for the judge and the model `server:`."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from PIL import Image

from gapbench.client.client import KEYS
from gapbench.models.server import ServerModel

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

    def completion(self, text: object, logprobs: object = None, **message: object) -> Asked:
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text, **message},
            "logprobs": logprobs,
            "finish_reason": "stop",
        }
        return {"object": "chat.completion", "choices": [choice]}

    def say(self, text: object, logprobs: object = None, **message: object) -> None:
        self.send(self.completion(text, logprobs, **message))


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


class Painter(Handler):
    """Draws colours by prompt and seed, and answers; `draws` and `says` do otherwise."""

    def give(self, data: bytes, **more: object) -> None:
        self.send({"created": 1, "data": [{"b64_json": base64.b64encode(data).decode(), **more}]})

    def draw(self, asked: Asked, salt: str = "", kind: str = "PNG") -> None:
        digest = hashlib.sha256(f"{asked['prompt']} {asked.get('seed')} {salt}".encode()).digest()
        buffer = io.BytesIO()
        Image.new("RGB", (24, 24), tuple(digest[:3])).save(buffer, kind)
        self.give(buffer.getvalue())

    def answer(self, asked: Asked, logprobs: bool = True) -> None:
        told: Asked | None = None
        if logprobs and asked.get("logprobs"):
            top = [{"token": "1", "logprob": -0.1}, {"token": "0", "logprob": -2.5}]
            places = [
                {"token": token, "logprob": -0.1, "top_logprobs": top if token == "1" else []}
                for token in ("The", " score", " is", " ", "1")
            ]
            told = {"content": places}
        self.say("The score is 1", told)

    def talk(self, asked: Asked, word: str = "red", tells: bool = True) -> None:
        """Says the word, as vLLM does: a token is a letter, and each of the word's has a
        log-probability of -0.25 in its place, any other letter -1.5."""
        *turns, last = asked["messages"]
        begun = last["content"] if asked.get("continue_final_message") else ""
        turns += [] if begun else [last]
        chat = "".join(f"{turn['role']}: {json.dumps(turn['content'])}\n" for turn in turns)
        prompt, body = f"{chat}assistant: {begun}", self.completion(word)
        if tells and asked.get("return_token_ids"):
            body["prompt_token_ids"] = [ord(letter) for letter in prompt]
        if tells and asked.get("prompt_logprobs"):
            places: list[Asked | None] = [None] * (len(prompt) - len(begun))
            for place, letter in enumerate(begun):
                told = {ord(letter): {"logprob": -1.5, "decoded_token": letter}}
                if likely := word[place : place + 1]:
                    told[ord(likely)] = {"logprob": -0.25, "decoded_token": likely}
                places.append({str(token): each for token, each in told.items()})
            body["prompt_logprobs"] = places
        self.send(body)


class Painting(Server):
    handler = Painter
    draws: Play
    says: Play

    def play(self, handler: Painter, asked: Asked) -> None:
        draws = handler.path.endswith("/images/generations")
        (self.draws if draws else self.says)(handler, asked)

    def of(self, path: str) -> list[Asked]:
        pairs = zip(self.paths, self.asked, strict=True)
        return [asked for at, asked in pairs if at.endswith(path)]

    @property
    def drawn(self) -> list[Asked]:
        return self.of("/images/generations")

    @property
    def chats(self) -> list[Asked]:
        return self.of("/chat/completions")

    def at(self, model: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1#{model}"

    @property
    def argument(self) -> str:
        return self.at("org/painter")

    def model(self, **more: Any) -> ServerModel:
        return ServerModel(self.argument, **{"pause": 0.01, "timeout": 5.0, "attempts": 3, **more})
