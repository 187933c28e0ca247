"""What a model says to a harness's texts, kept while they are asked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from gapbench.files import Journal
from gapbench.models.base import Model
from gapbench.types import GapbenchError, Unfinished, counted

Images = Sequence[Sequence[Image.Image]]


class Answers:
    """Asks `model`. With a folder, answers are kept in a file there as they come, and what the file
    has is not asked again: a command of the same tasks that failed at a question goes on from
    it."""

    def __init__(self, model: Model, folder: Path | None = None, tasks: Sequence[str] = ()) -> None:
        self._model = model
        of = hashlib.sha256(json.dumps([model.fingerprint, *tasks]).encode()).hexdigest()
        self._file = folder and folder / f"answers-{of[:12]}.jsonl"

    @cached_property
    def _journal(self) -> Journal | None:
        if self._file is None:
            return None
        journal = Journal(self._file)
        for answer in journal.there.values():
            scored = isinstance(answer, list) and [*map(type, answer)] == [float, bool]
            if not (isinstance(answer, str) or scored):
                raise GapbenchError(f"{self._file}: {str(answer)[:40]!r} is no answer; remove it")
        return journal

    def complete(
        self, images: Images, texts: Sequence[str], tokens: int, until: Sequence[str]
    ) -> list[str]:
        """As `Model.complete`."""

        def ask(these: Sequence[int]) -> list[str]:
            shown, said = [images[n] for n in these], [texts[n] for n in these]
            return self._model.complete(shown, said, tokens, until)

        return self._asked(ask, images, [[text, tokens, *until] for text in texts])

    def score(
        self, images: Images, texts: Sequence[str], endings: Sequence[str]
    ) -> list[tuple[float, bool]]:
        """As `Model.score`."""

        def ask(these: Sequence[int]) -> list[tuple[float, bool]]:
            shown, said = [images[n] for n in these], [texts[n] for n in these]
            found = self._model.score(shown, said, [endings[n] for n in these])
            return [(float(total), bool(best)) for total, best in found]

        rows = [list(pair) for pair in zip(texts, endings, strict=True)]
        return [(total, best) for total, best in self._asked(ask, images, rows)]

    def drop(self) -> None:
        """Remove the file, once the harness has written what it makes of the answers."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)

    def _asked(
        self,
        ask: Callable[[Sequence[int]], Sequence[Any]],
        images: Images,
        rows: Sequence[list[Any]],
    ) -> list[Any]:
        if self._journal is None:
            return list(ask(range(len(rows))))
        keys = [_key(row, own) for row, own in zip(rows, images, strict=True)]
        left = [place for place, key in enumerate(keys) if key not in self._journal.there]
        try:
            said = dict(enumerate(ask(left))) if left else {}
        except Unfinished as stop:
            self._journal.add({keys[left[place]]: row for place, row in stop.done.items()})
            kept = counted(len(self._journal.there), "answer")
            raise GapbenchError(
                f"{stop}; run the same command again, which has kept {kept}"
            ) from stop
        self._journal.add({keys[left[place]]: row for place, row in said.items()})
        return [self._journal.there[key] for key in keys]


def _key(row: list[Any], images: Sequence[Image.Image]) -> str:
    shown = [
        hashlib.sha256(f"{image.mode} {image.size} ".encode() + image.tobytes()).hexdigest()
        for image in images
    ]
    return hashlib.sha256(json.dumps([*row, shown]).encode()).hexdigest()
