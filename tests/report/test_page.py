"""`gapbench report`: one file that holds every figure and image, and runs nothing of a prompt's."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from PIL import Image

from gapbench import GapbenchError, Verdict, open_run
from gapbench.metrics.metric import shown_in
from gapbench.pages import parts
from gapbench.report import gallery, tables
from gapbench.report.page import write_report

from .conftest import ATTACK, CLI, ENV, ODD, Make, Said

VOID = {"meta", "link", "img", "input", "br", "source"}


class Page(HTMLParser):
    """What a browser makes of the file: tags with attributes, and text by the tag it is in."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: list[str] = []
        self.text: list[tuple[str, str]] = []
        self.feed(file.read_text("utf-8"))
        self.close()
        assert self.inside == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.inside.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append((self.inside[-1] if self.inside else "", data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def script(self, name: str | None) -> str:
        """The text of the script with that id."""
        place = [attributes.get("id") for attributes in self.all("script")].index(name)
        return [text for tag, text in self.text if tag == "script"][place]

    @property
    def words(self) -> str:
        shown = [text for tag, text in self.text if tag not in ("script", "style")]
        return " ".join(" ".join(shown).split())


@pytest.fixture(scope="module")
def both(said_by: Said, pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("out") / "both.html"
    assert str(file) in said_by("report", *pair, "--out", file)
    return file


def test_one_run_by_default_into_its_folder(
    said_by: Said, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    said = said_by("report", pair[0], "--figures", tmp_path / "figures")
    file = pair[0] / "report.html"
    assert str(file) in said
    assert f"Figures: {tmp_path / 'figures'}" in said
    page = Page(file)
    rates = {r.metric: r for r in open_run(pair[0]).rates() if r.level == "overall"}
    value, bounds = tables.cell(rates["non_unification"])[0].split(" ", 1)
    assert (
        f"gapbench report: janus-mini janus-mini rejects {value} % {bounds} of its own images; the "
        "outside judge (pixel) rejects "
    ) in page.words
    assert 'id="weak"' not in file.read_text("utf-8")  # a single judge leaves nothing to compare
    assert "Not drawn: too few images" in page.words
    check_figures(tmp_path / "figures")
    data = json.loads(page.script("data"))
    assert data["groups"] is None
    assert "correction group" not in page.words.lower().replace("correction group all", "")
    first = data["runs"][0]
    link = unquote(first["folder"] + f"{first['image'][0][:2]}/{first['image'][0]}.png")
    assert link.startswith("images/")
    assert hashlib.sha256((file.parent / link).read_bytes()).hexdigest() == first["image"][0]


def check_figures(folder: Path) -> None:
    """Every plot as SVG, PDF and CSV, every table as LaTeX, and the rates."""
    plots = {file.stem for file in folder.glob("*.svg")}
    assert plots == {"difficulty", "generation", "selection"}  # too few images for calibration
    for name in plots - {"selection"}:
        assert b"<svg" in (folder / f"{name}.svg").read_bytes()
        assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        rows = list(csv.DictReader((folder / f"{name}.csv").read_text().splitlines()))
        values = [[float(row[head]) for head in (list(row)[2], "low", "high")] for row in rows]
        assert all(low <= value <= high for value, low, high in values)
        assert len(rows) == 14
        assert values == sorted(values, key=lambda each: -each[0])
    for file in folder.glob("*.tex"):
        table = file.read_text()
        assert table.count(r"\toprule") == table.count(r"\end{tabular}") == 1
        columns = {len(re.findall(r"(?<!\\)&", line)) for line in table.splitlines() if "&" in line}
        assert len(columns) == 1
    assert {file.stem for file in folder.glob("*.tex")} == plots | {
        "calibration",
        "confidence",
        "headline",
        "categories",
    }
    rates = list(csv.DictReader((folder / "rates.csv").read_text().splitlines()))
    assert {row["run"] for row in rates} == {"janus-mini"}


def test_two_runs_open_with_what_compare_says(
    said_by: Said, both: Path, pair: tuple[Path, Path]
) -> None:
    said = json.loads(said_by("compare", *pair, "--format", "json"))["comparisons"][0]
    words = Page(both).words
    head, *_ = words.partition("How well does it draw")
    assert f"Verdict: {said['verdict']}." in head
    for change in said["changes"]:
        assert f"{change['p_holm']:.4f}" in head
    first = said["changes"][0]
    assert f"generation {100 * first['difference']:+.1f} [{100 * first['low']:+.1f}, " in head
    groups = json.loads(Page(both).script("data"))["groups"]
    assert {code: groups.count(code) for code in said["groups"]} == said["groups"]


def test_the_figures_are_the_runs(both: Path, pair: tuple[Path, Path]) -> None:
    words = Page(both).words
    for path in pair:
        for rate in open_run(path).rates():
            if rate.metric in {metric.name for metric in shown_in("tables")}:
                figure, counts = tables.cell(rate)
                assert figure in words
                assert counts in words


def test_the_gallery_has_every_image(both: Path, pair: tuple[Path, Path]) -> None:
    page = Page(both)
    data, thumbnails = json.loads(page.script("data")), json.loads(page.script("thumbnails"))
    for number, path in enumerate(pair):
        mine, frame = data["runs"][number], open_run(path).frame()
        assert len(frame) == 44
        assert mine["image"] == frame["image"].tolist()
        assert mine["own"] == frame["own"].tolist()
        assert mine["outside"] == [frame["outside"].tolist()]
        assert mine["p"] == pytest.approx(frame["p_yes"].tolist(), abs=1e-4)
        texts = [data["prompts"]["text"][place] for place in data["entries"]["prompt"]]
        assert texts == frame["text"].tolist()
        small = [base64.b64decode(t.partition(",")[2]) for t in thumbnails[number::2]]
        assert [hashlib.sha256(each).hexdigest() for each in small] == mine["image"]


def test_without_comparison_the_page_says_how_to_get_groups(
    pair: tuple[Path, Path], odd: Make, tmp_path: Path
) -> None:
    write_report([open_run(pair[0]), odd()], tmp_path / "r.html")
    words = Page(tmp_path / "r.html").words
    assert "What changed is not computed: " in words
    assert "gapbench compare" in words
    assert json.loads(Page(tmp_path / "r.html").script("data"))["groups"] is None


def test_nothing_runs_but_the_page_s_own(both: Path) -> None:
    page = Page(both)
    (policy,) = [
        a["content"] or "" for a in page.all("meta") if a.get("http-equiv") is not None
    ]  # fmt: skip
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data: 'self' file:"
    (style,) = [text for tag, text in page.text if tag == "style"]
    for name, text in (("script-src", page.script(None)), ("style-src", style)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[name] == f"'sha256-{digest}'"
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name == "style" or name.startswith("on")]
        for name in ("src", "srcset", "href"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#")), tag
    assert all(a["width"] and a["height"] and a["alt"] for a in page.all("img"))


def test_texts_stay_texts(odd: Make, tmp_path: Path, pair: tuple[Path, Path]) -> None:
    file = tmp_path / "odd.html"
    write_report([odd(), open_run(pair[0])], file)
    raw, page = file.read_text("utf-8"), Page(file)
    for text in (ATTACK, "<b>", "<i>", "</script><script>"):
        assert text not in raw
    calm = tmp_path / "calm.html"
    write_report([open_run(pair[0]), open_run(pair[1])], calm)
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in Page(calm).tags} | {"code"}
    data = json.loads(page.script("data"))
    assert set(ODD) < set(data["prompts"]["text"])
    assert ATTACK in data["runs"][0]["reasons"][0].values()
    assert "m<b> (before)" in page.words
    assert "<i>0</i>" in page.words


def test_a_run_without_verdicts_has_a_report(odd: Make, tmp_path: Path) -> None:
    made = odd(("a", "b"))
    (made.path / "verdicts.jsonl").unlink()
    write_report([open_run(made.path)], tmp_path / "r.html")
    page = Page(tmp_path / "r.html")
    assert "n/a" in page.words
    assert "m<b> has no verdicts yet." in page.words
    assert "<picture>" not in (tmp_path / "r.html").read_text("utf-8")
    assert json.loads(page.script("data"))["runs"][0]["own"] == [None, None]


def test_thumbnails_are_bounded(odd: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "MOST", 4)
    made = odd(("a",), size=400, count=6)
    shown = gallery.gallery([made], ["m"], tmp_path, None)
    found = json.loads("".join(gallery.thumbnails([made], shown)))
    assert len(found) == 4
    for each in found:
        data = base64.b64decode(each.partition(",")[2])
        # Noise is the worst there is: 2,000 of these and the page stay under 25 MB.
        assert len(data) <= parts.LARGEST
        assert max(Image.open(io.BytesIO(data)).size) <= parts.SIDE
    assert 2000 * parts.LARGEST * 4 / 3 < 20e6


def test_the_page_says_how_many_thumbnails_it_has(odd: Make, tmp_path: Path) -> None:
    write_report([odd(("a",), count=2001)], tmp_path / "r.html")
    page = Page(tmp_path / "r.html")
    assert "Thumbnails are in this file for the first 2,000" in page.words
    assert len(json.loads(page.script("thumbnails"))) == 2000
    assert len(json.loads(page.script("data"))["runs"][0]["image"]) == 2001


def test_equal_runs_are_equal_bytes(odd: Make, tmp_path: Path) -> None:
    made = odd()
    write_report([made], tmp_path / "r.html")
    once = (tmp_path / "r.html").read_bytes()
    write_report([made], tmp_path / "r.html")
    assert (tmp_path / "r.html").read_bytes() == once


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (("{before}", "{before}"), "given twice"),
        (("{before}", "--out", "nowhere/r.html"), "a folder that exists"),
        (("{before}", "--judge", "vqa"), "no verdicts of judge 'vqa'"),
        (("nowhere",), "is nowhere a run folder"),
        (("{before}",) * 13, "1 to 12 runs"),
    ],
)
def test_mistakes_are_one_line(
    cli: Callable[..., subprocess.CompletedProcess[str]],
    pair: tuple[Path, Path],
    args: tuple[str, ...],
    why: str,
) -> None:
    done = cli("report", *(arg.format(before=pair[0]) for arg in args))
    assert done.returncode == 2
    assert why in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_altered_image_leaves_the_old_report(odd: Make, tmp_path: Path) -> None:
    made, file = odd(("a", "b")), tmp_path / "r.html"
    file.write_text("old")
    (tmp_path / "r.html.99999999.1.part").write_text("of a killed report")
    image = made.folder.image_path(made.frame()["image"][1])
    image.write_bytes(image.read_bytes() + b"x")
    with pytest.raises(GapbenchError, match="was altered"):
        write_report([made], file)
    assert file.read_text() == "old"
    assert not list(tmp_path.glob("*.part"))


def test_interrupted_while_writing_leaves_no_half(odd: Make) -> None:
    made = odd(("a",), size=300, count=200)
    process = subprocess.Popen(
        [*CLI, "report", str(made.path)], env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    until = time.monotonic() + 60
    while not list(made.path.glob("*.part")) and process.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert not list(made.path.glob("report.html*"))


def test_abstentions_and_reasons(odd: Make, tmp_path: Path) -> None:
    made = odd(("a", "b"))
    image, text = made.frame().loc[0, ["image", "text"]]
    made.folder.append(
        [
            Verdict(
                image=image, question=f"0: {text}?", judge="pixel", fingerprint="pixel", verdict=1,
                score=0.5,
            )
        ]
    )  # fmt: skip
    write_report([made], tmp_path / "r.html")
    run = json.loads(Page(tmp_path / "r.html").script("data"))["runs"][0]
    assert run["outside"] == [[1, None]]
    assert run["reasons"] == [{"1": ATTACK}]


def test_a_bin_of_the_calibration_takes_20_images(odd: Make, tmp_path: Path) -> None:
    made = odd(("a",), count=195)  # five of the ten probabilities come 20 times, five 19 times
    said = [
        Verdict(
            image=image, question=f"{n}: {text}?", judge="pixel", fingerprint="pixel", verdict=1
        )
        for n, (image, text) in enumerate(made.frame()[["image", "text"]].itertuples(index=False))
    ]
    made.folder.append(said)
    write_report([made], tmp_path / "r.html", figures=tmp_path / "figures")
    rows = list(csv.DictReader((tmp_path / "figures" / "calibration.csv").read_text().splitlines()))
    assert [float(row["the model's own probability (%)"]) for row in rows] == pytest.approx(
        [0, 10, 20, 30, 40]
    )
    assert {row["images"] for row in rows} == {"20"}


def test_help_needs_no_plots() -> None:
    code = (
        "import sys; from gapbench.cli.main import app; "
        "app(['report', '--help'], standalone_mode=False);"
        "print(sorted({'torch', 'matplotlib', 'jinja2', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([CLI[0], "-c", code], capture_output=True, text=True, check=True, env=ENV)
    assert done.stdout.splitlines()[-1] == "[]"
