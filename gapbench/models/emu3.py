"""Emu3 (BAAI) in transformers' own classes: one vocabulary for text and images, often two
checkpoints of one base, Gen to draw and Chat to judge.

An image is rows of codes, each closed by an end-of-line token; these and the end tokens are forced,
so they are fed and never drawn. Source: baaivision/Emu3 f6ea9aa, image_generation.py and emu3/mllm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import linear

from gapbench.files import digest
from gapbench.models.autoregressive.answers import require_places
from gapbench.models.autoregressive.draw import Language
from gapbench.models.autoregressive.model import (
    PADDED,
    AutoregressiveModel,
    Images,
    Role,
)
from gapbench.models.autoregressive.questions import Reader
from gapbench.models.autoregressive.sampling import Recipe
from gapbench.models.base import IMAGE
from gapbench.models.checkpoint import load_pretrained, require_weights, settings_files
from gapbench.models.entry import Entry, changed, pick_device, weights
from gapbench.models.registry import JANUS_RECIPE, MODELS
from gapbench.types import GapbenchError

ADAPTER: Final = "emu3-2"
SYSTEM: Final = "You are a helpful assistant."
TURNS: Final = {"user": " USER: {}. ASSISTANT:", "assistant": " {}"}
DOWN: Final = 8
"""Pixels of an image's side for each code (Emu3Processor.downsample_ratio)."""


class Emu3Model(AutoregressiveModel):
    """Adapter for one folder that draws and one that judges, which may be the same.

    `recipe` has the keys of the registry's emu3. Image tokens are codes in reading order, (height *
    width,), without the forced tokens, and their probabilities are among codes alone. `origin`
    stands for the files' digest in the fingerprint.
    """

    capabilities = MODELS["emu3"].capabilities
    parts: Mapping[str, str] = {"language-model": r"model\.text_model\..+"}
    closing = 3

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
        whole = dict(recipe or MODELS["emu3"].recipe)
        sampling = Recipe(**{key: whole[key] for key in JANUS_RECIPE})
        if whole["image_area"] < DOWN * DOWN:
            raise GapbenchError(f"recipe: image_area is {whole['image_area']}, must be at least 64")
        self.side = round(whole["image_area"] ** 0.5 / DOWN)
        folders: dict[Role, Path] = {"gen": gen, "und": und}
        files = {role: require_weights(f"model {name}", folder) for role, folder in folders.items()}
        super().__init__(name, folders, files["gen"], sampling, device, dtype)
        self.recipe = whole | self.recipe
        header = f"{ADAPTER} {self.dtype}\n{origin or ''}"
        for role, own in files.items() if not origin else ():
            header = digest(f"{header}{role}\n", own + settings_files(folders[role]))
        self.fingerprint = digest(header, [])

    # -- loading ---------------------------------------------------------------------------

    def _load(self, folder: Path) -> Any:
        return load_pretrained(
            self._who, "Emu3ForConditionalGeneration", folder, self.dtype, self.device
        )

    def _load_processor(self, folder: Path) -> Any:
        from transformers import Emu3Processor

        return Emu3Processor.from_pretrained(folder, local_files_only=True)

    @property
    def codes(self) -> int:
        return len(self._codes()[0])

    # -- drawing ---------------------------------------------------------------------------

    @property
    def _core(self) -> Any:
        return self.network.model.text_model

    @property
    def _lengths(self) -> tuple[int, int]:
        return self.side * self.side, self.side * (self.side + 1)

    def _heads(
        self, prompts: Sequence[str], unconditional: Sequence[bool] = ()
    ) -> tuple[list[str], Tensor, Tensor]:
        processor = self.processor()
        texts = [prompt + self.recipe["positive"] for prompt in prompts]
        for place in np.flatnonzero(unconditional):
            texts[place] = self.recipe["negative"]
        batch = processor(
            text=texts,
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
        mapping = self.network.vocabulary_mapping
        ids = mapping.img2bpe_mapping_tensor.long().to(self.device)
        return ids, int(mapping.eol_token_id)

    def _language(self) -> Language:
        (codes, end), embed = self._codes(), self._core.get_input_embeddings()
        # A view, which a training changes too: what draws is kept.
        first, last = int(codes.min()), int(codes.max())
        weight, places = self.network.lm_head.weight[first : last + 1], codes - first
        return Language(
            head=lambda hidden: linear(hidden, weight)[..., places],
            embed=lambda token: embed(codes[token]),
            line=self.side,
            between=embed.weight[end],
        )

    def _row(self, tokens: Tensor) -> tuple[Tensor, Any]:
        codes, end = self._codes()
        lines = codes[tokens].reshape(-1, self.side, self.side)
        lines = torch.cat([lines, torch.full_like(lines[..., :1], end)], 2).flatten(1)
        # What follows the last code of a line is its end, which is forced.
        places = torch.arange(lines.shape[1] - 1, device=self.device) % (self.side + 1) != self.side
        return self._core.get_input_embeddings()(lines[:, :-2]), places

    def _brightness(self, tokens: Tensor) -> Tensor:
        grid = tokens.reshape(-1, self.side, self.side)
        pixels = self.network.model.vqmodel.decode(grid).float().permute(0, 2, 3, 1)
        how = self.processor().image_processor
        mean, std = (pixels.new_tensor(value) for value in (how.image_mean, how.image_std))
        brightness: Tensor = pixels * std + mean
        return brightness

    # -- judging and texts -----------------------------------------------------------------

    def chat(self, turns: Sequence[Mapping[str, str]]) -> str:
        """In upstream's words (processing_emu3.py, chat_template), which end each of the user's
        texts with a full stop; the template in a checkpoint's folder may say something else."""
        said = "".join(TURNS[turn["role"]].format(turn["content"]) for turn in turns)
        return f"{SYSTEM}{said}".replace(IMAGE, self.processor("und").image_token)

    @property
    def _features(self) -> Any:
        return self.module("und").model.vqmodel.quant_conv

    def _chat(self, question: str) -> str:
        return self.chat([{"role": "user", "content": f"{IMAGE}{question}"}])

    def _rows(self, images: Images, texts: Sequence[str]) -> list[list[int]]:
        """Each picture is cut into codes alone: padded to another's size, its edge would depend on
        it."""
        processor, module, rows = self.processor("und"), self.module("und"), []
        require_places(texts, images, processor.image_token, self._who)
        for own, text in zip(images, texts, strict=True):
            # transformers takes a side of 1 or 3 pixels for the channels.
            pictures = [
                image.convert("RGB").resize((max(image.width, DOWN), max(image.height, DOWN)))
                for image in own
            ]
            one = processor(text=[text], images=pictures or None, return_tensors="pt")
            ids = one["input_ids"][0].to(self.device)
            codes = []
            for picture in pictures:
                seen = processor.image_processor([picture], return_tensors="pt")
                pixels = seen["pixel_values"].to(self.device, module.dtype)
                codes.append(module.model.get_image_tokens(pixels, seen["image_sizes"]))
            if codes:
                ids[ids == processor.image_token_id] = torch.cat(codes).to(ids)
            rows.append(ids.tolist())
        return rows

    def _reader(self, images: Sequence[Image.Image]) -> Reader:  # noqa: ARG002 (rows are codes)
        module = self.module("und")
        core = module.model.text_model
        return Reader(
            lambda ids, _images: core.get_input_embeddings()(ids),
            *self.blocks.asking(module, core),
            module.lm_head,
            self.blocks.asked,
        )

    def _cut(self, texts: list[str]) -> list[list[int]]:
        return list(self.processor("und").tokenizer(texts, add_special_tokens=False)["input_ids"])


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
