"""Columnar tables of file records; the driver holds those of all files of a store.

A row takes some 120 bytes as Arrow columns and 400 as a Python object, which is created on demand.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, ValuesView
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from retrieval.core.records import FileRecord
from retrieval.core.schemas import FILES, Paths
from retrieval.storage.folder import Entry

_BATCH = 1 << 14
_ENTRY_SCHEMA = pa.schema([("path", pa.string()), ("size", pa.int64())])


class _FileTable:
    """Table of files in the order of their paths, with one chunk per column."""

    def __init__(self, table: pa.Table) -> None:
        self.table = _combine_chunks(table)

    @property
    def paths(self) -> Paths:
        """Return the (n,) paths in ascending order."""
        return _column(self.table, "path")

    def __len__(self) -> int:
        return len(self.table)


class Inventory(_FileTable, Mapping[str, FileRecord]):
    """File records by path, in path order; `table` has the columns of files.parquet."""

    def __iter__(self) -> Iterator[str]:
        return (record.path for record in self.values())

    def __getitem__(self, path: str) -> FileRecord:
        paths = self.paths
        position = bisect_left(range(len(paths)), path, key=lambda index: paths[index].as_py())
        if position == len(paths) or paths[position].as_py() != path:
            raise KeyError(path)
        return FileRecord(**self.table.slice(position, 1).to_pylist()[0])

    def values(self) -> ValuesView[FileRecord]:
        """Return a view of the records."""
        return _RecordsView(self)

    def take(self, positions: NDArray[np.int64]) -> Inventory:
        """Return the rows at ascending positions."""
        return Inventory(self.table.take(pa.array(positions)))

    def filter(self, mask: pa.Array) -> Inventory:
        """Return the rows for which a boolean mask is true."""
        return self if mask.true_count == len(self) else Inventory(self.table.filter(mask))


class _RecordsView(ValuesView[FileRecord]):
    """View of the records in order that does not look up each path."""

    _mapping: Inventory

    def __iter__(self) -> Iterator[FileRecord]:
        for columns in _iterate_batches(self._mapping.table):
            yield from map(FileRecord, *columns)


def read_inventory(data: bytes) -> Inventory:
    """Parse the bytes of files.parquet, one column at a time to limit memory."""
    file = pq.ParquetFile(pa.BufferReader(data))
    columns = {name: file.read([name])[name].combine_chunks() for name in FILES.schema.names}
    inventory = Inventory(pa.table(columns, schema=FILES.schema))
    pa.default_memory_pool().release_unused()
    return inventory


class Entries(_FileTable):
    """Listed files in path order; `table` has the columns path and size."""

    def __iter__(self) -> Iterator[Entry]:
        for columns in _iterate_batches(self.table):
            yield from map(Entry, *columns)

    def not_in(self, inventory: Inventory) -> Entries:
        """Return the entries whose paths are not in an inventory."""
        if self.paths.equals(inventory.paths):
            return Entries(_ENTRY_SCHEMA.empty_table())
        return Entries(self.table.filter(pc.invert(is_among(self.paths, inventory.paths))))

    def paths_except(self, paths: set[str]) -> Paths:
        """Return all paths except those in `paths`."""
        if not paths:
            return self.paths
        return self.paths.filter(pc.invert(is_among(self.paths, pa.array(sorted(paths)))))


class RecordCollector:
    """Collect file records in any order; the last record of each path counts."""

    def __init__(self, records: Iterable[FileRecord] = ()) -> None:
        self._tables = [FILES.schema.empty_table()]
        self._pending: list[FileRecord] = []
        self.add(records)

    def add(self, records: Iterable[FileRecord] | Inventory) -> None:
        """Add records, which replace earlier ones of the same paths."""
        if isinstance(records, Inventory):
            self._flush()
            self._tables.append(records.table)
            return
        for record in records:
            self._pending.append(record)
            if len(self._pending) == _BATCH:
                self._flush()

    def _flush(self) -> None:
        columns = [[getattr(row, name) for row in self._pending] for name in FILES.schema.names]
        self._tables.append(pa.table(columns, schema=FILES.schema))
        self._pending = []

    def inventory(self) -> Inventory:
        """Return all collected records and empty the collector."""
        self._flush()
        tables, self._tables = self._tables, [FILES.schema.empty_table()]
        table = _sort_by_path(tables)
        paths = _column(table, "path")
        differ = pc.not_equal(paths[:-1], paths[1:])
        is_last = pa.concat_arrays([differ, pa.array([True] * min(1, len(paths)), pa.bool_())])
        return Inventory(table).filter(is_last)


KnownRecords = Iterable[FileRecord] | Inventory | RecordCollector
"""Records of files that need not be read again; using a collector empties it."""


def as_inventory(records: KnownRecords) -> Inventory:
    """Return records as an inventory; a collector is emptied."""
    if isinstance(records, Inventory):
        return records
    return (
        records if isinstance(records, RecordCollector) else RecordCollector(records)
    ).inventory()


def collect_entries(entries: Iterable[Entry]) -> Entries:
    """Collect listed files into a table.

    A path that is not UTF-8 was not written by lookalike; its escaped form does not open a file.
    """
    tables, paths, sizes = [_ENTRY_SCHEMA.empty_table()], [], []
    for entry in entries:
        paths.append(entry.path)
        sizes.append(entry.size)
        if len(paths) == _BATCH:
            tables.append(_entry_table(paths, sizes))
            paths, sizes = [], []
    tables.append(_entry_table(paths, sizes))
    return Entries(_sort_by_path(tables))


def _entry_table(paths: list[str], sizes: list[int]) -> pa.Table:
    try:
        return pa.table([paths, sizes], schema=_ENTRY_SCHEMA)
    except UnicodeEncodeError:
        escaped = [path.encode("utf-8", "backslashreplace").decode() for path in paths]
        return pa.table([escaped, sizes], schema=_ENTRY_SCHEMA)


def is_among(paths: Paths, others: Paths) -> pa.BooleanArray:
    """Return a mask of the paths that are among others."""
    return pc.is_in(paths, value_set=others)


def _sort_by_path(tables: list[pa.Table]) -> pa.Table:
    """Concatenate tables and sort the rows by the bytes of their paths; the sort is stable.

    The list is emptied, to limit memory.
    """
    filled = [table for table in tables if len(table)] or tables[:1]
    tables.clear()
    table = _combine_chunks(pa.concat_tables(filled))
    del filled
    paths = _column(table, "path")
    if pc.all(pc.less(paths[:-1], paths[1:]), min_count=0).as_py():
        return table
    sorted_table = table.take(pc.sort_indices(paths))
    del table, paths
    pa.default_memory_pool().release_unused()  # Arrow would keep the memory otherwise
    return sorted_table


def _combine_chunks(table: pa.Table) -> pa.Table:
    """Return a table with one chunk per column; it is copied only if necessary."""
    chunks = max((column.num_chunks for column in table.columns), default=0)
    return table if chunks < 2 else table.combine_chunks()


def _column(table: pa.Table, name: str) -> Any:
    column = table[name]
    return column.chunk(0) if column.num_chunks else pa.array([], column.type)


def _iterate_batches(table: pa.Table) -> Iterator[list[list[Any]]]:
    """Iterate over the columns as lists, a batch of rows at a time."""
    for batch in table.to_batches(_BATCH):
        yield [column.to_pylist() for column in batch.columns]
