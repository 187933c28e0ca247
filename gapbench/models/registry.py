"""The models that can be named, and which code drives each.

A model that needs an environment of its own ("worker") is a row like any other: `FAMILIES` says
which function makes a family's adapters from their rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

from gapbench.models.entry import EITHER, NATIVE, SETTINGS, Entry, Family, hub
from gapbench.models.workers.rows import WORKERS

FAMILIES: Final[dict[Family, str]] = {
    "janus": "gapbench.models.janus.make:make",
    "emu3": "gapbench.models.emu3:make",
    "showo": "gapbench.models.showo.make:make",
    "bagel": "gapbench.models.bagel.make:make",
    "worker": "gapbench.models.workers.environment:make",
}
"""Family -> "module:function", called as make(name, entry, recipe=..., device=..., dtype=...) with
the whole recipe as changed by --set; it returns a Model and raises GapbenchError in one line where
weights, environment or device are missing."""
FOLDERS: Final = {
    "janus": "gapbench.models.janus.make:from_folder",
    "multi_modality": "gapbench.models.janus.make:from_folder",
    "emu3": "gapbench.models.emu3:from_folder",
    "Showo": "gapbench.models.showo.make:from_folder",
    "bagel": "gapbench.models.bagel.make:from_folder",
}
"""A checkpoint's model_type -> what makes its adapter, called as make(name, folder, recipe=changes,
device=..., dtype=...)."""
BUNDLED: Final = Path(__file__).parent / "bundled"
JANUS_RECIPE: Final = {
    "guidance": 5.0, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "block": 0,
    "sampler": "gumbel-1",
}  # fmt: skip
JANUS_SOURCE: Final = "deepseek-ai/Janus 1daa72f, generation_inference.py, defaults of generate()"
DEEPSEEK: Final = "DeepSeek Model License"
EMU3_POSITIVE: Final = " masterpiece, film grained, best quality."
EMU3_NEGATIVE: Final = (
    "lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, "
    "cropped, worst quality, low quality, normal quality, jpeg artifacts, signature, watermark, "
    "username, blurry."
)
"""What upstream adds to every prompt, and what its guidance steers away from."""


def _showo(
    summary: str, repo: str, license: str, source: str, guidance: float, steps: int, side: int
) -> Entry:
    return Entry(
        summary=summary,
        family="showo",
        license=license,
        parameters="1.5 B",
        memory="12 GB in float32",
        capabilities=NATIVE - {"gradients", "embeddings", "text"},
        recipe={
            "guidance": guidance,
            "mask_noise": 1.0,
            "steps": steps,
            "side": side,
            "block": 0,
            "sampler": "masked-1",
        },
        source=source,
        convention="(1 + guidance) * cond - guidance * uncond; 0 is no guidance, 5 is Janus's 6",
        needs={
            "model": hub(repo, license, 5.9, SETTINGS, EITHER),
            "vq": hub("showlab/magvitv2", "Apache-2.0", 0.8, SETTINGS, EITHER),
            "text": hub("microsoft/phi-1_5", "MIT", 0.01, SETTINGS),
        },
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


MODELS: Final[dict[str, Entry]] = {
    "janus-mini": Entry(
        summary="a Janus of 3.8 M parameters trained on the shapes world; ships with gapbench",
        family="janus",
        license="Apache-2.0",
        parameters="3.8 M",
        memory="0.6 GB",
        capabilities=NATIVE,
        recipe={},
        source="its generation_config.json",
        folder=BUNDLED / "janus-mini",
        sha256="cbafd38754b293fb97ee27267316bc815045fe6a0a8688f745ebcf22222969b2",
    ),
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
            "block": 0,
            "sampler": "gumbel-1",
            "image_area": 518400,
            "positive": EMU3_POSITIVE,
            "negative": EMU3_NEGATIVE,
        },
        source="baaivision/Emu3 f6ea9aa, image_generation.py; image_area from processing_emu3.py",
        convention="uncond + guidance * (cond - uncond), uncond reads `negative`; 1 is no guidance",
        needs={
            "gen": hub("BAAI/Emu3-Gen-hf", "Apache-2.0", 17.5),
            "und": hub("BAAI/Emu3-Chat-hf", "Apache-2.0", 17.5),
        },
        pair=True,
    ),
    "show-o": _showo(
        "masked discrete diffusion and text in one Phi-1.5; 512 x 512 pixels",
        "showlab/show-o-512x512",
        "Apache-2.0",
        "showlab/Show-o 45a5a2d, README, text-to-image at 512 x 512",
        guidance=5.0,
        steps=50,
        side=32,
    ),
    "show-o-256": _showo(
        "the first Show-o; 256 x 256 pixels",
        "showlab/show-o",
        "MIT",
        "showlab/Show-o 45a5a2d, README, the settings it gives at 256 x 256 (for inpainting)",
        guidance=1.75,
        steps=16,
        side=16,
    ),
    "hermesflow": _showo(
        "Show-o tuned on its own preferences (Pair-DPO); 512 x 512 pixels",
        "Gen-Verse/HermesFlow",
        "none stated",
        "Gen-Verse/HermesFlow d6cf91a, README",
        guidance=5.0,
        steps=50,
        side=32,
    ),
    "bagel": Entry(
        summary="mixture of transformers that draws by a flow; 1024 x 1024 pixels",
        family="bagel",
        license="Apache-2.0",
        parameters="14.6 B (7 B active)",
        memory="40 GB",
        capabilities=NATIVE - {"image_tokens", "gradients", "embeddings"} | {"image_latents"},
        recipe={
            "cfg_text_scale": 4.0,
            "cfg_img_scale": 1.0,
            "cfg_interval_start": 0.4,
            "cfg_renorm_min": 0.0,
            "cfg_renorm_type": "global",
            "timestep_shift": 3.0,
            "steps": 50,
            "size": 1024,
            "think": False,
            "think_tokens": 1000,
            "block": 0,
            "sampler": "euler-1",
        },
        source="ByteDance-Seed/Bagel 056b5fd, inference.ipynb, text-to-image (the defaults of "
        "inferencer.py are another set)",
        convention="uncond + scale * (cond - uncond), made no longer than cond: one scale for the "
        "text branch, one for the image branch; 1 is no guidance",
        needs={"model": hub("ByteDance-Seed/BAGEL-7B-MoT", "Apache-2.0", 29.5)},
    ),
    **WORKERS,
}
"""Sizes and memory are sums over the parameters in bfloat16, not measurements."""
