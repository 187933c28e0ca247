"""The losses, over per-token log-probabilities of drawn image tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from gapbench.models.base import Model

Reduce = Literal["sum", "mean"]


def sft_loss(logprobs: Tensor) -> Tensor:
    """Cross-entropy in nats a token of (B, T) log-probabilities: a scalar."""
    return -logprobs.mean()


def dpo_loss(chosen: Tensor, rejected: Tensor, reference: Tensor, beta: float) -> Tensor:
    """-log sigmoid(beta * ((chosen - its reference) - (rejected - its reference))), (B,).

    `chosen` and `rejected` are (B,) log-probabilities of images, `reference` (B, 2) those of the
    reference model in that order, summed or averaged over tokens alike. Averaging T tokens is the
    same as dividing beta by T. Source: arXiv 2305.18290, equation 7.
    """
    margin = (chosen - reference[:, 0]) - (rejected - reference[:, 1])
    return -nn.functional.logsigmoid(beta * margin)


def reduced(logprobs: Tensor, how: Reduce) -> Tensor:
    """(B, T) to (B,): of whole images, or a token's share of them."""
    return logprobs.sum(1) if how == "sum" else logprobs.mean(1)


class ImageLoss(nn.Module):
    """A model with its loss as one module, so that DDP and FSDP see one forward pass.

    All rows of a batch go through the model in one call, whatever was dropped: ranks that called
    it differently often would wait for each other for ever.
    """

    def __init__(
        self,
        model: Model,
        network: nn.Module,
        beta: float = 0.1,
        logprobs: Reduce = "sum",
        nll_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.network = network
        self._score = model.image_logprobs
        self.beta, self.logprobs, self.nll_weight = beta, logprobs, nll_weight

    def forward(
        self,
        prompts: Sequence[str],
        tokens: Tensor,
        dropped: Tensor,
        rejected: Tensor | None = None,
        reference: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Losses of B prompts with (B, T) tokens.

        `dropped` (B,) are rows whose prompt is withheld. With `rejected` (B, T) and `reference`
        (B, 2) the loss is DPO's, which sees every prompt, plus the chosen images' cross-entropy,
        which sees those that were not withheld.
        """
        if rejected is None or reference is None:
            return {"loss": sft_loss(self._logprobs(prompts, tokens, dropped.tolist()))}
        count = len(prompts)
        away = dropped.nonzero().squeeze(1)
        rows = [*prompts, *prompts, *(prompts[place] for place in away.tolist())]
        stacked = torch.cat([tokens, rejected, tokens[away]])
        logprobs = self._logprobs(rows, stacked, [False] * 2 * count + [True] * len(away))
        chosen, other = logprobs[:count], logprobs[count : 2 * count]
        total = reduced(chosen, self.logprobs), reduced(other, self.logprobs)
        dpo = dpo_loss(*total, reference.to(chosen), self.beta)
        likelihood = chosen.index_copy(0, away, logprobs[2 * count :])
        nll = sft_loss(likelihood)
        margin = (total[0] - reference[:, 0]) - (total[1] - reference[:, 1])
        return {
            "loss": dpo.mean() + self.nll_weight * nll,
            "dpo": dpo.mean().detach(),
            "nll": nll.detach(),
            "margin": (self.beta * margin).mean().detach(),
            "preferred": (margin > 0).double().mean().detach(),
        }

    def _logprobs(self, prompts: Sequence[str], tokens: Tensor, away: list[bool]) -> Tensor:
        ids: Any = tokens.cpu().numpy().astype(np.int32)
        return self._score(list(prompts), ids, away)
