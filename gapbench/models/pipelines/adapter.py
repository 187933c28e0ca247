"""A pipeline of diffusers that draws, and its text encoder, a vision-language model, that judges.

The pipeline's own call does all of the drawing: here are its random streams, its blocks of one
shape, and what training needs of its network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from gapbench.files import digest, first_line
from gapbench.models import lora
from gapbench.models.autoregressive.attention import repeatable
from gapbench.models.autoregressive.blocks import filled, fitting
from gapbench.models.autoregressive.finite import require_finite
from gapbench.models.autoregressive.model import REPLY_TOKENS, SMALL
from gapbench.models.autoregressive.noise import keys, normal
from gapbench.models.base import Batches, Drawing, Model
from gapbench.models.checkpoint import device_here, unwarned
from gapbench.models.pipelines.checkpoint import NETWORK, Layout
from gapbench.models.pipelines.recipe import LIMIT, whole_recipe
from gapbench.models.vlm import Chat, room
from gapbench.types import GapbenchError

ADAPTER: Final = "diffusers-1"
CONDITIONED: Final = "a pair: it draws with one network, conditioned by the model that judges"
BLOCK: Final = 4
"""Images that a GPU draws together."""
IMAGE: Final = 3e9
"""Bytes that an image takes beside the weights: an allowance, not a measurement."""
CHECKED: Final = 2
"""Steps of an image that are drawn twice before a run."""
BASE: Final = frozenset({"generate", "judge_logits", "judge_text", "image_latents"})
TRAINED: Final = frozenset({"generation_loss", "train", "lora"})


class PipelineModel(Model):
    """Adapter for a pipeline's folder; see docs/diffusers.md.

    `changes` is what --set changes of the recipe, which is otherwise that of the pipeline's call.
    `origin`, a hub id at a commit, stands for the digest of the files in the fingerprint.
    """

    pair = True
    pairing = CONDITIONED
    adapter_only = True
    device: str
    dtype: str

    def __init__(
        self,
        name: str,
        folder: Path,
        changes: Mapping[str, object],
        device: str = "auto",
        dtype: str = "auto",
        origin: str | None = None,
    ) -> None:
        self.name, self.folder = name, folder
        self.layout = Layout(self._who, folder)
        self.versions = {"diffusers": version("diffusers")}
        call = self.layout.pipeline_class.__call__
        recipe = whole_recipe(self.name, call, self.layout.kind.recipe, changes)
        self.device = device_here(self._who, device)
        self._bytes = sum(file.stat().st_size for file in self.layout.files)
        small = self._bytes < SMALL
        auto = "bfloat16" if self.device != "cpu" else "float64" if small else "float32"
        self.dtype = auto if dtype == "auto" else dtype
        self.block = recipe["block"] or self._block()
        self.batches = Batches.on(self.device, small, self.block)
        self.recipe = {**recipe, "block": self.block}
        self.parts = {"generation": self.layout.trained}
        self.capabilities = BASE | (TRAINED if self.layout.trainable else frozenset())
        files = [] if origin else self.layout.files
        self.fingerprint = digest(f"{ADAPTER} {self.dtype}\n{origin or ''}", files)
        self._lora: Path | None = None
        self._pipeline: Any = None
        self._lengths: dict[str, int] = {}

    def _block(self) -> int:
        """How many images are drawn together; 0, as many as there are, in float64 on a CPU, where
        no rounding is seen."""
        if not self.device.startswith("cuda"):
            return 0 if (self.device, self.dtype) == ("cpu", "float64") else 1
        memory = torch.cuda.get_device_properties(self.device).total_memory
        return fitting(BLOCK, memory, self._bytes, int(IMAGE))

    # -- loading ---------------------------------------------------------------------------

    def load(self) -> None:
        self.pipeline  # noqa: B018 (it loads)

    def release(self) -> None:
        self._pipeline = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @property
    def pipeline(self) -> Any:
        """Diffusers' pipeline, loaded."""
        if self._pipeline is None:
            self._load()
        return self._pipeline

    @torch.inference_mode(False)  # also where a method under it loads: weights have gradients
    def _load(self, network: nn.Module | None = None) -> None:
        self._pipeline = self.layout.load(self.dtype, self.device, network)
        if self._lora and network is None:
            lora.merge(self._who, self.network, self._lora)

    @property
    def network(self) -> Any:
        return getattr(self.pipeline, NETWORK)

    @property
    def encoder(self) -> Any:
        """The vision-language model, loaded."""
        return getattr(self.pipeline, self.layout.encoder)

    def use(self, network: nn.Module) -> None:
        self.release()
        self.device = str(next(network.parameters()).device)
        self._load(network)

    def adapt(self, folder: Path) -> None:
        self.name, self._lora = folder.resolve().name, folder
        self.fingerprint = lora.fingerprint(self.fingerprint, folder)

    def save(self, folder: Path) -> None:
        self.layout.save(self.network, folder)

    @cached_property
    def tokenizer(self) -> Any:
        """What cuts prompts; needs no weights."""
        return self.layout.tokenizer()

    @property
    def _who(self) -> str:
        return f"model {self.name}"

    # -- drawing ---------------------------------------------------------------------------

    def refuses(self, text: str) -> str | None:
        for token in self.tokenizer.get_added_vocab():
            if token.strip() and token in text:
                return f"it contains {token!r}, which {self.name} reads as a special token"
        limit = (self.recipe.get("max_sequence_length") or LIMIT) - self.layout.kind.spent
        tokens = len(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        if tokens <= limit:
            return None
        return f"it takes {tokens} tokens, of which {self.name} would read {limit}"

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Drawing]:
        drawn = dict[int, Drawing]()
        places = range(len(prompts))
        shape: Any = self._length if not self.layout.kind.alone else str
        for some, whole in filled(places, lambda n: shape(prompts[n]), self.block):
            made = self._drawn([prompts[n] for n in whole], [seeds[n] for n in whole])
            drawn |= dict(zip(some, made, strict=False))
        return [drawn[number] for number in range(len(prompts))]

    def _length(self, prompt: str) -> int:
        """Tokens that the encoder gets for a prompt: only prompts of one length share a batch, in
        which nothing is padded then."""
        if prompt not in self._lengths:
            given = _inputs(self.encoder, lambda: self._call([prompt], [0]))
            self._lengths[prompt] = given["input_ids"].shape[1]
        return self._lengths[prompt]

    def _drawn(self, prompts: Sequence[str], seeds: Sequence[int], **more: object) -> list[Drawing]:
        """A block of drawings."""
        pipeline = self.pipeline
        with _watched(pipeline) as seen, repeatable():
            images = self._call(prompts, seeds, **more)[0]
        latents, read = seen["latents"], seen["read"]
        require_finite(self._who, "network", latents)
        drawings = []
        for row, image in enumerate(images):
            for edge, size in zip(("width", "height"), image.size, strict=True):
                if self.recipe.get(edge) not in (None, size):
                    raise GapbenchError(
                        f"{self._who}: {self.layout.pipeline} draws {image.width} x "
                        f"{image.height} pixels where {edge} is {self.recipe[edge]}; give a width "
                        "and a height that it can draw"
                    )
            said = read[row] if read[row] != prompts[row] else None
            kept = _kept(latents[row])
            drawings.append(Drawing(_opaque(image), effective_prompt=said, latents=kept))
        return drawings

    def _call(self, prompts: Sequence[str], seeds: Sequence[int], **more: object) -> Any:
        """What the pipeline gives for prompts, each with a random stream of its own; on the CPU,
        so that every device begins with the same noise."""
        given = {key: value for key, value in self.recipe.items() if key != "block"} | more
        if given.get("negative_prompt") is not None:
            given["negative_prompt"] = [given["negative_prompt"]] * len(prompts)
        streams = [torch.Generator().manual_seed(seed % 2**64) for seed in seeds]
        try:
            with unwarned():
                return self.pipeline(
                    prompt=list(prompts), generator=streams, return_dict=False, **given
                )
        except _Caught:
            raise
        except torch.OutOfMemoryError as error:
            raise GapbenchError(
                f"{self._who}: {len(prompts)} images drawn together do not fit into the memory of "
                f"{self.device}; try --set block={max(1, len(prompts) // 2)}"
            ) from error
        except Exception as error:  # pipelines raise many kinds, of odd recipes
            raise GapbenchError(
                f"{self._who}: {self.layout.pipeline} fails with this recipe: {first_line(error)}"
            ) from error

    def check_seeds(self, prompt: str, seed: int) -> str | None:
        if self.block < 2:
            return None
        texts, steps = [prompt] * self.block, {"num_inference_steps": CHECKED}
        alone = self._drawn(texts, [seed] * self.block, **steps)[0]
        beside = self._drawn(texts, range(seed + self.block - 1, seed - 1, -1), **steps)[-1]
        if np.array_equal(alone.latents, beside.latents):  # type: ignore[arg-type]
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
        latents (B, ...) as `generate` gives them, at the time and the noise that a row's seed in
        `noise` fixes. A withheld prompt is the negative one, which guidance reads.

        Times are spread as in arXiv 2403.03206, section 3.1: the logistic function of a normal
        number.
        """
        away = np.broadcast_to(unconditional, len(prompts)).tolist()
        empty = self.recipe.get("negative_prompt") or ""
        texts = [empty if gone else text for text, gone in zip(prompts, away, strict=True)]
        losses: dict[int, Tensor] = {}
        # Beside a longer text a row would be padded, which moves the places of some networks.
        for rows, _ in filled(range(len(texts)), lambda n: self._length(texts[n]), 0):
            given = [texts[n] for n in rows], drawings[rows], [noise[n] for n in rows]
            losses |= dict(zip(rows, self._errors(*given), strict=True))
        return torch.stack([losses[number] for number in range(len(texts))])

    def _errors(
        self, prompts: Sequence[str], drawings: NDArray[Any], noise: Sequence[int]
    ) -> Tensor:
        """`generation_loss` of prompts of one length."""
        given = self._prepared(prompts)
        shown, fine = given["hidden_states"], self._fine
        clean = torch.as_tensor(drawings).to(self.device, fine)
        if clean.numel() != shown.numel():
            raise GapbenchError(
                f"{self._who}: latents of {clean[0].numel()} numbers, and with this recipe an "
                f"image has {shown[0].numel()}; train at the size that they were drawn at"
            )
        clean = clean.view_as(shown)
        random = normal(keys(noise), clean[0].numel() + 1).to(fine).to(self.device)
        times, target = random[:, 0].sigmoid(), random[:, 1:].view_as(clean)
        share = times.view(-1, *[1] * (clean.ndim - 1))
        noisy = (1 - share) * clean + share * target
        # Pipelines count times from 0 to 1, or to the scheduler's 1,000.
        scale = 1 if float(given["timestep"].max()) <= 1 else 1000
        given["hidden_states"] = noisy.to(shown.dtype)
        given["timestep"] = (times * scale).to(given["timestep"].dtype)
        found: Tensor = self.network(**given)[0]
        found = found[:, -clean.shape[1] :]  # some give the text's before it
        errors = (found.to(clean) - (target - clean)).square()
        return errors.flatten(1).sum(1, dtype=torch.float64)

    @property
    def _fine(self) -> torch.dtype:
        """What noise and errors are in: the network's numbers may be shorter."""
        return torch.float64 if self.dtype == "float64" else torch.float32

    def _prepared(self, prompts: Sequence[str]) -> dict[str, Any]:
        """What the pipeline gives its network in the first step for these prompts."""
        more: dict[str, object] = {}
        if "true_cfg_scale" in self.recipe:
            more["negative_prompt"] = None  # without one, guidance is off
        if "use_kv_cache" in self.recipe:
            more["use_kv_cache"] = False  # a first step would fill it
        return _inputs(self.network, lambda: self._call(prompts, [0] * len(prompts), **more))

    # -- judging ---------------------------------------------------------------------------

    @cached_property
    def asked(self) -> Chat:
        """How the encoder is asked."""
        return Chat(self._who, self.layout.processor(), room(self.encoder.config))

    @torch.inference_mode()
    def judge(
        self, images: Sequence[Image.Image], questions: Sequence[str], answers: Sequence[str]
    ) -> NDArray[np.float64]:
        with self._asking():
            odds = self.asked.logprobs(self.encoder, images, questions, answers)
        require_finite(self._who, "language model", odds)
        return odds.numpy()

    @torch.inference_mode()
    def reply(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[str]:
        with self._asking():
            return self.asked.replies(self.encoder, images, questions, REPLY_TOKENS)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            with repeatable():
                yield
        except ValueError as error:  # of an image or a text without room
            raise GapbenchError(f"{self._who}: {first_line(error)}") from error


class _Caught(Exception):  # noqa: N818 (no error)
    """What a module was called with."""

    def __init__(self, inputs: dict[str, Any]) -> None:
        self.inputs = inputs


def _inputs(module: nn.Module, call: Callable[[], object]) -> dict[str, Any]:
    """The keywords that `call` first calls a module with; the module does not run, nor what would
    come after it."""

    def stop(_module: nn.Module, _args: Any, given: dict[str, Any]) -> None:
        raise _Caught(given)

    handle = module.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        call()
    except _Caught as caught:
        return dict(caught.inputs)
    finally:
        handle.remove()
    raise AssertionError(f"{type(module).__name__} was not called")


@contextmanager
def _watched(pipeline: Any) -> Iterator[dict[str, Any]]:
    """What a call of a pipeline reads, the prompts that it encodes, and its last latents, as its
    network has them."""
    seen: dict[str, Any] = {}
    step, encode = pipeline.scheduler.step, pipeline.encode_prompt

    def stepped(*args: Any, **more: Any) -> Any:
        made = step(*args, **more)
        seen["latents"] = made[0]
        return made

    def encoded(*args: Any, **more: Any) -> Any:
        if "read" not in seen:  # the next ones are of negative prompts
            read = signature(encode).bind(*args, **more).arguments["prompt"]
            seen["read"] = [read] if isinstance(read, str) else list(read)
        return encode(*args, **more)

    pipeline.scheduler.step, pipeline.encode_prompt = stepped, encoded
    try:
        yield seen
    finally:
        del pipeline.scheduler.step, pipeline.encode_prompt


def _kept(latents: Tensor) -> NDArray[np.float32]:
    """An image's latents in three dimensions: those of one number are added or left out."""
    shape = [1, 1, *latents.shape]
    kept: NDArray[np.float32] = latents.float().cpu().numpy()
    return kept.reshape([*np.prod(shape[:-2], keepdims=True), *shape[-2:]])


def _opaque(image: Image.Image) -> Image.Image:
    """A picture in RGB; what of it is transparent shows white."""
    if image.mode == "RGBA":
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
