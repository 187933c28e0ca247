"""janus-mini with verdicts that are not its own, as models that gapbench loads by MODULE:CLASS."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gapbench import load_judge, load_task
from gapbench.models.janus.adapter import JanusModel
from gapbench.models.registry import MODELS
from gapbench.types import Prompt

SHARE = "SMALL_WORLD_SHARE"
"""Environment: of what would be accepted, the share that is."""


class Planted(JanusModel, ABC):
    """janus-mini; what it draws is its own."""

    def __init__(self, device: str = "auto", dtype: str = "auto", folder: str | None = None):
        home = folder or MODELS["janus-mini"].folder
        super().__init__(type(self).__name__.lower(), Path(str(home)), None, device, dtype)
        self.share = float(os.environ.get(SHARE, "1"))
        self.fingerprint += f"{type(self).__name__}{self.share:.4f}"

    def judge(
        self, images: Sequence[Image.Image], questions: Sequence[str], answers: Sequence[str]
    ) -> NDArray[np.float32]:
        """As every adapter's, (images, 2)."""
        lots = np.array([_lot(image, q) for image, q in zip(images, questions, strict=True)])
        accepted = self.would(images, questions, answers) & (lots < self.share)
        # The lots order what is accepted, so that best:K takes K of it at random.
        yes = np.where(accepted, 0.6 + 0.39 * lots / max(self.share, 1e-9), 0.01 + 0.39 * lots)
        return np.log(np.stack([1 - yes, yes], 1)).astype(np.float32)

    @abstractmethod
    def would(
        self, images: Sequence[Image.Image], questions: Sequence[str], answers: Sequence[str]
    ) -> NDArray[np.bool_]:
        """Which images would be accepted."""


class Inverted(Planted):
    """Says no where janus-mini says yes."""

    def would(
        self, images: Sequence[Image.Image], questions: Sequence[str], answers: Sequence[str]
    ) -> NDArray[np.bool_]:
        no, yes = JanusModel.judge(self, images, questions, answers).T
        return np.asarray(no >= yes)


class Lot(Planted):
    """Accepts a share of all images, by lot; the same image and question have the same lot."""

    def would(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[str],  # noqa: ARG002
        answers: Sequence[str],  # noqa: ARG002
    ) -> NDArray[np.bool_]:
        return np.ones(len(images), bool)


class Outside(Planted):
    """Accepts a share of what the judge pixel accepts."""

    def would(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[str],
        answers: Sequence[str],  # noqa: ARG002
    ) -> NDArray[np.bool_]:
        asked = [_prompts()[question] for question in questions]
        said = load_judge("pixel").judge(list(images), asked)
        return np.array([answer.verdict == 1 for answer in said])


@cache
def _prompts() -> dict[str, Prompt]:
    splits = ("shapes", "shapes:validation", "shapes:train")
    return {prompt.question: prompt for name in splits for prompt in load_task(name).prompts()}


def _lot(image: Image.Image, question: str) -> float:
    digest = hashlib.sha256(image.tobytes() + question.encode()).digest()
    return int.from_bytes(digest[:4]) / 2**32
