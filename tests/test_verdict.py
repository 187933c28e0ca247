"""The verdict question's answers: weighed by probabilities, read from words."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gapbench.tasks.task import load_task, task_folders
from gapbench.types import Answer
from gapbench.verdict import LEAST_MASS, QUESTION, READ, mass_note, parse, weigh

INF, NAN = math.inf, math.nan
ASKED = QUESTION.replace("{prompt}", "a photo of 1 red apple")
REPLIES = [
    (text.replace("⏎", "\n").replace("QUESTION", ASKED), None if mark == "-" else int(mark))
    for line in (Path(__file__).parent / "replies.txt").read_text("utf-8").splitlines()
    if line and not line.startswith("#")
    for mark, text in [line.split(" | ", 1)]
]
BLANKS = st.text(" \t\n\r\u00a0\u3000\u200b", max_size=12)


# -- weighing ----------------------------------------------------------------------------------


@settings(derandomize=True, deadline=None)
@given(st.floats(-50, 0), st.floats(-50, 0))
def test_weighing_normalises_the_two_probabilities(no: float, yes: float) -> None:
    answer = weigh(no, yes)
    mass = math.exp(no) + math.exp(yes)
    assert answer.mass == pytest.approx(mass)
    assert answer.p_yes == pytest.approx(math.exp(yes) / mass)
    assert answer.p_yes is not None
    assert answer.verdict == int(answer.p_yes > 0.5)
    assert answer.reason is None


@pytest.mark.parametrize("equal", [0.0, -1.5, -600.0, -5000.0])
def test_a_tie_is_a_zero(equal: float) -> None:
    answer = weigh(equal, equal)
    assert (answer.verdict, answer.p_yes) == (0, 0.5)


@pytest.mark.parametrize(
    ("no", "yes", "verdict", "p_yes"),
    [
        (-INF, -3.0, 1, 1.0),
        (-3.0, -INF, 0, 0.0),
        (-900.0, -5.0, 1, 1.0),
        (-5.0, -900.0, 0, 0.0),
        (-2000.0, -2001.0, 0, 1 / (1 + math.e)),
    ],
)
def test_certain_and_far_apart_answers_neither_overflow_nor_abstain(
    no: float, yes: float, verdict: int, p_yes: float
) -> None:
    answer = weigh(no, yes)
    assert answer.verdict == verdict
    assert answer.p_yes == pytest.approx(p_yes, abs=1e-300)
    assert answer.mass == math.exp(no) + math.exp(yes)


@pytest.mark.parametrize(
    ("no", "yes"),
    [
        (NAN, -1.0),
        (-1.0, NAN),
        (NAN, NAN),
        (-INF, -INF),
        (NAN, -INF),
        (-INF, NAN),
        (INF, -1.0),
        (-1.0, INF),
        (INF, -INF),
        (INF, INF),
    ],
)
def test_broken_log_probabilities_are_an_abstention_with_a_reason_never_a_zero(
    no: float, yes: float
) -> None:
    answer = weigh(no, yes)
    assert (answer.verdict, answer.p_yes, answer.mass) == (None, None, None)
    assert answer.reason == f"log-probabilities of the answers are {no} and {yes}"


# -- the probability of both answers together --------------------------------------------------


def test_a_low_median_mass_is_warned_of() -> None:
    high = mass_note([0.9, None, 0.25, NAN, 0.999])
    told = "the median probability of the two answers together (mass) is"
    assert high == f"Own verdicts: {told} 0.9."
    low = mass_note([3e-7, 0.9, 4e-9])
    assert low == (
        f"WARNING: the model was not answering the question: {told} 3e-07, less than 0.1."
    )
    assert "WARNING" not in str(mass_note([LEAST_MASS]))


def test_without_a_mass_there_is_no_note() -> None:
    assert mass_note([]) is None
    assert mass_note([None, NAN]) is None


# -- reading words -----------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "verdict"), REPLIES)
def test_a_reply_is_read_as_what_it_ends_in(text: str, verdict: int | None) -> None:
    answer = parse(text)
    assert (answer.verdict, answer.text) == (verdict, text)
    assert (answer.reason is None) == (verdict is not None)


def test_the_table_is_of_some_length_and_holds_each_verdict() -> None:
    verdicts = [verdict for _, verdict in REPLIES]
    assert min(verdicts.count(verdict) for verdict in (1, 0, None)) >= 60


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the reply names no score of 0 or 1"),
        (" \n", "the reply names no score of 0 or 1"),
        ("I cannot give a score of 1.", "the reply names no score of 0 or 1"),
        ("The score is 0.5", "the reply's score is 0.5, not 0 or 1"),
        ("Score: 1 out of 10", "the reply's score is 1/10, not 0 or 1"),
        ("Score: " + "7" * 99, "the reply's score is 77777777777777777777, not 0 or 1"),
        ("<think>The score is 1", "the reply was cut inside its reasoning"),
    ],
)
def test_an_abstention_says_why(text: str, reason: str) -> None:
    assert parse(text) == Answer(verdict=None, text=text, reason=reason)


@pytest.mark.parametrize("text", ["The score is 1", "<think>The score", ""])
def test_a_reply_known_to_be_cut_is_an_abstention(text: str) -> None:
    reason = "the reply was cut at the limit of tokens"
    assert parse(text, cut=True) == Answer(verdict=None, text=text, reason=reason)


def test_no_part_of_the_question_from_its_start_is_a_verdict() -> None:
    assert {parse(ASKED[:end]).verdict for end in range(len(ASKED) + 1)} == {None}
    thought = "<think>\n" + ASKED
    assert {parse(thought[:end]).verdict for end in range(len(thought) + 1)} == {None}


@pytest.mark.parametrize("name", task_folders())
def test_no_tasks_question_is_a_verdict(name: str) -> None:
    assert parse(load_task(name).spec.question).verdict is None


@settings(derandomize=True, deadline=None)
@given(st.sampled_from(REPLIES), BLANKS, BLANKS)
def test_blanks_around_a_reply_change_nothing(
    reply: tuple[str, int | None], before: str, after: str
) -> None:
    text, verdict = reply
    assert parse(before + text + after).verdict == verdict


@settings(derandomize=True, deadline=None)
@given(st.sampled_from(REPLIES), st.sampled_from(["*", "**", "***", "_", "__", "`"]))
def test_emphasis_around_a_reply_changes_nothing(reply: tuple[str, int | None], mark: str) -> None:
    text, verdict = reply
    assert parse(mark + text + mark).verdict == verdict


@settings(derandomize=True, deadline=None)
@given(st.sampled_from(REPLIES), st.text(max_size=80))
def test_finished_reasoning_before_a_reply_changes_nothing(
    reply: tuple[str, int | None], thought: str
) -> None:
    text, verdict = reply
    if "think" not in thought:
        assert parse(f"<think>{thought}</think>{text}").verdict == verdict


@settings(derandomize=True, deadline=None)
@given(st.text(max_size=80) | st.text(" 01./(if{<score is not", max_size=80))
def test_any_reply_gives_a_verdict_or_a_reason(text: str) -> None:
    answer = parse(text)
    assert answer.verdict in {0, 1, None}
    assert (answer.verdict is None) == (answer.reason is not None)


def test_what_is_longer_than_the_limit_is_read_from_its_end() -> None:
    long = "The circle is red. " * READ
    assert parse(f"The score is 1. {long}").verdict is None
    assert parse(f"The score is 1. {long} The score is 0.").verdict == 0
    assert parse(f"The score is{chr(10) * 3 * READ} 1{' ' * 3 * READ}.").verdict == 1
    assert parse(f"<think>{long}").reason == "the reply was cut inside its reasoning"
    assert parse(f"<think>{long}</think>1").verdict == 1


HOSTILE = """
from gapbench.verdict import parse
pieces = [" ", chr(10), "0", "1 ", "1.", "score ", "score is ", "score 1 ", "score 1 or ", "(", "[",
          "{", "<", "<a", "<think>", "a</think>", "if score 1! ", "not ", "n't ", "a ", "得1分",
          "如果", "-", ", ", '"', "*", chr(92) + "text", "out of ", "gives a a ", "because "]
for piece in pieces:
    for text in (piece, "The score is" + piece, "The score is 1" + piece):
        parse(text + piece * (200_000 // len(piece)) + "1")
"""


def test_a_hostile_reply_takes_no_time() -> None:
    """90 replies of 200,000 characters, in another process, since no pattern can be interrupted."""
    subprocess.run([sys.executable, "-c", HOSTILE], check=True, timeout=60)
