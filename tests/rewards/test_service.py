"""A judge behind HTTP: many clients at once, and those that misbehave."""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import pickle
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from here import end
from PIL import Image

from gapbench import Answer, GapbenchError, Prompt
from gapbench.judges.base import Judge
from gapbench.models.base import Batches
from gapbench.rewards.reward import Reward
from gapbench.rewards.service import MOST_BYTES, MOST_IMAGES, TOKEN, serving


class Slow(Judge):
    """Says of an image what its first pixel says, and of 200 nothing; takes its time."""

    name, fingerprint, batches = "slow", "slow-1", Batches(1, 64)

    def __init__(self) -> None:
        self.sizes = list[int]()
        self.busy = threading.Lock()

    def judge(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Answer]:
        assert self.busy.acquire(blocking=False), "two batches at a time"
        self.sizes.append(len(images))
        time.sleep(0.05)
        self.busy.release()
        levels: list[int] = [image.getpixel((0, 0))[0] for image in images]  # type: ignore[index]
        if 201 in levels:
            raise ValueError("no camera")
        return [
            Answer(verdict=None, reason="cut")
            if level == 200
            else Answer(verdict=int(level >= 100), p_yes=level / 200)
            for level in levels
        ]


def png(level: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (level, level, level)).save(file, kind)
    return file.getvalue()


def body(*levels: int, **more: Any) -> dict[str, Any]:
    images = [base64.b64encode(png(level)).decode() for level in levels]
    return {"images": images, "prompts": ["a plum"] * len(levels), **more}


