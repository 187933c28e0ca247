"""Files of a run folder by the sha256 of their bytes: a file each, or many in tar files.

images/ab/<sha256>.png          a file each
images/00000.tar, 00001.tar     packed; members are named <sha256>.png
images/packed.bin               where each is: 48 bytes, as ENTRY says. It grows once the tar file
                                is on disk, so what a crash leaves behind it is written over
"""

from __future__ import annotations

import hashlib
import os
import re
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gapbench.files import on_all_cores, write_atomic
from gapbench.types import GapbenchError

INDEX: Final = "packed.bin"
ENTRY: Final = np.dtype([("digest", "S32"), ("tar", "<u4"), ("size", "<u4"), ("start", "<u8")])
TAR: Final = 2**30
"""Bytes after which another tar file is begun."""
BLOCK: Final = 512
"""Bytes of which a tar file is made."""
MOST: Final = 50_000
"""Entries that are in memory one by one until the index is read again."""
MOST_TARS: Final = 100_000
"""A number of five digits names a tar file; what an index says beyond is no number of one."""
_TAR: Final = re.compile(r"\d{5}\.tar")
_SHA: Final = re.compile(r"[0-9a-f]{64}")


class Blobs:
    """The files of one kind (`suffix`) in a folder, which need not be there yet."""

    def __init__(self, folder: Path, suffix: str) -> None:
        self.folder, self._suffix = folder, suffix
        self._seen, self._table = -1, np.empty(0, ENTRY)
        self._new: dict[bytes, Any] = {}  # in the index, not in the table
        self._end: tuple[int, int] | None = None  # the last tar file, and its end

    @property
    def packed(self) -> bool:
        """Whether what is added goes into tar files."""
        return (self.folder / INDEX).exists()

    def pack(self) -> None:
        """From now on, pack what is added."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / INDEX).touch()

    def settle(self) -> None:
        """Begin to write, where nobody else does: of the index, drop the entry that a crash tore.
        One of a tar file that is not there stays: the file may come back."""
        if self.packed:
            index = self.folder / INDEX
            if torn := _size(index) % ENTRY.itemsize:
                os.truncate(index, _size(index) - torn)
            self._end = None

    def path(self, sha256: str) -> Path:
        """Where a file of its own is, or would be. Raises GapbenchError for what is no sha256."""
        return self.folder / self._checked(sha256)[:2] / (sha256 + self._suffix)

    def add(self, files: Sequence[bytes]) -> list[str]:
        """Store files: on disk when this returns. Gives their sha256."""
        digests = [hashlib.sha256(data).hexdigest() for data in files]
        new = {d: data for d, data in zip(digests, files, strict=True) if d not in self}
        if self.packed:
            self._append(new)
            return digests
        for digest in new:
            self.path(digest).parent.mkdir(parents=True, exist_ok=True)
        on_all_cores(lambda digest: write_atomic(self.path(digest), new[digest]), [*new])
        return digests

    def take(self, other: Blobs, digests: Iterable[str]) -> None:
        """Have files of another folder too, by links where that is possible; one that is missing
        there stays so."""
        new = [d for d in dict.fromkeys(digests) if d not in self and d in other]
        if self.packed:
            self._append({digest: other.get(digest) for digest in new})
            return
        for digest in new:
            place = self.path(digest)
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(other.path(digest), place)
            except OSError:  # it is packed, on another file system, or on one without links
                write_atomic(place, other.get(digest))

    def get(self, sha256: str) -> bytes:
        """A file's bytes. Raises GapbenchError where it is missing or altered."""
        place, entry = self.path(sha256), self._find(sha256)
        try:
            if entry is None:
                data = place.read_bytes()
            else:
                place = self._tar(int(entry["tar"]))
                with place.open("rb") as opened:
                    opened.seek(int(entry["start"]))
                    data = opened.read(int(entry["size"]))
        except OSError as error:
            raise GapbenchError(
                f"{place} is missing; run the same command again to make it anew"
            ) from error
        if hashlib.sha256(data).hexdigest() != sha256:
            if entry is None:
                raise GapbenchError(
                    f"{place} was altered (its sha256 is not its name); delete it and run the same "
                    "command again"
                )
            raise GapbenchError(
                f"{sha256} in {place} was altered, there or in {INDEX} beside it; put back both "
                "from a copy, or make the run anew in another --out"
            )
        return data

    def __contains__(self, sha256: str) -> bool:
        return self._find(sha256) is not None or self.path(sha256).exists()

    def there(self, digests: Sequence[str | None]) -> NDArray[np.bool_]:
        """Which files are there; None stands for no file, which is. Folders are listed, since a
        file system answers for a million names one by one in minutes."""
        lacking = set(digests) - {None} - self._packed()
        if lacking:
            lacking -= self._alone()
        for digest in lacking:
            self._checked(str(digest))
        return np.array([digest not in lacking for digest in digests], bool)

    def _packed(self) -> set[str]:
        packed = [*self._entries()["digest"].tolist(), *self._new]
        return {digest.ljust(32, b"\0").hex() for digest in packed}

    def _alone(self) -> set[str]:
        """The digests of the files that are not packed."""
        alone, end = set[str](), -len(self._suffix)
        for folder in self.folder.glob("??"):
            names = os.listdir(folder)  # noqa: PTH208 (a million names)
            alone.update(name[:end] for name in names if name.endswith(self._suffix))
        return alone

    def sizes(self) -> list[int]:
        """The bytes of every file."""
        alone = [file.stat().st_size for file in self.folder.glob(f"*/*{self._suffix}")]
        packed = self._entries()["size"].tolist()
        return [*alone, *packed, *(int(entry["size"]) for entry in self._new.values())]

    def _checked(self, sha256: str) -> str:
        if not _SHA.fullmatch(sha256):
            raise GapbenchError(
                f"{self.folder.parent}: {sha256!r} is no sha256; the records were edited"
            )
        return sha256

    def _entries(self) -> NDArray[Any]:
        """The index, by digest; read again only where somebody else made it grow."""
        index = self.folder / INDEX
        size = _size(index)
        if size != self._seen:
            table = np.fromfile(index, ENTRY) if size else np.empty(0, ENTRY)
            numbers, places = np.unique(table["tar"], return_inverse=True)
            sizes = self._tars()
            ends = np.array([sizes.get(n, 0) for n in numbers.tolist()], np.uint64)[places]
            whole = (table["start"] <= ends) & (table["start"] + table["size"] <= ends)
            table = table[whole]
            self._table = table[np.argsort(table["digest"], kind="stable")]
            self._seen, self._new = size, {}
        return self._table

    def _find(self, sha256: str) -> Any | None:
        table, wanted = self._entries(), _bytes(self._checked(sha256))
        place = int(np.searchsorted(table["digest"], wanted))
        if place < len(table) and table["digest"][place] == wanted:
            return table[place]
        return self._new.get(wanted)

    def _append(self, files: Mapping[str, bytes]) -> None:
        """Add to the last tar file, then to the index: what is in the index is on disk."""
        if not files:
            return
        entries = np.zeros(len(files), ENTRY)
        tar, end = self._end or self._last()
        if end >= TAR:
            tar, end = tar + 1, 0
        place = self._tar(tar)
        with place.open("r+b" if place.exists() else "wb") as opened:
            opened.seek(end)
            for entry, (digest, data) in zip(entries, files.items(), strict=True):
                about = tarfile.TarInfo(digest + self._suffix)
                about.size = len(data)
                opened.write(about.tobuf(tarfile.USTAR_FORMAT))
                entry["digest"], entry["tar"], entry["size"] = _bytes(digest), tar, len(data)
                entry["start"] = opened.tell()
                opened.write(data + bytes(-len(data) % BLOCK))
            end = opened.tell()
            opened.write(bytes(2 * BLOCK))  # which ends a tar file
            opened.truncate()
            opened.flush()
            os.fsync(opened.fileno())
        with (self.folder / INDEX).open("ab") as index:
            index.write(entries.tobytes())
            index.flush()
            os.fsync(index.fileno())
        self._new |= {bytes(entry["digest"]): entry for entry in entries}
        self._end = tar, end
        self._seen = self._seen + entries.nbytes if len(self._new) < MOST else -1

    def _last(self) -> tuple[int, int]:
        """The tar file to go on with, and where: behind what the index knows of it. One that it
        knows nothing of is somebody's, and none that is not there is begun again."""
        table, tars = self._entries(), self._tars()
        missing = np.fromfile(self.folder / INDEX, ENTRY)["tar"]
        tar = max([*tars, *missing[missing < MOST_TARS].tolist()], default=-1)
        known = table[table["tar"] == tar]
        if not len(known):
            return tar + 1, 0
        last = known[np.argmax(known["start"])]
        end = int(last["start"]) + int(last["size"])
        return tar, end + -end % BLOCK

    def _tars(self) -> dict[int, int]:
        """Number of a tar file that is there -> its bytes."""
        found = [file for file in self.folder.glob("*.tar") if _TAR.fullmatch(file.name)]
        return {int(file.stem): _size(file) for file in found}

    def _tar(self, number: int) -> Path:
        return self.folder / f"{number:05}.tar"


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _bytes(sha256: str) -> bytes:
    """As an array of bytes has it, which drops zeros at the end."""
    return bytes.fromhex(sha256).rstrip(b"\0")
