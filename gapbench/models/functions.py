"""Functions as a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from PIL import Image

from gapbench.adapters import check_arguments
from gapbench.adapters import fingerprint as fingerprint_of
from gapbench.models.base import Batches, Drawing, Model


class FunctionModel(Model):
    """A model made of functions: `draw(prompt, seed)` gives a PIL image in RGB, and
    `answer(image, question)` the model's reply as text; without `answer` it can only draw.

    Both must depend on their arguments alone. The fingerprint is by default that of the files that
    the functions are in: give one that covers the weights too, where these may change
    (`gapbench.fingerprint`). Raises GapbenchError where a function does not take two arguments.
    """

    batches = Batches(1, 1)

    def __init__(
        self,
        name: str,
        draw: Callable[[str, int], Image.Image],
        answer: Callable[[Image.Image, str], str] | None = None,
        fingerprint: str | None = None,
    ) -> None:
        self.name, self._draw, self._answer = name, draw, answer
        functions: list[Callable[..., object]] = [draw] if answer is None else [draw, answer]
        self.functions = dict(zip(("generate", "reply"), functions, strict=False))
        for function, takes in zip(
            functions, (["prompt", "seed"], ["image", "question"]), strict=False
        ):
            check_arguments(
                f"model {name}: {getattr(function, '__name__', function)}", function, takes
            )
        self.fingerprint = fingerprint or fingerprint_of(*functions)
        self.capabilities = frozenset(["generate", "judge_text"][: len(functions)])

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Drawing]:
        return [Drawing(self._draw(p, s)) for p, s in zip(prompts, seeds, strict=True)]

    def reply(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[str]:
        if self._answer is None:
            return super().reply(images, questions)
        return [self._answer(i, q) for i, q in zip(images, questions, strict=True)]
