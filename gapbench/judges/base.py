"""What a judge is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from PIL import Image

from gapbench.types import Answer, Prompt


class Judge(Protocol):
    """Decides whether images show their prompts.

    A judge never turns a failure of its own into a 0: what it cannot answer is an `Answer` with
    verdict None and a reason.
    """

    name: str
    fingerprint: str
    """Changes whenever an answer may change (rules, thresholds, weights)."""

    def question(self, prompt: Prompt) -> str:
        """What is asked of an image of `prompt`; equal questions get equal answers.

        Raises GapbenchError for a prompt that this judge cannot judge; it is asked of all prompts
        before anything is drawn.
        """

    def judge(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Answer]:
        """Answer for each (image, prompt), in order. Images are RGB."""
