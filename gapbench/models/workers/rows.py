"""The models that run as workers: what each is, where its weights and its code are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from gapbench.models.entry import Entry, Upstream, hub

SCRIPTS: Final = Path(__file__).parent / "scripts"
"""A worker's script and the list of its packages have one name."""


def _worker(
    script: str, url: str, commit: str, dtype: str, pythons: Sequence[str] = ("3.10",),
    replaces: tuple[str, str] | None = None, **entry: Any,
) -> Entry:  # fmt: skip
    """A row of the table: what `Upstream` holds, and the other fields of `Entry`."""
    code = SCRIPTS / script
    return Entry(
        family="worker",
        capabilities=frozenset({"generate", "judge_logits", "judge_text", "text"}),
        upstream=Upstream(
            url=url, commit=commit, script=code.with_suffix(".py"), lock=code.with_suffix(".lock"),
            pythons=pythons, dtype=dtype, replaces=replaces,
        ),
        **entry,
    )  # fmt: skip


WORKERS: Final[dict[str, Entry]] = {
    "vila-u": _worker(
        summary="autoregressive over residual-quantised codes; 256 x 256 pixels",
        license="MIT (weights not checked)",
        parameters="7 B",
        memory="18 GB",
        recipe={"guidance": 3.0},
        source="mit-han-lab/vila-u 096623c, generate_image_content's default cfg",
        convention="uncond + guidance * (cond - uncond); 1 is no guidance",
        needs={
            "model": hub("mit-han-lab/vila-u-7b-256", "not checked", 14.5, "*"),
            "siglip": hub("google/siglip-large-patch16-256", "Apache-2.0", 0.01, "config.json"),
        },
        url="https://github.com/mit-han-lab/vila-u",
        commit="096623cef36a57c707d4bdc5cdfeec823b58d223",
        script="vila_u",
        dtype="bfloat16",
        replaces=("vila_u/train/transformers_replace", "transformers"),
    ),
    "blip3-o": _worker(
        summary="Qwen2.5-VL with a flow transformer over CLIP features; 1024 x 1024 pixels",
        license="Apache-2.0 (code: none stated)",
        parameters="8 B",
        memory="40 GB",
        recipe={"guidance": 3.0, "steps": 30},
        source="JiuhaiChen/BLIP3o 4689ec3, inference.py; steps from sample_images()",
        convention="of the diffusion decoder; 1 is no guidance",
        needs={
            "model": hub("BLIP3o/BLIP3o-Model-8B", "Apache-2.0", 35.0, "*"),
            "processor": hub(
                "Qwen/Qwen2.5-VL-7B-Instruct",
                "Apache-2.0",
                0.01,
                "preprocessor_config.json",
                "tokenizer.json",
                "tokenizer_config.json",
                "vocab.json",
                "merges.txt",
                "chat_template.json",
                "config.json",
            ),
            "scheduler": hub(
                "Alpha-VLLM/Lumina-Next-SFT-diffusers",
                "Apache-2.0",
                0.01,
                "scheduler/scheduler_config.json",
            ),
        },
        url="https://github.com/JiuhaiChen/BLIP3o",
        commit="4689ec389e2b9108efc8b9761432538fc890156d",
        script="blip3_o",
        dtype="float16",
        pythons=("3.11",),
    ),
}
