"""Files: whole or not at all, JSON, append-only JSON lines, digests."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import sysconfig
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Final, TypeVar

from gapbench.types import Crash, GapbenchError

T = TypeVar("T")
U = TypeVar("U")
_PART: Final = re.compile(r"\.(\d+)\.\d+\.part")
_CHECKSUM: Final = "checksum"
_SORTED: Final = json.JSONEncoder(sort_keys=True).encode
PIECE: Final = 64 * 2**20
"""Bytes of a large file that are hashed together."""


def write_atomic(file: Path, data: bytes | Iterable[bytes]) -> None:
    """Replace a file whole: a reader or a crash sees the old bytes or the new.

    Raises GapbenchError where something else than a file is there, such as a device.
    """
    if file.exists() and not file.is_file():
        raise GapbenchError(f"{file}: not a regular file, so it is not replaced; give another path")
    part = part_of(file)
    try:
        with part.open("wb") as opened:
            opened.writelines([data] if isinstance(data, bytes) else data)
            _to_disk(opened)
        part.replace(file)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def part_of(target: Path) -> Path:
    """Where this thread writes a file or folder until it is whole; `sweep` knows it by its name."""
    return target.with_name(f"{target.name}.{os.getpid()}.{threading.get_ident()}.part")


def sweep(parts: Iterable[Path]) -> None:
    """Of these files and folders, remove those that a process which is no more left unfinished."""
    for part in list(parts):
        writer = _PART.search(part.name)
        if not writer or _runs(int(writer[1])):
            continue
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True


def write_json(file: Path, value: Any) -> None:
    """Replace a JSON file whole."""
    write_atomic(file, as_json(value))


def as_json(value: Any) -> bytes:
    """A value as the bytes of a JSON file that people can read."""
    # A path may hold bytes that are no UTF-8; as escapes they are the same JSON.
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "backslashreplace")


def read_object(file: Path) -> dict[str, Any]:
    """A JSON object. Raises GapbenchError where the file is not one or cannot be read."""
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise GapbenchError(f"{file}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise GapbenchError(f"{file}: not JSON ({error}); mend or remove it") from error
    if not isinstance(raw, dict):
        raise GapbenchError(f"{file}: not a JSON object; mend or remove it")
    return raw


def read_yaml(file: Path) -> dict[str, Any]:
    """The keys of a YAML file and their values. Raises GapbenchError if it cannot be read, or has a
    key twice, of which YAML would silently take the last."""
    import yaml

    class Once(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [str(key.value) for key, _ in node.value]
            if twice := next((key for key in keys if keys.count(key) > 1), None):
                raise yaml.YAMLError(f"key {twice} stands twice{node.start_mark}")
            return super().construct_mapping(node, deep)

    try:
        raw = yaml.load(file.read_text(encoding="utf-8"), Once)  # noqa: S506 (a safe loader)
    except OSError as error:
        raise GapbenchError(f"{file}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise GapbenchError(f"{file}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(raw, dict):
        raise GapbenchError(f"{file}: must hold lines of the form `key: value`")
    return raw


def with_checksum(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record of JSON values, with a checksum over them."""
    return {**record, _CHECKSUM: checksum(record)}


def without_checksum(raw: Any) -> Any:
    """What `with_checksum` was given; gapbench 0.1.0 wrote records without one.

    Raises ValueError where the values are not those that were written.
    """
    if not isinstance(raw, dict) or _CHECKSUM not in raw:
        return raw
    record = {key: value for key, value in raw.items() if key != _CHECKSUM}
    if raw[_CHECKSUM] != checksum(record):
        raise ValueError("altered since it was written: its checksum is another")
    return record


def checksum(record: Mapping[str, Any]) -> str:
    """16 hex digits over a record of JSON values."""
    return _digest(_SORTED(record))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def line_of(record: Mapping[str, Any]) -> str:
    """`with_checksum` as JSON in one line."""
    text = _SORTED(record)
    return f'{text[:-1]}, "{_CHECKSUM}": "{_digest(text)}"}}'


def append_lines(file: Path, lines: Iterable[str]) -> None:
    """Add lines of JSON: on disk when this returns."""
    with file.open("ab") as opened:
        opened.write("".join(f"{line}\n" for line in lines).encode())
        _to_disk(opened)


def read_lines(
    file: Path, record: Callable[[Any], T], start: int = 0, before: int = 0
) -> Iterator[T]:
    """What `record` makes of each line of JSON, one at a time, from the byte `start` on, which
    `before` lines precede; a last line that a crash tore is left out, and no file is no lines.

    Raises GapbenchError naming the file where it cannot be read, and the line that is not JSON, or
    of which `record` raises ValueError or TypeError.
    """
    try:
        with file.open("rb") if file.exists() else io.BytesIO() as opened:
            opened.seek(start)
            for number, line in enumerate(opened, before + 1):
                if not line.endswith(b"\n"):
                    return
                try:
                    made = record(json.loads(line))
                except (ValueError, TypeError, RecursionError) as error:
                    raise GapbenchError(
                        f"{file}:{number}: broken record ({error}); delete the line and run the "
                        "same command again"
                    ) from error
                yield made
    except OSError as error:
        raise GapbenchError(f"{file}: cannot be read ({error.strerror})") from error


