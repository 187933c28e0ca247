"""The spatial and counting rules of T2I-CompBench++ over an open-vocabulary detector.

NOT UniDet, and not comparable with its numbers (task-scoring.md 4): this detector is asked by
name, so that there is no vocabulary ceiling, and its confidences, a quarter of the score each, are
on another scale; the crops of the depth map are not transposed. Hence the name `spatial-native`.

The detector is OWLv2: each name is a query with a sigmoid of its own, as UniDet's labels have, so
that what is found for one name does not depend on which others are asked, nor has a box's label
to be read back from a sentence as with Grounding DINO.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from gapbench.fetch import hub
from gapbench.judges import spatial_rules as rules
from gapbench.judges.parses.parses import FINGERPRINT, OBJECTS, parse
from gapbench.judges.weights import CLIP_FILES, WeightsJudge, batches, tensor
from gapbench.types import Answer, GapbenchError, Prompt

DETECTOR: Final = hub.Checkpoint(
    repo="google/owlv2-base-patch16-ensemble",
    revision="cfd3195ba4ea9592eec887ded089f4c08eff231d",
    license="Apache-2.0",
    files=dict.fromkeys(CLIP_FILES),
    bytes=621_600_000,
)
DEPTH: Final = hub.Checkpoint(
    repo="Intel/dpt-hybrid-midas",
    revision="530c4509f775419d716ca24ad1e7c6095e8ac2b4",
    license="Apache-2.0",
    files={"config.json": None, "pytorch_model.bin": None},
    bytes=490_000_000,
)
FOUND: Final = 0.1
"""Confidence over which a detection counts, as in UniDet's head."""
OVERLAP: Final = 0.5
"""IoU over which the weaker of two boxes of one name is dropped, as detectron2 does."""
MOST: Final = 300
TOKENS: Final = 16
IMAGES: Final = 8
"""Images looked at at once."""
DEPTH_SIZE: Final = 480
HALF: Final = (0.5, 0.5, 0.5)

Rule = Literal["2d", "3d", "numeracy"]


@dataclass(frozen=True, slots=True)
class Want:
    """What is looked for: names with their numbers, and how the first stands to the second."""

    rule: Rule
    things: tuple[tuple[str, int], ...]
    relation: str | None = None


