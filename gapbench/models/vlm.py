"""Vision-language models of transformers, asked about images by their own chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from gapbench.models.autoregressive.answers import answer_ids, answer_logprobs, following
from gapbench.models.autoregressive.continuations import greedy
from gapbench.types import GapbenchError


class Chat:
    """A processor that puts an image and a question into a chat with a model.

    `who` is whom errors name, `room` the tokens that the model has room for. Raises GapbenchError
    where the processor has no chat template.
    """

    def __init__(self, who: str, processor: Any, room: int) -> None:
        if not getattr(processor, "chat_template", None):
            raise GapbenchError(
                f"{who}: the checkpoint has no chat template, so it cannot be asked; choose an "
                "instruction-tuned model"
            )
        if processor.tokenizer.pad_token_id is None:
            processor.tokenizer.pad_token = processor.tokenizer.eos_token
        self.who, self.processor, self.room = who, processor, room

    def text(self, question: str, system: str = "", pictured: bool = True) -> str:
        """The text of a chat with one image or none, up to the answer; behind a system message
        where there is one."""
        content = [*[{"type": "image"}] * pictured, {"type": "text", "text": question}]
        turns = [{"role": "system", "content": [{"type": "text", "text": system}]}] * bool(system)
        text: str = self.processor.apply_chat_template(
            [*turns, {"role": "user", "content": content}], add_generation_prompt=True
        )
        return text

    def batch(
        self, model: Any, texts: Sequence[str], images: Sequence[Image.Image]
    ) -> dict[str, Tensor]:
        """What the model takes for texts with one image each, or with none where there are no
        images, left-padded, on its device."""
        start = self.processor.tokenizer.bos_token
        batch = self.processor(
            text=list(texts),
            images=[[image] for image in images] or None,
            padding=True,
            padding_side="left",  # every row ends with its question
            return_tensors="pt",
            add_special_tokens=not (start and texts[0].startswith(start)),
        ).to(model.device, dtype=model.dtype)
        return {key: value for key, value in batch.items() if isinstance(value, Tensor)}

    def logprobs(
        self,
        model: Any,
        images: Sequence[Image.Image],
        questions: Sequence[str],
        answers: Sequence[str],
    ) -> Tensor:
        """Log-probability in nats of each whole answer, (images, answers), float64, on the CPU.

        Raises ValueError for an image or a text that the model has no room for.
        """
        texts, tokenizer = [self.text(question) for question in questions], self.processor.tokenizer
        tails = answer_ids(
            lambda some: tokenizer(some, add_special_tokens=False)["input_ids"],
            texts,
            answers,
            self.who,
        )
        batch = self._fitting(model, texts, images, max(map(len, tails)))
        return answer_logprobs(model, batch, tails, tokenizer.pad_token_id, images)

    def next_logprobs(
        self, model: Any, images: Sequence[Image.Image], questions: Sequence[str]
    ) -> Tensor:
        """Log-probability in nats of each token as the reply's first, (images, vocabulary),
        float64, on the CPU. Raises as `logprobs`."""
        batch = self._fitting(model, [self.text(question) for question in questions], images, 1)
        pad = self.processor.tokenizer.pad_token_id
        return following(model, batch, [()] * len(images), pad)[:, 0]

    def replies(
        self,
        model: Any,
        images: Sequence[Image.Image],
        questions: Sequence[str],
        tokens: int,
        system: str = "",
    ) -> list[str]:
        """What the model says in up to so many tokens, greedily decoded, about one image each, or
        about none where there are no images. Raises as `logprobs`."""
        texts = [self.text(question, system, bool(images)) for question in questions]
        batch = self._fitting(model, texts, images, tokens)
        said = greedy(model, self.processor.tokenizer, batch, tokens)
        return [words.strip() for words in said]

    def _fitting(
        self, model: Any, texts: Sequence[str], images: Sequence[Image.Image], more: int
    ) -> dict[str, Tensor]:
        batch = self.batch(model, texts, images)
        length = batch["input_ids"].shape[1]
        if length + more > self.room:
            raise ValueError(
                f"{'with its image ' * bool(images)}the question takes {length} tokens, "
                f"{self.who.split()[-1]} has room for {self.room}"
            )
        return batch


def room(config: Any) -> int:
    """The tokens that a model of this configuration has room for, as far as it says."""
    text = config.get_text_config()
    return int(getattr(text, "max_position_embeddings", None) or 1_000_000_000)
