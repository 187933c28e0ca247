"""Random checkpoints of Show-o in the layouts of the hub."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from gapbench.models import torchvision_shim
from gapbench.models.showo.vq import Decoder, Encoder, MagvitV2

MARKS = 10


def _tokenizer(folder: Path) -> int:
    """A byte-level tokenizer and Phi's settings, as microsoft/phi-1_5 has them; gives its size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PhiConfig, PreTrainedTokenizerFast

    base = Tokenizer(models.BPE())
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    base.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    base.train_from_iterator(["a red circle and a blue square", " The score is 0 1"] * 20, trainer)
    end = "<|endoftext|>"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=base, bos_token=end, eos_token=end, unk_token=end
    )
    tokenizer.save_pretrained(folder)
    PhiConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
    ).save_pretrained(folder)
    return len(tokenizer)


def _write(folder: Path, config: dict[str, object], tensors: dict[str, torch.Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / "pytorch_model.safetensors")


def showo(folder: Path, seed: int = 0) -> None:
    """Write a random Show-o into a folder, and its tokenizers into its vq/ and text/."""
    torchvision_shim.ensure()
    from transformers import PhiConfig, PhiForCausalLM

    torch.manual_seed(seed)
    bits, levels = 6, [[32, 32], [32, 64], [64, 64]]
    magvit = MagvitV2(
        Encoder(32, levels, bits), Decoder(64, [[64, 32], [64, 64], [64, 64]], bits), bits
    )
    _write(folder / "vq", {"_class_name": "MAGVITv2"}, magvit.state_dict())
    size = _tokenizer(folder / "text") + MARKS + 2**bits + 1
    config = PhiConfig.from_pretrained(folder / "text")
    config.update({"vocab_size": size, "qk_layernorm": True})
    phi = PhiForCausalLM(config)
    # As for Janus: random heads are nearly uniform, and choices should differ.
    with torch.no_grad():
        phi.lm_head.weight.mul_(20)
        phi.lm_head.bias.normal_(0, 0.1)
        phi.model.embed_tokens.weight.mul_(20)
        for layer in phi.model.layers:
            layer.self_attn.q_layernorm.weight.normal_(2, 0.5)
            layer.self_attn.dense.weight.mul_(20)
    weights = {f"showo.{name}": tensor for name, tensor in phi.state_dict().items()}
    facts = {
        "_class_name": "Showo", "w_clip_vit": False, "vocab_size": size, "codebook_size": 2**bits,
        "llm_vocab_size": size - MARKS - 2**bits - 1, "llm_model_path": "microsoft/phi-1_5",
        "num_vq_tokens": 36, "load_from_showo": True, "mask_token_id": size - 1,
    }  # fmt: skip
    _write(folder, facts, weights)
