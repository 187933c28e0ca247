"""A judge behind HTTP: clients' requests are judged in common batches.

POST / takes JSON, {"images": [base64], "prompts": [text], "requirements": [object or null]?}, and
gives {"rewards": [number or null], "answers": [{verdict, p_yes, score, reason}], "judge",
"fingerprint"}. GET /health says who judges. With `accept_pickle` a body of another media type is
read as flow_grpo and verl-omni send it (`gapbench.rewards.pickles`), and answered pickled.
"""

from __future__ import annotations

import hmac
import json
import pickle
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import SimpleQueue
from socketserver import TCPServer
from typing import Any, Final

from PIL import Image

from gapbench.fetch.http import is_loopback
from gapbench.files import blamed
from gapbench.rewards.pickles import plain
from gapbench.rewards.reward import Reward, image_of, value
from gapbench.types import Answer, Failure, GapbenchError, Prompt

MOST_BYTES: Final = 256 * 2**20
"""A request's body; a larger one is refused before it is read."""
MOST_IMAGES: Final = 1024
SECONDS: Final = 30
"""How long a client may be silent in the middle of a request."""
TOKEN: Final = "GAPBENCH_REWARD_TOKEN"  # noqa: S105 (its name)
Row = tuple[Image.Image, Prompt, "Future[Answer | Failure]"]


class Batcher:
    """Judges rows of several threads in common batches: while one is judged, the next gathers."""

    def __init__(self, reward: Reward) -> None:
        self.reward = reward
        self._rows: SimpleQueue[Row | None] = SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    def answers(
        self, images: Sequence[Image.Image], prompts: Sequence[Prompt]
    ) -> list[Answer | Failure]:
        """What the judge says of each image, or why it failed. Raises what stopped it."""
        rows: list[Row] = [(i, p, Future()) for i, p in zip(images, prompts, strict=True)]
        for row in rows:
            self._rows.put(row)
        return [future.result() for _, _, future in rows]

    def close(self) -> None:
        """End, once what was asked is answered."""
        self._rows.put(None)

    def _work(self) -> None:
        row = self._rows.get()
        while row is not None:
            batch = [row]
            while len(batch) < self.reward.judge.batches.most and not self._rows.empty():
                if (row := self._rows.get()) is None:
                    break
                batch.append(row)
            try:
                said = self.reward.answers([i for i, _, _ in batch], [p for _, p, _ in batch])
            except Exception as error:  # a judge may raise anything
                for _, _, future in batch:
                    future.set_exception(error)
            else:
                for (_, _, future), each in zip(batch, said, strict=True):
                    future.set_result(each)
            row = row and self._rows.get()


@contextmanager
def serving(
    reward: Reward, port: int, host: str = "127.0.0.1", token: str = "", accept_pickle: bool = False
) -> Iterator[tuple[str, ThreadingHTTPServer]]:
    """Gives the server and its address. `port` 0 takes a free one.

    Raises GapbenchError where the port cannot be opened, and for a host that others reach without a
    token.
    """
    if not is_loopback(host) and not token:
        raise GapbenchError(
            f"--host {host}: other machines could ask too; set {TOKEN} to a long random text, "
            "which clients send as `Authorization: Bearer ...` or as the address's path"
        )
    batcher = Batcher(reward)
    kept = {"batcher": batcher, "token": token, "pickles": accept_pickle}
    try:
        server = _Server((host, port), type("Handler", (_Handler,), kept))
    except (OSError, OverflowError) as error:
        batcher.close()
        raise GapbenchError(
            f"--host {host} --port {port} cannot be opened ({error}); try another"
        ) from error
    try:
        with server:
            yield f"http://{host}:{server.server_port}/", server
    finally:
        batcher.close()


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # clients that may ask at the same moment

    def server_bind(self) -> None:
        """As TCPServer's: HTTPServer's asks a name server for the host's name, which may take
        seconds."""
        TCPServer.server_bind(self)
        host, self.server_port = self.server_address[:2]
        self.server_name = str(host)


