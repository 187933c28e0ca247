"""Emu3 (BAAI) in transformers' own classes: one vocabulary for text and images, often two
checkpoints of one base, Gen to draw and Chat to judge.

An image is rows of codes, each closed by an end-of-line token; these and the end tokens are forced,
so they are fed and never drawn. Source: baaivision/Emu3 f6ea9aa, image_generation.py and emu3/mllm.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from gapbench import torchvision_shim
from gapbench.models import lora
from gapbench.models.answers import answer_ids, answer_logprobs, positions
from gapbench.models.base import Drawing, require_shared
from gapbench.models.cache import roomy
from gapbench.models.checkpoint import (
    digest,
    first_line,
    hub_weights,
    load_pretrained,
    settings_files,
)
from gapbench.models.janus import PADDED, REPLY_TOKENS, SMALL
from gapbench.models.registry import HUB, NATIVE, Entry, changed, pick_device, weights
from gapbench.models.sampling import Recipe, draw, guide, token_logprobs, uniforms, warp
from gapbench.types import GapbenchError

if TYPE_CHECKING:
    from transformers import Emu3ForConditionalGeneration, Emu3Processor

ADAPTER: Final = "emu3-1"
SYSTEM: Final = "You are a helpful assistant."
DOWN: Final = 8
"""Pixels of an image's side for each code (Emu3Processor.downsample_ratio)."""


