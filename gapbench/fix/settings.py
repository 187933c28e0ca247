"""What `gapbench fix` is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from typer import Argument, Option

from gapbench.runs.settings import (
    MODEL,
    Device,
    Dtype,
    Limit,
    RayAddress,
    Recipe,
    SettingError,
    checked,
    judge_names,
    names,
)

PAPER_EPOCHS: Final = {"sft": 20, "dpo": 30}
"""As readers report them (paper.md, section 3). The learning rates below are not published."""
LEARNING_RATE: Final = {"sft": 1e-4, "dpo": 1e-5}
FREE: Final = frozenset(
    {
        "judge", "check", "despite_check", "micro_batch", "gradient_checkpointing", "fsdp",
        "save_steps", "report_to", "draw_batch", "workers", "ray_address", "device", "candidates", "out",
    }
)  # fmt: skip
"""What may differ when a fix is taken up again: it changes how fast or how visibly, not what."""


# fmt: off
@dataclass(frozen=True, kw_only=True)
class FixSettings:
    """The options of `gapbench fix`, by the same names."""

    method: Annotated[Literal["sft", "dpo", "c-sft", "c-dpo"], Argument(help="sft or dpo; c-sft and c-dpo also try again the prompts for which no image was accepted (the discard pool).", metavar="METHOD")]
    out: Annotated[Path, Option(help="Folder for the trained model, its training set and fix.json.")]
    model: Annotated[str, Option(metavar="NAME", help=MODEL)] = "janus-mini"
    set: Recipe = None
    prompts: Annotated[Sequence[str], Option(parser=names, help="Training prompts: TASK:SPLIT, TASK:SPLIT/CATEGORY or a task folder; separate several with commas.")] = "shapes:train"
    limit: Limit = None
    samples: Annotated[int, Option(min=1, max=10_000, help="Candidates per prompt.")] = 10
    draw_seed: Annotated[int, Option(min=0, help="Seed for generating the candidates.")] = 0
    accept: Annotated[str, Option(help="Which candidates are accepted: all (verdict 1), mixed (only of prompts that have both verdicts), best:K (K per prompt), above:P (by probability).")] = "all"
    margin: Annotated[float, Option(min=0, help="DPO: minimum difference in probability between the two images of a pair.")] = 0.1
    judge: Annotated[Sequence[str] | None, Option(parser=judge_names, show_default="set by each task, if available", help="Outside judges for the data check, separated by commas, or none.")] = None
    check: Annotated[int, Option(min=1, help="Number of prompts in the data check.")] = 200
    despite_check: Annotated[bool, Option("--despite-check", help="Train even if the data check fails.")] = False
    despite_leak: Annotated[bool, Option("--despite-leak", help="Train even on a test split, and on copies of test prompts.")] = False
    epochs: Annotated[int, Option(min=0, show_default="20, DPO 30", help="Epochs of training.")] = 0
    replay_at: Annotated[Sequence[int], Option(parser=names, help="Epochs after which the discard pool is generated and judged again, separated by commas.")] = (10,)
    learning_rate: Annotated[float | None, Option(min=0, show_default="1e-4, DPO 1e-5", help="Learning rate.")] = None
    batch_size: Annotated[int, Option(min=1, help="Images (DPO: pairs) per step, over all processes.")] = 32
    micro_batch: Annotated[int | None, Option(min=1, show_default="all", help="Images (DPO: pairs) per forward pass in one process.")] = None
    lora: Annotated[int, Option(min=0, help="Rank of the LoRA adapter; 0 trains the weights themselves.")] = 32
    train: Annotated[Literal["language-model", "generation"], Option(help="Which weights to train: language-model, or generation (everything that generation uses).")] = "language-model"
    prompt_dropout: Annotated[float, Option(min=0, max=1, help="Share of images that are trained without their prompt; guidance needs this.")] = 0.1
    beta: Annotated[float, Option(min=0, help="DPO: beta, the weight of the log-ratios.")] = 0.1
    logprobs: Annotated[Literal["sum", "mean"], Option(help="DPO: use the sum or the mean over an image's tokens.")] = "sum"
    nll_weight: Annotated[float, Option(min=0, help="DPO: weight of the cross-entropy of the chosen images.")] = 1.0
    bf16: Annotated[bool | None, Option(show_default="on a GPU", help="Compute in bfloat16.")] = None
    gradient_checkpointing: Annotated[bool, Option("--gradient-checkpointing", help="Use less memory and more time.")] = False
    fsdp: Annotated[bool, Option("--fsdp", help="With torchrun: shard the weights over the GPUs instead of copying them.")] = False
    save_steps: Annotated[int | None, Option(min=1, show_default="an epoch", help="Steps between checkpoints.")] = None
    report_to: Annotated[Sequence[str], Option(parser=names, show_default="none", help="Where Trainer reports: tensorboard, trackio, wandb, ...")] = ()
    seed: Annotated[int, Option(min=0, help="Seed of the training.")] = 0
    draw_batch: Annotated[int, Option(min=1, help="Candidates per batch. Does not change results.")] = 64
    workers: Annotated[int | Literal["all"], Option(min=1, help="Number of processes that generate the first candidates, as of `gapbench run`. Does not change results.")] = 1
    ray_address: RayAddress = None
    device: Device = "auto"
    dtype: Dtype = "auto"
    candidates: Annotated[Path, Option(help="Folder for the run folders of the candidates; several fixes can share it.")] = Path("candidates")
    # fmt: on

    def __post_init__(self) -> None:
        """Check, and fill in what depends on the method."""
        vars(self).update(checked(FixSettings, vars(self)))
        rate = self.learning_rate
        replays = sorted(self.replay_at) if self.method.startswith("c-") else []
        vars(self).update(
            epochs=self.epochs or PAPER_EPOCHS[self.loss],
            learning_rate=LEARNING_RATE[self.loss] if rate is None else rate,
            replay_at=replays,
            set=self.set or {},
        )
        if not self.learning_rate:
            raise SettingError("learning_rate", "must be more than 0, not 0")
        if not self.margin < 1:
            raise SettingError("margin", f"must be less than 1, not {self.margin:g}")
        if not self.beta > 0:
            raise SettingError("beta", f"must be more than 0, not {self.beta:g}")
        if self.loss == "dpo" and self.samples < 2:
            wrong = f"must be at least 2, because {self.method} compares two candidates of a prompt"
            raise SettingError("samples", wrong)
        if self.method.startswith("c-") and not replays:
            raise SettingError("replay_at", f"must name an epoch for {self.method}")
        for epoch in replays:
            if not 0 < epoch < self.epochs:
                wrong = f"must be at least 1 and less than {self.epochs} epochs, not {epoch}"
                raise SettingError("replay_at", wrong)

    @property
    def loss(self) -> Literal["sft", "dpo"]:
        """The loss, without the curriculum."""
        return "dpo" if self.method.endswith("dpo") else "sft"

    def phases(self) -> list[tuple[int, int]]:
        """The epochs (from, to) between replays."""
        return list(pairwise([0, *self.replay_at, self.epochs]))

    def identity(self) -> dict[str, Any]:
        """What a fix that is taken up again must share."""
        return {key: value for key, value in vars(self).items() if key not in FREE}
