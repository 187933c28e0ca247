"""T2I-R1: a Janus that writes a plan of the picture before it draws it.

Source: CaraJ7/T2I-R1 2d9d4d1 (Apache-2.0), src/t2i-r1/src/infer/reason_inference.py. Upstream
samples from one global stream; here each row has noise of its own, one stream for the plan and one
for the picture. The judge sees the prompt alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from typing import Final

import torch

from gapbench.models.autoregressive.attention import repeatable
from gapbench.models.autoregressive.draw import Language
from gapbench.models.autoregressive.sampling import Recipe
from gapbench.models.base import Drawing
from gapbench.models.janus.adapter import JanusModel, turn
from gapbench.types import GapbenchError

SYSTEM: Final = (
    "You are a helpful assistant that receives an image prompt and generate a visualization of "
    "the prompt."
)
REQUEST: Final = """\
You are asked to generate an image based on this prompt: "{}"
Provide a brief, precise visualization of all elements in the prompt. Your description should:
1. Include every object mentioned in the prompt
2. Specify visual attributes (color, number, shape, texture) if specified in the prompt
3. Clarify relationships (e.g., spatial) between objects if specified in the prompt
4. Be concise (50 words or less)
5. Focus only on what's explicitly stated in the prompt
6. Do not elaborate beyond the attributes or relationships specified in the prompt
Do not miss objects. Output your visualization directly without explanation:"""
"""What the weights were trained to be asked: upstream's data/prompt/reasoning_prompt.txt, word for
word, since another wording would be another model."""


@dataclass(frozen=True, slots=True)
class Reasoning:
    """How the plan is sampled; `reasoning_tokens` is the most that it may take."""

    reasoning_tokens: int = 512
    reasoning_temperature: float = 1.0
    reasoning_top_k: int = 50

    def __post_init__(self) -> None:
        object.__setattr__(self, "reasoning_temperature", self.recipe().temperature)
        tokens = self.reasoning_tokens
        if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1:
            raise GapbenchError(f"recipe: reasoning_tokens is {tokens!r}, must be at least 1")

    def recipe(self) -> Recipe:
        """As a recipe without guidance."""
        return Recipe(1.0, self.reasoning_temperature, self.reasoning_top_k)


class T2IR1Model(JanusModel):
    """Adapter for a T2I-R1 checkpoint in either layout."""

    def __init__(
        self,
        name: str,
        folder: Path,
        recipe: Recipe | None = None,
        reasoning: Reasoning | None = None,
        device: str = "auto",
        dtype: str = "auto",
        origin: str | None = None,
    ) -> None:
        super().__init__(name, folder, recipe, device, dtype, origin)
        self.reasoning = reasoning or Reasoning()
        self.recipe |= asdict(self.reasoning)

    def refuses(self, text: str) -> str | None:
        return super().refuses(text) or self._no_room(text, self.reasoning.reasoning_tokens)

    @torch.inference_mode()
    def plan(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[str]:
        """What the model writes about each prompt, each from a stream of its seed's own."""
        core, processor = self._core, self.processor()
        tokenizer = processor.tokenizer
        distinct = list(dict.fromkeys(prompts))
        asked = [
            f"{SYSTEM}\n\n"
            + processor.apply_chat_template(
                [turn({"type": "text", "text": REQUEST.format(prompt)})], add_generation_prompt=True
            )
            for prompt in distinct
        ]
        begins = dict(zip(distinct, map(tuple, tokenizer(asked)["input_ids"]), strict=True))
        end = tokenizer.eos_token_id
        language = Language(self.network.lm_head, core.get_input_embeddings(), end=end)
        steps, recipe = self.reasoning.reasoning_tokens, self.reasoning.recipe()
        plans, size = [], self.blocks.size or len(prompts)
        for first in range(0, len(prompts), size):
            rows = [begins[prompt] for prompt in prompts[first : first + size]]
            given = self.network, core, language, recipe, steps, rows
            with repeatable():
                drawer = self.blocks.drawer(*given, stream=1)
                tokens, _ = drawer.draw(rows, seeds[first : first + size])
            plans += [list(takewhile(lambda token: token != end, row)) for row in tokens.tolist()]
        return [
            self._plain(text) for text in tokenizer.batch_decode(plans, skip_special_tokens=True)
        ]

    def _plain(self, text: str) -> str:
        """A plan without anything that would be read as a special token when it is read again."""
        special = filter(str.strip, self.processor().tokenizer.get_added_vocab())
        pattern = re.compile("|".join(map(re.escape, special)) or r"(?!)")
        while pattern.search(text):  # taking one out may join the halves of another
            text = pattern.sub("", text)
        return text

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Drawing]:
        plans = self.plan(prompts, seeds)
        texts = [f"{prompt}. {plan}" for prompt, plan in zip(prompts, plans, strict=True)]
        return super().generate(texts, seeds)

    def save(self, folder: Path) -> None:
        config = self.network.generation_config
        kept = getattr(config, "generation_kwargs", None) or {}
        config.generation_kwargs = {**kept, "reasoning": asdict(self.reasoning)}
        super().save(folder)
