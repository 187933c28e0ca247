"""CLIPScore: T2I-CompBench++'s score of non-spatial relations (task-scoring.md 2.6).

The plain cosine of image and prompt under OpenAI's CLIP ViT-B/32: not times 2.5, not clipped,
in float32 (the official script computes in float16 on CUDA, which moves it by about 1e-3). A
prompt over 77 tokens is cut; the official script stops there with an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image

from gapbench.fetch import hub
from gapbench.files import first_line
from gapbench.judges.weights import WeightsJudge, batches, cosines, crop, tensor
from gapbench.models.torchvision_shim import ensure
from gapbench.types import COSINE, Answer, GapbenchError, Prompt

CHECKPOINT: Final = hub.Checkpoint(
    repo="timm/vit_base_patch32_clip_224.openai",
    revision="a6f597a30f7b82c51704746581f9a4e41421e878",
    license="MIT",
    files={
        "open_clip_config.json": None,
        "open_clip_model.safetensors": (
            "e6d1bd7789aa45192b3bf90570a789b478bae1b74ebcce7eddd908e83a2b7c31"
        ),
    },
    bytes=605_000_000,
)
IMAGES: Final = 64
"""Images encoded at once."""


class ClipJudge(WeightsJudge):
    """score: the cosine, -1..1 and near 0.3 in practice; no verdict, for it has no threshold.

    An own folder holds open_clip_config.json and open_clip_model.safetensors.
    """

    base = "clip"
    scale = COSINE
    arithmetic = "clip-1"
    checkpoints = (CHECKPOINT,)

    def question(self, prompt: Prompt) -> str:
        return prompt.text

    def judge(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Answer]:
        return [self.scored(v) for v in self.similarities(images, [p.text for p in prompts])]

    @torch.no_grad()
    def similarities(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[float]:
        """The cosine of each image and its text, in order."""
        model, tokenizer, size = self.loaded
        values: list[float] = []
        for part in batches(list(zip(images, texts, strict=True)), IMAGES):
            pixels = torch.stack([tensor(crop(image, size)) for image, _ in part])
            seen = model.encode_image(pixels.to(self.device))
            read = model.encode_text(tokenizer([text for _, text in part]).to(self.device))
            values += cosines(seen, read).tolist()
        return values

    @cached_property
    def loaded(self) -> tuple[Any, Any, int]:
        return open_clip_model(self.own or hub.fetch(CHECKPOINT), self.own is None, self.device)


def open_clip_model(folder: Path, openai: bool, device: str) -> tuple[Any, Any, int]:
    """An open_clip model, its tokenizer and the pixels of its images' sides; OpenAI's checkpoints
    need the activation that they were trained with.

    Raises GapbenchError where the folder does not hold its tensors.
    """
    ensure()  # open_clip imports torchvision
    import open_clip

    try:
        model = open_clip.create_model(
            f"local-dir:{folder}", precision="fp32", force_quick_gelu=openai
        )
        tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    except Exception as error:  # open_clip and safetensors raise many kinds
        raise GapbenchError(f"open_clip: cannot load {folder}: {first_line(error)}") from error
    size = model.visual.image_size
    return model.to(device).eval(), tokenizer, size if isinstance(size, int) else size[0]
