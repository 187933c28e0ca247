"""The models that can be named: what each is, where its weights are, how upstream samples it.

A model that needs an environment of its own ("worker") or a server ("server") is a row like any
other: `FAMILIES` says which class drives a family, and that class makes the adapter from the row.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from gapbench.fetch.hub import Checkpoint, cached
from gapbench.models.base import CAPABILITIES
from gapbench.types import GapbenchError

Family = Literal["janus", "emu3", "worker", "server"]
Runs = Literal["native", "worker", "server"]

FAMILIES: Final[dict[Family, str]] = {
    "janus": "gapbench.models.janus.make:make",
    "emu3": "gapbench.models.emu3:make",
    "worker": "gapbench.models.workers.environment:make",
    "server": "gapbench.models.server:make",
}
"""Family -> "module:function", called as make(name, entry, recipe=..., device=..., dtype=...) with
the whole recipe as changed by --set; it returns a Model and raises GapbenchError in one line where
weights, environment or device are missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A model that can be named.

    `recipe` is upstream's default sampling, `source` where that stands, `convention` how its
    guidance combines the two branches. `memory` is about what weights and a small batch take.
    `needs` names checkpoints by role ("model"; "gen" and "und" of a pair; ...). A `pair` draws and
    judges with different weights: "the same model" is then two.
    """

    summary: str
    family: Family
    license: str
    parameters: str
    memory: str
    capabilities: frozenset[str]
    recipe: Mapping[str, Any]
    source: str
    convention: str = "uncond + guidance * (cond - uncond); 1 is none"
    needs: Mapping[str, Checkpoint] = field(default_factory=dict)
    pair: bool = False
    folder: Path | None = None
    """Of weights that ship with gapbench, with the sha256 of their model.safetensors."""
    sha256: str = ""

    @property
    def runs(self) -> Runs:
        """In this process, in a process with an environment of its own, or behind a server."""
        return self.family if self.family in ("worker", "server") else "native"


NATIVE: Final = frozenset(CAPABILITIES)
JANUS_RECIPE: Final = {"guidance": 5.0, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
JANUS_SOURCE: Final = "deepseek-ai/Janus 1daa72f, generation_inference.py, defaults of generate()"
DEEPSEEK: Final = "DeepSeek Model License"
SETTINGS: Final = "*.[jt]*"
"""Files in JSON, Jinja and plain text."""
EITHER: Final = "*model*.[bs]*"
"""Weights in safetensors or PyTorch's .bin: of some checkpoints it is not on record which."""
EMU3_POSITIVE: Final = " masterpiece, film grained, best quality."
EMU3_NEGATIVE: Final = (
    "lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, "
    "cropped, worst quality, low quality, normal quality, jpeg artifacts, signature, watermark, "
    "username, blurry."
)
"""What upstream adds to every prompt, and what its guidance steers away from."""
UNPINNED: Final = "main"
"""The revision of a checkpoint of which no commit is on record; what was fetched is recorded by its
commit in the run."""


def hub(repo: str, license: str, gigabytes: float, *files: str) -> Checkpoint:
    """A hub checkpoint, unpinned: the named files, or its settings and safetensors."""
    return Checkpoint(
        repo=repo,
        revision=UNPINNED,
        license=license,
        files=dict.fromkeys(files or (SETTINGS, "*.safetensors")),
        bytes=int(gigabytes * 1e9),
    )


def _janus(summary: str, repo: str, license: str, size: Literal["1B", "7B"], **more: Any) -> Entry:
    gigabytes, memory = (4.2, "6 GB") if size == "1B" else (14.9, "20 GB")
    return Entry(
        **{
            "summary": summary,
            "family": "janus",
            "license": license,
            "parameters": "2.1 B" if size == "1B" else "7.4 B",
            "memory": memory,
            "capabilities": NATIVE,
            "recipe": JANUS_RECIPE,
            "source": JANUS_SOURCE,
            "needs": {"model": hub(repo, license, gigabytes)},
            **more,
        }
    )


def _worker(
    summary: str, license: str, parameters: str, memory: str, recipe: Mapping[str, Any],
    source: str, convention: str, needs: Mapping[str, Checkpoint], tokens: bool = False,
) -> Entry:  # fmt: skip
    return Entry(
        summary=summary,
        family="worker",
        license=license,
        parameters=parameters,
        memory=memory,
        capabilities=frozenset(
            {"generate", "judge_logits", "judge_text"} | ({"image_tokens"} if tokens else set())
        ),
        recipe=recipe,
        source=source,
        convention=convention,
        needs=needs,
    )


