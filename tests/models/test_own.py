"""Models and judges of one's own, by file, by module, or as functions."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from here import end
from PIL import Image

import gapbench
from gapbench import GapbenchError, load_judge, load_model
from gapbench.files import blamed
from gapbench.models.base import Batches

OWN = """
from PIL import Image
from gapbench import Answer, Drawing, FunctionModel
from helper import SHADE


class Bare:
    def generate(self, prompts, seeds):
        return [Drawing(Image.new("RGB", (24, 24), (seed % 251, SHADE, 0))) for seed in seeds]

    def reply(self, images, questions):
        return ["The score is 1"] * len(images)


class Called(Bare):
    def __call__(self, **more):  # as a torch.nn.Module has it
        raise AssertionError("it is made already")


made = Called()


class Narrow:
    def generate(self, prompts):
        pass

    def judge(self, images):
        pass


class Needy(Bare):
    def __init__(self, weights):
        pass


class Dim:
    def __init__(self, argument=None):
        self.least = float(argument or 128)

    def judge(self, images, prompts):
        return [Answer(verdict=int(image.getpixel((0, 0))[1] > self.least)) for image in images]


def draw(prompt, seed):
    return Image.new("RGB", (24, 24), (seed % 251, len(prompt), 0))


def answer(image, question):
    return f"The score is {image.getpixel((0, 0))[0] % 2}"


model = FunctionModel("functions", draw, answer)
"""
NAMES = "Bare, Called, made, Narrow, Needy, Dim, draw, answer, model"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of one's own with a module beside it, in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("helper", "my"):  # of a test before
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "helper.py").write_text("SHADE = 200")
    (tmp_path / "my.py").write_text(OWN)
    importlib.invalidate_caches()
    return tmp_path / "my.py"


def run(model: str | gapbench.Model, **options: object) -> gapbench.Run:
    given: dict[str, object] = {"judges": [], "samples": 1, "limit": 4, **options}
    given.setdefault("tasks", "shapes")
    return gapbench.run(model, **given)  # type: ignore[arg-type]


def test_a_class_with_two_methods_is_a_model_and_one_with_judge_a_judge(own: Path) -> None:
    done = run("./my.py:Bare", judges=["./my.py:Dim"])
    assert done.name == "Bare (verdict=text)"
    assert done.plan.own == "self-text"  # it gives no probabilities
    assert done.frame()[["own", "outside"]].to_numpy().all()
    drawn = next(iter(done.folder.generations().values()))
    assert (drawn.effective_prompt, drawn.logprob, drawn.tokens) == (drawn.prompt, None, None)
    model = load_model("my:Bare")  # as a module in the current folder
    assert model.capabilities == {"generate", "judge_text"}
    assert model.fingerprint == load_model("./my.py:Bare").fingerprint == gapbench.fingerprint(own)
    assert load_judge("./my.py:Dim:201").fingerprint == f"{model.fingerprint}-201"
    assert load_judge("my:Dim").name == "Dim"
    assert load_model("./my.py:made").name == "Called"


def test_functions_are_a_model(own: Path) -> None:
    done = run("./my.py:model")
    assert done.plan.own == "self-text"
    assert set(done.frame()["own"]) <= {0, 1}
    made = load_model("./my.py:model")
    assert made.batches == Batches(1, 1)
    assert images(run(made, out="again")) == images(done)
    with pytest.raises(GapbenchError, match="lacks judge_logits: --verdict logits needs it"):
        run(made, verdict="logits")
    with pytest.raises(GapbenchError, match=r"model m: <lambda> does not take \(prompt, seed\)"):
        gapbench.FunctionModel("m", lambda prompt: Image.new("RGB", (8, 8)))  # type: ignore[misc,arg-type]
    with pytest.raises(GapbenchError, match="no source code of it is found"):
        gapbench.FunctionModel("m", np.add)
    assert gapbench.FunctionModel("m", np.add, fingerprint="add-0001").capabilities == {"generate"}


LOUD = """
print("loading")


class Loud(Bare):
    def generate(self, prompts, seeds):
        print("drawing")
        drawings = super().generate(prompts, seeds)
        return [Drawing(each.image, effective_prompt="\\ud800") for each in drawings]


long = FunctionModel("n" * 300, draw, answer)


class Odd(Bare):
    recipe = {"temperature": float("nan")}
