"""The run folder: append-only records, content-addressed images, one writer.

run.json           identity, versions, machine
plan.json          the prompts, samples and judges that commands asked for
generations.jsonl  one Generation a line
verdicts.jsonl     one Verdict a line
refusals.jsonl     one Refusal a line
                   (each record of these has a checksum; gapbench 0.1.0 wrote none)
failures.json      what failed in the latest command, by stage and reason
images/ab/<sha256>.png, tokens/ab/<sha256>.npy, latents/ab/<sha256>.safetensors
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
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, TypeAdapter, ValidationError

from gapbench.files import (
    append_lines,
    as_json,
    drop_torn_line,
    read_lines,
    read_object,
    sweep,
    with_checksum,
    without_checksum,
    write_atomic,
    write_json,
)
from gapbench.runs import drawn
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
_SHA: Final = re.compile(r"[0-9a-f]{64}")
_LATER: Final = {"latents"}
"""Fields that a record has only where there is something in them."""

_FILES: Final = {
    Generation: "generations.jsonl",
    Verdict: "verdicts.jsonl",
    Refusal: "refusals.jsonl",
}
_RECORDS: Final[dict[type, TypeAdapter[Any]]] = {kind: TypeAdapter(kind) for kind in _FILES}
R = TypeVar("R", Generation, Verdict, Refusal)
T = TypeVar("T")
U = TypeVar("U")


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
        self._known: dict[type, tuple[tuple[int, int], list[Any]]] = {}

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

        Raises GapbenchError where another process writes, and for a record or a file of tokens that
        was altered.
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
                for name in _FILES.values():
                    drop_torn_line(self.path / name)
                sweep(self.path.rglob("*.part"))
            for generation in self.generations().values():
                if generation.tokens is not None:
                    self.tokens(generation.tokens)
            yield
        finally:
            lock.release()

    def generations(self) -> dict[tuple[str, int], Generation]:
        """(prompt text, seed) -> Generation; only those whose files are there."""
        known = {(g.prompt, g.seed): g for g in self._read(Generation)}
        return {k: g for k, g in known.items() if all(p.exists() for p in self.places(g))}

    def refusals(self) -> dict[tuple[str, int], Refusal]:
        """(prompt text, seed) -> Refusal, the latest."""
        return {(r.prompt, r.seed): r for r in self._read(Refusal)}

    def verdicts(self) -> dict[tuple[str, str, str], Verdict]:
        """(image, question, judge fingerprint) -> Verdict."""
        return {(v.image, v.question, v.fingerprint): v for v in self._read(Verdict)}

    def append(self, records: Iterable[Generation | Verdict | Refusal]) -> None:
        """Add records: flushed and on disk when this returns."""
        rows: dict[str, list[dict[str, Any]]] = {}
        for record in records:
            row = {k: _valid(v) for k, v in asdict(record).items() if k not in _LATER or v}
            rows.setdefault(_FILES[type(record)], []).append(with_checksum(row))
        with saying_how_to_resume(self.path):
            for name, new in rows.items():
                append_lines(self.path / name, new)

    def add_image(self, image: Image.Image) -> str:
        """Store an image as PNG; returns the sha256 of its bytes."""
        return self._add("images", ".png", drawn.as_png(image))

    def add_images(self, images: Sequence[Image.Image]) -> list[str]:
        """Store images as `add_image` does, on all cores: one packs 14 of 384 x 384 pixels a
        second, and a GPU draws more."""
        return on_all_cores(self.add_image, images)

    def add_tokens(self, tokens: NDArray[np.int32]) -> str:
        """Store token ids; returns the sha256 of the file's bytes."""
        return self._add("tokens", ".npy", drawn.of_tokens(tokens))

    def add_latents(self, latents: NDArray[np.float32]) -> str:
        """Store latents; returns the sha256 of the file's bytes."""
        return self._add("latents", ".safetensors", drawn.of_latents(latents))

    def image(self, sha256: str) -> Image.Image:
        """An image by its digest, RGB. Raises GapbenchError where it is missing or broken."""
        return self.stored(sha256).open()

    def stored(self, sha256: str) -> drawn.Stored:
        """An image by its digest, which is read when it is opened."""
        return drawn.Stored(sha256, self.image_path(sha256), partial(self.image_bytes, sha256))

    def image_bytes(self, sha256: str) -> bytes:
        """An image's file by its digest. Raises GapbenchError where it is missing or altered."""
        return self._get(self.image_path(sha256), sha256)

    def tokens(self, sha256: str) -> NDArray[np.int32]:
        """Token ids by the digest of their file. Raises GapbenchError where it is missing, altered
        or of another form."""
        place = self.tokens_path(sha256)
        return drawn.tokens_in(place, self._get(place, sha256))

    def latents(self, sha256: str) -> NDArray[np.float32]:
        """(channels, height, width) latents, as `tokens` gives token ids."""
        place = self.latents_path(sha256)
        return drawn.latents_in(place, self._get(place, sha256))

    def image_path(self, sha256: str) -> Path:
        return self._place("images", ".png", sha256)

    def tokens_path(self, sha256: str) -> Path:
        return self._place("tokens", ".npy", sha256)

    def latents_path(self, sha256: str) -> Path:
        return self._place("latents", ".safetensors", sha256)

    def places(self, of: Generation) -> list[Path]:
        """The files of an image: its pixels, tokens and latents."""
        more = ((self.tokens_path, of.tokens), (self.latents_path, of.latents))
        return [self.image_path(of.image), *(path(digest) for path, digest in more if digest)]

    def note_speed(self, fingerprint: str, rows: int, seconds: float) -> None:
        """Add to the rows that a model or a judge worked off, and the seconds that they took."""
        known = recorded_speeds(self.path)
        rows_before, seconds_before = worked_off(known, fingerprint)
        self.write(SPEEDS, known | {fingerprint: [rows_before + rows, seconds_before + seconds]})

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

    def _place(self, kind: str, suffix: str, sha256: str) -> Path:
        if not _SHA.fullmatch(sha256):
            raise GapbenchError(f"{self.path}: {sha256!r} is no sha256; the records were edited")
        return self.path / kind / sha256[:2] / (sha256 + suffix)

    def _add(self, kind: str, suffix: str, data: bytes) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        place = self._place(kind, suffix, sha256)
        if not place.exists():
            with saying_how_to_resume(self.path):
                place.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(place, data)
        return sha256

    def _get(self, place: Path, sha256: str) -> bytes:
        try:
            data = place.read_bytes()
        except OSError as error:
            raise GapbenchError(
                f"{place} is missing; run the same command again to make it anew"
            ) from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise GapbenchError(
                f"{place} was altered (its sha256 is not its name); delete it and run the same "
                "command again"
            )
        return data

    def _read(self, kind: type[R]) -> list[R]:
        """The records of a file, which is read again only where it changed."""
        file = self.path / _FILES[kind]
        there = file.stat() if file.exists() else None
        state = (there.st_size, there.st_mtime_ns) if there else (0, 0)
        if kind not in self._known or self._known[kind][0] != state:
            self._known[kind] = (state, list(self.each(kind)))
        return self._known[kind][1]

    def each(self, kind: type[R]) -> Iterator[R]:
        """The records of a kind as they stand in their file, one at a time."""
        names = {field.name for field in fields(kind)}

        def record(raw: Any) -> R:
            values = without_checksum(raw)
            if not isinstance(values, dict):
                raise ValueError("it is no JSON object")
            if set(values) | _LATER != names | _LATER:
                raise ValueError(f"keys {sorted(set(values) ^ names)} are missing or unknown")
            if values.get("verdict") not in (0, 1, None):
                raise ValueError(f"the verdict is {values['verdict']}, not 1 or 0")
            try:
                read: R = _RECORDS[kind].validate_json(json.dumps(values), strict=True)
            except ValidationError as error:
                raise ValueError(explain(error)) from error
            return read

        return read_lines(self.path / _FILES[kind], record)


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
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


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


def on_all_cores(call: Callable[[T], U], items: Sequence[T]) -> list[U]:
    """What `call` gives for each item, in order, from as many threads as there are cores."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(call, items))


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
