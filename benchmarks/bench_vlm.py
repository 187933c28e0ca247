"""Verdicts a second of the VLM judge against the usual way, on one CPU thread.

    python benchmarks/bench_vlm.py

The usual way asks one image at a time and parses what `generate` says (8 new tokens, greedy); ours
reads both answers off one forward pass of a batch. Both run the same random Qwen2.5-VL, of the real
geometry but small, so only the ratio says anything.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from gapbench.judges.vlm import VlmJudge
from gapbench.models import torchvision_shim
from gapbench.types import Prompt
from gapbench.verdict import QUESTION, parse

ROUNDS = 3
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}"
    "{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip


def tokenizer(template: str = TEMPLATE, special: tuple[str, ...] = SPECIAL) -> Any:
    """A byte-level tokenizer that knows the question's words; the first special token pads."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    base = Tokenizer(models.BPE())
    # Digits stand alone, as in Qwen's tokenizer.
    base.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    base.decoder = decoders.ByteLevel()
    base.train_from_iterator(
        [QUESTION] * 20,
        trainers.BpeTrainer(
            vocab_size=500,
            special_tokens=list(special),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=base,
        pad_token=special[0],
        eos_token=special[2] if len(special) > 2 else special[0],
        chat_template=template,
    )


PUBLISHED: dict[str, dict[str, Any]] = {
    "text": {
        "vocab_size": 152_064,
        "hidden_size": 3584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    },
    "vision": {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 3584,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
    },
}
"""Qwen2.5-VL-7B-Instruct's config.json."""


def small(words: Any, hidden: int = 64, layers: int = 2) -> dict[str, dict[str, Any]]:
    """Settings as PUBLISHED's of a model of a few layers."""
    heads = max(2, hidden // 64)
    return {
        "text": {
            "vocab_size": len(words),
            "hidden_size": hidden,
            "intermediate_size": 4 * hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
        },
        "vision": {
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": hidden,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        },
    }


def settings(folder: Path, words: Any, sizes: dict[str, dict[str, Any]]) -> Any:
    """Write what a checkpoint has beside its weights; gives the configuration."""
    torchvision_shim.ensure()
    from transformers import Qwen2_5_VLConfig
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    ids = dict(zip(SPECIAL, words.convert_tokens_to_ids(list(SPECIAL)), strict=True))
    size = sizes["text"]["hidden_size"] // sizes["text"]["num_attention_heads"]
    section = [size // 8, 3 * size // 16, 3 * size // 16]
    config = Qwen2_5_VLConfig(
        text_config=sizes["text"]
        | {
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": section,
            },
            "pad_token_id": ids["<|endoftext|>"],
            "bos_token_id": None,
            "eos_token_id": ids["<|im_end|>"],
        },
        vision_config=sizes["vision"],
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )
    config.save_pretrained(folder)
    words.save_pretrained(folder)
    pixels = {} if sizes is PUBLISHED else {"min_pixels": 56 * 56, "max_pixels": 112 * 112}
    Qwen2VLImageProcessorPil(**pixels).save_pretrained(folder)
    return config


def build(folder: Path, hidden: int = 64, layers: int = 2, sharpen: float = 1.0) -> Path:
    """A random Qwen2.5-VL in the hub's layout; `sharpen` scales what it says."""
    words = tokenizer()
    config = settings(folder, words, small(words, hidden, layers))
    from transformers import Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(sharpen)
        model.model.language_model.embed_tokens.weight.mul_(sharpen)
    model.save_pretrained(folder)
    return folder


def random(
    folder: Path, device: str, dtype: str, sizes: dict[str, dict[str, Any]] | None = None
) -> VlmJudge:
    """The judge of a random Qwen2.5-VL, made where it stays: its folder has no weights."""
    words = tokenizer()
    config = settings(folder, words, sizes or small(words))
    (folder / "model.safetensors").touch()
    judge = VlmJudge(str(folder), device)
    from bench_generate import made_there
    from transformers import Qwen2_5_VLForConditionalGeneration

    with made_there(device, dtype):
        judge._model = Qwen2_5_VLForConditionalGeneration(config).eval()
    return judge


def asked(count: int) -> list[Prompt]:
    """Prompts of a judge."""
    return [
        Prompt(
            id=str(i), task="bench", category="only", tier="easy", text=f"{i} apples",
            question=QUESTION.replace("{prompt}", f"{i} apples"), requirement={},
        )
        for i in range(count)
    ]  # fmt: skip


@torch.inference_mode()
def usual(judge: VlmJudge, images: list[Image.Image], prompts: list[Prompt]) -> list[int | None]:
    verdicts = []
    for image, prompt in zip(images, prompts, strict=True):
        batch = judge.chat.batch(judge._model, [judge.chat.text(prompt.question)], [image])
        out = judge._model.generate(**batch, max_new_tokens=8, min_new_tokens=8, do_sample=False)
        said = out[0, batch["input_ids"].shape[1] :]
        verdicts.append(parse(judge.processor.tokenizer.decode(said)).verdict)
    return verdicts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(1)
    images = [Image.effect_noise((112, 112), 20 + i).convert("RGB") for i in range(args.images)]
    prompts = asked(args.images)
    with tempfile.TemporaryDirectory() as folder:
        judge = VlmJudge(str(build(Path(folder) / "vlm", args.hidden, args.layers)), device="cpu")
        judge.judge(images[:2], prompts[:2])
        usual(judge, images[:1], prompts[:1])
        ours = theirs = 0.0
        for _ in range(ROUNDS):  # in turns, best of each: other work on the machine hits both
            start = time.perf_counter()
            for at in range(0, args.images, args.batch):
                judge.judge(images[at : at + args.batch], prompts[at : at + args.batch])
            ours = max(ours, args.images / (time.perf_counter() - start))
            start = time.perf_counter()
            usual(judge, images, prompts)
            theirs = max(theirs, args.images / (time.perf_counter() - start))
    print(f"model      random Qwen2.5-VL, hidden {args.hidden}, {args.layers} layers, one thread")
    print(f"usual      {theirs:.2f} verdicts/s: batch 1, generate(max_new_tokens=8), parsed")
    print(f"ours       {ours:.2f} verdicts/s: batch {args.batch}, one forward pass")
    print(f"ratio      {ours / theirs:.1f}")


if __name__ == "__main__":
    main()
