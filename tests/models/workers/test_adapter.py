"""Workers as real processes: a sound one, and ones that break in every way."""

from __future__ import annotations

import ast
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import gapbench
from gapbench.models.base import Drawing
from gapbench.models.workers.adapter import WorkerModel
from gapbench.runs.flow import run
from gapbench.tasks.prompts.questions import questions
from gapbench.types import GapbenchError, Unfinished

SERVE = Path(gapbench.__file__).parent / "models/workers/scripts/serve.py"
HERE = Path(__file__).parent / "scripts"
PROMPTS = [f"a {colour} circle" for colour in ("red", "green", "blue", "white", "black")]
SEEDS = [2**62 + i for i in range(len(PROMPTS))]


def standin(count: Path | None = None, timeout: float = 30.0, **recipe: Any) -> WorkerModel:
    if count is not None:
        count.mkdir(exist_ok=True)
        recipe["count"] = str(count)
    settings = {"repo": "", "checkpoints": {}, "recipe": recipe, "device": "cpu", "dtype": "auto"}
    command = [sys.executable, SERVE, HERE / "standin.py", json.dumps(settings)]
    return WorkerModel("stand-in", command, {"steps": 3}, {"commit": "abc"}, timeout=timeout)


def raw(kind: str, timeout: float = 30.0) -> WorkerModel:
    command = [sys.executable, HERE / "raw.py", kind]
    return WorkerModel("raw", command, {}, {}, timeout=timeout)


def started(count: Path) -> list[str]:
    """The process ids of the stand-ins that were started."""
    return [file.name for file in count.iterdir()]


def pixels(drawings: list[Drawing]) -> list[bytes]:
    return [drawing.image.tobytes() for drawing in drawings]


@pytest.fixture(scope="module")
def sound() -> list[Drawing]:
    model = standin()
    drawings = model.generate(PROMPTS, SEEDS)
    model.release()
    return drawings


def test_greeting_and_answers(sound: list[Drawing]) -> None:
    model = standin()
    assert model.capabilities == {
        "generate", "judge_logits", "judge_text", "image_tokens", "text",
    }  # fmt: skip
    assert model.versions["no-such-package"] == "missing"
    assert set(model.versions) == {"python", "pillow", "no-such-package"}
    assert model.refuses("a circle") is None
    assert model.refuses("long " * 100) == "it is too long"
    assert len(set(pixels(sound))) == len(sound)
    assert sound[0].effective_prompt == "<a red circle>"
    assert sound[0].logprob == -1.5
    assert sound[0].tokens is not None
    assert sound[0].tokens.dtype == np.int32
    images = [Image.new("RGB", (4, 4), (level, 0, 0)) for level in (0, 255)]
    found = model.judge(images, ["?", "?"], ["ab", "abc"])
    assert found.tolist() == [[-2, -3], [-3, -4]]
    assert model.reply(images, ["?", "?"]) == ["The score is 0", "The score is 1"]
    model.release()


def test_an_image_depends_on_its_prompt_and_seed_alone(sound: list[Drawing]) -> None:
    model = standin()
    again = model.generate(PROMPTS[::-1], SEEDS[::-1])[::-1]
    alone = [model.generate([p], [s])[0] for p, s in zip(PROMPTS, SEEDS, strict=True)]
    model.release()
    assert pixels(again) == pixels(alone) == pixels(sound)


def test_the_fingerprint_covers_what_can_change_an_image(tmp_path: Path) -> None:
    def fingerprint(identity: dict[str, str], python: str | Path = sys.executable) -> str:
        settings = json.dumps({"recipe": {}})
        model = WorkerModel("m", [python, SERVE, HERE / "standin.py", settings], {}, identity)
        model.release()
        return model.fingerprint

    other = tmp_path / "python"
    # Another environment: the same interpreter without its packages.
    other.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    other.chmod(0o755)
    assert fingerprint({"commit": "a"}) == fingerprint({"commit": "a"})
    assert fingerprint({"commit": "a"}) != fingerprint({"commit": "b"})
    assert fingerprint({"commit": "a"}) != fingerprint({"commit": "a"}, other)


@pytest.mark.parametrize("what", ["die", "hang"])
def test_one_that_stops_mid_batch_is_started_again(
    what: str, tmp_path: Path, sound: list[Drawing]
) -> None:
    count = tmp_path / "count"
    model = standin(count, timeout=1.0, **{"break": what, "at": 2, "until": 2})
    assert pixels(model.generate(PROMPTS, SEEDS)) == pixels(sound)
    model.release()
    # The first drew two of five, and the second got two of the three left, which it managed.
    assert len(started(count)) == 2


