"""What `gapbench fix` is told."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gapbench.types import GapbenchError

Method = Literal["sft", "dpo", "c-sft", "c-dpo"]
PAPER_EPOCHS: Final = {"sft": 20, "dpo": 30}
"""As readers report them (paper.md, section 3). The learning rates below are not published."""
LEARNING_RATE: Final = {"sft": 1e-4, "dpo": 1e-5}
FREE: Final = frozenset(
    {
        "judge", "check", "despite_check", "micro_batch", "gradient_checkpointing", "fsdp",
        "save_steps", "report_to", "draw_batch", "device", "candidates", "out",
    }
)  # fmt: skip
"""What may differ when a fix is taken up again: it changes how fast or how visibly, not what."""


class FixSettings(BaseModel):
    """The options of `gapbench fix`, by the same names."""

    model_config = ConfigDict(extra="forbid")
    method: Method
    model: str = "janus-mini"
    set: dict[str, str | bool | int | float] = {}
    prompts: list[str] = ["shapes:train"]
    limit: int | None = Field(default=None, ge=1)
    samples: int = Field(default=10, ge=1)
    draw_seed: int = Field(default=0, ge=0)
    accept: str = "all"
    margin: float = Field(default=0.1, ge=0, lt=1)
    judge: list[str] | None = None
    check: int = Field(default=200, ge=1)
    despite_check: bool = False
    epochs: int = Field(default=0, ge=0)
    replay_at: list[int] = [10]
    learning_rate: float = Field(default=0.0, ge=0)
    batch_size: int = Field(default=32, ge=1)
    micro_batch: int | None = Field(default=None, ge=1)
    lora: int = Field(default=32, ge=0)
    train: Literal["language-model", "generation"] = "language-model"
    prompt_dropout: float = Field(default=0.1, ge=0, le=1)
    beta: float = Field(default=0.1, gt=0)
    logprobs: Literal["sum", "mean"] = "sum"
    nll_weight: float = Field(default=1.0, ge=0)
    bf16: bool | None = None
    gradient_checkpointing: bool = False
    fsdp: bool = False
    save_steps: int | None = Field(default=None, ge=1)
    report_to: list[str] = []
    seed: int = Field(default=0, ge=0)
    draw_batch: int = Field(default=64, ge=1)
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$")
    dtype: Literal["auto", "float64", "float32", "bfloat16", "float16"] = "auto"
    candidates: Path = Path("candidates")
    out: Path

    @property
    def loss(self) -> Literal["sft", "dpo"]:
        """The loss, without the curriculum."""
        return "dpo" if self.method.endswith("dpo") else "sft"

    def model_post_init(self, _context: Any) -> None:
        """Fill in what depends on the method."""
        self.epochs = self.epochs or PAPER_EPOCHS[self.loss]
        self.learning_rate = self.learning_rate or LEARNING_RATE[self.loss]
        self.replay_at = sorted(set(self.replay_at)) if self.method.startswith("c-") else []

    def phases(self) -> list[tuple[int, int]]:
        """The epochs (from, to) between replays."""
        return list(pairwise([0, *self.replay_at, self.epochs]))

    def identity(self) -> dict[str, Any]:
        """What a fix that is taken up again must share."""
        return self.model_dump(mode="json", exclude=set(FREE))


def read_fix_settings(options: dict[str, Any]) -> FixSettings:
    """Settings from options; one that is None was not given. Raises GapbenchError."""
    given = {key: value for key, value in options.items() if value is not None}
    try:
        settings = FixSettings.model_validate(given)
    except ValidationError as error:
        key = str(error.errors()[0]["loc"][0])
        name = "METHOD" if key == "method" else f"--{key.replace('_', '-')}"
        raise GapbenchError(
            f"{name} {given.get(key)}: {error.errors()[0]['msg'].lower()}"
        ) from error
    if settings.loss == "dpo" and settings.samples < 2:
        raise GapbenchError(
            f"--samples {settings.samples}: {settings.method} compares two candidates of a prompt; "
            "give at least 2"
        )
    outside = [epoch for epoch in settings.replay_at if not 0 < epoch < settings.epochs]
    if outside:
        raise GapbenchError(
            f"--replay-at {outside[0]}: a replay comes after the first epoch and before the last, "
            f"number {settings.epochs}"
        )
    if settings.method.startswith("c-") and not settings.replay_at:
        raise GapbenchError(f"--replay-at: {settings.method} replays at least once; name an epoch")
    return settings
