"""Checking a submission: every figure anew from its rows, every row against the tasks."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gapbench.judges.own import NAMES
from gapbench.leaderboard.expected import Installed, Key, Wanted
from gapbench.leaderboard.submission import SEED, Card, Submission, figures, name_of, read
from gapbench.tasks.content import cluster
from gapbench.types import GapbenchError, counted
from gapbench.verdict import RULES, parse

if TYPE_CHECKING:
    import pandas as pd

    from gapbench.judges.base import Judge

TEST_MODELS: Final = frozenset({"janus-mini"})
TOLERANCE: Final = 0.05
"""By how much p_yes may differ when it is asked for again: other hardware rounds otherwise."""


def check(folder: Path, name: str | None = None, installed: Installed | None = None) -> list[str]:
    """What is wrong with a submission, each in a line; empty if nothing is.

    `name` is what its folder should be called, where that is not its name. Raises GapbenchError
    where a task's prompts are not here, so that nothing can be said.
    """
    installed = installed or Installed()
    try:
        submission = read(folder)
    except GapbenchError as error:
        return [str(error)]
    faults = [*_card(submission.card, name or folder.resolve().name, installed)]
    if not faults:  # rows are held against the card
        faults = [*_rows(submission.rows, installed.rows(submission.card))]
    if not faults:
        faults = [*_rates(submission)]
    return [f"{folder}: {fault}" for fault in faults]


def _card(card: Card, name: str, installed: Installed) -> Iterator[str]:
    if card.name != name_of(card.model):
        yield f"the card names {card.model} {card.name}, not {name_of(card.model)}"
    if card.name != name:
        yield f"the card says {card.name}, the folder is called {name}"
    if card.seed != SEED:
        yield f"the run's seed is {card.seed}, a leaderboard takes {SEED}"
    if not card.test_model and (card.model in TEST_MODELS or not card.checkpoints):
        yield f"{card.name} is a test model (or names no checkpoint) and is not marked as one"
    if card.own not in NAMES.values():
        yield f"own verdicts are by {card.own!r}, not by {' or '.join(NAMES.values())}"
    elif card.own_fingerprint not in {f"{card.own}-{r}-{card.fingerprint}" for r in (1, RULES)}:
        yield "the own verdicts' fingerprint is not of the model's"
    for task, given in card.tasks.items():
        here = installed.card(task, given.samples)
        if given.version != here.version:
            yield f"task {task} has version {given.version}, installed is {here.version}"
        elif given.prompts != here.prompts:
            yield f"task {task} {given.version}: other prompts than the installed ones"
        elif given.judges != here.judges:
            yield f"task {task}: its judges are not the task's own"
        least = installed.task(task).samples
        if given.samples < least:
            yield f"task {task}: {counted(given.samples, 'image')} a prompt, it takes {least}"
        for category in given.judges.keys() & here.judges.keys():
            judge = installed.judge(installed.task(task), category)
            if judge.name not in card.judges:
                yield f"judge {judge.name} of task {task} has no fingerprint in the card"
            elif not judge.needs and card.judges[judge.name] != judge.fingerprint:
                yield f"judge {judge.name} of task {task} is not the one that is installed"
            else:
                continue
            break


def _rows(rows: pd.DataFrame, wanted: dict[Key, Wanted]) -> Iterator[str]:
    """Completeness first: counts that are wrong make all that follows meaningless."""
    records = rows.to_dict("records")
    keys = [(r["task"], r["prompt"], r["sample"], r["role"], r["judge"]) for r in records]
    twice = [key for key, count in Counter(keys).items() if count > 1]
    there = set(keys)
    missing = [key for key in wanted if key not in there]
    unknown = [key for key in dict.fromkeys(keys) if key not in wanted]
    for what, wrong in (("given twice", twice), ("missing", missing), ("unknown", unknown)):
        if wrong:
            yield f"{len(wrong)} verdicts are {what}, {_named(wrong[0])} first"
    if twice or missing or unknown:
        return
    said: dict[tuple[str, str, str], Any] = {}
    images: dict[tuple[str, int], str] = {}
    for key, row in zip(keys, records, strict=True):
        for fault in _row(row, wanted[key]):
            yield f"{_named(key)}: {fault}"
            return
        text = wanted[key].prompt.text
        if images.setdefault((text, row["seed"]), row["image"]) != row["image"]:
            yield f"{_named(key)}: two images of one prompt and seed"
            return
        asked = (row["image"], row["question"], row["fingerprint"])
        answer = [None if value != value else value for value in (row["verdict"], row["p_yes"])]
        if said.setdefault(asked, answer) != answer:
            yield f"{_named(key)}: two verdicts of one judge on one image and question"
            return


def _row(row: dict[Any, Any], wanted: Wanted) -> Iterator[str]:
    expected = {
        "category": wanted.prompt.category,
        "tier": wanted.prompt.tier,
        "cluster": cluster(wanted.prompt),
        "seed": wanted.seed,
        "question": wanted.question,
        "fingerprint": wanted.fingerprint,
    }
    for field, value in expected.items():
        if value is not None and row[field] != value:
            yield f"{field} is {row[field]!r}, not {value!r}"
    if len(row["image"]) != 64 or not set(row["image"]) <= set("0123456789abcdef"):
        yield f"image {row['image'][:70]!r} is no sha256"
    verdict, p_yes = row["verdict"], row["p_yes"]
    abstained = verdict != verdict
    if abstained and not row["reason"]:
        yield "no verdict, and no reason"
    if p_yes == p_yes and not 0 <= p_yes <= 1:
        yield f"p_yes is {p_yes}"
    if row["role"] not in ("own", "mismatched") or abstained:
        return
    if row["judge"] == NAMES["logits"] and p_yes == p_yes and verdict != int(p_yes > 0.5):
        yield f"verdict {verdict:.0f} with p_yes {p_yes}"
    if row["judge"] == NAMES["logits"] and p_yes != p_yes and not row["reply"]:
        yield "a verdict by probability without one"
    if row["judge"] == NAMES["text"] and parse(row["reply"] or "").verdict != verdict:
        yield f"verdict {verdict:.0f} is not what the reply says"


def _rates(submission: Submission) -> Iterator[str]:
    made = json.loads(json.dumps(figures(submission.rows, submission.card.scales)))
    if set(made) != set(submission.rates):
        yield f"rates.json has figures of {', '.join(submission.rates)}, not of {', '.join(made)}"
        return
    for judge, expected in made.items():
        given = submission.rates[judge]
        if not isinstance(given, list) or not all(isinstance(rate, dict) for rate in given):
            yield f"rates.json, {judge}: not a list of figures"
            return
        # A submission lacks the metrics that were added after it was made.
        names = {str(rate.get("metric")) for rate in given}
        expected = [rate for rate in expected if rate["metric"] in names]
        if not given or len(given) != len(expected):
            yield f"rates.json, {judge}: {len(given)} figures, not {len(expected)}"
            return
        for new, old in zip(expected, given, strict=True):
            if set(old) != set(new):
                yield f"rates.json, {judge}: a figure has other fields"
                return
            for field, value in new.items():
                if not _same(value, old[field]):
                    yield (
                        f"rates.json, {new['metric']} of {new['name']} by {judge}: {field} is "
                        f"{old[field]}, the rows give {value}"
                    )


def _same(new: Any, old: Any) -> bool:
    numbers = isinstance(new, int | float) and isinstance(old, int | float)
    return math.isclose(new, old, rel_tol=1e-6, abs_tol=1e-9) if numbers else new == old


def check_images(
    folder: Path, run: Path, count: int, model: str | None = None, draw: int = 0
) -> list[str]:
    """What is wrong with the verdicts of `count` random images of a submission, asked for again of
    its model and of those of its tasks' judges that are here whole; `run` is a run folder with the
    images.

    `model` is what --model takes where the card names no model that can be loaded; `draw` seeds the
    choice. Raises GapbenchError where the submission's files or the weights are other ones.
    """
    from gapbench.judges.own import OwnJudge
    from gapbench.models import load_model
    from gapbench.runs.run import open_run

    submission, opened, installed = read(folder), open_run(run), Installed()
    card = submission.card
    made = load_model(model or card.model, dtype=card.dtype or "auto")
    if made.fingerprint != card.fingerprint:
        raise GapbenchError(
            f"{model or card.model} here has other weights than {folder} was made with; give "
            "--model the checkpoint that its card names"
        )
    made.load()
    mode = next(mode for mode, name in NAMES.items() if name == card.own)
    judges: dict[str, Judge] = {card.own: OwnJudge(made, mode)}
    for task, part in card.tasks.items():
        for category in part.judges:
            judge = installed.judge(installed.task(task), category)
            if not judge.needs and card.judges[judge.name] == judge.fingerprint:
                judges[judge.name] = judge
    wanted, drawn = installed.rows(card), opened.folder.generations()
    images = sorted({(r.task, r.prompt, r.sample) for r in submission.rows.itertuples()})
    chosen = set(random.Random(draw).sample(images, min(count, len(images))))  # noqa: S311
    faults = []
    for row in submission.rows.to_dict("records"):
        key = (row["task"], row["prompt"], row["sample"], row["role"], row["judge"])
        if key[:3] not in chosen or row["role"] == "other":
            continue
        generation = drawn.get((wanted[key].prompt.text, row["seed"]))
        if generation is None or generation.image != row["image"]:
            faults.append(f"{folder}: {_named(key)}: {run} has another image, or none")
        elif row["judge"] in judges:
            picture = opened.folder.image(row["image"])
            [answer] = judges[row["judge"]].judge([picture], [wanted[key].asked])
            if not _agree(answer.verdict, answer.p_yes, row):
                faults.append(
                    f"{folder}: {_named(key)}: says {_told(row['verdict'], row['p_yes'])}, asked "
                    f"again {_told(answer.verdict, answer.p_yes)}"
                )
    return faults


def _agree(verdict: int | None, p_yes: float | None, row: dict[Any, Any]) -> bool:
    given = None if row["verdict"] != row["verdict"] else int(row["verdict"])
    if p_yes is None or row["p_yes"] != row["p_yes"]:
        return verdict == given
    return abs(p_yes - row["p_yes"]) <= TOLERANCE and (
        verdict == given or abs(p_yes - 0.5) <= TOLERANCE
    )


def _told(verdict: float | None, p_yes: float | None) -> str:
    said = "nothing" if verdict is None or verdict != verdict else f"{verdict:.0f}"
    return said if p_yes is None or p_yes != p_yes else f"{said} (p_yes {p_yes:.3f})"


def _named(key: tuple[Any, ...]) -> str:
    task, prompt, sample, role, judge = key
    return f"task {task}, prompt {prompt}, sample {sample}, {role} verdict of {judge}"
