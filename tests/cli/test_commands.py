"""Every command line of the README and the docs, word for word, in order and in one folder.

What comes over a network is stubbed: the hub gives a tiny random Janus and takes what is pushed,
sources give a few prompts, judges with large weights like bright images, and a server runs here.
Tasks are small: a prompt of each category, and four categories of shapes.
"""

from __future__ import annotations

import base64
import io
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from http.server import HTTPServer
from itertools import groupby, islice
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from here import end
from PIL import Image, ImageStat
from servers import Asked, Painter, Server

from gapbench.explain.groups import choose
from gapbench.fetch import sources
from gapbench.fetch.sources import Source
from gapbench.judges.base import Judge
from gapbench.judges.detector import DetectorJudge
from gapbench.judges.vlm import VlmJudge
from gapbench.judges.vqa import VqaJudge
from gapbench.tasks.prompts.questions import questions
from gapbench.tasks.task import Task
from gapbench.types import Answer, Prompt

ROOT = Path(__file__).parents[2]
PAGES = (
    "README.md", "docs/index.md", "docs/quickstart.md", "docs/results.md", "docs/report.md",
    "docs/compare.md", "docs/fix.md", "docs/rewards.md", "docs/explain.md",
    "docs/own-model.md", "docs/own-judge.md", "docs/own-task.md", "docs/lm-eval.md",
    "docs/questions.md", "docs/servers.md", "docs/cluster.md", "docs/submit.md", "docs/terminal.md",
)  # fmt: skip
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CATEGORIES = ("colors", "position", "texture", "compound_fact")
PAIRED = "position"
"""The category with two prompts, without which `power` knows no variance between prompts."""
STANDS_FOR = {
    r"(runs/)?BEFORE|RUN": "janus-mini",
    r"(runs/)?AFTER\d?": "fixed",
    r"runs/janus-pro-\.\.\.": "janus-pro",
    "mmmu_val(,gapbench_shapes)?": "gapbench_shapes",  # the one whose data is here
    "--workers": "--batch-size",  # processes of their own would know no stub
    "--ray-address": "--device",  # there is no cluster; both take "auto"
}
"""Words of the docs that a reader replaces, and what is not possible here."""


def commands(page: str) -> Iterator[list[str]]:
    """The command lines of a page's blocks, as a shell would split them."""
    text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
    for line in re.findall(r"^(?:    |pip .* && )((?:gapbench|echo) .+)$", text, flags=re.M):
        words = shlex.split(line, comments=True)
        while ";" in words:
            yield words[: words.index(";")]
            words = words[words.index(";") + 1 :]
        yield words


class Hosted(Server):
    """A server that draws every prompt in red and answers every question."""

    handler = Painter

    def play(self, handler: Painter, asked: Asked) -> None:
        if handler.path.endswith("/images/generations"):
            picture = io.BytesIO()
            Image.new("RGB", (24, 24), (200, 9, 9)).save(picture, "PNG")
            handler.send({"data": [{"b64_json": base64.b64encode(picture.getvalue()).decode()}]})
        elif "return_token_ids" in asked:
            handler.talk(asked)
        else:
            handler.say("The score is 1")


