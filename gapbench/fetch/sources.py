"""Downloads of single files: pinned by digest, resumable, into a cache."""

from __future__ import annotations

import ast
import hashlib
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from filelock import FileLock
from tenacity import Retrying, retry_if_result, stop_after_attempt, wait_exponential

from gapbench.fetch.libraries import is_offline
from gapbench.files import git_blob_of, sha256_of, write_atomic
from gapbench.types import GapbenchError

ATTEMPTS: Final = 5
RETRIES: Final[dict[str, Any]] = {
    "stop": stop_after_attempt(ATTEMPTS),
    "wait": wait_exponential(1.0, max=8.0),
    # What the last attempt gave or raised.
    "retry_error_callback": lambda state: state.outcome.result(),
}
PATIENCE: Final = 30.0
"""Seconds without a byte after which a download is tried again from where it stands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A file at an address that pins it, its digest and its size.

    The digest is a `sha256` or, of a file that only its repository names, git's id of it. Of a
    Python file of which only some constants are used, `texts` names these, and the sha256 is of
    them (`texts_of`), each followed by a NUL. `bytes` is 0 where nobody has said how large it is; a
    download that breaks then begins anew.
    """

    url: str
    sha256: str = ""
    git_blob: str = ""
    texts: tuple[str, ...] = ()
    bytes: int
    license: str

    @property
    def name(self) -> str:
        """The file's name, the last part of its address."""
        return self.url.rsplit("/", 1)[-1]

    @property
    def pin(self) -> str:
        """The digest behind its kind, as messages name it."""
        return f"sha256 {self.sha256}" if self.sha256 else f"git blob {self.git_blob}"

    def pin_of(self, file: Path) -> str:
        """What `pin` would be of a file that is here."""
        if self.texts:
            told = "".join(f"{text}\0" for text in texts_of(file, self.texts))
            return f"sha256 {hashlib.sha256(told.encode()).hexdigest()}"
        return f"sha256 {sha256_of(file)}" if self.sha256 else f"git blob {git_blob_of(file)}"

    def is_file(self, file: Path) -> bool:
        """Whether a file that is here is this one."""
        return self.bytes in (0, file.stat().st_size) and self.pin_of(file) == self.pin


def texts_of(file: Path, names: Sequence[str]) -> list[str]:
    """Constant texts that a Python file assigns to names at its top, in the names' order; none of
    it is run. Empty where one is not there or the file is no Python."""
    try:
        body = ast.parse(file.read_bytes()).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    found = {
        target.id: line.value.value
        for line in body
        if isinstance(line, ast.Assign) and isinstance(line.value, ast.Constant)
        for target in line.targets
        if isinstance(target, ast.Name) and isinstance(line.value.value, str)
    }
    return [found[name] for name in names] if {*names} <= {*found} else []


def cache_folder() -> Path:
    """Where downloads are kept: $GAPBENCH_CACHE, or gapbench/ in the user's cache."""
    own = os.environ.get("GAPBENCH_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(own) if own else Path(base) / "gapbench"


def place(source: Source) -> Path:
    """Where a file is kept, whether it is there or not."""
    return cache_folder() / "files" / (source.sha256 or source.git_blob)[:16] / source.name


def have(source: Source) -> bool:
    """Whether the file is in the cache, whole and unaltered."""
    file = place(source)
    return file.is_file() and source.is_file(file)


def cached(sources: Iterable[Source], what: str) -> list[Path]:
    """The paths of files that must be in the cache, in order.

    Raises GapbenchError naming the file that is missing or altered and its digest, or where a list
    of them is, and what to do.
    """
    sources = list(sources)
    missing = [source for source in sources if not have(source)]
    if missing:
        lines = [f"{source.name} ({source.pin})" for source in missing]
        listed = lines[0]
        if len(lines) > 1:
            file = cache_folder() / "missing.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(file, "\n".join([*lines, ""]).encode())
            listed = f"{len(lines)} files (names and digests: {file})"
        raise GapbenchError(
            f"{what} needs {listed}; run `gapbench prepare`, or with copies of your own "
            f"`gapbench prepare --data FOLDER`, which puts them under {cache_folder()}"
        )
    return [place(source) for source in sources]


def adopt(sources: Iterable[Source], folder: Path) -> list[Source]:
    """Copy files with the right digest from a folder into the cache, whatever their names.

    Returns the sources that are still missing.
    """
    if not folder.is_dir():
        raise GapbenchError(f"--data {folder} is no folder")
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    missing = []
    for source in sources:
        if have(source):
            continue
        copy = next(filter(source.is_file, files), None)
        if copy is None:
            missing.append(source)
            continue
        with _locked(source) as part:
            shutil.copyfile(copy, part)
            part.replace(place(source))
    return missing


def download(source: Source, advance: Callable[[int], None] = lambda _count: None) -> Path:
    """Bring a file into the cache and return its path; `advance` is told the bytes that came.

    A broken download goes on where it stopped, also in another process; a file with another digest
    is thrown away and fetched once more. Raises GapbenchError where it cannot be downloaded.
    """
    if is_offline() and not have(source):
        raise GapbenchError(
            f"offline: {source.name} ({source.pin}) is not in the cache; with a copy of "
            f"your own run `gapbench prepare --data FOLDER`, which puts it at {place(source)}"
        )
    with _locked(source) as part:
        if have(source):
            return place(source)
        for _ in range(2):
            trouble = _transfer(source, part, advance)
            if trouble:
                break
            if source.is_file(part):
                part.replace(place(source))
                return place(source)
            kind, _, found = source.pin_of(part).rpartition(" ")
            part.unlink()
            trouble = f"its {kind} is {found}, expected {source.pin.removeprefix(kind).strip()}"
    raise GapbenchError(
        f"{source.url} cannot be downloaded: {trouble}; try again later, or put a copy in a folder "
        "and run `gapbench prepare --data FOLDER`"
    )


@Retrying(retry=retry_if_result(bool), **RETRIES).wraps
def _transfer(source: Source, part: Path, advance: Callable[[int], None]) -> str:
    """Append what is missing of a file; returns what went wrong, or nothing."""
    import httpx

    from gapbench.fetch.http import open_client

    most = source.bytes or math.inf
    start = part.stat().st_size if part.exists() and source.bytes else 0
    if start > most:
        part.unlink()
        start = 0
    if start == most:
        return ""
    # Of a compressed answer neither the range nor the size would be the file's.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        with (
            open_client(httpx.URL(source.url), timeout=PATIENCE, follow_redirects=True) as client,
            client.stream("GET", source.url, headers=headers) as answer,
        ):
            if answer.status_code not in {200, 206}:
                return f"the server answers {answer.status_code}"
            # A server that ignores the range sends the file from its start.
            fresh = answer.status_code == 200
            with part.open("wb" if fresh else "ab") as file:
                for chunk in answer.iter_raw():
                    file.write(chunk)
                    advance(len(chunk))
                    if file.tell() > most:
                        break
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return str(error) or type(error).__name__
    except OSError as error:
        raise GapbenchError(f"{part}: {error.strerror}; mend it and run it again") from error
    size = part.stat().st_size
    if size > most:
        part.unlink()
        return f"it is longer than the {source.bytes:,} bytes expected"
    return "" if source.bytes in (0, size) else f"only {size:,} of {source.bytes:,} bytes came"


@contextmanager
def _locked(source: Source) -> Iterator[Path]:
    """Keep other processes off a file while it is fetched; gives the path to write it to."""
    file = place(source)
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_name(file.name + ".lock")):
        yield file.with_name(file.name + ".part")
