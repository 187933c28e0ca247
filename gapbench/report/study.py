"""What a paper has to say of the labels that people gave on the page: one sheet in Markdown."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, Final

from tabulate import tabulate

from gapbench.files import read_lines
from gapbench.judges.human import LABELS as MEANING
from gapbench.metrics.agreement import alpha
from gapbench.report import tables
from gapbench.report.label import QUESTION, WORDS, items_of
from gapbench.runs.run import HUMAN, IMAGE, LABELS, Run
from gapbench.types import GapbenchError, counted

UNKNOWN: Final = (
    "who the raters are, how they were found and paid, and their consent",
    "what they were told beyond the question, and examples that they were shown",
    "what they knew of the models and of the aim of the study",
    "why so many images and raters, and whether labels were looked at before the end",
)


def study(run: Run) -> str:
    """The sheet of a run's labels: question, buttons, sampling, raters, agreement; and what is not
    in the run folder and has to be written by hand.

    Raises GapbenchError where nobody labelled an image of the run.
    """
    people, items = run.people(), items_of(run)
    said: dict[str, dict[int, int | None]] = {}
    for rater in people.raters() if people else []:
        for item, (image, text) in enumerate(items):
            if people and (answer := people.answer(image, text, rater)) is not None:
                said.setdefault(rater, {})[item] = answer.verdict
    done = sorted({item for given in said.values() for item in given})
    if not done:
        raise GapbenchError(
            f"{run.path}: nobody has labelled an image of this run; gapbench label {run.path} "
            "opens the page"
        )
    versions = ", ".join(f"{name} {version}" for name, version in run.plan.tasks.items())
    prompts = len({items[item][1] for item in done})
    total = len({text for _, text in items})
    several = sum(sum(item in given for given in said.values()) > 1 for item in done)
    facts = [
        ("run", run.path.name),
        ("images", f"drawn by {run.name} for {versions}"),
        ("labelled images", f"{len(done)} of {len(items)}"),
        ("their prompts", f"{prompts} of {total}"),
        ("labels", f"{sum(map(len, said.values()))} by {counted(len(said), 'rater')}"),
        ("images of two or more raters", str(several)),
    ]
    buttons = ", ".join(f"{word.capitalize()} (key {word[0]})" for word in WORDS)
    return "\n\n".join(
        [
            "# Human study",
            _table(["", ""], facts),
            "## Question and page",
            f"The page asked: {QUESTION} Below stood the prompt and one image. The answers were "
            f"the buttons {buttons}; others moved back, forward, and on without an answer. The "
            "page showed no verdict, score, category or model, and no answer of another rater. "
            "Raters could go back and change an answer, and the last one counts. There was no "
            "limit of time.",
            "## Sampling",
            "The images came in one random order, by a hash of image and prompt, that was the same "
            f"for all raters and did not depend on any verdict. {_sampled(done)}",
            "## Raters",
            _raters(run, said),
            "## Agreement",
            "\n".join(f"- {line}" for line in _agreement(run, [*said])),
            "The verdict of people on an image is what more than half of its raters said. "
            f"{_decided(run)}",
            "## To be added by hand",
            "\n".join(f"- {what}" for what in UNKNOWN),
        ]
    )


def _sampled(done: list[int]) -> str:
    """Whether the labelled images are the first of the order, as they are unless raters skipped."""
    reached = done[-1] + 1
    if reached == len(done):
        return f"The labelled images are the first {reached} of it: a random sample."
    return (
        f"Raters got to number {reached} of it and passed over {reached - len(done)}, so the "
        "labelled images are a random sample only if these were passed over at random."
    )


def _raters(run: Run, said: dict[str, dict[int, int | None]]) -> str:
    """How often each rater gave each answer, and on which days."""
    days: dict[str, set[str]] = {}
    for row in read_lines(run.path / LABELS, dict[str, Any]):
        days.setdefault(str(row.get("rater") or ""), set()).add(str(row.get("time", ""))[:10])
    rows = []
    for rater, given in said.items():
        counts = Counter(given.values())
        when = sorted(days.get(rater, set()) - {""})
        span = " to ".join(dict.fromkeys([when[0], when[-1]])) if when else "unknown"
        answers = [str(counts[MEANING[word]]) for word in WORDS]
        rows.append([_plain(rater), str(len(given)), *answers, span])
    return _table(["rater", "labels", *WORDS, "days (UTC)"], rows)


def _agreement(run: Run, raters: list[str]) -> list[str]:
    """Among the raters, and of each judge with them."""
    frames = {name: run.frame(name) for name in (f"{HUMAN}:{rater}" for rater in raters)}
    whole = run.frame()[IMAGE]
    for rater, frame in frames.items():
        mine = frame[[*IMAGE, "outside"]].rename(columns={"outside": rater})
        whole = whole.merge(mine, on=IMAGE, how="left")
    lines = [f"Krippendorff's alpha (yes and no): {tables.alpha(alpha(whole, [*frames]))}"]
    if len(raters) == 1:
        lines = ["one rater: there is no agreement between raters to report"]
    return lines + [
        f"{_plain(first)} and {_plain(second)} {tables.agreement(two)}"
        for first, second, two in run.agreements()
        if HUMAN in (first, second) or first.startswith(f"{HUMAN}:")
    ]


def _decided(run: Run) -> str:
    images = run.frame(HUMAN).drop_duplicates(["image", "text"])["outside"]
    return f"Of the labelled images, {int((images == 1).sum())} are a yes, " + (
        f"{int((images == 0).sum())} a no, and {int(images.isna().sum())} have no such majority or "
        "are unsure."
    )


def _plain(name: str) -> str:
    """A rater's name as text of a Markdown page."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", " ".join(name.split()))


def _table(heads: list[str], rows: Any) -> str:
    return str(tabulate(rows, heads, tablefmt="pipe", disable_numparse=True))