WORKERS: Final[dict[str, Entry]] = {
    "show-o": _worker(
        "masked discrete diffusion and text in one Phi-1.5; 512 x 512 pixels",
        license="Apache-2.0",
        parameters="1.5 B",
        memory="8 GB",
        recipe={"guidance": 5.0, "mask_noise": 1.0, "steps": 50, "size": 512},
        source="showlab/Show-o 45a5a2d, README, text-to-image at 512 x 512",
        convention="(1 + guidance) * cond - guidance * uncond; 0 is none, 5 is Janus's 6",
        needs={
            "model": hub("showlab/show-o-512x512", "Apache-2.0", 5.9, "*"),
            "vq": hub("showlab/magvitv2", "Apache-2.0", 0.8, "*"),
            "text": hub("microsoft/phi-1_5", "MIT", 0.01, "*.json", "*.txt"),
        },
        tokens=True,
    ),
    "hermesflow": _worker(
        "Show-o tuned on its own preferences (Pair-DPO); 512 x 512 pixels",
        license="none stated",
        parameters="1.5 B",
        memory="8 GB",
        recipe={"guidance": 5.0, "mask_noise": 1.0, "steps": 50, "size": 512},
        source="Gen-Verse/HermesFlow d6cf91a, README",
        convention="(1 + guidance) * cond - guidance * uncond; 0 is none, 5 is Janus's 6",
        needs={
            "model": hub("Gen-Verse/HermesFlow", "none stated", 5.9, "*"),
            "vq": hub("showlab/magvitv2", "Apache-2.0", 0.8, "*"),
            "text": hub("microsoft/phi-1_5", "MIT", 0.01, "*.json", "*.txt"),
        },
        tokens=True,
    ),
    "vila-u": _worker(
        "autoregressive over residual-quantised codes; 256 x 256 pixels",
        license="MIT (weights not checked)",
        parameters="7 B",
        memory="18 GB",
        recipe={"guidance": 3.0},
        source="mit-han-lab/vila-u 096623c, generate_image_content's default cfg",
        convention="uncond + guidance * (cond - uncond); 1 is none",
        needs={
            "model": hub("mit-han-lab/vila-u-7b-256", "not checked", 14.5, "*"),
            "siglip": hub("google/siglip-large-patch16-256", "Apache-2.0", 0.01, "config.json"),
        },
    ),
    "bagel": _worker(
        "mixture of transformers with a flow decoder; 1024 x 1024 pixels",
        license="Apache-2.0",
        parameters="14 B (7 B active)",
        memory="32 GB",
        recipe={
            "cfg_text_scale": 4.0,
            "cfg_img_scale": 1.0,
            "cfg_interval_start": 0.4,
            "cfg_renorm_min": 0.0,
            "cfg_renorm_type": "global",
            "timestep_shift": 3.0,
            "steps": 50,
            "size": 1024,
        },
        source="ByteDance-Seed/Bagel 056b5fd, inference.ipynb, text-to-image (the defaults of "
        "inferencer.py are another set)",
        convention="one scale for the text branch, one for the image branch; 1 is none",
        needs={"model": hub("ByteDance-Seed/BAGEL-7B-MoT", "Apache-2.0", 29.2, "*")},
    ),
    "blip3-o": _worker(
        "Qwen2.5-VL with a flow transformer over CLIP features; 1024 x 1024 pixels",
        license="Apache-2.0 (code: none stated)",
        parameters="8 B",
        memory="40 GB",
        recipe={"guidance": 3.0, "steps": 30},
        source="JiuhaiChen/BLIP3o 4689ec3, inference.py; steps from sample_images()",
        convention="of the diffusion decoder; 1 is none",
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
    ),
}
"""The rows of workers; gapbench.models.workers.environment has their source and packages."""

