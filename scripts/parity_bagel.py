"""What the code of BAGEL's authors computes on a tiny random checkpoint, for the tests to hold
gapbench's BAGEL against (tests/models/bagel/upstream.json).

    git clone https://github.com/ByteDance-Seed/Bagel && git -C Bagel checkout 056b5fd
    pip install torch torchvision transformers==4.49.0 einops opencv-python-headless
    PYTHONPATH=.:tests python scripts/parity_bagel.py Bagel > tests/models/bagel/upstream.json

`--seconds N` prints how long an image of N steps takes instead (benchmarks/bench_bagel.py).

In an environment of its own, for upstream's version of transformers. On a CPU in float32: where
upstream asks for bfloat16 it gets float32, and for flash-attn torch's own attention.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from argparse import ArgumentParser
from contextlib import nullcontext
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from gapbench.models.torchvision_shim import ensure

ensure()
import bagels
import numpy as np
from PIL import Image
from safetensors.torch import load_file

from gapbench.models.autoregressive.noise import keys, normal

PROMPT, QUESTION = "a red circle and a blue square", "is the circle red?"
ANSWERS = ("The score is 0", "The score is 1")
RECIPES: dict[str, dict[str, Any]] = {
    "plain": {"cfg_text_scale": 1.0, "cfg_img_scale": 1.0},
    "global": {"cfg_text_scale": 4.0, "cfg_img_scale": 1.0},
    "channel": {"cfg_text_scale": 4.0, "cfg_img_scale": 1.5, "cfg_renorm_type": "channel"},
    "text_channel": {
        "cfg_text_scale": 4.0,
        "cfg_img_scale": 2.0,
        "cfg_renorm_type": "text_channel",
    },
    "think": {"cfg_text_scale": 4.0, "cfg_img_scale": 1.5, "think": True},
}


def flash(
    q: Any, k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any, causal: bool, **_: Any
) -> Any:
    """flash_attn_varlen_func, one sequence after the other."""
    made = []
    for row in range(len(cu_seqlens_q) - 1):
        own = slice(cu_seqlens_q[row], cu_seqlens_q[row + 1])
        all_ = slice(cu_seqlens_k[row], cu_seqlens_k[row + 1])
        queries, keys_, values = q[own], k[all_], v[all_]
        repeats = queries.shape[1] // keys_.shape[1]
        keys_, values = keys_.repeat_interleave(repeats, 1), values.repeat_interleave(repeats, 1)
        ahead = len(keys_) - len(queries)
        mask = (
            torch.ones(len(queries), len(keys_), dtype=torch.bool).tril(ahead) if causal else None
        )
        given = (part.transpose(0, 1)[None] for part in (queries, keys_, values))
        made.append(scaled_dot_product_attention(*given, attn_mask=mask)[0].transpose(0, 1))
    return torch.cat(made)


def upstream(clone: Path, folder: Path) -> tuple[Any, Any]:
    """Their inferencer around the checkpoint in a folder, and its settings of the model."""
    torch.bfloat16 = torch.float32  # type: ignore[misc]
    stub: Any = ModuleType("flash_attn")
    stub.__spec__, stub.flash_attn_varlen_func = ModuleSpec("flash_attn", None), flash
    sys.modules["flash_attn"] = stub
    sys.path.insert(0, str(clone))
    from data.data_utils import add_special_tokens
    from data.transforms import ImageTransform
    from inferencer import InterleaveInferencer
    from modeling import autoencoder
    from modeling.bagel import (
        Bagel,
        BagelConfig,
        Qwen2Config,
        Qwen2ForCausalLM,
        SiglipVisionConfig,
        SiglipVisionModel,
        qwen2_navit,
    )
    from transformers import AutoTokenizer

    qwen2_navit.sdpa_kernel = lambda **_: nullcontext()
    llm = Qwen2Config.from_json_file(folder / "llm_config.json")
    llm.qk_norm, llm.tie_word_embeddings, llm.layer_module = True, False, "Qwen2MoTDecoderLayer"
    vit = SiglipVisionConfig.from_json_file(folder / "vit_config.json")
    vit.rope, vit.num_hidden_layers = False, vit.num_hidden_layers - 1
    sizes = autoencoder.AutoEncoderParams(
        resolution=bagels.SIZE, in_channels=3, downsample=2 ** (bagels.LEVELS - 1), ch=bagels.BASE,
        out_ch=3, ch_mult=[2**level for level in range(bagels.LEVELS)],
        num_res_blocks=bagels.BLOCKS, z_channels=bagels.CHANNELS, scale_factor=0.3611,
        shift_factor=0.1159,
    )  # fmt: skip
    coder = autoencoder.AutoEncoder(sizes)
    coder.load_state_dict(load_file(folder / "ae.safetensors"))
    config = BagelConfig(
        visual_gen=True, visual_und=True, llm_config=llm, vit_config=vit, vae_config=sizes,
        vit_max_num_patch_per_side=bagels.PICTURE // bagels.PATCH,
        connector_act="gelu_pytorch_tanh", latent_patch_size=bagels.LATENT,
        max_latent_size=bagels.SIDE,
    )  # fmt: skip
    model = Bagel(Qwen2ForCausalLM(llm), SiglipVisionModel(vit), config)
    model.vit_model.vision_model.embeddings.convert_conv2d_to_linear(vit)
    model.load_state_dict(load_file(folder / "ema.safetensors"))
    tokenizer, marks, new = add_special_tokens(AutoTokenizer.from_pretrained(folder))
    assert not new, "the marks are in the tiny tokenizer"
    stride = bagels.LATENT * 2 ** (bagels.LEVELS - 1)
    inferencer = InterleaveInferencer(
        model=model.eval(),
        vae_model=coder.eval(),
        tokenizer=tokenizer,
        vae_transform=ImageTransform(bagels.SIZE, bagels.SIZE // 2, stride),
        vit_transform=ImageTransform(bagels.PICTURE, 224, bagels.PATCH),
        new_token_ids=marks,
    )
    return inferencer, model


def drawn(inferencer: Any, recipe: dict[str, Any], seed: int) -> dict[str, Any]:
    """Latents, pixels and the plan of one prompt, from gapbench's noise."""
    count, width = bagels.SIDE**2, bagels.CHANNELS * bagels.LATENT**2
    noise = normal(keys([seed]), count * width).float().view(count, width)
    kept: list[Any] = []
    decode = inferencer.decode_image
    inferencer.decode_image = lambda latent, shape: (kept.append(latent), decode(latent, shape))[1]
    torch.randn, before = lambda *_: noise, torch.randn
    given = {"timestep_shift": 3.0, "num_timesteps": 10, "cfg_interval": [0.4, 1.0], **recipe}
    found = inferencer(
        text=PROMPT, image_shapes=(bagels.SIZE, bagels.SIZE), max_think_token_n=8, **given
    )
    torch.randn, inferencer.decode_image = before, decode
    return {
        "latents": [round(value, 7) for value in kept[0].flatten().tolist()],
        "pixels": np.asarray(found["image"]).flatten().tolist(),
        "plan": found["text"],
    }


