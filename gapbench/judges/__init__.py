"""Judges: one file each; `load_judge` finds one by name."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Final

from gapbench.judges.base import REQUIRED, Judge
from gapbench.models.base import with_defaults
from gapbench.types import GapbenchError

BUILT_IN: Final = {
    "pixel": "gapbench.judges.pixel:PixelJudge",
    "detector": "gapbench.judges.detector:DetectorJudge",
    "vqa": "gapbench.judges.vqa:VqaJudge",
    "vqa-official": "gapbench.judges.vqa:VqaOfficialJudge",
    "clip": "gapbench.judges.clip:ClipJudge",
    "sciscore": "gapbench.judges.sciscore:SciScoreJudge",
    "spatial-native": "gapbench.judges.spatial:SpatialJudge",
    "complex-native": "gapbench.judges.complex:ComplexJudge",
    "vlm": "gapbench.judges.vlm:VlmJudge",
    "vlm-list": "gapbench.judges.checklist:ChecklistJudge",
    "server": "gapbench.judges.server:ServerJudge",
    "human": "gapbench.judges.human:HumanJudge",
    "imported": "gapbench.judges.imported:ImportedJudge",
}


def judge_names() -> list[str]:
    """Names of the installed judges, third parties' (group gapbench.judges) last."""
    return list(
        dict.fromkeys([*BUILT_IN, *(e.name for e in entry_points(group="gapbench.judges"))])
    )


def load_judge(spec: str, device: str = "auto") -> Judge:
    """A judge by NAME or NAME:ARGUMENT, such as human:labels.csv; weights come in at first use.

    Raises GapbenchError where no judge has that name, or it does not take the argument.
    """
    name, colon, argument = spec.partition(":")
    factory: Any = None
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        factory = getattr(import_module(module), attribute)
    for entry in entry_points(group="gapbench.judges"):
        if factory is None and entry.name == name:
            factory = entry.load()
    if factory is None:
        raise GapbenchError(f"no judge {name!r}; installed: {', '.join(judge_names())}")
    made = factory(argument if colon else None, device=device)
    return with_defaults(made, Judge, REQUIRED, f"judge {spec}")
