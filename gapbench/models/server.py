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
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gapbench.client.client import LOGPROBS, Client, value
from gapbench.client.replies import Reply
from gapbench.models.base import Batches, Drawing, Model
from gapbench.models.image_folder import FORMATS, MAX_PIXELS
from gapbench.models.server_texts import Texts
from gapbench.models.turns import Talk, talk, written
from gapbench.types import Answer, Failure, GapbenchError, Unfinished

ADAPTER: Final = "server-model-1"
RECIPE: Final[dict[str, Any]] = {"size": "1024x1024"}
RECIPES: Final[dict[str, dict[str, Any]]] = {
    # As the model "bagel" draws, in the fields of vLLM-Omni.
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
OURS: Final = ("model", "prompt", "n", "seed")
GREEDY: Final = {
    "temperature": 0, "top_p": 1, "frequency_penalty": 0, "presence_penalty": 0,
    "seed": 0, "n": 1,
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
    server runs under a model's name is its own: the fingerprint holds the address, the name and the
    fields of a question. The other arguments are the client's. Raises GapbenchError for something
    that is not an address, or a field that is gapbench's to set.
    """

    reads_words = True
    gpus = None
    capabilities = frozenset({"generate", "judge_logits", "judge_text", "text"})

    def __init__(
        self,
        argument: str,
        recipe: Mapping[str, object] | None = None,
        device: str = "auto",  # noqa: ARG002
        dtype: str = "auto",  # noqa: ARG002
        *,
        timeout: float = 600.0,
        **options: Any,
    ) -> None:
        client = partial(Client, "model", argument, timeout=timeout, **options)
        self._client, self._chat = client(largest=LARGEST), client()
        self._texts = Texts(self._chat, (VLLM, GREEDY))
        self.name = self._client.name
        self.batches = Batches(self._client.concurrency, 64)
        self.recipe: dict[str, Any] = dict(RECIPES.get(self._client.model, RECIPE))
        for key, given in (recipe or {}).items():
            if key in OURS:
                raise GapbenchError(f"--set {key}={given}: gapbench sets {key} in each request")
            self.recipe[key] = value(given)
        asked = {**GREEDY, "max_tokens": self._chat.max_tokens, **self._chat.fields}
        said = json.dumps([self._client.url, self._client.model, asked, VLLM], sort_keys=True)
        self.fingerprint = hashlib.sha256(f"{ADAPTER} {said}".encode()).hexdigest()
        self._drawn: dict[tuple[str, int], Drawing] = {}

    def served(self) -> str | None:
        return self._client.served or self._chat.served

    def load(self) -> None:
        """Raises GapbenchError where there is no server at the address."""
        self._client.reach()

    def release(self) -> None:
        self._client.close()
        self._chat.close()

    # -- drawing ---------------------------------------------------------------------------

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Drawing]:
        """An image for each (prompt, seed). Raises Unfinished where some could not be drawn."""

        def one(pair: tuple[str, int], stop: threading.Event) -> Drawing | Failure:
            return self._drawn.pop(pair, None) or self._draw(*pair, stop)

        return self._client.rows([partial(one, pair) for pair in zip(prompts, seeds, strict=True)])

    def check_seeds(self, prompt: str, seed: int) -> str | None:
        """What is wrong with the server's seeds, or None: it draws one image twice.

        If one of the two cannot be drawn, it says nothing here; drawing will.
        """
        try:
            first, second = self._client.rows([partial(self._draw, prompt, seed)] * 2)
        except Unfinished:
            return None
        self._drawn[prompt, seed] = first
        if first.image.tobytes() == second.image.tobytes():
            return None
        return (
            f"{self.name} drew two images of one prompt and one seed that differ: its images "
            "cannot be drawn again, and samples are as the server's own chance has it"
        )

    def _draw(self, prompt: str, seed: int, stop: threading.Event) -> Drawing | Failure:
        """The image, or why there is none."""
        # Some servers know neither field, and give what is asked for unasked.
        optional = ({"response_format": "b64_json"}, {"seed": seed % SEEDS})
        payload = {"prompt": prompt, "n": 1, **self.recipe}
        said = self._client.send("/images/generations", payload, optional, stop)
        return said if isinstance(said, Failure) else _picture(said, prompt)

    # -- judging ---------------------------------------------------------------------------

    def answers(
        self, images: Sequence[Image.Image], questions: Sequence[str], words: bool
    ) -> list[Answer]:
        """Verdicts by the probabilities of the digits where the server tells them (and `words` are
        not wanted), else by the words. Raises Unfinished where some were not answered."""
        optional = (VLLM, GREEDY) if words else (LOGPROBS, VLLM, GREEDY)
        return self._chat.rows(
            [
                partial(self._chat.chat, image, question, optional)
                for image, question in zip(images, questions, strict=True)
            ]
        )

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
        try:
            return [said.text or "" for said in self.answers(images, questions, words=True)]
        except Unfinished as stop:
            done = {place: said.text or "" for place, said in stop.done.items()}
            raise Unfinished(str(stop), done, stop.failed) from stop

    # -- texts -----------------------------------------------------------------------------
    # The chat format is the server's own: a text is of turns, and complete and score send these.

    def chat(self, turns: Sequence[Mapping[str, str]]) -> str:
        return written(turns)

    def complete(
        self,
        images: Sequence[Sequence[Image.Image]],
        texts: Sequence[str],
        tokens: int,
        until: Sequence[str] = (),
    ) -> list[str]:
        """Raises Unfinished where some were not answered, refused or cut before `tokens`."""
        return self._texts.complete(self._talks(images, texts), tokens, until)

    def score(
        self,
        images: Sequence[Sequence[Image.Image]],
        texts: Sequence[str],
        endings: Sequence[str],
    ) -> list[tuple[float, bool]]:
        """Raises GapbenchError where the server tells no log-probabilities of a given answer."""
        return self._texts.score(self._talks(images, texts), endings)

    def _talks(self, images: Sequence[Sequence[Image.Image]], texts: Sequence[str]) -> list[Talk]:
        """The chats; equal ones with the same images are one object."""
        talks: dict[object, Talk] = {}
        keys = [(t, *map(id, own)) for t, own in zip(texts, images, strict=True)]
        for key, text, own in zip(keys, texts, images, strict=True):
            if key not in talks:
                talks[key] = talk(f"model {self.name}", text, own)
        return [talks[key] for key in keys]


def _picture(reply: Reply, prompt: str) -> Drawing | Failure:
    """The drawing in a reply, or why there is none."""
    try:
        entries = reply.body["data"]
        entry = entries[0] if entries else {}
        data, address = entry.get("b64_json"), entry.get("url")
        revised = entry.get("revised_prompt")
    except (LookupError, TypeError, AttributeError):
        return Failure("the reply is no JSON with one image in it")
    if data is None and isinstance(address, str):
        if not address.startswith("data:"):
            return Failure(
                "the reply holds an image's address, which is not followed; --set "
                "response_format=base64, or what else the server calls it, asks for the image"
            )
        data = address
    if not isinstance(data, str):
        return Failure(f"the reply holds no image: {reply.short()}", final=True)
    if data.startswith("data:"):
        data = data.partition(",")[2]
    try:
        file = io.BytesIO(base64.b64decode(data, validate=True))
        picture = Image.open(file, formats=FORMATS)
        if picture.width * picture.height > MAX_PIXELS:
            return Failure(f"an image of {picture.width} x {picture.height} pixels is too large")
        image = picture.convert("RGB")
    except (binascii.Error, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return Failure("the reply holds what is no PNG, JPEG or WebP image")
    return Drawing(image, None, revised if isinstance(revised, str) and revised else prompt, None)
