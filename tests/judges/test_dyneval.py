"""The judge dyneval on a small Qwen3-VL that was taught a script, and on replies of any kind."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from here import end
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from qwen3 import build, load_benchmark

from gapbench.fetch.sources import adopt, place
from gapbench.judges import dyneval, load_judge
from gapbench.judges.check import check
from gapbench.judges.dyneval import (
    REPO,
    DynEvalJudge,
    Item,
    Systems,
    answer_of,
    elements_in,
    question_in,
)
from gapbench.models.vlm import Chat
from gapbench.types import Answer, GapbenchError, Prompt

END = "<|im_end|>"
TOKENS = ("<|T2IA|>", "<|IQA|>", "<|EVALUATION|>")
NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
IMAGES = [
    Image.fromarray(NOISE),
    *(Image.new("RGB", (64, 64), color) for color in ("white", "red")),
]  # as check-judge has them


def asking(question: str, answer: str = "yes") -> str:
    return json.dumps({"question": question, "answer": answer})


def scoring(*scores: object) -> str:
    return json.dumps([{"question": f"q{place}", "score": s} for place, s in enumerate(scores)])


SYSTEMS = Systems("Name its elements.", "Ask about one.\nYes or no?", "Score éach, 1 to 5.")
ELEMENTS = {
    "a red circle": '["circle (shape)", "red (color)"]',
    "a star without a square": '["star (shape)", "no square (counting)"]',
    "a photo": '["photo (object)", "Picture"]',
    "a riddle": "I cannot tell.",
}
QUESTIONS = {
    "circle (shape)": asking("Is there a circle?"),
    "red (color)": asking("Is it red?"),
    "star (shape)": asking("Is there a star?"),
    "no square (counting)": asking("Is there a square?", "no"),
}
SCORES = {
    ("a red circle", 0): scoring(2, 1),
    ("a red circle", 1): scoring(5, 3),
    ("a red circle", 2): scoring(4, 5),
    ("a star without a square", 0): scoring(4, 2),
    ("a star without a square", 1): scoring(5, 5),
    ("a star without a square", 2): scoring(5),
}


def prompt(text: str) -> Prompt:
    return Prompt(
        id=text, task="t", category="c", tier="easy", text=text, question="", requirement={}
    )


def scripted(judge: DynEvalJudge) -> Iterator[tuple[str, str, Image.Image | None, str]]:
    """Each turn of the script, (system, turn, image, reply), in the authors' words
    (vcl-iisc/dyneval_code at 0e3b8eb, run_inference.py)."""
    lists: dict[str, list[str]] = {}
    for text, reply in ELEMENTS.items():
        turn = f"<|T2IA|>\nPrompt: {text}\nElements:"
        yield SYSTEMS.elements, turn, None, reply
        lists[text] = json.loads(reply) if "(shape)" in reply else []
        for element in lists[text]:
            turn = (
                f"<|T2IA|>\nDescription: {text}\nElement: {element}\nReturn JSON:\n"
                '{"question": "...", "answer": "yes/no"}'
            )
            yield SYSTEMS.question, turn, None, QUESTIONS[element]
    for (text, number), reply in SCORES.items():
        first, second = (json.loads(QUESTIONS[element])["question"] for element in lists[text])
        turn = f"<|EVALUATION|>\nQuestions to score:\n1. Question: {first}\n2. Question: {second}"
        yield SYSTEMS.scores, turn, IMAGES[number], reply


@pytest.fixture(scope="module", autouse=True)
def _script(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A script in the form of the authors', with messages of our own, in the cache."""
    made = dict(zip(dyneval.SCRIPT.texts, SYSTEMS, strict=True))
    body = "".join(f"{name} = {text!r}\n" for name, text in made.items())
    told = hashlib.sha256("".join(f"{text}\0" for text in SYSTEMS).encode()).hexdigest()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GAPBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(dyneval, "SCRIPT", replace(dyneval.SCRIPT, sha256=told))
        place(dyneval.SCRIPT).parent.mkdir(parents=True)
        place(dyneval.SCRIPT).write_text(f"import nowhere\nOTHER = 1\n{body}")
        yield


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint whose last layer is solved for: after each turn of the script comes its
    reply, which is one token, and then the end."""
    words = load_benchmark().tokenizer()
    words.add_special_tokens({"additional_special_tokens": list(TOKENS)})
    words.add_tokens(sorted({*ELEMENTS.values(), *QUESTIONS.values(), *SCORES.values()}))
    folder = build(tmp_path_factory.mktemp("checkpoints") / "DynEval-4B", words)
    judge = DynEvalJudge(str(folder), "cpu")
    judge.load()
    states, said = [], []
    for system, turn, image, reply in scripted(judge):
        text = judge.chat.text(turn, system, image is not None)
        assert text.endswith(f"{turn}{END}\n<|im_start|>assistant\n")
        assert text.startswith(f"<|im_start|>system\n{system}{END}\n<|im_start|>user\n")
        for more, following in (("", reply), (reply, END)):
            batch = judge.chat.batch(judge._model, [text + more], [image] if image else [])
            with torch.no_grad():
                states.append(judge._model.model(**batch).last_hidden_state[0, -1].double())
            said.append(words.convert_tokens_to_ids(following))
    wanted = torch.zeros(len(states), len(words), dtype=torch.float64)
    wanted[range(len(said)), said] = 1
    with torch.no_grad():
        judge._model.lm_head.weight.copy_((torch.linalg.pinv(torch.stack(states)) @ wanted).T)
    judge._model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def judge(taught: Path) -> DynEvalJudge:
    made = load_judge(f"dyneval:{taught}", "cpu")
    assert isinstance(made, DynEvalJudge)
    return made


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replies to what was not taught may have no end."""
    for name in ("ELEMENTS_TOKENS", "QUESTION_TOKENS", "SCORES_TOKENS"):
        monkeypatch.setattr(dyneval, name, 4)