def picture(wide: int, high: int) -> Image.Image:
    """A picture that is the same everywhere."""
    levels = np.arange(high * wide * 3, dtype=np.uint32) * 2654435761 >> 24 & 255
    return Image.fromarray(levels.astype(np.uint8).reshape(high, wide, 3))


@torch.no_grad()
def asked(inferencer: Any, model: Any, image: Image.Image) -> dict[str, Any]:
    """Log-probabilities of the answers about an image, and a reply of seven tokens."""
    context = inferencer.init_gen_context()
    scaled = inferencer.vae_transform.resize_transform(image)
    context = inferencer.update_context_image(scaled, context, vae=False)
    context = inferencer.update_context_text(QUESTION, context)
    (length,), (rope,) = context["kv_lens"], context["ropes"]
    llm, odds = model.language_model, []
    for answer in ANSWERS:
        tail = inferencer.tokenizer.encode(answer)
        ids = torch.tensor([inferencer.new_token_ids["bos_token_id"], *tail[:-1]])
        places = torch.arange(len(ids))
        states = llm.forward_inference(
            packed_query_sequence=llm.model.embed_tokens(ids),
            query_lens=torch.tensor([len(ids)], dtype=torch.int),
            packed_query_position_ids=rope + places,
            packed_query_indexes=length + places,
            past_key_values=context["past_key_values"],
            key_values_lens=torch.tensor([length], dtype=torch.int),
            packed_key_value_indexes=torch.arange(length),
            update_past_key_values=False,
            is_causal=True,
            mode="und",
        ).packed_query_sequence
        logprobs = llm.lm_head(states).double().log_softmax(-1)
        odds.append(float(logprobs[range(len(tail)), tail].sum()))
    said = inferencer(image=image, text=QUESTION, understanding_output=True, max_think_token_n=8)
    return {"size": image.size, "odds": odds, "reply": said["text"]}


