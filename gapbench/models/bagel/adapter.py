"""BAGEL (ByteDance-Seed): a mixture of transformers that draws by a flow and judges in text.

Upstream draws and answers one at a time; here rows go through the network in blocks. Source:
ByteDance-Seed/Bagel 056b5fd, inferencer.py, as inference.ipynb uses it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from gapbench.files import digest
from gapbench.models import lora
from gapbench.models.autoregressive.attention import repeatable
from gapbench.models.autoregressive.blocks import fitting
from gapbench.models.autoregressive.finite import require_finite, watched
from gapbench.models.autoregressive.model import SMALL, Images
from gapbench.models.autoregressive.noise import keys, normal
from gapbench.models.bagel import checkpoint
from gapbench.models.bagel.flow import Recipe, flow
from gapbench.models.bagel.pictures import grid, packed, unpacked
from gapbench.models.base import Batches, Drawing, Model
from gapbench.models.checkpoint import device_here
from gapbench.models.registry import MODELS
from gapbench.types import GapbenchError

if TYPE_CHECKING:
    from gapbench.models.bagel.network import Bagel
    from gapbench.models.bagel.reader import Reader
    from gapbench.models.bagel.texts import Texts

ADAPTER: Final = "bagel-1"
BLOCK: Final = 4
"""Images that a GPU draws together: 4,098 tokens each are work enough."""
REPLY_TOKENS: Final = 100
CHECKED: Final = 2
"""Steps of an image that are drawn twice before a run."""
DRAWING, TRAINING = 0, 1
"""A seed's streams of noise."""
PLANNING: Final = (
    "You should first think about the planning process in the mind and then generate the image. \n"
    "The planning process is enclosed within <think> </think> tags, i.e. <think> planning process "
    "here </think> image here"
)
"""Upstream's GEN_THINK_SYSTEM_PROMPT, word for word: with another it would be another model."""