ROWS = [(place, text) for text in ELEMENTS for place in range(len(IMAGES))]


def asked(judge: DynEvalJudge, rows: Sequence[tuple[int, str]]) -> list[Answer]:
    return judge.judge([IMAGES[place] for place, _ in rows], [prompt(text) for _, text in rows])


def test_scores_verdicts_and_reasons(judge: DynEvalJudge) -> None:
    answers = dict(zip(ROWS, asked(judge, ROWS), strict=True))
    found = {row: (a.score, a.verdict, a.reason) for row, a in answers.items() if a.score}
    star = "a star without a square"
    assert found == {
        (0, "a red circle"): (1.5, 0, "circle (shape); red (color)"),
        (1, "a red circle"): (4.0, 0, "red (color)"),
        (2, "a red circle"): (4.5, 1, None),
        (0, star): (3.0, 0, "no square (counting)"),
        (1, star): (5.0, 1, None),
    }
    assert json.loads(answers[0, star].text or "") == [
        {"element": "star (shape)", "question": "Is there a star?", "answer": "yes", "score": 4},
        {"element": "no square (counting)", "question": "Is there a square?", "answer": "no",
         "score": 2},
    ]  # fmt: skip
    for row, reply, reason in (
        ((2, star), scoring(5), "no score from 1 to 5 for no square (counting)"),
        ((0, "a photo"), ELEMENTS["a photo"], "the reply names no element of the prompt"),
        ((1, "a riddle"), ELEMENTS["a riddle"], "the reply names no element of the prompt"),
    ):
        assert answers[row] == Answer(verdict=None, text=reply, reason=reason)


def test_neither_batch_nor_order_changes_an_answer(judge: DynEvalJudge, taught: Path) -> None:
    whole = asked(judge, ROWS)
    fresh = DynEvalJudge(str(taught), "cpu")
    assert asked(fresh, ROWS[::-1])[::-1] == whole
    fresh = DynEvalJudge(str(taught), "cpu")
    assert [asked(fresh, [row])[0] for row in ROWS] == whole


