"""People's labels as verdicts."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from PIL import Image

from gapbench.judges.base import Judge
from gapbench.types import Answer, GapbenchError, Prompt

LABELS: Final = {
    "yes": 1, "1": 1, "1.0": 1, "true": 1, "no": 0, "0": 0, "0.0": 0, "false": 0, "unsure": None,
}  # fmt: skip
"""Spreadsheets write TRUE and FALSE; pandas writes 1.0 and 0.0 where another row has no label."""
NEEDED: Final = ("image", "label")
SEPARATORS: Final = ",;\t"
"""Of a CSV file: spreadsheets of most of Europe write semicolons."""
_SHA: Final = re.compile(r"[0-9a-f]{64}")


class HumanJudge(Judge):
    """Labels from a file: CSV with a header, or one JSON object a line where its name ends in
    .jsonl.

    Columns: `image`, the name of the image's file in the run folder (images/ab/<sha256>.png), with
    or without its ending; `label`, one of yes, no, unsure, 1, 0, true, false; optionally `prompt`,
    the prompt's text (without it the label holds for every prompt of that image), `rater`, and
    `time`. Others are ignored. A CSV file is separated by commas, semicolons or tabs, and its
    header may have capitals and blanks. A label with a time replaces what its rater said before;
    `gapbench label` writes one beside each. A last line of JSON that a crash tore is left out.
    The verdict is the one that more than half of an image's raters gave; without such a majority,
    and where that is "unsure", the judge abstains. A rater who labels an image with and without its
    prompt counts by the former.
    Raises GapbenchError, with file and line, for a broken line, an unknown label, or a rater who
    contradicts himself.
    """

    gpus = None
    any_prompt = False

    def __init__(self, argument: str | None = None, device: str = "auto") -> None:  # noqa: ARG002
        if not argument:
            raise GapbenchError("judge human needs a file of labels: --judge human:LABELS.csv")
        file = Path(argument)
        try:
            data = file.read_bytes()
            text = data.decode("utf-8-sig")
        except OSError as error:
            raise GapbenchError(
                f"--judge human:{file}: the file cannot be read ({error.strerror})"
            ) from error
        except UnicodeDecodeError as error:
            raise GapbenchError(f"{file}: not UTF-8 text ({error})") from error
        self.name = f"human-{file.stem}"
        self.fingerprint = hashlib.sha256(b"human-1 " + data).hexdigest()
        self._labels: dict[tuple[str, str], dict[str, int | None]] = {}
        """(image, prompt text or "") -> rater -> label."""
        rows = _json_lines(file, text) if file.suffix == ".jsonl" else _table(file, text)
        for place, row in rows:
            self._add(place, row)

    def _add(self, place: str, row: dict[str, str]) -> None:
        image = row["image"].strip().lower().removesuffix(".png")
        label = row["label"].strip().lower()
        rater, prompt = row.get("rater") or "", row.get("prompt") or ""
        if not _SHA.fullmatch(image):
            raise GapbenchError(f"{place}: image {row['image']!r} is not a sha256")
        if label not in LABELS:
            raise GapbenchError(
                f"{place}: label {row['label']!r} is not one of {', '.join(LABELS)}"
            )
        known = self._labels.setdefault((image, prompt), {})
        if row.get("time"):
            known[rater] = LABELS[label]
        elif known.setdefault(rater, LABELS[label]) != LABELS[label]:
            raise GapbenchError(
                f"{place}: {f'rater {rater!r}' if rater else 'the file'} already gave image "
                f"{image[:12]}... another label; name the raters apart or remove one"
            )

    def judge(self, images: Sequence[Image.Image], prompts: Sequence[Prompt]) -> list[Answer]:
        """Abstains: labels go by an image's file, which pixels alone do not name."""
        reason = "labels are found by the image's digest; call judge_digests"
        return [Answer(verdict=None, reason=reason) for _ in zip(images, prompts, strict=True)]

    def judge_digests(self, digests: Sequence[str], prompts: Sequence[Prompt]) -> list[Answer]:
        none = Answer(verdict=None, reason="no label")
        return [
            self.answer(digest, prompt.text) or none
            for digest, prompt in zip(digests, prompts, strict=True)
        ]

    def raters(self) -> list[str]:
        """Everyone who gave a label, in order of the first."""
        return list(dict.fromkeys(rater for votes in self._labels.values() for rater in votes))

    def answer(self, image: str, text: str, rater: str | None = None) -> Answer | None:
        """What the raters, or one of them, say about an image, by the sha256 of its file, and a
        prompt; None without a label."""
        votes = {**self._labels.get((image, ""), {}), **self._labels.get((image, text), {})}
        if rater is not None:
            votes = {name: vote for name, vote in votes.items() if name == rater}
        if not votes:
            return None
        counts = Counter(votes.values())
        said = ", ".join(
            f"{counts[value]} {word}"
            for word, value in (("yes", 1), ("no", 0), ("unsure", None))
            if counts[value]
        )
        for verdict in (1, 0):
            if 2 * counts[verdict] > len(votes):
                return Answer(verdict=verdict, text=said)
        return Answer(verdict=None, text=said, reason=f"no majority: {said}")


def _table(file: Path, text: str) -> Iterator[tuple[str, dict[str, str]]]:
    # The separator that gives the header most columns is the file's.
    header = text.partition("\n")[0]
    separator = max(SEPARATORS, key=header.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, delimiter=separator)
    try:
        reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or ()]
        missing = [name for name in NEEDED if name not in reader.fieldnames]
        if missing:
            raise GapbenchError(
                f"{file}:1: no column {missing[0]!r}; the columns, separated by {separator!r}, are "
                f"{', '.join(reader.fieldnames) or 'missing'}"
            )
        for row in reader:
            place = f"{file}:{reader.line_num}"
            if None in row or None in row.values():
                raise GapbenchError(
                    f"{place}: broken line, it does not have the {len(reader.fieldnames)} fields "
                    "of the header"
                )
            yield place, row
    except csv.Error as error:
        # The reader counts lines up to the last whole one.
        raise GapbenchError(f"{file}:{reader.line_num + 1}: broken line ({error})") from error


def _json_lines(file: Path, text: str) -> Iterator[tuple[str, dict[str, str]]]:
    lines = text.split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{file}:{number}"
        try:
            row: Any = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                return  # no newline after it: the write was cut short
            raise GapbenchError(f"{place}: broken line, not JSON ({error})") from error
        if not isinstance(row, dict):
            raise GapbenchError(f"{place}: broken line, not a JSON object")
        for name in NEEDED:
            if name not in row:
                raise GapbenchError(f"{place}: broken line, no {name!r}")
        yield place, {key: "" if value is None else str(value) for key, value in row.items()}
