"""The server judge against a real HTTP server in a thread."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
from here import end
from PIL import Image
from servers import Handler, Server

from gapbench.judges.server import ServerJudge
from gapbench.runs.settings import names
from gapbench.types import Answer, Failure, GapbenchError, Prompt, Unfinished
from gapbench.verdict import READ

KEY = "sk-very-secret-0123456789"


class Judging(Server):
    def judge(self, **more: Any) -> ServerJudge:
        options = {"pause": 0.01, "timeout": 5.0, "attempts": 3, **more}
        return ServerJudge(f"http://127.0.0.1:{self.server_port}/v1#org/some-vl", **options)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Judging]:
    made = Judging()
    with made.serving(monkeypatch):
        yield made


def prompt(text: str) -> Prompt:
    return Prompt(
        id=text, task="t", category="c", tier="easy", text=text,
        question=f"Does this image describe {text}? The score is {{your score}}.", requirement={},
    )  # fmt: skip


def ask(judge: ServerJudge, *texts: str) -> list[Answer]:
    images = [Image.new("RGB", (4, 4), (i, 0, 0)) for i in range(len(texts))]
    try:
        return judge.judge(images, [prompt(text) for text in texts])
    finally:
        judge.release()


def asked_text(asked: dict[str, Any]) -> str:
    text: str = asked["messages"][0]["content"][1]["text"]
    return text.removeprefix("Does this image describe ").partition("?")[0]


def digit(*top: tuple[str, float], said: str = "1") -> dict[str, Any]:
    """Log-probabilities of "The score is 1." with these likeliest tokens at the digit."""
    tokens = ["The", " score", " is", " ", said, "."]
    return {
        "content": [
            {
                "token": token,
                "logprob": -0.1,
                "top_logprobs": [{"token": t, "logprob": p} for t, p in top]
                if token == said
                else [{"token": token, "logprob": -0.1}],
            }
            for token in tokens
        ]
    }


def test_what_is_sent(server: Judging, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "another")
    monkeypatch.setenv("GAPBENCH_SERVER_KEY", KEY)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    server.play = lambda handler, _: handler.say("The score is 1.")
    image = Image.effect_noise((5, 3), 90).convert("RGB")
    judge = server.judge()
    assert judge.name == "server-some-vl"
    assert judge.judge([image], [prompt("an apple")]) == [Answer(verdict=1, text="The score is 1.")]
    judge.release()
    (asked,) = server.asked
    assert server.paths == ["/v1/chat/completions"]
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    picture, text = asked["messages"][0]["content"]
    assert text == {"type": "text", "text": prompt("an apple").question}
    kind, _, data = picture["image_url"]["url"].partition(",")
    assert kind == "data:image/png;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).tobytes() == image.tobytes()
    settings = {key: asked[key] for key in ("model", "temperature", "seed", "n", "logprobs")}
    assert settings == {
        "model": "org/some-vl", "temperature": 0, "seed": 0, "n": 1, "logprobs": True
    }  # fmt: skip
    assert asked["top_logprobs"] == 20
    assert asked["max_tokens"] == 64


@pytest.mark.parametrize(
    ("text", "verdict"),
    [("The score is 1.", 1), ("It lacks one. The score is 0", 0), ("1", 1), ("Score: {0}", 0)],
)
def test_words_decide_without_logprobs(server: Judging, text: str, verdict: int) -> None:
    server.play = lambda handler, _: handler.say(text)
    assert ask(server.judge(), "a") == [Answer(verdict=verdict, text=text)]


def test_both_digits_give_a_probability(server: Judging) -> None:
    top = digit(("1", -0.2), ("0", -2.0), (" 0", -3.0), ("x", -4.0))
    server.play = lambda handler, _: handler.say("The score is 1.", top)
    (answer,) = ask(server.judge(), "a")
    import math

    no, yes = math.exp(-2.0) + math.exp(-3.0), math.exp(-0.2)
    assert answer.verdict == 1
    assert answer.p_yes == pytest.approx(yes / (yes + no))
    assert answer.mass == pytest.approx(yes + no)
    assert answer.text == "The score is 1."


def test_probabilities_at_the_floor_and_odd_forms(server: Judging) -> None:
    odd: list[Any] = [
        digit(("1", 0.0), ("0", -9999.0)),
        digit(("1", -0.2), ("x", -2.0)),
        digit(("1", -0.2), ("0", float("nan"))),
        {"content": [{"token": 5}]},
        {"content": "garbage"},
        {"tokens": []},
        [1],
        "x",
    ]
    server.play = lambda handler, asked: handler.say("The score is 1.", odd[int(asked_text(asked))])
    answers = ask(server.judge(), *map(str, range(len(odd))))
    assert [a.verdict for a in answers] == [1] * len(odd)
    assert answers[0].p_yes == 1.0
    assert {a.p_yes for a in answers[1:]} == {None}


def test_the_digit_that_decides_is_found_among_others(server: Judging) -> None:
    tokens = ["1", " apple", ".", " Score", ":", " 0", " (", "1", " missing", ")"]
    places = [{"token": t, "logprob": -1.0, "top_logprobs": []} for t in tokens]
    places[5]["top_logprobs"] = [
        {"token": " 0", "logprob": -0.5}, {"token": " 1", "logprob": -1.5}
    ]  # fmt: skip
    server.play = lambda handler, _: handler.say("".join(tokens), {"content": places})
    (answer,) = ask(server.judge(), "a")
    assert answer.verdict == 0
    assert answer.p_yes == pytest.approx(1 / (1 + 2.718281828**1.0), rel=1e-6)


def test_a_digit_after_the_verdict_decides_nothing(server: Judging) -> None:
    tokens = ["The", " score", " is", " ", "0", ".", " ", "1", " circle", " is", " missing", "."]
    places = [{"token": t, "logprob": -1.0, "top_logprobs": []} for t in tokens]
    for place, odds in ((4, 1.0), (7, 9.0)):
        places[place]["top_logprobs"] = [
            {"token": "0", "logprob": -10.0}, {"token": "1", "logprob": -10.0 - odds}
        ]  # fmt: skip
    server.play = lambda handler, _: handler.say("".join(tokens), {"content": places})
    (answer,) = ask(server.judge(), "a")
    assert answer.verdict == 0
    assert answer.p_yes == pytest.approx(1 / (1 + 2.718281828**1.0), rel=1e-6)


@pytest.mark.parametrize("ended", ["length", "MAX_TOKENS"])
def test_a_reply_that_was_cut_is_an_abstention(server: Judging, ended: str) -> None:
    choice = {"message": {"content": "The score is 1"}, "finish_reason": ended}
    server.play = lambda handler, _: handler.send(json.dumps({"choices": [choice]}))
    (answer,) = ask(server.judge(), "a")
    assert answer == Answer(
        verdict=None, text="The score is 1", reason="the reply was cut at the limit of tokens"
    )


def test_of_a_long_reply_the_end_is_kept_from_which_it_was_read(server: Judging) -> None:
    said = "The circle is red. " * 500 + "The score is 1."
    server.play = lambda handler, _: handler.say(said)
    (answer,) = ask(server.judge(), "a")
    assert answer == Answer(verdict=1, text=said[-READ:])


def test_answers_come_in_order_however_slowly(server: Judging) -> None:
    """The first wait longest, and eight are asked at a time."""
    most, now = 0, 0

    def play(handler: Handler, asked: dict[str, Any]) -> None:
        nonlocal most, now
        number = int(asked_text(asked))
        with server.lock:
            now += 1
            most = max(most, now)
        time.sleep(0.15 - 0.015 * (number % 8))
        with server.lock:
            now -= 1
        handler.say(f"The score is {number % 2}.")

    server.play = play
    answers = ask(server.judge(), *map(str, range(16)))
    assert [a.verdict for a in answers] == [0, 1] * 8
    assert 2 <= most <= 8


@pytest.mark.parametrize("status", [429, 500, 503])
def test_it_recovers(server: Judging, status: int) -> None:
    failures = {"a": 2, "b": 1, "c": 0}

    def play(handler: Handler, asked: dict[str, Any]) -> None:
        text = asked_text(asked)
        failures[text] -= 1
        if failures[text] >= 0:
            handler.send("busy", status, "text/plain")
        else:
            handler.say("The score is 1.")

    server.play = play
    assert [a.verdict for a in ask(server.judge(), "a", "b", "c")] == [1, 1, 1]
    assert len(server.asked) == 6


def test_retry_after_is_honoured_within_bounds(server: Judging) -> None:
    said = iter(["0.3", "Wed, 21 Oct 2015 07:28:00 GMT", "soon", "nan"])

    def play(handler: Handler, asked: dict[str, Any]) -> None:
        wait = next(said, None)
        if wait is None:
            handler.say("The score is 0.")
        else:
            handler.send("", 429, Retry_After=wait)

    server.play = play
    start = time.monotonic()
    (answer,) = ask(server.judge(attempts=5), "a")
    assert answer.verdict == 0
    assert 0.3 <= time.monotonic() - start < 5


def left(judge: ServerJudge, *texts: str) -> tuple[dict[int, Any], dict[int, Failure]]:
    """What is done, and what failed, of questions of which some fail."""
    with pytest.raises(Unfinished) as stopped:
        ask(judge, *texts)
    return dict(stopped.value.done), dict(stopped.value.failed)


def test_a_server_that_stays_busy_costs_only_its_own_images(server: Judging) -> None:
    def play(handler: Handler, asked: dict[str, Any]) -> None:
        if asked_text(asked) == "bad":
            handler.send("oops", 500)
        else:
            handler.say("The score is 1.")

    server.play = play
    done, failed = left(server.judge(), "good", "bad", "last")
    assert {place: answer.verdict for place, answer in done.items()} == {0: 1, 2: 1}
    assert failed == {1: Failure("the server gave status 500, 3 times")}


def test_stalls_and_trickles_are_no_abstentions(server: Judging) -> None:
    over = threading.Event()

    def play(handler: Handler, asked: dict[str, Any]) -> None:
        if asked_text(asked) == "stall":
            over.wait(10)
        elif asked_text(asked) == "trickle":
            handler.send("", length="1000")
            while not over.wait(0.05):
                handler.wfile.write(b" ")
        else:
            handler.say("The score is 0.")

    server.play = play
    start = time.monotonic()
    judge = server.judge(timeout=0.4, attempts=2)
    done, failed = left(judge, "stall", "trickle", "fine")
    over.set()
    assert time.monotonic() - start < 5
    assert done[2].verdict == 0
    assert set(failed.values()) == {Failure("the server did not answer within 0.4 s, 2 times")}


UNASKED = {
    "not JSON": lambda h: h.send("The score is 1."),
    "truncated": lambda h: h.send('{"choices": [{"message": {"content": "The score is 1'),
    "array": lambda h: h.send("[1, 2]"),
    "null": lambda h: h.send("null"),
    "empty": lambda h: h.send(""),
    "no choices": lambda h: h.send('{"choices": []}'),
    "odd choices": lambda h: h.send('{"choices": {"message": 1}}'),
    "odd parts": lambda h: h.say([{"type": "text"}]),
    "html": lambda h: h.send("<p>The score is 1.</p>", kind="text/html"),
    "deep": lambda h: h.send("[" * 200_000),
    "elsewhere": lambda h: h.send("", 302, Location="http://127.0.0.1:9/"),
    "not UTF-8": lambda h: h.send(b"\xff\xfe\x00"),
    "cut off": lambda h: h.send('{"choices": [', length="5000"),
    "no credit": lambda h: h.send({"error": {"message": "Insufficient credits"}}, 402),
    "error": lambda h: h.send({"choices": None, "error": {"code": 429}}),
    "error inside": lambda h: h.send({"choices": [{"message": {}, "error": {"code": 502}}]}),
}
ABSTAINED = {
    "no content": lambda h: h.say(None),
    "no score": lambda h: h.say("I like this image very much."),
    "other score": lambda h: h.say("The score is 0.5."),
    "empty text": lambda h: h.say(""),
    "refusal": lambda h: h.say(None, refusal="I cannot help with that."),
    "teapot": lambda h: h.send("tea", 418),
    "flagged": lambda h: h.send({"error": "flagged"}, 403),
    "reasoning": lambda h: h.say(None, reasoning_content="The picture shows a red"),
}


def test_no_garbage_is_a_verdict(server: Judging) -> None:
    """What could not be asked is no abstention either."""

    def play(handler: Handler, asked: dict[str, Any]) -> None:
        answers = {**UNASKED, **ABSTAINED}
        answers.get(asked_text(asked), lambda h: h.say("The score is 1."))(handler)
        handler.close_connection = True

    server.play = play
    names = ["first", *UNASKED, *ABSTAINED, "last"]
    judge = server.judge(attempts=2, concurrency=1)
    done, failed = left(judge, *names)
    told = {names[place]: answer for place, answer in done.items()}
    assert {name for name, answer in told.items() if answer.verdict == 1} == {"first", "last"}
    why = {names[place]: failure for place, failure in failed.items()}
    assert {name for name, failure in why.items() if not failure.final} == set(UNASKED)
    assert why["truncated"].reason == "the reply is broken, not JSON, 2 times"
    assert why["html"].reason == "the reply is text/html, not JSON, 2 times"
    assert "status 402" in why["no credit"].reason
    assert "connection failed" in why["cut off"].reason
    # The server refuses these, and answers others: they are written down as abstentions.
    assert why["teapot"] == Failure("the server gave status 418: tea", final=True)
    assert why["flagged"].final
    reasons = {name: answer.reason for name, answer in told.items() if answer.verdict is None}
    assert reasons["refusal"] == "the server refused: I cannot help with that."
    assert reasons["reasoning"] == "only reasoning came"
    assert set(reasons) | {"teapot", "flagged"} == set(ABSTAINED)


@pytest.mark.parametrize("kind", ["application/json", "text/plain; charset=utf-8"])
def test_parts_of_content_are_put_together(server: Judging, kind: str) -> None:
    parts = [{"type": "thinking", "thinking": []}, {"type": "text", "text": "The score is 1."}]
    body = {"choices": [{"message": {"content": parts}}], "model": "org/some-vl-2"}
    server.play = lambda handler, _: handler.send(body, kind=kind)
    judge = server.judge()
    assert ask(judge, "a") == [Answer(verdict=1, text="The score is 1.")]
    assert judge.served() == "org/some-vl-2"


def test_fields_are_options(server: Judging) -> None:
    base = f"http://127.0.0.1:{server.server_port}/v1#m"
    server.play = lambda handler, _: handler.say("The score is 1.")
    spec = f"{base}?max_tokens=4096&reasoning_effort=low&concurrency=2&timeout=9.5&attempts=1"
    judge = ServerJudge(spec)
    ask(judge, "a")
    (asked,) = server.asked
    assert (asked["max_tokens"], asked["reasoning_effort"], asked["model"]) == (4096, "low", "m")
    assert not {"concurrency", "timeout", "attempts"} & set(asked)
    assert judge.batches.first == 2
    # What changes no answer is no part of the fingerprint.
    assert judge.fingerprint != ServerJudge(base).fingerprint
    assert ServerJudge(f"{base}?attempts=1&timeout=9").fingerprint == ServerJudge(base).fingerprint


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("max_tokens", "must be KEY=VALUE"),
        ("attempts=0", "attempts must be a number up to 100, not 0"),
        ("timeout=nan", "timeout must be a number"),
        ("concurrency=2.5", "concurrency must be a number up to 256"),
        ("stream=true", "gapbench sets stream"),
        ("max_tokens=foo", "max_tokens=foo: give a whole number, 1 or more"),
        ("max_completion_tokens=2.5", "max_completion_tokens=2.5: give a whole number"),
    ],
)
def test_options_that_are_refused(query: str, why: str) -> None:
    with pytest.raises(GapbenchError, match=f"judge server-m: .*{why}"):
        ServerJudge(f"http://localhost/v1#m?{query}")


def test_refused_fields_are_left_out_one_at_a_time(server: Judging) -> None:
    """As OpenAI's newer models do."""

    def play(handler: Handler, asked: dict[str, Any]) -> None:
        for name in ("max_tokens", "temperature", "logprobs"):
            if name in asked:
                error = {"message": f"Unsupported parameter: '{name}'. Other fields: seed."}
                handler.send({"error": error}, 400)
                return
        handler.say("The score is 1.")

    server.play = play
    judge = server.judge(concurrency=1)
    assert [answer.verdict for answer in ask(judge, "a", "b")] == [1, 1]
    assert len(server.asked) == 4 + 1
    assert server.asked[-1]["max_completion_tokens"] == 64
    assert server.asked[-1]["seed"] == 0


