"""What a judge is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from PIL import Image

from gapbench.fetch.hub import Checkpoint
from gapbench.fetch.sources import Source
from gapbench.types import Answer, Prompt


class Judge(Protocol):
    """Decides whether images show their prompts.

    A judge never turns a failure of its own into a 0: what it cannot answer is an `Answer` with
    verdict None and a reason.
    """

    name: str
    fingerprint: str
    """Changes whenever an answer may change (rules, thresholds, weights)."""
    needs: Sequence[Source | Checkpoint]
    """What it cannot work without and does not ship."""

    def question(self, prompt: Prompt) -> str:
        """What is asked of an image of `prompt`; equal questions get equal answers.

        Raises GapbenchError for a prompt that this judge cannot judge; it is asked of all prompts
        before anything is drawn.
        """

    def judge(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Answer]:
        """Answer for each (image, prompt), in order. Images are RGB. Loads what it needs."""

    def release(self) -> None:
        """Free weights and device memory; nothing where there are none."""


@runtime_checkable
class DigestJudge(Protocol):
    """A judge that knows images by the sha256 of their files, and is asked by them."""

    def judge_digests(self, digests: Sequence[str], prompts: Sequence[Prompt]) -> list[Answer]:
        """Answer for each (sha256 of the image's file, prompt), in order."""


@runtime_checkable
class PictureJudge(Protocol):
    """A judge that can be tried on a picture whose truth is known."""

    def check_picture(self) -> str | None:
        """What is wrong with its answers about a picture of our own, or None."""


@runtime_checkable
class PaidJudge(Protocol):
    """A judge whose every answer is a request to somebody's server."""

    def estimate_cost(self, images: int) -> str:
        """What so many answers would take, in words, without asking for one."""
