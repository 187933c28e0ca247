"""lm-eval's evaluator on a model behind a server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from here import end
from servers import Asked, Painter, Painting

import gapbench
from gapbench.lmeval.harness import evaluate
from gapbench.models import load_model
from gapbench.tasks.prompts.questions import questions
from gapbench.types import GapbenchError


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Painting]:
    """It draws and gives verdicts; to lm-eval's questions, model org/ID says ID."""

    def says(handler: Painter, asked: Asked) -> None:
        if "score" in str(asked["messages"]):
            handler.answer(asked)
        else:
            handler.talk(asked, asked["model"].removeprefix("org/"))

    made = Painting()
    made.draws, made.says = Painter.draw, says
    with made.serving(monkeypatch):
        yield made


def test_figures_are_what_the_server_says(
    server: Painting,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = f"server:{server.at('org/yes')}"
    code, said, told = end(
        capfd, "lm-eval", spec, "--tasks", "gapbench_shapes", "--limit", "5", "--offline"
    )
    assert code is None, told
    assert "gapbench_shapes_presence" in said
    [file] = (tmp_path / "lm-eval").glob("*/results_*.json")
    found = json.loads(file.read_text())
    right = [asked["answer"] for asked in questions("presence")[:5]]
    assert found["results"]["gapbench_shapes_presence"]["acc,none"] == sum(right) / 5
    assert 0 < sum(right) < 5
    assert found["results"]["gapbench_shapes_color"]["acc,none"] == 0
    assert found["config"]["fingerprint"] == load_model(spec).fingerprint
    [words] = {str(a["stop"]) for a in server.chats if "stop" in a}
    assert words == "['\\n']"


def test_a_server_that_scores_nothing_is_told_of_before_the_first_question(
    server: Painting, tmp_path: Path
) -> None:
    server.says = lambda h, asked: h.talk(asked, tells=False)
    model = load_model(f"server:{server.argument}")
    with pytest.raises(GapbenchError, match="cannot score a given answer, as multiple_choice"):
        evaluate(model, "m", ["gapbench_shapes"], tmp_path / "out", 5)
    assert len(server.chats) == 1
    assert not list((tmp_path / "out").iterdir())
    found, _ = evaluate(model, "m", ["gapbench_shapes_color"], tmp_path / "out", 5)
    right = [asked["answer"] == "red" for asked in questions("color")[:5]]
    assert found["results"]["gapbench_shapes_color"]["acc,none"] == sum(right) / 5


def test_compare_adds_rows(
    server: Painting, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    paths = [
        gapbench.run(
            f"server:{server.at(f'org/{word}')}", "shapes", limit=2, samples=1, out=tmp_path
        ).path
        for word in ("red", "blue")
    ]
    code, said, told = end(
        capfd, "compare", *map(str, paths), "--lm-eval", "gapbench_shapes_color",
        "--lm-eval-limit", "40", "--json",
    )  # fmt: skip
    assert code is None, told
    [found] = json.loads(said)["comparisons"]
    [row] = [c for c in found["changes"] if c["metric"] == "gapbench_shapes_color: acc"]
    answers = [asked["answer"] for asked in questions("color")[:40]]
    assert [row["before"], row["after"]] == [answers.count(w) / 40 for w in ("red", "blue")]
    assert len(list((paths[0] / "lm-eval").iterdir())) == 1