class SpatialJudge(WeightsJudge):
    """score: 0..1 by the rule of the prompt's relation or numbers; verdict 1 from 0.5 on.

    A requirement `{"include": [{"class", "count"}, ...]}` without a relation is counted. An own
    folder holds an OWLv2 checkpoint in `detector` and a DPT checkpoint in `depth`.
    """

    base = "spatial-native"
    threshold = 0.5
    arithmetic = f"spatial-native-1 {FINGERPRINT}"
    checkpoints = (DETECTOR, DEPTH)

    def question(self, prompt: Prompt) -> str:
        want = wanted(prompt)
        if want is None:
            raise GapbenchError(
                f"judge {self.name} cannot judge prompt {prompt.id} of task {prompt.task}: it "
                "names no relation between two things and no numbers of things"
            )
        return json.dumps(asdict(want))

    def judge(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Answer]:
        return self.answers(images, [wanted(prompt) for prompt in prompts])

    def answers(self, images: Sequence[Image.Image], wants: Sequence[Want | None]) -> list[Answer]:
        """What each image is worth; abstains where nothing is wanted."""
        answers: list[Answer] = []
        pairs = list(zip(images, wants, strict=True))
        for part in batches(pairs, IMAGES):
            asked = [[name for name, _ in want.things] if want else [] for _, want in part]
            detected = self.detect([image for image, _ in part], asked)
            for (image, want), detections in zip(part, detected, strict=True):
                if want is None:
                    answers.append(
                        Answer(verdict=None, reason="the prompt has no two things to look for")
                    )
                    continue
                seen = ", ".join(f"{d.label} {d.score:.2f}" for d in detections) or "nothing found"
                answers.append(self.scored(self._score(image, want, detections), seen))
        return answers

    def _score(self, image: Image.Image, want: Want, detections: list[rules.Detection]) -> float:
        if want.rule == "numeracy":
            return rules.score_numeracy(detections, want.things)
        first, second = want.things[0][0], want.things[-1][0]
        if want.rule == "2d":
            return rules.score_2d(detections, first, second, want.relation)
        return rules.score_3d(detections, first, second, want.relation, self.depth(image))

    @torch.no_grad()
    def detect(
        self, images: Sequence[Image.Image], asked: Sequence[Sequence[str]]
    ) -> list[list[rules.Detection]]:
        """Detections of the asked names in each image, best first, on the rules' scale."""
        names = sorted({name for some in asked for name in some})
        if not names:
            return [[] for _ in images]
        model, tokenizer = self.loaded
        size = model.config.vision_config.image_size
        pixels = torch.stack([tensor(_padded(image, size)) for image in images]).to(self.device)
        text = tokenizer([f"a photo of a {name}" for name in names]).to(self.device)
        queries = model.owlv2.get_text_features(**text).pooler_output
        grid, _ = model.image_embedder(pixels)
        features = grid.flatten(1, 2)
        logits, _ = model.class_predictor(features, queries.expand(len(images), -1, -1))
        boxes = model.box_predictor(features, grid)
        detected = []
        for image, some, chances, centred in zip(
            images, asked, logits.sigmoid().float().cpu(), boxes.float().cpu(), strict=True
        ):
            # Boxes are in parts of the padded square.
            longest = max(image.size) * rules.rule_scale(*image.size)
            corners = torch.cat(
                [centred[:, :2] - centred[:, 2:] / 2, centred[:, :2] + centred[:, 2:] / 2], -1
            )
            own = [
                detection
                for name in dict.fromkeys(some)
                for detection in distinct(name, corners * longest, chances[:, names.index(name)])
            ]
            detected.append(sorted(own, key=lambda d: -d.score)[:MOST])
        return detected

    @torch.no_grad()
    def depth(self, image: Image.Image) -> NDArray[np.float32]:
        """(H, W) depth on the rules' scale, 0 the farthest and 1 the nearest of the image."""
        square = image.resize((DEPTH_SIZE, DEPTH_SIZE), Image.Resampling.BILINEAR)
        pixels = tensor(square, HALF, HALF)[None].to(self.device)
        near = self._depth_model(pixel_values=pixels).predicted_depth[0]
        near = (near - near.min()) / (near.max() - near.min()).clamp_min(1e-12)
        factor = rules.rule_scale(*image.size)
        size = [max(1, round(side * factor)) for side in (image.height, image.width)]
        resized = functional.interpolate(
            near[None, None].float(), size, mode="bilinear", align_corners=True
        )
        array: NDArray[np.float32] = resized[0, 0].cpu().numpy()
        return array

    @cached_property
    def loaded(self) -> tuple[Any, Any]:
        folder = self.own / "detector" if self.own else hub.fetch(DETECTOR)
        model = self._model("Owlv2ForObjectDetection", folder)
        return model, self._clip_tokenizer(folder, TOKENS)

    @cached_property
    def _depth_model(self) -> Any:
        folder = self.own / "depth" if self.own else hub.fetch(DEPTH)
        return self._model("DPTForDepthEstimation", folder)

    def release(self) -> None:
        vars(self).pop("_depth_model", None)
        super().release()


def wanted(prompt: Prompt) -> Want | None:
    """What a prompt asks for: counted things, a relation in depth, or one in the plane."""
    text = prompt.text
    include = prompt.requirement.get("include", ())
    if include and not all({"class", "count"} <= set(item) for item in include):
        return None  # a requirement of another task's
    if include and not any("position" in item for item in include):
        return Want("numeracy", tuple((item["class"], item["count"]) for item in include))
    in_depth, in_plane = rules.relation_3d(text), rules.relation_2d(text)
    if in_depth is None and in_plane is None:
        things = tuple(rules.counted(text, OBJECTS()))
        return Want("numeracy", things) if things else None
    nouns = parse(text, "nouns").nouns
    if not nouns or nouns[0] == nouns[-1]:
        return None
    things = ((nouns[0], 1), (nouns[-1], 1))
    return Want("3d", things, in_depth) if in_depth else Want("2d", things, in_plane)


def _padded(image: Image.Image, size: int) -> Image.Image:
    """The image at the top left of a grey square, at `size` x `size`."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), (128, 128, 128))
    square.paste(image.convert("RGB"))
    return square.resize((size, size), Image.Resampling.BILINEAR)


def distinct(name: str, boxes: Tensor, scores: Tensor) -> list[rules.Detection]:
    """Boxes (n, 4) with scores (n,) over FOUND, best first, without those a better one overlaps."""
    kept: list[rules.Detection] = []
    for i in scores.argsort(descending=True, stable=True).tolist():
        score = float(scores[i])
        if score <= FOUND or len(kept) == MOST:
            break
        left, top, right, bottom = boxes[i].tolist()
        box = (left, top, right, bottom)
        if all(rules.iou(box, other.box) <= OVERLAP for other in kept):
            kept.append(rules.Detection(name, box, score))
    return kept
