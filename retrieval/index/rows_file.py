"""Streaming writer of a shard's table of rows, which is never in memory as a whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from retrieval.core.schemas import SHARD_ROWS
from retrieval.storage.checksum import fill_file_checksum, parquet_writer

_GROUP = 1 << 16  # rows of a row group


class ShardRowsWriter:
    """Writer of a table SHARD_ROWS with further columns, in row groups of equal size."""

    def __init__(self, writer: pq.ParquetWriter, schema: pa.Schema) -> None:
        self._writer, self._schema = writer, schema
        self._pending = schema.empty_table()
        self._rows: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
        self.labels: Counter[str] = Counter()
        """Images per label."""

    def add(self, table: pa.Table, squared_norms: NDArray[np.float64]) -> None:
        """Append the rows of a part with their (n,) squared norms; missing columns become null."""
        extended = table.append_column("squared_norm", pa.array(squared_norms))
        columns = [
            extended[field.name].cast(field.type)
            if field.name in extended.column_names
            else pa.nulls(len(extended), field.type)
            for field in self._schema
        ]
        self._rows.append(table["row"].to_numpy().astype(np.int64))
        self.labels.update(str(label) for label in table["label"].drop_null().to_pylist())
        added = pa.table(columns, schema=self._schema)
        self._pending = pa.concat_tables([self._pending, added])
        if len(self._pending) >= _GROUP:
            complete_rows = len(self._pending) // _GROUP * _GROUP
            self._write(self._pending.slice(0, complete_rows))
            remaining = self._pending.slice(complete_rows)
            # a copy, so that the memory of the written rows is released
            self._pending = remaining.take(pa.array(range(len(remaining)), pa.int64()))

    def close(self) -> NDArray[np.int64]:
        """Write the remaining rows and return all row numbers in order, (n,)."""
        self._write(self._pending)
        return np.concatenate(self._rows)

    def _write(self, table: pa.Table) -> None:
        self._writer.write_table(table.combine_chunks(), row_group_size=_GROUP)


@contextmanager
def open_rows_file(path: Path, extra_columns: pa.Schema) -> Iterator[ShardRowsWriter]:
    """Open a table of rows for writing, SHARD_ROWS and `extra_columns`; checksum it at the end."""
    schema = pa.schema([*SHARD_ROWS.schema, *extra_columns])
    with open(path, "wb") as file, parquet_writer(file, schema) as writer:
        yield ShardRowsWriter(writer, schema)
    fill_file_checksum(path)
