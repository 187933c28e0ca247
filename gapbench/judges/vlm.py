"""Vision-language models of transformers as outside judges.

| argument | model | use |
|---|---|---|
| none, `72b` | Qwen/Qwen2.5-VL-72B-Instruct | the judge of arXiv 2507.16663; 147 GB in bfloat16 |
| `8b` | Qwen/Qwen3-VL-8B-Instruct | the judge of GenEval 2, NOT the paper's |
| `4b`, `32b` | Qwen/Qwen3-VL-4B-Instruct, -32B-Instruct | smaller and larger, NOT the paper's |
| `unison` | FudanCVL/Unison-Judge, a tuned Qwen3-VL-8B | of the benchmark Unison, NOT the paper's |
| `7b` | Qwen/Qwen2.5-VL-7B-Instruct | smaller, NOT the paper's: its rates are not comparable |
| `3b` | Qwen/Qwen2.5-VL-3B-Instruct | smallest, NOT the paper's; for research only by its licence |
| `OWNER/NAME` or `OWNER/NAME@REVISION` | any on the hub | NOT the paper's |
| a folder | any checkpoint in the hub's layout | NOT the paper's |

The verdict is read off the probabilities of the two answers that the question asks for, in one
batched forward pass, as the model under test judges itself (`gapbench.judges.own`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple, TypeVar

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from gapbench.fetch.hub import Checkpoint, Unreachable, fetch, fetch_settings, whole
from gapbench.files import digest, first_line
from gapbench.judges.base import Judge, with_meaning
from gapbench.judges.weights import free_memory
from gapbench.models import torchvision_shim
from gapbench.models.base import Batches
from gapbench.models.checkpoint import (
    device_here,
    load_pretrained,
    model_type,
    require_weights,
    settings_files,
)
from gapbench.models.vlm import Chat, room
from gapbench.types import Answer, GapbenchError, Prompt
from gapbench.verdict import ANSWERS, QUESTION, weigh

ADAPTER: Final = "vlm-1"
DEFAULT: Final = "72b"
SETTINGS: Final = ("*.json", "*.jinja", "*.txt", "*.model")
WEIGHTS: Final = "*.safetensors"
READ: Final = (WEIGHTS, "*.index.json", "*.model", "vocab.txt", "video_preprocessor_config.json")
"""What a judge may read of a folder beside `settings_files`; other JSON there are logs."""
S = TypeVar("S")
T = TypeVar("T")
_HUB: Final = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+)(?:@([\w.-]+))?")


class Named(NamedTuple):
    """A hub checkpoint at a revision (None: the branch `main` as it stands), in the repository's
    folder `inside`."""

    repo: str
    revision: str | None
    license: str = "unknown"
    size: str = ""
    inside: str = ""

    def checkpoint(self) -> Checkpoint:
        """What is known of it before its settings are here: about how large it is."""
        patterns = [f"{self.inside}/" * bool(self.inside) + kind for kind in ("*.json", WEIGHTS)]
        return Checkpoint(
            repo=self.repo,
            revision=self.revision or "main",
            license=self.license,
            files=dict.fromkeys(patterns),
            bytes=int(float(self.size.removesuffix(" GB") or 0) * 1e9),
        )


MODELS: Final = {
    "72b": Named(
        "Qwen/Qwen2.5-VL-72B-Instruct", "89c86200743eec961a297729e7990e8f2ddbc4c5", "Qwen", "147 GB"
    ),
    "8b": Named(
        "Qwen/Qwen3-VL-8B-Instruct", "0c351dd01ed87e9c1b53cbc748cba10e6187ff3b", "Apache-2.0",
        "18 GB",
    ),
    "4b": Named(
        "Qwen/Qwen3-VL-4B-Instruct", "ebb281ec70b05090aa6165b016eac8ec08e71b17", "Apache-2.0",
        "8.9 GB",
    ),
    "32b": Named(
        "Qwen/Qwen3-VL-32B-Instruct", "0cfaf48183f594c314753d30a4c4974bc75f3ccb", "Apache-2.0",
        "67 GB",
    ),
    "unison": Named("FudanCVL/Unison-Judge", None, "unknown", "18 GB"),
    "7b": Named(
        "Qwen/Qwen2.5-VL-7B-Instruct", "cc594898137f460bfe9f0759e9844b3ce807cfb5", "Apache-2.0",
        "17 GB",
    ),
    "3b": Named(
        "Qwen/Qwen2.5-VL-3B-Instruct", "66285546d2b821cf421d4f5eb2576359d3770cd3", "Qwen-Research",
        "7.5 GB",
    ),
}  # fmt: skip


class VlmJudge(Judge):
    """An image-text-to-text model with a chat template.

    `device` is `auto` (all GPUs there are, else the CPU) or one device of torch. Settings files are
    read at once, weights at the first verdict; code that comes with a checkpoint is never run.
    Raises GapbenchError where the checkpoint is not available or is of another kind.
    """

    scores = False
    base: ClassVar[str] = "vlm"
    adapter: ClassVar[str] = ADAPTER
    """Name of how a model is asked; changes with it."""
    models: ClassVar[Mapping[str, Named]] = MODELS
    default: ClassVar[str] = DEFAULT

    def __init__(self, argument: str | None = None, device: str = "auto") -> None:
        torchvision_shim.ensure()
        given = self.default if argument is None else argument
        self._hub: Checkpoint | None = None
        if (Path(given) / "config.json").is_file():
            self.folder = Path(given)
            require_weights(f"judge {self.base}", self.folder)
            more = {f for kind in READ for f in self.folder.glob(kind)}
            files = sorted({*settings_files(self.folder), *more})
            origin, short = digest("", files), self.folder.resolve().name
        else:
            matched = _HUB.fullmatch(given)
            if given not in self.models and not matched:
                raise GapbenchError(
                    f"judge {self.base}: {given!r} is no checkpoint's folder, no hub id "
                    f"(OWNER/NAME or OWNER/NAME@REVISION) and none of {', '.join(self.models)}"
                )
            wanted = self.models[given] if matched is None else Named(matched[1], matched[2])
            repo, revision, inside = wanted.repo, wanted.revision, wanted.inside
            who = f"judge {self.base}{f' ({wanted.size})' * bool(wanted.size)}"
            try:
                snapshot = fetch_settings(who, repo, revision, SETTINGS, inside)
            except GapbenchError as error:
                raise Unreachable(str(error), wanted.checkpoint()) from error
            # The hub's cache names a snapshot's folder by its commit: from here on it is pinned.
            self._hub = whole(repo, wanted.license, snapshot, SETTINGS, inside)
            self.folder = snapshot / inside
            origin = f"{repo}@{snapshot.name}{f'/{inside}' * bool(inside)}"
            short = given if inside else repo.split("/")[1]
            if revision is None:
                self.unpinned = f"{repo} at commit {snapshot.name}"
        self.needs = (self._hub,) if self._hub else ()
        self.name = f"{self.base}-{short}"
        self.fingerprint = hashlib.sha256(f"{self.adapter} {origin}".encode()).hexdigest()
        self.room = _check(self.folder, self.name)
        self.device = device_here(f"judge {self.name}", device)
        self.batches = Batches.on(self.device, small=False)
        self._spread = device == "auto" and torch.cuda.device_count() > 1
        self.gpus = None if given == "72b" else 1  # whose one copy takes all that there are
        self._model: Any = None

    # -- loading ---------------------------------------------------------------------------

    def load(self) -> None:
        """Bring the weights onto the device; nothing if they are there."""
        if self._model is not None:
            return
        if self._hub:
            fetch(self._hub)
        self._model = load_pretrained(
            f"judge {self.name}",
            "AutoModelForImageTextToText",
            self.folder,
            "auto",
            None if self._spread else self.device,
        )

    def release(self) -> None:
        self._model = None
        free_memory()

    @cached_property
    def processor(self) -> Any:
        """The tokenizer and image processor; needs no weights."""
        from transformers import AutoProcessor

        try:
            processor = AutoProcessor.from_pretrained(
                self.folder, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # as above
            raise GapbenchError(
                f"judge {self.name}: cannot load the processor in {self.folder}: "
                f"{first_line(error)}"
            ) from error
        return processor

    @cached_property
    def chat(self) -> Chat:
        """How the model is asked; needs no weights."""
        return Chat(f"judge {self.name}", self.processor, self.room)

    # -- judging ---------------------------------------------------------------------------

    def question(self, prompt: Prompt) -> str:
        """The task's verdict question, word for word, with the meaning of a prompt that has one.

        Raises GapbenchError where it holds a token that steers this model.
        """
        self.refuse_marks(prompt, with_meaning(prompt))
        return with_meaning(prompt)

    def refuse_marks(self, prompt: Prompt, asked: str) -> None:
        """Raises GapbenchError where what is asked of a prompt holds a token that steers this
        model."""
        for token in sorted(self.chat.processor.tokenizer.get_added_vocab()):
            if token.strip() and token in asked:
                raise GapbenchError(
                    f"task {prompt.task}, prompt {prompt.id}: it contains {token!r}, which judge "
                    f"{self.name} reads as a special token; change or remove the prompt"
                )

    def judge(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Answer]:
        """Answer for each (image, prompt), in order. Raises GapbenchError as `each` does."""
        return self._ask(images, [self.question(prompt) for prompt in prompts])

    def _ask(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[Answer]:
        said = self.each(lambda i, q: self.logprobs(i, q, ANSWERS).tolist(), images, questions)
        return [
            Answer(verdict=None, reason=row) if isinstance(row, str) else weigh(*row)
            for row in said
        ]

    def each(
        self,
        call: Callable[[Sequence[S], Sequence[str]], Sequence[T]],
        images: Sequence[S],
        questions: Sequence[str],
    ) -> list[T | str]:
        """What `call` gives for each image with its question, or why it refuses that one.

        A batch that does not fit on the device, or holds an image that the processor refuses, is
        halved until the rest is answered. Raises GapbenchError where one image does not fit.
        """
        if not images:
            return []
        try:
            return [*call(images, questions)]
        except torch.OutOfMemoryError as error:
            if len(images) == 1:
                raise GapbenchError(
                    f"judge {self.name}: one question does not fit beside the weights on "
                    f"{self.device}; use a smaller model, more GPUs, or a server (--judge "
                    "server:URL#MODEL)"
                ) from error
        except ValueError as error:
            if len(images) == 1:
                return [first_line(error)]
        half = len(images) // 2
        return [
            *self.each(call, images[:half], questions[:half]),
            *self.each(call, images[half:], questions[half:]),
        ]

    @torch.inference_mode()
    def logprobs(
        self, images: Sequence[Image.Image], questions: Sequence[str], answers: Sequence[str]
    ) -> Tensor:
        """Log-probability in nats of each whole answer, (images, answers), float64, on the CPU.

        Raises ValueError for an image or a text that the model has no room for.
        """
        self.load()
        return self.chat.logprobs(self._model, images, questions, answers)

    @torch.inference_mode()
    def next_logprobs(self, images: Sequence[Image.Image], questions: Sequence[str]) -> Tensor:
        """Log-probability in nats of each token as the reply's first, (images, vocabulary),
        float64, on the CPU. Raises ValueError as `logprobs` does."""
        self.load()
        return self.chat.next_logprobs(self._model, images, questions)

    # -- a known picture -------------------------------------------------------------------

    def put(self, text: str) -> str:
        """What is asked of an image of a text that belongs to no task."""
        return QUESTION.replace("{prompt}", text)

    def check_picture(self) -> str | None:
        """A warning where the model misjudges a red disc, else None. Loads the weights.

        "a red circle" must be likelier of it than "a blue square" is, and likelier than of a blank
        image: a judge that fails this sees nothing, whatever its verdicts.
        """
        blank = Image.new("RGB", (224, 224), "white")
        disc = blank.copy()
        ImageDraw.Draw(disc).ellipse((48, 48, 176, 176), fill=(220, 20, 20))
        texts = ("a red circle", "a blue square", "a red circle")
        said = self._ask([disc, disc, blank], [self.put(text) for text in texts])
        right, other, nothing = (a.score if self.scores else a.p_yes for a in said)
        what = "score" if self.scores else "probability"
        if right is None or other is None or nothing is None:
            return f"judge {self.name} gives no {what} for a picture of a red circle"
        if right > max(other, nothing):
            return None
        return (
            f"judge {self.name} cannot tell a red circle: it accepts it with {what} "
            f"{right:.3f}, the same picture as a blue square with {other:.3f}, and a blank picture "
            f"as a red circle with {nothing:.3f}; do not trust its verdicts"
        )


def _check(folder: Path, name: str) -> int:
    """The tokens that a checkpoint has room for.

    Raises GapbenchError where it is of a kind that cannot be asked about an image.
    """
    from transformers import AutoConfig
    from transformers import __version__ as version
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    kind = model_type(folder)
    if kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise GapbenchError(
            f"judge {name}: the checkpoint is of type {kind!r}, which transformers {version} does "
            "not load as an image-text-to-text model; choose one that answers questions about "
            "images"
        )
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds
        raise GapbenchError(
            f"judge {name}: cannot read {folder / 'config.json'}: {first_line(error)}"
        ) from error
    if config.is_encoder_decoder or config.get_text_config().is_encoder_decoder:
        raise GapbenchError(
            f"judge {name}: an encoder-decoder ({kind!r}) is not supported; choose a chat model"
        )
    return room(config)
