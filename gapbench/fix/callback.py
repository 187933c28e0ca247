"""GapCallback: the gap of a model in training, every so many steps, in the trainer's own log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch

from gapbench.models import torchvision_shim

torchvision_shim.ensure()

from transformers import TrainerCallback  # noqa: E402 (after the shim)

from gapbench.judges.own import OwnJudge  # noqa: E402
from gapbench.metrics.metric import shown_in  # noqa: E402
from gapbench.metrics.rates import rates  # noqa: E402
from gapbench.models import load_model  # noqa: E402
from gapbench.models.base import require, require_shared  # noqa: E402
from gapbench.runs.frame import row  # noqa: E402
from gapbench.runs.missing import refusals  # noqa: E402
from gapbench.runs.plan import prepare  # noqa: E402
from gapbench.runs.settings import RunSettings  # noqa: E402
from gapbench.tasks.content import cluster  # noqa: E402
from gapbench.types import SHARE, GapbenchError  # noqa: E402


class GapCallback(TrainerCallback):  # type: ignore[misc]
    """Measures the gap on the same prompts with the same seeds, at the start and every `every`
    steps, and logs it through `trainer`: `gap/generation`, `gap/non_unification`, ... as shares,
    and `gap/..._change` since the start, paired by (prompt, seed).

    `trainer` is transformers' Trainer or one of TRL's, training a network of transformers, with or
    without peft; `model` names the checkpoint that its weights came from, as --model does: its
    processor and recipe draw and judge. `limit` prompts of `tasks` with `samples` images each;
    `judges` outside judges (each task's own by default). No random state of the training is
    touched. In a process group the first process measures. Raises GapbenchError for a pair, for
    FSDP, and for what `gapbench run` would refuse.
    """

    def __init__(
        self,
        trainer: Any,
        model: str,
        tasks: str | Sequence[str] = "shapes",
        every: int = 100,
        limit: int = 32,
        samples: int = 1,
        judges: Sequence[str] | None = None,
        batch_size: int = 32,
        seed: int = 0,
    ) -> None:
        if every < 1 or batch_size < 1:
            raise GapbenchError("GapCallback: every and batch_size must be at least 1")
        if getattr(trainer, "is_fsdp_enabled", False):
            raise GapbenchError("GapCallback needs whole weights, which FSDP shards; use DDP")
        self.trainer, self.every, self.batch_size = trainer, every, batch_size
        self.model = load_model(model)
        require(self.model, ["train"], "GapCallback cannot give it the weights in training")
        require_shared(self.model, "GapCallback")
        made = prepare(
            RunSettings(self.model, tasks, samples=samples, limit=limit, judges=judges, seed=seed)
        )
        self.items = made.plan.items()
        self.judges = {judge.name: judge for judge in made.judges}
        self.own = OwnJudge(self.model, "logits")
        for refused in refusals(self.model, self.items).values():
            raise GapbenchError(
                f"GapCallback: {model} cannot draw {refused.prompt!r}: {refused.reason}"
            )
        self.start: dict[str, float] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:  # noqa: ARG002
        if state.is_world_process_zero and not self.start:
            self.start = self._measure()
            self.trainer.log(dict(self.start))

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:  # noqa: ARG002
        if state.global_step % self.every == 0 and state.is_world_process_zero:
            now = self._measure()
            change = {
                f"{key}_change": now[key] - self.start[key] for key in self.start if key in now
            }
            self.trainer.log(now | change)

    @torch.no_grad()
    def _measure(self) -> dict[str, float]:
        network = self.trainer.accelerator.unwrap_model(self.trainer.model)
        if hasattr(network, "get_base_model"):
            network = network.get_base_model()
        training = network.training
        network.eval()
        self.model.use(network)
        try:
            frame = self._frame()
        except GapbenchError as error:  # such as logits that are not finite any more
            step = self.trainer.state.global_step
            raise GapbenchError(f"GapCallback at step {step}: {error}") from error
        finally:
            network.train(training)
        logged = {metric.name for metric in shown_in("training")}
        return {
            f"gap/{rate.metric}": rate.value
            for rate in rates(frame)
            if rate.level == "overall" and rate.metric in logged and rate.value is not None
        }

    def _frame(self) -> pd.DataFrame:
        """As `Run.frame`, of images that are drawn now and not kept."""
        rows = []
        for start in range(0, len(self.items), self.batch_size):
            batch = self.items[start : start + self.batch_size]
            prompts = [item.prompt for item in batch]
            seeds = [item.seed for item in batch]
            drawings = self.model.generate([prompt.text for prompt in prompts], seeds)
            images = [drawing.image for drawing in drawings]
            crossed = [
                (item.partner, i) for item, i in zip(batch, images, strict=True) if item.partner
            ]
            partners = [partner for partner, _ in crossed]
            others = self.own.judge([i for _, i in crossed], partners) if crossed else []
            mismatched = iter(others)
            verdicts = self.own.judge(images, prompts)
            for item, image, own in zip(batch, images, verdicts, strict=True):
                name, outside, partner = next(iter(item.asks), None), None, None
                if name is not None:
                    asked = item.asked(name)
                    outside, *more = self.judges[name].judge([image] * len(asked), asked)
                    partner = next(iter(more), None)
                other = next(mismatched) if item.partner else None
                scale = self.judges[name].scale if name else SHARE
                rows.append(
                    row(item, cluster(item.prompt), None, own, outside, other, name, scale, partner)
                )
        return pd.DataFrame(rows)
