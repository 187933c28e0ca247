"""What the adapters of models that draw an image token by token have in common.

The networks are classes of transformers.
"""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cached_property, partial
from itertools import compress
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from gapbench.files import first_line
from gapbench.models import lora, torchvision_shim
from gapbench.models.autoregressive.answers import answer_ids, answer_logprobs, following, positions
from gapbench.models.autoregressive.attention import repeatable
from gapbench.models.autoregressive.blocks import CHECKED, Blocks, image_bytes, size_for
from gapbench.models.autoregressive.continuations import greedy, require_room, shared
from gapbench.models.autoregressive.draw import Language
from gapbench.models.autoregressive.finite import require_finite, watched
from gapbench.models.autoregressive.questions import Reader, asked_logprobs
from gapbench.models.autoregressive.sampling import Recipe, logprobs_of
from gapbench.models.base import IMAGE, Batches, Drawing, Model, require_shared
from gapbench.models.checkpoint import device_here
from gapbench.types import GapbenchError

Role = Literal["gen", "und"]
Images = Sequence[Sequence[Image.Image]]

SMALL: Final = 100_000_000
"""Bytes of weights under which a CPU computes in float64 by default: it costs little, and a batch's
make-up cannot change a result by rounding."""
REPLY_TOKENS: Final = 64
PADDED: Final = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
"""The side is said because a tokenizer_config.json may name the other one."""


