"""The run folder: append-only records, content-addressed images, one writer.

run.json           identity, versions, machine
plan.json          the prompts, samples and judges that commands asked for
generations.jsonl  one Generation a line
verdicts.jsonl     one Verdict a line
refusals.jsonl     one Refusal a line
                   (each record of these has a checksum; gapbench 0.1.0 wrote none)
failures.json      what failed in the latest command, by stage and reason
images/ab/<sha256>.png, tokens/ab/<sha256>.npy, latents/ab/<sha256>.safetensors
                   (or packed: gapbench.runs.blobs)
index/             what need not be parsed again (gapbench.runs.records)
results.json, sheets/
labels.jsonl       one label of a person a line, which `gapbench label` appends
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from functools import partial
from pathlib import Path
from threading import RLock
from typing import Any, Final

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel

from gapbench.files import (
    append_lines,
    as_json,
    drop_torn_line,
    line_of,
    on_all_cores,
    read_object,
    sweep,
    with_checksum,
    without_checksum,
    write_atomic,
    write_json,
)
from gapbench.models.base import Drawing
from gapbench.runs import drawn
from gapbench.runs.blobs import Blobs
from gapbench.runs.drawn import Kept, Written
from gapbench.runs.records import FILES, LATER, Lines, R
from gapbench.runs.settings import Shard
from gapbench.tasks.spec import explain
from gapbench.types import GapbenchError, Generation, Refusal, Verdict

FORMAT: Final = 1
_LONGEST: Final = 48
"""Characters of a folder's name that say what was changed of its model."""
_LONGEST_NAME: Final = 190
"""Characters of it that name the model; file systems take 255 in all."""
SPEEDS: Final = "speeds.json"
"""Fingerprint of a model or a judge -> [rows, seconds] in all: how fast it was here."""
_SUFFIXES: Final = {"images": ".png", "tokens": ".npy", "latents": ".safetensors"}
_FIELDS: Final = {"images": "image", "tokens": "tokens", "latents": "latents"}
"""Folder of files -> the field of a Generation that names one."""


class _About(BaseModel, strict=True):
    """What run.json says of a model beside its identity."""

    fingerprint: str | None = None
    given: str | None = None
    dtype: str | None = None
    device: str | None = None
    pair: bool = False
    recipe: dict[str, Any] = {}
    changed: dict[str, Any] = {}
    gpu: dict[str, str] | None = None
    versions: dict[str, str] | None = None


class _Meta(BaseModel, strict=True):
    """The form of run.json."""

    model: str
    identity: dict[str, Any]
    model_about: _About = _About()
    started: str | None = None
    versions: dict[str, str] = {}


