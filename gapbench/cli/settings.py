"""The settings of `gapbench run`: command line over config file over defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from gapbench.tasks.spec import explain
from gapbench.types import GapbenchError


class RunSettings(BaseModel):
    """What a run is told; a config file has the same keys."""

    model_config = ConfigDict(extra="forbid")
    model: str = "janus-mini"
    set: dict[str, str | bool | int | float] = {}
    tasks: list[str] = ["shapes"]
    samples: int | None = Field(default=None, ge=1)
    limit: int | None = Field(default=None, ge=1)
    judge: list[str] | None = None
    verdict: Literal["logits", "text", "none"] = "logits"
    batch_size: int | Literal["auto"] = "auto"
    workers: int = Field(default=1, ge=1)
    seed: int = Field(default=0, ge=0)
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$")
    dtype: Literal["auto", "float64", "float32", "bfloat16", "float16"] = "auto"
    out: Path = Path("runs")
    offline: bool = False

    @field_validator("batch_size", mode="before")
    @classmethod
    def _whole_or_auto(cls, value: object) -> object:
        if value == "auto" or (str(value).isdecimal() and int(str(value)) > 0):
            return value if value == "auto" else int(str(value))
        raise ValueError("must be auto, or a whole number of 1 or more")


def read_settings(config: Path | None, options: dict[str, Any]) -> RunSettings:
    """Settings from a YAML file and from options; an option that is None was not given.

    Raises GapbenchError naming the file or the option, the key and what is wrong with it.
    """
    given = {key: value for key, value in options.items() if value is not None}
    loaded: dict[str, Any] = {}
    if config is not None:
        try:
            raw = yaml.safe_load(config.read_text(encoding="utf-8"))
        except OSError as error:
            raise GapbenchError(f"--config {config}: cannot be read ({error.strerror})") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise GapbenchError(f"{config}: not YAML ({' '.join(str(error).split())})") from error
        if not isinstance(raw, dict):
            raise GapbenchError(f"{config}: not a list of `key: value` lines")
        loaded = {str(key).replace("-", "_"): value for key, value in raw.items()}
        for key in ("tasks", "judge"):
            if isinstance(loaded.get(key), str):
                loaded[key] = [name.strip() for name in loaded[key].split(",")]
        _validate(loaded, f"{config}: ")
    return _validate(loaded | given, "")


def _validate(values: dict[str, Any], where: str) -> RunSettings:
    try:
        return RunSettings.model_validate(values)
    except ValidationError as error:
        key = str(error.errors()[0]["loc"][0])
        if where:
            known = ", ".join(RunSettings.model_fields)
            hint = f"; keys are {known}" if error.errors()[0]["type"] == "extra_forbidden" else ""
            raise GapbenchError(f"{where}{explain(error)}{hint}") from error
        raise GapbenchError(
            f"--{key.replace('_', '-')} {values[key]}: {error.errors()[0]['msg'].lower()}"
        ) from error