class _Refused(Exception):  # noqa: N818 (an answer)
    """A request is answered with this status and reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    batcher: Batcher
    token: str
    pickles: bool
    timeout = SECONDS
    server_version, sys_version = "gapbench", ""

    def handle(self) -> None:
        """A client that goes away is no error."""
        with suppress(ConnectionError, TimeoutError):
            super().handle()

    def do_GET(self) -> None:
        try:
            if self._path() != "health":
                raise _Refused(404, "there is POST / and GET /health")
            judge = self.batcher.reward.judge
            told = {"judge": judge.name, "fingerprint": judge.fingerprint}
            self._send(200, told | {"task": self.batcher.reward.task.name})
        except _Refused as refused:
            self._send(refused.status, {"error": str(refused)})

    def do_POST(self) -> None:
        pickled = False
        try:
            self._path()
            kind = self.headers.get_content_type()
            pickled = self.pickles and kind != "application/json"
            if not pickled and kind != "application/json":
                raise _Refused(
                    415, "send JSON as application/json; pickles are taken with --accept-pickle"
                )
            data = self.rfile.read(self._length())
            self._send(200, self._pickled(data) if pickled else self._json(data), pickled)
        except _Refused as refused:
            self._send(refused.status, {"error": str(refused)}, pickled)
        except GapbenchError as error:
            self._send(400, {"error": str(error)}, pickled)
        except (ConnectionError, TimeoutError):
            raise
        except Exception as error:  # a judge's reading of a requirement may raise anything
            self._send(500, {"error": blamed(error)}, pickled)

    def _path(self) -> str:
        """The path behind the token. Raises _Refused for a request that may not ask."""
        path = self.path.partition("?")[0].strip("/")
        if "Origin" in self.headers or "Sec-Fetch-Site" in self.headers:
            raise _Refused(403, "pages in a browser may not ask")
        if self.token:
            first, _, rest = path.partition("/")
            sent = self.headers.get("Authorization", "").removeprefix("Bearer ")
            if _same(sent, self.token):
                return path
            if not _same(first, self.token):
                raise _Refused(401, "the token is missing or another one")
            return rest
        host = self.headers.get("Host", "").rpartition(":")[0].strip("[]")
        if not is_loopback(host or self.headers.get("Host", "")):
            raise _Refused(403, "another host's name")
        return path

    def _length(self) -> int:
        """The bytes of the body. Raises _Refused for too many, before one is read."""
        told = self.headers.get("Content-Length", "")
        if not (told.isascii() and told.isdigit()):
            raise _Refused(411, "say how long the body is (Content-Length)")
        if len(told) > 12 or int(told) > MOST_BYTES:
            raise _Refused(413, f"the body has {told:.20} bytes, more than {MOST_BYTES:,}")
        return int(told)

    def _json(self, data: bytes) -> dict[str, Any]:
        try:
            asked = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise GapbenchError(f"the body is no JSON ({error})") from error
        if not isinstance(asked, dict):
            raise GapbenchError("the body is no JSON object")
        images, prompts, given = (asked.get(k) for k in ("images", "prompts", "requirements"))
        said = self._judged(images, prompts, given)
        judge = self.batcher.reward.judge
        return {
            "rewards": [value(each) for each in said],
            "answers": [asdict(each) for each in said],
            "judge": judge.name,
            "fingerprint": judge.fingerprint,
        }

    def _pickled(self, data: bytes) -> dict[str, Any]:
        """What flow_grpo's scorers and verl-omni's answer: floats, and an error where one is
        missing, since a float that stands for nothing would be trained on."""
        asked = plain(data)
        if not isinstance(asked, dict):
            raise GapbenchError("the body is no pickled dict")
        about = asked.get("meta_datas")
        prompts, given, tags = asked.get("prompts"), None, None
        if isinstance(about, list) and all(isinstance(each, dict) for each in about):
            prompts = [each.get("prompt") for each in about]
            given = [
                {key: each[key] for key in ("include", "exclude") if each.get(key)}
                for each in about
            ]
            tags = [str(each.get("tag")) for each in about]
        said = self._judged(asked.get("images"), prompts, given)
        rewards = [value(each) for each in said]
        for number, (each, made) in enumerate(zip(said, rewards, strict=True)):
            if made is None:
                raise _Refused(422, f"image {number} could not be judged: {each.reason}")
        told: dict[str, Any] = {"scores": rewards, "outputs": rewards}
        verdicts = [each.verdict for each in said if isinstance(each, Answer)]
        if tags is not None and None not in verdicts:
            strict = [float(verdict or 0) for verdict in verdicts]
            told |= {
                "rewards": rewards,
                "strict_rewards": strict,
                "group_rewards": _by_tag(tags, rewards),
                "group_strict_rewards": _by_tag(tags, strict),
            }
        return told

    def _judged(self, images: Any, prompts: Any, given: Any) -> list[Answer | Failure]:
        if given is None and isinstance(prompts, list):
            given = [None] * len(prompts)
        for name, listed in (("images", images), ("prompts", prompts), ("requirements", given)):
            if not isinstance(listed, list) or len(listed) > MOST_IMAGES:
                raise GapbenchError(f"{name} is no list of up to {MOST_IMAGES}")
        if not len(images) == len(prompts) == len(given) > 0:
            raise GapbenchError("images, prompts and requirements must be as many, and some")
        if odd := next((prompt for prompt in prompts if not isinstance(prompt, str)), None):
            raise GapbenchError(f"a prompt is a text, not {odd!r:.60}")
        reward = self.batcher.reward
        asked = [reward.prompt(p, r) for p, r in zip(prompts, given, strict=True)]
        shown = [image_of(image, f"image {number}") for number, image in enumerate(images)]
        try:
            return self.batcher.answers(shown, asked)
        except Exception as error:  # a judge may raise anything
            raise _Refused(502, blamed(error)) from error

    def _send(self, status: int, told: dict[str, Any], pickled: bool = False) -> None:
        data = pickle.dumps(told) if pickled else json.dumps(told).encode()
        self.send_response(status)
        kind = "application/octet-stream" if pickled else "application/json"
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: requests may hold the token."""


def _same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), token.encode())


def _by_tag(tags: Sequence[str], numbers: Sequence[Any]) -> dict[str, list[Any]]:
    groups: dict[str, list[Any]] = {}
    for tag, number in zip(tags, numbers, strict=True):
        groups.setdefault(tag, []).append(number)
    return groups
