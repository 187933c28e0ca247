"""A judge of scores: how they become verdicts, on the terminal and over the report's thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import gapbench
from gapbench import judges
from gapbench.cli.main import app
from gapbench.judges.base import Judge
from gapbench.report.thresholds import threshold_figures
from gapbench.runs.run import Run
from gapbench.types import COSINE, Answer, Prompt


class Light(Judge):
    name, fingerprint, threshold = "light", "light-1", 0.9

    def __init__(self, argument: str | None = None, device: str = "auto") -> None:
        pass

    def judge(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Answer]:
        return [self.scored(float(np.asarray(image).mean()) / 255) for image in images]


class Cosine(Light):
    name, fingerprint, scale, threshold = "similar", "similar-1", COSINE, None  # type: ignore[assignment]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    kinds = (Light, Cosine)
    made = [SimpleNamespace(name=kind.name, load=lambda kind=kind: kind) for kind in kinds]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judges, "entry_points", lambda group: made)
        return gapbench.run(
            limit=11, samples=1, judges=["light", "similar"], out=tmp_path_factory.mktemp("runs")
        )


def said(*args: object) -> str:
    done = CliRunner().invoke(app, [str(arg) for arg in args], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_show_says_how_scores_become_verdicts(run: Run) -> None:
    shown = " ".join(said("show", run.path).split())
    about = "light accepts from 0.9 on; similar (cosine, -1 to 1) gives no verdict."
    assert f"Scores and verdicts: {about}" in shown
    value = run.frame("similar")["score"].mean()
    assert f"{value:.3f} [" in shown
    assert "abstentions" not in shown


def test_a_run_without_scores_beside_one_with_them(run: Run) -> None:
    frame = run.frame("light")
    alone = threshold_figures([run], ["a"], [frame])
    both = threshold_figures([run, run], ["a", "b"], [frame, frame.iloc[:0]])
    assert [figure.table[1] for figure in both] == [figure.table[1] for figure in alone]


def test_the_report_has_both_figures_at_each_threshold(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    said("report", run.path, "--out", file)
    page = file.read_text()
    assert "light accepts from 0.9 on" in page
    section = page.split('id="thresholds-share"')[1].split("</section>")[0]
    frame = run.frame("light")
    rejected = frame["score"] < 0.9
    assert rejected.sum() > 0
    assert f"/{rejected.sum()})" in section.split("0.9</")[1]
    assert section.count("<tr>") == 1 + 9
    said("report", run.path, "--judge", "similar", "--out", file)
    assert 'id="thresholds-cosine"' in file.read_text()
