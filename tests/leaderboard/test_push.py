"""gapbench push against a local server that speaks the hub's upload protocol."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

TOKEN = "hf_" + "x" * 34
Push = Callable[..., subprocess.CompletedProcess[str]]


class Hub(ThreadingHTTPServer):
    """Repositories by kind and name; files ending in `large` go by LFS, the rest in the commit."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.visibility: dict[str, str] = {}
        self.objects: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.commits = 0
        self.large: tuple[str, ...] = ()
        self.fail_commits = 0


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    @property
    def at(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def do_GET(self) -> None:
        self.handle_call(b"")

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length")
        if length is not None:
            self.handle_call(self.rfile.read(int(length)))
            return
        body = b""
        while size := int(self.rfile.readline(), 16):  # chunked
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        self.handle_call(body)

    def do_PUT(self) -> None:
        self.do_POST()

    def handle_call(self, body: bytes) -> None:
        hub, path = self.server, self.path.split("?")[0]
        hub.asked.append(f"{self.command} {path}")
        if path.startswith("/store/"):
            hub.objects[path.rpartition("/")[2]] = body
            self.answer(200, {})
            return
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer(401, {"error": "Invalid credentials"})
            return
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('type', 'model')}s/{asked['organization']}/{asked['name']}"
            known = name in hub.repos
            hub.repos.setdefault(name, {})
            hub.visibility.setdefault(name, asked.get("visibility", "public"))
            self.answer(409 if known else 200, {"url": f"{self.at}/{name.removeprefix('models/')}"})
        elif path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            self.answer(
                200,
                {
                    "transfer": "basic",
                    "objects": [
                        {**o, "actions": {"upload": {"href": f"{self.at}/store/{o['oid']}"}}}
                        for o in objects
                    ],
                },
            )
        elif "/preupload/" in path:
            files = hub.repos[self.repo(path, "/preupload/")]
            self.answer(
                200,
                {
                    "files": [
                        {
                            "path": f["path"],
                            "uploadMode": "lfs"
                            if f["path"].endswith(hub.large or "\0")
                            else "regular",
                            "shouldIgnore": False,
                            "oid": git_oid(files[f["path"]]) if f["path"] in files else None,
                        }
                        for f in json.loads(body)["files"]
                    ]
                },
            )
        elif "/commit/" in path:
            self.commit(hub.repos[self.repo(path, "/commit/")], body)
        else:
            self.answer(200, {"id": "me/x", "sha": "a" * 40, "siblings": []})

    def commit(self, files: dict[str, bytes], body: bytes) -> None:
        hub = self.server
        if hub.fail_commits:
            hub.fail_commits -= 1
            self.answer(403, {"error": "You are over your quota"})
            return
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = hub.objects[value["oid"]]
        hub.commits += 1
        self.answer(200, {"commitUrl": f"{self.at}/me/x/commit/" + "a" * 40, "commitOid": "a" * 40})

    def repo(self, path: str, before: str) -> str:
        return path.removeprefix("/api/").split(before)[0]

    def answer(self, status: int, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@pytest.fixture
def hub() -> Iterator[Hub]:
    made = Hub()
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def push(hub: Hub, tmp_path: Path) -> Push:
    """`gapbench push ARGS` as a process that takes the local server for the hub."""

    def call(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", "from gapbench.cli.main import main; main()", "push", *args],
            cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120,
            env={
                **{k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"},
                "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
                "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": TOKEN, **env,
            },
        )  # fmt: skip

    return call


@pytest.fixture
def run_folder(made: Any, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(made.run.path, tmp_path / "run"))
    (folder / ".lock").touch()
    (folder / "rates.json.17.part").write_text("{")
    return folder


def sent(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and not file.name.startswith(".") and file.suffix != ".part"
    }


def test_without_yes_it_says_what_and_sends_nothing(hub: Hub, push: Push, run_folder: Path) -> None:
    done = push(str(run_folder), "--repo", "me/run")
    assert (done.returncode, done.stderr) == (0, "")
    size = sum(map(len, sent(run_folder).values()))
    assert f"dataset me/run: {len(sent(run_folder))} files" in done.stdout
    assert f"{size / 1e6:.1f} MB" in done.stdout
    assert "Nothing was uploaded; --yes uploads it." in done.stdout
    assert hub.asked == []


def test_a_run_becomes_a_private_data_set_with_its_table(
    hub: Hub, push: Push, run_folder: Path
) -> None:
    done = push(str(run_folder), "--repo", "me/run", "--yes")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("/datasets/me/run\n")
    files = hub.repos["datasets/me/run"]
    card = files.pop("README.md").decode()
    assert files == sent(run_folder)
    assert hub.visibility == {"datasets/me/run": "private"}
    assert "# janus-mini on few-shapes 1.0" in card
    assert "**overall**" in card
    assert TOKEN not in done.stdout + done.stderr


def test_a_checkpoint_becomes_a_model_its_large_files_by_lfs(
    hub: Hub, push: Push, tiny_janus: Path
) -> None:
    hub.large = (".safetensors",)
    done = push(str(tiny_janus), "--repo", "me/fixed", "--yes", HF_HUB_DISABLE_XET="1")
    assert done.returncode == 0, done.stderr
    assert hub.repos["models/me/fixed"] == sent(tiny_janus)
    assert [call for call in hub.asked if call.startswith("PUT /store/")]


def test_what_the_hub_refuses_is_said_and_the_same_command_goes_on(
    hub: Hub, push: Push, run_folder: Path
) -> None:
    hub.fail_commits = 99
    refused = push(str(run_folder), "--repo", "me/run", "--yes")
    assert refused.returncode == 2
    last = refused.stderr.splitlines()[-1]
    assert last.startswith("gapbench: me/run: the hub did not take it (")
    assert "Traceback" not in refused.stderr
    hub.fail_commits = 0
    assert push(str(run_folder), "--repo", "me/run", "--yes").returncode == 0
    assert hub.repos["datasets/me/run"].keys() == {*sent(run_folder), "README.md"}
    commits = hub.commits
    assert push(str(run_folder), "--repo", "me/run", "--yes").returncode == 0
    assert hub.commits == commits  # nothing changed, nothing is sent


def test_a_wrong_token_is_one_line(hub: Hub, push: Push, run_folder: Path) -> None:
    done = push(str(run_folder), "--repo", "me/run", "--yes", HF_TOKEN="hf_wrong")
    assert (done.returncode, done.stdout.count("\n")) == (2, 1)
    assert done.stderr.splitlines()[-1].endswith(
        "are you logged in (`hf auth login`)? The same command goes on"
    )
    assert "Traceback" not in done.stderr
    assert hub.repos == {}


@pytest.mark.parametrize(
    ("args", "fault"),
    [
        (("run", "--repo", "me"), "give OWNER/NAME"),
        (("empty", "--repo", "me/x"), "neither a run folder (run.json) nor a checkpoint"),
        (("linked", "--repo", "me/x"), "is a link; only files of the folder itself are sent"),
    ],
)
def test_what_is_not_sent(
    hub: Hub, push: Push, run_folder: Path, tmp_path: Path, args: tuple[str, ...], fault: str
) -> None:
    (tmp_path / "empty").mkdir()
    linked = shutil.copytree(run_folder, tmp_path / "linked")
    (linked / "passwords").symlink_to("/etc/passwd")
    done = push(*args, "--yes")
    assert (done.returncode, done.stdout) == (2, "")
    assert fault in done.stderr
    assert hub.asked == []
