"""Janus (DeepSeek) in transformers' own classes, with our own sampler and verdict pass.

transformers' `generate(generation_mode="image")` draws all rows from one global stream, applies
top-k 50 unasked, has no guidance-free path and returns no log-probabilities; hence our own loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from gapbench.files import digest, read_object
from gapbench.models.autoregressive.answers import positions, require_places
from gapbench.models.autoregressive.continuations import parts
from gapbench.models.autoregressive.draw import Language
from gapbench.models.autoregressive.model import PADDED, AutoregressiveModel, Images
from gapbench.models.autoregressive.questions import Reader
from gapbench.models.autoregressive.sampling import Recipe, recipe_of
from gapbench.models.base import CAPABILITIES
from gapbench.models.checkpoint import load_pretrained, require_weights, settings_files
from gapbench.models.janus import original
from gapbench.types import GapbenchError

ADAPTER: Final = "janus-2"


class JanusModel(AutoregressiveModel):
    """Adapter for a folder with a Janus checkpoint in the hub's layout or in DeepSeek's.

    `origin`, a hub id at a commit, stands for the digest of the files in the fingerprint.
    """

    capabilities = frozenset(CAPABILITIES)
    parts: Mapping[str, str] = {
        "language-model": r"model\.language_model\..+",
        "generation": r"model\.(language_model|generation_(embeddings|aligner|head))\..+",
    }

    def __init__(
        self,
        name: str,
        folder: Path,
        recipe: Recipe | None = None,
        device: str = "auto",
        dtype: str = "auto",
        origin: str | None = None,
    ) -> None:
        self._original = original.is_original(folder)
        files_of = original.weight_files if self._original else require_weights
        files = files_of(f"model {name}", folder)
        sampling = recipe or recipe_of(folder)
        super().__init__(name, {"gen": folder, "und": folder}, files, sampling, device, dtype)
        self.image_size = None if self._original else _image_size(folder)
        self.fingerprint = digest(
            f"{ADAPTER} {self.dtype}\n{origin or ''}",
            [] if origin else files + settings_files(folder),
        )

    # -- loading ---------------------------------------------------------------------------

    def _load(self, folder: Path) -> Any:
        if self._original:
            network = original.load(self._who, folder, self.dtype, self.device)
        else:
            network = load_pretrained(
                self._who, "JanusForConditionalGeneration", folder, self.dtype, self.device
            )
        network.config.tie_word_embeddings = False
        return network

    def _load_processor(self, folder: Path) -> Any:
        if self._original:
            processor = original.processor(folder)
        else:
            from transformers import JanusImageProcessorPil, JanusProcessor

            processor = JanusProcessor.from_pretrained(folder, local_files_only=True)
            # One way of scaling pictures, whether torchvision is installed or not.
            processor.image_processor = JanusImageProcessorPil.from_pretrained(
                folder, local_files_only=True
            )
        processor.apply_chat_template([turn({"type": "text", "text": ""})])  # it may have none
        return processor

    def _text_config(self, folder: Path) -> Any:
        if self._original:
            return original.language_config(folder)
        return super()._text_config(folder)

    @property
    def codes(self) -> int:
        return int(self.network.config.vq_config.num_embeddings)

    # -- drawing ---------------------------------------------------------------------------

    @property
    def _core(self) -> Any:
        return self.network.model.language_model

    @property
    def _lengths(self) -> tuple[int, int]:
        tokens = int(self.processor().num_image_tokens)
        return tokens, tokens

    def _heads(
        self, prompts: Sequence[str], unconditional: Sequence[bool] = ()
    ) -> tuple[list[str], Tensor, Tensor]:
        """Unconditional rows have all but the two start tokens blanked, as in Janus's training."""
        processor = self.processor()
        tokenizer = processor.tokenizer
        chats = [[turn({"type": "text", "text": prompt})] for prompt in prompts]
        texts = [processor.apply_chat_template(chat, add_generation_prompt=True) for chat in chats]
        batch = processor(text=texts, generation_mode="image", **PADDED)
        ids = batch["input_ids"]
        if any(unconditional):
            start = (ids == tokenizer.bos_token_id) | (ids == tokenizer.boi_token_id)
            blank = torch.tensor(unconditional).unsqueeze(1) & ~start
            ids = ids.masked_fill(blank, tokenizer.pad_token_id)
        effective = [text + processor.image_start_token for text in texts]
        return effective, ids.to(self.device), batch["attention_mask"].to(self.device)

    def _language(self) -> Language:
        return Language(
            self.network.model.generation_head, self.network.prepare_embeddings_for_image_generation
        )

    def _row(self, tokens: Tensor) -> tuple[Tensor, Any]:
        embeds = self.network.prepare_embeddings_for_image_generation(tokens[:, :-1])
        return embeds, slice(None)

    def _brightness(self, tokens: Tensor) -> Tensor:
        pixels: Tensor = self.network.decode_image_tokens(tokens)
        return (pixels.float() + 1) / 2

    # -- embedding -------------------------------------------------------------------------

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float64]:
        _, ids, mask = self._heads(texts)
        hidden = self._core(
            input_ids=ids, attention_mask=mask, position_ids=positions(mask), use_cache=False
        ).last_hidden_state.double()
        weights = mask.unsqueeze(-1).double()
        means: NDArray[np.float64] = ((hidden * weights).sum(1) / weights.sum(1)).cpu().numpy()
        return means

    @torch.inference_mode()
    def embed_images(self, images: Sequence[Image.Image]) -> NDArray[np.float64]:
        seen = self.network.model.vision_model(self._pixels(images))
        means: NDArray[np.float64] = seen.last_hidden_state.double().mean(1).cpu().numpy()
        return means

    # -- judging and texts -----------------------------------------------------------------

    @property
    def _features(self) -> Any:
        return self.network.model.aligner

    def _chat(self, question: str) -> str:
        processor, system = self.processor(), self._system.strip()
        # It is put first; a question that brings it would say it twice.
        if system and question.startswith(system):
            question = question[len(system) :].lstrip()
        chat = [turn({"type": "image"}, {"type": "text", "text": question})]
        text: str = processor.apply_chat_template(chat, add_generation_prompt=True)
        return text

    @property
    def _system(self) -> str:
        """What the processor puts before a text."""
        if not self.processor().use_default_system_prompt:
            return ""
        from transformers.models.janus.processing_janus import DEFAULT_SYSTEM_PROMPT

        return str(DEFAULT_SYSTEM_PROMPT)

    def _asked(self, images: Images, texts: Sequence[str]) -> dict[str, Tensor]:
        processor, flat = self.processor(), [image for own in images for image in own]
        require_places(texts, images, processor.image_token, self._who)
        shown = processor.image_start_token + processor.image_token * processor.num_image_tokens
        shown += processor.image_end_token
        given = [self._system + text.replace(processor.image_token, shown) for text in texts]
        batch = dict(processor.tokenizer(given, **PADDED).to(self.device))
        if flat:
            batch["pixel_values"] = self._pixels(flat)
        return batch

    def _reader(self, batch: Mapping[str, Tensor]) -> Reader:
        model, processor = self.network.model, self.processor()
        token = processor.tokenizer.convert_tokens_to_ids(processor.image_token)

        def embed(ids: Tensor, images: Sequence[int]) -> Tensor:
            embeds: Tensor = model.get_input_embeddings()(ids)
            if not images:
                return embeds
            pixels = batch["pixel_values"][list(images)]
            features = model.get_image_features(pixels).pooler_output.to(embeds)
            places = (ids == token).unsqueeze(-1)
            return embeds.masked_scatter(places, features)

        return Reader(
            embed, model.language_model, self.network.get_output_embeddings(), self.blocks.asked
        )

    def _pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """(N, 3, H, W), to the bit as the processor makes them: scaled in threads; what it makes of
        each level of a channel is looked up on the device."""
        ramp = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB")
        made = self.processor().image_processor(ramp, do_resize=False, return_tensors="pt")
        values = made["pixel_values"][0].flatten(1).to(self.device, self.network.dtype)
        with ThreadPoolExecutor() as threads:
            levels = np.stack([np.asarray(image) for image in threads.map(self._scaled, images)])
        places = torch.from_numpy(levels).to(self.device).permute(0, 3, 1, 2).long()
        pixels: Tensor = values[torch.arange(3, device=self.device).view(3, 1, 1), places]
        return pixels

    def _scaled(self, image: Image.Image) -> Image.Image:
        """A picture of the processor's size. One that is not square is put on a square as upstream
        does (VLMImageProcessor.resize): the shorter side is cut to whole pixels, where transformers
        rounds it."""
        image, how = image.convert("RGB"), self.processor().image_processor
        side, longest = how.size["height"], max(image.size)
        if image.width == image.height:
            return image.resize((side, side), how.resample)
        width, height = (max(int(edge / longest * side), how.min_size) for edge in image.size)
        square = Image.new("RGB", (side, side), how.background_color)
        scaled = image.resize((width, height), Image.Resampling.BICUBIC)
        square.paste(scaled, ((side - width) // 2, (side - height) // 2))
        return square

    def chat(self, turns: Sequence[Mapping[str, str]]) -> str:
        chat = [{"role": t["role"], "content": parts(t["content"])} for t in turns]
        return str(self.processor().apply_chat_template(chat, add_generation_prompt=True))

    def _cut(self, text: str) -> list[int]:
        return list(self.processor().tokenizer(text)["input_ids"])


def turn(*parts: dict[str, str]) -> dict[str, Any]:
    """A user's turn; a plain string as content would silently become an empty one."""
    return {"role": "user", "content": list(parts)}


def _image_size(folder: Path) -> tuple[int, int] | None:
    """Width and height of what a checkpoint in the hub's layout draws, if its config says so."""
    try:
        codes = read_object(folder / "config.json").get("vq_config") or {}
        side = int(codes["num_patches"]) * 2 ** (len(codes["channel_multiplier"]) - 1)
    except (GapbenchError, LookupError, TypeError, ValueError, AttributeError):
        return None
    return side, side
