"""The model behind a server against a real HTTP server in a thread."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from here import end
from PIL import Image
from servers import Asked, Painter, Painting, Play

from gapbench.judges.own import OwnJudge
from gapbench.models import load_model
from gapbench.models.server import ServerModel
from gapbench.runs.flow import run
from gapbench.runs.run import open_run
from gapbench.types import GapbenchError, Unfinished

PROMPTS = ["a red circle", "a green square", "a blue cross"]
SEEDS = [2**62 + 1, 2**62 + 2, 2**62 + 3]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Painting]:
    made = Painting()
    made.draws, made.says = Painter.draw, Painter.answer
    with made.serving(monkeypatch):
        yield made


def test_what_is_sent(server: Painting) -> None:
    model = server.model(recipe={"num_inference_steps": "20", "extra_params": '{"shift": 3.0}'})
    (drawing,) = model.generate(["a cat"], [2**62 + 5])
    (reply,) = model.reply([drawing.image], ["a cat?"])
    model.release()
    assert reply == "The score is 1"
    assert server.drawn == [
        {
            "model": "org/painter", "prompt": "a cat", "n": 1, "seed": 5, "size": "1024x1024",
            "response_format": "b64_json", "num_inference_steps": 20,
            "extra_params": {"shift": 3.0},
        }
    ]  # fmt: skip
    (chat,) = server.chats
    picture, text = chat.pop("messages")[0]["content"]
    assert text == {"type": "text", "text": "a cat?"}
    data = base64.b64decode(picture["image_url"]["url"].partition(",")[2])
    assert Image.open(io.BytesIO(data)).tobytes() == drawing.image.tobytes()
    assert chat == {
        "model": "org/painter", "temperature": 0, "top_p": 1, "frequency_penalty": 0, "n": 1,
        "presence_penalty": 0, "max_tokens": 64, "seed": 0, "modalities": ["text"],
        "repetition_penalty": 1.0,
    }  # fmt: skip


def test_its_own_verdicts_name_the_rules_of_reading_in_both_modes(server: Painting) -> None:
    model = server.model()
    assert OwnJudge(model, "logits").fingerprint == f"self-3-{model.fingerprint}"
    assert OwnJudge(model, "text").fingerprint == f"self-text-3-{model.fingerprint}"


def test_one_number_is_one_value_however_it_is_written(server: Painting) -> None:
    made = [
        ServerModel(server.argument, recipe={"guidance_scale": said, "extra": f'{{"cfg": {said}}}'})
        for said in ("5", "5.0")
    ]
    assert [json.dumps(model.recipe) for model in made] == [json.dumps(made[0].recipe)] * 2


def test_a_known_model_comes_with_its_recipe(server: Painting) -> None:
    base = server.argument.partition("#")[0]
    model = load_model(f"server:{base}#ByteDance-Seed/BAGEL-7B-MoT", recipe={"size": "512x512"})
    assert model.recipe["size"] == "512x512"
    assert model.recipe["extra_params"]["cfg_text_scale"] == 4.0
    assert model.name == "server-BAGEL-7B-MoT"
    other = load_model(f"server:{base}#org/other")
    assert model.fingerprint != other.fingerprint
    assert other.recipe == {"size": "1024x1024"}


def test_images_are_in_order_and_alike_whatever_the_batch(server: Painting) -> None:
    def slowly(handler: Painter, asked: Asked) -> None:
        time.sleep(0.05 * (asked["seed"] % 3))
        handler.draw(asked)

    server.draws = slowly
    model = server.model()
    together = [d.image.tobytes() for d in model.generate(PROMPTS, SEEDS)]
    alone = [
        model.generate([p], [s])[0].image.tobytes() for p, s in zip(PROMPTS, SEEDS, strict=True)
    ]
    model.release()
    assert together == alone
    assert len(set(together)) == 3


@pytest.mark.parametrize("status", [429, 500, 503])
def test_it_recovers(server: Painting, status: int) -> None:
    def play(handler: Painter, asked: Asked) -> None:
        if len(server.drawn) < 3:
            handler.send({"error": "later"}, status)
        else:
            handler.draw(asked)

    server.draws = play
    model = server.model()
    assert len(model.generate(PROMPTS[:1], SEEDS[:1])) == 1
    model.release()
    assert len(server.drawn) == 3


def hang(handler: Painter, asked: Asked) -> None:
    time.sleep(1.0)


@pytest.mark.parametrize(
    ("play", "words"),
    [
        (lambda h, _: h.send({"error": "busy"}, 500), "the server gave status 500, 3 times"),
        (hang, "did not answer within 0.2 s"),
        (lambda h, _: h.send(b"<html>garbage"), "the reply is broken, not JSON"),
        (lambda h, _: h.send(b"[" * 100_000), "the reply is broken, not JSON"),
        (lambda h, _: h.send({"data": 5}), "no JSON with one image"),
        (lambda h, _: h.send({"data": []}), "the reply holds no image"),
        (lambda h, _: h.send({"data": [{"url": "http://x/y.png"}]}), "response_format=base64"),
        (lambda h, _: h.give(b"no image"), "no PNG, JPEG or WebP"),
        (lambda h, _: h.send({"data": [{"b64_json": "\u00e9?"}]}), "no PNG, JPEG or WebP"),
        (lambda h, _: h.send({"error": "not\nthat prompt"}, 400), "status 400: "),
    ],
)
def test_what_goes_wrong_leaves_the_others_done(server: Painting, play: Play, words: str) -> None:
    server.draws = lambda h, asked: play(h, asked) if "green" in asked["prompt"] else h.draw(asked)
    model = server.model(timeout=0.2 if play is hang else 5.0)
    with pytest.raises(Unfinished) as stopped:
        model.generate(PROMPTS, SEEDS)
    model.release()
    assert words in str(stopped.value)
    assert "model server-painter: 1 of 3 requests failed: " in str(stopped.value)
    assert set(stopped.value.failed) == {1}
    assert "\n" not in str(stopped.value)
    assert sorted(stopped.value.done) == [0, 2]


def test_a_rewritten_prompt_is_recorded(server: Painting) -> None:
    buffer = io.BytesIO()
    Image.new("RGBA", (8, 8)).save(buffer, "WEBP")
    server.draws = lambda h, _: h.give(buffer.getvalue(), revised_prompt="a fine cat")
    model = server.model()
    (drawing,) = model.generate(["a cat"], [1])
    model.release()
    assert drawing.effective_prompt == "a fine cat"
    assert drawing.image.mode == "RGB"


def test_a_server_that_is_not_there_or_refuses(server: Painting) -> None:
    server.draws = lambda h, _: h.send({"error": "who"}, 401)
    model = server.model()
    with pytest.raises(GapbenchError, match=r"model server-painter: .* refuses the key"):
        model.generate(PROMPTS, SEEDS)
    model.release()
    with pytest.raises(GapbenchError, match="cannot be reached"):
        ServerModel("http://127.0.0.1:9/v1#m", pause=0.01, attempts=2).generate(["a"], [1])


@pytest.mark.parametrize(
    ("argument", "changes", "why"),
    [
        ("http://127.0.0.1/v1", {}, "model server needs an address and a model: --model server:"),
        ("nowhere#m", {}, "use --model server:https://HOST/v1#MODEL"),
        ("http://example.com/v1#m", {}, "travel in the clear"),
        ("http://127.0.0.1/v1#m", {"seed": "3"}, "--set seed=3: gapbench sets seed"),
    ],
)
def test_arguments_that_are_refused(argument: str, changes: dict[str, Any], why: str) -> None:
    with pytest.raises(GapbenchError, match=why):
        load_model(f"server:{argument}", recipe=changes)


def test_fields_that_a_server_refuses_are_left_out(server: Painting) -> None:
    def draws(handler: Painter, asked: Asked) -> None:
        if "seed" in asked:
            handler.send({"error": "Unknown parameter: 'seed'"}, 400)
        else:
            handler.draw(asked)

    def says(handler: Painter, asked: Asked) -> None:
        if "repetition_penalty" in asked or "logprobs" in asked:
            handler.send({"error": "unknown"}, 400)
        else:
            handler.answer(asked)

    server.draws, server.says = draws, says
    model = server.model(concurrency=1)
    drawings = model.generate(PROMPTS, SEEDS)
    assert ["seed" in asked for asked in server.drawn] == [True, False, False, False]
    answers = model.answers([d.image for d in drawings], PROMPTS, words=False)
    model.release()
    assert [(a.verdict, a.p_yes) for a in answers] == [(1, None)] * 3
    assert len(server.chats) == 3 + 2


def test_log_probabilities(server: Painting) -> None:
    model = server.model()
    image = Image.new("RGB", (4, 4))
    found = model.judge([image], ["?"], (" The score is 0", " The score is 1"))
    assert found[0].tolist() == pytest.approx([-2.5, -0.1])
    server.says = lambda h, asked: h.answer(asked, logprobs=False)
    import numpy as np

    assert np.isnan(model.judge([image], ["?"], (" 0", " 1"))).all()
    with pytest.raises(GapbenchError, match="end in 0 and 1"):
        model.judge([image], ["?"], ("cat", "dog"))
    model.release()


# -- through the whole flow ----------------------------------------------------------------


@pytest.mark.parametrize("logprobs", [True, False])
def test_a_run_ends_in_a_table(
    server: Painting, tmp_path: Path, logprobs: bool, cli: Callable[..., Any]
) -> None:
    server.says = lambda h, asked: h.answer(asked, logprobs=logprobs)
    done = run(f"server:{server.argument}", "shapes", limit=3, samples=2, out=tmp_path)
    frame = done.frame()
    assert len(frame) == 6
    assert (frame["own"] == 1).all()
    assert frame["p_yes"].notna().all() == logprobs
    shown, mode = cli("show", str(done.path)).stdout, "logits" if logprobs else "text"
    assert ("9 of 9 own verdicts are text, read from the words" in shown) != logprobs
    assert f"own verdicts: {mode}" in shown
    assert ("(verdict=text)" in shown.splitlines()[0]) != logprobs
    assert done.checks() == {}
    # The image that the seeds were tried with is not drawn a third time.
    assert len(server.drawn) == 6 + 1
    assert len({(a["prompt"], a["seed"]) for a in server.drawn}) == 6
    if not logprobs:
        server.says = lambda h, asked: h.answer(asked, logprobs=True)
        other = run(
            f"server:{server.argument}", "shapes", limit=3, samples=2, out=tmp_path / "other"
        )
        refused = cli("compare", str(other.path), str(done.path))
        assert refused.returncode == 2
        assert "own verdicts are logits and text" in refused.stderr


def test_seeds_that_are_not_heeded_are_marked(
    server: Painting, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    server.draws = lambda h, asked: h.draw(asked, salt=str(time.perf_counter_ns()))
    done = run(f"server:{server.argument}", "shapes", limit=2, samples=1, out=tmp_path)
    (warning,) = done.checks().values()
    assert "one prompt and one seed that differ" in warning
    shown = cli("show", str(done.path)).stdout
    assert "WARNING: the model's seeds failed the check: server-painter drew two images" in shown
    assert open_run(done.path).checks() == done.checks()


def test_a_field_that_is_named_leaves_alone(server: Painting) -> None:
    server.draws = lambda h, asked: (
        h.send({"error": "Unknown parameter: 'response_format'"}, 400)
        if "response_format" in asked
        else h.draw(asked)
    )
    model = server.model(concurrency=1)
    model.generate(PROMPTS, SEEDS)
    model.release()
    assert [asked["seed"] for asked in server.drawn] == [1, 1, 2, 3]


def test_data_addresses_and_other_formats(server: Painting) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (24, 24), "red").save(buffer, "PNG")
    address = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    model = server.model(recipe={"response_format": "base64"})
    for key in ("b64_json", "url"):
        server.draws = lambda h, _, key=key: h.send({"data": [{key: address}]})
        (drawing,) = model.generate(["a cat"], [1])
        assert drawing.image.getpixel((0, 0)) == (255, 0, 0)
    model.release()
    assert {asked["response_format"] for asked in server.drawn} == {"base64"}


Cli = Callable[..., Any]
COMMAND = ("--tasks", "shapes", "--limit", "12", "--samples", "1", "--batch-size", "4")


def test_a_refused_prompt_costs_no_other(server: Painting, tmp_path: Path, cli: Cli) -> None:
    server.draws = lambda h, asked: (
        h.send({"error": {"code": "moderation_blocked"}}, 400)
        if "red" in asked["prompt"]
        else h.draw(asked)
    )
    command = ("run", "--model", f"server:{server.argument}", *COMMAND, "--out", str(tmp_path))
    first = cli(*command)
    assert first.returncode == 0, first.stderr
    (folder,) = tmp_path.iterdir()
    refused = {prompt.text for prompt in open_run(folder).plan.prompts if "red" in prompt.text}
    note = f"{len(refused)} image{'s' * (len(refused) > 1)} of 12 refused by the model are left out"
    assert refused
    for shown in (first, cli("show", str(folder))):
        assert note in shown.stdout
        assert "moderation_blocked" in shown.stdout
    assert len(open_run(folder).frame()) == 12 - len(refused)
    before = len(server.drawn)
    assert cli(*command).returncode == 0
    assert len(server.drawn) == before  # remembered
    server.draws = Painter.draw
    again = cli(*command, "--retry-refused")
    assert again.returncode == 0
    assert "refused by the model" not in again.stdout
    assert len(open_run(folder).frame()) == 12


def test_what_could_not_be_asked_is_asked_again(server: Painting, tmp_path: Path, cli: Cli) -> None:
    """One question fails, and the others end in a table; nothing is written of it."""
    lost: list[str] = []

    def says(handler: Painter, asked: Asked) -> None:
        question = str(asked["messages"][0]["content"][1])
        lost[:] = lost or [question]
        if question == lost[0]:
            handler.send({"choices": None, "error": {"message": "overloaded"}})
        else:
            handler.answer(asked)

    server.says = says
    spec = f"server:{server.argument}?attempts=1"
    command = ("run", "--model", spec, *COMMAND, "--out", str(tmp_path))
    first = cli(*command)
    assert first.returncode == 2
    assert "overall" in first.stdout
    assert "WARNING: own verdicts: " in first.stdout
    assert "overloaded" in first.stdout
    assert "are missing, as said above; run the same command again" in first.stderr
    (folder,) = tmp_path.iterdir()
    assert "overloaded" not in (folder / "verdicts.jsonl").read_text()
    server.says = Painter.answer
    second = cli(*command)
    assert second.returncode == 0
    assert "missing" not in second.stdout
    assert open_run(folder).failures() == {}


def test_a_dry_run_asks_nothing(
    server: Painting, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spec, out = f"server:{server.argument}", ("--out", str(tmp_path / "r"))
    command = ("run", "--model", spec, "--judge", spec, *COMMAND, *out)
    code, shown, told = end(capfd, *command, "--dry-run")
    assert code is None, told
    assert "Left to do: 12 images, 24 own verdicts, 24 outside verdicts. Nothing was" in shown
    assert "Not counted in the time: verdicts of " in shown
    assert ": 24 requests to http://" in shown
    assert server.asked == []
    assert not (tmp_path / "r").exists()
    code, shown, told = end(capfd, *command, "--calibrate")
    assert code is None, told
    assert "from a short calibration" in shown
    assert len(server.drawn) == 4  # a batch


def test_a_server_that_is_away_leaves_nothing(tmp_path: Path, cli: Cli) -> None:
    for option in ("--model", "--judge"):
        ended = cli(
            "run", option, "server:http://127.0.0.1:9/v1#m", "--tasks", "shapes",
            "--out", str(tmp_path / "r"),
        )  # fmt: skip
        assert ended.returncode == 2
        assert "http://127.0.0.1:9/v1 cannot be reached" in ended.stderr
        assert not (tmp_path / "r").exists()


def test_another_model_than_asked_for_is_marked(server: Painting, tmp_path: Path) -> None:
    body = {"choices": [{"message": {"content": "The score is 1"}}], "model": "tiny-256m.gguf"}
    server.says = lambda h, _: h.send(body)
    done = run(f"server:{server.argument}", "shapes", limit=2, samples=1, out=tmp_path)
    assert done.folder.read("served.json") == {"model server-painter": "tiny-256m.gguf"}
    assert done.checks() == {"model server-painter": "the server says that it is tiny-256m.gguf"}
