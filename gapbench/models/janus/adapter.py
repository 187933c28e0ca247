"""Janus (DeepSeek) in transformers' own classes, with our own sampler and verdict pass.

transformers' `generate(generation_mode="image")` draws all rows from one global stream, applies
top-k 50 unasked, has no guidance-free path and returns no log-probabilities; hence our own loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from gapbench.files import digest, read_object
from gapbench.models.autoregressive.answers import distinct, positions, require_places
from gapbench.models.autoregressive.continuations import parts
from gapbench.models.autoregressive.draw import Language
from gapbench.models.autoregressive.layers import sent
from gapbench.models.autoregressive.model import PADDED, AutoregressiveModel, Images
from gapbench.models.autoregressive.questions import Reader
from gapbench.models.autoregressive.sampling import Recipe, recipe_of
from gapbench.models.checkpoint import (
    load_pretrained,
    require_weights,
    settings_files,
    weight_files,
)
from gapbench.models.entry import NATIVE
from gapbench.models.janus import original
from gapbench.types import GapbenchError

ADAPTER: Final = "janus-2"


class JanusModel(AutoregressiveModel):
    """Adapter for a folder with a Janus checkpoint in the hub's layout or in DeepSeek's.

    `origin`, a hub id at a commit, stands for the digest of the files in the fingerprint.
    """

    capabilities = NATIVE
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
        files_of = weight_files if self._original else require_weights
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

    def _rows(self, images: Images, texts: Sequence[str]) -> list[list[int]]:
        processor = self.processor()
        require_places(texts, images, processor.image_token, self._who)
        shown = processor.image_start_token + processor.image_token + processor.image_end_token
        given = [self._system + text.replace(processor.image_token, shown) for text in texts]
        # An image's tokens are put in afterwards: the tokenizer would take its time over each.
        of_image = {self._image_token: [self._image_token] * processor.num_image_tokens}
        rows = processor.tokenizer(given)["input_ids"]
        return [[t for token in row for t in of_image.get(token, [token])] for row in rows]

    def _asked(self, images: Images, texts: Sequence[str]) -> dict[str, Tensor]:
        batch, flat = super()._asked(images, texts), [image for own in images for image in own]
        return {**batch, "pixel_values": self._pixels(flat)} if flat else batch

    @property
    def _image_token(self) -> int:
        processor = self.processor()
        return int(processor.tokenizer.convert_tokens_to_ids(processor.image_token))

    def _reader(self, images: Sequence[Image.Image]) -> Reader:
        model, token, size = self.network.model, self._image_token, self.blocks.asked
        layers, graphs = self.blocks.asking(self.network, model.language_model)
        firsts = distinct(images)
        unlike = list(dict.fromkeys(firsts))

        def see(pixels: Tensor) -> Tensor:
            with _contiguous(model.vision_model.embeddings):
                states: Tensor = model.vision_model(pixels).last_hidden_state
                return states

        # All at once, before a question is cut: a GPU works on them meanwhile.
        seen = []
        for first in range(0, len(unlike), size or len(unlike)):
            some = unlike[first : first + (size or len(unlike))]
            whole = [*some, *some[:1] * (size - len(some))]
            states = graphs("see", see, self._pixels([images[number] for number in whole]))
            seen.append(model.aligner(states)[: len(some)])
        features, place = torch.cat(seen), {first: row for row, first in enumerate(unlike)}

        def embed(ids: Tensor, shown: Sequence[int]) -> Tensor:
            embeds: Tensor = model.get_input_embeddings()(ids)
            if not shown:
                return embeds
            own = sent(torch.tensor([place[firsts[number]] for number in shown]), ids.device)
            places = (ids == token).unsqueeze(-1)
            return embeds.masked_scatter(places, features[own].to(embeds))

        return Reader(embed, layers, graphs, self.network.get_output_embeddings(), size)

    def _pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """(N, 3, H, W), to the bit as the processor makes them: scaled in threads; what it makes of
        each level of a channel is looked up on the device."""
        ramp = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB")
        made = self.processor().image_processor(ramp, do_resize=False, return_tensors="pt")
        values = sent(made["pixel_values"][0].flatten(1).to(self.network.dtype), self.device)
        with ThreadPoolExecutor() as threads:
            levels = np.stack([np.asarray(image) for image in threads.map(self._scaled, images)])
        places = sent(torch.from_numpy(levels), self.device).permute(0, 3, 1, 2).long()
        pixels: Tensor = values[torch.arange(3, device=self.device).view(3, 1, 1), places]
        return pixels

    def _scaled(self, image: Image.Image) -> Image.Image:
        """A picture of the processor's size. One that is not square is put on a square as upstream
        does (VLMImageProcessor.resize): the shorter side is cut to whole pixels, where transformers
        rounds it."""
        image = image if image.mode == "RGB" else image.convert("RGB")
        how = self.processor().image_processor
        side, longest = how.size["height"], max(image.size)
        if image.size == (side, side):  # PIL would copy it
            return image
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

    def _cut(self, texts: list[str]) -> list[list[int]]:
        return list(self.processor().tokenizer(texts)["input_ids"])


@contextmanager
def _contiguous(layer: Any) -> Iterator[None]:
    """Lay out what the layer gives as it is read: a vision tower keeps the layout of its patches to
    the end, and that of a convolution makes each of its functions slow on a GPU."""
    handle = layer.register_forward_hook(lambda *call: call[-1].contiguous())
    try:
        yield
    finally:
        handle.remove()


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
