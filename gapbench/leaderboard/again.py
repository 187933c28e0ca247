"""What the rows of a submission cannot prove: its run, its images and its verdicts, made again."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from gapbench.engines.local import work
from gapbench.judges.base import Judge
from gapbench.judges.lists import answers_in
from gapbench.judges.own import MODES, OwnJudge
from gapbench.judges.parts import PartsJudge
from gapbench.leaderboard.answers import Asked, answers_of, asked_of
from gapbench.leaderboard.expected import Installed, Wanted, rows_of, told_by
from gapbench.leaderboard.submission import (
    QUESTIONS,
    REFUSED,
    Card,
    Submission,
    read,
    records,
    sha256,
)
from gapbench.leaderboard.verify import named
from gapbench.models import load_model, model_names
from gapbench.models.base import Drawing, Model
from gapbench.runs.drawn import as_png
from gapbench.runs.folder import RunFolder
from gapbench.runs.run import Run, open_run
from gapbench.types import Answer, GapbenchError

TOLERANCE: Final = 0.05
"""By how much p_yes may differ when it is asked for again: other hardware rounds otherwise."""
_Row = Mapping[str, Any]
_Rows = Mapping[tuple[Any, ...], _Row]


def check_again(
    folder: Path,
    run: Path | None = None,
    rejudge: int = 0,
    redraw: int = 0,
    model: str | None = None,
    draw: int = 0,
) -> list[str]:
    """What is wrong with a submission that `check` has passed, each in a line: by the run folder
    that it was made from, whose records are held against every row; in the verdicts of `rejudge` of
    the run's images, asked for again of the model and of those judges that need no weights; in
    `redraw` images, drawn again.

    `model` is what --model takes where the card names no model that can be loaded; `draw` seeds the
    choice. Raises GapbenchError where the submission's files or the weights are other ones.
    """
    submission, installed = read(folder), Installed()
    card, wanted = submission.card, installed.rows(submission.card)
    # In the order of `wanted`, as `submit` writes them.
    by_key = {_key(row): row for row in records(submission.rows)}
    rows = {key: by_key[key] for key in wanted}
    opened = None if run is None else open_run(run, tasks=[*card.tasks], own=MODES[card.own])
    pictures = None if opened is None else opened.folder
    faults = [] if opened is None else _against(opened, submission, rows, installed)
    if not faults and (rejudge or redraw):
        made = _model(folder, card, model)
        made.load()
        chance = random.Random(draw)  # noqa: S311 (no secret)
        images = sorted({key[:3] for key in wanted})
        if pictures is not None:
            drawn = sorted({key[:3] for key, row in rows.items() if row["image"] != REFUSED})
            chosen = set(chance.sample(drawn, min(rejudge, len(drawn))))
            asked = {key: row for key, row in rows.items() if key[:3] in chosen}
            faults += _judged_again(made, pictures, card, asked, wanted)
            faults += _asked_again(made, pictures, submission, chosen, installed)
        chosen = set(chance.sample(images, min(redraw, len(images))))
        asked = {key: row for key, row in rows.items() if key[:3] in chosen and key[3] == "own"}
        faults += _drawn_again(made, pictures, asked, wanted)
    return [f"{folder}: {fault}" for fault in faults]


def _key(row: _Row) -> tuple[Any, ...]:
    return (row["task"], row["prompt"], row["sample"], row["role"], row["judge"])


def _against(run: Run, submission: Submission, rows: _Rows, installed: Installed) -> list[str]:
    """The card and each row against what the run says."""
    card, answers = submission.card, submission.answers
    for field, value in told_by(run, card.tasks).items():
        if getattr(card, field) != value:
            return [f"{field} is {getattr(card, field)!r}, {run.path} has {value!r}"]
    try:
        for said in rows_of(run, card, installed):
            if other := _other(rows[_key(said)], said, run.path):
                return [f"{named(_key(said))}: {other}"]
    except GapbenchError as error:
        return [str(error)]
    if answers is None:
        return []
    given = {_key(row): row for row in records(answers)}
    try:
        for task in dict.fromkeys(answers["task"]):
            for said in answers_of(run, card, installed, task):
                if other := _other(given[_key(said)], said, run.path):
                    return [f"{QUESTIONS}: {named(_key(said))}: {other}"]
    except GapbenchError as error:
        return [f"{QUESTIONS}: {run.path} does not have all these answers: {error}"]
    return []


def _other(row: _Row, said: _Row, run: Path) -> str | None:
    """The first column in which a row is not what the run says."""
    for column, value in said.items():
        if _plain(row[column]) != _plain(value):
            return f"{column} is {row[column]!r}, {run} has {value!r}"
    return None


def _plain(value: Any) -> Any:
    return None if value == "" or value != value else value


def _model(folder: Path, card: Card, given: str | None) -> Model:
    """The submission's model, with the recipe of its card."""
    if given is None and card.model not in model_names():
        # Never a class that somebody else's card names.
        raise GapbenchError(f"{folder}: give --model, no model is called {card.model!r} here")
    name, dtype = given or card.model, card.dtype or "auto"
    made = load_model(name, dtype=dtype)
    changes = {key: value for key, value in card.recipe.items() if made.recipe.get(key) != value}
    if changes:
        made = load_model(name, dtype=dtype, recipe=changes)
    if others := {k: v for k, v in made.recipe.items() if card.recipe.get(k) != v}:
        raise GapbenchError(
            f"{folder}: {name} draws otherwise here: {others}; the submission was drawn with "
            f"{card.recipe}"
        )
    if made.fingerprint != card.fingerprint:
        raise GapbenchError(
            f"{name} here has other weights than {folder} was made with; give --model the "
            "checkpoint that its card names"
        )
    if made.pair != card.pair:
        raise GapbenchError(f"{folder}: its card says pair: {card.pair}, {name} is another")
    return made


