"""The docs say what the code does: links, figures, commands, names, and the examples to copy."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from PIL import Image

import gapbench
from gapbench.cli.main import main
from gapbench.comparison import words as changes
from gapbench.metrics import METRICS, paired
from gapbench.metrics.metric import UNDERSTANDING, shown_in
from gapbench.report import tables
from gapbench.runs.plan import prepare
from gapbench.runs.settings import RunSettings

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(
    page.relative_to(ROOT).as_posix()
    for place in (".", "docs", "benchmarks")
    for page in (ROOT / place).glob("*.md")
)
LINK = re.compile(r"(?<!\\)\[(?:[^\[\]]|!\[[^\]]*\]\([^)]*\))*\]\(([^()\s]+)\)")


def prose(page: Path) -> str:
    """A page without its code, in which brackets are no links."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return re.sub(r"`[^`\n]*`", "", text)


def anchors(page: Path) -> set[str]:
    """The names that a repository's browser gives the headings of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    heads = re.findall(r"^#+ +(.+?) *$", text, flags=re.M)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", head) for head in heads)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in plain}


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), flags=re.S)


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_to_a_file_and_a_heading_of_it(name: str) -> None:
    page, broken = ROOT / name, []
    for link in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        there = target.is_relative_to(ROOT) and target.exists()
        if not there or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_links_are_found_also_around_pictures_and_not_in_code() -> None:
    text = "[a](b.md#c) [![d](e.png)](f.md) `[g](h)` ![i](j.png)"
    found = LINK.findall(re.sub(r"`[^`\n]*`", "", text))
    assert found == ["b.md#c", "f.md", "j.png"]


def test_concepts_define_every_figure() -> None:
    concepts = (DOCS / "concepts.md").read_text(encoding="utf-8")
    lower = concepts.lower()
    named = [*METRICS, *(f"gap/{metric.name}" for metric in shown_in("training"))]
    named += ["n_prompts", "abstained"]
    assert [name for name in named if f"`{name}`" not in concepts] == []
    heads = [metric.title.partition(" (")[0] for metric in (*METRICS.values(), UNDERSTANDING)]
    heads += [*tables.CORRECTED, *changes.COLUMNS[1:-1]]
    heads += [field.name for field in fields(paired.WinRate)]
    heads += [
        "kappa",
        "design effect",
        "correction group",
        "expected calibration error",
        "unified",
        "power",
    ]
    heads.remove("by the judge")
    assert [head for head in heads if head.lower() not in lower] == []


def test_concepts_name_the_file_of_every_figure() -> None:
    concepts = (DOCS / "concepts.md").read_text(encoding="utf-8")
    files = sorted((ROOT / "gapbench" / "metrics").glob("[a-z]*.py"))
    assert [f.name for f in files if f"`gapbench/metrics/{f.name}`" not in concepts] == []


def test_the_run_folder_of_the_docs_is_the_one_that_a_run_makes() -> None:
    text = "".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
    named = set(re.findall(r"runs/janus-mini-[\w.*]+", text))
    right = prepare(RunSettings(limit=1)).path.as_posix()
    assert named == {right}, f"write {right} where the docs name another run of janus-mini"


def test_the_reference_holds_every_command_as_it_is() -> None:
    command = [
        sys.executable, "-m", "typer", "gapbench.cli.main", "utils", "docs", "--name", "gapbench",
        "--title", "Command line",
    ]  # fmt: skip
    made = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    there = (DOCS / "cli.md").read_text(encoding="utf-8")
    assert there.strip() == made.strip(), (
        "docs/cli.md is not what the commands say; write it with: python -m typer "
        'gapbench.cli.main utils docs --name gapbench --title "Command line" --output docs/cli.md'
    )


def test_the_reference_holds_every_public_name() -> None:
    reference = (DOCS / "api.md").read_text(encoding="utf-8")
    homes = {name: f"gapbench.{home}" for name, home in gapbench._HOMES.items()}
    missing = [
        name
        for name, home in homes.items()
        if f"::: {home}.{name}\n" not in reference and f"::: {home}\n" not in reference
    ]
    assert missing == []


def test_the_examples_of_a_task_and_a_judge_work(
    cli: Callable[..., subprocess.CompletedProcess[str]],
    tiny_janus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The guides' task and judge, copied from them and installed as they say."""
    folder, site = tmp_path / "fruit", tmp_path / "site"
    folder.mkdir()
    spec, _dpg = blocks("own-task.md", "yaml")
    (folder / "task.yaml").write_text(spec)
    guide = (DOCS / "own-task.md").read_text()
    prompts = re.search(r"one prompt per line:\n\n((?:    .+\n)+)", guide)
    assert prompts
    lines = [line.strip() for line in prompts[1].splitlines()]
    (folder / "prompts.txt").write_text("\n".join(lines) + "\n")
    for name, page in (("tasks", "own-task.md"), ("judges", "own-judge.md")):
        info = site / f"my_{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: my-{name}\nVersion: 1.0\n")
        [entry] = re.findall(r'\."gapbench\.\w+"\]\n([\w-]+) = "(.+)"', blocks(page, "toml")[0])
        (info / "entry_points.txt").write_text(f"[gapbench.{name}]\n{entry[0]} = {entry[1]}\n")
    (site / "my_package").mkdir()
    (site / "my_package" / "judges.py").write_text(blocks("own-judge.md", "python")[0])
    (site / "my_package" / "tasks.py").write_text(
        f"from pathlib import Path\nFRUIT = Path({str(folder)!r})\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(site))

    def call(*arguments: str) -> str:
        done = cli(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    asked = ("--tasks", "fruit", "--judge", "my-judge:100", "--samples", "1")
    table = call("run", "--model", str(tiny_janus), *asked)
    assert "Outside judge: my-judge" in table
    assert f"{len(lines)} images of {len(lines)} prompts" in table
    assert yaml.safe_load(spec)["title"] in call("tasks", "fruit")


def test_the_examples_of_file_formats_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page's files, with a picture for each that it names, and its commands in order."""
    monkeypatch.chdir(tmp_path)
    text = (DOCS / "formats.md").read_text(encoding="utf-8")
    files = dict(re.findall(r"^`(\S+)`:\n\n```\w+\n(.*?)```", text, flags=re.M | re.S))
    pictures = re.findall(r"^(\w+/.+\.png)$", text, flags=re.M)
    for number, name in enumerate(pictures):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (24, 24), (40 * number, 9, 9)).save(name)
    for name, lines in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(lines)
    said = []
    for line in re.findall(r"^    (gapbench .+)$", text, flags=re.M):
        if "human:" in line:  # digests are those of the files that the run before wrote
            [run] = Path("runs").glob("images-pictures-*")
            stored = gapbench.open_run(run).folder.generations().values()
            labels = files["labels.csv"]
            for digest, drawn in zip(
                dict.fromkeys(re.findall("[0-9a-f]{64}", labels)), stored, strict=True
            ):
                labels = labels.replace(digest, drawn.image)
            Path("labels.csv").write_text(labels)
        monkeypatch.setattr(sys, "argv", line.split())
        with pytest.raises(SystemExit) as stop:
            sys.exit(main())
        assert not stop.value.code, line
        said.append(capsys.readouterr().out)
    outside = {
        name: [*gapbench.open_run(next(Path("runs").glob(f"{name}-*"))).frame()["outside"].map(str)]
        for name in ("images-pictures", "images-out", "images-compbench")
    }
    assert outside == {
        "images-pictures": ["nan", "0.0"],  # one of two raters is unsure
        "images-out": ["1.0"],
        "images-compbench": ["1.0", "0.0"],
    }
    assert "own verdicts: text" in said[-1]
    assert [line.count("2 images of 2 prompts") for line in said] == [0, 1, 1, 0, 1, 0, 0]
