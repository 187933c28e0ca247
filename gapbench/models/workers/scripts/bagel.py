"""BAGEL (ByteDance-Seed/Bagel at 056b5fd): its InterleaveInferencer, one item at a time, on a GPU.

Set up as inference.ipynb does. The verdict reads the probabilities of the answers after the same
context that the inferencer builds for a question.
"""

from __future__ import annotations

import os
import random
import sys

REPLY_TOKENS = 100
SPECIAL = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|endoftext|>")
TOGETHER = (
    "language_model.model.embed_tokens", "time_embedder", "latent_pos_embed", "vae2llm", "llm2vae",
    "connector", "vit_pos_embed",
)  # fmt: skip


class Worker:
    capabilities = ("generate", "judge_logits", "judge_text")
    packages = (
        "torch",
        "torchvision",
        "transformers",
        "accelerate",
        "flash_attn",
        "numpy",
        "pillow",
    )

    def __init__(self, settings):
        sys.path.insert(0, settings["repo"])
        self.settings, self.recipe = settings, settings["recipe"]

    def load(self):
        import torch

        if self.settings["device"] == "cpu" or not torch.cuda.is_available():
            raise ValueError("BAGEL runs on a CUDA GPU only, and torch sees none here")
        from accelerate import (
            infer_auto_device_map,
            init_empty_weights,
            load_checkpoint_and_dispatch,
        )
        from data.data_utils import add_special_tokens
        from data.transforms import ImageTransform
        from inferencer import InterleaveInferencer
        from modeling.autoencoder import load_ae
        from modeling.bagel import (
            Bagel,
            BagelConfig,
            Qwen2Config,
            Qwen2ForCausalLM,
            SiglipVisionConfig,
            SiglipVisionModel,
        )
        from modeling.qwen2 import Qwen2Tokenizer

        folder = self.settings["checkpoints"]["model"]
        llm = Qwen2Config.from_json_file(os.path.join(folder, "llm_config.json"))
        llm.qk_norm, llm.tie_word_embeddings = True, False
        llm.layer_module = "Qwen2MoTDecoderLayer"
        vit = SiglipVisionConfig.from_json_file(os.path.join(folder, "vit_config.json"))
        vit.rope, vit.num_hidden_layers = False, vit.num_hidden_layers - 1
        vae, vae_config = load_ae(local_path=os.path.join(folder, "ae.safetensors"))
        config = BagelConfig(
            visual_gen=True,
            visual_und=True,
            llm_config=llm,
            vit_config=vit,
            vae_config=vae_config,
            vit_max_num_patch_per_side=70,
            connector_act="gelu_pytorch_tanh",
            latent_patch_size=2,
            max_latent_size=64,
        )
        with init_empty_weights():
            model = Bagel(Qwen2ForCausalLM(llm), SiglipVisionModel(vit), config)
            model.vit_model.vision_model.embeddings.convert_conv2d_to_linear(vit, meta=True)
        gpus = range(torch.cuda.device_count())
        places = infer_auto_device_map(
            model,
            max_memory={i: torch.cuda.mem_get_info(i)[0] for i in gpus},
            no_split_module_classes=["Bagel", "Qwen2MoTDecoderLayer"],
        )
        first = places.get(TOGETHER[0], "cuda:0")
        for name in TOGETHER:
            if name in places or len(gpus) == 1:
                places[name] = first
        model = load_checkpoint_and_dispatch(
            model,
            checkpoint=os.path.join(folder, "ema.safetensors"),
            device_map=places,
            dtype=torch.bfloat16,
            force_hooks=True,
        ).eval()
        tokenizer, ids, _ = add_special_tokens(Qwen2Tokenizer.from_pretrained(folder))
        self.model, self.tokenizer, self.start = model, tokenizer, ids["bos_token_id"]
        self.inferencer = InterleaveInferencer(
            model=model,
            vae_model=vae,
            tokenizer=tokenizer,
            vae_transform=ImageTransform(1024, 512, 16),
            vit_transform=ImageTransform(980, 224, 14),
            new_token_ids=ids,
        )

    def refuses(self, prompt):
        for mark in SPECIAL:
            if mark in prompt:
                return f"it contains {mark!r}, which the model reads as a special token"
        return None

    def draw(self, prompts, seeds):
        import numpy as np
        import torch

        recipe = self.recipe
        for prompt, seed in zip(prompts, seeds):
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.manual_seed(seed)  # of the CPU, where the noise is drawn, and of every GPU
            drawn = self.inferencer(
                text=prompt,
                cfg_text_scale=recipe["cfg_text_scale"],
                cfg_img_scale=recipe["cfg_img_scale"],
                cfg_interval=[recipe["cfg_interval_start"], 1.0],
                timestep_shift=recipe["timestep_shift"],
                num_timesteps=recipe["steps"],
                cfg_renorm_min=recipe["cfg_renorm_min"],
                cfg_renorm_type=recipe["cfg_renorm_type"],
                image_shapes=(recipe["size"], recipe["size"]),
            )
            yield drawn["image"], None, prompt, None

    def reply(self, images, questions):
        for image, question in zip(images, questions):
            said = self.inferencer(
                image=image,
                text=question,
                understanding_output=True,
                do_sample=False,
                max_think_token_n=REPLY_TOKENS,
            )
            yield said["text"]

    def judge(self, images, questions, answers):
        import torch
        from data.data_utils import pil_img2rgb

        inferencer, llm = self.inferencer, self.model.language_model
        # After its start mark the model begins with a word, not with a space.
        tails = [self.tokenizer.encode(answer.strip()) for answer in answers]
        mode = {"mode": "und"} if self.model.use_moe else {}
        with torch.no_grad(), torch.autocast("cuda", dtype=torch.bfloat16):
            for image, question in zip(images, questions):
                context = inferencer.init_gen_context()
                picture = inferencer.vae_transform.resize_transform(pil_img2rgb(image))
                context = inferencer.update_context_image(picture, context, vae=False)
                context = inferencer.update_context_text(question, context)
                (length,), (rope,) = context["kv_lens"], context["ropes"]
                found = []
                for tail in tails:  # on the CPU, as upstream's own inputs are
                    ids = torch.tensor([self.start, *tail[:-1]])
                    places = torch.arange(len(ids))
                    output = llm.forward_inference(
                        packed_query_sequence=llm.model.embed_tokens(ids),
                        query_lens=torch.tensor([len(ids)], dtype=torch.int),
                        packed_query_position_ids=rope + places,
                        packed_query_indexes=length + places,
                        past_key_values=context["past_key_values"],
                        key_values_lens=torch.tensor([length], dtype=torch.int),
                        packed_key_value_indexes=torch.arange(length),
                        update_past_key_values=False,
                        is_causal=True,
                        **mode,
                    )
                    logits = llm.lm_head(output.packed_query_sequence).float().log_softmax(-1)
                    found.append(sum(float(logits[i, token]) for i, token in enumerate(tail)))
                yield found