class AutoregressiveModel(Model, ABC):
    """An adapter's weights, drawing, verdicts and texts.

    `folders` hold the weights that draw ("gen") and those that judge ("und"), which may be the
    same; only one folder's weights are loaded at a time. `files` are the weights that draw.
    """

    likelihood = True
    recipe: dict[str, Any]
    device: str
    dtype: str
    closing: ClassVar[int] = 0
    """Tokens that the model's format puts behind an image."""

    def __init__(
        self,
        name: str,
        folders: Mapping[Role, Path],
        files: Sequence[Path],
        sampling: Recipe,
        device: str,
        dtype: str,
    ) -> None:
        self.name, self.folders = name, folders
        self.pair = folders["gen"] != folders["und"]
        self._sampling = sampling
        self.device = device_here(f"model {name}", device)
        weights = sum(file.stat().st_size for file in files)
        small = weights < SMALL
        auto = "bfloat16" if self.device != "cpu" else "float64" if small else "float32"
        self.dtype = auto if dtype == "auto" else dtype
        self._lora: Path | None = None
        self._loaded: tuple[Path, Any] | None = None
        self._processors: dict[Path, Any] = {}
        self._branches = 2 if sampling.guided else 1
        size = sampling.block or size_for(self.device, self.dtype, weights, self._image_bytes)
        self.blocks = Blocks(size)
        self.batches = Batches.on(self.device, small, size)
        self.recipe = asdict(replace(sampling, block=size))

    # -- loading ---------------------------------------------------------------------------

    @abstractmethod
    def _load(self, folder: Path) -> Any:
        """A folder's network, on the device."""

    @abstractmethod
    def _load_processor(self, folder: Path) -> Any:
        """A folder's tokenizer and image processor; may raise anything."""

    def load(self) -> None:
        self.module()

    def release(self) -> None:
        self._loaded = None
        self.blocks.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @torch.inference_mode(False)  # also where a method under it loads: weights have gradients
    def module(self, role: Role = "gen") -> Any:
        """The network of transformers that draws ("gen") or judges ("und"), loaded."""
        folder = self.folders[role]
        if self._loaded is None or self._loaded[0] != folder:
            self.release()
            if ":" in self.device and self.device.startswith("cuda"):
                torch.cuda.set_device(self.device)  # where Triton launches its kernels
            network = self._load(folder)
            if self._lora and folder == self.folders["gen"]:
                lora.merge(self._who, network, self._lora)
            self._loaded = (folder, network)
        return self._loaded[1]

    @property
    def network(self) -> Any:
        return self.module()

    def use(self, network: torch.nn.Module) -> None:
        require_shared(self, "a network in memory")
        self.release()
        self._loaded = (self.folders["gen"], network)
        self.device = str(next(network.parameters()).device)

    def processor(self, role: Role = "gen") -> Any:
        """The tokenizer and image processor of a role; needs no weights."""
        folder = self.folders[role]
        if folder not in self._processors:
            torchvision_shim.ensure()
            try:
                self._processors[folder] = self._load_processor(folder)
            except Exception as error:  # json, tokenizers, jinja and transformers raise many kinds
                raise GapbenchError(
                    f"{self._who}: cannot load the processor in {folder}: {first_line(error)}; "
                    "a checkpoint of a training may lack its files: copy those of the model that "
                    "it began with"
                ) from error
        return self._processors[folder]

    def adapt(self, folder: Path) -> None:
        """Put a LoRA adapter on the weights that draw; before they are loaded."""
        self.name, self._lora = folder.resolve().name, folder
        self.fingerprint = lora.fingerprint(self.fingerprint, folder)

    def save(self, folder: Path) -> None:
        """Write a checkpoint; of a pair, one each into gen/ and und/."""
        target = folder / "gen" if self.pair else folder
        self.network.save_pretrained(target)
        processor = self.processor()
        processor.tokenizer.backend_tokenizer.no_padding()  # else the latest call's is saved
        processor.save_pretrained(target)
        if self.pair:
            shutil.copytree(self.folders["und"], folder / "und", dirs_exist_ok=True)

    @property
    def _who(self) -> str:
        return f"model {self.name}"

    @cached_property
    def _rooms(self) -> dict[Role, int]:
        """The most tokens of a row."""
        folders = self.folders.items()
        return {r: int(self._text_config(f).max_position_embeddings) for r, f in folders}

    def _text_config(self, folder: Path) -> Any:
        """The settings of a folder's language model."""
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(folder, local_files_only=True).text_config

    def _image_bytes(self) -> int:
        config = self._text_config(self.folders["gen"])
        return self._branches * image_bytes(config, self._lengths[1], self.dtype)

    # -- drawing ---------------------------------------------------------------------------

    @property
    @abstractmethod
    def _core(self) -> Any:
        """The transformer that text and image tokens go through."""

    @property
    @abstractmethod
    def _lengths(self) -> tuple[int, int]:
        """How many tokens of an image are drawn, and how many it has with those that the model's
        format puts between them."""

    @abstractmethod
    def _heads(
        self, prompts: Sequence[str], unconditional: Sequence[bool] = ()
    ) -> tuple[list[str], Tensor, Tensor]:
        """Effective prompts, and the left-padded ids and mask (B, T) of what comes before an
        image's first token. `unconditional` marks rows of the branch that guidance subtracts."""

    @abstractmethod
    def _language(self) -> Language:
        """How an image's tokens are drawn; its head takes hidden states of any shape (..., W)."""

    @abstractmethod
    def _row(self, tokens: Tensor) -> tuple[Tensor, Any]:
        """Embeddings (B, S, W) of all that the core gets of an image with (B, T) tokens, which
        leaves out the last, and an index that picks those of the S + 1 hidden states, from the one
        before the image on, that a drawn token follows."""

    @abstractmethod
    def _brightness(self, tokens: Tensor) -> Tensor:
        """The pictures (B, H, W, 3) of (B, T) tokens, where 0 is black and 1 full brightness."""

    @torch.inference_mode()
    def decode(self, tokens: NDArray[np.int32]) -> list[Image.Image]:
        """The pictures of (B, T) tokens; a picture's bytes depend on its own tokens alone."""
        codes = torch.from_numpy(tokens).long().to(self.device)
        with repeatable():
            brightness = self.blocks.pictures(self._brightness, codes)
        require_finite(self._who, "picture decoder", brightness)
        # Between two levels the lower one, as in Janus's, Emu3's and transformers' own code.
        levels = (brightness.clamp(0, 1) * 255).to(torch.uint8).cpu().numpy()
        return list(map(Image.fromarray, levels))

    def refuses(self, text: str) -> str | None:
        for token in self.processor().tokenizer.get_added_vocab():
            if token.strip() and token in text:
                return f"it contains {token!r}, which {self.name} reads as a special token"
        return self._no_room(text)

    def _no_room(self, text: str, more: int = 0) -> str | None:
        tokens = self._heads([text])[1].shape[1] + self._lengths[1] + self.closing + more
        if tokens <= (room := self._rooms["gen"]):
            return None
        return f"with its image it takes {tokens} tokens, {self.name} has room for {room}"

    @torch.inference_mode()
    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Drawing]:
        size = self.blocks.size or len(seeds)
        drawings: list[Drawing] = []
        for first in range(0, len(seeds), size):
            some = slice(first, first + size)
            try:
                effective, tokens, logprobs = self._tokens(prompts[some], seeds[some])
            except torch.OutOfMemoryError as error:
                raise GapbenchError(
                    f"{self._who}: {size} images drawn together do not fit into the memory of "
                    f"{self.device}; try --set block={max(1, size // 2)}"
                ) from error
            require_finite(self._who, "language model", torch.tensor(logprobs))
            drawings += map(Drawing, self.decode(tokens), tokens, effective, logprobs)
        return drawings

    def _tokens(
        self, prompts: Sequence[str], seeds: Sequence[int], steps: int | None = None
    ) -> tuple[list[str], NDArray[np.int32], list[float]]:
        """For a block of images: effective prompts, tokens, and their log-probabilities' sums."""
        place = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
        distinct, branches = list(place), self._branches
        unconditional = [False] * len(distinct) + [True] * (branches - 1) * len(distinct)
        effective, ids, mask = self._heads(distinct * branches, unconditional)
        padded = zip(ids.tolist(), mask.tolist(), strict=True)
        begins = [tuple(compress(row, keep)) for row, keep in padded]
        rows = [begins[b * len(distinct) + place[p]] for b in range(branches) for p in prompts]
        with repeatable():
            given = self._language(), self._sampling, self._lengths[0], rows
            drawer = self.blocks.drawer(self.network, self._core, *given)
            drawn = drawer.draw(rows, seeds, steps)
        return [effective[place[prompt]] for prompt in prompts], *drawn

    @torch.inference_mode()
    def check_seeds(self, prompt: str, seed: int) -> str | None:
        some = partial(self._tokens, steps=min(CHECKED, self._lengths[0]))
        return self.blocks.warnings(lambda p, s: some(p, s)[1], prompt, seed)

    def image_logits(
        self,
        prompts: Sequence[str],
        tokens: NDArray[np.int32],
        unconditional: bool | Sequence[bool] = False,
    ) -> Tensor:
        _, ids, mask = self._heads(prompts, np.broadcast_to(unconditional, len(prompts)).tolist())
        drawn, places = self._row(torch.from_numpy(tokens).long().to(self.device))
        embeds = torch.cat([self._core.get_input_embeddings()(ids), drawn], 1)
        mask = torch.cat([mask, mask.new_ones(drawn.shape[:2])], 1)
        hidden = self._core(
            inputs_embeds=embeds, attention_mask=mask, position_ids=positions(mask), use_cache=False
        ).last_hidden_state[:, ids.shape[1] - 1 :]
        return self._language().head(hidden[:, places])

    def generation_loss(
        self,
        prompts: Sequence[str],
        drawings: NDArray[Any],
        noise: Sequence[int],  # noqa: ARG002 (nothing is random)
        unconditional: bool | Sequence[bool] = False,
    ) -> Tensor:
        target = torch.as_tensor(drawings, device=self.device).long()
        logits = self.image_logits(prompts, drawings, unconditional)
        return -logprobs_of(logits, target).sum(1, dtype=torch.float64)

    # -- judging and texts -----------------------------------------------------------------

    @property
    @abstractmethod
    def _features(self) -> Any:
        """The layer of the judging network that pictures come out of."""

    @contextmanager
    def _watched(self) -> Iterator[None]:
        head = self.module("und").get_output_embeddings()
        layers = {"vision tower": self._features, "language model": head}
        with watched(self._who, layers), repeatable():
            yield

    @abstractmethod
    def _chat(self, question: str) -> str:
        """The text of a question about one image, up to the answer."""

    @abstractmethod
    def _rows(self, images: Images, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts that have the processor's image token for each of their images."""

    def _asked(self, images: Images, texts: Sequence[str]) -> dict[str, Tensor]:
        """A left-padded batch of such texts, with `input_ids` and `attention_mask`."""
        tokenizer, rows = self.processor("und").tokenizer, self._rows(images, texts)
        return dict(tokenizer.pad({"input_ids": rows}, **PADDED).to(self.device))

    @abstractmethod
    def _reader(self, images: Sequence[Image.Image]) -> Reader:
        """The judging network, for questions about these images."""

    @abstractmethod
    def _cut(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text without its images."""

    def answer_logprobs(
        self, images: Sequence[Image.Image], questions: Sequence[str], answers: Sequence[str]
    ) -> Tensor:
        texts, module = [self._chat(question) for question in questions], self.module("und")
        tails = answer_ids(self._cut, texts, answers, self._who)
        pad = self.processor("und").tokenizer.pad_token_id
        with self._watched():
            batch = self._asked([[image] for image in images], texts)
            return answer_logprobs(module, batch, tails, pad, images)

    @torch.inference_mode()
    def judge(
        self, images: Sequence[Image.Image], questions: Sequence[str], answers: Sequence[str]
    ) -> NDArray[np.float64]:
        texts = [self._chat(question) for question in questions]
        with self._watched():
            reader = self._reader(images)
            tails = answer_ids(self._cut, texts, answers, self._who)
            rows = list(map(tuple, self._rows([[image] for image in images], texts)))
            end = self._cut([self.processor("und").image_end_token])[0][-1]
            return asked_logprobs(reader, rows, images, end, tails).numpy()

    @torch.inference_mode()
    def reply(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[str]:
        tokenizer = self.processor("und").tokenizer
        with self._watched():
            batch = self._asked([[i] for i in images], [self._chat(q) for q in questions])
            said = greedy(self.module("und"), tokenizer, batch, REPLY_TOKENS)
        return [words.strip() for words in said]

    @torch.inference_mode()
    def complete(
        self, images: Images, texts: Sequence[str], tokens: int, until: Sequence[str] = ()
    ) -> list[str]:
        with self._watched():
            batch, tokenizer = self._batch(images, texts, tokens), self.processor("und").tokenizer
            return greedy(self.module("und"), tokenizer, batch, tokens, until)

    @torch.inference_mode()
    def score(
        self, images: Images, texts: Sequence[str], endings: Sequence[str]
    ) -> list[tuple[float, bool]]:
        places, heads, tails = shared(self._cut, images, texts, endings, self._who)
        asked = [images[place] for place in places], [texts[place] for place in places]
        pad = self.processor("und").tokenizer.pad_token_id
        with self._watched():
            batch = self._batch(*asked, max(map(len, heads)))
            logprobs = following(self.module("und"), batch, heads, pad)
        scores = []
        for row, tail in tails:
            said = logprobs[row, : len(tail)]
            total = said.gather(1, torch.tensor(tail).unsqueeze(1)).sum()
            scores.append((float(total), said.argmax(1).tolist() == list(tail)))
        return scores

    def _batch(self, images: Images, texts: Sequence[str], more: int) -> dict[str, Tensor]:
        """A batch of texts with IMAGE for each of their images, and room for more tokens."""
        mark, room = self.processor("und").image_token, self._rooms["und"]
        marked = [text.replace(IMAGE, mark) for text in texts]
        batch = self._asked(images, marked)
        require_room(self._who, batch, more, room)
        return batch
