"""`gapbench prepare` as processes, against a real local server."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gapbench.runs import needs

Cli = Callable[..., subprocess.CompletedProcess[str]]
PROMPTS = "".join(f"a plate with {n} plums\n" for n in range(3_000)).encode()
SHA256 = hashlib.sha256(PROMPTS).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves PROMPTS; the first `broken` answers end halfway."""

    def __init__(self) -> None:
        self.broken = 0
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/0123abcd/"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range", "")
        self.server.asked.append(asked or "whole")
        start = int(asked.removeprefix("bytes=").rstrip("-") or 0)
        body = PROMPTS[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.server.broken:
            self.server.broken -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("GAPBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    made = Server()
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def task(server: Server, user_task: Callable[..., Path]) -> Callable[..., Path]:
    """A task of one's own that is fetched from the server."""

    def make(sha256: str = SHA256) -> Path:
        plums = {"path": "plums.txt", "bytes": len(PROMPTS), "sha256": sha256, "category": "plums"}
        return user_task(
            [], base=server.address, downloads=[plums], file=None, license="CC0-1.0",
            tiers={"easy": ["plums"]}, judge=None,
        )  # fmt: skip

    return make


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The last line of stderr; what stands before it is the progress bar's."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    *_, last = done.stderr.splitlines()
    assert last.startswith("gapbench: ")
    return last


def test_a_dry_run_says_what_it_takes_and_fetches_nothing(
    cli: Cli, server: Server, task: Callable[..., Path], tmp_path: Path
) -> None:
    done = cli("prepare", "--tasks", str(task()), "--dry-run")
    assert done.returncode == 0, done.stderr
    row = next(line for line in done.stdout.splitlines() if "plums.txt" in line)
    for said in ("task mine", f"{len(PROMPTS) / 1e6:.2f}", "CC0-1.0", SHA256[:12], "no"):
        assert said in row.replace("  ", " "), said
    assert server.asked == []
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("by", ["prepare", "run"])
def test_it_fetches_once_and_the_task_runs(
    cli: Cli, server: Server, task: Callable[..., Path], by: str
) -> None:
    folder = str(task())
    small = ("run", "--tasks", folder, "--limit", "2", "--samples", "1", "--verdict", "none")
    missing = refusal(cli(*small, "--offline"))
    assert f"task mine: offline: plums.txt (sha256 {SHA256}) is not in the cache" in missing
    assert server.asked == []
    if by == "run":
        assert cli(*small).returncode == 0
        assert server.asked == ["whole"]
    done = cli("prepare", "--tasks", folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("All of it is here.\n")
    again = cli("prepare", "--tasks", folder)
    assert "yes" in next(line for line in again.stdout.splitlines() if "plums.txt" in line)
    assert server.asked == ["whole"]
    ran = cli("run", "--tasks", folder, "--limit", "2", "--samples", "1", "--offline")
    assert ran.returncode == 0, ran.stderr
    assert "overall" in ran.stdout


def test_what_broke_off_goes_on_where_it_stopped(
    cli: Cli, server: Server, task: Callable[..., Path]
) -> None:
    server.broken = 1
    assert cli("prepare", "--tasks", str(task())).returncode == 0
    assert server.asked == ["whole", f"bytes={len(PROMPTS) // 2}-"]


def test_without_the_network_it_names_file_digest_and_folder(
    cli: Cli, server: Server, task: Callable[..., Path], tmp_path: Path
) -> None:
    said = refusal(cli("prepare", "--tasks", str(task()), "--offline"))
    assert f"offline: plums.txt (sha256 {SHA256}) is not in the cache" in said
    assert "gapbench prepare --data FOLDER" in said
    assert str(tmp_path / "cache" / "files" / SHA256[:16] / "plums.txt") in said
    assert server.asked == []


def test_a_folder_of_ones_own_copies_serves_without_a_network(
    cli: Cli, server: Server, task: Callable[..., Path], tmp_path: Path
) -> None:
    folder, own = str(task()), tmp_path / "own" / "deep"
    own.mkdir(parents=True)
    (own / "of another name").write_bytes(PROMPTS)
    (own / "plums.txt").write_bytes(PROMPTS.replace(b"plums", b"pears"))
    offline = ("prepare", "--tasks", folder, "--data", str(tmp_path / "own"), "--offline")
    assert cli(*offline).returncode == 0
    assert server.asked == []
    shown = cli("tasks", folder)
    assert "a plate with 0 plums" in shown.stdout
    nowhere = cli("prepare", "--tasks", folder, "--data", "nowhere")
    assert "--data nowhere is no folder" in refusal(nowhere)


def test_a_file_of_another_digest_is_told_and_not_kept(
    cli: Cli, server: Server, task: Callable[..., Path], tmp_path: Path
) -> None:
    said = refusal(cli("prepare", "--tasks", str(task("0" * 64))))
    assert f"{server.address}plums.txt cannot be downloaded" in said
    assert f"its sha256 is {SHA256}, expected {'0' * 64}" in said
    assert not list((tmp_path / "cache").rglob("plums.txt"))


def test_an_altered_file_is_found_and_fetched_again(
    cli: Cli, server: Server, task: Callable[..., Path], tmp_path: Path
) -> None:
    folder = str(task())
    assert cli("prepare", "--tasks", folder).returncode == 0
    file = tmp_path / "cache" / "files" / SHA256[:16] / "plums.txt"
    file.write_bytes(PROMPTS[:-1])
    assert "offline: plums.txt" in refusal(cli("run", "--tasks", folder, "--offline"))
    assert cli("prepare", "--tasks", folder).returncode == 0
    assert file.read_bytes() == PROMPTS


def test_two_processes_at_once_fetch_it_once(
    server: Server, task: Callable[..., Path], tmp_path: Path
) -> None:
    command = [sys.executable, "-c", "from gapbench.cli.main import main; main()", "prepare"]
    options = ("--tasks", str(task()))
    started = [subprocess.Popen([*command, *options], cwd=tmp_path) for _ in range(2)]
    assert [process.wait(60) for process in started] == [0, 0]
    assert server.asked == ["whole"]
    assert (tmp_path / "cache" / "files" / SHA256[:16] / "plums.txt").read_bytes() == PROMPTS


def test_a_model_that_is_no_name_of_the_registry_is_no_worker() -> None:
    assert needs.workers(["diffusers:OWNER/NAME", "./my.py:Class"], None) == {}


def test_a_tasks_own_file_is_asked_for_without_its_judge(cli: Cli) -> None:
    said = refusal(cli("prepare", "--tasks", "dpg", "--judge", "none", "--offline"))
    assert "dpg_bench.csv" in said


def test_what_a_judge_takes_is_listed_where_the_hub_is_not_reached(cli: Cli) -> None:
    done = cli("prepare", "--judge", "vlm:8b,dyneval", "--dry-run", "--offline")
    assert done.returncode == 0, done.stderr
    table = done.stdout.partition("UNPINNED")[0].splitlines()
    rows = {row.split()[0]: row.split()[1:] for row in table if row.split()}
    assert rows.keys() == {  # no task's files
        "needed", "Qwen/Qwen3-VL-8B-Instruct", "vcl-iisc/DynEval-Evaluator", "run_inference.py",
    }  # fmt: skip
    assert rows["Qwen/Qwen3-VL-8B-Instruct"] == [
        "judge", "vlm:8b", "18,000.00", "Apache-2.0", "commit", "0c351dd01ed8", "no",
    ]  # fmt: skip
    assert rows["vcl-iisc/DynEval-Evaluator"][-2:] == ["NOTHING", "no"]
    assert "UNPINNED: no commit of vcl-iisc/DynEval-Evaluator" in done.stdout
