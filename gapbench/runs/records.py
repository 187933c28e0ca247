"""The records of a run folder by their keys: in memory as columns, on disk as lines of JSON, and
beside these in parts that need not be parsed again.

The lines are what a run is. A part, index/FILE-START-END-DIGEST.parquet, has the columns of
the lines between two bytes; the digest is over these lines and the part, so a part of other lines,
or a damaged one, counts for nothing, and the folder `index` may be deleted. Whoever holds the lock
of a folder writes parts.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from types import NoneType
from typing import Any, Final, Generic, TypeVar, get_args, get_type_hints

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from gapbench.files import read_lines, without_checksum, write_atomic
from gapbench.tasks.spec import explain
from gapbench.types import Generation, Refusal, Verdict

FILES: Final[dict[type, str]] = {
    Generation: "generations.jsonl",
    Verdict: "verdicts.jsonl",
    Refusal: "refusals.jsonl",
}
LATER: Final = {"latents"}
"""Fields that a record has only where there is something in them."""
PART: Final = 20_000
"""Lines of a part: a tail of fewer is parsed in a third of a second."""
_KEYS: Final[dict[type, tuple[str, ...]]] = {
    Generation: ("prompt", "seed"),
    Verdict: ("image", "question", "fingerprint"),
    Refusal: ("prompt", "seed"),
}
_TYPES: Final[dict[type, dict[str, tuple[type, ...]]]] = {
    kind: {name: get_args(hint) or (hint,) for name, hint in get_type_hints(kind).items()}
    for kind in FILES
}
_RECORDS: Final[dict[type, TypeAdapter[Any]]] = {kind: TypeAdapter(kind) for kind in FILES}
R = TypeVar("R", Generation, Verdict, Refusal)
K = TypeVar("K")
Column = NDArray[Any]
"""A field of many records: int64, float64 where NaN stands for None, or objects."""


class Records(Mapping[K, R], Generic[K, R]):
    """Key -> record, the latest of each, in the order of the first. A record is made when it is
    asked for: as columns, a million take a fifth of the memory of a dictionary."""

    def __init__(self, kind: type[R], columns: Mapping[str, Column]) -> None:
        self._kind: type[R] = kind
        self._columns = columns
        self._plain = {name: _plain(column) for name, column in columns.items()}
        self._parts = [self._plain[name] for name in _KEYS[kind]]
        lists = [columns[name].tolist() for name in _KEYS[kind]]
        count = len(lists[0])
        hashes = np.fromiter(map(hash, zip(*lists, strict=True)), np.int64, count)
        order = np.argsort(hashes, kind="stable")
        self._first, latest = np.arange(count), np.ones(count, bool)
        hashes = hashes[order]
        for place in np.flatnonzero(hashes[1:] == hashes[:-1]).tolist():
            here, there = order[place], order[place + 1]
            if self._key(here) == self._key(there):
                self._first[there], latest[here] = self._first[here], False
        self._keep(hashes[latest[order]], order[latest[order]])

    def only(self, mask: NDArray[np.bool_]) -> Records[K, R]:
        """Those whose row `mask` has."""
        some: Records[K, R] = object.__new__(Records)
        vars(some).update(vars(self))
        kept = mask[np.asarray(self._order)]
        some._keep(np.asarray(self._hashes)[kept], np.asarray(self._order)[kept])
        return some

    def _keep(self, hashes: NDArray[np.int64], order: NDArray[np.int64]) -> None:
        """Take rows in the order of their hashes; `_starts` says where hashes begin that share
        their first bits, so that a look-up compares a few."""
        # As memoryviews, whose single values come faster than an array's.
        self._hashes, self._order = hashes.data, order.data
        self._bits = min(62, 64 - len(order).bit_length())
        self._least = -(2**63) >> self._bits
        firsts = np.arange(self._least, -self._least + 1)
        self._starts = np.searchsorted(hashes >> self._bits, firsts).data

    def column(self, name: str) -> Column:
        """A field by rows; also of records of which there are later ones."""
        return self._columns[name]

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[K]:
        order = np.asarray(self._order)
        return map(self._key, order[np.argsort(self._first[order])].tolist())

    def __contains__(self, key: object) -> bool:
        return self._row(key) is not None

    def __getitem__(self, key: K) -> R:
        if (row := self._row(key)) is None:
            raise KeyError(key)
        return self._kind(**{name: plain(row) for name, plain in self._plain.items()})

    def _key(self, row: int) -> Any:
        return tuple([plain(row) for plain in self._parts])

    def _row(self, key: object) -> int | None:
        wanted = hash(key)
        first = (wanted >> self._bits) - self._least
        for place in range(self._starts[first], self._starts[first + 1]):
            if self._hashes[place] == wanted and self._key(row := self._order[place]) == key:
                return row
        return None


class Lines(Generic[R]):
    """The file of a kind of record in a run folder, and its parts."""

    def __init__(self, folder: Path, kind: type[R]) -> None:
        self.file, self._index = folder / FILES[kind], folder / "index"
        self._kind: type[R] = kind
        self._known: tuple[tuple[int, int], Records[Any, R]] | None = None
        self._places: list[Path] | None = None  # of the parts, once they were looked at
        self._end = self._count = self._more = 0
        """Where the parts end, how many lines they have, and how many were added since."""

    def read(self) -> Records[Any, R]:
        """The records by key; read again only where the file changed. Raises GapbenchError for a
        line that is no record."""
        there = self.file.stat() if self.file.exists() else None
        state = (there.st_size, there.st_mtime_ns) if there else (0, 0)
        if self._known is None or self._known[0] != state:
            self._known = None
            parts: list[dict[str, Column]]
            parts = [_unpacked(self._kind, part) for part in self._parts()]
            tail = read_lines(self.file, self._record, self._end, self._count)
            while records := list(islice(tail, PART)):
                parts.append(_columns(self._kind, records))
            parts.append(_columns(self._kind, []))
            whole = {name: _joined([part.pop(name) for part in parts]) for name in [*parts[-1]]}
            self._known = state, Records(self._kind, whole)
        return self._known[1]

    def each(self) -> Iterator[R]:
        """The records as they stand in their file, one at a time."""
        return read_lines(self.file, self._record)

    def added(self, count: int) -> None:
        """Note that lines were added, by who holds the folder's lock."""
        self._more += count
        if self._more >= PART:
            self.save()

    def save(self) -> None:
        """Write parts of lines that are in none, but for the last few, and remove what belongs to
        other lines. Only who holds the folder's lock may."""
        if not self.file.exists():
            return
        if self._places is None:
            self._places = []
            deque(self._parts(), 0)
        for place in self._index.glob(f"{self.file.stem}-*.parquet"):
            if place not in self._places and (place.is_file() or place.is_symlink()):
                place.unlink()
        records = read_lines(self.file, self._record, self._end, self._count)
        with self.file.open("rb") as opened:
            opened.seek(self._end)
            while len(lines := list(islice(opened, PART))) == PART:
                data, columns = b"".join(lines), _columns(self._kind, list(islice(records, PART)))
                if (part := _packed(self._kind, columns)) is None:
                    self._more = -sys.maxsize  # these lines are parsed again each time
                    return
                if self._index.is_file():
                    return
                self._index.mkdir(exist_ok=True)
                self._places.append(self._place(self._end, data, part))
                write_atomic(self._places[-1], part)
                self._end, self._count = self._end + len(data), self._count + PART
            self._more = len(lines)

    def _parts(self) -> Iterator[bytes]:
        """The parts of lines that are so in the file, one after the other."""
        self._end, self._count, self._places = 0, 0, []
        if not self._index.exists():
            return
        parts = [(_span(place), place) for place in self._index.glob(f"{self.file.stem}-*.parquet")]
        most = self.file.stat().st_size if self.file.exists() else 0
        with self.file.open("rb") if most else io.BytesIO() as opened:
            for (start, end), place in sorted(parts):
                if start != self._end or not start < end <= most:
                    continue
                try:
                    part = place.read_bytes()
                except OSError:  # a folder of that name, or it went meanwhile
                    continue
                data = opened.read(end - start)
                if len(data) < end - start or place != self._place(start, data, part):
                    opened.seek(start)
                    continue
                self._end, self._count = end, self._count + data.count(b"\n")
                self._places.append(place)
                yield part

    def _place(self, start: int, data: bytes, part: bytes) -> Path:
        digest = hashlib.sha256(data + part).hexdigest()[:32]
        return self._index / f"{self.file.stem}-{start}-{start + len(data)}-{digest}.parquet"

    def _record(self, raw: Any) -> R:
        """What a line says. Raises ValueError where that is no record."""
        values, types = without_checksum(raw), _TYPES[self._kind]
        if not isinstance(values, dict):
            raise ValueError("it is no JSON object")
        if set(values) | LATER != types.keys() | LATER:
            raise ValueError(f"keys {sorted(set(values) ^ types.keys())} are missing or unknown")
        if values.get("verdict") not in (0, 1, None):
            raise ValueError(f"the verdict is {values['verdict']}, not 1 or 0")
        if all(type(value) in types[name] for name, value in values.items()):
            return self._kind(**values)
        try:  # a whole number may stand for one with a point; what else there is, it can name
            made: R = _RECORDS[self._kind].validate_json(json.dumps(values), strict=True)
        except ValidationError as error:
            raise ValueError(explain(error)) from error
        return made


