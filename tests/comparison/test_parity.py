"""`gapbench parity`: equal backends of janus-mini may stand on one board, faulty ones may not."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from here import end

import gapbench
from gapbench import GapbenchError
from gapbench.comparison.parity import Parity, _place, parity
from gapbench.comparison.parity_words import conclusion, render
from gapbench.models.base import Drawing
from gapbench.models.janus.adapter import JanusModel
from gapbench.models.registry import MODELS
from gapbench.runs.settings import RunSettings

FOLDER = MODELS["janus-mini"].folder
BACKENDS = '''
from gapbench.models.janus.adapter import JanusModel
from gapbench.models.janus.make import from_folder
from gapbench.models.registry import MODELS
from PIL import Image


class Resize(JanusModel):
    def _scaled(self, image):  # to another size first
        return super()._scaled(image.resize((32, 32), Image.Resampling.BILINEAR))


class Normalisation(JanusModel):
    def _pixels(self, images):  # of pixels in [0, 1], no mean and spread taken out
        return (super()._pixels(images) + 1) / 2


class System(JanusModel):
    _system = ""

    def _chat(self, question):
        return super()._chat(question[question.index("Does this"):])


class Guidance(JanusModel):
    """Takes s for (1 + s) cond - s uncond."""


def backend(kind, more=0.0):
    def make(device="auto", dtype="auto", recipe=None):
        recipe = {key: float(value) + more for key, value in (recipe or {}).items()}
        made = from_folder("faulty", MODELS["janus-mini"].folder, recipe, device, dtype)
        made.__class__ = kind
        made.fingerprint = kind.__name__ + made.fingerprint
        return made
    return make


resize, normalisation, system = map(backend, (Resize, Normalisation, System))
guidance = backend(Guidance, 1.0)
'''


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of janus-mini, faulty backends, and the runs of the module's tests."""
    folder = tmp_path_factory.mktemp("parity")
    shutil.copytree(FOLDER, folder / "copy")
    (folder / "backends.py").write_text(BACKENDS)
    return folder


