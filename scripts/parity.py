"""How far gapbench's Janus and Emu3 are from the code of their authors, on random inputs.

    git clone https://github.com/deepseek-ai/Janus && git -C Janus checkout 1daa72f
    git clone https://github.com/baaivision/Emu3 && git -C Emu3 checkout f6ea9aa
    python scripts/parity.py Janus Emu3

Prints the rows of docs/validity.md. Of the two clones it imports only the modules that it compares.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from jinja2.sandbox import ImmutableSandboxedEnvironment
from PIL import Image

from gapbench.models.torchvision_shim import ensure

ensure()
from transformers import Emu3ImageProcessor, JanusImageProcessorPil, JanusVQVAE, JanusVQVAEConfig
from transformers.models.janus.processing_janus import DEFAULT_SYSTEM_PROMPT

from gapbench.models.emu3 import SYSTEM, TURNS, Emu3Model
from gapbench.models.janus.adapter import JanusModel
from gapbench.models.janus.original import TEMPLATE, convert

Row = tuple[str, int, float]
HALF = [0.5, 0.5, 0.5]
TEXTS = ("a red circle", " two  blanks ", "\n\na line", "café", "<b>{}</b>", "{{ x }}", "a.")


def package(name: str, folder: Path) -> None:
    """Make the modules of a folder importable without its __init__, which imports everything."""
    sys.modules[name] = ModuleType(name)
    sys.modules[name].__path__ = [str(folder)]


def pictures(count: int, square: bool) -> Iterator[Image.Image]:
    stream = np.random.default_rng(0)
    for _ in range(count):
        width, height = stream.integers(20, 1200, 2)
        shape = (width if square else height, width, 3)
        yield Image.fromarray(stream.integers(0, 256, shape, np.uint8))


def janus(clone: Path) -> Iterator[Row]:
    package("upstream_janus", clone / "janus" / "models")
    package("upstream_talk", clone / "janus" / "utils")
    theirs = import_module("upstream_janus.image_processing_vlm")
    given: dict[str, Any] = {"image_mean": HALF, "image_std": HALF, "min_size": 14}
    upstream = theirs.VLMImageProcessor(384, **given)
    ours = JanusImageProcessorPil(size={"height": 384, "width": 384}, **given)
    model: Any = SimpleNamespace(processor=lambda: SimpleNamespace(image_processor=ours), _who="")
    for words, square, count in (("not square", False, 200), ("square", True, 50)):
        gaps = [
            np.abs(
                np.asarray(upstream.preprocess([picture])["pixel_values"][0])
                - np.asarray(ours([JanusModel._scaled(model, picture)])["pixel_values"][0])
            ).max()
            for picture in pictures(count, square)
        ]
        yield f"Janus: pictures that are {words}, as the vision tower gets them", count, max(gaps)

    talk = import_module("upstream_talk.conversation")
    template = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(
        TEMPLATE
    )
    wrong = 0
    for text in TEXTS:
        for seen in (False, True):
            # As VLChatProcessor.apply_sft_template_for_multi_turn_prompts does it.
            conversation = talk.get_conv_template("deepseek")
            conversation.set_system_message(DEFAULT_SYSTEM_PROMPT.strip() if seen else "")
            content = f"<image_placeholder>\n{text}" if seen else text
            conversation.append_message("<|User|>", content.strip())
            conversation.append_message("<|Assistant|>", "")
            parts = [{"type": "image"}] * seen + [{"type": "text", "text": text}]
            asked = template.render(
                messages=[{"role": "user", "content": parts}], add_generation_prompt=True
            )
            said = DEFAULT_SYSTEM_PROMPT * seen + asked
            wrong += conversation.get_prompt().strip() != said
    yield "Janus: prompts and questions in DeepSeek's layout, that differ", 2 * len(TEXTS), wrong

    torch.manual_seed(0)
    decoder = import_module("upstream_janus.vq_model").VQ_16().eval()
    network = JanusVQVAE(JanusVQVAEConfig(num_patches=8)).eval()
    weights = convert({f"gen_vision_model.{k}": v for k, v in decoder.state_dict().items()})
    network.load_state_dict({k.removeprefix("model.vqmodel."): v for k, v in weights.items()})
    gaps = []
    with torch.inference_mode():
        for _ in range(3):
            codes = torch.randint(16384, (1, 64))
            values = decoder.decode_code(codes, shape=[1, 8, 8, 8])[0].permute(1, 2, 0).numpy()
            # generation_inference.py
            levels = np.clip((values + 1) / 2 * 255, 0, 255).astype(np.uint8).astype(int)
            # As JanusForConditionalGeneration.decode_image_tokens turns it.
            model.network = SimpleNamespace(
                decode_image_tokens=lambda row: network.decode(row).permute(0, 2, 3, 1)
            )
            model.device, model._brightness = "cpu", lambda x: JanusModel._brightness(model, x)
            (picture,) = JanusModel.decode(model, codes.int().numpy())
            gaps.append(np.abs(levels - np.asarray(picture)).max())
    yield "Janus: decoded images, VQ-16 with random weights, in levels of 256", 3, max(gaps)


def emu3(clone: Path) -> Iterator[Row]:
    package("upstream_emu3", clone / "emu3" / "mllm")
    package("upstream_sees", clone / "emu3" / "tokenizer")
    processor = import_module("upstream_emu3.processing_emu3").Emu3Processor
    words = inspect.signature(processor.__init__).parameters["chat_template"].default
    wrong = sum(
        words.format(image_prompt="<image>", text_prompt=text)
        != SYSTEM + TURNS["user"].format(f"<image>{text}")
        for text in TEXTS
    )
    yield "Emu3: questions that differ", len(TEXTS), wrong

    helper = import_module("upstream_emu3.utils_emu3").Emu3PrefixConstrainedLogitsHelper
    names = ("eoi", "eos", "eol", "eof", "pad")
    forced = {f"{name}_token": -place for place, name in enumerate(names, 2)}
    places = wrong = 0
    for side in (1, 2, 5, 32, 90):
        constrain = helper(
            torch.tensor([side]), torch.tensor([side]), img_token=-1, visual_tokens="code", **forced
        )
        model: Any = SimpleNamespace(side=side, device="cpu")
        model._codes = lambda: (torch.arange(64), forced["eol_token"])
        model._core = SimpleNamespace(get_input_embeddings=lambda: lambda ids: ids)
        fed, _ = Emu3Model._row(model, torch.zeros(1, side * side, dtype=torch.long))
        row = torch.cat([torch.tensor([-1]), fed[0]])
        for place in range(1, len(row)):
            allowed = constrain(0, row[:place])
            wrong += (allowed == "code") != (row[place] >= 0)
            wrong += allowed != "code" and allowed[0] != row[place]
        places += len(row) - 1
    yield "Emu3: forced tokens of images of five sizes, in the wrong place", places, wrong

    sees = import_module("upstream_sees.image_processing_emu3visionvq").Emu3VisionVQImageProcessor(
        image_mean=HALF, image_std=HALF
    )
    gaps = []
    model = SimpleNamespace(_who="")
    for _ in range(50):
        values = 0.7 * torch.randn(3, 90, 90)
        levels = np.asarray(sees.postprocess(values[None])["pixel_values"][0]).astype(int)
        image = Emu3Model._image(model, values.permute(1, 2, 0) * 0.5 + 0.5)
        gaps.append(np.abs(levels - np.asarray(image)).max())
    yield "Emu3: decoded values as pixels, in levels of 256", 50, max(gaps)

    ours = Emu3ImageProcessor(image_mean=HALF, image_std=HALF)
    gaps = [
        np.abs(
            np.asarray(sees.preprocess([picture])["pixel_values"][0])
            - np.asarray(ours.preprocess([picture])["pixel_values"][0])
        ).max()
        for picture in pictures(30, True)
    ]
    yield "Emu3: square pictures, as they are cut into codes", 30, max(gaps)


def main() -> None:
    torch.manual_seed(0)
    for rows in (janus(Path(sys.argv[1])), emu3(Path(sys.argv[2]))):
        for what, cases, gap in rows:
            print(f"| {what} | {cases} | {gap:.2g} |")


if __name__ == "__main__":
    main()
