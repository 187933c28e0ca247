"""Drawing and own verdicts of the Janus adapter against transformers' own ways, on the same random
weights, device and dtype.

    python benchmarks/bench_generate.py [--size tiny|mini|small|long|1b|7b] [--batch 1 16 64]
        [--rounds 2] [--threads 1]

References, measured in the same run and in turns: for drawing, transformers'
`generate(generation_mode="image")` one prompt at a time, which is upstream's loop, and at the same
batch; for verdicts, generating a reply of REPLY tokens, as one in the asked form takes, one at a
time. On a CPU, `--threads` are for all ways; take a machine with nothing else to do.

`1b` and `7b` are Janus-Pro's published geometry, vision tower and VQ included. `small` is a
hundredth of the parameters with width and image tokens scaled alike, so that an image's keys and
values weigh against the weights as in `1b`; `long` has all 576 tokens on `small`'s weights; `mini`
is janus-mini's. Guidance is on, as Janus-Pro needs it.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image

from gapbench import load_task
from gapbench.models import torchvision_shim
from gapbench.models.autoregressive.sampling import Recipe
from gapbench.models.janus.adapter import JanusModel
from gapbench.verdict import ANSWERS

MINI = Path(__file__).parents[1] / "gapbench/models/bundled/janus-mini"
LAYERS = {
    "tiny": (2, 64, 2, 128),
    "mini": (5, 192, 6, 512),
    "small": (6, 384, 6, 1024),
    "long": (6, 384, 6, 1024),
    "1b": (24, 2048, 16, 5632),
    "7b": (30, 4096, 32, 11008),
}
"""Layers, width, heads and width of the feed-forward part of the language model."""
SIZES = {
    "tiny": (64, 4),
    "mini": (256, 6),
    "small": (4096, 10),
    "long": (4096, 24),
    "1b": (16384, 24),
    "7b": (16384, 24),
}
"""Image codes, and an image's side in tokens."""
EMBED = 8
PUBLISHED = ("1b", "7b")
"""Sizes with Janus-Pro's vision tower, VQ and vocabulary; the others have janus-mini's."""
TOWER = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "mlp_ratio": 4.0}
"""SigLIP-L."""
VQ = {
    "base_channels": 128,
    "channel_multiplier": [1, 1, 2, 2, 4],
    "num_res_blocks": 2,
    "latent_channels": 256,
}
VOCABULARY = 102_400
BATCHES = (1, 16, 64)
REPLY = 8


def patch(size: str) -> int:
    """Pixels of an image's side for each token."""
    return 16 if size in PUBLISHED else 4


def network(size: str, device: str, dtype: str) -> Any:
    """A random Janus, made where it stays: 2 billion parameters take seconds on a GPU."""
    torchvision_shim.ensure()
    from transformers import GenerationConfig, JanusConfig, JanusForConditionalGeneration

    (layers, width, heads, inner), (codes, side) = LAYERS[size], SIZES[size]
    config = json.loads((MINI / "config.json").read_text())
    config["dtype"] = dtype
    config["text_config"] |= {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": width // heads,
        "intermediate_size": inner,
        "max_position_embeddings": 2048,
    }
    config["vision_config"] |= {
        "image_size": patch(size) * side,
        "patch_size": patch(size),
        "projection_dim": width,
        "num_image_tokens": side**2,
    }
    config["vq_config"] |= {
        "num_patches": side,
        "projection_dim": width,
        "image_token_embed_dim": width,
        "num_embeddings": codes,
    }
    if size in PUBLISHED:
        config["text_config"]["vocab_size"] = VOCABULARY
        config["vision_config"] |= TOWER
        config["vq_config"] |= VQ
    with made_there(device, dtype):
        made = JanusForConditionalGeneration(JanusConfig(**config)).eval()
    made.generation_config = GenerationConfig.from_pretrained(MINI)
    return made


@contextmanager
def made_there(device: str, dtype: str) -> Iterator[None]:
    """New parameters are of this dtype, on this device, and the same each time."""
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.device(device), torch.inference_mode(False):
            yield
    finally:
        torch.set_default_dtype(before)


def settings(folder: Path, size: str) -> None:
    """What a checkpoint has beside its weights: janus-mini's processor and tokenizer."""
    for name in (
        "generation_config.json",
        "chat_template.jinja",
        "tokenizer.json",
        "tokenizer_config.json",
    ):
        shutil.copy(MINI / name, folder)
    processor, side = json.loads((MINI / "processor_config.json").read_text()), SIZES[size][1]
    processor["num_image_tokens"] = side**2
    pixels = patch(size) * side
    processor["image_processor"]["size"] = {"height": pixels, "width": pixels}
    (folder / "processor_config.json").write_text(json.dumps(processor))


def build(folder: Path, size: str, device: str = "cpu", dtype: str = "float32") -> Path:
    """The checkpoint of a random Janus."""
    network(size, device, dtype).save_pretrained(folder)
    settings(folder, size)
    return folder