class Emu3Model:
    """Adapter for one folder that draws and one that judges, which may be the same.

    `recipe` has the keys of the registry's emu3. Weights are on the device one folder at a time.
    Image tokens are codes in reading order, (height * width,), without the forced tokens, and their
    probabilities are among codes alone. `origin` stands for the files' digest in the fingerprint.
    """

    capabilities = NATIVE
    parts: Mapping[str, str] = {"language-model": r"model\.text_model\..+"}

    def __init__(
        self,
        name: str,
        gen: Path,
        und: Path,
        recipe: Mapping[str, Any] | None = None,
        device: str = "auto",
        dtype: str = "auto",
        origin: str | None = None,
    ) -> None:
        self.name, self.folders = name, {"gen": gen, "und": und}
        self.pair = gen != und
        self.recipe: dict[str, Any] = dict(recipe or HUB["emu3"].recipe)
        self._sampling = Recipe(
            **{key: self.recipe[key] for key in ("guidance", "temperature", "top_k", "top_p")}
        )
        if self.recipe["image_area"] < DOWN * DOWN:
            raise GapbenchError(
                f"recipe: image_area is {self.recipe['image_area']}, must be at least 64"
            )
        self.side = round(self.recipe["image_area"] ** 0.5 / DOWN)
        files = {role: hub_weights(folder) for role, folder in self.folders.items()}
        for role, found in files.items():
            if not found:
                raise GapbenchError(f"model {name}: no .safetensors file in {self.folders[role]}")
        self.device = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        small = sum(f.stat().st_size for f in files["gen"]) < SMALL
        auto = "bfloat16" if self.device != "cpu" else "float64" if small else "float32"
        self.dtype = auto if dtype == "auto" else dtype
        header = f"{ADAPTER} {self.dtype}\n{origin or ''}"
        for role, found in files.items() if not origin else ():
            header = digest(f"{header}{role}\n", found + settings_files(self.folders[role]))
        self.fingerprint = digest(header, [])
        self._lora: Path | None = None
        self._module: tuple[str, Emu3ForConditionalGeneration] | None = None
        self._processors: dict[str, Emu3Processor] = {}

    # -- loading ---------------------------------------------------------------------------

    def load(self) -> None:
        self.module("gen")

    def release(self) -> None:
        self._module = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def module(self, role: str) -> Emu3ForConditionalGeneration:
        """The transformers model that draws ("gen") or judges ("und"), loaded."""
        folder = self.folders[role]
        if self._module is None or self.folders[self._module[0]] != folder:
            self.release()
            who = f"model {self.name}"
            model = load_pretrained(
                who, "Emu3ForConditionalGeneration", folder, self.dtype, self.device
            )
            if self._lora and folder == self.folders["gen"]:
                lora.merge(who, model, self._lora)
            self._module = (role, model)
        return self._module[1]

    @property
    def network(self) -> Emu3ForConditionalGeneration:
        return self.module("gen")

    def use(self, network: torch.nn.Module) -> None:
        require_shared(self, "a network in memory")
        self._module = ("gen", cast("Emu3ForConditionalGeneration", network))
        self.device = str(next(network.parameters()).device)

    def processor(self, role: str) -> Emu3Processor:
        """The tokenizer and image processor of a folder; needs no weights."""
        if role not in self._processors:
            torchvision_shim.ensure()
            from transformers import Emu3Processor

            try:
                found = Emu3Processor.from_pretrained(self.folders[role], local_files_only=True)
                if not found.chat_template:
                    raise ValueError("it has no chat template")
            except Exception as error:  # json, tokenizers and transformers raise many kinds
                raise GapbenchError(
                    f"model {self.name}: cannot load the processor in {self.folders[role]}: "
                    f"{first_line(error)}"
                ) from error
            self._processors[role] = found
        return self._processors[role]

    @property
    def codes(self) -> int:
        return len(self._codes()[0])

    def adapt(self, folder: Path) -> None:
        """Put a LoRA adapter on the weights that draw; before they are loaded."""
        self.name, self._lora = folder.resolve().name, folder
        self.fingerprint = lora.fingerprint(self.fingerprint, folder)

    def save(self, folder: Path) -> None:
        """Write a checkpoint; of a pair, one each into gen/ and und/."""
        target = folder / "gen" if self.pair else folder
        self.module("gen").save_pretrained(target)
        self.processor("gen").tokenizer.backend_tokenizer.no_padding()
        self.processor("gen").save_pretrained(target)
        if self.pair:
            shutil.copytree(self.folders["und"], folder / "und", dirs_exist_ok=True)

    def refuses(self, text: str) -> str | None:
        from transformers import Emu3Config

        for token in self.processor("gen").tokenizer.get_added_vocab():
            if token.strip() and token in text:
                return f"it contains {token!r}, which {self.name} reads as a special token"
        config = Emu3Config.from_pretrained(self.folders["gen"], local_files_only=True)
        room = config.text_config.max_position_embeddings
        tokens = self._heads([text])[1].shape[1] + self.side * (self.side + 1) + 3
        if tokens > room:
            return f"with its image it takes {tokens} tokens, {self.name} has room for {room}"
        return None

    # -- drawing ---------------------------------------------------------------------------

    def _heads(self, texts: Sequence[str]) -> tuple[list[str], Tensor, Tensor]:
        """Effective prompts, and left-padded ids and mask up to the first code."""
        processor = self.processor("gen")
        batch = processor(
            text=list(texts),
            return_for_image_generation=True,
            ratio="1:1",
            image_area=self.recipe["image_area"],
            **PADDED,
        )
        ids, mask = batch["input_ids"].to(self.device), batch["attention_mask"].to(self.device)
        effective = [
            processor.tokenizer.decode(row[keep.bool()])
            for row, keep in zip(ids, mask, strict=True)
        ]
        return effective, ids, mask

    def _codes(self) -> tuple[Tensor, int]:
        """Token ids of the codes, in their order, and of the end of a line."""
        mapping = self.module("gen").vocabulary_mapping
        ids = mapping.img2bpe_mapping_tensor.long().to(self.device)
        return ids, int(mapping.eol_token_id)

    @torch.inference_mode()
    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Drawing]:
        module, recipe, count = self.module("gen"), self._sampling, len(prompts)
        core, (codes, end) = module.model.text_model, self._codes()
        head = module.lm_head.weight[codes]
        guided = recipe.guidance != 1
        distinct = list(dict.fromkeys(prompts))
        texts = [prompt + self.recipe["positive"] for prompt in distinct]
        effective, ids, mask = self._heads([*texts, self.recipe["negative"]] if guided else texts)
        order = [distinct.index(prompt) for prompt in prompts]
        rows = torch.tensor(order + [len(distinct)] * count * guided, device=self.device)

        # Each prompt's prefix, and the negative prompt's, is computed once for all samples.
        cache = roomy(self.side * (self.side + 1))
        hidden = core(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions(mask),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[rows, -1]
        cache.batch_select_indices(rows)
        mask = mask[rows]
        steps = self.side * self.side
        uniform = uniforms(list(seeds), steps)
        tokens = torch.empty(count, steps, dtype=torch.long, device=self.device)
        logprob = torch.zeros(count, dtype=torch.float64, device=self.device)
        for step in range(steps):
            logits = torch.nn.functional.linear(hidden, head).double()
            logprobs = warp(guide(logits, recipe.guidance) if guided else logits, recipe)
            token = draw(logprobs, uniform[:, step])
            tokens[:, step] = token
            logprob += logprobs.gather(1, token.unsqueeze(1)).squeeze(1)
            if step + 1 == steps:
                break
            fed = codes[token].unsqueeze(1)
            if (step + 1) % self.side == 0:
                fed = torch.cat([fed, torch.full_like(fed, end)], 1)
            position = mask.sum(1, keepdim=True) + torch.arange(fed.shape[1], device=self.device)
            mask = torch.cat([mask, mask.new_ones(len(mask), fed.shape[1])], 1)
            hidden = core(
                input_ids=fed.repeat(2, 1) if guided else fed,
                attention_mask=mask,
                position_ids=position,
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state[:, -1]
        ids_ = tokens.to("cpu", torch.int32).numpy()
        return [
            Drawing(self.decode(row), row, effective[place], float(total))
            for place, row, total in zip(order, ids_, logprob.tolist(), strict=True)
        ]

    @torch.inference_mode()
    def decode(self, tokens: NDArray[np.int32]) -> Image.Image:
        """(height * width,) codes to a picture. One at a time: its bytes depend on them alone."""
        grid = torch.from_numpy(tokens).long().reshape(1, self.side, self.side).to(self.device)
        pixels = self.module("gen").model.vqmodel.decode(grid)[0].float().permute(1, 2, 0)
        how = self.processor("gen").image_processor
        mean, std = (pixels.new_tensor(value) for value in (how.image_mean, how.image_std))
        levels = ((pixels * std + mean).clamp(0, 1) * 255).round().to(torch.uint8)
        return Image.fromarray(levels.cpu().numpy())

    def image_logits(
        self,
        prompts: Sequence[str],
        tokens: NDArray[np.int32],
        unconditional: bool | Sequence[bool] = False,
    ) -> Tensor:
        module, (codes, end) = self.module("gen"), self._codes()
        negative = np.broadcast_to(unconditional, len(prompts))
        texts = [
            self.recipe["negative"] if away else prompt + self.recipe["positive"]
            for prompt, away in zip(prompts, negative, strict=True)
        ]
        _, ids, mask = self._heads(texts)
        target = torch.from_numpy(tokens).long().to(self.device)
        lines = codes[target].reshape(len(texts), self.side, self.side)
        lines = torch.cat([lines, torch.full_like(lines[..., :1], end)], 2).flatten(1)
        ids, start = torch.cat([ids, lines[:, :-2]], 1), ids.shape[1]
        mask = torch.cat([mask, mask.new_ones(len(mask), lines.shape[1] - 2)], 1)
        hidden = module.model.text_model(
            input_ids=ids, attention_mask=mask, position_ids=positions(mask), use_cache=False
        ).last_hidden_state[:, start - 1 :]
        # What follows the last code of a line is its end, which is forced.
        drawn = torch.arange(hidden.shape[1], device=self.device) % (self.side + 1) != self.side
        return torch.nn.functional.linear(hidden[:, drawn], module.lm_head.weight[codes])

    def image_logprobs(
        self,
        prompts: Sequence[str],
        tokens: NDArray[np.int32],
        unconditional: bool | Sequence[bool] = False,
    ) -> Tensor:
        return token_logprobs(self.image_logits(prompts, tokens, unconditional), tokens)

    # -- judging ---------------------------------------------------------------------------

    def _chat(self, question: str) -> str:
        chat = [
            {"role": "system", "content": [{"type": "text", "text": SYSTEM}]},
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]},
        ]
        text: str = self.processor("und").apply_chat_template(chat, add_generation_prompt=True)
        return text

    def _asked(self, images: Sequence[Image.Image], texts: Sequence[str]) -> dict[str, Tensor]:
        """Left-padded ids and mask. Each picture is cut into codes alone: padded to another's size,
        its edge would depend on it."""
        processor, module, rows = self.processor("und"), self.module("und"), []
        for image, text in zip(images, texts, strict=True):
            # transformers takes a side of 1 or 3 pixels for the channels.
            size = (max(image.width, DOWN), max(image.height, DOWN))
            picture = image.convert("RGB")
            picture = picture.resize(size) if size != image.size else picture
            one = processor(text=[text], images=[picture], return_tensors="pt")
            ids = one["input_ids"][0].to(self.device)
            codes = module.model.get_image_tokens(
                one["pixel_values"].to(self.device, module.dtype), one["image_sizes"]
            )
            ids[ids == processor.image_token_id] = codes.to(ids)
            rows.append(ids.tolist())
        return dict(processor.tokenizer.pad({"input_ids": rows}, **PADDED).to(self.device))

    def answer_logprobs(
        self, images: Sequence[Image.Image], questions: Sequence[str], answers: Sequence[str]
    ) -> Tensor:
        texts, tokenizer = [self._chat(q) for q in questions], self.processor("und").tokenizer
        tails = answer_ids(
            lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
            texts,
            answers,
            f"model {self.name}",
        )
        batch = self._asked(images, texts)
        return answer_logprobs(self.module("und"), batch, tails, tokenizer.pad_token_id)

    @torch.inference_mode()
    def judge(
        self, images: Sequence[Image.Image], questions: Sequence[str], answers: Sequence[str]
    ) -> NDArray[np.float64]:
        return self.answer_logprobs(images, questions, answers).numpy()

    @torch.inference_mode()
    def reply(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[str]:
        batch = self._asked(images, [self._chat(question) for question in questions])
        tokenizer = self.processor("und").tokenizer
        out = self.module("und").generate(
            **batch,
            do_sample=False,
            max_new_tokens=REPLY_TOKENS,
            pad_token_id=tokenizer.pad_token_id,
        )
        words = out[:, batch["input_ids"].shape[1] :]
        return [str(t).strip() for t in tokenizer.batch_decode(words, skip_special_tokens=True)]


def make(name: str, entry: Entry, recipe: Mapping[str, Any], device: str, dtype: str) -> Emu3Model:
    """The adapter of a named pair, whose checkpoints are in the hub's cache."""
    device = pick_device(name, entry, device)
    folders = {role: weights(name, role, item) for role, item in entry.needs.items()}
    origin = " ".join(f"{entry.needs[role].repo}@{f.name}" for role, f in folders.items())
    return Emu3Model(name, folders["gen"], folders["und"], recipe, device, dtype, origin)


def from_folder(
    name: str, folder: Path, recipe: Mapping[str, object], device: str, dtype: str
) -> Emu3Model:
    """The adapter of one checkpoint, or of a folder with a pair in gen/ and und/."""
    pair = (folder / "gen").is_dir()
    gen, und = (folder / "gen", folder / "und") if pair else (folder, folder)
    return Emu3Model(name, gen, und, changed(name, HUB["emu3"].recipe, recipe), device, dtype)