def test_check_judge_finds_nothing(judge: DynEvalJudge, short: None) -> None:
    prompts = [prompt(text) for text in ("a star without a square", "a photo", "a red circle")]
    failed = [found for found in check(judge, prompts) if found.failure]
    assert failed == []


def test_a_prompts_questions_are_made_once(
    judge: DynEvalJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked(judge, ROWS)
    seen: list[int] = []
    replies = Chat.replies

    def watched(self: Chat, model: Any, images: Any, *more: Any) -> list[str]:
        seen.append(len(images))
        return replies(self, model, images, *more)

    monkeypatch.setattr(Chat, "replies", watched)
    judge.release()
    asked(judge, ROWS)
    assert seen == [len(SCORES)]


def test_the_authors_script_is_pinned_by_what_is_read_of_it(
    taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = place(dyneval.SCRIPT)
    assert DynEvalJudge(str(taught), "cpu").systems == SYSTEMS
    monkeypatch.setenv("GAPBENCH_CACHE", str(tmp_path / "cache"))
    with pytest.raises(GapbenchError, match=r"needs run_inference\.py .*run `gapbench prepare`"):
        DynEvalJudge(str(taught), "cpu").check_ready()
    mine = tmp_path / "mine"
    mine.mkdir()
    for text in (
        file.read_text().replace("Yes or no?", "Yes?"),
        file.read_text().replace("EVALUATION_SYSTEM", "EVALUATION"),
        "raise SystemExit(",
        "\0",
        "(" * 10_000,
    ):
        (mine / "run_inference.py").write_text(text)
        assert adopt([dyneval.SCRIPT], mine) == [dyneval.SCRIPT]
    # Other lines of it may change, and none is run.
    (mine / "run_inference.py").write_text(f"{file.read_text()}\nraise SystemExit\n")
    assert adopt([dyneval.SCRIPT], mine) == []
    assert DynEvalJudge(str(taught), "cpu").systems == SYSTEMS


def test_another_threshold_is_another_judge(judge: DynEvalJudge, taught: Path) -> None:
    mild = load_judge(f"dyneval@4:{taught}", "cpu")
    assert mild.name == f"{judge.name}@4"
    assert mild.fingerprint != judge.fingerprint
    answers = mild.judge(IMAGES, [prompt("a red circle")] * 3)
    assert [answer.verdict for answer in answers] == [0, 1, 1]
    with pytest.raises(GapbenchError, match="above 1 and up to 5"):
        load_judge(f"dyneval@6:{taught}", "cpu")


def test_a_turn_that_fails_leaves_no_list_behind(
    taught: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, replies = DynEvalJudge(str(taught), "cpu"), Chat.replies

    def full(self: Chat, model: Any, images: Any, questions: Any, *more: Any) -> list[str]:
        if "Element:" in questions[0]:
            raise torch.OutOfMemoryError
        return replies(self, model, images, questions, *more)

    with monkeypatch.context() as patched:
        patched.setattr(Chat, "replies", full)
        with pytest.raises(GapbenchError, match="does not fit"):
            asked(judge, ROWS[:1])
    assert asked(judge, ROWS[:1])[0].score == 1.5


def test_an_image_that_is_refused_costs_no_other_its_verdict(judge: DynEvalJudge) -> None:
    images = [IMAGES[1], Image.new("RGB", (900, 3)), IMAGES[2]]
    answers = judge.judge(images, [prompt("a red circle")] * 3)
    assert [answer.score for answer in answers] == [4.0, None, 4.5]
    assert "aspect ratio" in (answers[1].reason or "")


@pytest.mark.parametrize(
    ("scores", "warning"),
    [([5, 1, 1], None), ([3, 1, 3], "with score 3.000"), ([0, 1, 1], "gives no score")],
)
def test_the_known_picture(
    taught: Path, monkeypatch: pytest.MonkeyPatch, scores: list[int], warning: str | None
) -> None:
    judge = DynEvalJudge(str(taught), "cpu")

    def replies(self: Chat, model: Any, images: Any, turns: Sequence[str], *more: Any) -> list[str]:
        if images:
            return [scoring(score) for score in scores]
        question = any("Element:" in turn for turn in turns)
        return [asking("Is it there?") if question else '["it (object)"]' for _ in turns]

    monkeypatch.setattr(Chat, "replies", replies)
    said = judge.check_picture()
    assert said is None if warning is None else warning in (said or "")


def test_prompts_and_checkpoints_that_are_refused(judge: DynEvalJudge, tmp_path: Path) -> None:
    with pytest.raises(GapbenchError, match=r"'<\|EVALUATION\|>', which judge dyneval-DynEval-4B"):
        judge.question(prompt("a circle <|EVALUATION|>"))
    plain = build(tmp_path / "plain", load_benchmark().tokenizer())
    with pytest.raises(GapbenchError, match=r"no token <\|T2IA\|>, so this is no DynEval"):
        DynEvalJudge(str(plain), "cpu").question(prompt("a circle"))


def test_tokens_without_bars_are_known_too(tmp_path: Path) -> None:
    words = load_benchmark().tokenizer()
    words.add_special_tokens({"additional_special_tokens": ["<T2IA>", "<EVALUATION>"]})
    judge = DynEvalJudge(str(build(tmp_path / "early", words)), "cpu")
    assert judge.question(prompt("a circle")) == "a circle"
    assert judge.token("EVALUATION") == "<EVALUATION>"


# -- where it comes from ---------------------------------------------------------------------


def test_prepare_lists_a_folder_of_the_repository(
    taught: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Offline, in the layout of the hub's cache."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    stored = tmp_path / "models--vcl-iisc--DynEval-Evaluator"
    (stored / "refs").mkdir(parents=True)
    (stored / "refs/main").write_text(commit)
    folder = stored / "snapshots" / commit / "DynEval-4B"
    shutil.copytree(taught, folder)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "200")
    command = ("prepare", "--model", "janus-mini", "--dry-run", "--judge")
    code, out, err = end(capsys, *command, "dyneval")
    assert not code, err
    rows = [line.split() for line in out.splitlines() if "DynEval-Evaluator" in line]
    assert rows[0][:3] == ["vcl-iisc/DynEval-Evaluator", "judge", "dyneval"]
    assert rows[0][-1] == "yes"
    code, out, err = end(capsys, *command, "dyneval:2b")
    assert not code, err
    rows = [line.split() for line in out.splitlines() if "DynEval-Evaluator" in line]
    assert rows[0] == [REPO, "judge", "dyneval:2b", "4,300.00", "unknown", "NOTHING", "no"]
    with pytest.raises(GapbenchError, match=r"DynEval-2B cannot be downloaded \(offline\)"):
        DynEvalJudge("2b", "cpu")
    made = DynEvalJudge(None, "cpu")
    assert made.name == "dyneval-4b"
    assert made.unpinned == f"vcl-iisc/DynEval-Evaluator at commit {commit}"
    assert asked(made, ROWS[:1])[0].score == 1.5
    folder.rename(folder.with_name("DynEval-2B"))
    small = DynEvalJudge("2b", "cpu")
    assert (small.name, small.fingerprint == made.fingerprint) == ("dyneval-2b", False)


# -- what replies say ------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["question", "score", "answer", "answers", "scores", "elements"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=9,
).map(json.dumps)
REPLIES = st.one_of(
    st.text(),
    JSON,
    JSON.map(lambda text: f"```json\n{text}\n```"),
    st.builds(lambda text, end: text[:end], JSON, st.integers(0, 60)),
)
ITEMS = [Item("circle (shape)", "Is there a circle?", True), Item("red (color)", "Red?", True)]


@given(reply=REPLIES)
def test_any_reply_is_read_or_abstained_from(reply: str) -> None:
    for element in elements_in(reply):
        assert element.strip() == element != ""
    question = question_in(reply)
    assert question is None or question[0].strip() == question[0] != ""
    answer = answer_of(ITEMS, reply)
    if answer.score is None:
        assert answer.verdict is None
        assert answer.text == reply
        assert answer.reason
    else:
        assert 1 <= answer.score <= 5
        assert [row["score"] in range(1, 6) for row in json.loads(answer.text or "")] == [True] * 2


@pytest.mark.parametrize(
    "reply",
    [
        "",
        scoring(5, -1),
        scoring(5, 6),
        scoring(5, 0),
        scoring(5, math.nan),
        scoring(5, math.inf),
        scoring(5, None),
        scoring(5, True),
        scoring(5, [5]),
        scoring(5, 10**400),
        scoring(5),
        scoring(5, 5)[:-1],
        '{"answers": {"score": 5}}',
        f'[{{"score": {"9" * 5000}}}, 5]',
        "[" * 5000,
        '{"a":' * 5000,
        "1. yes 5\n2. yes 5",
    ],
)
def test_scores_that_are_none_are_an_abstention(reply: str) -> None:
    answer = answer_of(ITEMS, reply)
    assert (answer.verdict, answer.score, answer.text) == (None, None, reply)


@pytest.mark.parametrize(
    "reply",
    [
        "[5, 4]", "[5, 4, 1, 1]", '```json\n["5", "4/5"]\n```', '{"answers": [5, 4]}',
        'Scores: {"scores": [{"score": "5"}, {"answer": 4.2}]}.', scoring(4.6, "4 of 5"),
    ],
)  # fmt: skip
def test_scores_that_are_read(reply: str) -> None:
    answer = answer_of(ITEMS, reply)
    assert (answer.verdict, answer.score, answer.reason) == (1, 4.5, None)


def test_elements_that_are_read() -> None:
    assert elements_in('["Red  (color)", "red (color)", "A Photo (x)", " an image", 3, ""]') == [
        "Red  (color)", "A Photo (x)", "an image",
    ]  # fmt: skip
    assert elements_in('{"elements": ["a (object)", "3D render (style)"]}') == ["a (object)"]
    assert elements_in('["a (object)", "b (animal)", "c (an') == ["a (object)", "b (animal)"]
    many = [f"thing {number} (object)" for number in range(5000)]
    assert elements_in(json.dumps(many)) == many


def test_questions_that_are_read() -> None:
    assert question_in('{"question": " Is it? ", "answer": "No, none"}') == ("Is it?", False)
    assert question_in('{"question": "Is it?"}') == ("Is it?", True)
    assert question_in("Q: Is it?\nA: no") == ("Is it?", True)
    assert question_in('{"question": 3}') is question_in("[]") is question_in("Is it?") is None


def test_the_score_is_the_authors_mean() -> None:
    """The reference: the scores are an integer array; questions with a score outside 1 to 5 leave
    the authors' mean, and are an abstention here."""
    rng = np.random.default_rng(3)
    whole = 0
    for _ in range(1000):
        scores = rng.integers(1, 6, rng.integers(1, 25))
        scores[rng.random(len(scores)) < 0.02] = rng.choice([0, -3, 6, 99])
        items = [Item(f"e{n} (x)", f"q{n}?", yes=bool(n % 3)) for n in range(len(scores))]
        answer = answer_of(items, scoring(*scores.tolist()))
        valid = scores[(scores >= 1) & (scores <= 5)]
        if len(valid) < len(scores):
            assert answer.score is answer.verdict is None
            continue
        whole += 1
        assert answer.score == pytest.approx(valid.mean(), abs=1e-12)
        assert answer.verdict == int(valid.mean() >= 4.5)
        low = [item.element for item, score in zip(items, scores, strict=True) if score <= 3]
        assert answer.reason == ("; ".join(low) or None)
    assert 500 < whole < 1000
