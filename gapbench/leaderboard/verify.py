"""Checking a submission: every figure anew from its rows, every row against the tasks."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gapbench.judges.own import NAMES
from gapbench.leaderboard import answers
from gapbench.leaderboard.expected import Installed, Key, Wanted
from gapbench.leaderboard.parquet import MOST_ROWS
from gapbench.leaderboard.submission import (
    KEY,
    REFUSED,
    SEED,
    SHA256,
    Card,
    Submission,
    figures,
    name_of,
    read,
    records,
    same,
)
from gapbench.models import load_model
from gapbench.models.base import PAIR
from gapbench.models.registry import MODELS
from gapbench.types import SHARE, GapbenchError, counted
from gapbench.verdict import RULES, parse

if TYPE_CHECKING:
    import pandas as pd

    from gapbench.judges.base import Judge

ANSWER: Final = ("verdict", "p_yes", "mass", "score", "reply", "reason")
"""The columns that hold what a judge said."""
DTYPES: Final = ("float64", "float32", "bfloat16", "float16")
TEST_MODELS: Final = frozenset({"janus-mini"})
REPEATED: Final = 0.1
"""Share of a test model's images that may be equal to another one: janus-mini has few tokens and
draws 4 % twice. A model of thousands of tokens draws none."""


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
    card, rows = submission.card, submission.rows
    faults = [*_card(card, name or folder.resolve().name, installed)]
    # Before a list of what must be there is made: a card may ask for billions.
    if not faults and (count := installed.count(card)) > MOST_ROWS:
        faults = [f"its card asks for {count:,} verdicts, more than {MOST_ROWS:,}"]
    if not faults:  # rows are held against the card
        faults = [*_rows(rows, installed.rows(card), card)]
    if not faults:
        faults = [*_rates(submission), *answers.faults(submission, installed)]
    return [f"{folder}: {fault[:500]}" for fault in faults]


def _card(card: Card, name: str, installed: Installed) -> Iterator[str]:
    if card.name != name_of(card.model) and card.name in MODELS:
        yield f"the card calls {card.model} {card.name}, the name of another model"
    if card.name != name:
        yield f"the card says {card.name}, the folder is called {name}"
    if card.seed != SEED:
        yield f"the run's seed is {card.seed}, a leaderboard takes {SEED}"
    if not card.test_model and (card.model in TEST_MODELS or not card.checkpoints):
        yield f"{card.name} is a test model (or names no checkpoint) and is not marked as one"
    if not card.test_model and card.fingerprint in _test_fingerprints():
        yield f"{card.name} has the weights of a test model, and another name"
    entry = MODELS.get(card.model)
    if entry is not None and entry.needs:
        needs = {role: need.repo for role, need in entry.needs.items()}
        if {origin.role: origin.repo for origin in card.checkpoints} != needs:
            yield f"{card.model} has its weights from {', '.join(needs.values())}, not from others"
        if card.pair != entry.pair:
            yield f"{card.model} is {'' if entry.pair else 'not '}{PAIR}"
    versions = range(1, RULES + 1)
    if card.own_fingerprint not in {f"{card.own}-{r}-{card.fingerprint}" for r in versions}:
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
            elif card.scales.get(judge.name, SHARE) != judge.scale:
                yield f"judge {judge.name} of task {task} has scores of another scale"
            else:
                continue
            break


@cache
def _test_fingerprints() -> frozenset[str]:
    """Of the test models in each dtype."""
    return frozenset(
        load_model(name, dtype=dtype).fingerprint for name in TEST_MODELS for dtype in DTYPES
    )


def _rows(rows: pd.DataFrame, wanted: dict[Key, Wanted], card: Card) -> Iterator[str]:
    """Completeness first: counts that are wrong make all that follows meaningless."""
    keys = [*zip(*(rows[part] for part in (*KEY, "role", "judge")), strict=True)]
    twice = [key for key, count in Counter(keys).items() if count > 1]
    missing = wanted.keys() - set(keys)
    unknown = [key for key in dict.fromkeys(keys) if key not in wanted]
    for what, wrong in (("given twice", twice), ("missing", missing), ("unknown", unknown)):
        if wrong:
            yield f"{len(wrong)} verdicts are {what}, {named(min(wrong))} first"
    if twice or missing or unknown:
        return
    said: dict[tuple[str, str, str], tuple[Any, ...]] = {}
    images: dict[tuple[str, int], str] = {}
    refused: dict[tuple[str, int], str] = {}
    for key, row in zip(keys, records(rows), strict=True):
        for fault in _row(row, wanted[key]):
            yield f"{named(key)}: {fault}"
            return
        drawing = (wanted[key].prompt.text, row["seed"])
        if images.setdefault(drawing, row["image"]) != row["image"]:
            yield f"{named(key)}: two images of one prompt and seed"
            return
        if row["image"] == REFUSED:
            if refused.setdefault(drawing, row["reason"]) != row["reason"]:
                yield f"{named(key)}: an image was refused for two reasons"
                return
            continue
        asked = (row["image"], row["question"], row["fingerprint"])
        answer = tuple(None if row[part] != row[part] else row[part] for part in ANSWER)
        if said.setdefault(asked, answer) != answer:
            yield f"{named(key)}: two verdicts of one judge on one image and question"
            return
    if Counter(refused.values()) != card.refused:
        yield f"{len(refused)} images are refused, by other reasons or counts than the card's"
    images = {drawing: image for drawing, image in images.items() if image != REFUSED}
    repeated = len(images) - len(set(images.values()))
    if repeated > (REPEATED * len(images) if card.test_model else 0):
        image = Counter(images.values()).most_common(1)[0][0]
        (one, first), (other, second) = [key for key, value in images.items() if value == image][:2]
        yield (
            f"{repeated} images are equal to one of another prompt or seed, first {one!r} (seed "
            f"{first}) and {other!r} (seed {second})"
        )


def _row(row: dict[str, Any], wanted: Wanted) -> Iterator[str]:
    for field in ("category", "tier", "cluster", "seed", "question", "fingerprint"):
        expected = getattr(wanted.prompt if field in ("category", "tier") else wanted, field)
        if expected is not None and row[field] != expected:
            yield f"{field} is {row[field]!r}, not {expected!r}"
    verdict, p_yes, mass = row["verdict"], row["p_yes"], row["mass"]
    abstained = verdict != verdict
    if row["image"] == REFUSED:
        if row["reply"] or any(row[part] == row[part] for part in ANSWER[:4]):
            yield "a verdict on an image that the model refused to draw"
    elif not re.fullmatch(SHA256, row["image"]):
        yield f"image {row['image'][:70]!r} is no sha256"
    if abstained and not row["reason"]:
        yield "no verdict, and no reason"
    for name, value in (("p_yes", p_yes), ("mass", mass)):
        if value == value and not 0 <= value <= 1 + 1e-6:
            yield f"{name} is {value}"
    if row["role"] in ("own", "mismatched"):
        yield from _own(row)
    else:
        yield from _score(row, wanted.judge)


def _own(row: dict[str, Any]) -> Iterator[str]:
    """What is wrong with a verdict of the model's own beside its probability or its reply."""
    verdict, p_yes, reply = row["verdict"], row["p_yes"], row["reply"]
    if row["score"] == row["score"]:
        yield f"a score of {row['score']}; own verdicts have none"
    abstained = verdict != verdict
    if p_yes == p_yes:
        if row["judge"] != NAMES["logits"]:
            yield f"p_yes is {p_yes}; a verdict in words has none"
        elif abstained or verdict != int(p_yes > 0.5):
            yield f"verdict {verdict:.0f} with p_yes {p_yes}"
    elif abstained and reply and "cut" not in row["reason"] and parse(reply).verdict is not None:
        yield "no verdict, and the reply states one"
    elif not abstained and not reply:
        yield "a verdict without a probability or a reply"
    elif not abstained and parse(reply).verdict != verdict:
        yield f"verdict {verdict:.0f} is not what the reply says"


