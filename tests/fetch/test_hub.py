"""Checkpoints from a local server that speaks the hub's protocol, through the command line."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from gapbench.fetch.hub import fetch, fetch_settings, present, whole
from gapbench.judges.sciscore import CHECKPOINT
from gapbench.types import GapbenchError

Cli = Callable[..., subprocess.CompletedProcess[str]]
REPO = "/Jialuo21/SciScore"
WEIGHTS = "model.safetensors"


class Hub(ThreadingHTTPServer):
    """One repository, whose branch `main` is at `commit`; `failures` are used up by its weights."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.commit = folder, "a" * 40
        self.failures: list[str] = []
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), Handler)

    def names(self) -> list[str]:
        files = [file for file in self.folder.rglob("*") if file.is_file()]
        return [file.relative_to(self.folder).as_posix() for file in files]


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, path = self.server, self.path.split("?")[0]
        if path.startswith(f"/api/models{REPO}/revision/"):
            self.answer(json.dumps({"id": REPO[1:], "sha": hub.commit, "siblings": []}).encode())
            return
        if path == f"/api/models{REPO}/tree/{hub.commit}":
            files = [
                {"type": "file", "path": name, "size": (hub.folder / name).stat().st_size,
                 "oid": "0" * 40}
                for name in hub.names()
            ]  # fmt: skip
            self.answer(json.dumps(files).encode())
            return
        name = path.removeprefix(f"{REPO}/resolve/{hub.commit}/")
        if name not in hub.names():
            self.send_error(404)
            return
        body = (hub.folder / name).read_bytes()
        if self.command == "GET":
            hub.asked.append(f"{name} {self.headers.get('Range', 'whole')}")
        failing = self.command == "GET" and name == WEIGHTS and hub.failures
        self.answer(body, hub.failures.pop(0) if failing else "")

    def answer(self, body: bytes, failure: str = "") -> None:
        if failure == "refuse":
            self.send_error(503)
            return
        asked = self.headers.get("Range", "bytes=0-")
        start = int(asked.removeprefix("bytes=").split("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.server.commit)
        self.end_headers()
        if self.command == "GET":
            end = (start + len(body)) // 2 if failure == "truncate" else len(body)
            self.wfile.write(body[start:end])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(tiny_sciscore: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    made = Hub(tiny_sciscore)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{made.server_port}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def hub_here(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The same in this process, which has read the environment already."""
    for name, value in {
        "HF_HUB_CACHE": str(tmp_path / "hf" / "hub"),
        "ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HUGGINGFACE_CO_URL_TEMPLATE": f"http://127.0.0.1:{hub.server_port}"
        "/{repo_id}/resolve/{revision}/{filename}",
    }.items():
        monkeypatch.setattr(constants, name, value)
    return hub


def test_a_judges_checkpoint_comes_through_a_bad_line_and_scores(
    hub: Hub, fresh_cli: Cli, user_task: Callable[..., Path]
) -> None:
    folder = user_task([{"text": "ice in the sun"}, {"text": "rust on iron"}], judge="sciscore")
    hub.failures = ["refuse", "truncate"]
    prepared = fresh_cli("prepare", "--tasks", str(folder))
    assert prepared.returncode == 0, prepared.stderr
    assert "UNPINNED: no commit of Jialuo21/SciScore is on record" in prepared.stdout
    assert [name.split()[0] for name in hub.asked].count(WEIGHTS) == 3
    ran = fresh_cli(
        "run", "--tasks", str(folder), "--samples", "1", "--verdict", "none", "--offline"
    )
    assert ran.returncode == 0, ran.stderr
    assert "Outside judge: sciscore\n" in ran.stdout


def test_a_branch_is_followed_once_and_names_its_commit(
    hub_here: Hub,
    fresh_cli: Cli,
    user_task: Callable[..., Path],
    tmp_path: Path,
) -> None:
    hub = hub_here
    folder = str(user_task([{"text": "ice in the sun"}], judge="sciscore"))
    offline = fresh_cli("prepare", "--tasks", folder, "--offline")
    assert offline.returncode == 2
    assert "it is config.json, model.safetensors, vocab.json" in offline.stderr
    assert str(tmp_path / "hf" / "hub" / "models--Jialuo21--SciScore") in offline.stderr
    assert hub.asked == []
    assert not present(CHECKPOINT)

    fetch(CHECKPOINT)
    before = CHECKPOINT.fingerprint
    hub.commit = "b" * 40
    assert fetch(CHECKPOINT).name == "a" * 40
    assert CHECKPOINT.fingerprint == before
    assert len(hub.asked) == 5

    shutil.rmtree(tmp_path / "hf")
    assert fetch(CHECKPOINT).name == "b" * 40
    assert CHECKPOINT.fingerprint != before


def test_of_a_repository_of_several_checkpoints_one_is_fetched(
    hub_here: Hub, tmp_path: Path
) -> None:
    hub_here.folder = tmp_path / "repository"
    for name in ("config.json", "2B/config.json", "4B/config.json", "4B/log/a.json"):
        (hub_here.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (hub_here.folder / name).write_text("{}")
        (hub_here.folder / name).with_name(WEIGHTS).write_text("x")
    snapshot = fetch_settings("judge x", REPO[1:], None, ["*.json"], "4B")
    assert snapshot.name == hub_here.commit
    assert hub_here.asked == ["4B/config.json whole"]
    wanted = whole(REPO[1:], "MIT", snapshot, ["*.json"], "4B")
    assert list(wanted.files) == ["4B/config.json", f"4B/{WEIGHTS}"]
    assert not present(wanted)
    assert (fetch(wanted) / f"4B/{WEIGHTS}").is_file()
    assert present(wanted)
    assert hub_here.asked[1:] == [f"4B/{WEIGHTS} whole"]
    with pytest.raises(GapbenchError, match=r"SciScore/8B cannot be downloaded \(it has no folder"):
        fetch_settings("judge x", REPO[1:], None, ["*.json"], "8B")


def test_the_hubs_client_does_not_tell_of_each_new_attempt() -> None:
    code = (
        "from gapbench.fetch.libraries import quiet; quiet(); "
        "from huggingface_hub.utils import logging; print(logging.get_verbosity())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == logging.ERROR
