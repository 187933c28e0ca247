"""A submission's files: results/<name>/ with card.json, verdicts.parquet and rates.json; and, where
its run has answers to questions, questions.parquet and questions.json.

Prompts are named by their ids and questions by their sha256: the texts are the task's, under its
license, and whoever verifies has the task.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gapbench.files import as_json, read_object
from gapbench.fix.leaks import Leaks
from gapbench.judges.lists import geometric
from gapbench.leaderboard.parquet import MOST_ROWS, read_rows
from gapbench.leaderboard.skills import by_skill, record
from gapbench.tasks.spec import explain
from gapbench.types import SHARE, GapbenchError, Rates, Scale

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

CARD: Final = "card.json"
VERDICTS: Final = "verdicts.parquet"
RATES: Final = "rates.json"
QUESTIONS: Final = "questions.parquet"
SKILLS: Final = "questions.json"
ASKED: Final = (QUESTIONS, SKILLS)
"""Answers to questions about the images, and the figures by skill; both or neither."""
RANKED: Final = "ranked"
"""In rates.json: the figures by the tasks' own judges, which the leaderboard ranks by."""
KEY: Final = ["task", "prompt", "sample"]
NAME: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}"
LARGEST: Final = {
    CARD: 1_000_000, VERDICTS: 50_000_000, RATES: 10_000_000, QUESTIONS: 50_000_000,
    SKILLS: 1_000_000,
}  # fmt: skip
"""Bytes that the files of a submission may have."""
SEED: Final = 0
"""The run's seed that every submission has, so that nobody picks a lucky one."""
SHA256: Final = "^[0-9a-f]{64}$"
MISMATCHED: Final = "far"
"""The mismatched pairs that every submission has."""
REFUSED: Final = ""
"""The `image` of rows whose image the model refused to draw; their `reason` says why."""
Role = Literal["own", "mismatched", "outside", "partner", "other"]
"""Of a verdict: the model's own and its own on a mismatched pair, the task's own judge's and its
own on that pair, another outside judge's."""


ONE_LINE: Final = r"^[^\x00-\x1f\x7f-\x9f]*$"
Text = Annotated[str, Field(max_length=1000, pattern=ONE_LINE)]
"""Words of a card, without control characters."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Origin(_Strict):
    """Where weights are: a hub repository at a commit, or "gapbench" at the file's sha256."""

    role: Text
    repo: Text
    revision: str = Field(pattern="^([0-9a-f]{40}|[0-9a-f]{64})$")


class TaskCard(_Strict):
    """What a task was: `prompts` is the sha256 of all that was asked, `judges` by category."""

    version: Text
    prompts: str = Field(pattern=SHA256)
    samples: int = Field(ge=1, le=MOST_ROWS)
    judges: dict[Text, Text] = Field(min_length=1, max_length=200)


class Training(_Strict):
    """What `gapbench fix` trained a model on, by its fix.json: `prompts` as given, and what they
    have in common with test prompts, None where that was not looked at."""

    base: Text
    method: Text
    prompts: list[Text] = Field(max_length=1000)
    leaks: Leaks | None


class Card(_Strict):
    """What was measured, with what, by whom.

    `name` is the folder's, `model` as it was given to --model; `own` is the own verdicts' judge;
    `checkpoints` is empty for a test model that nobody can fetch; `files` are sha256;
    `scales` are those of the judges whose scores are no shares; `refused` counts by reason the
    images that the model refused to draw; `training` is None where the model was not found with a
    fix.json, which says nothing of what it was trained on.
    """

    format: Literal[1] = 1
    name: str = Field(pattern=f"^{NAME}$")
    model: Text
    fingerprint: Text
    checkpoints: list[Origin] = Field(max_length=20)
    test_model: bool
    pair: bool
    dtype: Text | None
    recipe: dict[Text, Text | bool | int | float | None] = Field(max_length=100)
    seed: int = Field(ge=0, lt=2**64)
    own: Literal["self", "self-text"]
    own_fingerprint: Text
    judges: dict[Text, Text] = Field(max_length=100)
    tasks: dict[Text, TaskCard] = Field(min_length=1, max_length=100)
    versions: dict[Text, Text] = Field(max_length=100)
    contact: str = Field(max_length=200, pattern=ONE_LINE)
    files: dict[Text, Text] = Field(max_length=4)
    scales: dict[Text, Scale] = Field(default={}, max_length=100)
    refused: dict[Text, Annotated[int, Field(ge=1, le=MOST_ROWS)]] = Field({}, max_length=10_000)
    training: Training | None = None