def _score(row: dict[str, Any], judge: Judge | None) -> Iterator[str]:
    """What is wrong with the score of an outside judge; without the judge only the widest scale can
    be held against it."""
    verdict, score, who = row["verdict"], row["score"], row["judge"]
    low, high = (-100.0, 100.0) if judge is None else (judge.scale.low, judge.scale.high)
    threshold = None if judge is None else judge.threshold
    if score == score and not low <= score <= high:
        yield f"score is {score}, {who} gives {low:g} to {high:g}"
    elif score == score and judge is not None and not judge.scores:
        yield f"a score of {score}; {who} gives none"
    elif threshold is not None and verdict == verdict and verdict != int(score >= threshold):
        yield f"verdict {verdict:.0f} with score {score}, {who} accepts from {threshold:g} on"


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
        # A submission older than a figure lacks all of it; the board computes it from the rows.
        known = [rate.get("metric") for rate in given]
        expected = [rate for rate in expected if rate["metric"] in known]
        if not given or len(given) != len(expected):
            yield f"rates.json, {judge}: {len(given)} figures, not {len(expected)}"
            return
        for new, old in zip(expected, given, strict=True):
            if set(old) != set(new):
                yield f"rates.json, {judge}: a figure has other fields"
                return
            for field, value in new.items():
                if not same(value, old[field]):
                    yield (
                        f"rates.json, {new['metric']} of {new['name']} by {judge}: {field} is "
                        f"{old[field]}, the rows give {value}"
                    )


def named(key: tuple[Any, ...]) -> str:
    """A verdict in words."""
    task, prompt, sample, role, judge = key
    return f"task {task}, prompt {prompt}, sample {sample}, {role} verdict of {judge}"
