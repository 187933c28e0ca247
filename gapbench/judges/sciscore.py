"""SciScore: Science-T2I's score of reality, version 1 of the benchmark (task-scoring.md 3.2).

A CLIP ViT-H/14 fine-tuned on which of two images obeys a law of nature. Every image is scored
against the IMPLICIT prompt, whichever prompt it was drawn from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Final

import torch
from PIL import Image

from gapbench.fetch import hub
from gapbench.judges.weights import CLIP_FILES, WeightsJudge, batches, cosines, crop, tensor
from gapbench.types import Answer, Prompt, Scale

CHECKPOINT: Final = hub.Checkpoint(
    repo="Jialuo21/SciScore",
    revision="main",  # no commit of it is on record
    license="Apache-2.0",
    files=dict.fromkeys(CLIP_FILES),
    bytes=3_945_000_000,  # computed: ViT-H/14 in float32
)
TOKENS: Final = 77
IMAGES: Final = 32
"""Images encoded at once."""


class SciScoreJudge(WeightsJudge):
    """score: exp(logit_scale) times the cosine, about 15..40; no verdict, for no threshold."""

    base = "sciscore"
    scale = Scale("SciScore", -100.0, 100.0)  # CLIP's logit_scale is at most ln 100
    arithmetic = "sciscore-1"
    checkpoints = (CHECKPOINT,)

    def question(self, prompt: Prompt) -> str:
        """The requirement's `implicit_prompt`, or the prompt where it has none."""
        return str(prompt.requirement.get("implicit_prompt", prompt.text))

    @torch.no_grad()
    def judge(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Answer]:
        model, tokenizer = self.loaded
        size, factor = model.config.vision_config.image_size, model.logit_scale.exp()
        answers: list[Answer] = []
        for part in batches(list(zip(images, prompts, strict=True)), IMAGES):
            pixels = torch.stack([tensor(crop(image, size, math.floor)) for image, _ in part])
            read = tokenizer([self.question(prompt) for _, prompt in part]).to(self.device)
            seen = model.get_image_features(pixel_values=pixels.to(self.device)).pooler_output
            text = model.get_text_features(**read).pooler_output
            answers += [self.scored(value) for value in (factor * cosines(seen, text)).tolist()]
        return answers

    @cached_property
    def loaded(self) -> tuple[Any, Any]:
        folder = self.own or hub.fetch(CHECKPOINT)
        return self._model("CLIPModel", folder), self._clip_tokenizer(folder, TOKENS)
