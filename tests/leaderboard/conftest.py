"""A small installed task, one janus-mini run of it and that run's submission, made once."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import gapbench
from gapbench import Prompt, load_model, open_run
from gapbench.leaderboard.submit import submit
from gapbench.models.base import Model
from gapbench.runs.run import Run

TASK = "few-shapes"
PICKED = ("shapes/colors", "shapes/three_attr", "shapes/color_fact")


@dataclass(frozen=True)
class Made:
    """`site` holds the installed task, `run` is of seed 0 and `other` of seed 1, `results` has the
    submission of `run`."""

    site: Path
    run: Run
    other: Run
    results: Path
    model: Model

    @property
    def folder(self) -> Path:
        return self.results / "janus-mini"


def install_task(site: Path) -> None:
    """A task of 4 prompts in each of three categories, as a third party would ship it."""
    prompts: list[Prompt] = []
    for name in PICKED:
        task, category = name.split("/")
        found = [p for p in gapbench.load_task(task).prompts() if p.category == category]
        prompts += found[:4]
    package = site / "few_shapes_package"
    (package / TASK).mkdir(parents=True)
    (package / "__init__.py").write_text(
        f"from pathlib import Path\nFOLDER = Path(__file__).parent / {TASK!r}\n"
    )
    lines = [
        {"id": p.id, "category": p.category, "text": p.text, "requirement": p.requirement}
        for p in prompts
    ]
    (package / TASK / "prompts.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    spec = {
        "title": "A few shapes", "version": "1.0", "file": "prompts.jsonl", "judge": "pixel",
        "samples": 2,
        "tiers": {"easy": ["colors"], "medium": ["three_attr"], "hard": ["color_fact"]},
    }  # fmt: skip
    (package / TASK / "task.yaml").write_text(json.dumps(spec))
    info = site / "few_shapes-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: few-shapes\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[gapbench.tasks]\n{TASK} = few_shapes_package:FOLDER\n"
    )


@pytest.fixture(scope="package")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    folder = tmp_path_factory.mktemp("submission")
    install_task(folder / "site")
    sys.path.insert(0, str(folder / "site"))
    try:
        model = load_model("janus-mini")
        run = gapbench.run(model, TASK, out=folder / "runs")
        other = gapbench.run(model, TASK, seed=1, out=folder / "runs")
        submit(run, folder / "results", test_model=True)
        yield Made(folder / "site", run, other, folder / "results", model)
    finally:
        sys.path.remove(str(folder / "site"))


@pytest.fixture(scope="package")
def asked(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run of `made`, whose model was also asked questions."""
    out = tmp_path_factory.mktemp("asked") / "runs"
    shutil.copytree(made.run.path.parent, out)
    return open_run(gapbench.run(made.model, TASK, verdict="questions", out=out).path)


@pytest.fixture(scope="package")
def submitted(asked: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The submission of `asked`."""
    return submit(asked, tmp_path_factory.mktemp("submitted"), test_model=True)


@pytest.fixture
def copy(made: Made, tmp_path: Path) -> Path:
    """A copy of the submission, to be tampered with; in the folder that `board_cli` runs in."""
    return Path(shutil.copytree(made.folder, tmp_path / "results" / "janus-mini"))


@pytest.fixture
def board_cli(
    made: Made,
    cli: Callable[..., subprocess.CompletedProcess[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`cli` with the task installed."""
    monkeypatch.setenv("PYTHONPATH", str(made.site))
    return cli