@pytest.fixture(autouse=True)
def _drawn_once(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    """Equal weights, recipes and seeds give equal images: they are drawn once for all tests."""
    monkeypatch.chdir(place)
    draw = JanusModel.generate

    def generate(model: JanusModel, prompts: Sequence[str], seeds: Sequence[int]) -> list[Drawing]:
        how = (model.dtype, str(model.recipe))
        keys = [(how, *key) for key in zip(prompts, seeds, strict=True)]
        new = {key: None for key in keys if key not in KNOWN}
        if new:
            drawn = draw(model, [key[1] for key in new], [key[2] for key in new])
            KNOWN.update(zip(new, drawn, strict=True))
        return [KNOWN[key] for key in keys]

    monkeypatch.setattr(JanusModel, "generate", generate)


KNOWN: dict[Any, Drawing] = {}


def held(b: str, limit: int, tasks: str = "shapes", **more: Any) -> Parity:
    same = {"tasks": [tasks], "samples": 1, "limit": limit, "out": "parity"} | more
    return parity(RunSettings("janus-mini", **same), RunSettings(b, **same))


def test_equal_backends_may_stand_on_one_board(capfd: pytest.CaptureFixture[str]) -> None:
    words = ("parity", "janus-mini", "./copy", "--limit", "154", "--samples", "1")
    code, said, _ = end(capfd, *words)
    assert code is None
    assert said.startswith("A and B may stand on one board: each interval lies within its margin.")
    assert "Of A's images, B rejects 0 that A accepts and accepts 0 that A rejects." in said
    verdicts = re.search(r"same images: verdicts that differ +0\.0 \[0\.0, (\d\.\d)\]", said)
    assert verdicts
    assert 0 < float(verdicts[1]) <= 2
    # Again nothing is asked: the run folders have all of it.
    code, again, told = end(capfd, *words, "--format", "json")
    found = json.loads(again)
    assert (code, found["same"], found["missing"], found["left_out"]) == (None, True, [], [])
    assert "0/" not in told
    values = {row["name"]: (row["value"], row["largest"]) for row in found["rows"]}
    assert values["images"][0] == values["tokens"][0] == 0
    assert values["log-probabilities"] == values["p_yes"] == (0, 0)
    assert {row["outcome"] for row in found["rows"]} == {"within", None}


@pytest.mark.parametrize(
    ("fault", "limit", "tasks"),
    [
        ("resize", 56, "shapes"),
        ("normalisation", 28, "shapes"),
        ("system", 40, "shapes/compound_fact"),
    ],
)
def test_a_backend_that_sees_otherwise_is_caught(fault: str, limit: int, tasks: str) -> None:
    found = held(f"./backends.py:{fault}", limit, tasks)
    rows = {row.name: row for row in found.rows}
    assert found.same is False
    assert rows["p_yes"].outcome == "beyond"
    assert rows["p_yes"].low <= rows["p_yes"].value <= rows["p_yes"].high
    assert rows["log-probabilities"].value > 0.1  # of rounding a tenth of that
    assert rows["images"].value == 0  # it draws as ever
    assert rows["generation"].value == 0
    told = conclusion(found)
    assert told.startswith("A and B may not stand on one board: beyond the margin, in points, are")
    assert "p_yes" in told


def test_another_convention_of_guidance_is_caught() -> None:
    guided = {"recipe": {"guidance": 2}, "verdict": "none"}
    found = held("./backends.py:guidance", 70, **guided)
    rows = {row.name: row for row in found.rows}
    assert rows["generation"].outcome == "beyond"
    assert found.same is False
    assert rows["tokens"].value > 0.1
    assert "log-probabilities" not in rows
    assert found.missing == ["own verdicts were not compared"]


def test_rounding_is_small_and_few_images_show_nothing(
    capfd: pytest.CaptureFixture[str],
) -> None:
    words = ("janus-mini", "janus-mini", "--dtype-b", "bfloat16", "--limit", "14", "--samples", "1")
    code, said, _ = end(capfd, "parity", *words, "--json")
    assert code == 1
    found = json.loads(said)
    assert found["same"] is None
    assert found["b_model"] == "janus-mini (dtype=bfloat16)"
    assert re.fullmatch(
        r"It is not shown that A and B may stand on one board: too few images to say of verdicts "
        r"that differ .+ \(about [\d,]+ clusters of prompts would tell\)\.",
        found["conclusion"],
    )
    rows = {row["name"]: row for row in found["rows"]}
    assert 0 < rows["p_yes"]["value"] < 0.01
    assert rows["p_yes"]["outcome"] == "within"
    assert 0 < rows["log-probabilities"]["value"] < 0.05
    assert rows["log-probabilities"]["largest"] < 0.3


def test_a_backend_in_words_and_without_an_outside_judge() -> None:
    """Where sides only write, they are asked in words."""

    def draw(prompt: str, seed: int) -> Any:
        from PIL import Image

        return Image.new("RGB", (24, 24), (seed % 256, 0, 0))

    def yes(_image: Any, _question: str) -> str:
        return "The score is 1"

    def no(_image: Any, question: str) -> str:
        return "The score is 0" if "red" in question else "none"

    models = [gapbench.FunctionModel(name, draw, says, f"toy-{name}-1")
              for name, says in (("one", yes), ("two", no))]  # fmt: skip
    one, two = (
        RunSettings(model, ["shapes"], judges=[], samples=1, limit=28, out="toys")
        for model in models
    )
    found = parity(one, two)
    assert found.own == "text"
    rows = {row.name: row for row in found.rows}
    assert rows["verdicts"].value == 1  # abstaining is no agreement
    assert "p_yes" not in rows
    assert 0 < found.rejects < rows["verdicts"].images
    assert found.missing == ["no outside judge compared the images (--tasks or --judge takes one)"]
    assert found.same is False
    assert "may not stand on one board" in render(found, "text")


def test_a_side_that_is_not_there_is_named() -> None:
    with pytest.raises(GapbenchError, match="no model 'janus-maxi'"):
        held("janus-maxi", 14)


def test_the_commands_of_the_page_are_understood(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Path(__file__).parents[2] / "docs/parity.md"
    lines = re.findall(r"^    gapbench (.+)$", page.read_text(encoding="utf-8"), flags=re.M)
    asked: list[tuple[RunSettings, RunSettings]] = []

    def stub(a: RunSettings, b: RunSettings) -> Parity:
        asked.append((a, b))
        return Parity(
            a="", b="", a_model="", b_model="", judges=[], own="none", rows=[], rejects=0,
            accepts=0, missing=[], left_out=[],
        )  # fmt: skip

    monkeypatch.setattr("gapbench.comparison.parity.parity", stub)
    for line in lines:
        if line.startswith("parity"):
            assert end(capfd, *shlex.split(line, comments=True))[0] is None
    assert [(b.dtype, b.device, b.recipe) for _, b in asked] == [
        ("bfloat16", "auto", None), ("auto", "auto", None), ("auto", "cuda:1", None),
        ("auto", "auto", {"guidance": "6"}),
    ]  # fmt: skip
    assert [a.device for a, _ in asked] == ["auto", "auto", "cuda:0", "auto"]
    assert {line for line in lines if not line.startswith("parity")} == {
        "check-model janus-mini --published", "check-model janus-pro --published --limit 60",
    }  # fmt: skip


def test_folders_of_sides_are_seen_and_have_short_names() -> None:
    hidden = _place(RunSettings("./my.py:Class"))
    assert not hidden.startswith(".")
    long = [_place(RunSettings("janus-mini", recipe={"prompt": "x" * 300 + end})) for end in "ab"]
    assert long[0] != long[1]
    assert max(map(len, long)) < 150


def test_a_file_is_no_folder_for_sides(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    side = RunSettings("janus-mini", "shapes", limit=1, out=tmp_path / "file")
    with pytest.raises(GapbenchError, match=r"--out .*file is a file; give a folder"):
        parity(side, side)
