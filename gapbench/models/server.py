"""A model behind a server that speaks OpenAI's protocol: images/generations and chat/completions.

vLLM-Omni serves BAGEL and other unified models so; providers serve theirs. A server only draws and
answers: it gives no image tokens and no gradients.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import json
import math
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gapbench.client import LOGPROBS, Client, Reply
from gapbench.models.base import Batches, Drawing, Model, Unfinished
from gapbench.models.image_folder import FORMATS, MAX_PIXELS
from gapbench.types import Answer, GapbenchError

ADAPTER: Final = "server-model-1"
RECIPE: Final[dict[str, Any]] = {"size": "1024x1024"}
RECIPES: Final[dict[str, dict[str, Any]]] = {
    # As the worker "bagel" draws, in the fields of vLLM-Omni.
    "ByteDance-Seed/BAGEL-7B-MoT": {
        "size": "1024x1024",
        "num_inference_steps": 50,
        "extra_params": {
            "cfg_text_scale": 4.0,
            "cfg_img_scale": 1.0,
            "cfg_interval": [0.4, 1.0],
            "cfg_renorm_min": 0.0,
            "cfg_renorm_type": "global",
            "timestep_shift": 3.0,
        },
    },
}
OURS: Final = ("model", "prompt", "n", "seed", "response_format")
GREEDY: Final = {
    "temperature": 0, "top_p": 1, "frequency_penalty": 0, "presence_penalty": 0,
    "max_tokens": 64, "seed": 0, "n": 1,
}  # fmt: skip
VLLM: Final = {"modalities": ["text"], "repetition_penalty": 1.0}
"""Without them vLLM-Omni answers BAGEL's questions by its deployment's defaults; others may not
know them."""
SEEDS: Final = 2**31
"""Seeds are sent modulo this: some servers hold them in 32 bits."""
LARGEST: Final = 100_000_000
"""Bytes of a reply that are read."""


class ServerModel(Model):
    """`--model server:BASE_URL#MODEL`, say server:http://localhost:8091/v1#ByteDance-Seed/BAGEL-7B-MoT.

    `recipe` are fields of the image request; --set adds any that the server knows, and texts are
    read as JSON where they are. Each request asks for one image with a seed of its own. What the
    server runs under a model's name is its own: the fingerprint holds the address and the name.
    The other arguments are gapbench.client's. Raises GapbenchError for something that is not an
    address, or a field that is gapbench's to set.
    """

    reads_words = True
    capabilities = frozenset({"generate", "judge_logits", "judge_text"})

    def __init__(
        self,
        argument: str,
        recipe: Mapping[str, object] | None = None,
        device: str = "auto",  # noqa: ARG002
        dtype: str = "auto",  # noqa: ARG002
        *,
        concurrency: int = 8,
        timeout: float = 600.0,
        attempts: int = 5,
        pause: float = 1.0,
    ) -> None:
        client = partial(
            Client, "model", argument, concurrency=concurrency, timeout=timeout, attempts=attempts,
            pause=pause,
        )  # fmt: skip
        self._client, self._chat = client(largest=LARGEST), client()
        self.name = self._client.name
        self.batches = Batches(concurrency, 64)
        self.recipe: dict[str, Any] = dict(RECIPES.get(self._client.model, RECIPE))
        for key, value in (recipe or {}).items():
            if key in OURS:
                raise GapbenchError(f"--set {key}={value}: gapbench sets {key} in each request")
            self.recipe[key] = _value(value)
        said = json.dumps([self._client.url, self._client.model, GREEDY, VLLM], sort_keys=True)
        self.fingerprint = hashlib.sha256(f"{ADAPTER} {said}".encode()).hexdigest()
        self._drawn: dict[tuple[str, int], Drawing] = {}

    def release(self) -> None:
        self._client.close()
        self._chat.close()

    # -- drawing ---------------------------------------------------------------------------

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Drawing]:
        """An image for each (prompt, seed). Raises Unfinished where some could not be drawn."""
        pairs = list(zip(prompts, seeds, strict=True))
        kept = [self._drawn.pop(pair, None) for pair in pairs]
        calls = [
            partial(self._draw, *pair) for pair, one in zip(pairs, kept, strict=True) if not one
        ]
        fresh = iter(self._client.together(calls))
        drawings = [one or next(fresh) for one in kept]
        done = {place: one for place, one in enumerate(drawings) if isinstance(one, Drawing)}
        fatal = next((str(one) for one in drawings if isinstance(one, GapbenchError)), None)
        if fatal is not None:
            raise Unfinished(fatal, done)
        if len(done) < len(drawings):
            first = next(place for place in range(len(drawings)) if place not in done)
            raise Unfinished(
                f"model {self.name}: {len(drawings) - len(done)} of {len(drawings)} images could "
                f"not be drawn, first of {pairs[first][0]!r}: {drawings[first]}",
                done,
            )
        return list(done.values())

    def check_seeds(self, prompt: str, seed: int) -> str | None:
        """What is wrong with the server's seeds, or None: it draws one image twice.

        If the first image cannot be drawn, it says nothing here; drawing will.
        """
        pair = [partial(self._draw, prompt, seed)] * 2
        first, second = self._client.together(pair)
        if not (isinstance(first, Drawing) and isinstance(second, Drawing)):
            return None
        self._drawn[prompt, seed] = first
        if first.image.tobytes() == second.image.tobytes():
            return None
        return (
            f"{self.name} drew two images of one prompt and one seed that differ: its images "
            "cannot be drawn again, and samples are as the server's own chance has it"
        )

    def _draw(self, prompt: str, seed: int, stop: threading.Event) -> Drawing | str:
        """The image, or why there is none."""
        seeded = {"seed": seed % SEEDS, "response_format": "b64_json"}
        # Some servers know neither field, and give what is asked for unasked.
        said = self._client.send(
            "/images/generations", {"prompt": prompt, "n": 1, **self.recipe}, (seeded, {}), stop
        )
        return said if isinstance(said, str) else _picture(said, prompt)

    # -- judging ---------------------------------------------------------------------------

    def answers(
        self, images: Sequence[Image.Image], questions: Sequence[str], words: bool
    ) -> list[Answer]:
        """Verdicts by the probabilities of the digits where the server tells them (and `words` are
        not wanted), else by the words. Raises GapbenchError where the server is out of reach."""
        plain: list[dict[str, Any]] = [{**GREEDY, **VLLM}, GREEDY]
        variants = plain if words else [*({**one, **LOGPROBS} for one in plain), *plain]
        answers: list[Answer] = []
        calls = [
            partial(self._chat.chat, image, question, variants)
            for image, question in zip(images, questions, strict=True)
        ]
        for answer in self._chat.together(calls):
            if isinstance(answer, GapbenchError):
                raise Unfinished(str(answer), dict(enumerate(answers))) from answer
            answers.append(answer)
        return answers

    def judge(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[str],
        answers: Sequence[str],
    ) -> NDArray[np.float64]:
        """Of "... 0" and "... 1" alone, as far as the server tells them; NaN where it does not."""
        if [answer[-1:] for answer in answers] != ["0", "1"]:
            raise GapbenchError(f"model {self.name} weighs answers that end in 0 and 1 only")
        rows = []
        for said in self.answers(images, questions, words=False):
            if said.p_yes is None or said.mass is None:
                rows.append([math.nan, math.nan])
            else:
                odds = (said.mass * (1 - said.p_yes), said.mass * said.p_yes)
                rows.append([math.log(one) if one > 0 else -math.inf for one in odds])
        return np.array(rows, np.float64).reshape(-1, 2)

    def reply(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[str]:
        return [said.text or "" for said in self.answers(images, questions, words=True)]


def _value(given: Any) -> object:
    with suppress(ValueError, TypeError):
        return json.loads(given)
    return given


def _picture(reply: Reply, prompt: str) -> Drawing | str:
    """The drawing in a reply, or why there is none."""
    if reply.status != 200:
        return f"the server gave status {reply.status}: {' '.join(reply.text[:200].split())}"
    try:
        (entry,) = json.loads(reply.text)["data"]
        data, revised = entry.get("b64_json"), entry.get("revised_prompt")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return "the reply is no JSON with one image in it"
    if not isinstance(data, str):
        return "the reply holds no image data (b64_json)"
    try:
        file = io.BytesIO(base64.b64decode(data, validate=True))
        picture = Image.open(file, formats=FORMATS)
        if picture.width * picture.height > MAX_PIXELS:
            return f"the image has {picture.width} x {picture.height} pixels, which is too many"
        image = picture.convert("RGB")
    except (binascii.Error, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return "the reply holds what is no PNG, JPEG or WebP image"
    return Drawing(image, None, revised if isinstance(revised, str) and revised else prompt, None)