def drop_torn_line(file: Path) -> None:
    """Cut a last line that a crash tore from a file of lines, before more are added."""
    if not file.exists():
        return
    with file.open("r+b") as opened:
        end = opened.seek(0, os.SEEK_END)
        opened.seek(max(0, end - 1))
        if end and opened.read(1) != b"\n":
            opened.seek(0)
            opened.truncate(opened.read().rfind(b"\n") + 1)


class Journal:
    """Values by key in an append-only file, a JSON line each: what a stopped command goes on from.

    `there` holds what is known; a last line that a crash tore is dropped. Raises GapbenchError
    where the file cannot be read or written.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            drop_torn_line(file)
            self.there: dict[str, Any] = dict(read_lines(file, _pair))
        except OSError as error:
            raise GapbenchError(
                f"{file}: cannot be read or made ({error}); remove it and run the same command "
                "again"
            ) from error

    def add(self, records: Mapping[str, Any]) -> None:
        """Keep values: on disk when this returns."""
        self.there |= records
        try:
            append_lines(self._file, map(json.dumps, records.items()))
        except OSError as error:
            raise GapbenchError(
                f"{self._file}: {error}; make room or mend it, then run the same command again"
            ) from error


def _pair(row: Any) -> tuple[str, Any]:
    key, value = row
    return key, value


def digest(header: str, files: Iterable[Path], root: Path | None = None) -> str:
    """Sha256 over a header and each file's name (below `root`) and contents, in the order given.

    A file's contents stand as its sha256; those of more than PIECE bytes as that of its pieces'
    sha256s, which all cores compute.
    """
    total = hashlib.sha256(header.encode())
    for file in files:
        name = file.relative_to(root) if root else file.name
        seen = file.stat()
        if seen.st_size <= PIECE:
            total.update(f"{name} {sha256_of(file)}\n".encode())
        else:
            total.update(f"{name} {_pieces(file, seen.st_size, seen.st_mtime_ns)}\n".encode())
    return total.hexdigest()


@lru_cache
def _pieces(file: Path, size: int, _changed: int) -> str:
    def piece(start: int) -> bytes:
        with file.open("rb") as opened:
            opened.seek(start)
            return hashlib.sha256(opened.read(PIECE)).digest()

    with ThreadPoolExecutor(8) as threads:  # a piece each in memory
        return hashlib.sha256(b"".join(threads.map(piece, range(0, size, PIECE)))).hexdigest()


def sha256_of(file: Path) -> str:
    """The hex sha256 of a file's bytes."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def inside(root: Path, path: str, place: str) -> Path:
    """The file at a relative path, which neither `..` nor a link may lead elsewhere. In the hub's
    cache, links may lead to its own blobs."""
    pure, base = PurePosixPath(path), root.resolve()
    fits = path and not pure.is_absolute() and ".." not in pure.parts and "\0" not in path
    try:
        target = (base / pure).resolve() if fits else None
        there = target is not None and target.is_file()
    except OSError as error:
        raise GapbenchError(f"{place}: {path[:40]!r}: {error.strerror}") from error
    if target is None or not (target == base / pure or target.parent in _hub_blobs(base)):
        raise GapbenchError(
            f"{place}: {path!r} must be a path inside {root}, with no '..' and through no link"
        )
    if not there:
        raise GapbenchError(f"{place}: {root / pure} is missing or is not a file")
    return root / pure


def _hub_blobs(base: Path) -> list[Path]:
    """The folders that a snapshot in the hub's cache links into: <repo>/blobs of
    <repo>/snapshots/<commit>."""
    return [p.parent / "blobs" for p in base.parents if p.name == "snapshots"]


def on_all_cores(call: Callable[[T], U], items: Sequence[T]) -> list[U]:
    """What `call` gives for each item, in order, from as many threads as there are cores."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(call, items))


def git_blob_of(file: Path) -> str:
    """The hex id that git gives a file's bytes: SHA-1 over "blob", their number, NUL and them."""
    with file.open("rb") as opened:
        head = f"blob {os.fstat(opened.fileno()).st_size}\0".encode()
        made = hashlib.file_digest(opened, lambda: hashlib.sha1(head, usedforsecurity=False))
    return made.hexdigest()


def first_line(error: BaseException) -> str:
    """What an exception says, in one line; its kind where it says nothing or cannot."""
    try:
        said = str(error).strip()
    except Exception:  # somebody else's class
        said = ""
    return (said or type(error).__name__).splitlines()[0]


def blamed(error: BaseException) -> str:
    """What an exception says, in one line; one that is not meant for people with its kind, and the
    file and line of the last code outside of this package and of installed ones."""
    if isinstance(error, GapbenchError | Crash):
        return str(error)
    said = f"sys.exit({error.code})" if isinstance(error, SystemExit) else first_line(error)
    kind = "" if isinstance(error, SystemExit) else f"{type(error).__name__}: "
    if isinstance(error, SyntaxError) and error.filename:
        return f"{kind}{error.msg} ({error.filename}, line {error.lineno})"
    frames = traceback.extract_tb(error.__traceback__)
    installed = (str(Path(__file__).parent), sysconfig.get_path("stdlib"), "<")
    own = [
        frame
        for frame in frames
        if not frame.filename.startswith(installed) and "site-packages" not in frame.filename
    ]
    place = next(iter([*own[-1:], *frames[-1:]]), None)
    return f"{kind}{said}" + (f" ({place.filename}, line {place.lineno})" if place else "")


def _to_disk(opened: BinaryIO) -> None:
    opened.flush()
    os.fsync(opened.fileno())