def _judged_again(
    model: Model,
    folder: RunFolder,
    card: Card,
    rows: _Rows,
    wanted: Mapping[Any, Wanted],
) -> list[str]:
    own: Judge = OwnJudge(model, MODES[card.own])
    faults = []
    for key, row in rows.items():
        judge = own if row["judge"] == card.own else wanted[key].judge
        if judge is None or judge.needs:
            continue
        [answer] = judge.judge([folder.image(row["image"])], [wanted[key].asked])
        if not _agree(answer, row):
            faults.append(
                f"{named(key)}: says {_told(row['verdict'], row['p_yes'])}, asked again "
                f"{_told(answer.verdict, answer.p_yes)}"
            )
    return faults


def _asked_again(
    model: Model,
    folder: RunFolder,
    submission: Submission,
    images: Collection[tuple[Any, ...]],
    installed: Installed,
) -> list[str]:
    """As `_judged_again`, of the answers to questions about some images."""
    if submission.answers is None:
        return []
    wanted = dict[tuple[Any, ...], Asked]()
    for task in dict.fromkeys(submission.answers["task"]):
        wanted |= asked_of(submission.card, installed, task, "")
    faults = []
    for row in records(submission.answers):
        key = _key(row)
        asks = wanted[key[:4]]
        whole = asks.judge
        if key[:3] not in images or (whole is not None and (whole.needs or not asks.parts)):
            continue
        judge = OwnJudge(model, "questions") if whole is None else PartsJudge(whole)
        [answer] = judge.judge([folder.image(row["image"])], [asks.prompt])
        if not _alike(answers_in(answer.text), answers_in(row["text"])):
            said = f"says {row['text']}, asked again {answer.text}"
            faults.append(f"{QUESTIONS}: {named(key)}: {said}")
    return faults


def _alike(one: Sequence[float | None] | None, other: Sequence[float | None] | None) -> bool:
    """Whether the answers have the same probabilities."""
    if one is None or other is None or len(one) != len(other):
        return one == other
    return all(
        a == b or (a is not None and b is not None and abs(a - b) <= TOLERANCE)
        for a, b in zip(one, other, strict=True)
    )


def _drawn_again(
    model: Model,
    folder: RunFolder | None,
    rows: _Rows,
    wanted: Mapping[Any, Wanted],
) -> list[str]:
    where = "task {}, prompt {}, sample {}"
    refused = [key for key, row in rows.items() if row["image"] == REFUSED]
    faults = [
        f"{where.format(*key[:3])}: the model does not refuse to draw it"
        for key in refused
        if model.refuses(wanted[key].prompt.text) is None
    ]

    def draw(keys: Sequence[tuple[Any, ...]]) -> list[Drawing]:
        texts = [wanted[key].prompt.text for key in keys]
        return model.generate(texts, [wanted[key].seed for key in keys])

    def compare(keys: Sequence[tuple[Any, ...]], drawings: Sequence[Drawing]) -> None:
        for key, drawing in zip(keys, drawings, strict=True):
            digest = rows[key]["image"]
            if sha256(as_png(drawing.image)) != digest and not (
                folder and _same(folder.image(digest), drawing.image)
            ):
                faults.append(f"{where.format(*key[:3])}: drawn again it is another image")

    rest = [key for key in rows if key not in refused]
    work(rest, "auto", draw, compare, lambda _: None, model.batches)
    return faults


def _same(one: Image.Image, other: Image.Image) -> bool:
    """Whether two images have the same pixels: another zlib packs them into other bytes."""
    return np.array_equal(np.asarray(one), np.asarray(other.convert("RGB")))


def _agree(answer: Answer, row: _Row) -> bool:
    given = None if row["verdict"] != row["verdict"] else int(row["verdict"])
    if answer.p_yes is None or row["p_yes"] != row["p_yes"]:
        return answer.verdict == given
    return abs(answer.p_yes - row["p_yes"]) <= TOLERANCE and (
        answer.verdict == given or abs(answer.p_yes - 0.5) <= TOLERANCE
    )


def _told(verdict: float | None, p_yes: float | None) -> str:
    said = "nothing" if verdict is None or verdict != verdict else f"{verdict:.0f}"
    return said if p_yes is None or p_yes != p_yes else f"{said} (p_yes {p_yes:.3f})"
