"""The records that flow through gapbench (design: Prompt -> Generation -> Verdict -> Rates).

All are frozen and hold plain values only, so that a record is a line of JSON and back.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

Tier = Literal["easy", "medium", "hard"]
TIERS: tuple[Tier, ...] = ("easy", "medium", "hard")


class GapbenchError(Exception):
    """A mistake a person can mend: what was wrong, where, and what to do, in one line."""


_CONTROL: Final = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
PERCENT: Final = "%"
"""The unit of shares: numbers in [0, 1] that are printed in percent."""


class Scale(NamedTuple):
    """What a judge's scores are measured in: the unit, and the lowest and highest score.

    Only scores of one scale have a mean.
    """

    unit: str = PERCENT
    low: float = 0.0
    high: float = 1.0


SHARE: Final = Scale()
COSINE: Final = Scale("cosine", -1.0, 1.0)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why one row of a batch came to nothing; `final` where asking again would not change it."""

    reason: str
    final: bool = False


class Unfinished(GapbenchError):  # noqa: N818
    """Some rows of a batch failed. `done` maps the places of others to what they gave, `failed`
    those of rows that failed by themselves to why; a row in neither stops the command."""

    def __init__(
        self, message: str, done: Mapping[int, Any], failed: Mapping[int, Failure] | None = None
    ) -> None:
        super().__init__(message, done, failed)
        self.done, self.failed = done, failed or {}

    def __str__(self) -> str:
        return str(self.args[0])


class Crash(RuntimeError):  # noqa: N818 (named for what it tells of)
    """An adapter's own error in another process: its kind and place, in one line."""


STOPS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What asks a command to end: Ctrl-C, a batch system, a terminal that is closed."""


class Interrupted(Exception):  # noqa: N818 (no error)
    """One of STOPS came; the batch in hand was finished and kept."""


def printable(text: str) -> str:
    """A text as it is, with control characters, which may command a terminal, as escapes; lines and
    tabs stay."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def counted(number: int, noun: str) -> str:
    """A number of things in words: "1 image", "2 images"."""
    return f"{number} {noun}{'s' * (number != 1)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What to draw.

    `requirement` is what a judge checks, as JSON values; `question` is what the model is asked
    about an image of this prompt (the task's verdict question with the text filled in).
    """

    id: str
    task: str
    category: str
    tier: Tier
    text: str
    question: str
    requirement: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One image of one prompt text.

    `image` and `tokens` are the sha256 of the PNG file and of the token-id file (None where the
    model has no discrete tokens); `latents` that of the file of its latents, in safetensors, where
    the model has some; `effective_prompt` is the prompt as the model got it; `logprob`
    is the log-probability, in nats, of the drawn tokens under the guided sampling distribution;
    `seconds` is the batch's wall time divided by its size.
    """

    prompt: str
    sample: int
    seed: int
    image: str
    tokens: str | None
    effective_prompt: str
    logprob: float | None
    seconds: float
    latents: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """An image that the model does not draw, however often it is asked, and why."""

    prompt: str
    seed: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a judge says: the part of a Verdict that is the judge's own.

    `verdict` is 1, 0 or None (abstained, with the reason); `p_yes` is the probability of 1 where
    the judge gives one, and `mass` the probability of the two answers together before they were
    normalised; `score` is the judge's own scale where it has one; `text` is what it said.
    """

    verdict: int | None
    p_yes: float | None = None
    mass: float | None = None
    score: float | None = None
    text: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict(Answer):
    """One judge's answer about one image, named by the sha256 of its file."""

    image: str
    question: str
    judge: str
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """One figure over verdicts.

    `value` is in `unit`, a share in [0, 1] where that is "%"; None where the denominator carries
    nothing, or where the scores are in several units, which `unit` lists. `numerator` and
    `denominator` are raw counts (sums, for scores) over images; `value` equals their quotient
    within a category and weighs categories equally above it. `low` and `high` bound the 95 %
    interval; `n_prompts` are the prompts behind the denominator; `deff` is the design effect
    (variance over prompts as clusters, divided by the variance if all images were independent);
    `abstained` counts the images left out because a judge abstained. The levels "official"
    and "paper" are a task's own means (`gapbench.metrics.rates.overalls`).
    """

    level: Literal["category", "tier", "task", "overall", "official", "paper"]
    name: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    numerator: float
    denominator: float
    n_prompts: int
    deff: float | None
    abstained: int
    unit: str = PERCENT
