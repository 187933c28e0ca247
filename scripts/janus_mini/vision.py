"""The vision tower and aligner: what the language model is told of each patch of a picture."""

from __future__ import annotations

from pathlib import Path

import build
import data
import numpy as np
import torch
import vq
from stage import Stage
from torch import Tensor, nn

PLACE, NORM = 0.7, 35.0
"""Of a patch's own place beside what stands there; of the words, once they are learned."""


class Words(nn.Module):
    """Vision tower and aligner, to be fitted to fixed codes: a patch is the sum of its cell's
    shape, colour and texture and of its own place, all orthogonal and of like size, so that each of
    them can be looked for."""

    def __init__(self, core: nn.Module) -> None:
        super().__init__()
        self.tower, self.aligner = core.vision_model, core.aligner
        noise = torch.randn(
            build.WIDTH,
            sum(data.FACETS) + build.IMAGE_TOKENS,
            generator=torch.Generator().manual_seed(5),
        )
        *self.facets, self.place = torch.linalg.qr(noise)[0].T.split(
            [*data.FACETS, build.IMAGE_TOKENS]
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.aligner(self.tower(x).last_hidden_state)

    def wanted(self, labels: Tensor) -> Tensor:
        """(B, 9, 3) class ids of cells -> (B, 36, width)."""
        patches = labels.view(-1, 3, 1, 3, 1, 3).expand(-1, 3, 2, 3, 2, 3).reshape(-1, 36, 3)
        return sum(f[patches[..., i]] for i, f in enumerate(self.facets)) + PLACE * self.place

    @torch.no_grad()
    def stretch(self) -> None:
        last = self.aligner.hidden_layers[-1]
        last.weight.mul_(NORM)
        last.bias.mul_(NORM)


def train(core: nn.Module, work: Path, steps: int) -> None:
    """A third of the pictures are redrawn by the VQ model, since those are what will be judged."""
    words = Words(core)

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng([21, step])
        images, labels = zip(*(data.messy(rng) for _ in range(48)), strict=True)
        x = data.pixels(images)
        x[:16] = vq.redraw(core.vqmodel, x[:16])
        x = x + 0.06 * torch.rand(len(x), 1, 1, 1) * torch.randn_like(x)
        missed = words(x) - words.wanted(torch.from_numpy(np.stack(labels)))
        loss = missed.pow(2).sum(-1).mean()
        return loss, {"loss": loss.item()}

    Stage("vision", words, steps, 1e-3, work).run(loss_of)
    words.stretch()
