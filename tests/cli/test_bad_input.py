"""Bad input through the command line: one line that says what is wrong, or a counted abstention."""

from __future__ import annotations

import json
import struct
import subprocess
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from bad_commands import BAD
from here import end
from PIL import Image

import gapbench
from gapbench import open_run
from gapbench.models.base import Drawing, Model

Cli = Callable[..., subprocess.CompletedProcess[str]]
HTML = "<img src=x onerror=alert(1)> & [bold red]a plum[/bold red] <script>alert(2)</script>"


def bomb(width: int, height: int) -> bytes:
    """A PNG of a hundred bytes whose header claims that size, three bytes a pixel."""

    def chunk(data: bytes) -> bytes:
        return struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))

    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(map(chunk, (head, b"IDAT", b"IEND")))


def refused(done: subprocess.CompletedProcess[str], *said: str) -> None:
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("gapbench: ")
    assert done.stderr.count("\n") == 1, done.stderr
    for words in said:
        assert words in done.stderr


@pytest.mark.parametrize(
    ("image", "data", "said"),
    [
        ("a.png", b"<html>no image</html>", "a.png: broken image, no PNG, JPEG, WEBP"),
        ("a.png", bomb(20_000, 20_000), "a.png: the image has more than 67,108,864 pixels"),
        ("../secret.png", b"", "manifest.jsonl:1: '../secret.png' must be a path inside"),
        ("/etc/hostname", b"", "manifest.jsonl:1: '/etc/hostname' must be a path inside"),
    ],
    ids=["no image", "bomb", "up", "absolute"],
)
def test_pictures_drawn_elsewhere(
    cli: Cli, tmp_path: Path, user_task: Callable[..., Path], image: str, data: bytes, said: str
) -> None:
    folder = user_task([{"text": "a plum"}], judge=None, samples=1)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    (pictures / "a.png").write_bytes(data)
    line = {"prompt": "a plum", "sample": 0, "image": image}
    (pictures / "manifest.jsonl").write_text(json.dumps(line) + "\n")
    done = cli("run", "--model", f"images:{pictures}", "--tasks", str(folder), "--verdict", "none")
    refused(done, said)
    assert not (tmp_path / "runs").exists()


def test_a_label_outside_the_vocabulary(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(f"image,label\n{'a' * 64},yes\n{'b' * 64},perhaps\n")
    done = cli("run", "--judge", "human:labels.csv", "--limit", "2")
    refused(done, "labels.csv:3: label 'perhaps' is not one of yes, 1")
    sample = tmp_path / "00000" / "samples"
    sample.mkdir(parents=True)
    (sample.parent / "metadata.jsonl").write_text('{"prompt": "a plum"}')
    Image.new("RGB", (8, 8)).save(sample / "0000.png")
    row = {"filename": "00000/samples/0000.png", "prompt": "a plum", "reason": ""}
    (tmp_path / "results.jsonl").write_text(json.dumps({**row, "correct": "perhaps"}) + "\n")
    done = cli("run", "--judge", "imported:results.jsonl", "--limit", "2")
    refused(done, "results.jsonl:1: correct is 'perhaps', not true or false")
    assert not (tmp_path / "runs").exists()


def test_records_whose_columns_changed(cli: Cli, user_task: Callable[..., Path]) -> None:
    renamed = [{"prompt": "a plum"}, {"caption": "a pear"}]
    folder = user_task(renamed, fields={"text": "prompt"}, judge=None)
    said = "prompts.jsonl:2: no field 'prompt'; the records changed"
    refused(cli("run", "--tasks", str(folder)), said)


def test_html_in_a_prompt_stays_text(
    cli: Cli, tmp_path: Path, user_task: Callable[..., Path]
) -> None:
    folder = user_task([{"text": HTML}, {"text": "a plum"}], judge=None, samples=1)
    assert HTML in cli("tasks", str(folder)).stdout
    done = cli("run", "--tasks", str(folder))
    assert done.returncode == 0, done.stderr
    run = open_run(next((tmp_path / "runs").iterdir()))
    assert run.frame()["text"].tolist() == [HTML, "a plum"]
    for form in ("text", "markdown", "csv", "json"):
        shown = cli("show", str(run.path), "--format", form)
        assert shown.returncode == 0
        assert "mine" in shown.stdout
        assert "<img" not in shown.stdout
        assert "<script" not in shown.stdout
    kinds = {file.suffix for file in run.path.rglob("*") if file.is_file()}
    assert kinds <= {".json", ".jsonl", ".png", ".npy", ".lock", ""}
    [sheet] = (run.path / "sheets").iterdir()
    Image.open(sheet).load()
    absent = tmp_path / "pictures"
    absent.mkdir()
    Image.new("RGB", (8, 8)).save(absent / "a plum_000000.png")
    done = cli("run", "--model", f"images:{absent}", "--tasks", str(folder), "--verdict", "none")
    refused(done, f"first sample 0 of {HTML!r}")


class Garbage(BaseHTTPRequestHandler):
    """A server that makes sense about plums alone."""

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
        choice = {"message": {"role": "assistant", "content": "The score is 1."}}
        answers = {
            "plum": json.dumps({"choices": [choice]}),
            "pear": "<html>502</html>",
            "fig": '{"choices": [{"message": {"content": ["\\ud800"',
            "kiwi": json.dumps({"choices": 7}),
        }
        body = next(answer for fruit, answer in answers.items() if f"a {fruit}" in asked).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def garbage() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Garbage)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"server:http://127.0.0.1:{server.server_port}/v1#fruit"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    "command", [("run", "--limit", "1"), ("run", "--dry-run"), ("fix", "sft", "--out", "fixed")]
)
def test_a_device_that_is_not_here_is_one_line(cli: Cli, command: tuple[str, ...]) -> None:
    done = cli(*command, "--device", "cuda:99")
    refused(done, "--device cuda:99: torch does not see it on this machine; use --device cpu")


