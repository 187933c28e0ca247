"""What comes back from adapters and judges that misbehave, through the public functions."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import gapbench
from gapbench import Answer, GapbenchError, Prompt
from gapbench.judges.base import Judge
from gapbench.models.base import Batches, Drawing, Model
from gapbench.runs.run import Run

FINE = Image.new("RGB", (24, 24))
PICTURE = [
    FINE.convert("CMYK"), FINE.convert("F"), FINE.convert("RGBA"), FINE.convert("L"),
    FINE.convert("I;16"), Image.new("RGB", (0, 5)), np.zeros((24, 24, 3), np.uint8), None, "x.png",
    Image.new("1", (9000, 9000)), Image.new("RGB", (9000, 8000)),
]  # fmt: skip
DRAWINGS = [
    *(Drawing(picture, None, "p", None) for picture in PICTURE),
    Drawing(FINE, np.zeros((2, 3), np.int32), "p", None),
    Drawing(FINE, np.zeros(3, np.float32), "p", None),
    Drawing(FINE, [1, 2], "p", None),  # type: ignore[arg-type]
    Drawing(FINE, None, 7, None),  # type: ignore[arg-type]
    Drawing(FINE, None, "p", 0.5),
    Drawing(FINE, None, "p", float("nan")),
    FINE,
    None,
]
LOGPROBS: list[Any] = [
    np.zeros((1, 3)), np.zeros(2), np.full((1, 2), np.nan), np.full((1, 2), 0.5),
    np.full((1, 2), np.inf), np.log([[0.9, 0.9]]), None, "no", [["a", "b"]], [[1], [2, 3]],
]  # fmt: skip
ANSWERS: list[Any] = [
    None, 1, True, Answer(verdict=2), Answer(verdict=True), Answer(verdict=np.int64(1)),
    Answer(verdict=1, p_yes=1.5), Answer(verdict=1, mass=-1.0), Answer(verdict=None, score=np.nan),
    Answer(verdict=0, text=5), Answer(verdict=0, reason=b"x"), Answer(verdict=1, p_yes="1"),
]  # fmt: skip


class Toy(Model):
    """Draws grey and says no, but for what a test replaces."""

    name, fingerprint, recipe = "toy", "toy-0001", {}
    capabilities = frozenset({"generate", "judge_logits"})
    batches = Batches(4, 4)

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Drawing]:
        return [Drawing(Image.new("RGB", (24, 24)), None, text, None) for text in prompts]

    def judge(self, images: Any, questions: Any, answers: Any) -> Any:
        return np.log(np.tile([0.9, 0.1], (len(images), 1)))


class Odd(Judge):
    """Says yes, but for what a test replaces."""

    name, fingerprint = "odd", "odd-1"

    def judge(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Answer]:
        return [Answer(verdict=1) for _ in images]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    def call(model: Model, judge: Judge | None = None, **more: Any) -> Run:
        monkeypatch.setattr("gapbench.runs.plan.load_judge", lambda *_: judge)
        options = {"limit": 12, "samples": 1, "judges": ["odd"] if judge else [], "out": tmp_path}
        return gapbench.run(model, "shapes", **options, **more)

    return call


def told(call: Callable[[], object]) -> str:
    """The one line of an error for people."""
    with pytest.raises(GapbenchError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("number", range(len(DRAWINGS)))
def test_no_odd_drawing_is_stored(run: Callable[..., Run], tmp_path: Path, number: int) -> None:
    toy = Toy()
    toy.generate = lambda prompts, _: [DRAWINGS[number]] * len(prompts)  # type: ignore[method-assign,assignment,list-item]
    assert "images: 8 failures in a row, the last: model toy gave " in told(lambda: run(toy))
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize("number", range(len(LOGPROBS)))
def test_no_odd_log_probability_is_a_verdict(run: Callable[..., Run], number: int) -> None:
    toy, odd = Toy(), LOGPROBS[number]
    toy.judge = lambda images, *_: (  # type: ignore[method-assign]
        np.repeat(odd, len(images), 0) if isinstance(odd, np.ndarray) else odd
    )
    assert "own verdicts: 8 failures in a row" in told(lambda: run(toy))


@pytest.mark.parametrize("number", range(len(ANSWERS)))
def test_no_odd_answer_is_a_verdict(run: Callable[..., Run], number: int) -> None:
    odd = Odd()
    odd.judge = lambda images, _: [ANSWERS[number]] * len(images)  # type: ignore[method-assign]
    words = told(lambda: run(Toy(), odd, verdict="none"))
    assert "verdicts of odd: 8 failures in a row, the last: judge odd gave " in words


@pytest.mark.parametrize("change", [lambda rows: rows[1:], lambda rows: [*rows, rows[0]]])
def test_rows_that_are_too_few_or_many_are_nobodys(
    run: Callable[..., Run], tmp_path: Path, change: Callable[[list[Any]], list[Any]]
) -> None:
    toy, odd = Toy(), Odd()
    toy.generate = lambda *args: change(Toy().generate(*args))  # type: ignore[method-assign]
    assert "model toy gave " in told(lambda: run(toy))
    odd.judge = lambda *args: change(Odd().judge(*args))  # type: ignore[method-assign]
    assert "one is needed for each" in told(lambda: run(Toy(), odd, verdict="none"))
    assert not list(tmp_path.rglob("verdicts.jsonl"))


@pytest.mark.parametrize("how", [KeyError("colour"), SystemExit(0), GapbenchError("a lost file")])
def test_a_row_that_crashes_costs_no_other(run: Callable[..., Run], how: BaseException) -> None:
    def generate(prompts: Sequence[str], seeds: Sequence[int]) -> list[Drawing]:
        if first in prompts:
            raise how
        return Toy().generate(prompts, seeds)

    toy = Toy()
    first = run(toy).plan.prompts[0].text
    toy.fingerprint, toy.generate = "toy-0002", generate  # type: ignore[method-assign]
    done = run(toy)
    assert len(done.frame()) == 11
    assert done.frame()["own"].notna().all()
    [(reason, count)] = done.failures()["images"].items()
    assert count == 1
    assert str(getattr(how, "args", ("?",))[0]) in reason
    assert (Path(__file__).name in reason) != isinstance(how, GapbenchError)
    assert any("images: 1 missing" in note for note in done.notes())
    del toy.generate
    assert run(toy).failures() == {}


def test_an_adapters_error_is_one_line_or_whole(
    cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "leaving.py").write_text("import sys\nclass Model:\n    sys.exit(0)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "leaving", raising=False)
    for command in ("run", "check-model"):
        model = ("--model",) if command == "run" else ()
        short = cli(command, *model, "leaving:Model")
        assert short.returncode == 2
        assert f"sys.exit(0) ({tmp_path / 'leaving.py'}, line 3)" in short.stderr
        assert "Traceback" not in short.stderr
    whole = cli("run", "--model", "leaving:Model", "--traceback")
    assert whole.returncode == 2
    assert "Traceback (most recent call last)" in whole.stderr


def test_a_judge_of_other_requirements_is_told_before_drawing(tmp_path: Path) -> None:
    with pytest.raises(GapbenchError, match="judge spatial-native cannot judge prompt"):
        gapbench.run(Toy(), "shapes", judges=["spatial-native"], out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_here_are_told_before_drawing(
    run: Callable[..., Run], tmp_path: Path
) -> None:
    class Heavy(Odd):
        def check_ready(self) -> None:
            raise GapbenchError("judge odd needs weights")

    assert told(lambda: run(Toy(), Heavy())) == "judge odd needs weights"
    assert not list(tmp_path.iterdir())
