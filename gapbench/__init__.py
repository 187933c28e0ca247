"""gapbench: what a unified multimodal LLM can draw, against what it can recognise."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gapbench.adapters import fingerprint as fingerprint
    from gapbench.comparison.compare import Comparison as Comparison
    from gapbench.comparison.compare import compare as compare
    from gapbench.fix.callback import GapCallback as GapCallback
    from gapbench.judges import load_judge as load_judge
    from gapbench.judges.base import Judge as Judge
    from gapbench.models import load_model as load_model
    from gapbench.models.base import Drawing as Drawing
    from gapbench.models.base import Model as Model
    from gapbench.models.functions import FunctionModel as FunctionModel
    from gapbench.rewards.reward import reward as reward
    from gapbench.runs.flow import run as run
    from gapbench.runs.run import Run as Run
    from gapbench.runs.run import open_run as open_run
    from gapbench.tasks.task import load_task as load_task
    from gapbench.types import Answer as Answer
    from gapbench.types import GapbenchError as GapbenchError
    from gapbench.types import Generation as Generation
    from gapbench.types import Prompt as Prompt
    from gapbench.types import Rates as Rates
    from gapbench.types import Verdict as Verdict

# Imported at first use: `import gapbench` and `gapbench --help` need no torch.
_HOMES = {
    "compare": "comparison.compare",
    "Comparison": "comparison.compare",
    "Drawing": "models.base",
    "FunctionModel": "models.functions",
    "GapCallback": "fix.callback",
    "Judge": "judges.base",
    "Model": "models.base",
    "fingerprint": "adapters",
    "load_judge": "judges",
    "load_model": "models",
    "load_task": "tasks.task",
    "reward": "rewards.reward",
    "run": "runs.flow",
    "open_run": "runs.run",
    "Run": "runs.run",
    **dict.fromkeys(
        ("Answer", "GapbenchError", "Generation", "Prompt", "Rates", "Verdict"), "types"
    ),
}
__all__ = sorted(_HOMES)
__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gapbench' has no attribute {name!r}")
    return getattr(import_module(f"gapbench.{_HOMES[name]}"), name)
