"""What a model adapter is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gapbench.types import Answer, GapbenchError

if TYPE_CHECKING:
    import torch

CAPABILITIES = {
    "generate": "draws images from prompts",
    "judge_logits": "gives the log-probability of an answer about an image",
    "judge_text": "answers a question about an image in words",
    "image_tokens": "draws through discrete tokens, which are kept",
    "image_logprobs": "gives per-token log-probabilities of an image, differentiable",
    "train": "its weights can be trained and saved",
    "text": "goes on with any text, with any number of images in it",
}
IMAGE: Final = "<image>"
"""Where an image stands in a text (capability text)."""
PAIR = "a pair: it draws with one set of weights and judges with another"


@dataclass(frozen=True, slots=True)
class Drawing:
    """One generated image.

    `tokens` is (T,) int32, or None where the model has no discrete tokens; `logprob` is the sum
    of their log-probabilities in nats under the distribution they were drawn from.
    """

    image: Image.Image
    tokens: NDArray[np.int32] | None
    effective_prompt: str
    logprob: float | None


class Unfinished(GapbenchError):  # noqa: N818
    """Some items of a batch failed; `done` maps the places of the others to what they gave."""

    def __init__(self, message: str, done: Mapping[int, Any]) -> None:
        super().__init__(message)
        self.done = done


class Model(Protocol):
    """A unified model: one set of weights that draws and judges.

    An adapter is cheap to make; `load` brings in the weights and `release` gives them back, so
    that a model and a large judge share one device in turn. `name`, `fingerprint`, `recipe` and
    `capabilities` are known before loading.
    """

    @property
    def name(self) -> str:
        """As given to --model."""

    @property
    def fingerprint(self) -> str:
        """Digest of weights, processor files, adapter version and dtype."""

    @property
    def recipe(self) -> Mapping[str, Any]:
        """Sampling parameters, as used."""

    @property
    def capabilities(self) -> frozenset[str]:
        """Which of CAPABILITIES it has."""

    def load(self) -> None:
        """Bring the weights onto the device; nothing if they are there."""

    def release(self) -> None:
        """Free the weights and the device memory."""

    def refuses(self, text: str) -> str | None:
        """Why a prompt text cannot be drawn (say, it holds a special token), or None."""

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Drawing]:
        """Draw one image for each (prompt, seed).

        An image depends on its prompt and seed alone: not on the batch, its size or its order.
        Where some fail and others are done, Unfinished (also of judge and reply) holds the latter.
        """

    def judge(
        self, images: Sequence[Image.Image], questions: Sequence[str], answers: Sequence[str]
    ) -> NDArray[np.float64]:
        """Log-probability in nats of each whole answer, (images, answers): judge_logits."""

    def reply(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[str]:
        """What the model says, greedily decoded. Capability judge_text."""


@runtime_checkable
class Adaptable(Protocol):
    """A model that takes a LoRA adapter's folder."""

    name: str

    def adapt(self, folder: Path) -> None:
        """Put the adapter on the weights, before they are loaded; changes name and fingerprint.

        Raises GapbenchError where the folder holds none.
        """


@runtime_checkable
class AnsweringModel(Protocol):
    """A model that gives verdicts itself: probabilities where it has them, else words."""

    def answers(
        self, images: Sequence[Image.Image], questions: Sequence[str], words: bool
    ) -> list[Answer]:
        """Answer for each (image, question), in order; by words alone if `words`."""


@runtime_checkable
class TextModel(Protocol):
    """A model that goes on with texts, which is what lm-eval asks of one. Capability text.

    Each text has an IMAGE for each of its images, in their order. What is said about a text does
    not depend on the others. GapbenchError where a text is too long for the model.
    """

    name: str
    fingerprint: str

    def chat(self, turns: Sequence[Mapping[str, str]]) -> str:
        """The text of a chat in the model's own format, up to the answer.

        A turn is {"role": "user" or "assistant", "content": text}; the last one is the user's.
        """

    def complete(
        self,
        images: Sequence[Sequence[Image.Image]],
        texts: Sequence[str],
        tokens: int,
        until: Sequence[str] = (),
    ) -> list[str]:
        """How each text goes on, greedily decoded: up to its end, so many tokens, or the first of
        the words in `until`, which is left out."""

    def score(
        self,
        images: Sequence[Sequence[Image.Image]],
        texts: Sequence[str],
        endings: Sequence[str],
    ) -> list[tuple[float, bool]]:
        """Log-probability in nats of each text's ending, and whether it is what greedy decoding
        would say."""

    def release(self) -> None:
        """Free the weights and the device memory."""


@runtime_checkable
class SeedlessModel(Protocol):
    """A model that may not heed its seeds, and can be tried."""

    def check_seeds(self, prompt: str, seed: int) -> str | None:
        """What is wrong with the images of one prompt and seed, or None."""


def is_pair(model: Model) -> bool:
    """Whether a model draws and judges with different weights (`pair = True` on its adapter)."""
    return bool(getattr(model, "pair", False))


def require_shared(model: Model, command: str) -> None:
    """Raises GapbenchError where a command that speaks of shared parameters is given a pair."""
    if is_pair(model):
        raise GapbenchError(
            f"{command} is about parameters that drawing and judging share; model {model.name} is "
            f"{PAIR}"
        )


class TrainableModel(Model, Protocol):
    """A model whose image tokens can be scored and whose weights can be trained.

    `parts` are regular expressions for names of parameters of `network`, by what they belong to:
    "language-model", and, where there is more, "generation" for all that drawing runs through.
    """

    parts: Mapping[str, str]

    @property
    def network(self) -> torch.nn.Module:
        """The loaded network that draws; `image_logprobs` runs through it."""

    def use(self, network: torch.nn.Module) -> None:
        """Draw, score and judge with a network that is in memory, such as one in training."""

    @property
    def codes(self) -> int:
        """How many different image tokens there are; they are counted from 0."""

    def image_logprobs(
        self,
        prompts: Sequence[str],
        tokens: NDArray[np.int32],
        unconditional: bool | Sequence[bool] = False,
    ) -> torch.Tensor:
        """Per-token log-probabilities in nats of (B, T) tokens under the conditional branch
        (or, for all rows or for those that are named, the one that guidance subtracts): (B, T),
        differentiable. Capability image_logprobs."""

    def save(self, folder: Path) -> None:
        """Write weights (safetensors) and processor files; the folder is a --model like any other.
        An adapter of one's own gets it back as its factory's `folder`."""


class DifferentiableModel(TrainableModel, Protocol):
    """A model both of whose heads have gradients: what `gapbench explain` takes."""

    def image_logits(
        self,
        prompts: Sequence[str],
        tokens: NDArray[np.int32],
        unconditional: bool | Sequence[bool] = False,
    ) -> torch.Tensor:
        """The logits (B, T, V) behind `image_logprobs`, by code, differentiable."""

    def answer_logprobs(
        self, images: Sequence[Image.Image], questions: Sequence[str], answers: Sequence[str]
    ) -> torch.Tensor:
        """What `judge` gives, (images, answers), differentiable."""


@runtime_checkable
class EmbeddingModel(Protocol):
    """A model whose own towers embed texts and images, (N, width) each."""

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Mean over a prompt's tokens of the language model's last hidden state."""

    def embed_images(self, images: Sequence[Image.Image]) -> NDArray[np.float64]:
        """Mean over the patches of the vision tower's last hidden state."""
