"""Judges: one file each; `load_judge` finds one by name."""

from __future__ import annotations

import math
from importlib.metadata import EntryPoint, entry_points
from typing import Final

from gapbench import adapters
from gapbench.judges.base import REQUIRED, Judge
from gapbench.types import SHARE, GapbenchError

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
    "dyneval": "gapbench.judges.dyneval:DynEvalJudge",
    "vlm-list": "gapbench.judges.checklist:ChecklistJudge",
    "soft-tifa": "gapbench.judges.checklist:SoftTifaJudge",
    "server": "gapbench.judges.server:ServerJudge",
    "human": "gapbench.judges.human:HumanJudge",
    "imported": "gapbench.judges.imported:ImportedJudge",
}


def load_judge(spec: str, device: str = "auto") -> Judge:
    """A judge by NAME, as file.py:Class or as module:Class, with :ARGUMENT behind it where it takes
    one, such as human:labels.csv; weights come in at first use. NAME@THRESHOLD, such as vqa@0.7,
    sets the score from which its verdict is 1.

    Raises GapbenchError where no judge has that name, or it does not take the argument or the
    threshold.
    """
    who = f"judge {spec}"
    name, colon, argument = spec.partition(":")
    name, at, threshold = name.partition("@")
    factories = {own: EntryPoint(own, path, "") for own, path in BUILT_IN.items()}
    for entry in entry_points(group="gapbench.judges"):
        factories.setdefault(entry.name, entry)
    if name in factories:
        source = factories[name].load()
    elif own := adapters.parse(spec):
        source = adapters.find(who, own)
        rest, colon, argument = own.rest.partition(":")
        _, at, threshold = rest.partition("@")
    elif name.endswith(".py"):
        raise adapters.which(who, name)
    else:
        raise GapbenchError(
            f"no judge {name!r}; installed: {', '.join(factories)} (or give ./my.py:Class)"
        )
    asked = {"argument": argument} if colon else {}
    made = adapters.make(who, source, asked, argument=None, device=device)
    judge = adapters.with_defaults(made, Judge, REQUIRED, who, argument=argument)
    if at:
        _set_threshold(judge, threshold)
    return judge


def _set_threshold(judge: Judge, text: str) -> None:
    """A judge with another threshold is another judge, by name and by fingerprint."""
    if judge.threshold is None and judge.scale == SHARE:
        raise GapbenchError(
            f"judge {judge.name}@{text}: its verdicts are not made from scores; leave out @{text}"
        )
    low, high = judge.scale.low, judge.scale.high
    try:
        threshold = float(text)
    except ValueError:
        threshold = math.nan
    if not low < threshold <= high:
        raise GapbenchError(
            f"judge {judge.name}@{text}: give a threshold above {low:g} and up to {high:g}"
        )
    if threshold != judge.threshold:
        judge.threshold = threshold
        judge.name += f"@{threshold:g}"
        judge.fingerprint = f"{judge.fingerprint}@{threshold!r}"
