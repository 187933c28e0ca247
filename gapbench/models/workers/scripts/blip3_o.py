"""BLIP3-o (JiuhaiChen/BLIP3o at 4689ec3, branch main): its pipeline, one image at a time, on a GPU.

Set up as inference.py and gradio/app.py do. The pipeline's code, pipeline_llava_gen.py, is a file
of the checkpoint. Upstream loads everything onto cuda:0.
"""

from __future__ import annotations

import functools
import os
import random
import sys

REPLY_TOKENS = 100
SPECIAL = (
    "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|endoftext|>", "[IMG]", "[/IMG]",
)  # fmt: skip


class Worker:
    capabilities = ("generate", "judge_logits", "judge_text", "text")
    packages = ("torch", "torchvision", "transformers", "diffusers", "numpy", "pillow")

    def __init__(self, settings):
        sys.path.insert(0, settings["repo"])
        self.settings, self.recipe = settings, settings["recipe"]

    def load(self):
        import torch

        if self.settings["device"] == "cpu" or not torch.cuda.is_available():
            raise ValueError("BLIP3-o runs on a CUDA GPU only, and torch sees none here")
        from blip3o.model.builder import load_pretrained_model
        from blip3o.utils import disable_torch_init
        from diffusers import DiffusionPipeline
        from transformers import AutoProcessor

        folders = self.settings["checkpoints"]
        disable_torch_init()
        tokenizer, self.model, _ = load_pretrained_model(folders["model"])
        # Nothing in the pipeline passes a number of steps on: here is where it is taken.
        self.model.sample_images = functools.partial(
            self.model.sample_images, num_inference_steps=self.recipe["steps"]
        )
        self.processor = AutoProcessor.from_pretrained(folders["processor"])
        self.pipe = DiffusionPipeline.from_pretrained(
            os.path.join(folders["model"], "diffusion-decoder"),
            custom_pipeline="pipeline_llava_gen",
            torch_dtype=torch.bfloat16,
            use_safetensors=True,
            variant="bf16",
            multimodal_encoder=self.model,
            tokenizer=tokenizer,
            safety_checker=None,
        )
        self.pipe.vae.to("cuda:0")
        self.pipe.unet.to("cuda:0")

    def refuses(self, prompt):
        for mark in SPECIAL:
            if mark in prompt:
                return f"it contains {mark!r}, which the model reads as a special token"
        return None

    def draw(self, prompts, seeds):
        import numpy as np
        import torch
        from blip3o.conversation import conv_templates

        for prompt, seed in zip(prompts, seeds):
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.manual_seed(seed)  # of the CPU and of every GPU
            talk = conv_templates["qwen"].copy()
            talk.append_message(
                talk.roles[0], f"Please generate image based on the following caption: {prompt}"
            )
            talk.append_message(talk.roles[1], None)
            effective = talk.get_prompt()
            drawn = self.pipe([effective], guidance_scale=self.recipe["guidance"])
            yield drawn.image, None, effective, None

    def reply(self, images, questions):
        for image, question in zip(images, questions):
            yield self.say(self.asked([("user", [image, question])]), REPLY_TOKENS)

    def judge(self, images, questions, answers):
        for image, question in zip(images, questions):
            found = []
            for answer in answers:
                tokens, odds = self.tail([("user", [image, question])], "", answer)
                found.append(sum(float(odds[i, token]) for i, token in enumerate(tokens)))
            yield found

    def complete(self, talks, tokens, until):
        for turns, begun in talks:
            # The checkpoint's settings may have a penalty, with which it is not greedy.
            inputs = self.asked(turns, begun, tokens)
            yield self.say(inputs, tokens, until, repetition_penalty=1.0)

    def score(self, talks, endings):
        for (turns, begun), ending in zip(talks, endings):
            tokens, odds = self.tail(turns, begun, ending)
            total = sum(float(odds[i, token]) for i, token in enumerate(tokens))
            yield total, odds.argmax(-1).tolist() == tokens

    def asked(self, turns, answer="", more=0):
        """The processor's tensors for a chat, and the start of an answer."""
        from qwen_vl_utils import process_vision_info

        talk = [{"role": role, "content": [named(part) for part in said]} for role, said in turns]
        text = self.processor.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
        images, videos = process_vision_info(talk)
        # The turn starts on a new line: with a word, not with a space.
        inputs = self.processor(
            text=[text + answer.lstrip()],
            images=images,
            videos=videos,
            padding=True,
            return_tensors="pt",
        )
        room = self.model.config.get_text_config().max_position_embeddings
        if inputs.input_ids.shape[1] + more > room:
            taken = inputs.input_ids.shape[1]
            raise ValueError(f"it takes {taken} tokens and up to {more} more, of {room}")
        return inputs.to(self.model.device)

    def say(self, inputs, tokens, until=(), **more):
        """How a chat goes on, at least up to the first of the words in `until`."""
        import torch
        from transformers import StoppingCriteriaList

        def said(ids):
            return self.processor.batch_decode(
                ids[:, inputs.input_ids.shape[1] :],
                skip_special_tokens=True,
                clean_up_tokenization_spaces=False,
            )[0]

        def stop(ids, _scores, **_more):
            ended = any(word in said(ids) for word in until if word)
            return torch.tensor([ended], device=ids.device)

        criteria = StoppingCriteriaList([stop] if until else [])
        more.update(max_new_tokens=tokens, do_sample=False, stopping_criteria=criteria)
        return said(self.model.generate(**inputs, **more))

    def tail(self, turns, begun, ending):
        """The tokens of an answer's ending, and the log-probabilities of all in their places."""
        import torch

        asked = self.asked(turns, begun).input_ids[0].tolist()
        inputs = self.asked(turns, begun + ending)
        full = inputs.input_ids[0].tolist()
        if full[: len(asked)] != asked or len(full) == len(asked):
            raise ValueError(f"the answer {ending!r} merges with what comes before it")
        with torch.no_grad():
            logits = self.model(**inputs).logits[0, len(asked) - 1 : -1]
        return full[len(asked) :], logits.float().log_softmax(-1)


def named(part):
    kind = "text" if isinstance(part, str) else "image"
    return {"type": kind, kind: part}
