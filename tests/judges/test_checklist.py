"""The judges of lists on tiny random checkpoints, through the real loading code, and a server."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from qwen3 import build, load_benchmark
from servers import Server

from gapbench import GapbenchError, Prompt
from gapbench.judges import load_judge
from gapbench.judges.checklist import ChecklistJudge, SoftTifaJudge
from gapbench.judges.lists import chances_in, geometric
from gapbench.types import Answer, Unfinished

IMAGES = [Image.new("RGB", (64, 64), color) for color in ("red", "blue", "white")]


def prompt(**requirement: object) -> Prompt:
    return Prompt(
        id="p", task="t", category="c", tier="hard", text="x", question="q", requirement=requirement
    )


LISTED = [
    prompt(Checklist=[{"question": "Is it red?", "tags": []}, {"question": "Is it round?"}]),
    prompt(vqa_list=[["How many circles are there?", "two"], ["Is it blue?", "Yes"]]),
    prompt(vqa_list=[["Is it empty?", "No"]]),
]
COUNTED = [
    prompt(vqa_list=[["How many cats are in the image?", "three"], ["Is it red?", "Yes"]]),
    prompt(vqa_list=[["How many cats are in the image?", "dozens"]]),
    prompt(vqa_list=[["Is it round?", "Yes"], ["How many dogs are in the image?", "ten"]]),
]


@pytest.fixture(scope="module")
def judge(tiny_janus: Path) -> ChecklistJudge:
    made = load_judge(f"vlm-list:{tiny_janus}")
    assert isinstance(made, ChecklistJudge)
    return made


@pytest.fixture(scope="module")
def tiny_qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3-VL, the default judge's class; its tokenizer knows few words whole."""
    return build(
        tmp_path_factory.mktemp("checkpoints") / "tiny-qwen3", load_benchmark().tokenizer()
    )


def chance(judge: ChecklistJudge, image: Image.Image, question: str, answer: str) -> float:
    """One question alone, by whole-answer log-probabilities."""
    vlm: Any = judge._asked
    asked = [f"{question} Answer with one word."]
    others = {"Yes": "No", "No": "Yes"}
    right = math.exp(vlm.logprobs([image], asked, [f" {answer}"])[0, 0])
    if answer not in others:
        return right
    return right / (right + math.exp(vlm.logprobs([image], asked, [f" {others[answer]}"])))


def test_scores_are_the_mean_probability_of_the_right_answers(judge: ChecklistJudge) -> None:
    answers = judge.judge(IMAGES, LISTED)
    wanted = [
        [("Is it red?", "Yes"), ("Is it round?", "Yes")],
        [("How many circles are there?", "two"), ("Is it blue?", "Yes")],
        [("Is it empty?", "No")],
    ]
    for image, answer, pairs in zip(IMAGES, answers, wanted, strict=True):
        chances = [chance(judge, image, q, a) for q, a in pairs]
        assert chances_in(answer.text) == pytest.approx(chances, abs=1e-5)
        assert answer.score == pytest.approx(sum(chances) / len(chances), abs=1e-5)
        assert answer.verdict == int(all(c >= 0.5 for c in chances))
        missed = [q for (q, _), c in zip(pairs, chances, strict=True) if c < 0.5]
        assert answer.reason == ("; ".join(missed) or None)


def test_the_question_is_the_list(judge: ChecklistJudge) -> None:
    assert json.loads(judge.question(LISTED[2])) == [["Is it empty?", "No"]]
    assert judge.name == "vlm-list-tiny-janus"


def test_a_prompt_without_a_list_is_refused_before_anything_is_drawn(judge: ChecklistJudge) -> None:
    with pytest.raises(GapbenchError, match="prompt p: the prompt has no list of questions"):
        judge.question(prompt(include=[]))


# -- Soft-TIFA -----------------------------------------------------------------------------------


