"""The table of a shard's rows, written while they stream by: it is never in memory as a whole."""

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
from retrieval.storage.checksum import parquet_writer, seal_file

_GROUP = 1 << 16  # rows of a row group


class RowsFile:
    """A table SHARD_ROWS with further columns, being written in row groups of one size."""

    def __init__(self, writer: pq.ParquetWriter, schema: pa.Schema) -> None:
        self._writer, self._schema = writer, schema
        self._waiting = schema.empty_table()
        self._rows: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
        self.labels: Counter[str] = Counter()
        """Images a class."""

    def add(self, table: pa.Table, squared_norms: NDArray[np.float64]) -> None:
        """Add rows of a part; a further column that it lacks is null."""
        known = table.append_column("squared_norm", pa.array(squared_norms))
        columns = [
            known[field.name].cast(field.type)
            if field.name in known.column_names
            else pa.nulls(len(known), field.type)
            for field in self._schema
        ]
        self._rows.append(table["row"].to_numpy().astype(np.int64))
        self.labels.update(str(label) for label in table["label"].drop_null().to_pylist())
        added = pa.table(columns, schema=self._schema)
        self._waiting = pa.concat_tables([self._waiting, added])
        if len(self._waiting) >= _GROUP:
            whole = len(self._waiting) // _GROUP * _GROUP
            self._write(self._waiting.slice(0, whole))
            rest = self._waiting.slice(whole)
            self._waiting = rest.take(
                pa.array(range(len(rest)), pa.int64())
            )  # lets go of what was written

    def close(self) -> NDArray[np.int64]:
        """Write what is left, and give the rows in their order."""
        self._write(self._waiting)
        return np.concatenate(self._rows)

    def _write(self, table: pa.Table) -> None:
        self._writer.write_table(table.combine_chunks(), row_group_size=_GROUP)


@contextmanager
def rows_file(path: Path, more: pa.Schema) -> Iterator[RowsFile]:
    """Open a table of rows for writing; it is sealed at the end. `more` are further columns."""
    schema = pa.schema([*SHARD_ROWS.schema, *more])
    with open(path, "wb") as file, parquet_writer(file, schema) as writer:
        yield RowsFile(writer, schema)
    seal_file(path)
