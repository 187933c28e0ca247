"""VILA-U (mit-han-lab/vila-u at 096623c): its own calls, one prompt at a time, on a CUDA GPU.

Upstream puts tensors on `.cuda()` whatever one asks, and replaces files of transformers 4.36.2 in
the environment (environment_setup.sh), which `gapbench prepare` does too.
"""

from __future__ import annotations

import os
import sys
import warnings

REPLY_TOKENS = 100
SPECIAL = ("<image>", "<im_start>", "<im_end>", "<vi_start>", "<vi_end>", "<s>", "</s>")
HEAD = "ASSISTANT:"
ROLES = {"user": "human", "assistant": "gpt"}
REPLACED = "vila_u/train/transformers_replace"


class Worker:
    capabilities = ("generate", "judge_logits", "judge_text", "text")
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

    def greedy(self, tokens):
        config = self.model.default_generation_config
        config.update(do_sample=False, temperature=1.0, top_p=1.0, top_k=50)
        config.max_new_tokens = tokens
        return config

    def reply(self, images, questions):
        config = self.greedy(REPLY_TOKENS)
        for image, question in zip(images, questions):
            yield self.model.generate_content([image, question], generation_config=config)

    def judge(self, images, questions, answers):
        for image, question in zip(images, questions):
            turns = [("user", [image, question])]
            tails = [after(self.model.tokenizer, HEAD, answer) for answer in answers]
            contexts = {tuple(tail[:-1]) for tail in tails}
            found = {context: self.odds(turns, context) for context in contexts}
            yield [
                sum(float(found[tuple(tail[:-1])][i, token]) for i, token in enumerate(tail))
                for tail in tails
            ]

    def complete(self, talks, tokens, until):
        import torch
        from transformers import StoppingCriteriaList

        def said(ids):
            return self.model.tokenizer.decode(ids[0], skip_special_tokens=True)

        def stop(ids, _scores, **_more):
            ended = any(word in said(ids) for word in until if word)
            return torch.tensor([ended], device=ids.device)

        criteria = StoppingCriteriaList([stop] if until else [])
        for turns, begun in talks:
            start = after(self.model.tokenizer, HEAD, begun) if begun else []
            embeds, mask = self.embedded(turns, start, tokens)
            # Past generate() of the whole, which draws where it is shown no image.
            ids = self.model.llm.generate(
                inputs_embeds=embeds,
                attention_mask=mask,
                generation_config=self.greedy(tokens),
                stopping_criteria=criteria,
            )
            yield said(ids)

    def score(self, talks, endings):
        for (turns, begun), ending in zip(talks, endings):
            start = after(self.model.tokenizer, HEAD, begun) if begun else []
            whole = after(self.model.tokenizer, HEAD, begun + ending)
            if whole[: len(start)] != start or len(whole) == len(start):
                raise ValueError(f"the answer {ending!r} merges with what comes before it")
            odds, tail = self.odds(turns, whole[:-1])[len(start) :], whole[len(start) :]
            total = sum(float(odds[i, token]) for i, token in enumerate(tail))
            yield total, odds.argmax(-1).tolist() == tail

    def odds(self, turns, answer):
        """Log-probabilities of all tokens after a chat, and after each token of its answer."""
        import torch

        embeds, mask = self.embedded(turns, answer)
        with torch.no_grad():
            # As generate() does, where the mask says how long each row is.
            logits = self.model.llm(inputs_embeds=embeds, attention_mask=mask).logits
        return logits[0, -len(answer) - 1 :].float().log_softmax(-1)

    def embedded(self, turns, answer, more=0):
        """Embeddings and mask of a chat and of the tokens that its answer begins with."""
        import torch
        from vila_u.mm_utils import process_images
        from vila_u.utils.media import extract_media
        from vila_u.utils.tokenizer import tokenize_conversation

        model = self.model
        talk = [{"from": ROLES[role], "value": said} for role, said in turns]
        if talk[0]["from"] != "human":  # whom upstream would leave out
            raise ValueError("a chat begins with what the user says")
        shown = extract_media(talk, model.config).get("image")
        asked = tokenize_conversation(talk, model.tokenizer, add_generation_prompt=True)
        ids = torch.cat([asked, torch.tensor(answer, dtype=torch.long)])
        ids = ids.unsqueeze(0).to(model.device)
        mask = torch.ones_like(ids, dtype=torch.bool)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("error", message="Inputs truncated")
            if shown:
                pixels = process_images(shown, model.vision_tower.image_processor, model.config)
                pixels = pixels.to(model.device, dtype=model.llm.dtype)
                _, _, mask, _, embeds, _ = model.prepare_inputs_labels_for_multimodal(
                    ids, None, mask, None, None, pixels
                )
            else:
                embeds = model.llm.model.embed_tokens(ids)
        room = model.tokenizer.model_max_length
        if embeds.shape[1] + more > room:
            raise ValueError(f"it takes {embeds.shape[1]} tokens and up to {more} more, of {room}")
        return embeds.to(model.llm.dtype), mask


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
