"""Figures in the trackers of experiments: TensorBoard, trackio, Weights & Biases."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from gapbench.report.tables import OVERALLS
from gapbench.types import GapbenchError, Rates

MODULES: Final = {
    "tensorboard": "torch.utils.tensorboard",
    "trackio": "trackio",
    "wandb": "wandb",
}
PROJECT: Final = "gapbench"


def check(trackers: Sequence[str]) -> None:
    """Raises GapbenchError for a tracker that is not known or not installed."""
    for name in trackers:
        if name not in MODULES:
            raise GapbenchError(f"--report-to {name}: there are {', '.join(MODULES)}")
        try:
            import_module(MODULES[name])
        except ImportError as error:
            raise GapbenchError(f"--report-to {name}: `pip install {name}` brings it") from error


def figures(rates: Iterable[Rates]) -> dict[str, float]:
    """Rates by the names that trackers show, in their units: gap/generation is the overall figure,
    as `GapCallback` logs it, gap/shapes/colors/generation a category's."""
    named = {}
    for rate in rates:
        where = [rate.level] * (rate.level in OVERALLS) + [rate.name] * (rate.level != "overall")
        if rate.value is not None:
            named["/".join(["gap", *where, rate.metric])] = rate.value
    return named


def log(
    trackers: Sequence[str],
    name: str,
    config: Mapping[str, Any],
    values: Mapping[str, float],
    folder: Path,
) -> None:
    """Log figures once, as a run called `name`; TensorBoard's file goes into `folder`."""
    for tracker in trackers:
        library: Any = import_module(MODULES[tracker])
        if tracker == "tensorboard":
            with library.SummaryWriter(log_dir=str(folder / tracker)) as writer:
                for key, value in values.items():
                    writer.add_scalar(key, value, 0)
            continue
        with redirect_stdout(sys.stderr):  # they print, and stdout is the table's
            library.init(project=PROJECT, name=name, config=dict(config))
            library.log(dict(values))
            library.finish()
