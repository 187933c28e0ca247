"""The 3-in-1 score of T2I-CompBench++'s complex prompts (task-scoring.md 2.7).

The mean, with equal weights, of the parts that apply to a prompt: attribute (BLIP-VQA), spatial
(the 2D rule over the two objects around a preposition) and action (the CLIP cosine of the prompt
without its adjectives). The spatial part is our detector's, not UniDet's, hence `complex-native`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Final, Literal

from PIL import Image

from gapbench.judges.clip import ClipJudge
from gapbench.judges.parses.parses import Kind, Parse, parse
from gapbench.judges.spatial import SpatialJudge, Want
from gapbench.judges.spatial_rules import relation_2d
from gapbench.judges.vqa import VqaJudge, questions
from gapbench.judges.weights import WeightsJudge
from gapbench.types import Answer, Prompt

Part = Literal["attribute", "spatial", "action"]
PARTS: Final[dict[Kind, tuple[Part, ...]]] = {
    "spatial": ("attribute", "spatial"),
    "action": ("attribute", "action"),
    "spatialaction": ("attribute", "spatial", "action"),
}


class ComplexJudge(WeightsJudge):
    """score: the mean of the parts, 0..1 in practice; verdict 1 from 0.5 on.

    Abstains where a part does. An own folder holds the parts' folders `vqa`, `spatial` and `clip`.
    """

    base = "complex-native"
    threshold = 0.5
    arithmetic = "complex-native-1"
    checkpoints = (*VqaJudge.checkpoints, *SpatialJudge.checkpoints, *ClipJudge.checkpoints)

    @cached_property
    def parts(self) -> tuple[VqaJudge, SpatialJudge, ClipJudge]:
        def own(part: str) -> str | None:
            return None if self.own is None else str(self.own / part)

        return (
            VqaJudge(own("vqa"), self.device),
            SpatialJudge(own("spatial"), self.device),
            ClipJudge(own("clip"), self.device),
        )

    def _weights(self) -> list[str]:
        return [part.fingerprint for part in self.parts]

    def question(self, prompt: Prompt) -> str:
        parsed = _parse(prompt)
        asked = {
            "attribute": questions(parsed.chunks),
            "spatial": [relation_2d(prompt.text), *parsed.objects],
            "action": parsed.without_adjectives,
        }
        return json.dumps({part: asked[part] for part in PARTS[parsed.kind]}, ensure_ascii=False)

    def judge(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Answer]:
        vqa, spatial, clip = self.parts
        parses = [_parse(prompt) for prompt in prompts]
        parts: list[dict[Part, Answer]] = [
            {"attribute": answer} for answer in vqa.judge(images, prompts)
        ]

        def rows(part: Part) -> list[int]:
            return [i for i, parsed in enumerate(parses) if part in PARTS[parsed.kind]]

        at = rows("spatial")
        wants = [_want(prompts[i], parses[i]) for i in at]
        for i, answer in zip(at, spatial.answers([images[i] for i in at], wants), strict=True):
            parts[i]["spatial"] = answer
        at = rows("action")
        texts = [parses[i].without_adjectives for i in at]
        cosines = clip.similarities([images[i] for i in at], texts) if at else []
        for i, cosine in zip(at, cosines, strict=True):
            parts[i]["action"] = Answer(verdict=None, score=cosine)
        return [self.combine(parsed.kind, some) for parsed, some in zip(parses, parts, strict=True)]

    def combine(self, kind: Kind, parts: Mapping[Part, Answer]) -> Answer:
        """The mean of the kind's parts; None, with the reason, where one has no score."""
        scores = []
        for part in PARTS[kind]:
            answer = parts[part]
            if answer.score is None:
                return Answer(verdict=None, reason=f"{part}: {answer.reason}")
            scores.append(answer.score)
        said = "; ".join(f"{part} {s:.4f}" for part, s in zip(PARTS[kind], scores, strict=True))
        return self.scored(sum(scores) / len(scores), said)

    def release(self) -> None:
        for part in self.parts:
            part.release()


def _parse(prompt: Prompt) -> Parse:
    return parse(prompt.text, "chunks", "kept", "objects")


def _want(prompt: Prompt, parsed: Parse) -> Want | None:
    if len(parsed.objects) != 2:
        return None
    first, second = parsed.objects
    return Want("2d", ((first, 1), (second, 1)), relation_2d(prompt.text))
