"""The contract of a judge, tried on three images (`gapbench check-judge`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle, islice

import numpy as np
from PIL import Image

from gapbench.judges.base import Judge, check_answer
from gapbench.models.check.rules import (
    TOLERANCE,
    Finding,
    Rule,
    expect,
    expect_rows,
    findings,
    unseeded,
)
from gapbench.types import Answer, Prompt, Scale


def check(judge: Judge, prompts: Sequence[Prompt]) -> Iterator[Finding]:
    """Try every rule on a judge, with pictures of noise and of one color."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    plain = [Image.new("RGB", (64, 64), color) for color in ("white", "red")]
    three, images = list(islice(cycle(prompts), 3)), [Image.fromarray(noise), *plain]
    kind = type(judge)

    def describes() -> None:
        for field in ("name", "fingerprint"):
            said = getattr(judge, field)
            expect(isinstance(said, str) and bool(said), f"its {field} is {said!r:.80}, not a text")
        expect(isinstance(judge.scale, Scale), "its scale is no gapbench.types.Scale")
        expect(min(judge.batches) >= 1, "its batches are of less than one image")

    def asks() -> None:
        for prompt in three:
            question = judge.question(prompt)
            expect(isinstance(question, str), f"a question is a {type(question).__name__}")
            expect(question == judge.question(prompt), "one prompt has two questions")

    def answers() -> None:
        _answers(judge, images, three)

    def company() -> None:
        together = _answers(judge, images, three)
        alone = [_answers(judge, [i], [p])[0] for i, p in zip(images, three, strict=True)]
        turned = _answers(judge, images[::-1], three[::-1])[::-1]
        expect(all(map(_alike, alone, together)), "an image alone has another answer")
        expect(all(map(_alike, turned, together)), "in another order images have other answers")

    def state() -> None:
        same = unseeded(lambda: _answers(judge, images, three))
        expect(same, "its answers follow torch's or NumPy's global random state")

    def odd() -> None:
        sizes = ((1, 1), (400, 8), (8, 400))
        _answers(judge, [Image.new("RGB", size, "white") for size in sizes], three)

    def returns() -> None:
        before = _answers(judge, images, three)
        judge.release()
        judge.release()
        same = all(map(_alike, _answers(judge, images, three), before))
        expect(same, "after release() it answers otherwise")

    return findings(
        [
            Rule("describes itself before it loads", describes, kind),
            Rule("has a question for each prompt", asks, kind.question),
            Rule("is ready", judge.check_ready, kind.check_ready),
            Rule("gives an answer for each image", answers, kind.judge),
            Rule("an answer does not depend on its batch", company, kind.judge),
            Rule("an answer does not depend on a global random state", state, kind.judge),
            Rule("odd pictures are judged, or abstained from", odd, kind.judge),
            Rule("a released judge comes back", returns, kind),
        ]
    )


def _answers(
    judge: Judge, images: Sequence[Image.Image], prompts: Sequence[Prompt]
) -> list[Answer]:
    gave = judge.judge(list(images), list(prompts))
    expect_rows("judge", gave, len(images), "answers", check_answer)
    for answer in gave:
        scored = judge.scores or answer.score is None
        expect(scored, "it says scores = False, and an answer has one")
    return list(gave)


def _alike(one: Answer, other: Answer) -> bool:
    """Whether answers are the same, but for rounding."""
    numbers = [(one.score or 0.0, other.score or 0.0), (one.p_yes or 0.0, other.p_yes or 0.0)]
    near = all(abs(a - b) <= TOLERANCE["float32"] * max(1, abs(a)) for a, b in numbers)
    return one.verdict == other.verdict and near