def soft(judge: SoftTifaJudge, image: Image.Image, question: str, answer: str) -> float:
    """GenEval 2's way: one greedy token, and the softmax over what the model said of it."""
    vlm: Any = judge._asked
    vlm.load()
    batch = vlm.chat.batch(vlm._model, [vlm.chat.text(f"{question} Answer in one word.")], [image])
    out = vlm._model.generate(
        **batch, max_new_tokens=1, do_sample=False, output_scores=True, return_dict_in_generate=True
    )
    probs = torch.nn.functional.softmax(out.scores[0].double(), dim=-1)[0]
    words = ["Yes", "yes", " yes", " Yes"]
    if question.startswith("How many"):
        number = {"three": "3", "ten": "10"}.get(answer, "other")
        words = [answer, answer.capitalize(), f" {answer}", f" {answer.capitalize()}"]
        words += [number, f" {number}"]
    cut = vlm.processor.tokenizer
    return sum(float(probs[cut.encode(word)[0]]) for word in words)


def test_soft_tifa_is_what_its_authors_compute(tiny_qwen3: Path) -> None:
    judge = load_judge(f"soft-tifa:{tiny_qwen3}", "cpu")
    assert isinstance(judge, SoftTifaJudge)
    assert judge.name == "soft-tifa-tiny-qwen3"
    answers = judge.judge(IMAGES, COUNTED)
    seen = []
    for image, answer, asked in zip(IMAGES, answers, COUNTED, strict=True):
        chances = [soft(judge, image, q, a) for q, a in asked.requirement["vqa_list"]]
        assert chances_in(answer.text) == pytest.approx(chances, rel=1e-3, abs=1e-9)
        assert answer.score == pytest.approx(sum(chances) / len(chances), rel=1e-3)
        gm = math.exp(sum(map(math.log, chances)) / len(chances))
        assert geometric(answer.text) == pytest.approx(gm, rel=1e-3)
        seen += chances
    assert len({f"{one:.6g}" for one in seen}) == 5
    # Letters that begin several words of the tiny tokenizer are counted for each of them.
    tokenizer = judge._asked.processor.tokenizer  # type: ignore[union-attr]
    firsts = [tokenizer.encode(word)[0] for word in judge.strings(counting("dozens"))]
    assert len(set(firsts)) < len(firsts) == 6
    assert [w for w in judge.strings(counting("dozens")) if "other" in w] == ["other", " other"]


def counting(answer: str) -> Any:
    from gapbench.judges.lists import Item

    return Item("How many cats are in the image?", answer)


def test_soft_tifa_refuses_a_list_that_it_would_read_wrongly(tiny_qwen3: Path) -> None:
    judge = load_judge(f"soft-tifa:{tiny_qwen3}", "cpu")
    with pytest.raises(GapbenchError, match=r"'Is it empty\?' is answered 'No'; judge soft-tifa"):
        judge.question(LISTED[2])
    marked = prompt(vqa_list=[["Is it <|im_end|> red?", "Yes"]])
    with pytest.raises(GapbenchError, match=r"contains '<\|im_end\|>'"):
        judge.question(marked)


def test_one_image_that_is_refused_costs_no_other_its_verdict(tiny_qwen3: Path) -> None:
    judge = load_judge(f"soft-tifa:{tiny_qwen3}", "cpu")
    images = [IMAGES[0], Image.new("RGB", (900, 3)), IMAGES[2]]
    whole, got = judge.judge(IMAGES, COUNTED), judge.judge(images, COUNTED)
    assert got[1].verdict is None
    assert "aspect ratio" in (got[1].reason or "")
    for place in (0, 2):
        assert got[place].score == pytest.approx(whole[place].score, rel=1e-3)


# -- a server ------------------------------------------------------------------------------------


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    made = Server()
    with made.serving(monkeypatch):
        yield made


def ask(kind: str, server: Server, asked: Prompt) -> Answer:
    spec = f"{kind}:server:http://127.0.0.1:{server.server_port}/v1#org/some-vl?attempts=1"
    judge = load_judge(spec)
    assert judge.name == f"{kind}-server-some-vl"
    assert judge.question(asked)
    assert "a request to http" in (judge.estimate_cost(2) or "")
    try:
        (answer,) = judge.judge(IMAGES[:1], [asked])
    finally:
        judge.release()
    return answer


