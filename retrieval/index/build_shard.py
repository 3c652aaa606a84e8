"""Building one shard of an index from some extents of the store, in two passes.

The first pass reads the parts one by one, assigns each vector to its list and writes the vectors to
a temporary file. The second pass reserves the final size of each FAISS list and fills it from that
file, so that memory holds the shard once: lists that grow row by row double their capacity.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from retrieval.core.errors import Damaged
from retrieval.core.records import FileRecord, Spread
from retrieval.core.schemas import Metric, Vectors
from retrieval.index import quantized_codes
from retrieval.index.drift import measure_spread
from retrieval.index.faiss_io import deserialize_index, read_centroids
from retrieval.index.kmeans import assignment_metric, distances_to_centroids
from retrieval.index.rows_file import ShardRowsWriter, open_rows_file
from retrieval.index.shard import (
    Extents,
    Shard,
    ShardRecord,
    read_faiss_index,
    read_shard_record,
    read_via_local_file,
    shard_path,
    shard_record_path,
    shard_rows_path,
)
from retrieval.storage import transaction
from retrieval.storage.local import Folder
from retrieval.storage.transaction import read_file_record
from retrieval.store.reader import Store, read_vectors
from retrieval.vectors.matmul import choose_product
from retrieval.vectors.scoring import block
from retrieval.vectors.topk import nearest_centroids


def do_nothing() -> None:
    """Do nothing (default heartbeat)."""


_FILL = 1 << 24  # bytes of vectors that are added to the lists at once
_SPREAD_STEP = 64  # every 64th row is measured for the spread around the centroids,
_SPREAD_ROWS = 4096  # but at least this many rows, or all


@dataclass(frozen=True)
class ShardBuildContext:
    """The inputs that all shards of an index share."""

    folder: Folder
    store: Store
    metric: Metric
    trained: bytes
    codes: str | None  # float16 or float32; None for lossy codes
    scratch: str | None = None  # folder for temporary files
    on_part: Callable[[], None] = do_nothing  # called for each part that is read, as a heartbeat


@dataclass(frozen=True)
class AssignedRows:
    """Rows with their assigned lists; vectors and metadata are in temporary files."""

    rows: NDArray[np.int64]
    lists: NDArray[np.int32]
    labels: Counter[str]
    spread: Spread


@dataclass(frozen=True)
class BuiltShard:
    """A shard that has been written and is still in memory."""

    files: tuple[FileRecord, ...]
    shard: Shard  # its metadata has only the column `row`
    labels: Counter[str]  # live images per label
    spread: Spread


def write_shard(context: ShardBuildContext, number: int, extents: Extents) -> BuiltShard:
    """Build and write one shard, or return the one that an earlier run wrote."""
    existing = _read_existing(context, number, extents)
    if existing is not None:
        return existing
    index = deserialize_index(context.trained)
    with tempfile.TemporaryDirectory(dir=context.scratch) as scratch:
        vectors, rows = Path(scratch, "vectors"), Path(scratch, "rows")
        with (
            open(vectors, "wb") as file,
            open_rows_file(rows, context.store.metadata_columns) as table,
        ):
            assigned_rows = _assign_rows(context, extents, index, file, table)
        _fill(context, index, assigned_rows, vectors)
        vectors.unlink()
        writers: tuple[tuple[str, Callable[[str], None]], ...] = (
            (shard_path(number), lambda name: faiss.write_index(index, name)),
            (shard_rows_path(number), lambda name: _copy(rows, name)),
        )
        files = tuple(_write_once(context.folder, path, write, scratch) for path, write in writers)
    shard_record = ShardRecord(
        extents, assigned_rows.spread, {file.path: file.sha256 for file in files}
    )
    record_file = transaction.put_if_absent(
        context.folder, shard_record_path(number), shard_record.to_json()
    )
    shard = _shard(context, index, pa.table({"row": assigned_rows.rows}))
    return BuiltShard((*files, record_file), shard, assigned_rows.labels, assigned_rows.spread)


def _shard(context: ShardBuildContext, index: Any, metadata: pa.Table) -> Shard:
    return Shard(index, metadata, context.metric, context.codes, context.store.deleted)


def _copy(source: Path, name: str) -> None:
    shutil.copyfile(source, name)


def _read_existing(context: ShardBuildContext, number: int, extents: Extents) -> BuiltShard | None:
    """Return a shard that an earlier run completed, checked against its record, or None."""
    folder = context.folder
    try:
        shard_record = read_shard_record(folder, number)
    except FileNotFoundError:
        return None
    if shard_record.extents != extents:
        raise _altered(folder, shard_record_path(number))
    opened = {}
    files = []
    for path, read in (
        (shard_path(number), read_faiss_index),
        (shard_rows_path(number), _rows_and_labels),
    ):
        opened[path], record = read_via_local_file(folder, path, read, context.scratch)
        if shard_record.files.get(path) != record.sha256:
            raise _altered(folder, path)
        files.append(record)
    table = opened[shard_rows_path(number)]
    record_file = transaction.file_record(shard_record_path(number), shard_record.to_json())
    shard = _shard(context, opened[shard_path(number)], table)
    labels = table["label"].filter(pa.array(shard.alive)).drop_null()
    label_counts = Counter(str(label) for label in labels.to_pylist())
    return BuiltShard((*files, record_file), shard, label_counts, shard_record.spread)


def _rows_and_labels(name: str) -> pa.Table:
    return pq.read_table(name, columns=["row", "label"])


def _altered(folder: Folder, path: str) -> Damaged:
    return Damaged(f"{folder.uri(path)} was altered; remove the index and run again")


def _assign_rows(
    context: ShardBuildContext,
    extents: Extents,
    index: Any,
    file: BinaryIO,
    rows_writer: ShardRowsWriter,
) -> AssignedRows:
    """Assign each row to its list, without FAISS, whose rounding depends on the batch."""
    centroids = block(read_centroids(index), assignment_metric(context.metric))
    lists, measured = [np.empty(0, np.int32)], []
    count = sum(extent.last - extent.first for extent in extents)
    product = choose_product("cpu", float(count) * index.nlist * context.store.dimension)
    step, rows_read = max(1, min(_SPREAD_STEP, count // _SPREAD_ROWS)), 0
    for table in _tables(context.store, extents):
        context.on_part()
        values = read_vectors(table)
        file.write(np.ascontiguousarray(values).tobytes())
        rows = block(values, assignment_metric(context.metric))
        rows_writer.add(table, rows.squared_norms)
        sampled = np.arange(-rows_read % step, len(rows), step)
        rows_read += len(rows)
        assigned = nearest_centroids(rows, centroids, product)
        lists.append(assigned.astype(np.int32))
        measured.append(distances_to_centroids(rows.take(sampled), centroids, assigned[sampled]))
    spread = measure_spread(measured)
    return AssignedRows(rows_writer.close(), np.concatenate(lists), rows_writer.labels, spread)


def _tables(store: Store, extents: Extents) -> Iterator[pa.Table]:
    for extent in extents:
        table = store.part_rows(extent.path, extent.first, extent.last)
        if len(table):
            yield table


def _fill(context: ShardBuildContext, index: Any, assigned_rows: AssignedRows, name: Path) -> None:
    """Add the vectors in row order to lists of reserved size, as they are or as lossy codes.

    Packed lists are filled at the end, from the codes of all rows.
    """
    packed = quantized_codes.has_packed_lists(index)
    if not packed:
        reserve_list_space(index, assigned_rows.lists)
    collected = [np.empty((0, index.code_size), np.uint8)]
    stored = np.dtype(context.store.dtype)
    dimension = context.store.dimension
    step = max(1, _FILL // (dimension * stored.itemsize))
    with open(name, "rb") as file:  # not mapped: pages read would count as memory
        for first in range(0, len(assigned_rows.rows), step):
            part = slice(first, first + step)
            values = np.fromfile(file, stored, step * dimension).reshape(-1, dimension)
            if context.codes:
                codes: Any = values.astype(context.codes, copy=False)
            else:
                codes = quantized_codes.encode_vectors(index, values, context.metric)
            if packed:
                collected.append(codes)
            else:
                append_codes(index, codes, assigned_rows.rows[part], assigned_rows.lists[part])
    if packed:
        quantized_codes.fill_packed_lists(
            index, np.concatenate(collected), assigned_rows.rows, assigned_rows.lists
        )


def reserve_list_space(index: Any, lists: NDArray[np.integer[Any]]) -> None:
    """Reserve the final size of each list, so that none is reallocated as it grows."""
    sizes = np.bincount(lists, minlength=index.nlist)
    for number in np.flatnonzero(sizes):
        index.invlists.resize(int(number), int(sizes[number]))
        index.invlists.resize(int(number), 0)  # the capacity remains


def append_codes(
    index: Any, values: Vectors | quantized_codes.Codes, rows: NDArray[np.int64],
    lists: NDArray[np.integer[Any]],
) -> None:  # fmt: skip
    """Append codes, (n, code size) or vectors of the index's dtype, to their assigned lists.

    Vectors are gathered list by list: gathering all at once allocates new memory each time, which
    costs more than appending.
    """
    order = np.argsort(lists, kind="stable")
    sizes = np.bincount(lists, minlength=index.nlist)
    ends = np.cumsum(sizes)
    for number in np.flatnonzero(sizes).tolist():
        members = order[ends[number] - sizes[number] : ends[number]]
        codes, ids = values[members], rows[members]
        index.invlists.add_entries(
            number, len(members), faiss.swig_ptr(ids), faiss.swig_ptr(codes.view(np.uint8))
        )
    index.ntotal += len(order)


def _write_once(
    folder: Folder, path: str, write: Callable[[str], None], scratch: str
) -> FileRecord:
    """Write a file with `write`; one that an interrupted run left must be the same.

    Raises Damaged where it differs.
    """
    records: list[FileRecord] = []

    def write_and_record(name: str) -> None:
        write(name)
        with open(name, "rb") as file:
            records.append(read_file_record(path, file))

    if not folder.put_new_file(path, write_and_record):
        if not records:
            write_and_record(os.path.join(scratch, "again"))
        with folder.open(path) as file:
            if read_file_record(path, file) != records[0]:
                raise _altered(folder, path)
    return records[0]
