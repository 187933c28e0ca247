"""A training loop that goes on where it stopped."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

CHECKPOINT_EVERY = 250


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
        floor: float = 0.02,
    ) -> None:
        self.name, self.module, self.steps, self.lr = name, module, steps, lr
        self.warm, self.fall, self.floor = warm, fall, floor
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

    def run(self, loss_of: Callable[[int], tuple[Tensor, dict[str, float]]]) -> None:
        """Train up to the last step; `loss_of` gives a step's loss and its figures for the log."""
        start, spent = self._resume()
        clock = time.time() - spent
        for step in range(start, self.steps):
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
            if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == self.steps:
                self._save(step + 1, time.time() - clock)

    def _schedule(self, step: int) -> float:
        """Constant, then from the share `fall` of the steps on a cosine down to `floor`."""
        warm = min(1.0, (step + 1) / self.warm)
        late = max(0.0, step / self.steps - self.fall) / max(1 - self.fall, 1e-9)
        return warm * (self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * late)))

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
