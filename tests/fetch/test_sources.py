"""Downloads against a real local server that fails in the ways servers fail."""

from __future__ import annotations

import gzip
import hashlib
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tenacity import wait_none

from gapbench import GapbenchError
from gapbench.fetch import sources as fetch
from gapbench.fetch.sources import Source, adopt, cached, download, have, place

BODY = bytes(range(256)) * 4000

Behave = Callable[[BaseHTTPRequestHandler, int], None]


class Server:
    """Serves BODY; `behaviours` are used up one a request, then it behaves."""

    def __init__(self) -> None:
        self.behaviours: list[Behave] = []
        self.ranges: list[str | None] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = self.headers.get("Range")
                outer.ranges.append(asked)
                start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
                (outer.behaviours.pop(0) if outer.behaviours else whole)(self, start)

            def log_message(self, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, daemon=True)
        self.thread.start()

    def source(self, sha256: str = hashlib.sha256(BODY).hexdigest()) -> Source:
        url = f"http://127.0.0.1:{self.http.server_port}/pinned/data.bin"
        return Source(url=url, sha256=sha256, bytes=len(BODY), license="MIT")


def send(to: BaseHTTPRequestHandler, start: int, body: bytes) -> None:
    to.send_response(206 if start else 200)
    to.send_header("Content-Length", str(len(BODY) - start))
    to.end_headers()
    to.wfile.write(body)


def whole(to: BaseHTTPRequestHandler, start: int) -> None:
    send(to, start, BODY[start:])


def broken_off(to: BaseHTTPRequestHandler, start: int) -> None:
    send(to, start, BODY[start : start + 100_000])


def refused(to: BaseHTTPRequestHandler, start: int) -> None:
    to.send_error(503)


def stalled(to: BaseHTTPRequestHandler, start: int) -> None:
    send(to, start, BODY[start : start + 50_000])
    to.wfile.flush()
    time.sleep(1.5)


def altered(to: BaseHTTPRequestHandler, start: int) -> None:
    send(to, start, b"x" * (len(BODY) - start))


def from_the_start(to: BaseHTTPRequestHandler, start: int) -> None:
    send(to, 0, BODY)


