"""`gapbench label`: answers are kept as they are given, and nobody else can give or see them."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from processes import Start

from gapbench import GapbenchError, open_run
from gapbench.judges.human import HumanJudge
from gapbench.report.label import LARGEST_BODY, Labels

from .conftest import ENV, Make, Said


class Site:
    """A label page that runs as a process."""

    def __init__(self, start: Start, logs: Path, run: Path, *args: str) -> None:
        self.process = start(logs, "label", str(run), *args, environment=ENV)
        self.out, self.err = logs / "out", logs / "err"
        limit = time.monotonic() + 240  # on a busy machine
        while not (self.out.exists() and self.out.read_text().count("\n") >= 2):
            assert self.process.is_alive(), self.err.read_text()
            assert time.monotonic() < limit
            time.sleep(0.01)
        self.said, self.address = self.out.read_text().splitlines()
        parts = urlsplit(self.address)
        assert parts.hostname == "127.0.0.1"
        assert parts.port is not None
        self.port, self.path = parts.port, parts.path

    def ask(
        self, path: str = "", body: bytes | None = None, **headers: str | None
    ) -> tuple[int, bytes]:
        """Status and answer of a request as the page's own script sends it, headers changed."""
        ours = {"Host": f"127.0.0.1:{self.port}", "Origin": f"http://127.0.0.1:{self.port}"}
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        sent = {k: v for k, v in {**ours, **named}.items() if v is not None}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            method = "GET" if body is None else "POST"
            place = path if path.startswith("/") else self.path + path
            connection.putrequest(method, place, skip_host=True, skip_accept_encoding=True)
            if body is not None and "Content-Length" not in sent:
                sent["Content-Length"] = str(len(body))
            for name, value in sent.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def label(self, item: int, label: object) -> int:
        return self.ask("label", json.dumps({"item": item, "label": label}).encode())[0]

    def items(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.ask("items")[1])
        return found

    def stop(self, number: int = signal.SIGINT) -> tuple[int | None, str, str]:
        """The exit code, what it said since it started, and its errors."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)
        self.process.join(30)
        said = self.out.read_text().splitlines()[2:]
        return self.process.exitcode, "\n".join(said), self.err.read_text()


@pytest.fixture
def open_page(
    start: Start, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Site]]:
    sites: list[Site] = []

    def call(*args: Any) -> Site:
        sites.append(Site(start, tmp_path_factory.mktemp("label"), *args))
        return sites[-1]

    yield call
    for site in sites:
        site.process.kill()
        site.process.join()
        site.process.close()


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "labels.jsonl").read_text().splitlines()]


def test_the_page_is_blind(odd: Make, open_page: Callable[..., Site]) -> None:
    site = open_page(odd(("a", "b", "c")).path)
    status, page = site.ask()
    assert status == 200
    items = site.items()
    assert set(items) == {"texts", "images", "given"}
    assert sorted(items["texts"]) == ["a", "b", "c"]
    assert items["given"] == [None] * 3
    for word in (b"p_yes", b"judge", b"verdict", b"<i>", b"odd"):
        assert word not in page
    status, image = site.ask(f"image/{items['images'][0]}")
    assert status == 200
    assert image.startswith(b"\x89PNG")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_answers_are_kept_and_gone_on_from(
    odd: Make, open_page: Callable[..., Site], number: int
) -> None:
    run = odd(("a", "b", "c")).path
    site = open_page(run, "--rater", "Ada")
    assert "0 of 3 images are labelled by Ada" in site.said
    assert site.label(0, "yes") == 200
    assert site.label(1, "unsure") == 200
    assert site.label(1, "no") == 200
    status, out, err = site.stop(number)
    if number != signal.SIGKILL:
        assert (status, err) == (0, "")
        assert "2 of 3 images are labelled" in out
    again = open_page(run, "--rater", "Ada")
    assert "2 of 3 images are labelled by Ada" in again.said
    items = again.items()
    assert items["given"] == ["yes", "no", None]
    assert open_page(run, "--rater", "Bo").items()["given"] == [None] * 3
    assert open_page(run, "--rater", "Bo").items()["texts"] == items["texts"]
    row = lines(run)[0]
    assert (row["image"], row["prompt"]) == (items["images"][0], items["texts"][0])
    assert (row["label"], row["rater"]) == ("yes", "Ada")


def test_two_raters_at_once_lose_nothing(odd: Make, open_page: Callable[..., Site]) -> None:
    run = odd(("a",), count=40).path
    sites = [open_page(run, "--rater", name) for name in ("Ada", "Bo", "Ada")]
    words = ("yes", "no", "unsure")
    bad: list[int] = []

    def work(number: int) -> None:
        for item in range(number // 2, 40, 2 if number != 1 else 1):
            bad.append(sites[number].label(item, words[(item + number) % 3]))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(bad) == {200}
    assert len(lines(run)) == 80
    judge = HumanJudge(str(run / "labels.jsonl"))
    assert set(judge.raters()) == {"Ada", "Bo"}
    ada, bo = sites[2].items()["given"], sites[1].items()["given"]
    assert ada == [words[(i + (0 if i % 2 == 0 else 2)) % 3] for i in range(40)]
    assert bo == [words[(i + 1) % 3] for i in range(40)]


def test_a_torn_line_is_dropped(odd: Make, open_page: Callable[..., Site]) -> None:
    run = odd(("a", "b")).path
    site = open_page(run)
    site.label(0, "yes")
    with (run / "labels.jsonl").open("ab") as file:
        file.write(b'{"image": "abc')  # as a crash in mid-write leaves it
    assert site.items()["given"] == ["yes", None]
    assert len(open_run(run).frame("human")) == 1
    assert site.label(1, "no") == 200
    assert [row["label"] for row in lines(run)] == ["yes", "no"]


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("another origin", {"Origin": "http://evil.example"}),
    ("another port's origin", {"Origin": "http://127.0.0.1:1"}),
    ("no origin", {"Origin": None}),
    ("an opaque origin", {"Origin": "null"}),
    ("another host", {"Host": "evil.example"}),
    ("no host", {"Host": None}),
    ("across sites", {"Sec_Fetch_Site": "cross-site"}),
]


@pytest.mark.parametrize(("why", "headers"), REFUSED, ids=[why for why, _ in REFUSED])
def test_strangers_are_refused(
    odd: Make, open_page: Callable[..., Site], why: str, headers: dict[str, Any]
) -> None:
    run = odd(("a",)).path
    site = open_page(run)
    status, said = site.ask("label", b'{"item": 0, "label": "yes"}', **headers)
    assert (status, b"refused" in said) == (403, True), why
    assert not (run / "labels.jsonl").exists()
    if why != "no origin":
        assert site.ask("items", **headers)[0] == 403
        assert site.ask(**headers)[0] == 403


def test_without_the_token_nothing_is_served(odd: Make, open_page: Callable[..., Site]) -> None:
    site = open_page(odd(("a",)).path)
    image = site.items()["images"][0]
    token = site.path.strip("/")
    other = open_page(odd(("a",)).path).path.strip("/")
    assert len(token) >= 32
    assert token != other
    for path in ("/", "/items", f"/image/{image}", "/label", f"/{token[:-1]}/", f"/{token}x/",
                 f"/{other}/items", f"/?{token}", "/%e9/items"):  # fmt: skip
        assert site.ask(path)[0] == 403, path
    assert site.ask("/label", b'{"item": 0, "label": "yes"}')[0] == 403
    assert site.ask("items", Origin=None, Sec_Fetch_Site="none")[0] == 200


def test_no_path_leaves_the_images(odd: Make, open_page: Callable[..., Site]) -> None:
    run = odd(("a",))
    site = open_page(run.path)
    for name in ("../run.json", "..%2frun.json", "/etc/passwd", "%2e%2e/%2e%2e/run.json", "a" * 64,
                 "", "../image/" + "0" * 64, "..\\run.json", "\0"):  # fmt: skip
        path = f"image/{name}".replace("\0", "%00")
        assert site.ask(path)[0] == 404, name
    assert site.ask("../run.json")[0] in (403, 404)
    digest = site.items()["images"][0]
    run.folder.image_path(digest).write_bytes(b"not what it was")
    status, said = site.ask(f"image/{digest}")
    assert status == 500
    assert b"was altered" in said


def test_bodies_are_bounded_and_checked(odd: Make, open_page: Callable[..., Site]) -> None:
    run = odd(("a",)).path
    site = open_page(run)
    good = b'{"item": 0, "label": "yes"}'
    assert site.ask("label", good, Content_Length=str(LARGEST_BODY + 1))[0] == 413
    assert site.ask("label", good, Content_Length=str(10**12))[0] == 413
    assert site.ask("label", good, Content_Length="9" * 5000)[0] == 413
    assert site.ask("label", good, Content_Length="-1")[0] == 411
    assert site.ask("label", b"", Content_Length="", Transfer_Encoding="chunked")[0] == 411
    for body in (b"", b"{", b"[]", b"\xff", b'{"item": 0}', b'{"item": 1, "label": "yes"}',
                 b'{"item": -1, "label": "yes"}', b'{"item": true, "label": "yes"}',
                 b'{"item": 0, "label": "maybe"}', b'{"item": 0, "label": []}',
                 b"[" * 900):  # fmt: skip
        assert site.ask("label", body)[0] == 400, body
    assert site.ask("items", good)[0] == 404
    assert not (run / "labels.jsonl").exists()
    assert site.label(0, "yes") == 200


def test_mistakes_are_one_line(
    cli: Callable[..., subprocess.CompletedProcess[str]], odd: Make, open_page: Callable[..., Site]
) -> None:
    run = odd(("a",)).path
    port = open_page(run).port
    for args, why in (
        (("label", "nowhere"), "is nowhere a run folder"),
        (("label", str(run), "--port", str(port)), f"--port {port} cannot be opened"),
        (("label", str(run), "--port", "70000"), "--port 70000 cannot be opened"),
        (("label", str(run), "--rater", "a\nb"), "--rater"),
    ):
        done = cli(*args)
        assert done.returncode == 2
        assert why in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_a_disk_that_is_full_is_told(odd: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:
        labels = Labels(odd(("a",)), "Ada")
        labels.file = Path("/dev/full")
        with pytest.raises(OSError, match="No space left"):
            labels.add(0, "yes")
    else:  # pragma: no cover
        labels = Labels(odd(("a",)), "Ada")
        labels.run.path.chmod(0o500)
        with pytest.raises(OSError, match="denied"):
            labels.add(0, "yes")


def test_a_run_without_images_has_nothing_to_label(odd: Make) -> None:
    made = odd(("a",))
    (made.path / "generations.jsonl").unlink()
    with pytest.raises(GapbenchError, match="no image"):
        Labels(open_run(made.path), "Ada")


def test_labels_are_the_judge_human(said_by: Said, pair: tuple[Path, Path]) -> None:
    """Through the command line: agreement, human-checked figures and corrected rates."""
    run = open_run(pair[1])
    frame = run.frame().set_index(["image", "text"])["outside"]
    frame = frame[~frame.index.duplicated()]
    try:
        for name, mistakes in (("Ada", 1), ("Bo", 4)):
            labels = Labels(run, name)
            for place, key in enumerate(labels.items[:30]):
                wrong = place < mistakes
                labels.add(place, "yes" if (frame[key] == 1) != wrong else "no")
            labels.add(30, "unsure")
        opened = open_run(pair[1])
        assert opened.judges() == ["pixel", "human"]
        people = opened.frame("human")
        assert len(people) >= 31
        # They disagree on three: no majority, as with the one that nobody was sure of.
        images = people.drop_duplicates(["image", "text"])
        assert images["outside"].isna().sum() == 4
        assert len(opened.frame("human:Bo")) == len(people)
        agreed = {(a, b): found for a, b, found in opened.agreements()}
        assert set(agreed) == {("pixel", "human"), ("human:Ada", "human:Bo")}
        raters = agreed["human:Ada", "human:Bo"]
        assert raters.raw is not None
        assert raters.raw == pytest.approx(1 - 3 / 30, abs=0.04)
        shown = said_by("show", pair[1])
        assert "Outside judge: human" in shown
        assert "human:Ada and human:Bo agree on" in shown
        assert "pixel and human agree on" in shown
        assert "Corrected for the errors of pixel" in shown
        assert "Rogan-Gladen" in shown
        alone = said_by("show", pair[1], "--judge", "human")
        assert "Corrected" not in alone
        said_by("report", pair[1], "--out", pair[1] / "labelled.html")
        page = (pair[1] / "labelled.html").read_text("utf-8")
        for words in ("prediction-powered", "human:Ada and human:Bo", "Cohen"):
            assert words in page
    finally:
        (pair[1] / "labels.jsonl").unlink()
