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
from torch.nn.functional import linear

from gapbench.files import digest, first_line
from gapbench.models import lora, torchvision_shim
from gapbench.models.autoregressive.answers import answer_ids, answer_logprobs, positions
from gapbench.models.autoregressive.continuations import Continuing, Images, Reader, greedy, parts
from gapbench.models.autoregressive.decode import Decoder, draw_tokens
from gapbench.models.autoregressive.sampling import Recipe, logprobs_of
from gapbench.models.base import IMAGE, Batches, Drawing, Model, require_shared
from gapbench.models.checkpoint import hub_weights, load_pretrained, settings_files
from gapbench.models.entry import Entry, changed, pick_device, weights
from gapbench.models.janus.adapter import PADDED, REPLY_TOKENS, SMALL
from gapbench.models.registry import MODELS
from gapbench.types import GapbenchError

if TYPE_CHECKING:
    from transformers import Emu3ForConditionalGeneration, Emu3Processor

ADAPTER: Final = "emu3-1"
SYSTEM: Final = "You are a helpful assistant."
DOWN: Final = 8
"""Pixels of an image's side for each code (Emu3Processor.downsample_ratio)."""


class Emu3Model(Continuing, Model):
    """Adapter for one folder that draws and one that judges, which may be the same.

    `recipe` has the keys of the registry's emu3. Weights are on the device one folder at a time.
    Image tokens are codes in reading order, (height * width,), without the forced tokens, and their
    probabilities are among codes alone. `origin` stands for the files' digest in the fingerprint.
    """

    capabilities = MODELS["emu3"].capabilities
    device: str
    dtype: str
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
        self.recipe: dict[str, Any] = dict(recipe or MODELS["emu3"].recipe)
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
        self.batches = Batches.on(self.device, small)
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

    @torch.inference_mode(False)  # also where a method under it loads: weights have gradients
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
        for token in self.processor("gen").tokenizer.get_added_vocab():
            if token.strip() and token in text:
                return f"it contains {token!r}, which {self.name} reads as a special token"
        room = self._context("gen")
        tokens = self._heads([text])[1].shape[1] + self.side * (self.side + 1) + 3
        if tokens > room:
            return f"with its image it takes {tokens} tokens, {self.name} has room for {room}"
        return None

    def _context(self, role: str) -> int:
        from transformers import Emu3Config

        config = Emu3Config.from_pretrained(self.folders[role], local_files_only=True)
        return int(config.text_config.max_position_embeddings)

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
        distinct = list(dict.fromkeys(prompts))
        texts = [prompt + self.recipe["positive"] for prompt in distinct]
        effective, ids, mask = self._heads(
            [*texts, self.recipe["negative"]] if recipe.guided else texts
        )
        order = [distinct.index(prompt) for prompt in prompts]
        rows = order + [len(distinct)] * count * recipe.guided
        decoder = Decoder(core, ids[rows], mask[rows], self.side * (self.side + 1))
        fed = 0

        def put(ids: Tensor) -> Tensor:
            embeds = core.get_input_embeddings()(ids)
            return decoder.step(embeds.repeat(2, 1) if recipe.guided else embeds)

        def feed(token: Tensor) -> Tensor:
            nonlocal fed
            hidden, fed = put(codes[token]), fed + 1
            return hidden if fed % self.side else put(torch.full_like(token, end))

        tokens, logprobs = draw_tokens(
            decoder.hidden, lambda hidden: linear(hidden, head), feed, recipe, seeds,
            self.side * self.side,
        )  # fmt: skip
        return [
            Drawing(self.decode(row), row, effective[place], logprob)
            for place, row, logprob in zip(order, tokens, logprobs, strict=True)
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
        return linear(hidden[:, drawn], module.lm_head.weight[codes])

    def image_logprobs(
        self,
        prompts: Sequence[str],
        tokens: NDArray[np.int32],
        unconditional: bool | Sequence[bool] = False,
    ) -> Tensor:
        target = torch.as_tensor(tokens, device=self.device).long()
        return logprobs_of(self.image_logits(prompts, tokens, unconditional), target)

    # -- judging ---------------------------------------------------------------------------

    def chat(self, turns: Sequence[Mapping[str, str]]) -> str:
        chat = [
            {"role": "system", "content": [{"type": "text", "text": SYSTEM}]},
            *({"role": t["role"], "content": parts(t["content"])} for t in turns),
        ]
        return str(self.processor("und").apply_chat_template(chat, add_generation_prompt=True))

    def _chat(self, question: str) -> str:
        return self.chat([{"role": "user", "content": f"{IMAGE}{question}"}])

    def _asked(self, images: Images, texts: Sequence[str]) -> dict[str, Tensor]:
        """Left-padded ids and mask. Each picture is cut into codes alone: padded to another's size,
        its edge would depend on it."""
        processor, module, rows = self.processor("und"), self.module("und"), []
        for own, text in zip(images, texts, strict=True):
            # transformers takes a side of 1 or 3 pixels for the channels.
            pictures = [
                image.convert("RGB").resize((max(image.width, DOWN), max(image.height, DOWN)))
                for image in own
            ]
            ids = processor(text=[text], images=pictures or None, return_tensors="pt")["input_ids"][
                0
            ]
            ids = ids.to(self.device)
            codes = []
            for picture in pictures:
                one = processor.image_processor([picture], return_tensors="pt")
                pixels = one["pixel_values"].to(self.device, module.dtype)
                codes.append(module.model.get_image_tokens(pixels, one["image_sizes"]))
            if codes:
                ids[ids == processor.image_token_id] = torch.cat(codes).to(ids)
            rows.append(ids.tolist())
        return dict(processor.tokenizer.pad({"input_ids": rows}, **PADDED).to(self.device))

    def answer_logprobs(
        self, images: Sequence[Image.Image], questions: Sequence[str], answers: Sequence[str]
    ) -> Tensor:
        texts, tokenizer = [self._chat(q) for q in questions], self.processor("und").tokenizer
        tails = answer_ids(self._cut, texts, answers, f"model {self.name}")
        batch = self._asked([[image] for image in images], texts)
        return answer_logprobs(self.module("und"), batch, tails, tokenizer.pad_token_id, images)

    @torch.inference_mode()
    def judge(
        self, images: Sequence[Image.Image], questions: Sequence[str], answers: Sequence[str]
    ) -> NDArray[np.float64]:
        return self.answer_logprobs(images, questions, answers).numpy()

    @torch.inference_mode()
    def reply(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[str]:
        batch = self._asked([[i] for i in images], [self._chat(question) for question in questions])
        tokenizer = self.processor("und").tokenizer
        said = greedy(self.module("und"), tokenizer, batch, REPLY_TOKENS)
        return [words.strip() for words in said]

    def _cut(self, text: str) -> list[int]:
        return list(self.processor("und").tokenizer(text, add_special_tokens=False)["input_ids"])

    def _reader(self) -> Reader:
        processor = self.processor("und")
        return Reader(
            who=f"model {self.name}",
            module=self.module("und"),
            tokenizer=processor.tokenizer,
            batch=self._asked,
            cut=self._cut,
            mark=processor.image_token,
            room=self._context("und"),
        )


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
    return Emu3Model(name, gen, und, changed(name, MODELS["emu3"].recipe, recipe), device, dtype)