@pytest.fixture
def server(tmp_path: Path, tiny_janus: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hosted]:
    """An empty folder, with all stubbed that comes over a network; gives the server's stub."""
    monkeypatch.setattr(sys, "path", [*sys.path])  # a command puts its folder there
    monkeypatch.setenv("GAPBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("GAPBENCH_ALLOW_HTTP", "")  # a command's --allow-http ends with the test
    whole = Task.prompts

    def few(task: Task, split: str | None = None) -> list[Prompt]:
        of_task = whole(task, split)
        if task.name.startswith("shapes"):
            of_task = [prompt for prompt in of_task if prompt.category in CATEGORIES]
        groups = groupby(of_task, key=lambda prompt: prompt.category)
        return [p for kind, group in groups for p in islice(group, 2 if kind == PAIRED else 1)]

    def hub(repo: str, *, revision: str, **_more: object) -> str:
        if "vit_base_patch32" in repo:  # explain then takes the model's own encoder
            raise ConnectionError("no route to the hub")
        folder = tmp_path / repo / (COMMIT if revision == "main" else revision)
        if not folder.is_dir():
            shutil.copytree(tiny_janus, folder)
        return str(folder)

    def transfer(source: Source, part: Path, _advance: object) -> str:
        if "T2I-CompBench" not in source.url:
            return "no route"
        part.write_text("".join(f"a red thing {i} of {source.name}\n" for i in range(4)))
        return ""

    def bright(
        judge: Judge, images: Sequence[Image.Image], prompts: Sequence[Prompt]
    ) -> list[Answer]:
        light = [ImageStat.Stat(image.convert("L")).mean[0] / 255 for image in images]
        if isinstance(judge, DetectorJudge):
            return [Answer(verdict=int(each > 0.5)) for each in light]
        return [judge.scored(each) for each in light]

    monkeypatch.setattr(Task, "prompts", few)
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub)
    monkeypatch.setattr("gapbench.fetch.hub.verify", lambda *_: None)
    monkeypatch.setattr(sources, "_transfer", transfer)
    monkeypatch.setattr(sources.Source, "is_file", lambda *_: True)
    monkeypatch.setattr(Task, "_check_digest", lambda *_: None)
    monkeypatch.setattr(sources, "have", lambda source: sources.place(source).is_file())
    monkeypatch.setattr(VqaJudge, "question", lambda _, prompt: prompt.question)  # spaCy's parses
    for judge in (DetectorJudge, VqaJudge, VlmJudge):
        monkeypatch.setattr(judge, "judge", bright)
        monkeypatch.setattr(judge, "check_ready", lambda _self: None)
        monkeypatch.setattr(judge, "check_picture", lambda _self: None)

    def ctrl_c(_server: HTTPServer, *_more: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gapbench.models.janus.make.pick_device", lambda *_: "cpu")
    monkeypatch.setattr("huggingface_hub.HfApi", MagicMock)
    monkeypatch.setattr(questions, "__defaults__", (4,))  # of 200 for lm-eval
    monkeypatch.setattr("gapbench.explain.groups.ALTERNATIVES", 1)
    monkeypatch.setattr("gapbench.explain.run.MEAN_OVER", 4)
    monkeypatch.setattr("gapbench.explain.run.choose", lambda *a: choose(*a[:2], 4, a[3]))
    monkeypatch.setattr("webbrowser.open", lambda _address: True)
    (tmp_path / "reader").mkdir()
    monkeypatch.chdir(tmp_path / "reader")
    hosted = Hosted()
    with hosted.serving(monkeypatch):
        monkeypatch.setattr(HTTPServer, "serve_forever", ctrl_c)
        yield hosted


def as_typed(words: list[str], address: str) -> list[str]:
    """A line of the docs with names and addresses put in and patterns expanded."""
    typed: list[str] = []
    for word in words:
        for pattern, name in STANDS_FOR.items():
            word = name if re.fullmatch(pattern, word) else word
        word = re.sub(r"https?://(HOST|(localhost|node\d):\d+)", address, word)
        # Two names of one server are two addresses.
        word = word.replace(f",{address}", f",{address.replace('127.0.0.1', 'localhost')}")
        typed += sorted(map(str, Path().glob(word))) or [word] if "*" in word else [word]
    return typed


def test_no_page_with_commands_is_left_out() -> None:
    # tests/test_docs.py, with the page's files; tests/models/bagel, showo and pipelines, with small
    # checkpoints; tests/comparison/test_parity.py, whose images are enough to show something;
    # tests/lmeval/test_lmms.py, where lmms-eval is installed.
    files = "formats bagel diffusers show-o parity lmms-eval"
    elsewhere = {f"docs/{name}.md" for name in files.split()}
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    named = {page.relative_to(ROOT).as_posix() for page in pages}
    assert {page for page in named if any(commands(page))} == {*PAGES} | elsewhere


def test_every_command_line_works(
    server: Hosted, tiny_janus: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_janus, "checkpoint")  # the README's
    toy = (ROOT / "docs/own-model.md").read_text(encoding="utf-8")
    blocks = re.findall("```python\n(.*?)```", toy, flags=re.S)
    Path("my.py").write_text(blocks[0])
    Path("flow.py").write_text(blocks[-1])
    address, typed = f"http://127.0.0.1:{server.server_port}", set[str]()
    for page in PAGES:
        if page == "docs/submit.md":  # the clone has one, of all prompts
            entered = ("submit", "janus-mini", "--tasks", "shapes", "--contact", "me")
            assert end(capfd, *entered, "--allow-test-model")[0] is None
        for words in commands(page):
            line = shlex.join(words)
            if words[0] == "echo":
                Path(words[3]).write_text(words[1])
            elif line not in typed:  # else it would only say the same again
                code, _, told = end(capfd, *as_typed(words[1:], address))
                assert code is None, f"{page}: {line}\n{told}"
            typed.add(line)
    assert len(typed) > 70