def test_a_server_of_garbage_costs_its_own_verdicts_alone(
    cli: Cli, tmp_path: Path, user_task: Callable[..., Path], garbage: str
) -> None:
    fruits = ("plum", "pear", "fig", "kiwi")
    folder = user_task([{"text": f"a {fruit}"} for fruit in fruits], judge=None, samples=1)
    done = cli("run", "--tasks", str(folder), "--judge", f"{garbage}?attempts=1")
    assert done.returncode == 2
    assert "WARNING: verdicts of server-fruit: 5 missing: the reply is broken" in done.stdout
    frame = open_run(next((tmp_path / "runs").iterdir())).frame()
    assert frame["text"].tolist() == [f"a {fruit}" for fruit in fruits]
    assert frame["own"].notna().all()
    assert frame["outside"].isna().tolist() == [False, True, True, True]
    assert frame["outside"][0] == 1


class Blank(Model):
    name, fingerprint, recipe = "blank", "blank-1", {}
    capabilities = frozenset({"generate"})

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Drawing]:
        return [Drawing(Image.new("RGB", (24, 24)), None, text, None) for text in prompts]


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the bad command lines name and that is there."""
    folder = tmp_path_factory.mktemp("bad")
    made = gapbench.run(
        Blank(), "shapes/colors", limit=2, samples=1, verdict="none", out=folder
    ).path.rename(folder / "RUN")
    texts = {
        "file": "", "key.yaml": "tempo: 1\n", "list.yaml": "- model\n", "broken.yaml": "model: [\n",
        "twice.yaml": "seed: 3\nseed: 4\n", "dashes.yaml": "dry-run: true\ndry_run: false\n",
        "model.yaml": "model:\n", "value.yaml": "samples: many\n", "empty/.keep": "",
        "checkpoint/config.json": "{}",
        "later/run.json": '{"format": 99}', "torn/run.json": (made / "run.json").read_text()[:99],
        "bare/task.yaml": "title: bare\n",
        "hollow/task.yaml": 'title: h\nversion: "1"\nfile: p.txt\ntiers: {easy: [a]}\n',
        "hollow/p.txt": "",
        "twice/task.yaml": 'title: t\nversion: "1"\nfile: p.txt\ntiers: {easy: [a], hard: [a]}\n',
    }  # fmt: skip
    for name, text in texts.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_a_bad_command_line_takes_one_line_and_leaves_nothing(
    bad: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(bad)
    for cache in ("HF_HOME", "GAPBENCH_CACHE"):
        monkeypatch.setenv(cache, str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def there() -> dict[str, bytes]:
        return {
            str(file): file.read_bytes()
            for folder in (bad, tmp_path)
            for file in folder.rglob("*")
            if file.is_file() and file.name != ".lock"
        }

    before, wrong = there(), list[str]()
    for line, said in BAD:
        code, out, told = end(capfd, *line.split())
        fine = (code, out, told.count("\n")) == (2, "", 1) and told.startswith("gapbench: ")
        if not fine or said not in told or "Traceback" in told:
            wrong.append(f"{line}: exit {code}: {out[-100:]}{told[-400:]}")
        if there() != before:
            wrong.append(f"{line}: leaves files")
            before = there()
    assert not wrong, "\n".join(wrong)
    assert len(BAD) >= 100