def too_long(to: BaseHTTPRequestHandler, start: int) -> None:
    to.send_response(200)
    to.end_headers()
    to.wfile.write(BODY + b"more")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("GAPBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(fetch, "PATIENCE", 0.4)
    monkeypatch.setattr(fetch._transfer.retry, "wait", wait_none())  # type: ignore[attr-defined]
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


def test_a_file_is_fetched_once(server: Server) -> None:
    source = server.source()
    came: list[int] = []
    assert download(source, came.append).read_bytes() == BODY
    assert sum(came) == len(BODY)
    assert download(source).read_bytes() == BODY
    assert server.ranges == [None]


@pytest.mark.parametrize(
    ("behaviours", "ranges"),
    [
        ([broken_off], [None, "bytes=100000-"]),
        ([broken_off, broken_off], [None, "bytes=100000-", "bytes=200000-"]),
        ([refused, refused], [None, None, None]),
        ([broken_off, refused], [None, "bytes=100000-", "bytes=100000-"]),
        ([broken_off, from_the_start], [None, "bytes=100000-"]),
        ([stalled], [None, "bytes=50000-"]),
        ([altered], [None, None]),
        ([broken_off, altered], [None, "bytes=100000-", None]),
        ([too_long], [None, None]),
    ],
)
def test_a_failing_server_is_tried_again_from_where_it_stopped(
    server: Server, behaviours: list[Behave], ranges: list[str | None]
) -> None:
    server.behaviours = list(behaviours)
    assert download(server.source()).read_bytes() == BODY
    assert server.ranges == ranges


def test_a_file_that_never_is_the_one_named_is_not_kept(server: Server) -> None:
    source = server.source(sha256="0" * 64)
    with pytest.raises(GapbenchError, match=f"sha256 is {hashlib.sha256(BODY).hexdigest()}"):
        download(source)
    assert not place(source).exists()
    assert len(server.ranges) == 2


def test_a_broken_download_goes_on_in_the_next_call(server: Server) -> None:
    server.behaviours = [broken_off, *[refused] * (fetch.ATTEMPTS - 1)]
    with pytest.raises(
        GapbenchError, match=r"data\.bin cannot be downloaded: the server answers 503"
    ):
        download(server.source())
    assert download(server.source()).read_bytes() == BODY
    assert server.ranges[-1] == "bytes=100000-"


def test_a_file_of_which_only_gits_id_is_known(server: Server, tmp_path: Path) -> None:
    """Its size is not known either, so a download that broke begins anew."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "copy").write_bytes(BODY)
    made = subprocess.run(
        ["git", "hash-object", "--no-filters", "own/copy"],
        cwd=tmp_path, check=True, capture_output=True, text=True,
    )  # fmt: skip
    source = replace(server.source(), sha256="", git_blob=made.stdout.strip(), bytes=0)
    server.behaviours = [broken_off, altered]
    with pytest.raises(GapbenchError, match=rf"{source.name} \(git blob {source.git_blob}\)"):
        cached([source], "task t")
    assert download(source).read_bytes() == BODY
    assert server.ranges == [None] * 3
    place(source).write_bytes(BODY[:-1])
    assert not have(source)
    assert adopt([source], tmp_path / "own") == []
    assert have(source)
    other = replace(source, git_blob="0" * 40)
    with pytest.raises(
        GapbenchError, match=f"its git blob is {source.git_blob}, expected 0{{40}};"
    ):
        download(other)


def test_a_server_that_compresses_is_asked_not_to(server: Server) -> None:
    def packed(to: BaseHTTPRequestHandler, start: int) -> None:
        if "gzip" in to.headers.get("Accept-Encoding", ""):
            to.send_response(200)
            to.send_header("Content-Encoding", "gzip")
            to.end_headers()
            to.wfile.write(gzip.compress(BODY))
        else:
            whole(to, start)

    server.behaviours = [packed]
    assert download(server.source()).read_bytes() == BODY
    assert server.ranges == [None]


@pytest.mark.parametrize("damage", [BODY[:-1], b"x" + BODY[1:], b""])
def test_a_damaged_file_is_found_and_fetched_again(server: Server, damage: bytes) -> None:
    source = server.source()
    place(source).parent.mkdir(parents=True)
    place(source).write_bytes(damage)
    assert not have(source)
    with pytest.raises(GapbenchError, match="gapbench prepare"):
        cached([source], "task t")
    with pytest.raises(
        GapbenchError, match=r"task t needs 2 files \(names and digests: .*txt\)"
    ) as two:
        cached([source] * 2, "task t")
    [listed] = re.findall(r"digests: (.*\.txt)", str(two.value))
    assert Path(listed).read_text() == f"{source.name} (sha256 {source.sha256})\n" * 2
    assert download(source).read_bytes() == BODY
    assert cached([source], "task t") == [place(source)]


def test_offline_nothing_is_asked_of_the_network(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(GapbenchError, match=r"offline: data\.bin .* is not in the cache"):
        download(server.source())
    assert server.ranges == []


def test_copies_of_ones_own_serve_whatever_their_names(server: Server, tmp_path: Path) -> None:
    own = tmp_path / "own" / "deep"
    own.mkdir(parents=True)
    (own / "renamed.dat").write_bytes(BODY)
    (own / "same size.dat").write_bytes(b"x" * len(BODY))
    source = server.source()
    assert adopt([source, server.source("0" * 64)], tmp_path / "own") == [server.source("0" * 64)]
    assert place(source).read_bytes() == BODY
    assert server.ranges == []
    with pytest.raises(GapbenchError, match="is no folder"):
        adopt([source], tmp_path / "nowhere")


def test_two_processes_do_not_harm_each_other(server: Server) -> None:
    server.behaviours = [broken_off]
    source = server.source()
    code = f"from gapbench.fetch.sources import Source, download; download({source!r})"
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert place(source).read_bytes() == BODY
    assert server.ranges == [None, "bytes=100000-"]