def loss(inferencer: Any, model: Any, latents: torch.Tensor, seed: int) -> float:
    """Their training loss of latents (channels, height, width), summed over them."""
    random = normal(keys([seed]), latents.numel() + 1, 1).float()[0]
    text = inferencer.tokenizer.encode(PROMPT)
    marks = inferencer.new_token_ids
    ids = [marks["bos_token_id"], *text, marks["eos_token_id"]]
    ids += [marks["start_of_image"], marks["end_of_image"]]
    first, count = len(ids) - 2, bagels.SIDE**2
    total = first + count + 2
    mask = torch.full((total, total), float("-inf")).triu(1)
    mask[first:, first:] = 0
    torch.randn_like, before = lambda like: random[1:].view_as(like), torch.randn_like
    model.train()
    model.config.visual_und = False  # no picture is seen
    side = torch.arange(bagels.SIDE)
    found = model(
        sequence_length=total,
        packed_text_ids=torch.tensor(ids),
        packed_text_indexes=torch.tensor([*range(first + 1), total - 1]),
        sample_lens=[total],
        packed_position_ids=torch.tensor([*range(first), *[first] * (count + 2)]),
        nested_attention_masks=[mask],
        padded_latent=latents[None],
        patchified_vae_latent_shapes=[(bagels.SIDE, bagels.SIDE)],
        packed_latent_position_ids=(side[:, None] * bagels.SIDE + side).flatten(),
        packed_vae_token_indexes=torch.arange(first + 1, first + 1 + count),
        packed_timesteps=random[:1].expand(count),
        mse_loss_indexes=torch.arange(first + 1, first + 1 + count),
    )
    model.eval()
    torch.randn_like = before
    return float(found["mse"].double().sum())


def seconds(inferencer: Any, steps: int) -> float:
    """Of an image of so many steps, drawn as upstream draws it, one thread: the best of three."""
    torch.set_num_threads(1)
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        inferencer(
            text=PROMPT, image_shapes=(bagels.SIZE, bagels.SIZE), num_timesteps=steps,
            cfg_text_scale=4.0, cfg_img_scale=1.0,
        )  # fmt: skip
        taken.append(time.perf_counter() - start)
    return min(taken)


def main() -> None:
    parser = ArgumentParser()
    parser.add_argument("clone", type=Path)
    parser.add_argument("--seconds", type=int)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = bagels.write(Path(place) / "tiny")
        inferencer, model = upstream(given.clone, folder)
        if given.seconds:
            print(seconds(inferencer, given.seconds))
            return
        found: dict[str, Any] = {
            "drawn": {name: drawn(inferencer, recipe, 7) for name, recipe in RECIPES.items()}
        }
        found["asked"] = [
            asked(inferencer, model, picture(*size)) for size in ((16, 16), (40, 12), (9, 30))
        ]
        tokens = torch.tensor(found["drawn"]["plain"]["latents"])
        side, patch = bagels.SIDE, bagels.LATENT
        cut = tokens.view(side, side, patch, patch, -1)
        latents = cut.permute(4, 0, 2, 1, 3).reshape(-1, side * patch, side * patch)
        found["losses"] = {str(seed): loss(inferencer, model, latents, seed) for seed in (1, 2)}
    print(json.dumps(found, separators=(",", ":")))


if __name__ == "__main__":
    main()
