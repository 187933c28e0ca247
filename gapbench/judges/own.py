"""The model as judge of its own images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from PIL import Image

from gapbench.fetch.hub import Checkpoint
from gapbench.fetch.sources import Source
from gapbench.models.base import AnsweringModel, Model, Unfinished
from gapbench.types import Answer, Prompt
from gapbench.verdict import ANSWERS, RULES, parse, weigh

Mode = Literal["logits", "text"]
NAMES: Final[dict[Mode, str]] = {"logits": "self", "text": "self-text"}
NEEDS: Final[dict[Mode, str]] = {"logits": "judge_logits", "text": "judge_text"}


class OwnJudge:
    """Asks a model the verdict question: by the probabilities of the two answers, or in words."""

    def __init__(self, model: Model, mode: Mode) -> None:
        self.model, self.mode = model, mode
        self.name = NAMES[mode]
        # A model that answers itself may answer in words where it tells no probabilities.
        rules = RULES if mode == "text" or isinstance(model, AnsweringModel) else 1
        self.fingerprint = f"{self.name}-{rules}-{model.fingerprint}"
        self.needs: Sequence[Source | Checkpoint] = ()

    def question(self, prompt: Prompt) -> str:
        return prompt.question

    def judge(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Answer]:
        questions = [prompt.question for prompt in prompts]
        if isinstance(self.model, AnsweringModel):
            return self.model.answers(images, questions, words=self.mode == "text")
        try:
            if self.mode == "text":
                return [parse(text) for text in self.model.reply(images, questions)]
            found = self.model.judge(images, questions, ANSWERS)
            return [weigh(float(no), float(yes)) for no, yes in found]
        except Unfinished as stop:
            read = parse if self.mode == "text" else lambda odds: weigh(*odds)
            done = {place: read(said) for place, said in stop.done.items()}
            raise Unfinished(str(stop), done) from stop

    def release(self) -> None:
        self.model.release()
