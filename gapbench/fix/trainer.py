"""One phase of training: transformers' Trainer over an ImageLoss."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from gapbench.engines.keep import held_back
from gapbench.fix.data import Drawn, collate
from gapbench.fix.losses import ImageLoss
from gapbench.fix.settings import FixSettings
from gapbench.runs.settings import Advance, Progress
from gapbench.types import GapbenchError, Interrupted

WARMUP: Final = 0.03
"""Share of all epochs over which the rate rises; then it falls to 0 along a cosine."""
STATE: Final = "trainer_state.json"
"""What Trainer writes last into a checkpoint."""


class FixTrainer(Trainer):  # type: ignore[misc]
    """Trainer for ImageLoss: its rate follows the whole fix, what is not finite stops it, and its
    checkpoints hold what is trained and nothing pickled but states."""

    def __init__(self, steps: Drawn, settings: FixSettings, **more: Any) -> None:
        self._examples, self._settings = steps, settings
        self._seen: dict[str, list[Tensor]] = {}
        super().__init__(train_dataset=steps, data_collator=collate, **more)

    def epoch(self) -> float:
        """How far the whole fix is, in epochs."""
        images = int(self.state.global_step) * self._settings.batch_size
        return self._examples.first + images / len(self._examples.rows)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,  # noqa: ARG002 (every batch has as many tokens)
    ) -> Any:
        outputs = model(**inputs)
        loss = outputs.pop("loss")
        if not torch.isfinite(loss):
            self._stop(f"the loss is {loss.item()}", inputs["prompts"][0])
        for name, value in outputs.items():
            self._seen.setdefault(name, []).append(value)
        return (loss, outputs) if return_outputs else loss

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        norm = super()._clip_grad_norm(model)
        if not math.isfinite(float(norm)):
            self._stop(f"the gradient's norm is {float(norm)}")
        return norm

    def _stop(self, what: str, prompt: str | None = None) -> None:
        good = last_checkpoint(Path(str(self.args.output_dir)))
        where = f", in a batch with the prompt {prompt!r}" if prompt else ""
        raise GapbenchError(
            f"training stopped: {what} at step {self.state.global_step + 1} (epoch "
            f"{self.epoch():.2f}){where}; the last good checkpoint is {good or 'the start'}. Give "
            "a smaller --learning-rate and another --out; candidates are not drawn again"
        )

    def create_scheduler(
        self,
        num_training_steps: int,  # noqa: ARG002 (of this phase alone)
        optimizer: torch.optim.Optimizer | None = None,
    ) -> Any:
        per_step = self._settings.batch_size / len(self._examples.rows)

        def rate(step: int) -> float:
            share = (self._examples.first + (step + 1) * per_step) / self._settings.epochs
            if share < WARMUP:
                return share / WARMUP
            return 0.5 * (1 + math.cos(math.pi * min(1, (share - WARMUP) / (1 - WARMUP))))

        self.lr_scheduler: Any
        if self.lr_scheduler is None:
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, rate)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        self.state.epoch = self.epoch()
        logs |= {name: float(torch.stack(seen).mean()) for name, seen in self._seen.items()}
        self._seen = {}
        super().log(logs, start_time)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """None: what is frozen is not in a checkpoint, and need not be."""

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        from safetensors.torch import save_file

        folder = Path(str(output_dir or self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        inner = self.accelerator.unwrap_model(self.model)
        names = [name for name, p in inner.named_parameters() if p.requires_grad]
        whole = inner.state_dict() if state_dict is None else state_dict
        kept = {n: whole[n].detach().cpu().contiguous() for n in sorted(names)}
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Progress with the loss, and a stop after the step in hand when Ctrl-C came."""

    def __init__(self, advance: Advance, asked: list[object]) -> None:
        self.advance, self.asked = advance, asked

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:  # noqa: ARG002
        if "loss" in (logs or {}):
            self.advance(0, f"loss {logs['loss']:.4g}")

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:  # noqa: ARG002
        self.advance(1)
        if self.asked:
            control.should_save = control.should_training_stop = True


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a trainer's folder; those that a crash tore are removed."""
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    for path in reversed(checkpoints):
        try:
            json.loads((path / STATE).read_text())
            return path
        except (OSError, ValueError):
            shutil.rmtree(path, ignore_errors=True)
    return None


def train_phase(
    loss: ImageLoss,
    steps: Drawn,
    settings: FixSettings,
    folder: Path,
    device: str,
    mixed: bool,
    progress: Progress,
) -> list[dict[str, float]]:
    """Train, from the last checkpoint in `folder` where there is one; `folder`/trained/
    model.safetensors is what came out. Gives the curves.

    Raises GapbenchError where loss or gradient is not finite, Interrupted after Ctrl-C.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    share, left = divmod(settings.batch_size, world)
    if left:
        raise GapbenchError(
            f"--batch-size {settings.batch_size} does not divide among {world} processes"
        )
    micro = min(settings.micro_batch or share, share)
    if share % micro:
        raise GapbenchError(f"--micro-batch {micro} does not divide a process's {share} images")
    per_epoch = -(-len(steps.rows) // settings.batch_size)
    layers = {
        type(module).__name__
        for name, module in loss.network.named_modules()
        if re.search(r"((language|text)_model|\bmodel)\.layers\.\d+$", name)
    }
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps.steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=share // micro,
        learning_rate=settings.learning_rate,
        weight_decay=0.0,
        bf16=mixed,
        use_cpu=device == "cpu",
        seed=settings.seed,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        label_names=[],
        logging_steps=max(1, min(10, per_epoch // 4)),
        logging_nan_inf_filter=False,
        save_steps=settings.save_steps or per_epoch,
        save_total_limit=2,
        report_to=settings.report_to or "none",
        disable_tqdm=True,
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=device != "cpu",
        fsdp=settings.fsdp or None,
        fsdp_config={"transformer_layer_cls_to_wrap": sorted(layers)} if settings.fsdp else None,
    )
    done = last_checkpoint(folder)
    there = int(done.name.split("-")[1]) if done else 0
    advance = progress(f"training, epochs {steps.first + 1}-{steps.last}", there, steps.steps)
    with held_back() as asked:
        trainer = FixTrainer(
            steps, settings, model=loss, args=args, callbacks=[_Watch(advance, asked)]
        )
        # Its own printer writes every log as a line between the bars.
        from transformers import PrinterCallback

        trainer.remove_callback(PrinterCallback)
        try:
            trainer.train(resume_from_checkpoint=str(done) if done else None)
        except (OSError, SafetensorError) as error:
            raise GapbenchError(
                f"{folder}: {error}; make room or mend it, then run the same command again"
            ) from error
        if asked:
            raise Interrupted
    trainer.save_model(str(folder / "trained"))
    return [entry for entry in trainer.state.log_history if "loss" in entry]
