"""Any server that speaks OpenAI's chat completions (vLLM, SGLang, llama.cpp, a provider)."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from PIL import Image

from gapbench.client.client import LOGPROBS, Client
from gapbench.judges.base import Judge, with_meaning
from gapbench.models.base import Batches
from gapbench.types import Answer, Prompt
from gapbench.verdict import RULES

SETTINGS: Final = {"temperature": 0, "seed": 0, "n": 1}
OPTIONAL: Final = (LOGPROBS, SETTINGS)
"""Some servers refuse log-probabilities, or that many, and some any other of these fields."""
PATCH: Final = 28 * 28
"""Pixels a token stands for in Qwen2.5-VL; other models differ, so a cost from it is rough."""


class ServerJudge(Judge):
    """`server:BASE_URL#MODEL`, say server:http://localhost:8000/v1#Qwen/Qwen2.5-VL-72B-Instruct.

    The verdict comes from the probabilities of 0 and 1 at the digit that decides, where the server
    gives both among the likeliest tokens (`mass` is then their sum at that place), else from the
    words. A refusal and a reply that was cut are abstentions. What the server runs under a model's
    name is its own: the fingerprint holds the address, the name and the fields of the request. The
    other arguments are the client's.
    """

    gpus = None
    remote = True

    def __init__(
        self,
        argument: str | None = None,
        device: str = "auto",  # noqa: ARG002
        *,
        timeout: float = 120.0,
        **options: Any,
    ) -> None:
        self.client = Client("judge", argument or "", timeout=timeout, **options)
        self.name, self.model = self.client.name, self.client.model
        self.batches = Batches(self.client.concurrency, 64)
        self.url = self.client.url + "/chat/completions"
        settings = {**SETTINGS, "max_tokens": self.client.max_tokens, **self.client.fields}
        recipe = json.dumps([self.url, self.model, settings], sort_keys=True)
        self.fingerprint = hashlib.sha256(f"server-{RULES} {recipe}".encode()).hexdigest()

    def served(self) -> str | None:
        return self.client.served

    def check_ready(self) -> None:
        self.client.reach()

    def question(self, prompt: Prompt) -> str:
        """The task's verdict question, with the meaning of a prompt that has one."""
        return with_meaning(prompt)

    def judge(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Answer]:
        """Answer for each (image, prompt), in order.

        Raises Unfinished where some were not answered: the server is away, refuses the key, has no
        such model, or answers some requests with errors.
        """
        return self.client.rows(
            [
                partial(self.client.chat, image, self.question(prompt), OPTIONAL)
                for image, prompt in zip(images, prompts, strict=True)
            ]
        )

    def release(self) -> None:
        self.client.close()

    def estimate_cost(self, images: int) -> str:
        tokens = images * (150 + math.ceil(512 * 512 / PATCH))
        return (
            f"{images:,} requests to {self.url}, roughly {tokens:,} input tokens and at most "
            f"{images * self.client.max_tokens:,} output tokens"
        )
