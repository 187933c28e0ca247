"""The VQ model: 24 x 24 pixels to 6 x 6 codes and back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import build
import data
import numpy as np
import torch
import torch.nn.functional as F
from stage import Stage
from torch import Tensor, nn


def train(vq: nn.Module, work: Path, steps: int) -> None:
    """VQ with cosine codes.

    transformers' own forward passes the encoder no gradient and quantises without the norm that
    decoding applies, so both are done here. `consistency` pulls patches of equal pixels to one
    latent: attention and group norms would otherwise leak the rest of the picture into every
    code, and the language model would have to predict that noise.
    """
    stage = Stage("vq", vq, steps, 1.5e-3, work)
    warm = int(steps * 0.4)
    used = torch.zeros(build.CODES)

    def latents(x: Tensor) -> Tensor:
        return F.normalize(vq.quant_conv(vq.encoder(x)), dim=1)

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng([11, step])
        x = data.pixels(data.messy(rng)[0] for _ in range(16))
        z = latents(x)
        flat = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])
        patches = F.unfold(x, build.PATCH, stride=build.PATCH).transpose(1, 2)
        _, kind = torch.unique(patches.reshape(len(flat), -1), dim=0, return_inverse=True)
        count = torch.bincount(kind).unsqueeze(1)
        centre = torch.zeros(len(count), flat.shape[1]).index_add_(0, kind, flat) / count
        consistency = (flat - centre[kind].detach()).pow(2).sum(1).mean()
        if step < warm:
            q = F.normalize(z + 0.05 * torch.randn_like(z), dim=1)
            commit = torch.zeros(())
        else:
            if step == warm:
                with torch.no_grad():
                    vq.quantize.embedding.weight.copy_(sphere_means(sample_latents(latents)))
            if step % 50 == 0 and step < steps * 0.8:
                if step > warm:
                    reseed(vq.quantize.embedding.weight, used, flat)
                used.zero_()
            book = F.normalize(vq.quantize.embedding.weight, dim=1)
            index = (flat @ book.T).argmax(1)
            used.index_add_(0, index, torch.ones(len(index)))
            code = book[index]
            commit = (code - flat.detach()).pow(2).sum(1).mean()
            commit = commit + 0.25 * (code.detach() - flat).pow(2).sum(1).mean()
            through = flat + (code - flat).detach()
            q = through.reshape(z.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
        y = vq.decoder(vq.post_quant_conv(q))
        error = (y - x).abs().mean() + (y - x).pow(2).mean()
        figures = {
            "l1": (y - x).abs().mean().item(),
            "consistency": consistency.item(),
            "commit": commit.item(),
            "used": float((used > 0).sum()),
        }
        return error + 0.3 * min(1.0, step / 800) * consistency + commit, figures

    stage.run(loss_of)


@torch.no_grad()
def sample_latents(latents: Callable[[Tensor], Tensor]) -> Tensor:
    rng = np.random.default_rng(12)
    out = [
        latents(data.pixels(data.messy(rng)[0] for _ in range(64)))
        .permute(0, 2, 3, 1)
        .reshape(-1, 8)
        for _ in range(20)
    ]
    return torch.cat(out)


def sphere_means(points: Tensor, rounds: int = 15) -> Tensor:
    """k-means on the sphere, seeded by farthest points so that rare patches get codes."""
    chosen = [points[0]]
    near = points @ points[0]
    for _ in range(build.CODES - 1):
        chosen.append(points[near.argmin()])
        near = torch.maximum(near, points @ chosen[-1])
    book = torch.stack(chosen)
    for _ in range(rounds):
        index = (points @ book.T).argmax(1)
        total = torch.zeros_like(book).index_add_(0, index, points)
        empty = total.norm(dim=1) == 0
        book = torch.where(empty.unsqueeze(1), book, F.normalize(total, dim=1))
    return book


@torch.no_grad()
def reseed(book: Tensor, used: Tensor, flat: Tensor) -> None:
    """Move dead codes to the latents that are farthest from every code."""
    dead = (used == 0).nonzero().flatten()
    far = (flat @ F.normalize(book, dim=1).T).max(1).values.argsort()
    for code, point in zip(dead.tolist(), far.tolist(), strict=False):
        if (flat[point] @ F.normalize(book, dim=1).T).max() < 0.9:
            book[code] = flat[point]


@torch.no_grad()
def tokenize(vq: nn.Module, x: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 36) codes, with the norm that decoding applies."""
    z = F.normalize(vq.quant_conv(vq.encoder(x)), dim=1).permute(0, 2, 3, 1).flatten(1, 2)
    return (z @ F.normalize(vq.quantize.embedding.weight, dim=1).T).argmax(-1)


@torch.no_grad()
def redraw(vq: nn.Module, x: Tensor) -> Tensor:
    """Pictures as the VQ gives them back, rounded to 8 bits as a saved image is."""
    y = vq.decode(tokenize(vq, x)).clamp(-1, 1)
    return ((y + 1) * 127.5).round() / 127.5 - 1
