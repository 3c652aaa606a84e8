"""What is known of very many files, as columns: a line takes some 120 bytes, Python's objects 400.

A driver holds the records of all files of a store. An object is made when one is asked for.
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
_LISTED = pa.schema([("path", pa.string()), ("size", pa.int64())])


class _Lines:
    """Lines in the order of their paths, of one piece a column."""

    def __init__(self, table: pa.Table) -> None:
        self.table = _whole(table)

    @property
    def paths(self) -> Paths:
        """Give the paths, ascending."""
        return _column(self.table, "path")

    def __len__(self) -> int:
        return len(self.table)


class Inventory(_Lines, Mapping[str, FileRecord]):
    """Records by path, in the order of the paths; `table` has the columns of files.parquet."""

    def __iter__(self) -> Iterator[str]:
        return (record.path for record in self.values())

    def __getitem__(self, path: str) -> FileRecord:
        paths = self.paths
        place = bisect_left(range(len(paths)), path, key=lambda at: paths[at].as_py())
        if place == len(paths) or paths[place].as_py() != path:
            raise KeyError(path)
        return FileRecord(**self.table.slice(place, 1).to_pylist()[0])

    def values(self) -> ValuesView[FileRecord]:
        """Give the records."""
        return _Values(self)

    def at(self, places: NDArray[np.int64]) -> Inventory:
        """Give the lines at some places, which ascend."""
        return Inventory(self.table.take(pa.array(places)))

    def kept(self, keep: pa.Array) -> Inventory:
        """Give the lines that a mask keeps."""
        return self if keep.true_count == len(self) else Inventory(self.table.filter(keep))


class _Values(ValuesView[FileRecord]):
    """The records one after another, without looking each path up."""

    _mapping: Inventory

    def __iter__(self) -> Iterator[FileRecord]:
        for columns in _lines(self._mapping.table):
            yield from map(FileRecord, *columns)


def read_inventory(data: bytes) -> Inventory:
    """Read the bytes of files.parquet; column by column, so that one is there twice, not all."""
    file = pq.ParquetFile(pa.BufferReader(data))
    columns = {name: file.read([name])[name].combine_chunks() for name in FILES.schema.names}
    made = Inventory(pa.table(columns, schema=FILES.schema))
    pa.default_memory_pool().release_unused()
    return made


class Entries(_Lines):
    """The files that a listing found, by path; `table` has the columns path and size."""

    def __iter__(self) -> Iterator[Entry]:
        for columns in _lines(self.table):
            yield from map(Entry, *columns)

    def outside(self, inventory: Inventory) -> Entries:
        """Give those that an inventory does not name."""
        if self.paths.equals(inventory.paths):
            return Entries(_LISTED.empty_table())
        return Entries(self.table.filter(pc.invert(among(self.paths, inventory.paths))))

    def without(self, paths: set[str]) -> Paths:
        """Give all paths but some."""
        if not paths:
            return self.paths
        return self.paths.filter(pc.invert(among(self.paths, pa.array(sorted(paths)))))


class Gathered:
    """Records as they come; of several of one path the last one counts."""

    def __init__(self, records: Iterable[FileRecord] = ()) -> None:
        self._tables = [FILES.schema.empty_table()]
        self._waiting: list[FileRecord] = []
        self.add(records)

    def add(self, records: Iterable[FileRecord] | Inventory) -> None:
        """Take some more."""
        if isinstance(records, Inventory):
            self._put_down()
            self._tables.append(records.table)
            return
        for record in records:
            self._waiting.append(record)
            if len(self._waiting) == _BATCH:
                self._put_down()

    def _put_down(self) -> None:
        columns = [[getattr(row, name) for row in self._waiting] for name in FILES.schema.names]
        self._tables.append(pa.table(columns, schema=FILES.schema))
        self._waiting = []

    def inventory(self) -> Inventory:
        """Give all that came, by path; nothing is left here."""
        self._put_down()
        tables, self._tables = self._tables, [FILES.schema.empty_table()]
        table = _by_path(tables)
        paths = _column(table, "path")
        differ = pc.not_equal(paths[:-1], paths[1:])
        last = pa.concat_arrays([differ, pa.array([True] * min(1, len(paths)), pa.bool_())])
        return Inventory(table).kept(last)


Known = Iterable[FileRecord] | Inventory | Gathered
"""Records that need not be read; what was gathered is used up."""


def inventory_of(known: Known) -> Inventory:
    """Give records by path."""
    if isinstance(known, Inventory):
        return known
    return (known if isinstance(known, Gathered) else Gathered(known)).inventory()


def listed(entries: Iterable[Entry]) -> Entries:
    """Hold what a listing gives, by path.

    A path that is not UTF-8 is none of ours: it stands there in another form, which opens nothing.
    """
    tables, paths, sizes = [_LISTED.empty_table()], [], []
    for entry in entries:
        paths.append(entry.path)
        sizes.append(entry.size)
        if len(paths) == _BATCH:
            tables.append(_listed(paths, sizes))
            paths, sizes = [], []
    tables.append(_listed(paths, sizes))
    return Entries(_by_path(tables))


def _listed(paths: list[str], sizes: list[int]) -> pa.Table:
    try:
        return pa.table([paths, sizes], schema=_LISTED)
    except UnicodeEncodeError:
        readable = [path.encode("utf-8", "backslashreplace").decode() for path in paths]
        return pa.table([readable, sizes], schema=_LISTED)


def among(paths: Paths, others: Paths) -> pa.BooleanArray:
    """Tell which paths are among others."""
    return pc.is_in(paths, value_set=others)


def _by_path(tables: list[pa.Table]) -> pa.Table:
    """Order lines by the bytes of their paths; lines of one path keep their order.

    The list is emptied, so that not everything is there three times.
    """
    filled = [table for table in tables if len(table)] or tables[:1]
    tables.clear()
    table = _whole(pa.concat_tables(filled))
    del filled
    paths = _column(table, "path")
    if pc.all(pc.less(paths[:-1], paths[1:]), min_count=0).as_py():
        return table
    made = table.take(pc.sort_indices(paths))
    del table, paths
    pa.default_memory_pool().release_unused()  # which Arrow would keep for later
    return made


def _whole(table: pa.Table) -> pa.Table:
    """Give a table of one piece a column; one that is so already is not copied."""
    pieces = max((column.num_chunks for column in table.columns), default=0)
    return table if pieces < 2 else table.combine_chunks()


def _column(table: pa.Table, name: str) -> Any:
    column = table[name]
    return column.chunk(0) if column.num_chunks else pa.array([], column.type)


def _lines(table: pa.Table) -> Iterator[list[list[Any]]]:
    """Give the columns, some lines at a time."""
    for batch in table.to_batches(_BATCH):
        yield [column.to_pylist() for column in batch.columns]