class RunFolder:
    """One run's files: `create` opens a folder for an identity, `open` one that exists. Methods
    raise GapbenchError where something cannot be written."""

    def __init__(self, path: Path, meta: dict[str, Any]) -> None:
        self.path, self.meta = path, meta
        self._busy = RLock()  # of a thread that reads or writes records, or changes a file
        self._lines: dict[type, Lines[Any]] = {kind: Lines(path, kind) for kind in FILES}
        self._blobs = {kind: Blobs(path / kind, suffix) for kind, suffix in _SUFFIXES.items()}

    @classmethod
    def create(
        cls,
        out: str | Path,
        model: str,
        identity: dict[str, Any],
        about: Any,
        changed: Mapping[str, object] | None = None,
        shard: Shard | None = None,
    ) -> RunFolder:
        """The folder of an identity under `out`, made if there is none.

        `changed` and `shard` are in its name; `about` (versions, machine) is recorded when it is
        made. Raises GapbenchError where it holds another identity or another format.
        """
        path = folder_for(out, model, identity, changed, shard)
        if (path / "run.json").exists():
            folder = cls.open(path)
            if folder.meta["identity"] != identity:
                raise GapbenchError(
                    f"{path} holds a run of another identity (weights, recipe or seed); "
                    "move it away or choose another --out"
                )
            return folder
        meta = {"format": FORMAT, "model": model, "identity": identity, **about}
        with saying_how_to_resume(path):
            path.mkdir(parents=True, exist_ok=True)
            write_json(path / "run.json", with_checksum(meta))
        return cls(path, meta)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run. Raises GapbenchError where there is no run, or one of another format."""
        file = path / "run.json"
        if not file.exists():
            raise GapbenchError(f"{file} is not there; is {path} a run folder? See `gapbench runs`")
        raw = read_object(file)
        if raw.get("format") != FORMAT:
            raise GapbenchError(
                f"{path} has run format {raw.get('format')}, this gapbench reads {FORMAT}; "
                "use the gapbench that wrote it, or run again into another --out"
            )
        try:
            meta = without_checksum(raw)
            _Meta.model_validate(meta)
        except ValueError as error:
            raise GapbenchError(f"{file}: broken ({explain(error)}); run again") from error
        return cls(path, meta)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep a second writer out, and remove what a crash left: a torn last line, parts of files.

        Raises GapbenchError where another process writes.
        """
        lock = FileLock(self.path / ".lock")
        with saying_how_to_resume(self.path):
            try:
                lock.acquire(timeout=0)
            except Timeout as error:
                raise GapbenchError(
                    f"{self.path} is being written by another gapbench; wait for it to end"
                ) from error
        try:
            with saying_how_to_resume(self.path):
                sweep(_unfinished(self.path))
                for blobs in self._blobs.values():
                    blobs.settle()
                for lines in self._lines.values():
                    drop_torn_line(lines.file)
            yield
            with saying_how_to_resume(self.path):
                for lines in self._lines.values():
                    lines.save()
        finally:
            lock.release()

    def generations(self) -> Mapping[tuple[str, int], Generation]:
        """(prompt text, seed) -> Generation; only those whose files are there."""
        with self._busy:
            known = self._lines[Generation].read()
        columns = ((kind, known.column(field)) for kind, field in _FIELDS.items())
        there = np.all([self._blobs[kind].there(c.tolist()) for kind, c in columns], axis=0)
        return known if there.all() else known.only(there)

    def refusals(self) -> Mapping[tuple[str, int], Refusal]:
        """(prompt text, seed) -> Refusal, the latest."""
        with self._busy:
            return self._lines[Refusal].read()

    def verdicts(self) -> Mapping[tuple[str, str, str], Verdict]:
        """(image, question, judge fingerprint) -> Verdict."""
        with self._busy:
            return self._lines[Verdict].read()

    def append(self, records: Iterable[Generation | Verdict | Refusal]) -> None:
        """Add records: flushed and on disk when this returns."""
        rows: dict[type, list[str]] = {}
        for record in records:
            values = {field.name: getattr(record, field.name) for field in fields(record)}
            row = {k: _valid(v) for k, v in values.items() if k not in LATER or v}
            rows.setdefault(type(record), []).append(line_of(row))
        with self._busy, saying_how_to_resume(self.path):
            for kind, new in rows.items():
                append_lines(self._lines[kind].file, new)
                self._lines[kind].added(len(new))

    @property
    def packed(self) -> bool:
        """Whether images go into tar files."""
        return self._blobs["images"].packed

    def pack(self) -> None:
        """From now on, pack images, tokens and latents into tar files."""
        with saying_how_to_resume(self.path):
            for blobs in self._blobs.values():
                blobs.pack()

    def add(self, rows: Sequence[Drawing | Written]) -> list[Kept]:
        """Store the files of images, but for those that are written: on disk when this returns.
        Images are encoded on all cores: one encodes 14 of 384 x 384 pixels a second, and a GPU
        draws more."""
        drawings = [row for row in rows if isinstance(row, Drawing)]
        columns: dict[str, Sequence[bytes | None]] = {
            "images": on_all_cores(drawn.as_png, [d.image for d in drawings]),
            "tokens": [None if d.tokens is None else drawn.of_tokens(d.tokens) for d in drawings],
            "latents": [
                None if d.latents is None else drawn.of_latents(d.latents) for d in drawings
            ],
        }
        kept = zip(*(self._add(kind, files) for kind, files in columns.items()), strict=True)
        made = (Kept(image or "", *more) for image, *more in kept)
        return [row.files if isinstance(row, Written) else next(made) for row in rows]

    def add_image(self, image: Image.Image) -> str:
        """Store an image alone; returns the sha256 of its bytes."""
        return self.add([Drawing(image)])[0].image

    def take(self, source: RunFolder, records: Iterable[Generation | Verdict | Refusal]) -> None:
        """Have the files of another folder's records, by links where that is possible."""
        listed = [record for record in records if isinstance(record, Generation)]
        with saying_how_to_resume(self.path):
            for kind, field in _FIELDS.items():
                digests = filter(None, (getattr(record, field) for record in listed))
                self._blobs[kind].take(source._blobs[kind], digests)

    def take_images(self, source: RunFolder, digests: Iterable[str]) -> None:
        """Have some images of another folder."""
        with saying_how_to_resume(self.path):
            self._blobs["images"].take(source._blobs["images"], digests)

    def lacking(self, images: Iterable[str]) -> list[str]:
        """Those of some images that are not there, each once."""
        return [each for each in dict.fromkeys(images) if each not in self._blobs["images"]]

    def bytes_of_an_image(self) -> float:
        """Bytes of an image's files, on average."""
        sizes = {kind: blobs.sizes() for kind, blobs in self._blobs.items()}
        return sum(map(sum, sizes.values())) / max(1, len(sizes["images"]))

    def image(self, sha256: str) -> Image.Image:
        """An image by its digest, RGB. Raises GapbenchError where it is missing or broken."""
        return self.stored(sha256).open()

    def stored(self, sha256: str) -> drawn.Stored:
        """An image by its digest, which is read when it is opened."""
        return drawn.Stored(sha256, self.image_path(sha256), partial(self.image_bytes, sha256))

    def image_bytes(self, sha256: str) -> bytes:
        """An image's file by its digest. Raises GapbenchError where it is missing or altered."""
        return self._blobs["images"].get(sha256)

    def tokens(self, sha256: str) -> NDArray[np.int32]:
        """Token ids by the digest of their file. Raises GapbenchError where it is missing, altered
        or of another form."""
        blobs = self._blobs["tokens"]
        return drawn.tokens_in(blobs.path(sha256), blobs.get(sha256))

    def latents(self, sha256: str) -> NDArray[np.float32]:
        """(channels, height, width) latents, as `tokens` gives token ids."""
        blobs = self._blobs["latents"]
        return drawn.latents_in(blobs.path(sha256), blobs.get(sha256))

    def image_path(self, sha256: str) -> Path:
        """Where an image has a file of its own, unless it is packed."""
        return self._blobs["images"].path(sha256)

    def note_speed(self, fingerprint: str, rows: int, seconds: float) -> None:
        """Add to the rows that a model or a judge worked off, and the seconds that they took."""
        with self._busy:
            known = recorded_speeds(self.path)
            before, took = worked_off(known, fingerprint)
            self.write(SPEEDS, known | {fingerprint: [before + rows, took + seconds]})

    def update(self, name: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Replace an object in a JSON file of the folder, {} where there is none, by another."""
        with self._busy:
            known = read_object(self.path / name) if (self.path / name).exists() else {}
            if (new := change(known)) != known:
                self.write(name, new)

    def write(self, name: str, value: Any) -> None:
        """Replace a JSON file of the folder whole."""
        self.write_bytes(name, as_json(value))

    def write_bytes(self, name: str, data: bytes) -> None:
        """Replace a file of the folder, or of a folder in it, whole."""
        file = self.path / name
        with saying_how_to_resume(self.path):
            file.parent.mkdir(exist_ok=True)
            write_atomic(file, data)

    def read(self, name: str) -> Any:
        return read_object(self.path / name)

    def each(self, kind: type[R]) -> Iterator[R]:
        """The records of a kind as they stand in their file, one at a time."""
        return self._lines[kind].each()

    def _add(self, kind: str, files: Sequence[bytes | None]) -> list[str | None]:
        with saying_how_to_resume(self.path):
            digests = iter(self._blobs[kind].add([data for data in files if data is not None]))
        return [None if data is None else next(digests) for data in files]


def _unfinished(folder: Path, depth: int = 2) -> Iterator[Path]:
    """Parts of files and folders in a folder, which may have a million others two folders down."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(".part"):
                yield Path(entry.path)
            elif depth and entry.is_dir(follow_symlinks=False):
                yield from _unfinished(Path(entry.path), depth - 1)


def recorded_speeds(folder: Path) -> dict[str, Any]:
    """What SPEEDS of a run folder holds; nothing where it is broken, as only estimates need it."""
    with suppress(GapbenchError):
        return read_object(folder / SPEEDS)
    return {}


def worked_off(speeds: dict[str, Any], fingerprint: str) -> tuple[int, float]:
    """The rows of a model or a judge, and their seconds, by what SPEEDS holds."""
    match speeds.get(fingerprint):
        case [int(rows), float(seconds)] if rows > 0 and 0 <= seconds < math.inf:
            return rows, seconds
    return 0, 0.0


def _valid(value: Any) -> Any:
    """A text of somebody's adapter without half surrogate pairs, which could not be read back."""
    if not isinstance(value, str) or value.isascii():
        return value
    return value.encode("utf-8", "backslashreplace").decode()


def folder_for(
    out: str | Path,
    model: str,
    identity: dict[str, Any],
    changed: Mapping[str, object] | None = None,
    shard: Shard | None = None,
) -> Path:
    """Where a run of this identity lives: <model>-<what was changed of it>-<first 8 hex digits of
    the identity's hash>, such as janus-pro-guidance4-883b363c or janus-pro-shard3of16-883b363c;
    where a run of gapbench 0.1 lies without the middle part, there."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    told = {**(changed or {}), **({"seed": identity["seed"]} if identity.get("seed") else {})}
    words = [
        f"{key * (key != 'dtype')}{f'{value:g}' if isinstance(value, float) else value}"
        for key, value in told.items()
    ]
    name, more = (re.sub(r"[^A-Za-z0-9._-]+", "-", text) for text in (model, "-".join(words)))
    plain = Path(out) / f"{name[:_LONGEST_NAME]}-{digest[:8]}"
    if shard is None and (not more or (plain / "run.json").exists()):
        return plain
    part = shard and f"shard{shard.number}of{shard.of}"
    parts = (name[:_LONGEST_NAME], more[:_LONGEST], part, digest[:8])
    return plain.with_name("-".join(filter(None, parts)))


@contextmanager
def saying_how_to_resume(path: Path) -> Iterator[None]:
    """Turn an operating-system error at a run folder into a GapbenchError."""
    try:
        yield
    except OSError as error:
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        raise GapbenchError(
            f"{path}: {'the disk is full' if full else error}; what was computed is kept, "
            f"{'free some space' if full else 'mend it'} and run the same command again"
        ) from error
