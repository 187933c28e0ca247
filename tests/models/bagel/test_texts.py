"""Texts that BAGEL continues: as it answers, in any company, with any number of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from gapbench import GapbenchError, load_model
from gapbench.verdict import ANSWERS

QUESTION = "is it a red circle?"


@pytest.fixture(scope="module")
def model(tiny_bagel: Path) -> Any:
    return load_model(str(tiny_bagel), "cpu", "float64")


def picture(color: str, size: tuple[int, int] = (16, 16)) -> Image.Image:
    return Image.new("RGB", size, color)


def asked(model: Any, text: str) -> str:
    return str(model.chat([{"role": "user", "content": text}]))


def test_a_question_about_an_image_is_answered_as_a_verdict_is(model: Any) -> None:
    image, text = picture("red"), asked(model, f"<image>{QUESTION}")
    odds = model.judge([image], [QUESTION], ANSWERS)[0]
    scores = model.score([[image]] * 2, [text] * 2, [f" {answer}" for answer in ANSWERS])
    assert [score for score, _ in scores] == pytest.approx(odds.tolist(), abs=1e-9)
    [said] = model.complete([[image]], [text], 99)
    assert said.strip() == model.reply([image], [QUESTION])[0]
    first = said[0]
    assert model.complete([[image]], [text], 99, [said[1:4], first]) == [""]
    assert said.startswith(model.complete([[image]], [text], 3)[0])
    assert not any(likeliest for _, likeliest in scores)


@torch.no_grad()
def test_the_likeliest_token_is_known(tiny_bagel: Path) -> None:
    """Its row of the head is given to another token, which is a word."""
    model: Any = load_model(str(tiny_bagel), "cpu", "float64")
    text, head = asked(model, QUESTION), model.network.language_model.lm_head
    ids = model.tokenizer.encode(text)
    states, _ = model._reader.follow([ids])
    likeliest = int(head(states[0, len(ids) - 1]).argmax())
    [word, *_] = model.tokenizer.encode("red")
    assert word != likeliest
    head.weight.copy_(head.weight.roll(word - likeliest, 0))
    named = model.tokenizer.decode([word])
    assert model.score([[]], [text], [f" {named}"])[0][1]
    assert not model.score([[]], [text], ["blue"])[0][1]
    assert model.complete([[]], [text], 1) == [named]


def test_pictures_and_their_order_are_seen(model: Any) -> None:
    text = asked(model, "is <image> or <image> larger?")
    assert text == (
        "<|im_start|>is <|im_end|><image><|im_start|> or <|im_end|><image>"
        "<|im_start|> larger?<|im_end|><|im_start|>"
    )
    one, two = picture("red"), picture("blue", (30, 9))
    found = [model.score([some], [text], ["yes"])[0][0] for some in ([one, two], [two, one])]
    assert abs(found[0] - found[1]) > 1e-6
    marks = model.chat([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    assert marks == "<|im_start|>a<|im_end|><|im_start|>b<|im_end|><|im_start|>"


def test_texts_without_marks_are_read_with_them(model: Any) -> None:
    plain, marked = (model.score([[]], [text], [" yes"]) for text in ("hello", "<|im_start|>hello"))
    assert plain == marked
    bare = model.score([[picture("red")]], ["<image>"], ["yes"])
    assert bare == model.score([[picture("red")]], ["<image><|im_start|>"], [" yes"])


def test_what_cannot_be_scored_or_has_no_room_is_told(model: Any) -> None:
    with pytest.raises(GapbenchError, match="has no token of its own after"):
        model.score([[]], ["hello"], [""])
    with pytest.raises(GapbenchError, match="places, it has room for 4096"):
        model.complete([[]], ["hello"], 5000)