class BagelModel(Model):
    """Adapter for a folder with BAGEL's published files.

    `origin`, a hub id at a commit, stands for the digest of the files in the fingerprint.
    """

    capabilities = MODELS["bagel"].capabilities
    device: str
    dtype: str

    def __init__(
        self,
        name: str,
        folder: Path,
        recipe: Recipe,
        device: str = "auto",
        dtype: str = "auto",
        origin: str | None = None,
    ) -> None:
        self.name, self.folder = name, folder
        files = checkpoint.files(self._who, folder)
        checkpoint.require_diffusers(self._who)
        self.sizes = checkpoint.geometry(self._who, folder)
        self.sampling = recipe
        size, stride = recipe.size, self.sizes.latent_stride
        if size % stride or size > self.sizes.latent_pixels:
            raise GapbenchError(
                f"recipe: size is {size}, must be a multiple of {stride} and at most "
                f"{self.sizes.latent_pixels}"
            )
        self.device = device_here(self._who, device)
        self._bytes = sum(file.stat().st_size for file in files)
        small = self._bytes < SMALL
        auto = "bfloat16" if self.device != "cpu" else "float64" if small else "float32"
        self.dtype = auto if dtype == "auto" else dtype
        self.block = self.sampling.block or self._block()
        self.batches = Batches.on(self.device, small, self.block)
        self.recipe = asdict(replace(self.sampling, block=self.block))
        self.parts = checkpoint.trained(self.sizes.layers)
        self.image_size = size, size
        self.fingerprint = digest(
            f"{ADAPTER} {self.dtype}\n{origin or ''}", [] if origin else files
        )
        self._lora: Path | None = None
        self._network: Bagel | None = None
        self._autoencoder: Any = None

    def _block(self) -> int:
        """How many images are computed together; 0, as many as there are, in float64 on a CPU,
        where no rounding is seen."""
        if not self.device.startswith("cuda"):
            return 0 if (self.device, self.dtype) == ("cpu", "float64") else 1
        tokens = (self.sampling.size // self.sizes.latent_stride) ** 2
        numbers = self.sampling.branches * tokens * self.sizes.layer_numbers
        memory = torch.cuda.get_device_properties(self.device).total_memory
        return fitting(BLOCK, memory, self._bytes, numbers * getattr(torch, self.dtype).itemsize)

    # -- loading ---------------------------------------------------------------------------

    def load(self) -> None:
        self.network  # noqa: B018 (it loads)

    def release(self) -> None:
        self._network = self._autoencoder = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @property
    @torch.inference_mode(False)  # also where a method under it loads: weights have gradients
    def network(self) -> Bagel:
        if self._network is None:
            given = self._who, self.folder, self.sizes, self.dtype, self.device
            network = checkpoint.load_network(*given)
            if self._lora:
                lora.merge(self._who, network, self._lora)
            self._network = network
        return self._network

    def use(self, network: Any) -> None:
        self.release()
        self._network = network
        self.device = str(next(network.parameters()).device)

    @property
    def autoencoder(self) -> Any:
        """Diffusers' AutoencoderKL, loaded. It stays in float32 where the network is shorter."""
        if self._autoencoder is None:
            dtype = "float64" if self.dtype == "float64" else "float32"
            self._autoencoder = checkpoint.load_autoencoder(
                self._who, self.folder, dtype, self.device
            )
        return self._autoencoder

    @cached_property
    def tokenizer(self) -> Any:
        """The folder's tokenizer; needs no weights."""
        return checkpoint.load_tokenizer(self._who, self.folder)

    @cached_property
    def _marks(self) -> list[int]:
        return list(self.tokenizer.convert_tokens_to_ids(list(checkpoint.MARKS)))

    def adapt(self, folder: Path) -> None:
        self.name, self._lora = folder.resolve().name, folder
        self.fingerprint = lora.fingerprint(self.fingerprint, folder)

    def save(self, folder: Path) -> None:
        checkpoint.save(self.network, self.folder, folder)

    @property
    def _who(self) -> str:
        return f"model {self.name}"

    # -- drawing ---------------------------------------------------------------------------

    def refuses(self, text: str) -> str | None:
        for token in self.tokenizer.get_added_vocab():
            if token.strip() and token in text:
                return f"it contains {token!r}, which {self.name} reads as a special token"
        plan, most = ("", self.sampling.think_tokens) if self.sampling.think else (None, 0)
        tokens = max(map(len, self._branches(text, plan))) + most + 1
        if tokens <= (room := self.sizes.room):
            return None
        return f"with its image it takes {tokens} places, {self.name} has room for {room}"

    @torch.inference_mode()
    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Drawing]:
        plans = self.plan(prompts) if self.sampling.think else {}
        rows = [self._branches(prompt, plans.get(prompt)) for prompt in prompts]
        drawings = []
        for row, drawn in zip(rows, self._drawn(rows, seeds), strict=True):
            latents = unpacked(drawn[None], self.sizes.latent_patch)
            image, read = self.decode(latents), self.tokenizer.decode(row[0])
            kept = latents[0].float().cpu().numpy()
            drawings.append(Drawing(image, effective_prompt=read, latents=kept))
        return drawings

    @torch.inference_mode()
    def plan(self, prompts: Sequence[str]) -> dict[str, str]:
        """What the model writes about each prompt before it draws, greedily decoded."""
        reader, said = self._reader, dict[str, str]()
        rows = {prompt: self._tokens(PLANNING, prompt) for prompt in prompts}
        for some, whole in reader.texts(rows, rows.__getitem__):
            with repeatable():
                context = reader.read(self.network.blank(len(whole)), [rows[p] for p in whole])[1]
                ids = reader.say(context, self.sampling.think_tokens)
            said |= dict(zip(some, self._words(ids), strict=False))
        return said

    def _branches(self, prompt: str, plan: str | None) -> list[list[int]]:
        """Tokens that each prediction has read: all, all but the prompt, all but the plan."""
        before, after = ([PLANNING], [plan]) if plan is not None else ([], [])
        texts = [[*before, prompt, *after], before, [*before, prompt]]
        return [self._tokens(*some) for some in texts[: self.sampling.branches]]

    def _tokens(self, *texts: str) -> list[int]:
        begin, end = self._marks[:2]
        return [t for text in texts for t in (begin, *self.tokenizer.encode(text), end)]

    def _words(self, rows: Sequence[Sequence[int]]) -> list[str]:
        return list(self.tokenizer.batch_decode(rows, skip_special_tokens=True))

    @property
    def _reader(self) -> Reader:
        from gapbench.models.bagel.reader import Reader

        return Reader(self.network, self.sizes, self._marks, self.block)

    def _drawn(
        self, rows: Sequence[Sequence[list[int]]], seeds: Sequence[int], steps: int | None = None
    ) -> list[Tensor]:
        """(S, C) latents of each image, whose rows are what its predictions have read."""
        reader, drawn = self._reader, dict[int, Tensor]()
        for some, whole in reader.texts(range(len(rows)), lambda n: max(rows[n], key=len)):
            given = [rows[n] for n in whole], [seeds[n] for n in whole]
            try:
                with repeatable():
                    made = self._flow(reader, *given, steps)
            except torch.OutOfMemoryError as error:
                raise GapbenchError(
                    f"{self._who}: {len(whole)} images drawn together do not fit into the memory "
                    f"of {self.device}; try --set block={max(1, len(whole) // 2)}"
                ) from error
            require_finite(self._who, "language model", made)
            drawn |= dict(zip(some, made, strict=False))
        return [drawn[number] for number in range(len(rows))]

    def _flow(
        self,
        reader: Reader,
        rows: Sequence[Sequence[list[int]]],
        seeds: Sequence[int],
        steps: int | None,
    ) -> Tensor:
        """Latents (B, S, C) of a block."""
        network, side = self.network, self.sampling.size // self.sizes.latent_stride
        shape = len(rows), side * side, self.sizes.latent_width
        noise = normal(keys(seeds), shape[1] * shape[2], DRAWING).view(shape)
        noise = noise.to(self._fine).to(self.device)
        places = grid(side, side, self.sizes.latent_side).to(self.device)
        # All rows of a branch one after the other, so that the first ones are those without it.
        read = [row for branch in zip(*rows, strict=True) for row in branch]
        _, context = reader.read(network.blank(len(read)), read)

        def velocity(latents: Tensor, time: Tensor, branches: int) -> Sequence[Tensor]:
            count = branches * len(latents)
            many, times = latents.repeat(branches, 1, 1), time.to(self.device).expand(count)
            some = context.rows(slice(count))
            return network.velocity(some, many, places, times, reader.around).chunk(branches)

        return flow(velocity, noise, self.sampling, steps)

    @property
    def _fine(self) -> torch.dtype:
        """What latents are in: the network's numbers may be shorter."""
        return torch.float64 if self.dtype == "float64" else torch.float32

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Image.Image:
        """The picture of (1, channels, H, W) latents."""
        coder = self.autoencoder
        latents = latents.to(self.device, coder.dtype) / checkpoint.SCALE + checkpoint.SHIFT
        with repeatable():
            pixels = coder.decode(latents).sample[0].permute(1, 2, 0)
        require_finite(self._who, "picture decoder", pixels)
        levels = (pixels * 0.5 + 0.5).clamp(0, 1) * 255
        return Image.fromarray(levels.to(torch.uint8).cpu().numpy())

    @torch.inference_mode()
    def check_seeds(self, prompt: str, seed: int) -> str | None:
        if self.block < 2:
            return None
        others = [f"{prompt} {number}" for number in range(1, self.block)]
        rows = [self._branches(text, None) for text in (prompt, *others)]
        seeds = range(seed, seed + self.block)
        (alone,) = self._drawn(rows[:1], seeds[:1], CHECKED)
        beside = self._drawn(rows[::-1], seeds[::-1], CHECKED)[-1]
        if torch.equal(alone, beside):
            return None
        return (
            "an image's latents change with the images beside it, so on this device images depend "
            "on their batch"
        )

    # -- training --------------------------------------------------------------------------

    def generation_loss(
        self,
        prompts: Sequence[str],
        drawings: NDArray[Any],
        noise: Sequence[int],
        unconditional: bool | Sequence[bool] = False,
    ) -> Tensor:
        """The squared error of the velocity at one random time, (B,), differentiable: summed over
        latents (B, channels, H, W) as `generate` gives them, at the time and the noise that a row's
        seed in `noise` fixes. `unconditional` withholds prompts.

        Times are spread as in upstream's training: the logistic function of a normal number.
        """
        away = np.broadcast_to(unconditional, len(prompts)).tolist()
        texts = zip(prompts, away, strict=True)
        rows = [[] if withheld else self._tokens(prompt) for prompt, withheld in texts]
        latents = torch.as_tensor(drawings).to(self.device, self._fine)
        clean, patch = packed(latents, self.sizes.latent_patch), self.sizes.latent_patch
        random = normal(keys(noise), clean[0].numel() + 1, TRAINING).to(self._fine).to(self.device)
        times, target = random[:, 0].sigmoid(), random[:, 1:].view_as(clean)
        share = times[:, None, None]
        high, wide = (edge // patch for edge in latents.shape[2:])
        reader, places = self._reader, grid(high, wide, self.sizes.latent_side).to(self.device)
        _, context = reader.read(self.network.blank(len(rows)), rows)
        noisy = (1 - share) * clean + share * target
        found = self.network.velocity(context, noisy, places, times, reader.around)
        return (found.to(clean) - (target - clean)).square().sum((1, 2), dtype=torch.float64)

    # -- judging ---------------------------------------------------------------------------

    @torch.inference_mode()
    def judge(
        self, images: Sequence[Image.Image], questions: Sequence[str], answers: Sequence[str]
    ) -> NDArray[np.float64]:
        # After its start mark the model begins with a word, not with a space.
        tails = [tuple(self.tokenizer.encode(answer.strip())) for answer in answers]
        contexts = list(dict.fromkeys(tail[:-1] for tail in tails))
        asked = [self._tokens(question) for question in questions]
        # Answers that differ in their last token only share a row.
        rows = [[*row, self._marks[0], *context] for row in asked for context in contexts]
        places = [number for number in range(len(asked)) for _ in contexts]
        total, head = np.zeros((len(asked), len(tails))), self.network.language_model.lm_head
        with self._watched(), repeatable():
            for some, states, _ in self._reader.asked(images, places, rows):
                for row, own in zip(some, states, strict=False):
                    context, end = contexts[row % len(contexts)], len(rows[row])
                    said = head(own[end - len(context) - 1 : end]).double().log_softmax(-1)
                    for column, tail in enumerate(tails):
                        if tail[:-1] == context:
                            odds = said[range(len(tail)), tail].sum()
                            total[places[row], column] = float(odds)
        return total

    @torch.inference_mode()
    def reply(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[str]:
        rows, said = [self._tokens(question) for question in questions], dict[int, str]()
        reader = self._reader
        with self._watched(), repeatable():
            for some, _, context in reader.asked(images, range(len(rows)), rows):
                words = self._words(reader.say(context, REPLY_TOKENS))
                said |= dict(zip(some, words, strict=False))
        return [said[number].strip() for number in range(len(rows))]

    # -- text ------------------------------------------------------------------------------

    def chat(self, turns: Sequence[Mapping[str, str]]) -> str:
        return self._texts.chat(turns)

    @torch.inference_mode()
    def complete(
        self, images: Images, texts: Sequence[str], tokens: int, until: Sequence[str] = ()
    ) -> list[str]:
        rows, own = zip(images, texts, strict=True), self._texts
        with self._watched(), repeatable():
            return [own.complete(*row, tokens, until) for row in rows]

    @torch.inference_mode()
    def score(
        self, images: Images, texts: Sequence[str], endings: Sequence[str]
    ) -> list[tuple[float, bool]]:
        rows, own = zip(images, texts, endings, strict=True), self._texts
        with self._watched(), repeatable():
            return [own.score(*row) for row in rows]

    @property
    def _texts(self) -> Texts:
        from gapbench.models.bagel.texts import Texts

        return Texts(self._who, replace(self._reader, block=1), self.tokenizer)

    def _watched(self) -> AbstractContextManager[None]:
        network = self.network
        ends = {"vision tower": network.connector, "language model": network.language_model.lm_head}
        return watched(self._who, ends)