def top(said: str, **likely: float) -> dict[str, Any]:
    """Log-probabilities of a reply of one token."""
    likeliest = [{"token": t.replace("_", " "), "logprob": math.log(p)} for t, p in likely.items()]
    return {"content": [{"token": said, "logprob": -0.1, "top_logprobs": likeliest}]}


def test_a_server_gives_probabilities(server: Server) -> None:
    tree = prompt(
        proposition_id=["1", "2"], dependency=["2", "0"],
        question_natural_language=["Is it red?", "Is it a cat?"],
    )  # fmt: skip
    replies = {
        "Is it red?": ("Yes", top("Yes", Yes=0.6, _yes=0.1, No=0.1, Maybe=0.2)),
        "Is it a cat?": ("No.", top("No", Yes=0.1, No=0.3)),
    }
    server.play = lambda handler, asked: handler.say(
        *replies[asked["messages"][0]["content"][1]["text"].partition(" Answer")[0]]
    )
    answer = ask("vlm-list", server, tree)
    assert chances_in(answer.text) == pytest.approx([0.7 / 0.8, 0.1 / 0.4])
    assert answer.score == pytest.approx(0.25 / 2)  # red counts only where there is a cat
    assert (answer.verdict, answer.reason) == (0, "Is it a cat?")
    assert server.asked[0]["top_logprobs"] == 20
    texts = [asked["messages"][0]["content"][1]["text"] for asked in server.asked]
    assert texts == ["Is it red? Answer with one word.", "Is it a cat? Answer with one word."]


def test_soft_tifa_of_a_server_adds_the_spellings(server: Server) -> None:
    server.play = lambda handler, _: handler.say(
        "3", top("3", **{"3": 0.5, "_three": 0.2, "4": 0.3})
    )
    asked = prompt(vqa_list=[["How many cats are in the image?", "three"]])
    answer = ask("soft-tifa", server, asked)
    assert chances_in(answer.text) == pytest.approx([0.7])
    (sent,) = server.asked
    assert sent["messages"][0]["content"][1]["text"].endswith("the image? Answer in one word.")


@pytest.mark.parametrize(
    ("kind", "said", "right", "chance"),
    [
        ("vlm-list", "Yes, it is.", "Yes", 1.0),
        ("vlm-list", "**no**", "Yes", 0.0),
        ("vlm-list", "No", "No", 1.0),
        ("vlm-list", "Two.", "two", 1.0),
        ("vlm-list", "three", "two", 0.0),
        ("soft-tifa", "2", "two", 1.0),
        ("soft-tifa", "3", "two", 0.0),
        ("soft-tifa", "Yes.", "Yes", 1.0),
    ],
)
def test_a_server_without_log_probabilities_is_read_by_its_word(
    server: Server, kind: str, said: str, right: str, chance: float
) -> None:
    server.play = lambda handler, _: handler.say(said)
    question = "Is it?" if right in ("Yes", "No") else "How many cats are in the image?"
    answer = ask(kind, server, prompt(vqa_list=[[question, right]]))
    assert chances_in(answer.text) == [chance]
    assert answer.verdict == int(chance)


@pytest.mark.parametrize(
    ("said", "reason"), [("", "empty"), ("Perhaps", "is 'Perhaps', not yes or no")]
)
def test_a_reply_that_says_nothing_is_an_abstention(server: Server, said: str, reason: str) -> None:
    server.play = lambda handler, _: handler.say(said)
    answer = ask("vlm-list", server, prompt(vqa_list=[["Is it?", "Yes"]]))
    assert answer.verdict is None
    assert answer.score is None
    assert reason in (answer.reason or "")


def test_a_question_that_was_not_answered_leaves_its_image_to_be_asked_again(
    server: Server,
) -> None:
    def play(handler: Any, asked: dict[str, Any]) -> None:
        if "red" in asked["messages"][0]["content"][1]["text"]:
            handler.send("busy", status=503)
        else:
            handler.say("Yes")

    server.play = play
    with pytest.raises(Unfinished, match="1 of 1 requests failed"):
        ask("vlm-list", server, prompt(vqa_list=[["Is it?", "Yes"], ["Is it red?", "Yes"]]))
