"""Judges: one file each; `load_judge` finds one by name."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Final

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


def load_judge(spec: str, device: str = "auto") -> Judge:
    """A judge by NAME or NAME:ARGUMENT, such as human:labels.csv; weights come in at first use.

    Raises GapbenchError where no judge has that name, or it does not take the argument.
    """
    name, colon, argument = spec.partition(":")
    factories = {own: EntryPoint(own, path, "") for own, path in BUILT_IN.items()}
    for entry in entry_points(group="gapbench.judges"):
        factories.setdefault(entry.name, entry)
    if name not in factories:
        raise GapbenchError(f"no judge {name!r}; installed: {', '.join(factories)}")
    made = factories[name].load()(argument if colon else None, device=device)
    return with_defaults(made, Judge, REQUIRED, f"judge {spec}")
