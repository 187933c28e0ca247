"""Reading a Parquet file whose author may want to fill the memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gapbench.files import first_line
from gapbench.types import GapbenchError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

MOST_ROWS: Final = 250_000
MOST_TEXT: Final = 100_000_000
"""Bytes that the columns of a file may take uncompressed, and all of its texts written out: a small
file may hold the same megabyte in every row."""
MOST_MEMORY: Final = 500_000_000
"""Bytes that reading a file may take: its footer may lie about the size of its pages."""
BATCH: Final = 4096
"""Rows that are read at once."""
NULLABLE: Final = frozenset({"verdict", "p_yes", "mass", "score", "reply", "text", "reason"})


def read_rows(file: Path, data: bytes, columns: pa.Schema) -> pd.DataFrame:
    """The rows of a file of these columns, of which `verdict` is 1, 0 or NaN, and the other ones of
    NULLABLE may be empty. Raises GapbenchError, naming the file, for anything else."""
    import pyarrow as pa

    try:
        with _bounded(MOST_MEMORY):
            table = _table(file, data, columns)
    except (OSError, MemoryError, pa.ArrowException) as error:
        said = first_line(error)
        raise GapbenchError(f"{file}: cannot be read as Parquet ({said})") from error
    rows: pd.DataFrame = table.to_pandas(ignore_metadata=True)
    for column in set(rows.columns) - NULLABLE:
        if rows[column].isna().any():
            raise GapbenchError(f"{file}: {column} is empty in a row")
    bad = rows["verdict"].notna() & ~rows["verdict"].isin([0, 1])
    if bad.any():
        raise GapbenchError(f"{file}: a verdict is {rows.loc[bad, 'verdict'].iloc[0]}, not 1 or 0")
    return rows.fillna({"reply": "", "text": "", "reason": ""})


@contextmanager
def _bounded(more: int) -> Iterator[None]:
    """Let the process take so many bytes on top of those it has, and no more; only Linux does."""
    import resource

    statm = Path("/proc/self/statm")
    if not statm.exists():
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_DATA)
    most = int(statm.read_text().split()[5]) * resource.getpagesize() + more
    least = most if before[0] == resource.RLIM_INFINITY else min(most, before[0])
    resource.setrlimit(resource.RLIMIT_DATA, (least, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _table(file: Path, data: bytes, columns: pa.Schema) -> pa.Table:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    texts = [name for name in columns.names if columns.field(name).type == pa.string()]
    limits = {"thrift_string_size_limit": 1_000_000, "thrift_container_size_limit": 100_000}
    source = pa.BufferReader(data)
    meta = pq.ParquetFile(source, **limits).metadata
    if not meta.schema.to_arrow_schema().equals(columns):
        raise GapbenchError(f"{file}: its columns are not {', '.join(columns.names)}")
    if meta.num_rows > MOST_ROWS:
        raise GapbenchError(f"{file}: more than {MOST_ROWS:,} rows")
    size = sum(meta.row_group(group).total_byte_size for group in range(meta.num_row_groups))
    batches: list[pa.Table] = []
    if size <= MOST_TEXT:
        size = 0
        # Texts stay numbers and a list of the different ones until their length is known.
        opened = pq.ParquetFile(source, read_dictionary=texts, **limits)
        for batch in opened.iter_batches(BATCH, use_threads=False):
            for name in texts:
                lengths = pc.binary_length(batch[name].dictionary)
                size += pc.sum(lengths.take(batch[name].indices)).as_py() or 0
            if size > MOST_TEXT:
                break
            batches.append(pa.Table.from_batches([batch]).cast(columns))
    if size > MOST_TEXT:
        raise GapbenchError(f"{file}: its columns take more than {MOST_TEXT:,} bytes uncompressed")
    table = pa.concat_tables(batches) if batches else columns.empty_table()
    table.validate(full=True)  # texts that are no UTF-8
    return table
