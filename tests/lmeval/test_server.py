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


def fails_once(server: Painting, after: int) -> None:
    """A question goes wrong, once so many were asked."""
    sound, lost = server.says, []

    def says(handler: Painter, asked: Asked) -> None:
        if len(server.chats) >= after and not lost:
            lost.append(asked)
            handler.send({"error": "not this one"}, 403)
        else:
            sound(handler, asked)

    server.says = says


def test_answers_are_kept_and_the_same_command_asks_the_rest(
    server: Painting, tmp_path: Path
) -> None:
    model, tasks = load_model(f"server:{server.argument}?attempts=1"), ["gapbench_shapes"]
    whole, _ = evaluate(model, "m", tasks, tmp_path / "whole", 10)
    every = len(server.chats)
    server.asked.clear()
    server.paths.clear()
    fails_once(server, 6)
    with pytest.raises(GapbenchError, match=r"\d of \d .*status 403.* has kept \d+ answers"):
        evaluate(model, "m", tasks, tmp_path / "twice", 10)
    [file] = (tmp_path / "twice").iterdir()
    assert 0 < len(file.read_text().splitlines()) < 8  # the others of the first batch
    evaluate(model, "m", ["gapbench_shapes_count"], tmp_path / "twice", 1)  # has a file of its own
    written = file.read_text()
    file.write_text(written.splitlines()[0].rpartition(", ")[0] + ", 5]\n")
    with pytest.raises(GapbenchError, match=rf"{file.name}: '5' is no answer; remove it"):
        evaluate(model, "m", tasks, tmp_path / "twice", 10)
    file.write_text(written)
    server.asked.clear()
    server.paths.clear()
    found, _ = evaluate(model, "m", tasks, tmp_path / "twice", 10)
    assert found["results"] == whole["results"]
    assert not file.exists()
    assert 2 < len(server.chats) < every  # the probe again, and what had failed


def test_compare_adds_rows(
    server: Painting, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    paths = [
        gapbench.run(
            f"server:{server.at(f'org/{word}')}", "shapes", limit=2, samples=1, out=tmp_path
        ).path
        for word in ("red", "blue")
    ]
    command = ("compare", *map(str, paths), "--lm-eval", "gapbench_shapes_color",
               "--lm-eval-limit", "40", "--json")  # fmt: skip
    before = len(server.chats)
    fails_once(server, before + 30)
    code, said, told = end(capfd, *command)
    assert (code, said) == (2, ""), told
    assert "has kept " in told
    code, said, told = end(capfd, *command)
    assert code is None, told
    assert before + 80 < len(server.chats) < before + 80 + 8
    [found] = json.loads(said)["comparisons"]
    [row] = [c for c in found["changes"] if c["metric"] == "gapbench_shapes_color: acc"]
    answers = [asked["answer"] for asked in questions("color")[:40]]
    assert [row["before"], row["after"]] == [answers.count(w) / 40 for w in ("red", "blue")]
    assert len(list((paths[0] / "lm-eval").iterdir())) == 1
