"""Train janus-mini from nothing: tokenizer of images, vision tower, language model, export.

    python scripts/janus_mini/train.py --work DIR [--out FOLDER]

Every stage is seeded, says how long it took, and goes on from its last checkpoint in DIR when run
again. Data and noise are functions of (stage, step), so a resumed run equals an undisturbed one.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import build
import data
import lm
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

CHECKPOINT_EVERY = 500


class Stage:
    """A training loop that checkpoints its module and AdamW together."""

    def __init__(
        self,
        name: str,
        module: nn.Module,
        steps: int,
        lr: float,
        work: Path,
        warm: int = 200,
        fall: float = 0.4,
    ) -> None:
        self.name, self.module, self.steps, self.lr = name, module, steps, lr
        self.warm, self.fall = warm, fall
        self.file = work / f"{name}.safetensors"
        self.log = work / f"{name}.jsonl"
        self.parameters = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
        decay = [p for _, p in self.parameters if p.ndim > 1]
        plain = [p for _, p in self.parameters if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": decay, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}],
            lr=lr,
            betas=(0.9, 0.98),
        )

    def run(
        self, loss_of: Callable[[int], tuple[Tensor, dict[str, float]]], until: int | None = None
    ) -> None:
        """Train up to the last step, or to `until` on the schedule of all of them."""
        last = until or self.steps
        start, spent = self._resume()
        clock = time.time() - spent
        for step in range(start, last):
            torch.manual_seed(step)
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr * self._schedule(step)
            loss, figures = loss_of(step)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_([p for _, p in self.parameters], 1.0)
            self.optimizer.step()
            if step % 100 == 99:
                line = {"step": step + 1, "seconds": round(time.time() - clock, 1)}
                line |= {k: round(v, 4) for k, v in figures.items()}
                print(self.name, json.dumps(line), flush=True)
                with self.log.open("a") as log:
                    log.write(json.dumps(line) + "\n")
            if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == last:
                self._save(step + 1, time.time() - clock)

    def _schedule(self, step: int) -> float:
        """Constant, then a cosine from `fall` on: drawing sharpens as the rate falls."""
        warm = min(1.0, (step + 1) / self.warm)
        late = max(0.0, step / self.steps - self.fall) / max(1 - self.fall, 1e-9)
        return warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * late)))

    def _save(self, step: int, seconds: float) -> None:
        tensors = {
            f"module.{n}": p.detach().contiguous() for n, p in self.module.state_dict().items()
        }
        for name, parameter in self.parameters:
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"{key}.{name}"] = value.contiguous()
        part = self.file.with_suffix(".part")
        save_file(tensors, part, {"step": str(step), "seconds": str(seconds)})
        part.replace(self.file)

    def _resume(self) -> tuple[int, float]:
        if not self.file.exists():
            return 0, 0.0
        from safetensors import safe_open

        with safe_open(self.file, "pt") as file:
            meta = file.metadata()
        tensors = load_file(self.file)
        self.module.load_state_dict(
            {n[7:]: t for n, t in tensors.items() if n.startswith("module.")}
        )
        for name, parameter in self.parameters:
            if f"step.{name}" in tensors:
                self.optimizer.state[parameter] = {
                    key: tensors[f"{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq")
                }
        print(self.name, "goes on at step", meta["step"], flush=True)
        return int(meta["step"]), float(meta["seconds"])


def pixels(images: Iterable[data.Image]) -> Tensor:
    """(B, 3, H, W) in [-1, 1]."""
    stack = torch.from_numpy(np.stack(list(images))).permute(0, 3, 1, 2)
    return stack.float() / 127.5 - 1


def train_vq(vq: nn.Module, work: Path, steps: int) -> None:
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
        x = pixels(data.messy(rng)[0] for _ in range(16))
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
        latents(pixels(data.messy(rng)[0] for _ in range(64))).permute(0, 2, 3, 1).reshape(-1, 8)
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


class Cells(nn.Module):
    """Vision tower and aligner with throw-away heads: every patch names the shape, colour and
    texture of its cell's sprite, so that the language model finds each in any patch."""

    def __init__(self, tower: nn.Module, aligner: nn.Module) -> None:
        super().__init__()
        self.tower, self.aligner = tower, aligner
        self.head = nn.Linear(tower.config.projection_dim, sum(data.FACETS))

    def forward(self, x: Tensor) -> list[Tensor]:
        words = self.aligner(self.tower(x).last_hidden_state)
        # The language model normalises its input; so must what is learned here.
        scores = self.head(F.rms_norm(words, words.shape[-1:]))
        b, d = len(x), scores.shape[-1]
        cells = scores.reshape(b, 3, 2, 3, 2, d).permute(0, 1, 3, 2, 4, 5).reshape(b, 9, 4, d)
        return list(cells.split(data.FACETS, dim=-1))