HUB: Final[dict[str, Entry]] = {
    "janus-pro": _janus(
        "Janus-Pro-7B, the paper's main model", "deepseek-community/Janus-Pro-7B", DEEPSEEK, "7B"
    ),
    "janus-pro-1b": _janus("Janus-Pro-1B", "deepseek-community/Janus-Pro-1B", DEEPSEEK, "1B"),
    "janus-1.3b": _janus(
        "Janus-1.3B, the first Janus", "deepseek-community/Janus-1.3B", DEEPSEEK, "1B"
    ),
    "t2i-r1": _janus(
        "Janus-Pro-7B after reinforcement learning; writes a text plan before it draws",
        "CaraJ/T2I-R1",
        "research purposes (code: Apache-2.0)",
        "7B",
        recipe={
            **JANUS_RECIPE,
            "reasoning_tokens": 512,
            "reasoning_temperature": 1.0,
            "reasoning_top_k": 50,
        },
        needs={"model": hub("CaraJ/T2I-R1", "research purposes", 14.9, SETTINGS, EITHER)},
        source="CaraJ7/T2I-R1 2d9d4d1, src/t2i-r1/src/infer/reason_inference.py; top-k 50 is "
        "transformers' default, which it leaves on",
    ),
    "janus-pro-r1": _janus(
        "Janus-Pro-7B taught to look again at what it drew; here its first drawing",
        "midbee/Janus-Pro-R1-7B",
        "not stated",
        "7B",
        source="wendell0218/Janus-Pro-R1 f9c5133, inference/inference.py, defaults of "
        "generate_with_refine() (its t2i.py draws greedily, top-k 1)",
        needs={"model": hub("midbee/Janus-Pro-R1-7B", "not stated", 14.9, SETTINGS, EITHER)},
    ),
    "emu3": Entry(
        summary="next-token prediction over one vocabulary; Gen draws, Chat judges",
        family="emu3",
        license="Apache-2.0",
        parameters="2 x 8.5 B",
        memory="2 x 20 GB, one at a time",
        capabilities=NATIVE - {"embeddings"},
        recipe={
            "guidance": 3.0,
            "temperature": 1.0,
            "top_k": 2048,
            "top_p": 1.0,
            "image_area": 518400,
            "positive": EMU3_POSITIVE,
            "negative": EMU3_NEGATIVE,
        },
        source="baaivision/Emu3 f6ea9aa, image_generation.py; image_area from processing_emu3.py",
        convention="uncond + guidance * (cond - uncond), uncond reading `negative`; 1 is none",
        needs={
            "gen": hub("BAAI/Emu3-Gen-hf", "Apache-2.0", 17.5),
            "und": hub("BAAI/Emu3-Chat-hf", "Apache-2.0", 17.5),
        },
        pair=True,
    ),
    **WORKERS,
}
"""Sizes and memory are sums over the parameters in bfloat16, not measurements."""


def changed(name: str, recipe: Mapping[str, Any], changes: Mapping[str, object]) -> dict[str, Any]:
    """A recipe with some keys changed; a text is read as the kind of value that it replaces.

    Raises GapbenchError for a key that the recipe lacks or a value of another kind.
    """
    whole = dict(recipe)
    for key, value in changes.items():
        if key not in recipe:
            keys = ", ".join(recipe) or "no keys"
            raise GapbenchError(f"--set {key}={value}: the recipe of {name} has {keys}")
        whole[key] = _like(recipe[key], value, f"--set {key}={value}")
    return whole


def _like(old: object, value: object, where: str) -> object:
    new = value
    if isinstance(value, str) and not isinstance(old, str):
        try:
            new = json.loads(value)
        except ValueError:
            new = value
    if isinstance(old, float) and isinstance(new, int) and not isinstance(new, bool):
        new = float(new)
    if type(new) is not type(old):
        kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
        raise GapbenchError(f"{where}: must be {kinds.get(type(old), type(old).__name__)}")
    return new


def weights(name: str, role: str, checkpoint: Checkpoint) -> Path:
    """The folder of a named model's checkpoint in the hub's cache.

    Raises GapbenchError that says how to fetch it.
    """
    folder = cached(checkpoint)
    if folder is None:
        raise GapbenchError(
            f"model {name}: its {role} checkpoint, {checkpoint.repo} (about "
            f"{checkpoint.bytes / 1e9:.0f} GB), is not here; run `gapbench prepare --model {name}`"
            ", or give --model a folder of your own copy"
        )
    return folder


def pick_device(name: str, entry: Entry, device: str) -> str:
    """`auto` as a device. Raises GapbenchError where the model wants a GPU and there is none."""
    import torch

    if device != "auto" or torch.cuda.is_available():
        return "cuda" if device == "auto" else device
    raise GapbenchError(
        f"model {name} takes about {entry.memory} on a GPU, and this machine has none that torch "
        "sees; --device cpu runs it all the same, in float32 and very slowly"
    )
