"""A small Show-o in the layout of the hub. Its numbers come from a counter and not from torch's
random state, so that upstream's results on it can be written down."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from zlib import crc32

import torch
from safetensors.torch import save_file
from torch import Tensor

from gapbench.models import torchvision_shim
from gapbench.models.autoregressive.noise import keys, uniform_of, words
from gapbench.models.showo.vq import Decoder, Encoder, MagvitV2

MARKS: Final = 10
BITS: Final = 6
SIDE: Final = 6
PHI: Final = {
    "architectures": ["PhiForCausalLM"], "attention_dropout": 0.0, "bos_token_id": None,
    "embd_pdrop": 0.0, "eos_token_id": None, "hidden_act": "gelu_new", "hidden_size": 64,
    "initializer_range": 0.02, "intermediate_size": 128, "layer_norm_eps": 1e-05,
    "max_position_embeddings": 512, "model_type": "phi", "num_attention_heads": 4,
    "num_hidden_layers": 2, "num_key_value_heads": None, "partial_rotary_factor": 0.5,
    "qk_layernorm": False, "resid_pdrop": 0.0, "rope_scaling": None, "rope_theta": 10000.0,
    "tie_word_embeddings": False, "use_cache": True, "vocab_size": 512,
}  # fmt: skip
"""microsoft/phi-1_5's config.json, but for its sizes."""
WORDS: Final = (
    " red", " blue", " green", " yellow", " circle", " square", " triangle", " star", " and",
    " above", " below", " left", " right", " two", " three", " the", " of", " The", " score", " is",
    " image", " describe",
)  # fmt: skip


def _tokenizer(folder: Path) -> int:
    """A byte-level tokenizer that knows some words, and Phi's settings; gives its size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces, merges = sorted(pre_tokenizers.ByteLevel.alphabet()), []
    for word in WORDS:
        letters = word.replace(" ", "Ġ")
        for end in range(2, len(letters) + 1):
            merge = (letters[: end - 1], letters[end - 1])
            if merge not in merges:
                merges.append(merge)
                pieces.append("".join(merge))
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    base = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    base.decoder = decoders.ByteLevel()
    ends = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=base, **ends)
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(PHI))
    return len(tokenizer)


def filled(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """These tensors with numbers that follow from their names: weights spread so that what the
    layers give has about the spread of what they get, and choices differ."""
    made = {}
    for name, tensor in tensors.items():
        key, step = keys([crc32(name.encode())]), torch.zeros(1, dtype=torch.long)
        spread = (uniform_of(words(key, step, tensor.numel()))[0] - 0.5) * 12**0.5
        if not name.startswith("quantize"):
            if tensor.ndim == 1:
                values = 0.2 * spread + float("norm" in name and name.endswith("weight"))
            else:
                values = spread * (2 / tensor[0].numel()) ** 0.5
            if "embed_tokens" in name or "q_layernorm.weight" in name:
                values = values * 8
            if "lm_head" in name:
                values = values * 2
            tensor = values.reshape(tensor.shape).float()
        made[name] = tensor
    return made


def _write(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "pytorch_model.safetensors")


def showo(folder: Path) -> None:
    """Write a Show-o of 6 x 6 of 64 codes into a folder, and its tokenizers into vq/ and text/."""
    torchvision_shim.ensure()
    from transformers import PhiConfig, PhiForCausalLM

    down, up = [[32, 32], [32, 64, 64], [64, 64]], [[64, 32], [64, 64], [64, 64, 64]]
    magvit = MagvitV2(Encoder(32, down, BITS), Decoder(64, up, BITS), BITS)
    _write(folder / "vq", {"_class_name": "MAGVITv2"}, filled(magvit.state_dict()))
    text = _tokenizer(folder / "text")
    size = text + MARKS + 2**BITS + 1
    with torch.device("meta"):
        phi = PhiForCausalLM(PhiConfig(**{**PHI, "vocab_size": size, "qk_layernorm": True}))
    facts = {
        "_class_name": "Showo", "w_clip_vit": False, "vocab_size": size, "codebook_size": 2**BITS,
        "llm_vocab_size": text, "llm_model_path": "microsoft/phi-1_5", "num_vq_tokens": SIDE**2,
        "load_from_showo": True, "mask_token_id": size - 1,
    }  # fmt: skip
    _write(folder, facts, filled({f"showo.{name}": t for name, t in phi.state_dict().items()}))
