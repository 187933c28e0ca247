"""Chats of a model behind a server: what is sent, what goes wrong, and scores of given answers."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from servers import Asked, Painter, Painting, Play

from gapbench.models import load_model
from gapbench.models.base import IMAGE
from gapbench.models.check import check
from gapbench.models.turns import talk, written
from gapbench.types import GapbenchError, Unfinished

RED, BLUE = (Image.new("RGB", (2, 2), colour) for colour in ("red", "blue"))
SAID = st.lists(st.one_of(st.text(), st.sampled_from([IMAGE, '{"turns": [', '"}]}', "\n", "\\"])))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Painting]:
    made = Painting()
    made.draws, made.says = Painter.draw, Painter.talk
    with made.serving(monkeypatch):
        yield made


def user(content: str) -> str:
    return written([{"role": "user", "content": content}])


@given(
    st.lists(st.tuples(st.sampled_from(["user", "assistant"]), SAID.map("".join)), min_size=1),
    SAID.map("".join),
)
def test_any_turns_are_read_from_their_text(turns: list[tuple[str, str]], begun: str) -> None:
    text = written([{"role": role, "content": content} for role, content in turns])
    places = sum(content.count(IMAGE) for _, content in turns)
    assert text.count(IMAGE) == places  # lm-eval puts an image where it finds one
    images = [Image.new("RGB", (1, 1), (n, 0, 0)) for n in range(places)]
    said, rest = talk("m", text + begun, images)
    assert [(r, "".join(p if isinstance(p, str) else IMAGE for p in ps)) for r, ps in said] == turns
    assert [part for _, parts in said for part in parts if not isinstance(part, str)] == images
    assert rest == begun


@pytest.mark.parametrize(
    ("text", "images", "words"),
    [
        ("What is it?", [], "answers chats alone, and 'What is it\\?' is none; .*chat_template"),
        ("[1] is it?", [], "answers chats alone"),
        (user(f"{IMAGE} or {IMAGE}"), [RED], "a text has <image> 2 times, for 1 images"),
    ],
)
def test_texts_that_are_no_chats(
    server: Painting, text: str, images: list[Image.Image], words: str
) -> None:
    with pytest.raises(GapbenchError, match=f"model server-painter: .*{words}"):
        server.model().complete([images], [text], 5)


def test_a_chat_is_sent_as_turns_with_its_images_in_their_places(server: Painting) -> None:
    model = server.model()
    text = model.chat(
        [
            {"role": "user", "content": f"a{IMAGE}or{IMAGE}?"},
            {"role": "assistant", "content": "the first"},
            {"role": "user", "content": "why?"},
        ]
    )
    assert model.complete([[RED, BLUE]], [text], 7, ["e", "", "x"]) == ["r"]
    model.release()
    (chat,) = server.chats
    first, *rest = chat.pop("messages")
    assert rest == [
        {"role": "assistant", "content": "the first"}, {"role": "user", "content": "why?"},
    ]  # fmt: skip
    kinds = [part["type"] for part in first["content"]]
    assert kinds == ["text", "image_url", "text", "image_url", "text"]
    shown = [p["image_url"]["url"].partition(",")[2] for p in first["content"][1::2]]
    opened = [Image.open(io.BytesIO(base64.b64decode(data))) for data in shown]
    assert [image.tobytes() for image in opened] == [RED.tobytes(), BLUE.tobytes()]
    assert chat == {
        "model": "org/painter", "temperature": 0, "top_p": 1, "frequency_penalty": 0, "n": 1,
        "presence_penalty": 0, "max_tokens": 7, "seed": 0, "modalities": ["text"],
        "repetition_penalty": 1.0, "stop": ["e", "x"],
    }  # fmt: skip


def test_an_answer_ends_at_all_stop_words_whatever_the_server_takes(server: Painting) -> None:
    def says(handler: Painter, asked: Asked) -> None:
        if "stop" in asked:
            handler.send({"error": "Unsupported parameter: 'stop'"}, 400)
        else:
            handler.talk(asked, "one two")

    server.says = says
    model = server.model()
    assert model.complete([[]], [user("?")], 7, ["3", "4", "5", "6", " "]) == ["one"]
    model.release()
    assert [asked.get("stop") for asked in server.chats] == [["3", "4", "5", "6"], None]


def test_the_address_may_set_the_limit_and_no_refusal_lifts_it(server: Painting) -> None:
    argument = f"server:{server.argument}?max_tokens=4096&attempts=1"
    assert load_model(argument).complete([[]], [user("?")], 16) == ["red"]
    assert server.chats[-1]["max_tokens"] == 4096
    server.says = lambda h, asked: h.send(
        {"error": "'max_tokens' or 'max_completion_tokens' is too large: 4096"}, 400
    )
    with pytest.raises(Unfinished, match=r"status 400: .*is too large"):
        load_model(argument).complete([[]], [user("?")], 16)
    assert all({"max_tokens", "max_completion_tokens"} & asked.keys() for asked in server.chats)


def cut(handler: Painter, tokens: int) -> None:
    body = handler.completion("red and")
    body["choices"][0]["finish_reason"] = "length"
    handler.send({**body, "usage": {"completion_tokens": tokens}})


def hang_up(handler: Painter, _asked: Asked) -> None:
    handler.close_connection = True
    handler.connection.close()


@pytest.mark.parametrize(
    ("play", "words"),
    [
        (lambda h, _: h.send({"error": "the text is too long"}, 400), "status 400: .*too long"),
        (lambda h, _: h.send({"error": "busy"}, 503), "the server gave status 503, 3 times"),
        (lambda h, _: h.say(None, refusal="I will not"), "the server refused: I will not"),
        (lambda h, _: h.say("", reasoning="Hm"), "only reasoning came"),
        (lambda h, _: cut(h, 3), "cut the reply at 3 of 9 tokens"),
        (lambda h, _: h.send({"choices": []}), "the reply is no chat completion"),
        (lambda h, _: time.sleep(1), "did not answer within 0.3 s, 3 times"),
        (hang_up, "the connection failed"),
    ],
)
def test_what_goes_wrong_is_told_and_leaves_the_others_done(
    server: Painting, play: Play, words: str
) -> None:
    server.says = lambda h, a: play(h, a) if "why" in str(a["messages"]) else h.talk(a)
    model = server.model(timeout=0.3)
    with pytest.raises(Unfinished, match=f"server-painter: 1 of 3 .*: .*{words}") as stopped:
        model.complete([[], [], []], [user("what?"), user("why?"), user("who?")], 9)
    model.release()
    assert stopped.value.done == {0: "red", 2: "red"}
    assert set(stopped.value.failed) == {1}


def test_a_reply_that_the_limit_cuts_is_an_answer(server: Painting) -> None:
    server.says = lambda h, _: cut(h, 9)
    assert server.model().complete([[]], [user("?")], 9) == ["red and"]


# -- scores --------------------------------------------------------------------------------


def test_scores_are_those_of_the_answers_tokens(server: Painting) -> None:
    model = server.model()
    text = user(f"{IMAGE}what?")
    found = model.score([[RED]] * 3, [text] * 3, [" red", " rod", "re"])
    assert found == [(-0.75, True), (-2.0, False), (-0.5, True)]
    assert len(server.chats) == 1 + 3  # the chat alone is asked for once
    assert {asked["max_tokens"] for asked in server.chats} == {1}
    # What is begun is no part of the ending.
    assert model.score([[RED]], [f"{text} r"], ["od"]) == [(-1.75, False)]
    model.release()
    assert server.chats[-1]["messages"][-1] == {"role": "assistant", "content": "rod"}
    assert server.chats[-1]["add_generation_prompt"] is False


def test_an_answer_that_is_begun_is_gone_on_with(server: Painting) -> None:
    model = server.model()
    assert model.complete([[]], [f"{user('?')} It is"], 9) == ["red"]
    (asked,) = server.chats
    assert asked["messages"][-1] == {"role": "assistant", "content": "It is"}
    assert (asked["continue_final_message"], asked["max_tokens"]) == (True, 9)
    server.says = lambda h, a: h.talk(a, tells=False)  # it may have begun a turn of its own
    with pytest.raises(GapbenchError, match="goes on with an answer that is begun; choose tasks"):
        model.complete([[]], [f"{user('?')} It is"], 9)
    model.release()


def unknown(handler: Painter, asked: Asked) -> None:
    if "return_token_ids" in asked:
        handler.send({"error": "Unrecognized argument: return_token_ids"}, 400)
    else:
        handler.talk(asked)


def changed(change: Any) -> Play:
    """A server whose replies about a given answer are changed."""

    def play(handler: Painter, asked: Asked) -> None:
        send = handler.send

        def altered(body: Any, *rest: Any) -> None:
            if asked.get("prompt_logprobs"):
                change(body)
            send(body, *rest)

        handler.send = altered  # type: ignore[method-assign]
        handler.talk(asked)

    return play


@pytest.mark.parametrize(
    ("play", "words"),
    [
        (lambda h, a: h.talk(a, tells=False), "no prompt_token_ids"),
        (unknown, "status 400: .*Unrecognized argument: return_token_ids"),
        (changed(lambda body: body.pop("prompt_logprobs")), "no prompt_logprobs"),
        (changed(lambda body: body["prompt_logprobs"].pop()), "or none of some tokens"),
        (changed(lambda body: body["prompt_logprobs"][-1].clear()), "or none of some tokens"),
        (
            changed(lambda body: body["prompt_logprobs"][-1][str(ord("d"))].update(logprob=0.5)),
            "or none of some tokens",
        ),
        *(
            (
                changed(
                    lambda body, odd=odd: body["prompt_logprobs"][-1][str(ord("d"))].update(
                        logprob=odd
                    )
                ),
                "or none of some tokens",
            )
            for odd in (-(10**400), -float("inf"))
        ),
    ],
)
def test_a_server_that_scores_no_answers_is_told_of(
    server: Painting, play: Play, words: str
) -> None:
    server.says = play
    model = server.model()
    told = r"painter: its server cannot score a given answer, as multiple_choice .*vLLM, 0\.10\.2"
    with pytest.raises(GapbenchError, match=rf"{told}.*\(.*{words}"):
        model.score([[]], [user("?")], [" red"])
    model.release()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda body: body["prompt_token_ids"].insert(0, 1), "no tokens of its own in the chat"),
        (
            lambda body: body["prompt_logprobs"][-1][str(ord("d"))].update(decoded_token="x"),
            "the chat's format makes 'rex' of the answer ' red'",
        ),
    ],
)
def test_a_chat_format_that_changes_the_answer_is_told_of(
    server: Painting, change: Any, words: str
) -> None:
    server.says = changed(change)
    model = server.model()
    with pytest.raises(Unfinished, match=words):
        model.score([[]], [user("?")], [" red"])
    model.release()


def test_check_model_tries_its_texts(server: Painting) -> None:
    rule = "a text does not depend on its batch"
    [found] = [each for each in check(f"server:{server.argument}", load) if each.rule == rule]
    assert (found.failure, found.skipped) == (None, None)


def load(name: str, recipe: Any) -> Any:
    return load_model(name, recipe=recipe)
