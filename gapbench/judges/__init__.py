"""Judges: one file each; `load_judge` finds one by name."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import Final

from gapbench.judges.base import Judge
from gapbench.types import GapbenchError

BUILT_IN: Final = {"pixel": "gapbench.judges.pixel:PixelJudge"}


def judge_names() -> list[str]:
    """Names of the installed judges, third parties' (group gapbench.judges) last."""
    return list(
        dict.fromkeys([*BUILT_IN, *(e.name for e in entry_points(group="gapbench.judges"))])
    )


def load_judge(name: str) -> Judge:
    """A judge by its name. Raises GapbenchError where there is none."""
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        made: Judge = getattr(import_module(module), attribute)()
        return made
    for entry in entry_points(group="gapbench.judges"):
        if entry.name == name:
            found: Judge = entry.load()()
            return found
    raise GapbenchError(f"no judge {name!r}; installed: {', '.join(judge_names())}")
