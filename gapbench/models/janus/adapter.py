"""Janus (DeepSeek) in transformers' own classes, with our own sampler and verdict pass.

transformers' `generate(generation_mode="image")` draws all rows from one global stream, applies
top-k 50 unasked, has no guidance-free path and returns no log-probabilities; hence the loop here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from gapbench.files import digest, first_line
from gapbench.models import lora, torchvision_shim
from gapbench.models.autoregressive.answers import answer_ids, answer_logprobs, positions
from gapbench.models.autoregressive.continuations import Continuing, Images, Reader, greedy, parts
from gapbench.models.autoregressive.cores import Cores
from gapbench.models.autoregressive.decode import Decoder, draw_tokens
from gapbench.models.autoregressive.sampling import Recipe, logprobs_of
from gapbench.models.base import CAPABILITIES, Batches, Drawing, Model
from gapbench.models.checkpoint import hub_weights, load_pretrained, recipe_of, settings_files
from gapbench.models.janus import original as janus_original
from gapbench.types import GapbenchError

if TYPE_CHECKING:
    from transformers import JanusForConditionalGeneration, JanusProcessor

ADAPTER: Final = "janus-1"
SMALL: Final = 100_000_000
"""Bytes of weights under which a CPU computes in float64 by default (it costs little, and a batch's
make-up can no longer tip a rounding), in parts of a batch side by side."""
REPLY_TOKENS: Final = 64
PADDED: Final = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
"""The side is said because a tokenizer_config.json may name the other one."""


class JanusModel(Continuing, Model):
    """Adapter for a folder with a Janus checkpoint in the hub's layout.

    `origin`, a hub id at a commit, stands for the digest of the files in the fingerprint.
    """

    capabilities = frozenset(CAPABILITIES)
    device: str
    dtype: str
    parts = {  # noqa: RUF012 (nobody changes it)
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
        self.name, self.folder = name, folder
        self._original = janus_original.is_original(folder)
        tensors = janus_original.weight_files(folder) if self._original else hub_weights(folder)
        if not tensors:
            raise GapbenchError(
                f"model {name}: no .safetensors file in {folder}; other weight formats are not "
                "loaded, save the checkpoint with save_pretrained first"
            )
        self._sampling = recipe or recipe_of(folder)
        self.recipe: dict[str, Any] = asdict(self._sampling)
        self.device = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        on_cpu = self.device == "cpu"
        small = sum(f.stat().st_size for f in tensors) < SMALL
        self.batches = Batches.on(self.device, small)
        self._cores, self._takes = Cores(), on_cpu and small
        auto = "bfloat16" if not on_cpu else "float64" if small else "float32"
        self.dtype = auto if dtype == "auto" else dtype
        self.fingerprint = digest(
            f"{ADAPTER} {self.dtype}\n{origin or ''}",
            [] if origin else tensors + settings_files(folder),
        )
        self._lora: Path | None = None
        self._model: JanusForConditionalGeneration | None = None
        self._processor: JanusProcessor | None = None

    # -- loading ---------------------------------------------------------------------------

    @torch.inference_mode(False)  # also where a method under it loads: weights have gradients
    def load(self) -> None:
        if self._model is not None:
            return
        who = f"model {self.name}"
        if self._original:
            model = janus_original.load(who, self.folder, self.dtype, self.device)
        else:
            model = load_pretrained(
                who, "JanusForConditionalGeneration", self.folder, self.dtype, self.device
            )
        if self._lora:
            lora.merge(who, model, self._lora)
        model.config.tie_word_embeddings = False
        self._model = model
        if self._takes:
            self._cores.take()

    def release(self) -> None:
        self._cores.give_back()
        self._model = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @property
    def module(self) -> JanusForConditionalGeneration:
        """The loaded transformers model."""
        self.load()
        assert self._model is not None
        return self._model

    @property
    def network(self) -> JanusForConditionalGeneration:
        return self.module

    def use(self, network: torch.nn.Module) -> None:
        self.release()
        self._model = cast("JanusForConditionalGeneration", network)
        self._takes = False  # the cores are the owner's
        self.device = str(next(network.parameters()).device)

    @property
    def processor(self) -> JanusProcessor:
        """The tokenizer and image processor; needs no weights."""
        if self._processor is None:
            try:
                made = (janus_original.processor if self._original else _processor)(self.folder)
                made.apply_chat_template([turn({"type": "text", "text": ""})])
            except Exception as error:  # json, tokenizers, jinja and transformers raise many kinds
                raise GapbenchError(
                    f"model {self.name}: cannot load the processor in {self.folder}: "
                    f"{first_line(error)}"
                ) from error
            self._processor = made
        return self._processor

    @property
    def codes(self) -> int:
        return int(self.module.config.vq_config.num_embeddings)

    def adapt(self, folder: Path) -> None:
        """Put a LoRA adapter on the weights; before they are loaded."""
        self.name, self._lora = folder.resolve().name, folder
        self.fingerprint = lora.fingerprint(self.fingerprint, folder)

    def save(self, folder: Path) -> None:
        self.module.save_pretrained(folder)
        self.processor.tokenizer.backend_tokenizer.no_padding()  # else the latest call's is saved
        self.processor.save_pretrained(folder)

    def refuses(self, text: str) -> str | None:
        for token in self.processor.tokenizer.get_added_vocab():
            if token.strip() and token in text:
                return f"it contains {token!r}, which {self.name} reads as a special token"
        return self._no_room(text)

    def _no_room(self, text: str, more: int = 0) -> str | None:
        tokens = len(self._heads([text])[1][0]) + self.processor.num_image_tokens + more
        room = self._context
        if tokens > room:
            return f"with its image it takes {tokens} tokens, {self.name} has room for {room}"
        return None

    @cached_property
    def _context(self) -> int:
        from transformers import JanusConfig

        if self._original:
            return int(janus_original.language_config(self.folder).max_position_embeddings)
        config = JanusConfig.from_pretrained(self.folder, local_files_only=True)
        return int(config.text_config.max_position_embeddings)

    # -- drawing ---------------------------------------------------------------------------

    def _heads(self, prompts: Sequence[str]) -> tuple[list[str], Tensor, Tensor]:
        """Effective prompts, and their left-padded ids and mask up to the image's start token."""
        chats = [[turn({"type": "text", "text": prompt})] for prompt in prompts]
        texts = [
            self.processor.apply_chat_template(chat, add_generation_prompt=True) for chat in chats
        ]
        batch = self.processor(text=texts, generation_mode="image", **PADDED)
        effective = [text + self.processor.image_start_token for text in texts]
        return (
            effective,
            batch["input_ids"].to(self.device),
            batch["attention_mask"].to(self.device),
        )

    def _unconditional(self, ids: Tensor) -> Tensor:
        """The same rows with all but the two start tokens blanked, as Janus was trained."""
        tokenizer = self.processor.tokenizer
        keep = (ids == tokenizer.bos_token_id) | (ids == tokenizer.boi_token_id)
        return ids.masked_fill(~keep, tokenizer.pad_token_id)

    @torch.inference_mode()
    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Drawing]:
        core, recipe = self.module.model, self._sampling
        distinct = list(dict.fromkeys(prompts))
        effective, ids, mask = self._heads(distinct)
        order = [distinct.index(prompt) for prompt in prompts]
        ids, mask = ids[order], mask[order]
        steps = self.processor.num_image_tokens

        def draw(rows: slice) -> list[Drawing]:
            begin, keep = ids[rows], mask[rows]
            if recipe.guided:
                begin, keep = torch.cat([begin, self._unconditional(begin)]), keep.repeat(2, 1)
            decoder = Decoder(core.language_model, begin, keep, steps)

            def feed(token: Tensor) -> Tensor:
                embeds = self.module.prepare_embeddings_for_image_generation(token)
                return decoder.step(embeds.repeat(2, 1) if recipe.guided else embeds)

            tokens, logprobs = draw_tokens(
                decoder.hidden, core.generation_head, feed, recipe, seeds[rows], steps
            )
            return [
                Drawing(self.decode(row), row, effective[place], logprob)
                for place, row, logprob in zip(order[rows], tokens, logprobs, strict=True)
            ]

        return self._cores.split(draw, len(prompts))

    @torch.inference_mode()
    def decode(self, tokens: NDArray[np.int32]) -> Image.Image:
        """(T,) token ids to a picture. One at a time, so that its bytes depend on them alone."""
        row = torch.from_numpy(tokens).long().unsqueeze(0).to(self.device)
        pixels = self.module.decode_image_tokens(row)[0].float()
        levels = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return Image.fromarray(levels.cpu().numpy())

    def image_logits(
        self,
        prompts: Sequence[str],
        tokens: NDArray[np.int32],
        unconditional: bool | Sequence[bool] = False,
    ) -> Tensor:
        core = self.module.model
        _, ids, mask = self._heads(prompts)
        blank = torch.tensor(unconditional, device=self.device).reshape(-1, 1)
        ids = torch.where(blank, self._unconditional(ids), ids)
        target = torch.from_numpy(tokens).long().to(self.device)
        drawn = self.module.prepare_embeddings_for_image_generation(target[:, :-1])
        embeds = torch.cat([core.get_input_embeddings()(ids), drawn], 1)
        mask = torch.cat([mask, mask.new_ones(drawn.shape[:2])], 1)
        hidden = core.language_model(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=positions(mask),
            use_cache=False,
        ).last_hidden_state[:, ids.shape[1] - 1 :]
        logits: Tensor = core.generation_head(hidden)
        return logits

    def image_logprobs(
        self,
        prompts: Sequence[str],
        tokens: NDArray[np.int32],
        unconditional: bool | Sequence[bool] = False,
    ) -> Tensor:
        target = torch.as_tensor(tokens, device=self.device).long()
        return logprobs_of(self.image_logits(prompts, tokens, unconditional), target)

    # -- embedding -------------------------------------------------------------------------

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float64]:
        _, ids, mask = self._heads(texts)
        hidden = self.module.model.language_model(
            input_ids=ids, attention_mask=mask, position_ids=positions(mask), use_cache=False
        ).last_hidden_state.double()
        weights = mask.unsqueeze(-1).double()
        found: NDArray[np.float64] = ((hidden * weights).sum(1) / weights.sum(1)).cpu().numpy()
        return found

    @torch.inference_mode()
    def embed_images(self, images: Sequence[Image.Image]) -> NDArray[np.float64]:
        pixels = self.processor.image_processor(list(images), return_tensors="pt")["pixel_values"]
        seen = self.module.model.vision_model(pixels.to(self.device, self.module.dtype))
        found: NDArray[np.float64] = seen.last_hidden_state.double().mean(1).cpu().numpy()
        return found

    # -- judging ---------------------------------------------------------------------------

    def _chat(self, question: str) -> str:
        processor = self.processor  # first: it makes the import below possible beside torchvision
        from transformers.models.janus.processing_janus import DEFAULT_SYSTEM_PROMPT

        # The processor puts the system prompt first; a question that brings it would say it twice.
        system = DEFAULT_SYSTEM_PROMPT.strip()
        if processor.use_default_system_prompt and question.startswith(system):
            question = question[len(system) :].lstrip()
        chat = [turn({"type": "image"}, {"type": "text", "text": question})]
        text: str = processor.apply_chat_template(chat, add_generation_prompt=True)
        return text

    def _asked(self, images: Images, texts: Sequence[str]) -> dict[str, Tensor]:
        flat = [image.convert("RGB") for own in images for image in own]
        batch = self.processor(text=list(texts), images=flat or None, **PADDED).to(self.device)
        if flat:
            batch["pixel_values"] = batch["pixel_values"].to(self.module.dtype)
        return dict(batch)

    def answer_logprobs(
        self, images: Sequence[Image.Image], questions: Sequence[str], answers: Sequence[str]
    ) -> Tensor:
        texts, tokenizer = (
            [self._chat(question) for question in questions],
            self.processor.tokenizer,
        )
        tails = answer_ids(
            lambda text: tokenizer(text)["input_ids"], texts, answers, f"model {self.name}"
        )
        batch, pad = self._asked([[image] for image in images], texts), tokenizer.pad_token_id

        def part(rows: slice) -> list[Tensor]:
            cut = {key: value[rows] for key, value in batch.items()}
            return list(answer_logprobs(self.module, cut, tails, pad, images[rows]))

        return torch.stack(self._cores.split(part, len(texts)))

    @torch.inference_mode()
    def judge(
        self, images: Sequence[Image.Image], questions: Sequence[str], answers: Sequence[str]
    ) -> NDArray[np.float64]:
        return self.answer_logprobs(images, questions, answers).numpy()

    @torch.inference_mode()
    def reply(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[str]:
        batch = self._asked([[i] for i in images], [self._chat(question) for question in questions])
        said = greedy(self.module, self.processor.tokenizer, batch, REPLY_TOKENS)
        return [words.strip() for words in said]

    def chat(self, turns: Sequence[Mapping[str, str]]) -> str:
        chat = [{"role": t["role"], "content": parts(t["content"])} for t in turns]
        return str(self.processor.apply_chat_template(chat, add_generation_prompt=True))

    def _reader(self) -> Reader:
        tokenizer = self.processor.tokenizer
        return Reader(
            who=f"model {self.name}",
            module=self.module,
            tokenizer=tokenizer,
            batch=self._asked,
            cut=lambda text: list(tokenizer(text)["input_ids"]),
            mark=self.processor.image_token,
            room=self._context,
        )


def _processor(folder: Path) -> JanusProcessor:
    torchvision_shim.ensure()
    from transformers import JanusImageProcessorPil, JanusProcessor

    found = JanusProcessor.from_pretrained(folder, local_files_only=True)
    # One way of scaling pictures, whether torchvision is installed or not.
    found.image_processor = JanusImageProcessorPil.from_pretrained(folder, local_files_only=True)
    return found


def turn(*parts: dict[str, str]) -> dict[str, Any]:
    """A user's turn; a plain string as content would silently become an empty one."""
    return {"role": "user", "content": list(parts)}
