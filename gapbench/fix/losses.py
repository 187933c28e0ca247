"""The losses, over what a model's `generation_loss` gives for whole drawings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from gapbench.models.base import Model

Reduce = Literal["sum", "mean"]


def dpo_margin(chosen: Tensor, rejected: Tensor, reference: Tensor) -> Tensor:
    """How much more the loss fell, against the reference model's, for chosen than for rejected
    drawings: (B,).

    `chosen` and `rejected` are (B,) generation losses, `reference` (B, 2) those of the reference
    model in that order, of whole drawings or a token's share of them alike. Where the losses are
    negative log-likelihoods this is the difference of the log-ratios.
    """
    return (reference[:, 0] - chosen) - (reference[:, 1] - rejected)


def dpo_loss(margin: Tensor, beta: float) -> Tensor:
    """-log sigmoid(beta * margin), (B,). Taking the share of one of T tokens is the same as
    dividing beta by T. Source: arXiv 2305.18290, equation 7; with losses in place of likelihoods
    as in Diffusion-DPO, arXiv 2311.12908, equation 14."""
    return -nn.functional.logsigmoid(beta * margin)


def reduced(losses: Tensor, how: Reduce, drawings: NDArray[Any]) -> Tensor:
    """Losses (B,) of whole drawings (B, ...) as they are, or a token's share of them; of latents,
    that of one number."""
    return losses if how == "sum" else losses / drawings[0].size


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
        self._score = model.generation_loss
        self.beta, self.logprobs, self.nll_weight = beta, logprobs, nll_weight

    def forward(
        self,
        prompts: Sequence[str],
        drawings: NDArray[Any],
        dropped: Tensor,
        noise: Tensor,
        rejected: NDArray[Any] | None = None,
        reference: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Losses of B prompts with tokens (B, T) or latents (B, channels, height, width).

        `dropped` (B,) are rows whose prompt is withheld, `noise` (B,) the seeds of what is random.
        SFT's loss is the mean over images of the share of a token, or of one number of latents.
        With `rejected` drawings and `reference` (B, 2) the loss is DPO's, which sees every prompt
        and both images with the same noise, plus the chosen images' SFT loss, which sees the
        prompts that were not withheld.
        """
        seeds = noise.tolist()
        if rejected is None or reference is None:
            losses = self._score(list(prompts), drawings, seeds, dropped.tolist())
            return {"loss": reduced(losses, "mean", drawings).mean()}
        count = len(prompts)
        away = dropped.nonzero().squeeze(1)
        places = away.tolist()
        rows = [*prompts, *prompts, *(prompts[place] for place in places)]
        stacked = np.concatenate([drawings, rejected, drawings[places]])
        seeds = [*seeds, *seeds, *(seeds[place] for place in places)]
        losses = self._score(rows, stacked, seeds, [False] * 2 * count + [True] * len(places))
        both = reduced(losses[: 2 * count], self.logprobs, drawings)
        margin = dpo_margin(both[:count], both[count:], reference.to(both))
        dpo = dpo_loss(margin, self.beta)
        seen = losses[:count].index_copy(0, away, losses[2 * count :])
        nll = reduced(seen, "mean", drawings).mean()
        return {
            "loss": dpo.mean() + self.nll_weight * nll,
            "dpo": dpo.mean().detach(),
            "nll": nll.detach(),
            "margin": (self.beta * margin).mean().detach(),
            "preferred": (margin > 0).double().mean().detach(),
        }
