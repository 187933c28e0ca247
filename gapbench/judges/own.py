"""The model as judge of its own images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from PIL import Image

from gapbench.judges.base import Judge
from gapbench.models.base import Model
from gapbench.types import Answer, Prompt
from gapbench.verdict import RULES

Mode = Literal["logits", "text"]
NAMES: Final[dict[Mode, str]] = {"logits": "self", "text": "self-text"}
MODES: Final = {name: mode for mode, name in NAMES.items()}
NEEDS: Final[dict[Mode, str]] = {"logits": "judge_logits", "text": "judge_text"}


def usual_mode(model: Model) -> Mode:
    """How a model's own verdicts are made where nobody says: text only where it gives no logits."""
    able = {"judge_logits", "judge_text"} & set(model.capabilities)
    return "text" if able == {"judge_text"} else "logits"


class OwnJudge(Judge):
    """Asks a model the verdict question: by the probabilities of the two answers, or in words."""

    def __init__(self, model: Model, mode: Mode) -> None:
        self.model, self.mode = model, mode
        self.batches, self.gpus = model.batches, model.gpus
        self.name = NAMES[mode]
        rules = RULES if mode == "text" or model.reads_words else 1
        self.fingerprint = f"{self.name}-{rules}-{model.fingerprint}"

    def judge(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Answer]:
        questions = [prompt.question for prompt in prompts]
        return self.model.answers(images, questions, words=self.mode == "text")

    def release(self) -> None:
        self.model.release()