def test_half_a_surrogate_can_be_written_down(server: Judging) -> None:
    server.play = lambda handler, _: handler.say("\ud800 The score is 1.")
    (answer,) = ask(server.judge(), "a")
    assert answer == Answer(verdict=1, text="? The score is 1.")


def test_a_server_without_logprobs_is_asked_without(server: Judging) -> None:
    def play(handler: Handler, asked: dict[str, Any]) -> None:
        if "logprobs" in asked:
            handler.send('{"error": "logprobs are not supported"}', 400)
        else:
            handler.say("The score is 1.")

    server.play = play
    answers = ask(server.judge(concurrency=1), "a", "b", "c")
    assert [a.verdict for a in answers] == [1, 1, 1]
    assert len(server.asked) == 4


def test_the_meaning_of_a_prompt_is_sent(server: Judging) -> None:
    server.play = lambda handler, asked: handler.say("The score is 1.")
    judge, told = server.judge(), replace(prompt("a bell"), requirement={"Explanation": "Green."})
    judge.judge([Image.new("RGB", (4, 4))], [told])
    judge.release()
    assert asked_text(server.asked[0]) == "a bell (Green)"


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_model_stops_at_once_and_shows_no_key(
    server: Judging, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.play = lambda handler, _: handler.send(f"no\nkey {KEY}", status, "text/plain")
    judge = server.judge(concurrency=2)
    with pytest.raises(GapbenchError, match="knows no model" if status == 404 else "refuses") as e:
        ask(judge, *map(str, range(50)))
    assert len(server.asked) < 50
    assert "\n" not in str(e.value)
    assert KEY not in str(e.value) + repr(judge) + judge.fingerprint


def test_a_key_that_is_echoed_is_not_kept(server: Judging, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.play = lambda handler, _: handler.say(f"{KEY}: The score is 1.")
    assert ask(server.judge(), "a") == [Answer(verdict=1, text="***: The score is 1.")]
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\nX-Other: 1")
    with pytest.raises(GapbenchError, match="characters that no key has") as error:
        server.judge()
    assert KEY not in str(error.value)


def test_a_server_that_is_not_there_is_an_error(server: Judging) -> None:
    unused = Judging()
    unused.server_close()
    with pytest.raises(GapbenchError, match="cannot be reached"):
        ask(unused.judge(), "a", "b")


@pytest.mark.parametrize(
    ("argument", "why"),
    [
        (None, "no address"),
        ("", "no address"),
        ("localhost:8000#m", "no address"),
        ("ftp://localhost/v1#m", "no address"),
        ("http://#m", "no address"),
        ("https://h/v1?key=x#m", "no address"),
        ("https://user:secret@host/v1#m", "take the key out"),
        ("http://example.org/v1#m", "travel in the clear; use https, or --allow-http"),
        ("http://127.0.0.1.example.org/v1#m", "travel in the clear"),
        ("https://a/v1,http://example.org/v1#m", "example.org is another machine"),
        ("https://a/v1,https://a/v1/#m", "https://a/v1 is given twice"),
        ("https://a/v1,#m", "no address"),
        ("https://a/v1,https://user:secret@host/v1#m", "take the key out"),
        ("http://localhost:8000/v1", "an address and a model"),
        ("http://localhost:8000/v1#", "an address and a model"),
    ],
)
def test_addresses_that_are_refused(argument: str | None, why: str) -> None:
    with pytest.raises(GapbenchError, match=why) as error:
        ServerJudge(argument)
    assert "secret" not in str(error.value)


def test_addresses_that_are_taken() -> None:
    for base in ("http://localhost:1/v1", "http://[::1]:1/v1", "https://example.org/v1"):
        first, second = ServerJudge(f"{base}#a/m"), ServerJudge(f"{base}/#a/m")
        assert first.url == f"{base}/chat/completions"
        assert first.fingerprint == second.fingerprint
        assert first.fingerprint != ServerJudge(f"{base}#b/m").fingerprint


def test_plain_http_to_another_machine_is_taken_where_it_was_allowed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GAPBENCH_ALLOW_HTTP", "")  # so that it is as before after this test
    judge = "server:http://node.invalid:8000/v1#m"
    command = ("run", "--limit", "1", "--samples", "1", "--judge", judge, "--dry-run")
    code, _, said = end(capfd, *command)
    assert (code, "--allow-http in a network that you trust" in said) == (2, True)
    code, out, said = end(capfd, *command, "--allow-http")
    assert code is None, said
    assert "outside verdicts" in out


class Several:
    """Servers that serve one model, and a judge behind all of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stack: ExitStack, number: int) -> None:
        self.servers = [Judging() for _ in range(number)]
        for server in self.servers:
            server.play = self.play
            stack.enter_context(server.serving(monkeypatch))

    def play(self, handler: Handler, asked: dict[str, Any]) -> None:
        handler.say(f"The score is {int(asked_text(asked).startswith('yes'))}.")

    def judge(self, **more: Any) -> ServerJudge:
        options = {"pause": 0.01, "timeout": 5.0, "attempts": 2, **more}
        addresses = [f"http://127.0.0.1:{server.server_port}/v1" for server in self.servers]
        return ServerJudge(f"{','.join(addresses)}#m", **options)


@pytest.fixture
def several(monkeypatch: pytest.MonkeyPatch) -> Iterator[Several]:
    with ExitStack() as stack:
        yield Several(monkeypatch, stack, 3)


TEXTS = [f"{'yes' if i % 3 else 'no'} {i}" for i in range(48)]
VERDICTS = [int(i % 3 > 0) for i in range(48)]


def test_requests_are_spread_over_servers_of_one_model(several: Several) -> None:
    judge = several.judge(concurrency=4)
    assert judge.batches.first == 12
    answers = ask(judge, *TEXTS)
    assert [answer.verdict for answer in answers] == VERDICTS
    asked = [len(server.asked) for server in several.servers]
    assert sum(asked) == 48
    assert min(asked) >= 8


def test_a_slow_server_gets_less_than_a_fast_one(several: Several) -> None:
    def slow(handler: Handler, asked: dict[str, Any]) -> None:
        time.sleep(0.2)
        several.play(handler, asked)

    several.servers[0].play = slow
    answers = ask(several.judge(concurrency=2), *TEXTS)
    assert [answer.verdict for answer in answers] == VERDICTS
    first, *others = [len(server.asked) for server in several.servers]
    assert first < min(others)


@pytest.mark.parametrize("fault", ["gone", "busy", "wrong"])
def test_what_one_server_does_not_answer_the_others_do(
    several: Several, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    def busy(handler: Handler, asked: dict[str, Any]) -> None:
        handler.send("busy", 503)

    def wrong(handler: Handler, asked: dict[str, Any]) -> None:
        handler.connection.close()

    bad = several.servers[1]
    if fault == "gone":
        bad.shutdown()
        bad.server_close()
    else:
        bad.play = busy if fault == "busy" else wrong
    answers = ask(several.judge(concurrency=2, pause=0.05), *TEXTS)
    assert [answer.verdict for answer in answers] == VERDICTS
    assert len(bad.asked) <= 8  # it rests longer each time
    [said] = caplog.messages
    assert said == (
        f"http://127.0.0.1:{bad.server_port}/v1 does not answer as it should; asking the others"
    )


def test_before_a_run_every_address_has_to_be_there(several: Several) -> None:
    several.judge().check_ready()
    gone = several.servers[2]
    gone.shutdown()
    gone.server_close()
    with pytest.raises(GapbenchError, match=f"127.0.0.1:{gone.server_port}/v1 cannot be reached"):
        several.judge().check_ready()


def test_if_all_are_away_that_is_said(several: Several) -> None:
    for server in several.servers:
        server.shutdown()
        server.server_close()
    with pytest.raises(GapbenchError, match="cannot be reached"):
        ask(several.judge(), "yes")


def test_another_server_of_the_model_changes_no_fingerprint() -> None:
    one = ServerJudge("https://a.org/v1#m")
    more = ServerJudge("https://a.org/v1,https://b.org/v1,https://c.org/v1#m")
    assert one.fingerprint == more.fingerprint
    assert one.fingerprint != ServerJudge("https://b.org/v1,https://a.org/v1#m").fingerprint
    assert names("pixel,server:https://a.org/v1,https://b.org/v1#m,clip") == [
        "pixel", "server:https://a.org/v1,https://b.org/v1#m", "clip",
    ]  # fmt: skip


def test_the_cost_is_told_without_asking() -> None:
    text = ServerJudge("https://example.org/v1#m").estimate_cost(1000)
    assert "1,000 requests to https://example.org/v1/chat/completions" in text
    assert "485,000 input tokens" in text
