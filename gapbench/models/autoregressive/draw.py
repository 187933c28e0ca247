"""Drawing the tokens of an image, a block of rows at a time: on a GPU each step is a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gapbench.files import first_line
from gapbench.models.autoregressive import plain
from gapbench.models.autoregressive.decode import Decoder, Row
from gapbench.models.autoregressive.graphs import graph
from gapbench.models.autoregressive.noise import keys
from gapbench.models.autoregressive.sampling import Recipe, draw, guide, warp

PATIENCE: Final = 16
"""Steps between two looks at whether all rows have ended."""


@dataclass(frozen=True)
class Language:
    """What is drawn: `head` makes logits (B, V) of hidden states (B, W), `embed` the embeddings
    that the core gets of tokens (B,). After the tokens of every `line` steps, if any, each row gets
    `between` (W,) as well. `end` is the token after which a row's other tokens do not matter."""

    head: Callable[[Tensor], Tensor]
    embed: Callable[[Tensor], Tensor]
    line: int = 0
    between: Tensor | None = None
    end: int | None = None


class Drawer:
    """Draws `steps` tokens for each of a block of `images` rows; in inference mode.

    Buffers and graph are made once and serve all blocks. Where no graph can be made, or Triton is
    not there, `why` says so; the steps are the same, but slower.
    """

    def __init__(
        self,
        core: Any,
        language: Language,
        recipe: Recipe,
        images: int,
        steps: int,
        length: int,
        fixed: bool,
        stream: int = 0,
    ) -> None:
        self._language, self._recipe, self._stream = language, recipe, stream
        device = core.get_input_embeddings().weight.device
        self._ops, self.why = operations(device)
        lines = steps // language.line if language.line else 0
        branches = 2 if recipe.guided else 1
        self.decoder = Decoder(core, branches * images, length, steps + lines, fixed, self._ops)
        self.length = self.decoder.length
        self._keys = torch.zeros(images, 2, dtype=torch.long, device=device)
        self._step = torch.zeros(1, dtype=torch.long, device=device)
        self._tokens = torch.zeros(images, steps, dtype=torch.long, device=device)
        self._logprobs = torch.zeros(images, dtype=torch.float64, device=device)
        # Not the methods where there are no graphs: a drawer that holds itself keeps its memory.
        self._graph: Callable[[], None] | None = None
        self._forced_graph: Callable[[], None] | None = None
        if device.type == "cuda":
            try:
                if language.line:
                    self._forced_graph = graph(self._forced)
                self._graph = graph(self._one)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                self._forced_graph = None
                self.why = f"no CUDA graph, so drawing is slower: {first_line(error)}"

    def draw(
        self, rows: Sequence[Row], seeds: Sequence[int], steps: int | None = None
    ) -> tuple[NDArray[np.int32], list[float]]:
        """(B, steps) tokens, each row from its seed's own noise, and their log-probabilities' sums.

        `rows` go before the first token: where the recipe guides, all conditional ones first, then
        as many unconditional ones. The block's other rows stay empty.
        """
        images, whole = self._tokens.shape
        count, spare = len(seeds), images - len(seeds)
        branches = [rows[:count], rows[count:]] if self._recipe.guided else [rows]
        self.decoder.begin([row for own in branches for row in [*own, *[()] * spare]])
        self._keys.copy_(keys([*seeds, *[seeds[0]] * spare]))
        self._step.zero_()
        self._logprobs.zero_()
        steps, line, end = steps or whole, self._language.line, self._language.end
        one, forced = self._graph or self._one, self._forced_graph or self._forced
        for step in range(steps - 1):
            one()
            if line and (step + 1) % line == 0:
                forced()
            if end is not None and step % PATIENCE == 0 and self._ended(step + 1, count, end):
                steps = step + 1
                break
        else:
            self._sample()
        tokens = self._tokens[:count, :steps].to("cpu", torch.int32).numpy()
        return tokens, self._logprobs[:count].tolist()

    def _ended(self, steps: int, count: int, end: int) -> bool:
        return bool((self._tokens[:count, :steps] == end).any(1).all())

    def _sample(self) -> Tensor:
        """Draw a token (B,) from what the core gave last, and keep it."""
        logits = self._language.head(self.decoder.hidden).double()
        guided = guide(logits, self._recipe.guidance) if self._recipe.guided else logits
        logprobs = warp(guided, self._recipe)
        codes = logprobs.shape[1]
        token = draw(logprobs, self._ops.gumbel(self._keys, self._step, codes, self._stream))
        self._tokens.index_copy_(1, self._step, token.unsqueeze(1))
        self._logprobs += logprobs.gather(1, token.unsqueeze(1)).squeeze(1)
        self._step += 1
        return token

    def _one(self) -> None:
        """A token drawn, and put through the core."""
        embeds = self._language.embed(self._sample())
        self._feed(embeds.repeat(2, 1) if self._recipe.guided else embeds)

    def _forced(self) -> None:
        assert self._language.between is not None
        # A row each in memory: the kernels know no strides.
        self._feed(self._language.between.expand_as(self.decoder.hidden).contiguous())

    def _feed(self, embeds: Tensor) -> None:
        if embeds.is_cuda:
            self.decoder.forward(embeds, self.decoder.room)
        else:
            self.decoder.step(embeds)


def operations(device: torch.device) -> tuple[Any, str | None]:
    """The small functions of a step on a device, and why they are not Triton's kernels on a GPU."""
    if device.type == "cuda":
        try:
            from gapbench.models.autoregressive import kernels

            nothing = torch.zeros(1, 2, dtype=torch.long, device=device)
            kernels.gumbel(nothing, nothing[0, :1], 1)  # it needs a C compiler, for one
            return kernels, None
        except Exception as error:  # of Triton, its compilers and the driver
            why = f"Triton does not work here, so attention is slower: {first_line(error)}"
            return plain, why
    return plain, None
