"""What a judge is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from PIL import Image

from gapbench.fetch.hub import Checkpoint, fetch
from gapbench.fetch.sources import Source, cached
from gapbench.models.base import Batches, is_number
from gapbench.types import SHARE, Answer, GapbenchError, Prompt, Scale

REQUIRED: Final = ("judge",)
"""What a judge must have; the rest of `Judge` has defaults."""


class Judge:
    """Decides whether images show their prompts.

    A judge never turns a failure of its own into a 0: what it cannot answer is an `Answer` with
    verdict None and a reason.
    """

    name: str
    """By default the name of its class."""
    fingerprint: str
    """Changes whenever an answer may change (rules, thresholds, weights). By default that of the
    file of its class, and its argument (`gapbench.fingerprint`)."""
    needs: Sequence[Source | Checkpoint] = ()
    """What it cannot work without and does not ship."""
    unpinned: str = ""
    """What of it has no revision on record, at the commit that was taken; empty if nothing."""
    scale: Scale = SHARE
    """What its scores are measured in, if it gives any. Their mean is taken only with scores of the
    same scale."""
    scores: bool = True
    """Whether an answer may have a score."""
    threshold: float | None = None
    """The score from which its verdict is 1; None where verdicts are not made from scores, or where
    it gives none. `--judge NAME@THRESHOLD` sets it."""
    image_size: tuple[int, int] | None = None
    """Width and height, in pixels, of the images that it reads; None where it reads any."""
    any_prompt: bool = True
    """Whether it can hold an image against another prompt than the one that was drawn."""
    by_parts: bool = False
    """Whether it can say of each part of a requirement if an image meets it (`judge_parts`), which
    own verdicts by questions are held against."""
    batches: Batches = Batches()
    """How many images a batch of `judge` should have."""
    gpus: float | None = 1
    """With --workers, the GPUs that each copy takes where there are any: a share, such as 0.25,
    where several fit on one, or 0. None keeps the only copy in the first process, as of a server,
    which more copies would not make faster."""
    remote: bool = False
    """Whether another machine answers, so that it judges images while the model draws others."""

    def question(self, prompt: Prompt) -> str:
        """What is asked of an image of `prompt`; equal questions get equal answers.

        By default the task's own. Raises GapbenchError for a prompt that this judge cannot judge;
        it is asked of all prompts before anything is drawn.
        """
        return prompt.question

    def unread(self, size: tuple[int, int] | None) -> str | None:
        """Why it reads no image of this width and height, or None; of None, where they are not
        known, it says so too."""
        if self.image_size in (None, size):
            return None
        width, height = self.image_size or (0, 0)
        return f"judge {self.name} reads only images of {width} x {height} pixels"

    def check_ready(self) -> None:
        """Raises GapbenchError where it could not judge; called before anything is drawn. By
        default it takes what it `needs` to be here, checkpoints of the hub fetched."""
        cached([need for need in self.needs if isinstance(need, Source)], f"judge {self.name}")
        for need in self.needs:
            if isinstance(need, Checkpoint):
                fetch(need)

    def judge(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Answer]:
        """Answer for each (image, prompt), in order. Images are RGB. Loads what it needs."""
        raise GapbenchError(f"judge {self.name} has no method judge")

    def judge_parts(
        self, images: Sequence[Image.Image], parts: Sequence[Sequence[Mapping[str, Any]]]
    ) -> list[list[bool] | str]:
        """Of each image whether it meets each of its requirements, in order; a text says why that
        cannot be told. Where `by_parts` is true."""
        raise GapbenchError(f"judge {self.name} has no method judge_parts")

    def scored(self, score: float, text: str | None = None) -> Answer:
        """The answer that a score makes: with a verdict if there is a threshold."""
        if not math.isfinite(score):
            return Answer(verdict=None, text=text, reason=f"the score is {score}")
        if self.threshold is None:
            return Answer(verdict=None, score=score, text=text, reason="a score and no verdict")
        return Answer(verdict=int(score >= self.threshold), score=score, text=text)

    def judge_digests(
        self, digests: Sequence[str], prompts: Sequence[Prompt]
    ) -> list[Answer] | None:
        """Answer for each (sha256 of the image's file, prompt), in order; None where it has to see
        the images."""
        return None

    def check_picture(self) -> str | None:
        """What is wrong with its answers about a picture whose truth is known, or None."""
        return None

    def served(self) -> str | None:
        """What a server calls the model that answers, once it has said so."""
        return None

    def estimate_cost(self, images: int) -> str | None:
        """What so many answers would cost, in words, where each is a request to somebody's server;
        asks for none."""
        return None

    def release(self) -> None:
        """Free weights and device memory, if it has any."""


def with_meaning(prompt: Prompt) -> str:
    """The task's question, with what its text means where the requirement has an `Explanation`: it
    names by what one has to know (WISE)."""
    meaning = prompt.requirement.get("Explanation")
    if not isinstance(meaning, str):
        return prompt.question
    return prompt.question.replace(prompt.text, f"{prompt.text} ({meaning.strip().rstrip('.')})", 1)


def check_answer(row: Answer) -> None:
    """Raises ValueError for what is no Answer with numbers in their ranges."""
    if not isinstance(row, Answer):
        raise ValueError(f"a {type(row).__name__}, not an Answer")
    if row.verdict is not None and (type(row.verdict) is not int or row.verdict not in (0, 1)):
        raise ValueError(f"the verdict {row.verdict!r}, not 1, 0 or None")
    for name in ("p_yes", "mass", "score"):
        number = getattr(row, name)
        most = math.inf if name == "score" else 1 + 1e-6
        least = -math.inf if name == "score" else 0
        if number is not None and not (is_number(number) and least <= number <= most):
            raise ValueError(f"a {name} of {number!r}")
    for name in ("text", "reason"):
        if not isinstance(getattr(row, name), str | None):
            raise ValueError(f"a {name} that is a {type(getattr(row, name)).__name__}")