@dataclass(frozen=True)
class Submission:
    """A submission as read: `rows` has one row a verdict, with the columns of `schema`; `answers`
    one row for all answers of the model or a judge about an image, and `skills` their figures, None
    where the submission has none."""

    folder: Path
    card: Card
    rows: pd.DataFrame
    rates: dict[str, Any]
    answers: pd.DataFrame | None = None
    skills: dict[str, Any] | None = None


def schema(file: str = VERDICTS) -> pa.Schema:
    """The columns of verdicts.parquet, or of questions.parquet; seeds have up to 63 bits.

    In questions.parquet `question` is the sha256 of the list as it is asked, `skills` says as a
    JSON list what each question asks about, and `text` holds the probability of each right answer
    (`gapbench.judges.lists.RIGHT`).
    """
    import pyarrow as pa

    text, real = pa.string(), pa.float64()
    if file == QUESTIONS:
        return pa.schema(
            [
                *((name, text) for name in ("task", "prompt")),
                ("sample", pa.int32()),
                *((name, text) for name in ("image", "role", "judge", "fingerprint", "question")),
                ("skills", text),
                ("verdict", pa.int8()),
                ("mass", real),
                *((name, text) for name in ("text", "reason")),
            ]
        )
    return pa.schema(
        [
            *((name, text) for name in ("task", "category", "tier", "prompt", "cluster")),
            ("sample", pa.int32()),
            ("seed", pa.int64()),
            *((name, text) for name in ("image", "role", "judge", "fingerprint", "question")),
            ("verdict", pa.int8()),
            *((name, real) for name in ("p_yes", "mass", "score")),
            *((name, text) for name in ("reply", "reason")),
        ]
    )


def name_of(model: str) -> str:
    """The folder's name of a model's submission. Raises GapbenchError where it makes none."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", model).strip("-.")
    if not re.fullmatch(NAME, name):
        raise GapbenchError(f"model {model!r} makes no name for a folder; rename it")
    return name


def sha256(text: str | bytes) -> str:
    """Hex sha256 of bytes, or of a text as UTF-8."""
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()


def contents(
    card: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    answers: Sequence[Mapping[str, Any]] = (),
) -> dict[str, bytes]:
    """The files of a submission, from a card that lacks `files`, the rows, and the answers to
    questions where there are any."""
    data: dict[str, bytes] = {}

    def write(file: str, rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.Table.from_pylist([dict(row) for row in rows], schema=schema(file))
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        data[file] = buffer.getvalue()
        made: pd.DataFrame = table.to_pandas(ignore_metadata=True)
        return made

    verdicts = write(VERDICTS, rows)
    data[RATES] = as_json(figures(verdicts, card.get("scales", {})))
    if answers:
        asked = by_skill(verdicts, write(QUESTIONS, answers))
        data[SKILLS] = as_json(record(asked))
    card = {**card, "files": {name: sha256(content) for name, content in data.items()}}
    return {CARD: as_json(card), **data}


def figures(rows: pd.DataFrame, scales: Mapping[str, Scale]) -> dict[str, Any]:
    """rates.json: the rates by the tasks' own judges and by each other judge."""
    from dataclasses import asdict

    others = sorted(set(rows.loc[rows["role"] == "other", "judge"]))
    return {
        name: [asdict(rate) for rate in rates_of(frame(rows, scales, judge))]
        for name, judge in [(RANKED, None), *((name, name) for name in others)]
    }


def rates_of(images: pd.DataFrame) -> list[Rates]:
    """The rates of a `frame`: as in a run's table, refused images are left out."""
    from gapbench.metrics import rates

    return rates(images[images["image"] != REFUSED])


