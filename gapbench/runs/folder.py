"""The run folder: append-only records, content-addressed images, one writer.

run.json           identity, versions, machine
plan.json          the prompts, samples and judges the latest command asked for
generations.jsonl  one Generation a line
verdicts.jsonl     one Verdict a line
refusals.jsonl     one Refusal a line
failures.json      what failed in the latest command, by stage and reason
images/ab/<sha256>.png, tokens/ab/<sha256>.npy
rates.json, sheets/
labels.jsonl       one label of a person a line, which `gapbench label` appends
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from PIL import Image

from gapbench.files import (
    append_lines,
    as_json,
    drop_torn_line,
    read_lines,
    read_object,
    write_atomic,
    write_json,
)
from gapbench.types import GapbenchError, Generation, Refusal, Verdict

FORMAT: Final = 1
_SHA: Final = re.compile(r"[0-9a-f]{64}")

_FILES: Final = {
    Generation: "generations.jsonl",
    Verdict: "verdicts.jsonl",
    Refusal: "refusals.jsonl",
}
R = TypeVar("R", Generation, Verdict, Refusal)
T = TypeVar("T")
U = TypeVar("U")


class RunFolder:
    """One run's files.

    `create` opens a folder for an identity, `open` one that exists. Every method that writes turns
    an operating-system error into a GapbenchError that says how to go on.
    """

    def __init__(self, path: Path, meta: dict[str, Any]) -> None:
        self.path, self.meta = path, meta

    @classmethod
    def create(cls, out: str | Path, model: str, identity: dict[str, Any], about: Any) -> RunFolder:
        """The folder of an identity under `out`, made if there is none.

        `about` (versions, machine) is recorded when the folder is made. Raises GapbenchError where
        the folder holds another identity or another format.
        """
        path = folder_for(out, model, identity)
        if (path / "run.json").exists():
            folder = cls.open(path)
            if folder.meta["identity"] != identity:
                raise GapbenchError(
                    f"{path} holds a run of another identity (weights, recipe or seed); "
                    "move it away or choose another --out"
                )
            return folder
        meta = {"format": FORMAT, "model": model, "identity": identity, **about}
        with _saying_how_to_resume(path):
            path.mkdir(parents=True, exist_ok=True)
            write_json(path / "run.json", meta)
        return cls(path, meta)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run. Raises GapbenchError where there is no run, or one of another format."""
        file = path / "run.json"
        if not file.exists():
            raise GapbenchError(f"{file}: cannot be read; is {path} a run folder?")
        meta = read_object(file)
        if meta.get("format") != FORMAT:
            raise GapbenchError(
                f"{path} has run format {meta.get('format')}, this gapbench reads {FORMAT}; "
                "use the gapbench that wrote it, or run again into another --out"
            )
        for key in ("model", "identity"):
            if key not in meta:
                raise GapbenchError(f"{path / 'run.json'}: {key!r} is missing; the file was edited")
        return cls(path, meta)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep a second writer out, and drop a last line that a crash tore."""
        lock = FileLock(self.path / ".lock")
        with _saying_how_to_resume(self.path):
            try:
                lock.acquire(timeout=0)
            except Timeout as error:
                raise GapbenchError(
                    f"{self.path} is being written by another gapbench; wait for it to end"
                ) from error
        try:
            with _saying_how_to_resume(self.path):
                for name in _FILES.values():
                    drop_torn_line(self.path / name)
            yield
        finally:
            lock.release()

    def generations(self) -> dict[tuple[str, int], Generation]:
        """(prompt text, seed) -> Generation; only those whose files are there."""
        generations = {(g.prompt, g.seed): g for g in self._read(Generation)}
        return {k: g for k, g in generations.items() if self._complete(g)}

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
            rows.setdefault(_FILES[type(record)], []).append(asdict(record))
        with _saying_how_to_resume(self.path):
            for name, new in rows.items():
                append_lines(self.path / name, new)

    def add_image(self, image: Image.Image) -> str:
        """Store an image as PNG; returns the sha256 of its bytes."""
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return self._add("images", ".png", buffer.getvalue())

    def add_images(self, images: Sequence[Image.Image]) -> list[str]:
        """Store images as `add_image` does, on all cores: one packs 14 of 384 x 384 pixels a
        second, and a GPU draws more."""
        return _on_all_cores(self.add_image, images)

    def add_tokens(self, tokens: NDArray[np.int32]) -> str:
        """Store token ids; returns the sha256 of the file's bytes."""
        buffer = io.BytesIO()
        np.save(buffer, tokens, allow_pickle=False)
        return self._add("tokens", ".npy", buffer.getvalue())

    def image(self, sha256: str) -> Image.Image:
        """An image by its digest, RGB. Raises GapbenchError where it is missing or altered."""
        return Image.open(io.BytesIO(self.image_bytes(sha256))).convert("RGB")

    def images(self, digests: Sequence[str]) -> list[Image.Image]:
        """Images as `image` gives them, unpacked on all cores."""
        return _on_all_cores(self.image, digests)

    def image_bytes(self, sha256: str) -> bytes:
        """An image's file by its digest. Raises GapbenchError where it is missing or altered."""
        return self._get(self.image_path(sha256), sha256)

    def tokens(self, sha256: str) -> NDArray[np.int32]:
        """Token ids by the digest of their file."""
        data = self._get(self._place("tokens", ".npy", sha256), sha256)
        tokens: NDArray[np.int32] = np.load(io.BytesIO(data), allow_pickle=False)
        return tokens

    def image_path(self, sha256: str) -> Path:
        return self._place("images", ".png", sha256)

    def write(self, name: str, value: Any) -> None:
        """Replace a JSON file of the folder whole."""
        self.write_bytes(name, as_json(value))

    def write_bytes(self, name: str, data: bytes) -> None:
        """Replace a file of the folder, or of a folder in it, whole."""
        file = self.path / name
        with _saying_how_to_resume(self.path):
            file.parent.mkdir(exist_ok=True)
            write_atomic(file, data)

    def read(self, name: str) -> Any:
        return read_object(self.path / name)

    def _complete(self, generation: Generation) -> bool:
        return self.image_path(generation.image).exists() and (
            generation.tokens is None or self._place("tokens", ".npy", generation.tokens).exists()
        )

    def _place(self, kind: str, suffix: str, sha256: str) -> Path:
        if not _SHA.fullmatch(sha256):
            raise GapbenchError(f"{self.path}: {sha256!r} is no sha256; the records were edited")
        return self.path / kind / sha256[:2] / (sha256 + suffix)

    def _add(self, kind: str, suffix: str, data: bytes) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        place = self._place(kind, suffix, sha256)
        if not place.exists():
            with _saying_how_to_resume(self.path):
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
        file = self.path / _FILES[kind]
        names = {field.name for field in fields(kind)}

        def record(raw: Any) -> R:
            if set(raw) != names:
                raise ValueError(f"keys {sorted(set(raw) ^ names)} are missing or unknown")
            return kind(**raw)

        return read_lines(file, record)


def folder_for(out: str | Path, model: str, identity: dict[str, Any]) -> Path:
    """Where a run of this identity lives: <model>-<first 8 hex digits of the identity's hash>."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return Path(out) / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', model)}-{digest[:8]}"


def _on_all_cores(call: Callable[[T], U], items: Sequence[T]) -> list[U]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(call, items))


@contextmanager
def _saying_how_to_resume(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        raise GapbenchError(
            f"{path}: {'the disk is full' if full else error}; what was computed is kept, "
            f"{'free some space' if full else 'mend it'} and run the same command again"
        ) from error
