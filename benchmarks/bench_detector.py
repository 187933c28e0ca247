"""Images a CPU second of GenEval's judge at real geometry on the CPU, one thread, random weights.

    python benchmarks/bench_detector.py [IMAGES]

1024 x 1024 images, hence 800 x 800 in the detector (Swin-S, 100 queries), and ViT-L/14 crops of
224 x 224. The reference is batch 1, the official script's way, of the same code. Objects are
forced, so that masks are enlarged as for a real image. IMAGES are 8 unless given.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gapbench.judges import geneval_rule as rule
from gapbench.judges.detector import swin_small
from gapbench.models.torchvision_shim import ensure
from gapbench.tasks.prompts.geneval import CLASSES

SIDE, OBJECTS, BATCHES = 1024, 5, (1, 2, 4)


def loaded(device: str, tiny: bool) -> tuple[Any, Any, Any, Any]:
    """What DetectorJudge loads, with random weights; `tiny` for trying a program."""
    ensure()
    open_clip, transformers = import_module("open_clip"), import_module("transformers")
    config = swin_small()
    sizes: dict[str, Any] = {"embed_dim": 768}
    sizes["vision_cfg"] = {"image_size": 224, "layers": 24, "width": 1024, "patch_size": 14}
    sizes["text_cfg"] = {"vocab_size": 49408, "width": 768, "heads": 12, "layers": 12}
    if tiny:
        config.backbone_config.update({"embed_dim": 24, "depths": [1, 1, 1, 1]})
        config.update({"encoder_layers": 1, "decoder_layers": 2, "encoder_feedforward_dim": 64})
        sizes["vision_cfg"]["layers"] = sizes["text_cfg"]["layers"] = 1
    detector = transformers.Mask2FormerForUniversalSegmentation(config).eval().to(device)
    clip = open_clip.CLIP(**sizes, quick_gelu=True).eval().to(device)
    transform = open_clip.image_transform(224, is_train=False)
    return detector, clip, transform, open_clip.get_tokenizer("ViT-L-14-quickgelu")


def rate(work: Callable[[int], None], images: int) -> float:
    """Images a CPU second of `work` on that many; other processes cannot slow that clock."""
    start = time.process_time()
    work(images)
    return images / (time.process_time() - start)


@torch.inference_mode()
def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = int(sys.argv[1]) if len(sys.argv) > 1 else 8
    detector, clip, *_ = loaded("cpu", tiny=False)
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    logits = torch.zeros(100, len(CLASSES) + 1)
    logits[:, -1] = 9
    logits[:OBJECTS] = torch.eye(len(CLASSES) + 1)[:OBJECTS] * 9
    masks = torch.randn(100, 200, 200)

    def network(batch: int) -> Callable[[int], None]:
        prepared = rule.prepare(pixels)

        def work(count: int) -> None:
            for _ in range(count // batch):
                detector(pixel_values=prepared.expand(batch, -1, -1, -1).contiguous())

        return work

    def colors(batch: int) -> Callable[[int], None]:
        crops = torch.randn(batch, 3, 224, 224)

        def work(count: int) -> None:
            for _ in range(count // batch):
                clip.encode_image(crops)

        return work

    def around(count: int) -> None:
        for _ in range(count):
            rule.prepare(pixels)
            rule.instances(logits, masks, (SIDE, SIDE))

    def around_all_masks(count: int) -> None:
        for _ in range(count):
            rule.prepare(pixels)
            enlarged(masks, pixels)

    print(f"machine   {platform.machine()}, one thread, torch {torch.__version__}, float32")
    print(f"images    {images} of {SIDE} x {SIDE} pixels, {OBJECTS} objects each")
    for name, make in (("detector", network), ("crops", colors)):
        make(1)(1)  # the first pass allocates
        figures = {batch: rate(make(batch), images) for batch in BATCHES if images % batch == 0}
        best = max(figures, key=lambda batch: figures[batch])
        listed = ", ".join(f"batch {b}: {f:.3f}/s" for b, f in figures.items())
        ratio = figures[best] / figures[1]
        print(f"{name:9} {listed}; best (batch {best}) / batch 1 = {ratio:.2f}")
    ours, upstream = rate(around, images), rate(around_all_masks, images)
    print(
        f"around    pixels and masks: {ours:.2f}/s; all 100 masks enlarged, the official way: "
        f"{upstream:.2f}/s; ratio {ours / upstream:.1f}"
    )


def enlarged(masks: Tensor, pixels: NDArray[np.uint8]) -> Tensor:
    """All masks at the image's size with their scores' means, as mmdet computes them."""
    size = pixels.shape[:2]
    large = torch.nn.functional.interpolate(masks[None], (800, 800), mode="bilinear")
    large = torch.nn.functional.interpolate(large, size, mode="bilinear")[0]
    inside = (large > 0).float()
    sums = (large.sigmoid() * inside).flatten(1).sum(1)
    return sums / (inside.flatten(1).sum(1) + 1e-6)


if __name__ == "__main__":
    main()
