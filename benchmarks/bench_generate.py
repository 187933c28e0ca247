"""Drawing and own verdicts of the Janus adapter against transformers' own ways, on the same random
weights, device and dtype.

    python benchmarks/bench_generate.py [--size small|1b|7b] [--batch 16] [--device cpu]

References, measured in the same run: for drawing, transformers' `generate(generation_mode="image")`
one prompt at a time, which is upstream's loop, and at the same batch; for verdicts, generating the
reply and reading it. `small` keeps Janus-Pro's 576 image tokens and shape at a hundredth of the
parameters; `1b` and `7b` are its own geometry. Guidance is on, as Janus-Pro needs it.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from gapbench import load_task, torchvision_shim
from gapbench.judges.own import ANSWERS
from gapbench.models.janus import JanusModel
from gapbench.models.sampling import Recipe

MINI = Path(__file__).parents[1] / "gapbench/models/bundled/janus-mini"
LAYERS = {"small": (6, 384, 6, 1024), "1b": (24, 2048, 16, 5632), "7b": (30, 4096, 32, 11008)}
"""Layers, width, heads and width of the feed-forward part of the language model."""
SIDE = 96
"""Pixels of an image's side: with patches of 4 that is 24 x 24 = 576 tokens."""


def build(folder: Path, size: str) -> Path:
    """A random Janus with janus-mini's processor and tokenizer, and 576 tokens an image."""
    torchvision_shim.ensure()
    from transformers import JanusConfig, JanusForConditionalGeneration

    layers, width, heads, inner = LAYERS[size]
    config = json.loads((MINI / "config.json").read_text())
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
        "image_size": SIDE,
        "projection_dim": width,
        "num_image_tokens": (SIDE // 4) ** 2,
    }
    config["vq_config"] |= {
        "num_patches": SIDE // 4,
        "projection_dim": width,
        "image_token_embed_dim": width,
        "num_embeddings": 4096,
    }
    torch.manual_seed(0)
    JanusForConditionalGeneration(JanusConfig(**config)).save_pretrained(folder)
    for name in (
        "generation_config.json",
        "chat_template.jinja",
        "tokenizer.json",
        "tokenizer_config.json",
    ):
        shutil.copy(MINI / name, folder)
    processor = json.loads((MINI / "processor_config.json").read_text())
    processor["num_image_tokens"] = (SIDE // 4) ** 2
    processor["image_processor"]["size"] = {"height": SIDE, "width": SIDE}
    (folder / "processor_config.json").write_text(json.dumps(processor))
    return folder


def rate(do: Callable[[], object], count: int) -> float:
    """Items a second, the best of two."""
    best = 0.0
    for _ in range(2):
        start = time.perf_counter()
        do()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        best = max(best, count / (time.perf_counter() - start))
    return best


def upstream(model: JanusModel, prompts: list[str]) -> torch.Tensor:
    """transformers' own drawing: token ids, (prompts, 576)."""
    chats = [[{"role": "user", "content": [{"type": "text", "text": p}]}] for p in prompts]
    texts = [model.processor.apply_chat_template(c, add_generation_prompt=True) for c in chats]
    batch = model.processor(
        text=texts, generation_mode="image", return_tensors="pt", padding=True, padding_side="left"
    ).to(model.device)
    with torch.inference_mode():
        drawn: torch.Tensor = model.module.generate(
            **batch, generation_mode="image", do_sample=True, top_k=0, guidance_scale=5.0
        )
        model.module.decode_image_tokens(drawn)
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=LAYERS, default="small")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    if args.device == "cpu":
        torch.set_num_threads(1)
    prompts = [f"a picture of {n} red circles and a blue square" for n in range(args.batch)]
    with tempfile.TemporaryDirectory() as name:
        folder = build(Path(name), args.size)
        dtype = "float32" if args.device == "cpu" else "bfloat16"
        model = JanusModel("bench", folder, Recipe(guidance=5.0), args.device, dtype)
        model.load()
        alone = rate(lambda: upstream(model, prompts[:1]), 1)
        batched = rate(lambda: upstream(model, prompts), args.batch)
        drawn = []
        ours = rate(
            lambda: drawn.extend(model.generate(prompts, list(range(args.batch)))), args.batch
        )
        images = [drawing.image for drawing in drawn[: args.batch]]
        questions = [load_task("shapes").prompts()[0].question] * args.batch
        words = rate(lambda: model.reply(images[:1], questions[:1]), 1)
        verdicts = rate(lambda: model.judge(images, questions, ANSWERS), args.batch)
    where = torch.cuda.get_device_name() if args.device == "cuda" else platform.processor()
    print(f"{where}, {args.size}, {dtype}, batch {args.batch}")
    print(f"drawing   {ours:8.3f} images/s   {ours / alone:6.2f} x transformers one at a time")
    print(f"{'':28}{ours / batched:6.2f} x transformers at the same batch")
    print(f"verdicts  {verdicts:8.2f} /s   {verdicts / words:12.2f} x generating each reply")


if __name__ == "__main__":
    main()