"""


def test_what_an_adapter_does_costs_no_table(own: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What it prints, half a surrogate pair, a long name, and speeds that somebody broke."""
    own.write_text(OWN + LOUD)
    asked = ("--tasks", "shapes/colors", "--limit", "1", "--samples")
    for name in ("Loud", "long"):
        run = ("run", "--model", f"./my.py:{name}", *asked)
        code, out, err = end(capfd, *run, "1", "--json")
        assert not code, err
        assert json.loads(out)
        assert "loading" in err or name != "Loud"
        newest = max(Path("runs").iterdir(), key=lambda folder: folder.stat().st_mtime_ns)
        for broken in ("{", '{"pixel-1": [16, NaN]}'):
            (newest / "speeds.json").write_text(broken)
            code, out, err = end(capfd, *run, "2", "--dry-run")
            assert not code, err
            assert "about nan s" not in out
        (newest / "speeds.json").write_text("{")
        assert not end(capfd, *run, "2", "--json")[0]
    code, _, err = end(capfd, "run", "--model", "./my.py:Odd", *asked, "1")
    assert (code, "its recipe is no JSON" in err) == (2, True), err


def images(done: gapbench.Run) -> set[str]:
    return {generation.image for generation in done.folder.generations().values()}


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("./mine.py:Bare", "mine.py cannot be read (No such file or directory)"),
        ("./my.py:Bear", "./my.py has no 'Bear'; it has NAMES"),
        ("./my.py", "name the class too, ./my.py:NAME; it has NAMES"),
        ("mine:Bare", "no module 'mine' in the current folder or on PYTHONPATH"),
        ("my:Bear", "my has no 'Bear'; it has NAMES"),
        ("./my.py:Needy", "Needy needs weights, and gapbench gives only "),
        ("./my.py:draw", "draw needs prompt, seed, and gapbench gives only "),
        ("./my.py:SHADE", "int has no "),
        ("my:Narrow", "generate does not take (prompts, seeds): too many positional arguments"),
    ],
)
@pytest.mark.parametrize("load", [load_model, load_judge])
def test_what_cannot_be_loaded_is_told_in_one_line(
    own: Path, load: Callable[[str], object], spec: str, words: str
) -> None:
    words = words.replace("NAMES", NAMES)
    kind = load.__name__.removeprefix("load_")
    if kind == "judge":
        words = words.replace(
            "generate does not take (prompts, seeds)", "judge does not take (images, prompts)"
        )
    with pytest.raises(GapbenchError) as caught:
        load(spec)
    assert str(caught.value).startswith(f"{kind} {spec}: {words}")


@pytest.mark.parametrize("load", [load_model, load_judge])
def test_what_a_file_raises_has_its_line(own: Path, load: Callable[[str], object]) -> None:
    for code, words in (
        ("import sys\n1 / 0", "ZeroDivisionError: division by zero"),
        ("\nimport nowhere", "ModuleNotFoundError: No module named 'nowhere'"),
        ("\nclass (", "SyntaxError: invalid syntax"),
    ):
        own.write_text(code)
        for spec in ("./my.py:Bare", "my:Bare"):
            sys.modules.pop("my", None)
            importlib.invalidate_caches()
            with pytest.raises((ZeroDivisionError, ImportError, SyntaxError)) as caught:
                load(spec)
            assert blamed(caught.value) == f"{words} ({own}, line 2)"


@pytest.mark.parametrize(
    ("spec", "given", "words"),
    [
        ("./my.py:Bare@weights", {}, "takes no folder, so @FOLDER cannot be used"),
        ("./my.py:model", {"recipe": {"heat": 1}}, "takes no recipe, so --set cannot be used"),
        ("./my.py:Bare", {"device": "cpu"}, "takes no device, so --device cannot be used"),
    ],
)
def test_what_an_adapter_does_not_take_is_told(
    own: Path, spec: str, given: dict[str, Any], words: str
) -> None:
    with pytest.raises(GapbenchError, match=words):
        load_model(spec, **given)


def test_an_edited_adapter_starts_a_new_run_and_says_so(
    own: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = run("./my.py:Bare")
    assert run("./my.py:Bare").path == first.path
    assert not caplog.records
    own.write_text(OWN.replace("(24, 24)", "(24, 25)"))
    second = run("./my.py:Bare")
    assert second.path != first.path
    [record] = caplog.records
    assert record.getMessage() == (
        f"./my.py:Bare is not what it was in {first.path} (its fingerprint is another), so this "
        f"is a new run, in {second.path}"
    )


def test_a_fingerprint_covers_what_it_is_given(own: Path) -> None:
    weights = own.parent / "weights"
    weights.mkdir()
    (weights / "a.bin").write_bytes(b"1")
    before = gapbench.fingerprint(own, weights)
    assert gapbench.fingerprint(str(own), "weights") == before
    (weights / "a.bin").write_bytes(b"2")
    assert gapbench.fingerprint(own, weights) != before
    assert gapbench.fingerprint(run) == gapbench.fingerprint(__file__)
    assert gapbench.fingerprint(torch.no_grad()(run)) == gapbench.fingerprint(__file__)
    with pytest.raises(GapbenchError, match="there is no file or folder nowhere"):
        gapbench.fingerprint("nowhere")
