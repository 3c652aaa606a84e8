"""Streaming writer of a shard's table of rows, which is never in memory as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from retrieval.index.runs import to_schema
from retrieval.storage.checksum import fill_file_checksum, parquet_writer

_GROUP = 1 << 16  # rows of a row group


class ShardRowsWriter:
    """Writer of a table SHARD_ROWS with further columns, in row groups of equal size."""

    def __init__(self, writer: pq.ParquetWriter, schema: pa.Schema) -> None:
        self._writer, self._schema = writer, schema
        self._pending = schema.empty_table()

    def add(self, table: pa.Table) -> None:
        """Append rows; missing columns become null."""
        self._pending = pa.concat_tables([self._pending, to_schema(table, self._schema)])
        if len(self._pending) >= _GROUP:
            complete_rows = len(self._pending) // _GROUP * _GROUP
            self._write(self._pending.slice(0, complete_rows))
            remaining = self._pending.slice(complete_rows)
            # a copy, so that the memory of the written rows is released
            self._pending = remaining.take(pa.array(range(len(remaining)), pa.int64()))

    def close(self) -> None:
        """Write the remaining rows."""
        self._write(self._pending)

    def _write(self, table: pa.Table) -> None:
        self._writer.write_table(table.combine_chunks(), row_group_size=_GROUP)


@contextmanager
def open_rows_file(path: Path, schema: pa.Schema) -> Iterator[ShardRowsWriter]:
    """Open a table of rows for writing; write what is pending and its checksum at the end."""
    with open(path, "wb") as file, parquet_writer(file, schema) as writer:
        rows = ShardRowsWriter(writer, schema)
        yield rows
        rows.close()
    fill_file_checksum(path)
