"""janus-mini's architecture, tokenizer and processor, in transformers' own classes."""

from __future__ import annotations

import logging
from pathlib import Path

import lessons
import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

import gapbench
from gapbench.models import torchvision_shim

torchvision_shim.ensure()
from transformers import (
    GenerationConfig,
    JanusConfig,
    JanusForConditionalGeneration,
    JanusImageProcessorPil,
    JanusProcessor,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.janus.processing_janus import DEFAULT_SYSTEM_PROMPT

from gapbench.tasks.world import SIZE
from gapbench.verdict import QUESTION

SHIPPED = Path(gapbench.__file__).parent / "models/bundled/janus-mini"
PATCH = 4
IMAGE_TOKENS = (SIZE // PATCH) ** 2
CODES = 256
WIDTH = 192

SPECIAL = {
    "pad_token": "<|pad|>",
    "bos_token": "<|begin|>",
    "eos_token": "<|end|>",
    "image_token": "<image_placeholder>",
    "boi_token": "<begin_of_image>",
    "eoi_token": "<end_of_image>",
}
# The verdict question is mostly boilerplate: as words of several words it costs few positions.
PHRASES = (
    DEFAULT_SYSTEM_PROMPT,
    *QUESTION[QUESTION.index("Does ") :].split(" {prompt}? "),
    "<|User|>:",
    "<|Assistant|>:",
)
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}{{ '<|User|>: ' }}"
    "{%- else -%}{{ '<|Assistant|>: ' }}{%- endif -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{ '<image_placeholder>\n' }}"
    "{%- else -%}{{ part['text'] }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if message['role'] == 'user' -%}{{ '\n\n' }}"
    "{%- elif not loop.last or add_generation_prompt -%}{{ '<|end|>' }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|Assistant|>:' }}{%- endif -%}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE over the words of all lessons, plus the phrases above."""
    rng = np.random.default_rng(1)
    names = [*lessons.PLAIN, *lessons.FACTS]
    corpus = [lessons.prompt(rng, names[i % len(names)]).text for i in range(20_000)]
    corpus += [f" {text}" for text in corpus]
    for _ in range(2_000):
        corpus += [f"{q} {a}" for q, a in lessons.interview(rng, 2)[1]]
    corpus += [" The score is 1.", " The score is 0."] * 2_000
    base = Tokenizer(models.BPE())
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    base.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=640,
        min_frequency=2,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    base.train_from_iterator(corpus, trainer)
    base.add_tokens([AddedToken(phrase, normalized=False) for phrase in PHRASES])
    bos = SPECIAL["bos_token"]
    base.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, base.token_to_id(bos))]
    )
    extra = {k: SPECIAL[k] for k in ("image_token", "boi_token", "eoi_token")}
    core = {k: v for k, v in SPECIAL.items() if k not in extra}
    return PreTrainedTokenizerFast(
        tokenizer_object=base, extra_special_tokens=extra, padding_side="left", **core
    )


def processor(tok: PreTrainedTokenizerFast) -> JanusProcessor:
    image_processor = JanusImageProcessorPil(
        size={"height": SIZE, "width": SIZE},
        min_size=PATCH,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        resample=0,
    )
    return JanusProcessor(
        image_processor,
        tok,
        chat_template=CHAT_TEMPLATE,
        num_image_tokens=IMAGE_TOKENS,
        use_default_system_prompt=True,
    )


def vq_config() -> JanusVQVAEConfig:
    return JanusVQVAEConfig(
        embed_dim=8,
        num_embeddings=CODES,
        latent_channels=64,
        num_patches=SIZE // PATCH,
        base_channels=32,
        channel_multiplier=[1, 1, 2],
        num_res_blocks=1,
        projection_dim=WIDTH,
        image_token_embed_dim=WIDTH,
        num_hidden_layers=2,
    )


def model(tok: PreTrainedTokenizerFast) -> JanusForConditionalGeneration:
    config = JanusConfig(
        text_config=LlamaConfig(
            vocab_size=len(tok),
            hidden_size=WIDTH,
            intermediate_size=512,
            num_hidden_layers=5,
            num_attention_heads=6,
            num_key_value_heads=6,
            max_position_embeddings=1024,
            bos_token_id=tok.bos_token_id,
            eos_token_id=tok.eos_token_id,
            pad_token_id=tok.pad_token_id,
            tie_word_embeddings=False,
        ),
        vision_config=JanusVisionConfig(
            hidden_size=96,
            num_hidden_layers=3,
            num_attention_heads=4,
            mlp_ratio=3,
            image_size=SIZE,
            patch_size=PATCH,
            projection_dim=WIDTH,
            depth=2,
            num_image_tokens=IMAGE_TOKENS,
        ),
        vq_config=vq_config(),
        image_token_id=tok.convert_tokens_to_ids(SPECIAL["image_token"]),
        tie_word_embeddings=False,
    )
    made = JanusForConditionalGeneration(config)
    made.generation_config = GenerationConfig(
        bos_token_id=tok.bos_token_id,
        eos_token_id=tok.eos_token_id,
        pad_token_id=tok.pad_token_id,
        generation_kwargs={"boi_token_id": tok.convert_tokens_to_ids(SPECIAL["boi_token"])},
        # The recipe; guidance 1 is none, which transformers' own image mode cannot do.
        do_sample=True,
        guidance_scale=1.0,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
    )
    return made


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    torch.manual_seed(0)
    tok = tokenizer()
    m = model(tok)
    for name, part in [*m.model.named_children(), ("lm_head", m.lm_head)]:
        print(f"{name:24} {sum(p.numel() for p in part.parameters()):>9,}")
    print(f"{'all':24} {sum(p.numel() for p in m.parameters()):>9,}, {len(tok)} tokens")
    p = processor(tok)
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Hi there?"}]}]
    print(repr(p.apply_chat_template(chat, add_generation_prompt=True)))
    print(
        tok.convert_ids_to_tokens(
            tok("<|User|>: a red circle and a striped square\n\n<|Assistant|>: The score is 1.")[
                "input_ids"
            ]
        )
    )