def frame(
    rows: pd.DataFrame, scales: Mapping[str, Scale], judge: str | None = None
) -> pd.DataFrame:
    """A submission's rows as one an image, as `gapbench.metrics.rates` takes it, with `image`
    beside; against the tasks' own judges or another one of the submission's. For a rank, a refused
    image counts as one that the outside judge rejects.

    Raises GapbenchError where an image has two verdicts of one judge.
    """

    def of(role: Role, name: str | None = None) -> pd.DataFrame:
        mine = rows[rows["role"] == role]
        mine = mine if name is None else mine[mine["judge"] == name]
        again = mine.duplicated(KEY)
        if again.any():
            task, prompt, sample = mine.loc[again, KEY].iloc[0]
            raise GapbenchError(
                f"{task}, prompt {prompt}, sample {sample}: two {role} verdicts of one image"
            )
        return mine

    images = of("own")[[*KEY, "category", "tier", "cluster", "image", "verdict", "p_yes"]]
    images = images.rename(columns={"verdict": "own"})
    outside = of("outside") if judge is None else of("other", judge)
    outside = outside[[*KEY, "judge", "verdict", "score", "reply"]]
    outside = outside.rename(columns={"verdict": "outside"})
    outside["score"] = outside["score"].fillna(outside["outside"])
    outside["geometric"] = outside.pop("reply").map(geometric, "ignore").astype("float64")
    crossed = of("mismatched")[[*KEY, "verdict"]].rename(columns={"verdict": "mismatched"})
    partner = of("partner")[[*KEY, "verdict"]].rename(columns={"verdict": "partner"})
    crossed = crossed.merge(partner, on=KEY, how="left")
    crossed = crossed[crossed.pop("partner") != 1].assign(mismatched_asked=True)
    made = images.merge(outside, on=KEY, how="left" if judge is None else "inner")
    made = made.merge(crossed, on=KEY, how="left")
    made["scale"] = [Scale(*scales.get(name, SHARE)) for name in made.pop("judge")]
    made["mismatched_asked"] = made["mismatched_asked"].eq(True)
    made.loc[made["image"] == REFUSED, "outside"] = 0
    return made.astype(dict.fromkeys(("own", "outside", "score", "mismatched"), "float64"))


def read(folder: Path) -> Submission:
    """A submission's files. Raises GapbenchError, naming the file, where one is missing, too large,
    a link, not the one that the card names by sha256, or of another form."""
    if not folder.is_dir():
        raise GapbenchError(f"{folder}: no such folder; a submission is results/<name>")
    _bytes(folder / CARD)
    try:
        card = Card.model_validate(read_object(folder / CARD))
    except ValidationError as error:
        raise GapbenchError(f"{folder / CARD}: {explain(error)}") from error
    asked = any(name in card.files or os.path.lexists(folder / name) for name in ASKED)
    data = {n: _bytes(folder / n) for n in (VERDICTS, RATES, *(ASKED if asked else ()))}
    wanted = {name: sha256(content) for name, content in data.items()}
    if card.files != wanted:
        wrong = next((n for n in wanted if card.files.get(n) != wanted[n]), CARD)
        raise GapbenchError(f"{folder / wrong}: its sha256 is not the one in {CARD}")
    rows = read_rows(folder / VERDICTS, data.pop(VERDICTS), schema())
    rates = read_object(folder / RATES)
    if not asked:
        return Submission(folder, card, rows, rates)
    answers = read_rows(folder / QUESTIONS, data.pop(QUESTIONS), schema(QUESTIONS))
    return Submission(folder, card, rows, rates, answers, read_object(folder / SKILLS))


def _bytes(file: Path) -> bytes:
    """A file of a submission. Raises GapbenchError where it is missing, a link or too large."""
    if file.is_symlink() or not file.is_file():
        raise GapbenchError(f"{file}: missing, or no plain file")
    if file.stat().st_size > LARGEST[file.name]:
        raise GapbenchError(f"{file}: larger than {LARGEST[file.name]:,} bytes")
    return file.read_bytes()


def same(new: Any, old: Any) -> bool:
    """Whether a figure is the one that the rows give."""
    numbers = isinstance(new, int | float) and isinstance(old, int | float)
    return math.isclose(new, old, rel_tol=1e-6, abs_tol=1e-9) if numbers else new == old


def records(rows: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Each row by column, one at a time."""
    for values in rows.itertuples(index=False, name=None):
        yield dict(zip(rows.columns, values, strict=True))


def submissions(results: Path) -> list[Submission]:
    """All submissions of a results folder, by name; hidden folders are unfinished ones."""
    if not results.is_dir():
        return []
    folders = (f for f in results.iterdir() if f.is_dir() and not f.name.startswith("."))
    return [read(folder) for folder in sorted(folders)]