def _span(place: Path) -> tuple[int, int]:
    """The bytes of its file that a part is of; none where its name is another."""
    match place.stem.split("-"):
        case [_, start, end, _] if start.isdecimal() and end.isdecimal():
            return int(start), int(end)
    return 0, 0


def _plain(column: Column) -> Callable[[int], Any]:
    """What makes a row's value."""
    item: Callable[[int], Any] = column.item
    if column.dtype.kind != "f":
        return item
    return lambda row: None if (value := item(row)) != value else value


def _columns(kind: type[R], records: Sequence[R]) -> dict[str, Column]:
    columns = dict[str, Column]()
    for name, types in _TYPES[kind].items():
        values, known = [getattr(record, name) for record in records], dict[Any, Any]()
        if str in types:
            columns[name] = np.array([known.setdefault(each, each) for each in values], object)
            continue
        columns[name] = np.array(values, object)
        if float in types and not any(value != value for value in values):
            columns[name] = np.array(values, np.float64)  # None is NaN there
        elif int in types and NoneType not in types:
            with suppress(OverflowError):
                columns[name] = np.array(values, np.int64)
    return columns


def _joined(parts: Sequence[Column]) -> Column:
    if len({part.dtype for part in parts}) == 1:
        return np.concatenate(parts)
    lists = [map(_plain(part), range(len(part))) for part in parts]
    return np.array([value for each in lists for value in each], object)


