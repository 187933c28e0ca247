"""The model card of a fixed folder, README.md: what was trained on what, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from gapbench.files import write_atomic
from gapbench.fix.leaks import Leaks
from gapbench.models.registry import MODELS

CARD: Final = "README.md"
FIGURES: Final = "\n## Before and after\n"


def write(folder: Path, record: Mapping[str, Any]) -> None:
    """Write a finished fix's card by its record (fix.json)."""
    settings, base = record["settings"], record["base"]
    name = Path(str(base["name"])).name
    entry = MODELS.get(str(base["name"]))
    repo = entry.needs["model"].repo if entry and "model" in entry.needs else None
    head = ["library_name: transformers", "tags: [gapbench, text-to-image, self-improvement]"]
    facts = {
        "base": name,
        "its fingerprint": f"`{base['fingerprint']}`",
        "method": settings["method"],
        "training prompts": ", ".join(settings["prompts"]),
        "training set": f"{record['data']['rows']} rows, digest `{record['data']['digest']}`",
        "own images accepted": f"{100 * record['candidates']['acceptance']:.1f} %",
    }
    told = ("method", "model", "prompts")
    more = {k: v for k, v in settings.items() if k not in told and v not in (None, {}, [])}
    lines = [
        "---", *([f"base_model: {repo}"] if repo else []), *head, "---",
        f"# {name} after gapbench fix {settings['method']}", "",
        f"{name}, trained on images that it drew and accepted itself (arXiv 2507.16663), by "
        f"gapbench {record['versions']['gapbench']}. `fix.json` holds the whole record.", "",
        *_table(facts), "", *(f"- {line}" for line in Leaks(**record["leaks"]).words()), "",
        "## Settings", "",
        *_table(more), FIGURES,
        "Not compared yet: `gapbench compare BEFORE AFTER`, with runs of the base and of this "
        "model, puts the figures here.", "",
    ]  # fmt: skip
    write_atomic(folder / CARD, "\n".join(lines).encode())


def add_figures(folder: Path, figures: str) -> bool:
    """Put a comparison's figures into the card; False where the folder has none, or one without a
    place for them."""
    file = folder / CARD
    there = file.read_text(encoding="utf-8") if file.is_file() else ""
    card, mark, _ = there.partition(FIGURES)
    if mark:
        write_atomic(file, f"{card}{FIGURES}\n{figures}\n".encode())
    return bool(mark)


def _table(facts: Mapping[str, object]) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in facts.items())]
