"""What a model adapter is."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gapbench.models.image_folder import MAX_PIXELS
from gapbench.types import Answer, GapbenchError, Unfinished, counted
from gapbench.verdict import ANSWERS, parse, weigh

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Capability:
    """Something that a model may or may not be able to do, and what of `Model` does it."""

    words: str
    methods: tuple[str, ...] = ()


CAPABILITIES: Final = {
    "generate": Capability("draws images from prompts", ("generate",)),
    "judge_logits": Capability("gives the log-probability of an answer about an image", ("judge",)),
    "judge_text": Capability("answers a question about an image in words", ("reply",)),
    "image_tokens": Capability("draws through discrete tokens, which are kept"),
    "image_latents": Capability("decodes its images from latents, which are kept"),
    "generation_loss": Capability(
        "gives the loss of its drawings that training lowers, differentiable", ("generation_loss",)
    ),
    "train": Capability(
        "its weights can be trained and saved", ("network", "parts", "use", "save")
    ),
    "lora": Capability("takes a LoRA adapter's folder", ("adapt",)),
    "gradients": Capability(
        "gives the logits of image tokens and of answers, differentiable",
        ("codes", "image_logits", "answer_logprobs"),
    ),
    "embeddings": Capability(
        "embeds texts and images with its own towers", ("embed_texts", "embed_images")
    ),
    "text": Capability(
        "continues any text, with any number of images in it", ("chat", "complete", "score")
    ),
}
REQUIRED: Final = ("generate", "judge", "reply")
"""Of these an adapter must have one; the rest of `Model` has defaults."""
IMAGE: Final = "<image>"
"""Where an image stands in a text (capability text)."""
PAIR = "a pair: it draws with one set of weights and judges with another"


@dataclass(frozen=True, slots=True)
class Drawing:
    """One generated image.

    `tokens` is (T,) int32, or None where the model has no discrete tokens; `logprob` is the sum
    of their log-probabilities in nats under the distribution they were drawn from;
    `effective_prompt` is the prompt as the model got it, None where that is the prompt itself;
    `latents` is (channels, height, width) float32 that the picture was decoded from, if any.
    """

    image: Image.Image
    tokens: NDArray[np.int32] | None = None
    effective_prompt: str | None = None
    logprob: float | None = None
    latents: NDArray[np.float32] | None = None


class Batches(NamedTuple):
    """How many images a batch has: at first, and at most.

    Where the user names no batch size, batches grow from the first size to the largest while one
    takes under ten seconds.
    """

    first: int = 1
    most: int = 64

    @classmethod
    def on(cls, device: str, small: bool, block: int = 0) -> Batches:
        """For weights in this process, which may compute in blocks. A GPU says when its memory is
        full; on a CPU the process would be killed, and more rows are no faster anyway."""
        if device.startswith("cuda"):
            return cls(block, block) if block else cls(64, 1024)
        return cls(64, 64) if small else cls(8, 8)


class Model:
    """A unified model: one set of weights that draws and judges.

    An adapter is cheap to make; `load` brings in the weights and `release` gives them back, so
    that a model and a large judge share one device in turn. What is not a method is known before
    loading. A method of a capability that the adapter lacks raises GapbenchError.
    """

    name: str
    """As given to --model; by default the name of its class."""
    fingerprint: str
    """Digest of weights, processor files, adapter version and dtype; by default of the file of its
    class (`gapbench.fingerprint`)."""
    recipe: Mapping[str, Any] = {}
    """Sampling parameters, as used."""
    capabilities: frozenset[str]
    """Which of CAPABILITIES it has; by default those whose methods it has."""
    device: str | None = None
    """The device of its weights, as torch names it; None where that is not known."""
    dtype: str | None = None
    """The dtype that it computes in, as torch names it; None where that is not known."""
    pair: bool = False
    """Whether it draws with one set of weights and judges with another."""
    pairing: str = PAIR  # of a pair, in words
    adapter_only: bool = False  # whether it is trained by a LoRA adapter alone
    likelihood: bool = False
    """Whether `generation_loss` is the exact negative log-likelihood: `noise` changes nothing."""
    image_size: tuple[int, int] | None = None
    """Width and height of its images in pixels; None where that is not known before it draws."""
    reads_words: bool = False
    """Whether `answers` reads words where it cannot have the answers' probabilities."""
    versions: Mapping[str, str] | None = None
    """Of packages that a run does not record, by name."""
    batches: Batches = Batches()
    """How many images a batch of `generate` or `judge` should have."""
    gpus: float | None = 1
    """With --workers, the GPUs of each copy, where there are any: 0.25 where four fit on one. None
    keeps the only copy in the first process, as of a server, which copies make no faster."""
    parts: Mapping[str, str] = {}
    """Regular expressions for names of parameters of `network`, by what they belong to:
    "language-model", and, where there is more, "generation" for all that drawing runs through."""

    def load(self) -> None:
        """Bring the weights onto the device; nothing if they are there."""

    def release(self) -> None:
        """Free the weights and the device memory."""

    def refuses(self, text: str) -> str | None:
        """Why a prompt text cannot be drawn (say, it holds a special token), or None."""
        return None

    def check_seeds(self, prompt: str, seed: int) -> str | None:
        """What is wrong with the images of one prompt and seed, or None. For a model that may not
        heed its seeds."""
        return None

    def served(self) -> str | None:
        """What a server calls the model, once it has said so."""
        return None

    # -- generate, judge_logits, judge_text ------------------------------------------------

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Drawing]:
        """Draw one image for each (prompt, seed). Capability generate.

        An image depends on its prompt and seed alone: not on the batch, its size or its order.
        Where some fail and others are done, Unfinished (also of judge, reply and answers) holds
        the latter.
        """
        raise _lacking(self, "generate")

    def judge(
        self, images: Sequence[Image.Image], questions: Sequence[str], answers: Sequence[str]
    ) -> NDArray[np.float64]:
        """Log-probability in nats of each whole answer, (images, answers): judge_logits."""
        raise _lacking(self, "judge")

    def reply(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[str]:
        """What the model says, greedily decoded. Capability judge_text."""
        raise _lacking(self, "reply")

    def answers(
        self, images: Sequence[Image.Image], questions: Sequence[str], words: bool
    ) -> list[Answer]:
        """The verdict on each (image, question), in order: by what `reply` says if `words`, else by
        the probabilities that `judge` gives."""
        try:
            if words:
                return [parse(text) for text in texts_of(self, self.reply(images, questions))]
            gave = self.judge(images, questions, ANSWERS)
            odds = log_probabilities(f"model {self.name}", gave, len(images))
            return [weigh(float(no), float(yes)) for no, yes in odds]
        except Unfinished as stop:
            read = parse if words else lambda row: weigh(*row)
            done = {place: read(said) for place, said in stop.done.items()}
            raise Unfinished(str(stop), done, stop.failed) from stop

    # -- generation_loss, train, lora ------------------------------------------------------

    def generation_loss(
        self,
        prompts: Sequence[str],
        drawings: NDArray[Any],
        noise: Sequence[int],
        unconditional: bool | Sequence[bool] = False,
    ) -> torch.Tensor:
        """The loss of each drawing given its prompt, (B,), differentiable.

        `drawings` (B, ...) are the drawings' `latents` where they have some, else their `tokens`,
        all of one shape. The loss is a sum over them: -log p in nats where `likelihood` is true,
        else what the family is trained by, at random choices that the row's seed in `noise` fixes.
        At one seed, the losses of two sets of weights differ by the weights alone. `unconditional`
        withholds the prompt, of all rows or of those that it marks: that is the branch which
        guidance subtracts.
        """
        raise _lacking(self, "generation_loss")

    @property
    def network(self) -> torch.nn.Module:
        """The loaded network that draws; `generation_loss` runs through it."""
        raise _lacking(self, "network")

    def use(self, network: torch.nn.Module) -> None:
        """Draw, score and judge with a network that is in memory, such as one in training."""
        raise _lacking(self, "use")

    def save(self, folder: Path) -> None:
        """Write weights (safetensors) and processor files; the folder is a --model like any other.
        An adapter of one's own gets it back as its factory's `folder`."""
        raise _lacking(self, "save")

    def adapt(self, folder: Path) -> None:
        """Put a LoRA adapter on the weights, before they are loaded; changes name and fingerprint.

        Raises GapbenchError where the folder holds none.
        """
        raise _lacking(self, "adapt")

    # -- gradients, embeddings -------------------------------------------------------------

    @property
    def codes(self) -> int:
        """How many different image tokens there are; they are counted from 0."""
        raise _lacking(self, "codes")

    def image_logits(self, prompts: Sequence[str], tokens: NDArray[np.int32]) -> torch.Tensor:
        """The logits (B, T, V) by code that (B, T) tokens were drawn from, without guidance,
        differentiable: the sum of their log-probabilities is minus `generation_loss`."""
        raise _lacking(self, "image_logits")

    def answer_logprobs(
        self, images: Sequence[Image.Image], questions: Sequence[str], answers: Sequence[str]
    ) -> torch.Tensor:
        """What `judge` gives, (images, answers), differentiable."""
        raise _lacking(self, "answer_logprobs")

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """(N, width): mean over a prompt's tokens of the language model's last hidden state."""
        raise _lacking(self, "embed_texts")

    def embed_images(self, images: Sequence[Image.Image]) -> NDArray[np.float64]:
        """(N, width): mean over the patches of the vision tower's last hidden state."""
        raise _lacking(self, "embed_images")

    # -- text ------------------------------------------------------------------------------
    # What lm-eval asks. A text has an IMAGE for each of its images, in their order. What is said
    # about a text does not depend on the others. GapbenchError where one is too long for the model.

    def chat(self, turns: Sequence[Mapping[str, str]]) -> str:
        """The text of a chat in the model's own format, up to the answer.

        A turn is {"role": "user" or "assistant", "content": text}; the last one is the user's.
        """
        raise _lacking(self, "chat")

    def complete(
        self,
        images: Sequence[Sequence[Image.Image]],
        texts: Sequence[str],
        tokens: int,
        until: Sequence[str] = (),
    ) -> list[str]:
        """How each text goes on, greedily decoded: up to its end, so many tokens, or the first of
        the words in `until`, which is left out."""
        raise _lacking(self, "complete")

    def score(
        self,
        images: Sequence[Sequence[Image.Image]],
        texts: Sequence[str],
        endings: Sequence[str],
    ) -> list[tuple[float, bool]]:
        """Log-probability in nats of each text's ending, and whether it is what greedy decoding
        would say."""
        raise _lacking(self, "score")


def misdescribed(model: Model) -> str | None:
    """What is wrong with what an adapter says of itself, or None."""
    for field in ("name", "fingerprint"):
        if not isinstance(said := getattr(model, field), str) or not said:
            return f"its {field} is {said!r:.80}, not a text"
    if not isinstance(model.capabilities, Collection) or isinstance(model.capabilities, str):
        return f"its capabilities are {model.capabilities!r:.80}, no set of names"
    if not isinstance(model.device, str | None) or not isinstance(model.dtype, str | None):
        return "its device or its dtype is no text"
    if min(model.batches) < 1:
        return f"its batches are of {model.batches[0]} to {model.batches[1]} images"
    for method in ("generate", "judge", "reply"):
        if not callable(getattr(model, method)):
            return f"its {method} is no method"
    try:
        json.dumps(dict(model.recipe), allow_nan=False)  # NaN is no other NaN: no run goes on
    except (TypeError, ValueError) as error:
        return f"its recipe is no JSON ({error})"
    return None


def texts_of(model: Model, gave: Any) -> Sequence[str]:
    """What `reply` gave. Raises GapbenchError where it is anything else than texts."""
    if isinstance(gave, list | tuple) and all(isinstance(text, str) for text in gave):
        return gave
    raise GapbenchError(
        f"model {model.name}: reply gave {' '.join(repr(gave).split()):.80}, not a list of texts"
    )


def log_probabilities(who: str, gave: Any, images: int, answers: int = 2) -> NDArray[np.float64]:
    """What `judge` gave for so many images and answers, (images, answers). Raises GapbenchError
    where it is anything else than log-probabilities."""
    try:
        if np.iscomplexobj(gave):
            raise TypeError
        odds = np.array([[float(odd) for odd in row] for row in gave])
        fine = odds.shape == (images, answers) and bool((odds <= 1e-6).all())
    except (TypeError, ValueError):
        fine = False
    if not fine:
        raise GapbenchError(
            f"{who}: judge gave, for {counted(images, 'image')} and {counted(answers, 'answer')}, "
            f"{' '.join(repr(gave).split()):.80}, which are not log-probabilities"
        )
    return odds


def check_drawing(row: Drawing) -> None:
    """Raises ValueError for what is no Drawing of an RGB image that can be read back."""
    if not isinstance(row, Drawing):
        raise ValueError(f"a {type(row).__name__}, not a Drawing")
    image, tokens, logprob = row.image, row.tokens, row.logprob
    if not isinstance(image, Image.Image):
        raise ValueError(f"an image that is a {type(image).__name__}, no PIL image")
    if image.mode != "RGB":
        raise ValueError(f"an image of mode {image.mode}, not RGB")
    if not 0 < image.width * image.height <= MAX_PIXELS:
        raise ValueError(f"an image of {image.width} x {image.height} pixels")
    if tokens is not None and not (
        isinstance(tokens, np.ndarray) and tokens.ndim == 1 and tokens.dtype == np.int32
    ):
        raise ValueError("tokens that are no (T,) int32 array")
    form = getattr(row.latents, "ndim", 0), getattr(row.latents, "dtype", None)
    if row.latents is not None and form != (3, np.float32):
        raise ValueError("latents that are no (channels, height, width) float32 array")
    if not isinstance(row.effective_prompt, str | None):
        raise ValueError(f"an effective_prompt that is a {type(row.effective_prompt).__name__}")
    if logprob is not None and not (is_number(logprob) and logprob <= 1e-6):
        raise ValueError(f"an image's log-probability of {logprob!r}")


def is_number(value: object) -> bool:
    """Whether it is a number that is neither infinite nor NaN."""
    return isinstance(value, int | float) and math.isfinite(value)


def require(model: Model, capabilities: Sequence[str], why: str) -> None:
    """Raises GapbenchError, which names them and says why, where a model lacks capabilities."""
    if lacks := [name for name in capabilities if name not in model.capabilities]:
        raise GapbenchError(f"model {model.name} lacks {', '.join(lacks)}: {why}")


def require_shared(model: Model, command: str) -> None:
    """Raises GapbenchError where a command that speaks of shared parameters is given a pair."""
    if model.pair:
        raise GapbenchError(
            f"{command} is about parameters that drawing and judging share; model {model.name} is "
            f"{model.pairing}"
        )


def has_own(model: Model, member: str) -> bool:
    """Whether an adapter has a method or attribute itself, and not from the contract."""
    mine, default = inspect.getattr_static(model, member, None), vars(Model)[member]
    if mine is None:
        return hasattr(model, member)  # it may hand on what another object has
    return default not in (mine, getattr(mine, "__func__", None))


def _lacking(model: Model, method: str) -> GapbenchError:
    lacks = next(name for name, each in CAPABILITIES.items() if method in each.methods)
    return GapbenchError(f"model {model.name} lacks {lacks}: its adapter has no {method}")