def _packed(kind: type[R], columns: Mapping[str, Column]) -> bytes | None:
    """Columns as a Parquet file; None for what that cannot hold, such as half surrogate pairs."""
    import pyarrow as pa
    from pyarrow import parquet

    forms = {str: pa.string(), float: pa.float64(), int: pa.int64()}
    written = io.BytesIO()
    try:
        table = pa.table(
            {
                name: pa.array(column, forms[_TYPES[kind][name][0]], from_pandas=False)
                for name, column in columns.items()
            }
        )
        parquet.write_table(table, written)
    except (pa.ArrowException, UnicodeError, OverflowError):
        return None
    return written.getvalue()


def _unpacked(kind: type[R], part: bytes) -> dict[str, Column]:
    import pyarrow as pa
    from pyarrow import parquet

    texts = [name for name, types in _TYPES[kind].items() if str in types]
    table = parquet.read_table(pa.BufferReader(part), read_dictionary=texts).combine_chunks()
    columns = dict[str, Column]()
    for name, types in _TYPES[kind].items():
        column = table.column(name)
        if str in types:
            chunk: Any = column.chunks[0]
            words: Column = np.array([*chunk.dictionary.to_pylist(), None], object)
            columns[name] = words[chunk.indices.fill_null(len(words) - 1).to_numpy()]
        elif int in types and NoneType in types:
            columns[name] = np.array(column.to_pylist(), object)
        else:
            columns[name] = column.to_numpy()
    return columns
