"""`gapbench view`: the runs of a folder side by side, read and nothing else."""

from __future__ import annotations

import http.client
import re
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from gapbench.report.view import Album, serve

from .conftest import ATTACK, ODD, Make

Ask = Callable[..., tuple[int, str]]


@pytest.fixture
def folder(odd: Make, tmp_path: Path) -> Path:
    """Two runs, the second of fewer prompts; one with a broken record, and one torn."""
    whole = odd().path
    shutil.copytree(whole, tmp_path / "bitten")
    with (tmp_path / "bitten" / "verdicts.jsonl").open("a") as verdicts:
        verdicts.write("{\n")
    odd(ODD[:3], name="other")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "plan.json").write_text("{")
    return tmp_path


@pytest.fixture
def ask(folder: Path) -> Iterator[Ask]:
    """Status and body of the answer to a GET, or to another method."""
    with serve(Album(folder)) as (address, forever):
        thread = threading.Thread(target=forever, daemon=True)
        thread.start()
        parts = urlsplit(address)
        assert parts.hostname == "127.0.0.1"

        def call(path: str, method: str = "GET", base: str = parts.path, **headers: str):  # type: ignore[no-untyped-def]
            connection = http.client.HTTPConnection("127.0.0.1", parts.port or 0, timeout=30)
            connection.request(method, base + path, headers=headers)
            answer = connection.getresponse()
            body = answer.read().decode("utf-8", "replace")
            connection.close()
            return answer.status, body

        yield call


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_runs_side_by_side(ask: Ask, folder: Path) -> None:
    before = files(folder)
    status, index = ask("")
    assert status == 200
    assert escape("m<b>") in index
    assert "other" in index
    assert "6 of 6" in index
    assert "3 of 3" in index
    assert "Left out: " in index
    assert "torn" in index
    assert f"{folder / 'bitten' / 'verdicts.jsonl'}:" in index
    assert escape("odd/<i>0</i>") in index
    status, category = ask("category/0")
    assert status == 200
    assert category.count("<img ") == 3  # of prompts 0 and 3: the second run lacks the latter
    assert category.count("not drawn") == 1
    status, prompt = ask("prompt/0")
    assert status == 200
    assert ATTACK not in index + category + prompt
    images = dict.fromkeys(re.findall(r'src="\.\./(image/\d/[0-9a-f]{64})"', prompt))
    assert len(images) == 2
    for image in images:
        status, body = ask(image)
        assert status == 200
        assert "PNG" in body[:8]
    assert files(folder) == before


def test_nothing_else_is_served(ask: Ask, folder: Path) -> None:
    image = re.findall(r"image/\d/[0-9a-f]{64}", ask("prompt/0")[1])[0]
    for path in (
        "category/99", "prompt/99", "prompt/-1", "prompt/x", "image/0/plan.json",
        "image/9/" + image[-64:], "image/0/" + "0" * 64, "image/0/../plan.json", "../plan.json",
        "%2e%2e/plan.json", "plan.json",
    ):  # fmt: skip
        assert ask(path)[0] == 404, path
    assert ask("", "POST", Origin="http://elsewhere")[0] == 403
    assert ask("", base="/")[0] == 403
    assert ask("", Host="elsewhere")[0] == 403
    assert ask(image, **{"Sec-Fetch-Site": "cross-site"})[0] == 403


def test_odd_requests_print_nothing_on_the_terminal(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with serve(Album(folder)) as (address, forever):
        threading.Thread(target=forever, daemon=True).start()
        parts = urlsplit(address)
        for path, goes in (("http://[::1/", False), (parts.path, True), (parts.path, True)):
            with socket.create_connection((parts.hostname or "", parts.port or 0)) as asking:
                if goes:  # as a browser does whose tab is closed
                    asking.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                asking.sendall(f"GET {path} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode())
                assert goes or asking.recv(12) == b"HTTP/1.0 403"
    assert capfd.readouterr().err == ""  # leaving the block waits for the answers


def test_a_folder_without_runs_is_one_line(
    cli: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = cli("view", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"gapbench: {tmp_path} holds no run folder that can be read"
    ]
