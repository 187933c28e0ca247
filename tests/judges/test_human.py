"""Labels of people as verdicts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gapbench.judges.human import HumanJudge
from gapbench.types import Answer, GapbenchError, Prompt

A, B, C = ("a" * 64, "b" * 64, "c" * 64)


def prompt(text: str = "an apple") -> Prompt:
    return Prompt(
        id=text, task="t", category="c", tier="easy", text=text, question=f"Is it {text}?",
        requirement={},
    )  # fmt: skip


def judge(tmp_path: Path, text: str, name: str = "labels.csv") -> HumanJudge:
    (tmp_path / name).write_bytes(text.encode())
    return HumanJudge(str(tmp_path / name))


def verdicts(made: HumanJudge, *digests: str) -> list[Answer]:
    return made.judge_digests(digests, [prompt()] * len(digests))


def test_labels_of_one_rater(tmp_path: Path) -> None:
    made = judge(tmp_path, f"image,label,note\n{A},yes,x\n{B.upper()}, No ,\n\n{C},unsure,\n")
    assert made.name == "human-labels"
    assert made.question(prompt()) == "Is it an apple?"
    yes, no, unsure, none = verdicts(made, A, B, C, "d" * 64)
    assert yes == Answer(verdict=1, text="1 yes")
    assert no == Answer(verdict=0, text="1 no")
    assert unsure == Answer(verdict=None, text="1 unsure", reason="no majority: 1 unsure")
    assert none == Answer(verdict=None, reason="no label")


@pytest.mark.parametrize(
    "table",
    [
        f"\ufeffimage;label\r\n{A};yes\r\n{B};no\r\n",
        f"image\tlabel\n{A}\tyes\n{B}\tno\n",
        f"image,label\n{A},TRUE\n{B},FALSE\n",
        f"image,label\n{A},1.0\n{B},0.0\n",
        f"image,label\n{A}.png,yes\n{B}.PNG,no\n",
        f"Image, Label \n{A},yes\n{B},no\n",
    ],
)
def test_tables_as_spreadsheets_and_pandas_write_them(tmp_path: Path, table: str) -> None:
    assert [answer.verdict for answer in verdicts(judge(tmp_path, table), A, B)] == [1, 0]


def test_a_table_with_another_separator_is_told_by_its_columns(tmp_path: Path) -> None:
    with pytest.raises(GapbenchError, match=r":1: no column 'image'.*image\|label"):
        judge(tmp_path, f"image|label\n{A}|yes\n")


def test_json_lines_say_the_same(tmp_path: Path) -> None:
    rows = [
        {"image": A, "label": 1, "rater": 7},
        {"image": A, "label": 0, "rater": "b"},
        {"image": A, "label": "1", "rater": "c", "prompt": None},
    ]
    text = "\n".join(map(json.dumps, rows)) + "\n\n"
    one = judge(tmp_path, text, "l.jsonl")
    table = "\ufeffimage,label,rater\r\n" + "".join(
        f"{A},{label},{rater}\r\n" for label, rater in ((1, 7), (0, "b"), (1, "c"))
    )
    other = judge(tmp_path, table, "l.csv")
    assert verdicts(one, A) == verdicts(other, A) == [Answer(verdict=1, text="2 yes, 1 no")]
    assert one.fingerprint != other.fingerprint


def test_a_label_may_hold_for_one_prompt_only(tmp_path: Path) -> None:
    made = judge(
        tmp_path,
        "image,prompt,label,rater\n"
        f'{A},"a red, ripe apple",yes,p\n{A},a pear,no,p\n{A},,no,q\n{A},,no,p\n{A},a pear,no,q\n',
    )
    asked = [prompt("a red, ripe apple"), prompt("a pear"), prompt("a plum")]
    first, second, third = made.judge_digests([A] * 3, asked)
    assert first.verdict is None
    assert first.reason == "no majority: 1 yes, 1 no"
    assert second.text == third.text == "2 no"


@given(st.lists(st.sampled_from(["yes", "no", "unsure"]), min_size=1, max_size=7))
def test_more_than_half_decide(tmp_path_factory: pytest.TempPathFactory, labels: list[str]) -> None:
    rows = "".join(f"{A},{label},{rater}\n" for rater, label in enumerate(labels))
    made = judge(tmp_path_factory.mktemp("labels"), f"image,label,rater\n{rows}")
    (answer,) = verdicts(made, A)
    half = len(labels) / 2
    wanted = 1 if labels.count("yes") > half else 0 if labels.count("no") > half else None
    assert answer.verdict == wanted
    assert (answer.reason is None) == (wanted is not None)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", r":1: no column 'image'"),
        ("image,verdict\n", r":1: no column 'label'"),
        (f"image,label\n{A},yes\n{B},maybe\n", r":3: label 'maybe'"),
        (f"image,label\n{A}\n", r":2: broken line"),
        (f"image,label\n{A},yes,more\n", r":2: broken line"),
        (f'image,label\n{A},"yes\n', r":2: broken line"),
        ("image,label\nimages/1.png,yes\n", r":2: image 'images/1.png' is not a sha256"),
        (f"image,label\n{A},yes\n{A},no\n", r":3: the file already gave image aaaa"),
        (f"image,label,rater\n{A},1,x\n{A},yes,x\n{A},0,x\n", r":4: rater 'x' already"),
    ],
)
def test_broken_tables_name_the_line(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(GapbenchError, match=why) as error:
        judge(tmp_path, text)
    assert "labels.csv" in str(error.value)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "broken line, not JSON"),
        ("[" * 100_000, "broken line, not JSON"),
        ("[]", "not a JSON object"),
        ('{"image": "a"}', "no 'label'"),
        (json.dumps({"image": A, "label": None}), "label ''"),
    ],
)
def test_broken_json_names_the_line(tmp_path: Path, line: str, why: str) -> None:
    good = json.dumps({"image": B, "label": "yes"})
    with pytest.raises(GapbenchError, match=f"l.jsonl:2: .*{why}"):
        judge(tmp_path, f"{good}\n{line}\n", "l.jsonl")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(GapbenchError, match="needs a file"):
        HumanJudge()
    with pytest.raises(GapbenchError, match="cannot be read"):
        HumanJudge(str(tmp_path / "nowhere.csv"))
    (tmp_path / "latin.csv").write_bytes(b"image,label\n\xe9,yes\n")
    with pytest.raises(GapbenchError, match="UTF-8"):
        HumanJudge(str(tmp_path / "latin.csv"))


def test_pixels_alone_are_an_abstention(tmp_path: Path) -> None:
    made = judge(tmp_path, f"image,label\n{A},yes\n")
    (answer,) = made.judge([Image.new("RGB", (2, 2))], [prompt()])
    assert answer.verdict is None
    assert "judge_digests" in (answer.reason or "")
    made.release()
