"""VILA-U (mit-han-lab/vila-u at 096623c): its own calls, one prompt at a time, on a CUDA GPU.

Upstream puts tensors on `.cuda()` whatever one asks, and replaces files of transformers 4.36.2 in
the environment (environment_setup.sh), which `gapbench prepare` does too.
"""

from __future__ import annotations

import os
import sys

REPLY_TOKENS = 100
SPECIAL = ("<image>", "<im_start>", "<im_end>", "<vi_start>", "<vi_end>", "<s>", "</s>")
REPLACED = "vila_u/train/transformers_replace"


class Worker:
    capabilities = ("generate", "judge_logits", "judge_text")
    packages = ("torch", "torchvision", "transformers", "accelerate", "numpy", "pillow")

    def __init__(self, settings):
        sys.path.insert(0, settings["repo"])
        self.settings, self.recipe = settings, settings["recipe"]

    def load(self):
        import torch
        import transformers

        if self.settings["device"] == "cpu" or not torch.cuda.is_available():
            raise ValueError("VILA-U runs on a CUDA GPU only, and torch sees none here")
        for folder, _, files in os.walk(os.path.join(self.settings["repo"], REPLACED)):
            for file in files:
                theirs = os.path.join(folder, file)
                inside = os.path.relpath(theirs, os.path.join(self.settings["repo"], REPLACED))
                ours = os.path.join(os.path.dirname(transformers.__file__), inside)
                if not same(theirs, ours):
                    raise ValueError(f"{ours} is not the file that VILA-U replaces it with")
        import vila_u

        self.model = vila_u.load(self.settings["checkpoints"]["model"])

    def refuses(self, prompt):
        for mark in SPECIAL:
            if mark in prompt:
                return f"it contains {mark!r}, which the model reads as a special token"
        return None

    def draw(self, prompts, seeds):
        import torch
        from PIL import Image

        for prompt, seed in zip(prompts, seeds):
            torch.manual_seed(seed)  # of the CPU and of every GPU
            with torch.no_grad():
                pixels = self.model.generate_image_content(prompt, cfg=self.recipe["guidance"])
            levels = pixels[0].permute(1, 2, 0).to("cpu", torch.uint8).numpy()
            yield Image.fromarray(levels), None, prompt, None

    def reply(self, images, questions):
        config = self.model.default_generation_config
        config.update(do_sample=False, temperature=1.0, top_p=1.0, top_k=50)
        config.max_new_tokens = REPLY_TOKENS
        for image, question in zip(images, questions):
            yield self.model.generate_content([image, question], generation_config=config)

    def judge(self, images, questions, answers):
        import torch
        from vila_u.mm_utils import process_images
        from vila_u.utils.media import extract_media
        from vila_u.utils.tokenizer import tokenize_conversation

        model, tokenizer = self.model, self.model.tokenizer
        for image, question in zip(images, questions):
            talk = [{"from": "human", "value": [image, question]}]
            shown = extract_media(talk, model.config)["image"]
            pixels = process_images(shown, model.vision_tower.image_processor, model.config)
            pixels = pixels.to(model.device, dtype=model.llm.dtype)
            asked = tokenize_conversation(talk, tokenizer, add_generation_prompt=True)
            tails = [after(tokenizer, "ASSISTANT:", answer) for answer in answers]
            found = {}
            for context in {tuple(tail[:-1]) for tail in tails}:
                ids = torch.cat([asked, torch.tensor(context, dtype=torch.long)])
                ids = ids.unsqueeze(0).to(model.device)
                with torch.no_grad():
                    _, _, mask, _, embeds, _ = model.prepare_inputs_labels_for_multimodal(
                        ids, None, torch.ones_like(ids, dtype=torch.bool), None, None, pixels
                    )
                    # As generate() does, where the mask says how long each row is.
                    logits = model.llm(
                        inputs_embeds=embeds.to(model.llm.dtype), attention_mask=mask
                    ).logits[0, -len(context) - 1 :]
                found[context] = logits.float().log_softmax(-1)
            yield [
                sum(float(found[tuple(tail[:-1])][i, token]) for i, token in enumerate(tail))
                for tail in tails
            ]


def after(tokenizer, head, answer):
    """Ids of an answer after a head, which must not change how the head is cut."""
    asked, full = tokenizer(head).input_ids, tokenizer(head + answer).input_ids
    if full[: len(asked)] != asked or len(full) == len(asked):
        raise ValueError(f"the answer {answer!r} merges with what comes before it")
    return full[len(asked) :]


def same(one, other):
    if not os.path.exists(other):
        return False
    with open(one, "rb") as first, open(other, "rb") as second:
        return first.read() == second.read()