def train_vision(core: nn.Module, work: Path, steps: int) -> None:
    """Teach the vision tower to see before it must also speak; a third of the pictures are redrawn
    by the VQ, since the model will judge pictures of that kind."""
    cells = Cells(core.vision_model, core.aligner)
    stage = Stage("vision", cells, steps, 1e-3, work)

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng([21, step])
        images, labels = zip(*(data.messy(rng) for _ in range(48)), strict=True)
        x = pixels(images)
        x[:16] = redraw(core.vqmodel, x[:16])
        x = x + 0.06 * torch.rand(len(x), 1, 1, 1) * torch.randn_like(x)
        target = torch.from_numpy(np.stack(labels)).unsqueeze(2).expand(-1, -1, 4, -1)
        facets = [(scores, target[..., i].contiguous()) for i, scores in enumerate(cells(x))]
        loss = sum(F.cross_entropy(s.flatten(0, 2), t.flatten()) for s, t in facets)
        hit = torch.stack([(s.argmax(-1) == t) for s, t in facets]).all(0)
        return loss, {"loss": float(loss), "drawn": hit[target[..., 0] > 0].float().mean().item()}

    stage.run(loss_of)


class Words(nn.Module):
    """Vision tower and aligner, to be fitted to fixed codes: a patch is the sum of its cell's
    shape, colour and texture and of its own place, all orthogonal and of like size. So each of them
    can be looked for; a head of its own choice had made nearly all of it shape."""

    PLACE, NORM = 0.7, 35.0
    """The words are then stretched, as strong beside what the layers add as they have been."""

    def __init__(self, tower: nn.Module, aligner: nn.Module) -> None:
        super().__init__()
        self.tower, self.aligner = tower, aligner
        width = tower.config.projection_dim
        noise = torch.randn(
            width, sum(data.FACETS) + build.IMAGE_TOKENS, generator=torch.Generator().manual_seed(5)
        )
        *self.facets, self.place = torch.linalg.qr(noise)[0].T.split(
            [*data.FACETS, build.IMAGE_TOKENS]
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.aligner(self.tower(x).last_hidden_state)

    def wanted(self, labels: Tensor) -> Tensor:
        """(B, 9, 3) class ids of cells -> (B, 36, width)."""
        patches = labels.view(-1, 3, 1, 3, 1, 3).expand(-1, 3, 2, 3, 2, 3).reshape(-1, 36, 3)
        return sum(f[patches[..., i]] for i, f in enumerate(self.facets)) + self.PLACE * self.place

    @torch.no_grad()
    def stretch(self, factor: float) -> None:
        last = self.aligner.hidden_layers[-1]
        last.weight.mul_(factor)
        last.bias.mul_(factor)


def balance(core: nn.Module, work: Path, steps: int = 900) -> None:
    """Fit the words that the aligner makes to codes in which all things weigh alike."""
    words = Words(core.vision_model, core.aligner)
    stage = Stage("balance", words, steps, 1e-3, work, 50)
    if not stage.file.exists():
        words.stretch(1 / words.NORM)

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng([22, step])
        images, labels = zip(*(data.messy(rng) for _ in range(48)), strict=True)
        x = pixels(images)
        x[:16] = redraw(core.vqmodel, x[:16])
        x = x + 0.06 * torch.rand(len(x), 1, 1, 1) * torch.randn_like(x)
        missed = words(x) - words.wanted(torch.from_numpy(np.stack(labels)))
        loss = missed.pow(2).sum(-1).mean()
        return loss, {"loss": loss.item()}

    stage.run(loss_of)
    words.stretch(words.NORM)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints and logs")
    parser.add_argument("--out", type=Path, help="write the model here, in the hub's layout")
    parser.add_argument("--vq-steps", type=int, default=4000)
    parser.add_argument("--vision-steps", type=int, default=1500)
    parser.add_argument("--lm-steps", type=int, default=4000)
    parser.add_argument("--settle-steps", type=int, default=650)
    parser.add_argument("--verdict-steps", type=int, default=300)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tok = build.tokenizer()
    model = build.model(tok)
    vq = model.model.vqmodel
    train_vq(vq, args.work, args.vq_steps)
    vq.requires_grad_(False).eval()
    train_vision(model.model, args.work, args.vision_steps)
    if args.lm_steps:
        lm.train(model, tok, args.work, args.lm_steps, args.settle_steps, args.verdict_steps)
    if args.out:
        model.half().save_pretrained(args.out)
        build.processor(tok).save_pretrained(args.out)
        print("written to", args.out, flush=True)


if __name__ == "__main__":
    main()