@pytest.mark.parametrize("room", [1, 2, 3])
def test_a_lack_of_memory_halves_the_batch(room: int, tmp_path: Path, sound: list[Drawing]) -> None:
    count = tmp_path / "count"
    model = standin(count, **{"break": "memory", "room": room})
    assert pixels(model.generate(PROMPTS, SEEDS)) == pixels(sound)
    starts = len(started(count))
    assert starts == {1: 3, 2: 2, 3: 2}[room]
    assert pixels(model.generate(PROMPTS, SEEDS)) == pixels(sound)
    model.release()
    assert len(started(count)) == starts  # the size that fits is remembered


def test_what_is_done_outlives_a_worker_that_keeps_dying(sound: list[Drawing]) -> None:
    model = standin(**{"break": "die", "at": 0})
    with pytest.raises(Unfinished, match=r"exit code 13 \(Segmentation fault") as stopped:
        model.generate(PROMPTS, SEEDS)
    assert stopped.value.done == {}
    assert "\n" not in str(stopped.value)
    model.release()


def test_an_item_that_fails_leaves_the_others_done(sound: list[Drawing]) -> None:
    model = standin(**{"break": "one", "word": "blue"})
    with pytest.raises(
        Unfinished, match=r"failed at 1 of 5 items, first 'a blue circle': ValueError: cannot draw "
    ) as stopped:
        model.generate(PROMPTS, SEEDS)
    model.release()
    assert sorted(stopped.value.done) == [0, 1, 3, 4]
    assert pixels([stopped.value.done[i] for i in (0, 4)]) == pixels([sound[0], sound[4]])


@pytest.mark.parametrize(
    ("what", "words"),
    [("load", "failed: RuntimeError: no weights anywhere"), ("die loading", "driver is too old")],
)
def test_weights_that_do_not_load(what: str, words: str) -> None:
    model = standin(**{"break": what})
    with pytest.raises(GapbenchError, match=words):
        model.load()


