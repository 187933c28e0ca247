"""Any server that speaks OpenAI's chat completions (vLLM, SGLang, llama.cpp, a provider)."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from functools import partial
from typing import Final

from PIL import Image

from gapbench.client import LOGPROBS, Client
from gapbench.judges.base import Judge
from gapbench.models.base import Batches
from gapbench.types import Answer, GapbenchError, Prompt
from gapbench.verdict import RULES

SETTINGS: Final = {"temperature": 0, "max_tokens": 64, "seed": 0, "n": 1}
VARIANTS: Final = ({**SETTINGS, **LOGPROBS}, SETTINGS)
"""Some servers refuse the request for log-probabilities, or for that many."""
PATCH: Final = 28 * 28
"""Pixels a token stands for in Qwen2.5-VL; other models differ, so a cost from it is rough."""


class ServerJudge(Judge):
    """`server:BASE_URL#MODEL`, say server:http://localhost:8000/v1#Qwen/Qwen2.5-VL-72B-Instruct.

    The verdict comes from the probabilities of 0 and 1 at the digit that decides, where the server
    gives both among the likeliest tokens (`mass` is then their sum at that place), else from the
    words. A refusal, a time-out, a reply that was cut and one that is no chat completion are
    abstentions. What the server runs under a model's name is its own: the fingerprint holds the
    address and the name. The other arguments are gapbench.client's.
    """

    def __init__(
        self,
        argument: str | None = None,
        device: str = "auto",  # noqa: ARG002
        *,
        concurrency: int = 8,
        timeout: float = 120.0,
        attempts: int = 5,
        pause: float = 1.0,
    ) -> None:
        self._client = Client(
            "judge", argument or "", concurrency=concurrency, timeout=timeout, attempts=attempts,
            pause=pause,
        )  # fmt: skip
        self.name, self.model = self._client.name, self._client.model
        self.batches = Batches(concurrency, 64)
        self.url = self._client.url + "/chat/completions"
        recipe = json.dumps([self.url, self.model, SETTINGS], sort_keys=True)
        self.fingerprint = hashlib.sha256(f"server-{RULES} {recipe}".encode()).hexdigest()

    def judge(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Answer]:
        """Answer for each (image, prompt), in order.

        Raises GapbenchError where the server cannot be reached, refuses the key or has no such
        model.
        """
        answers = self._client.together(
            [
                partial(self._client.chat, image, prompt.question, VARIANTS)
                for image, prompt in zip(images, prompts, strict=True)
            ]
        )
        verdicts: list[Answer] = []
        for answer in answers:
            if isinstance(answer, GapbenchError):
                raise answer
            verdicts.append(answer)
        return verdicts

    def release(self) -> None:
        self._client.close()

    def estimate_cost(self, images: int) -> str:
        tokens = images * (150 + math.ceil(512 * 512 / PATCH))
        return (
            f"{images:,} requests to {self.url}, roughly {tokens:,} input tokens and at most "
            f"{images * SETTINGS['max_tokens']:,} output tokens"
        )