def seconds(device: str, rounds: int, ways: list[Callable[[], object]]) -> list[float]:
    """What each way takes, the median of some rounds in which they take turns."""
    taken: list[list[float]] = [[] for _ in ways]
    for _ in range(rounds):
        for way, times in zip(ways, taken, strict=True):
            start = time.perf_counter()
            way()
            if device != "cpu":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
    return [median(times) for times in taken]


def upstream(model: JanusModel, prompts: list[str]) -> torch.Tensor:
    """transformers' own drawing: token ids, (prompts, tokens)."""
    chats = [[{"role": "user", "content": [{"type": "text", "text": p}]}] for p in prompts]
    texts = [model.processor().apply_chat_template(c, add_generation_prompt=True) for c in chats]
    batch = model.processor()(
        text=texts, generation_mode="image", return_tensors="pt", padding=True, padding_side="left"
    ).to(model.device)
    with torch.inference_mode():
        drawn: torch.Tensor = model.network.generate(
            **batch, generation_mode="image", do_sample=True, top_k=0, guidance_scale=5.0
        )
        model.network.decode_image_tokens(drawn)
    return drawn


@torch.inference_mode()
def said(model: JanusModel, image: Image.Image, question: str) -> str:
    """The usual way to a verdict: a reply, to be parsed."""
    batch = model._asked([[image]], [model._chat(question)])
    out = model.network.generate(
        **batch, generation_mode="text", do_sample=False, max_new_tokens=REPLY,
        min_new_tokens=REPLY, pad_token_id=model.processor().tokenizer.pad_token_id,
    )  # fmt: skip
    return str(model.processor().tokenizer.decode(out[0, batch["input_ids"].shape[1] :]))


def prompts_of(count: int) -> list[str]:
    return [f"a picture of {n} red circles and a blue square" for n in range(count)]


def drawing(model: JanusModel, batches: list[int], rounds: int) -> None:
    prompts = prompts_of(max(batches))
    upstream(model, prompts[:1])
    print("drawing   images/s   x transformers one at a time   x transformers at the same batch")
    for batch in batches:
        some, seeds = prompts[:batch], list(range(batch))
        alone, batched, mine = seconds(
            model.device,
            rounds,
            [
                partial(upstream, model, prompts[:1]),
                partial(upstream, model, some),
                partial(model.generate, some, seeds),
            ],
        )
        apart, together = alone * batch / mine, batched / mine
        print(f"batch {batch:3} {batch / mine:9.3f} {apart:30.2f} {together:34.2f}")


def shares(model: JanusModel, batch: int) -> None:
    """Of the time of drawing, by operator."""
    with torch.profiler.profile() as profile:
        model.generate(prompts_of(batch), list(range(batch)))
    times = {event.key: event.self_cpu_time_total for event in profile.key_averages()}
    whole = sum(times.values())
    kinds = {
        "matmul": ("::mm", "::addmm"),
        "attention": ("scaled_dot_product",),
        "convolutions of the VQ decoder": ("conv2d", "mkldnn_conv"),
    }
    for name, parts in kinds.items():
        mine = sum(t for key, t in times.items() if any(part in key for part in parts))
        print(f"{name}: {100 * mine / whole:.0f} % of the time of drawing {batch}")


def judging(model: JanusModel, batch: int, rounds: int) -> Iterator[tuple[int, float, float]]:
    """Questions about each image, the seconds that a batch of verdicts takes, and a reply's."""
    noise = np.random.default_rng(0)
    side = model.processor().image_processor.size["height"]
    images = [
        Image.fromarray(noise.integers(0, 256, (side, side, 3), np.uint8)) for _ in range(batch)
    ]
    questions = [prompt.question for prompt in load_task("shapes").prompts()[:batch]]
    said(model, images[0], questions[0])
    for each in (1, 2, 8):
        asked = [images[number // each] for number in range(batch)]
        alone, mine = seconds(
            model.device,
            rounds,
            [
                partial(said, model, images[0], questions[0]),
                partial(model.judge, asked, questions, ANSWERS),
            ],
        )
        yield each, mine, alone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=LAYERS, default="small")
    parser.add_argument("--batch", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as name:
        dtype = "float32" if args.device == "cpu" else "bfloat16"
        folder = build(Path(name), args.size, args.device, dtype)
        model = JanusModel("bench", folder, Recipe(guidance=5.0), args.device, dtype)
        model.load()
        where = platform.processor() if args.device == "cpu" else torch.cuda.get_device_name()
        cores = f", {args.threads} threads" if args.device == "cpu" else ""
        print(f"{where or platform.machine()}, {args.size}, {dtype}{cores}")
        drawing(model, args.batch, args.rounds)
        if args.device == "cpu":
            shares(model, max(args.batch))
        batch = max(args.batch)
        print(f"verdicts, batch {batch}      /s   x a reply of {REPLY} tokens, one at a time")
        for each, mine, alone in judging(model, batch, args.rounds):
            print(f"{each} an image {batch / mine:17.2f} {alone * batch / mine:10.2f}")
        model.release()


if __name__ == "__main__":
    main()