@pytest.mark.parametrize("kind", ["order", "twice"])
def test_items_may_come_in_any_order(kind: str) -> None:
    model = raw(kind)  # one that repeats itself is ended, but what it said first is kept
    drawings = model.generate(PROMPTS, SEEDS)
    model.release()
    assert [d.image.getpixel((0, 0)) for d in drawings] == [(s % 256, 0, 0) for s in SEEDS]
    assert [d.effective_prompt for d in drawings] == PROMPTS


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("rubbish", "said '100%|#####| 50/50', no message"),
        ("digest", "gave another image than the one it named"),
        ("no image", "drew what is no image"),
        ("elsewhere", "named an image 'passwd.png', not by its digest"),
        ("tokens", "gave tokens that are no whole numbers"),
        ("stranger", "answered item 1 of 1"),
        ("lacks", "left out 1 of 1 items"),
        ("stale", "answered request 1, not 2"),
    ],
)
def test_nonsense_is_told_in_one_line(kind: str, words: str) -> None:
    model = raw(kind)
    with pytest.raises(Unfinished) as stopped:
        model.generate(PROMPTS[:2], SEEDS[:2])
    model.release()
    assert words in str(stopped.value)
    assert "\n" not in str(stopped.value)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("version", "its worker speaks protocol 2, this gapbench speaks 1"),
        ("greeting", "greeting lacks its capabilities or versions"),
        ("leaves", "left with exit code 1 (ImportError: no module named torch)"),
        ("silent", "said nothing for 0.5 s"),
    ],
)
def test_greetings_that_are_none(kind: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "silent":
        monkeypatch.setattr("gapbench.models.workers.process.GREETING", 0.5)
    with pytest.raises(GapbenchError) as refused:
        raw(kind)
    assert words in str(refused.value)


def test_an_interpreter_that_is_not_there() -> None:
    with pytest.raises(GapbenchError, match="cannot be started: /no/such/python: No such file"):
        WorkerModel("m", ["/no/such/python"], {}, {})


def test_a_worker_leaves_with_its_model(tmp_path: Path) -> None:
    model = standin(tmp_path / "count")
    model.load()
    (pid,) = (int(name) for name in started(tmp_path / "count"))
    os.kill(pid, 0)
    del model
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("the worker lives on")


# -- texts ---------------------------------------------------------------------------------


def test_chats_reach_the_worker_as_turns_with_their_images_in_their_places() -> None:
    model = standin()
    red, black = (Image.new("RGB", (4, 4), (level, 0, 0)) for level in (255, 0))
    turns = [
        {"role": "user", "content": "a<image>or<image>?"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "why?"},
    ]
    asked, alone = model.chat(turns), model.chat(turns[2:])
    said = model.complete([[red, black], []], [f"{asked} It", alone], 7)
    assert said == ["user:a[255]or[0]? assistant:a user:why? It|7", "user:why?|7"]
    assert model.complete([[]], [alone], 7, ["?|", "y"]) == ["user:wh"]
    found = model.score([[], []], [alone, f"{alone} It"], [" yes", " is"])
    assert found == [(-4.125, True), (-6.125, False)]
    model.release()


def test_a_chat_that_fails_leaves_the_others_done() -> None:
    model = standin(**{"break": "one", "word": "blue"})
    texts = [model.chat([{"role": "user", "content": f"is it {c}?"}]) for c in ("blue", "red")]
    with pytest.raises(Unfinished, match=r"at 1 of 2 items, first .*is it blue.*: cannot say") as e:
        model.complete([[], []], texts, 7)
    assert e.value.done == {1: "user:is it red?|7"}
    with pytest.raises(GapbenchError, match="stand-in: it answers chats alone"):
        model.complete([[]], ["is it red?"], 7)
    model.release()


def test_a_score_that_is_no_number_is_told() -> None:
    model = raw("")
    with pytest.raises(Unfinished, match="gave '-1' for a log-probability"):
        model.score([[]], [model.chat([{"role": "user", "content": "?"}])], [" yes"])
    model.release()


def test_lm_eval_asks_a_worker(tmp_path: Path) -> None:
    from gapbench.lmeval.harness import evaluate

    found, _ = evaluate(standin(), "stand-in", ["gapbench_shapes"], tmp_path, 4)
    assert found["results"]["gapbench_shapes_color"]["acc,none"] == 0
    # It scores the shorter answer higher.
    right = [not asked["answer"] for asked in questions("presence", 4)]
    assert found["results"]["gapbench_shapes_presence"]["acc,none"] == sum(right) / 4


# -- through the whole flow ----------------------------------------------------------------


def images_of(path: Path) -> dict[tuple[str, int], str]:
    lines = (path / "generations.jsonl").read_text().splitlines()
    return {(g["prompt"], g["seed"]): g["image"] for g in map(json.loads, lines)}


def verdicts_of(path: Path) -> set[tuple[str, str, float]]:
    lines = (path / "verdicts.jsonl").read_text().splitlines()
    return {(v["image"], v["question"], v["p_yes"]) for v in map(json.loads, lines)}


def test_a_run_ends_in_a_table_and_kills_change_nothing(tmp_path: Path) -> None:
    whole = run(standin(), "shapes", limit=4, samples=2, out=tmp_path / "a", batch_size=8)
    assert {rate.metric for rate in whole.rates()} >= {"generation", "non_unification"}
    dying = standin(tmp_path / "count", **{"break": "die", "at": 3, "until": 2})
    killed = run(dying, "shapes", limit=4, samples=2, out=tmp_path / "b", batch_size=8)
    assert len(started(tmp_path / "count")) == 2 + 1  # the third for the verdicts
    assert images_of(killed.path) == images_of(whole.path)
    assert verdicts_of(killed.path) == verdicts_of(whole.path)
    assert killed.path.name == whole.path.name
    about = json.loads((whole.path / "run.json").read_text())["model_about"]
    assert about["versions"]["no-such-package"] == "missing"


def test_nothing_done_is_lost_and_the_same_command_goes_on(tmp_path: Path) -> None:
    whole = run(standin(), "shapes", judges=[], limit=4, samples=2, out=tmp_path / "a")
    word = whole.plan.prompts[1].text
    broken = run(
        standin(**{"break": "one", "word": word}),
        "shapes",
        judges=[],
        limit=4,
        samples=2,
        out=tmp_path / "b",
    )
    [(stage, reasons)] = broken.failures().items()
    assert (stage, sum(reasons.values())) == ("images", 2)
    part = images_of(tmp_path / "b" / whole.path.name)
    assert 0 < len(part) < len(images_of(whole.path))
    done = run(standin(), "shapes", judges=[], limit=4, samples=2, out=tmp_path / "b")
    assert images_of(done.path) == images_of(whole.path)
    assert len((done.path / "generations.jsonl").read_text().splitlines()) == 8


@pytest.mark.parametrize("verdict", ["logits", "text"])
def test_verdicts_by_answers_and_by_words(verdict: Any, tmp_path: Path) -> None:
    done = run(standin(), "shapes", judges=[], limit=2, samples=1, verdict=verdict, out=tmp_path)
    assert done.frame()["own"].notna().all()


def test_verdicts_that_were_given_are_kept(tmp_path: Path) -> None:
    with pytest.raises(GapbenchError, match="exit code 13"):
        run(
            standin(**{"break": "die judging"}),
            "shapes",
            judges=[],
            limit=40,
            samples=1,
            out=tmp_path,
        )
    (path,) = tmp_path.iterdir()
    part = len((path / "verdicts.jsonl").read_text().splitlines())
    done = run(standin(), "shapes", judges=[], limit=40, samples=1, out=tmp_path)
    assert 0 < part < len(verdicts_of(done.path))


# -- the files -----------------------------------------------------------------------------

FILES = sorted(SERVE.parent.glob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=[file.name for file in FILES])
def test_worker_files_are_python_3_8_and_know_no_gapbench(file: Path) -> None:
    tree = ast.parse(file.read_text(), feature_version=(3, 8))
    imported = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert "gapbench" not in imported
