"""Images a second of the scorers with checkpoints, at real sizes with random weights.

    python benchmarks/bench_scorers.py [--images 4] [--batches 2,4] [--device cpu] [vqa clip ...]

The reference is the official scripts' way of looking at images. For vqa an image is encoded anew
for each of eight questions, of which two are asked here (the other six are asked empty and then
ignored); it is timed one image at a time, where the script takes 32. For clip and sciscore it is
one pair at a time, as in the scripts. Ours encodes each image once and takes images together.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image

from gapbench.judges import clip, sciscore, vqa
from gapbench.models.torchvision_shim import ensure
from gapbench.types import Prompt

Scorer = Callable[[Sequence[Image.Image]], Any]


class Words:
    """Stands for a tokenizer: six tokens a text, as a short noun chunk has."""

    def __init__(self, start: int, end: int, length: int | None = None) -> None:
        self.start, self.end, self.length = start, end, length

    def __call__(self, text: str | list[str], **_: Any) -> Any:
        from transformers import BatchEncoding

        ids = [self.start, 320, 736, 1929, 1029, self.end]
        if isinstance(text, str):
            return BatchEncoding({"input_ids": ids})
        ids += [self.end] * ((self.length or len(ids)) - len(ids))
        made = torch.tensor([ids] * len(text))
        return BatchEncoding({"input_ids": made, "attention_mask": torch.ones_like(made)})


def blip(device: str) -> tuple[Scorer, Scorer, str]:
    from transformers import BlipConfig, BlipForQuestionAnswering

    config = BlipConfig(vision_config={"image_size": 384}, text_config={"num_attention_heads": 12})
    judge = vqa.VqaJudge(device=device)
    model = BlipForQuestionAnswering(config).to(device).eval()
    judge.loaded = model, Words(101, 102)
    asked = ["a red dog?", "a blue cup?"]

    def official(images: Sequence[Image.Image]) -> None:
        for image in images:
            for text in asked + [""] * (vqa.CHUNKS - len(asked)):
                judge.probabilities([image], [[text]])

    def ours(images: Sequence[Image.Image]) -> None:
        judge.probabilities(images, [asked] * len(images))

    return official, ours, "IMAGES"


def pairs(judge: Any) -> tuple[Scorer, Scorer, str]:
    prompt = Prompt(
        id="1",
        task="t",
        category="c",
        tier="easy",
        text="two dogs under a table",
        question="",
        requirement={},
    )

    def ours(images: Sequence[Image.Image]) -> None:
        judge.judge(images, [prompt] * len(images))

    def official(images: Sequence[Image.Image]) -> None:
        for image in images:
            ours([image])

    return official, ours, "IMAGES"


def open_clip_b32(device: str) -> tuple[Scorer, Scorer, str]:
    import open_clip

    judge = clip.ClipJudge(device=device)
    model = open_clip.create_model("ViT-B-32-quickgelu").to(device).eval()
    judge.loaded = model, open_clip.get_tokenizer("ViT-B-32"), 224
    return pairs(judge)


def clip_h14(device: str) -> tuple[Scorer, Scorer, str]:
    from transformers import CLIPConfig, CLIPModel

    config = CLIPConfig(
        text_config={
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "hidden_act": "gelu",
            "bos_token_id": 49406,
            "eos_token_id": 49407,
        },
        vision_config={
            "hidden_size": 1280,
            "intermediate_size": 5120,
            "num_attention_heads": 16,
            "num_hidden_layers": 32,
            "patch_size": 14,
            "hidden_act": "gelu",
        },
        projection_dim=1024,
    )
    judge = sciscore.SciScoreJudge(device=device)
    model = CLIPModel(config).to(device).eval()
    judge.loaded = model, Words(49406, 49407, 77)
    return pairs(judge)


SCORERS = {"vqa": (vqa, blip), "clip": (clip, open_clip_b32), "sciscore": (sciscore, clip_h14)}


def rate(scorer: Scorer, images: Sequence[Image.Image]) -> float:
    """Images a second of CPU or GPU time as the clock on the wall has it, warm."""
    scorer(images[:1])
    start = time.perf_counter()
    scorer(images)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return len(images) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scorers", nargs="*", default=list(SCORERS))
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--batches", default="2,4")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    ensure()
    rng = np.random.default_rng(0)
    images = [
        Image.fromarray(rng.integers(0, 256, (512, 512, 3), dtype=np.uint8))
        for _ in range(given.images)
    ]
    print(f"{given.images} images of 512 x 512, {given.device}, {given.threads} threads, float32")
    for name in given.scorers:
        module, make = SCORERS[name]
        official, ours, size = make(given.device)
        reference = rate(official, images)
        print(f"{name}: the official way {reference:.3f} images/s", flush=True)
        for batch in [1, *map(int, given.batches.split(","))]:
            with mock.patch.object(module, size, batch):
                found = rate(ours, images)
            print(f"{name}: batch {batch} {found:.3f} images/s, {found / reference:.2f} x")


if __name__ == "__main__":
    main()