class Client:
    def __init__(self, address: str) -> None:
        self.parts = urlsplit(address)

    def ask(
        self, data: Any, path: str = "/", method: str = "POST", **headers: str
    ) -> tuple[int, Any]:
        sent = data if isinstance(data, bytes) else json.dumps(data).encode()
        headers = {"Content-Type": "application/json"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        connection = http.client.HTTPConnection(
            self.parts.hostname or "", self.parts.port, timeout=60
        )
        connection.request(method, path, sent, headers)
        answer = connection.getresponse()
        said = answer.read()
        connection.close()
        if answer.headers.get_content_type() == "application/octet-stream":
            return answer.status, pickle.loads(said)
        return answer.status, json.loads(said)

    def raw(self) -> socket.socket:
        return socket.create_connection((self.parts.hostname, self.parts.port), timeout=60)


@contextmanager
def open_server(judge: Judge, task: str = "shapes:train", **more: Any) -> Iterator[Client]:
    with serving(Reward(judge, task), 0, **more) as (address, server):
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield Client(address.replace("0.0.0.0", "127.0.0.1"))
        finally:  # a closed socket would be polled for good, and slow every later test down
            server.shutdown()
            thread.join()


@pytest.fixture
def judge() -> Slow:
    return Slow()


@pytest.fixture
def client(judge: Slow) -> Iterator[Client]:
    with open_server(judge) as client:
        yield client


def test_a_request(client: Client) -> None:
    status, told = client.ask(body(150, 200, 20))
    assert status == 200
    assert told["rewards"] == [0.75, None, 0.1]
    assert [answer["verdict"] for answer in told["answers"]] == [1, None, 0]
    assert told["answers"][1]["reason"] == "cut"
    assert (told["judge"], told["fingerprint"]) == ("slow", "slow-1")
    status, told = client.ask(b"", "/health", "GET")
    assert told == {"judge": "slow", "fingerprint": "slow-1", "task": "shapes:train"}
    assert client.ask(b"", "/", "GET")[0] == 404


def test_eight_clients_at_once_share_batches(client: Client, judge: Slow) -> None:
    """Each gets the answers to its own images, whatever else was in their batch."""

    def train(number: int) -> None:
        for step in range(6):
            levels = [(number * 23 + step * 7 + k) % 200 for k in range(1 + number % 4)]
            status, told = client.ask(body(*levels))
            assert status == 200
            assert told["rewards"] == [level / 200 for level in levels]

    with ThreadPoolExecutor(8) as clients:
        list(clients.map(train, range(8)))
    asked = 6 * sum(1 + number % 4 for number in range(8))
    assert sum(judge.sizes) == asked
    assert len(judge.sizes) < 6 * 8  # requests in all
    assert max(judge.sizes) > 4  # images of the largest request


def test_a_failure_is_null_and_costs_no_other(client: Client) -> None:
    with ThreadPoolExecutor(2) as clients:
        failing, fine = clients.map(lambda levels: client.ask(body(*levels)), [(201, 50), (60,)])
    assert failing[1]["rewards"] == [None, 0.25]
    assert "no camera" in failing[1]["answers"][0]["reason"]
    assert fine[1]["rewards"] == [0.3]


def test_a_judge_that_stops_is_an_error(judge: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Slow, "judge", lambda self, images, prompts: [])
    with open_server(judge) as client:
        for _ in range(2):  # and the server goes on
            status, told = client.ask(body(50))
            assert status == 502
            assert "judge slow gave 0 rows for 1" in told["error"]


@pytest.mark.parametrize("when", ["in the head", "in the body", "before the answer"])
def test_a_client_that_dies_costs_no_other(client: Client, judge: Slow, when: str) -> None:
    data = json.dumps(body(50, 60)).encode()
    head = f"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n"
    head += "Content-Type: application/json\r\n\r\n"
    sent = {"in the head": head[:40].encode(), "in the body": head.encode() + data[:60],
            "before the answer": head.encode() + data}[when]  # fmt: skip
    with ThreadPoolExecutor(1) as other:
        dying = client.raw()
        dying.sendall(sent)
        dying.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")  # a reset
        waiting = other.submit(client.ask, body(80))
        dying.close()
        assert waiting.result() == (200, waiting.result()[1])
    for level in (0, 100):
        assert client.ask(body(level))[1]["rewards"] == [level / 200]


def test_a_gigabyte_is_refused_before_it_is_read(client: Client, judge: Slow) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    head = "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    for told, status in (
        (f"Content-Length: {2**30}", 413), (f"Content-Length: {MOST_BYTES + 1}", 413),
        (f"Content-Length: {'9' * 5000}", 413), ("Content-Length: -1", 411),
        ("Content-Length: x", 411), ("Content-Length: \xb2", 411),
        ("Transfer-Encoding: chunked", 411),
    ):  # fmt: skip
        with client.raw() as link:  # nothing of the body is sent
            link.sendall(f"{head}{told}\r\n\r\n".encode("latin-1"))
            assert link.recv(1000).startswith(f"HTTP/1.0 {status} ".encode())
    # One that sends all the same is cut off.
    with client.raw() as link:
        link.sendall(f"{head}Content-Length: {2**30}\r\n\r\n".encode())
        with pytest.raises(ConnectionError):
            link.sendall(bytes(2**30))  # pages of zeros take no memory
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) < 100_000  # in kB
    assert judge.sizes == []
    assert client.ask(body(50))[0] == 200


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"no JSON", "the body is no JSON"), (b"[1]", "the body is no JSON object"),
        (b"[" * 100_000, "the body is no JSON"), (b"\xff", "the body is no JSON"),
        ({}, "images is no list"), ({"images": "x", "prompts": "y"}, "images is no list"),
        ({"images": [], "prompts": []}, "as many, and some"),
        (body(1) | {"prompts": 7}, "prompts is no list"),
        (body(1) | {"prompts": ["a", "b"]}, "as many"), (body(1) | {"prompts": [7]}, "is a text"),
        (body(1) | {"requirements": [[1]]}, "a requirement is an object"),
        ({"images": ["x y"], "prompts": ["a"]}, "image 0 is a text that is no base64"),
        ({"images": [None], "prompts": ["a"]}, "image 0 is no image, but a NoneType"),
        ({"images": ["aGVsbG8="], "prompts": ["a"]}, "image 0: broken image"),
        (body(*[1] * 3) | {"images": ["x"] * (MOST_IMAGES + 1)}, f"up to {MOST_IMAGES}"),
    ],
)  # fmt: skip
def test_bad_requests_are_one_line(client: Client, judge: Slow, data: Any, said: str) -> None:
    status, told = client.ask(data)
    assert status == 400
    assert said in told["error"]
    assert "\n" not in told["error"]
    assert judge.sizes == []


def test_a_prompt_that_the_judge_cannot_judge(client: Client) -> None:
    with open_server(__import__("gapbench").load_judge("pixel")) as pixel:
        status, told = pixel.ask(body(1))
        assert (status, "has no requirement of the shapes world" in told["error"]) == (400, True)
        wanted = {"include": [{"shape": "circle", "count": 1}]}
        assert pixel.ask(body(1, requirements=[wanted]))[1]["rewards"] == [None]  # 8 x 8 pixels


class Call:
    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.system, (f"touch {self.place}",)


