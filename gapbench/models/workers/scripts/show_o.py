"""Show-o (showlab/Show-o at 45a5a2d) and HermesFlow (Gen-Verse/HermesFlow at d6cf91a).

HermesFlow is another checkpoint of the same code. Prompts, masks and the schedule are upstream's
functions, as inference_t2i.py and inference_mmu.py call them; the sampling loop is written anew
after models/modeling_showo.py (t2i_generate), which draws a whole batch from one stream. Here each
sample has its own; one sample alone gets the very tokens of upstream's loop.
"""

from __future__ import annotations

import os
import sys

MAX_TEXT = 128  # dataset.preprocessing.max_seq_length in configs/showo_demo_512x512.yaml
TOGETHER = 8  # at 512 x 512 the logits of 8 images and their unconditional rows take 4.3 GB
REPLY_TOKENS = 100  # max_new_tokens in configs/hermesflow_demo_512x512.yaml
SPECIAL = (
    "<|soi|>", "<|eoi|>", "<|sov|>", "<|eov|>", "<|t2i|>", "<|mmu|>", "<|t2v|>", "<|v2v|>",
    "<|lvg|>",
)  # fmt: skip


class Worker:
    capabilities = ("generate", "judge_logits", "judge_text", "image_tokens")
    packages = ("torch", "torchvision", "transformers", "diffusers", "numpy", "pillow")

    def __init__(self, settings):
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        sys.path.insert(0, settings["repo"])
        self.settings, self.recipe = settings, settings["recipe"]
        self.folders = settings["checkpoints"]
        self.tokens = (self.recipe["size"] // 16) ** 2
        self._prompting = None

    @property
    def prompting(self):
        """Upstream's tokenizer with its nine marks; needs no weights."""
        if self._prompting is None:
            from training.prompting_utils import UniversalPrompting
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(self.folders["text"], padding_side="left")
            self._prompting = UniversalPrompting(
                tokenizer, max_text_len=MAX_TEXT, special_tokens=SPECIAL, ignore_id=-100
            )
        return self._prompting

    def mark(self, name):
        return int(self.prompting.sptids_dict[name])

    def load(self):
        import torch
        from models import MAGVITv2, Showo

        device = self.settings["device"]
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)
        self.vq = MAGVITv2.from_pretrained(self.folders["vq"]).to(self.device).eval()
        # Its config names microsoft/phi-1_5, of which only the configuration is read.
        self.model = Showo.from_pretrained(
            self.folders["model"], llm_model_path=self.folders["text"]
        )
        self.model = self.model.to(self.device).eval()
        self.codes = len(self.prompting.text_tokenizer)  # id of the first image code
        self.codebook = self.model.config.codebook_size
        if self.model.config.vocab_size != self.codes + self.codebook + 1:
            raise ValueError(
                f"the model has {self.model.config.vocab_size} tokens, the tokenizer "
                f"{self.codes} and the codebook {self.codebook}: they do not belong together"
            )

    def refuses(self, prompt):
        tokenizer = self.prompting.text_tokenizer
        for mark in [*SPECIAL, tokenizer.pad_token, tokenizer.eos_token]:
            if mark in prompt:
                return f"it contains {mark!r}, which the model reads as a special token"
        count, room = len(tokenizer(prompt)["input_ids"]), MAX_TEXT - 2
        if count > room:  # upstream would cut it in silence
            return f"it takes {count} tokens, the model has room for {room}"
        return None

    def draw(self, prompts, seeds):
        for start in range(0, len(prompts), TOGETHER):
            batch = slice(start, start + TOGETHER)
            yield from self.draw_together(prompts[batch], seeds[batch])

    def draw_together(self, prompts, seeds):
        import torch
        from models import get_mask_chedule
        from models.sampling import mask_by_random_topk
        from PIL import Image
        from training.prompting_utils import create_attention_mask_predict_next

        count, steps = self.tokens, self.recipe["steps"]
        # Upstream's "temperature" is that of the choice which codes stay; codes are drawn at 1.
        guidance, temperature = self.recipe["guidance"], self.recipe["mask_noise"]
        masked = self.model.config.mask_token_id
        streams = [torch.Generator(self.device).manual_seed(seed) for seed in seeds]
        blank = torch.full((len(prompts), count), masked, dtype=torch.long, device=self.device)
        ids, _ = self.prompting((list(prompts), blank), "t2i_gen")
        rows = ids
        if guidance > 0:
            without, _ = self.prompting(([""] * len(prompts), blank), "t2i_gen")
            rows = torch.cat([ids, without])
        attention = create_attention_mask_predict_next(
            rows,
            pad_id=self.mark("<|pad|>"),
            soi_id=self.mark("<|soi|>"),
            eoi_id=self.mark("<|eoi|>"),
            rm_pad_in_image=True,
        )
        place = slice(-(count + 1), -1)
        schedule = get_mask_chedule("cosine")
        known = blank  # codes, or `masked` where none is settled
        with torch.no_grad():
            for step in range(steps):
                image = torch.where(known == masked, masked, known + self.codes)
                rows[:, place] = image.repeat(len(rows) // len(image), 1)
                logits = self.model(rows, attention_mask=attention)[:, place, self.codes : -1]
                if guidance > 0:
                    with_text, without_text = logits.chunk(2)
                    logits = (1 + guidance) * with_text - guidance * without_text
                probs = logits.softmax(dim=-1)
                drawn = torch.stack(
                    [
                        torch.multinomial(row, 1, generator=stream)[:, 0]
                        for row, stream in zip(probs, streams)
                    ]
                )
                open_ = known == masked
                drawn = torch.where(open_, drawn, known)
                chosen = probs.gather(-1, drawn.unsqueeze(-1)).squeeze(-1)
                chosen = torch.where(open_, chosen, torch.finfo(chosen.dtype).max)
                ratio = (step + 1) / steps
                length = (count * schedule(torch.tensor(ratio))).floor().to(self.device)
                # One at least is settled, and one at least stays open.
                length = (open_.sum(-1, keepdim=True) - 1).clamp(max=length).clamp(min=1)
                temperature = temperature * (1.0 - ratio)  # upstream compounds it
                again = torch.cat(
                    [
                        mask_by_random_topk(
                            length[i : i + 1], chosen[i : i + 1], temperature, generator=stream
                        )
                        for i, stream in enumerate(streams)
                    ]
                )
                known = torch.where(again, masked, drawn)
            for prompt, tokens in zip(prompts, drawn.clamp(0, self.codebook - 1)):
                pixels = ((self.vq.decode_code(tokens.unsqueeze(0))[0] + 1.0) / 2.0).clamp(0, 1)
                pixels = (pixels * 255.0).permute(1, 2, 0).to("cpu", torch.uint8).numpy()
                yield Image.fromarray(pixels), tokens.tolist(), prompt, None

    def question(self, image, question):
        """Ids of an image and a question about it."""
        import torch
        from training.utils import image_transform

        pixels = image_transform(image, resolution=self.recipe["size"]).unsqueeze(0)
        with torch.no_grad():
            codes = self.vq.get_code(pixels.to(self.device))[0] + self.codes
        text = self.prompting.text_tokenizer(f"USER: \n{question} ASSISTANT:")["input_ids"]
        head = [self.mark("<|mmu|>"), self.mark("<|soi|>"), *codes.tolist(), self.mark("<|eoi|>")]
        return [*head, self.mark("<|sot|>"), *text]

    def answers(self, question, answers):
        """Ids of each answer after the question, which must not change how that is cut."""
        tokenizer = self.prompting.text_tokenizer
        asked = tokenizer(f"USER: \n{question} ASSISTANT:")["input_ids"]
        for answer in answers:
            full = tokenizer(f"USER: \n{question} ASSISTANT:{answer}")["input_ids"]
            if full[: len(asked)] != asked or len(full) == len(asked):
                raise ValueError(f"the answer {answer!r} merges with the question's last token")
            yield full[len(asked) :]

    def judge(self, images, questions, answers):
        for start in range(0, len(images), TOGETHER):
            batch = slice(start, start + TOGETHER)
            yield from self.judge_together(images[batch], questions[batch], answers)

    def judge_together(self, images, questions, answers):
        import torch
        from training.prompting_utils import create_attention_mask_for_mmu

        heads = [self.question(image, q) for image, q in zip(images, questions)]
        tails = [list(self.answers(question, answers)) for question in questions]
        # Answers that differ in their last token only are read off one row.
        rows = []
        for head, tail in zip(heads, tails):
            rows += [[*head, *context] for context in sorted({tuple(ids[:-1]) for ids in tail})]
        width = max(map(len, rows))
        pad = self.mark("<|pad|>")  # on the right, where no token before it can see it
        padded = [row + [pad] * (width - len(row)) for row in rows]
        ids = torch.tensor(padded, device=self.device)
        attention = create_attention_mask_for_mmu(ids, eoi_id=self.mark("<|eoi|>"))
        with torch.no_grad():
            logits = self.model(ids, attention_mask=attention)
        for head, tail in zip(heads, tails):
            found = []
            for answer in tail:
                row = rows.index([*head, *answer[:-1]])
                at = logits[row, len(head) - 1 : len(head) - 1 + len(answer)].log_softmax(-1)
                found.append(sum(float(at[i, token]) for i, token in enumerate(answer)))
            yield found

    def reply(self, images, questions):
        import torch
        from training.prompting_utils import create_attention_mask_for_mmu

        for image, question in zip(images, questions):
            ids = torch.tensor([self.question(image, question)], device=self.device)
            attention = create_attention_mask_for_mmu(ids, eoi_id=self.mark("<|eoi|>"))
            said = self.model.mmu_generate(
                ids,
                attention_mask=attention,
                max_new_tokens=REPLY_TOKENS,
                top_k=1,
                eot_token=self.prompting.sptids_dict["<|eot|>"],
            )
            tokens = torch.stack(said).flatten().tolist()
            yield self.prompting.text_tokenizer.decode(tokens, skip_special_tokens=True)