def test_pickles_are_taken_where_allowed_and_never_objects(
    client: Client, judge: Slow, tmp_path: Path
) -> None:
    """The requests of flow_grpo and verl-omni, as their clients send them."""
    asked = {"images": [png(150, "JPEG"), png(20, "JPEG")], "prompts": ["a", "b"], "metadata": {}}
    for kind in ("application/octet-stream", "text/plain", "application/x-python-pickle"):
        status, told = client.ask(pickle.dumps(asked), Content_Type=kind)
        assert status == 415
        assert "--accept-pickle" in told["error"]
    with open_server(judge, accept_pickle=True) as taking:

        def send(value: Any) -> tuple[int, Any]:
            return taking.ask(pickle.dumps(value), Content_Type="application/octet-stream")

        status, told = send(asked)
        assert (status, told["scores"]) == (200, pytest.approx([0.75, 0.1], abs=0.02))
        assert told["outputs"] == told["scores"]
        about = [{"tag": tag, "prompt": "a plum", "include": [{"class": "plum", "count": 1}]}
                 for tag in ("colors", "counting")]  # fmt: skip
        status, told = send({"images": asked["images"], "meta_datas": about, "only_strict": True})
        assert status == 200
        assert told["strict_rewards"] == [1.0, 0.0]
        assert told["group_strict_rewards"] == {"colors": [1.0], "counting": [0.0]}
        assert told["rewards"] == told["scores"] == pytest.approx([0.75, 0.1], abs=0.02)
        # What is missing is an error, and no 0.
        status, told = send({"images": [png(200)], "prompts": ["a"]})
        assert (status, told) == (422, {"error": "image 0 could not be judged: cut"})
        sizes, place = list(judge.sizes), tmp_path / "ran"
        for odd in ([Call(place)], {"images": [Call(place)], "prompts": ["a"]}, Call(place)):
            status, told = send(odd)
            assert status == 400
            assert "only dict, list, str, bytes, float and int are taken" in told["error"]
        for odd in ([1], {"images": [b"x"]}, {"images": b"x", "prompts": ["a"]}):
            assert send(odd)[0] == 400
        assert not place.exists()
        assert judge.sizes == sizes
        assert taking.ask(body(100))[1]["rewards"] == [0.5]  # JSON all the same


def test_others_need_the_token(judge: Slow) -> None:
    with (
        pytest.raises(GapbenchError, match=f"--host 0.0.0.0: other machines.*set {TOKEN}"),
        serving(Reward(judge, "shapes:train"), 0, "0.0.0.0"),
    ):
        pass
    with open_server(judge, host="0.0.0.0", token="sesame-é") as client:
        assert client.ask(body(50))[0] == 401
        assert client.ask(body(50), Authorization="Bearer other")[0] == 401
        assert client.ask(body(50), "/other")[0] == 401
        assert client.ask(b"", "/health", "GET")[0] == 401
    with open_server(judge, host="0.0.0.0", token="sesame") as client:
        assert client.ask(body(50), Authorization="Bearer sesame")[0] == 200
        assert client.ask(body(50), "/sesame")[0] == 200
        assert client.ask(b"", "/sesame/health", "GET", Host="elsewhere")[0] == 200
        assert client.ask(body(50), "/sesame", Origin="http://elsewhere")[0] == 403


def test_pages_in_a_browser_are_refused(client: Client, judge: Slow) -> None:
    for header in ({"Origin": "http://localhost"}, {"Sec_Fetch_Site": "cross-site"},
                   {"Host": "elsewhere"}, {"Host": "elsewhere:80"}):  # fmt: skip
        assert client.ask(body(50), **header)[0] == 403
    for host in ("localhost", "127.0.0.1:9", "[::1]:9"):
        assert client.ask(body(50), Host=host)[0] == 200


def test_from_the_command_line(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def ctrl_c(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("socketserver.BaseServer.serve_forever", ctrl_c)
    code, said, _ = end(capfd, "serve-judge", "pixel", "--task", "shapes:train")
    assert code is None
    assert said.startswith("pixel judges images of shapes:train until Ctrl-C at http://127.0.0.1:")
    everyone = ("serve-judge", "pixel", "--task", "shapes:train", "--host", "0.0.0.0")
    code, _, told = end(capfd, *everyone)
    assert (code, told.count("\n")) == (2, 1)
    monkeypatch.setenv(TOKEN, "sesame")
    assert end(capfd, *everyone)[0] is None
