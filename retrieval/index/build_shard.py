"""A shard made of some parts of a store: two passes, so that it is in memory once.

First the parts are read one by one, each vector gets its list, and the vectors go to a file in a
scratch folder; then FAISS' lists are given their final sizes and filled from that file. (A list
that grows as rows come doubles, and so would the memory.) What is put was written straight to a
file.
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
from retrieval.index.coverage import Extents
from retrieval.index.drift import spread_from
from retrieval.index.faiss_io import centroids_of, from_bytes
from retrieval.index.kmeans import distances, list_metric
from retrieval.index.rows_file import RowsFile, rows_file
from retrieval.index.shard import (
    Note,
    Shard,
    note_path,
    read_index,
    read_note,
    read_streamed,
    rows_path,
    shard_path,
)
from retrieval.storage import transaction
from retrieval.storage.local import Folder
from retrieval.storage.transaction import record_of
from retrieval.store.reader import Store, vectors_of
from retrieval.vectors.matmul import product_for
from retrieval.vectors.scoring import block
from retrieval.vectors.topk import nearest


def nothing() -> None:
    """Give no sign of life."""


_FILL = 1 << 24  # bytes of vectors that are added to the lists at once
_SPREAD_STEP = 64  # of so many rows one tells how far the shard lies from its centroids,
_SPREAD_ROWS = 4096  # but so many tell it at least, or all


@dataclass(frozen=True)
class Making:
    """What every shard of an index is made with."""

    folder: Folder
    store: Store
    metric: Metric
    trained: bytes
    codes: str | None  # None: they are not the vectors, and FAISS adds
    scratch: str | None = None  # a folder for vectors on their way
    tell: Callable[[], None] = nothing  # called for each part, as a sign of life


@dataclass(frozen=True)
class Placed:
    """Rows that have their lists; their vectors and what is known of them lie in scratch files."""

    rows: NDArray[np.int64]
    lists: NDArray[np.int32]
    labels: Counter[str]
    spread: Spread


@dataclass(frozen=True)
class Put:
    """A shard that lies in its place, and that the task still holds."""

    files: tuple[FileRecord, ...]
    shard: Shard  # of whose table of rows it has only the column `row`
    labels: Counter[str]  # of live images a class
    spread: Spread


def put_shard(making: Making, number: int, extents: Extents) -> Put:
    """Put one shard, or find it put by an earlier run."""
    there = _put_before(making, number, extents)
    if there is not None:
        return there
    index = from_bytes(making.trained)
    with tempfile.TemporaryDirectory(dir=making.scratch) as scratch:
        vectors, rows = Path(scratch, "vectors"), Path(scratch, "rows")
        with open(vectors, "wb") as file, rows_file(rows, making.store.more) as table:
            placed = _place(making, extents, index, file, table)
        _fill(making, index, placed, vectors)
        vectors.unlink()
        files = (
            _put(making.folder, shard_path(number), lambda name: faiss.write_index(index, name),
                 scratch),
            _put(making.folder, rows_path(number), lambda name: _copy(rows, name), scratch),
        )  # fmt: skip
    note = Note(extents, placed.spread, {file.path: file.sha256 for file in files})
    noted = transaction.put_once(making.folder, note_path(number), note.to_json())
    shard = _shard(making, index, pa.table({"row": placed.rows}))
    return Put((*files, noted), shard, placed.labels, placed.spread)


def _shard(making: Making, index: Any, metadata: pa.Table) -> Shard:
    return Shard(index, metadata, making.metric, making.codes, making.store.deleted)


def _copy(source: Path, name: str) -> None:
    shutil.copyfile(source, name)


def _put_before(making: Making, number: int, extents: Extents) -> Put | None:
    """Find a shard that an earlier run put; its note vouches for the other two files."""
    folder = making.folder
    try:
        note = read_note(folder, number)
    except FileNotFoundError:
        return None
    if note.extents != extents:
        raise _altered(folder, note_path(number))
    opened = {}
    files = []
    for path, read in ((shard_path(number), read_index), (rows_path(number), _rows_and_labels)):
        opened[path], record = read_streamed(folder, path, read, making.scratch)
        if note.files.get(path) != record.sha256:
            raise _altered(folder, path)
        files.append(record)
    table = opened[rows_path(number)]
    noted = transaction.record(note_path(number), note.to_json())
    shard = _shard(making, opened[shard_path(number)], table)
    labels = table["label"].filter(pa.array(shard.alive)).drop_null()
    counted = Counter(str(label) for label in labels.to_pylist())
    return Put((*files, noted), shard, counted, note.spread)


def _rows_and_labels(name: str) -> pa.Table:
    return pq.read_table(name, columns=["row", "label"])


def _altered(folder: Folder, path: str) -> Damaged:
    return Damaged(f"{folder.uri(path)} was altered; remove the index and run again")


def _place(making: Making, extents: Extents, index: Any, file: BinaryIO, known: RowsFile) -> Placed:
    """Give each row its list, decided by us, so that FAISS' own rounding has no say."""
    coarse = quantized_codes.coarse_of(index)
    centroids = block(centroids_of(index), list_metric(making.metric)) if coarse.is_plain else None
    lists, measured = [np.empty(0, np.int32)], []
    count = sum(extent.last - extent.first for extent in extents)
    product = product_for("cpu", float(count) * coarse.ivf.nlist * making.store.dimension)
    step, before = max(1, min(_SPREAD_STEP, count // _SPREAD_ROWS)), 0
    for table in _tables(making.store, extents):
        making.tell()
        values = vectors_of(table)
        file.write(np.ascontiguousarray(values).tobytes())
        rows = block(values, list_metric(making.metric))
        known.add(table, rows.squared_norms)
        if centroids is None:
            continue
        some = np.arange(-before % step, len(rows), step)
        before += len(rows)
        if making.codes:
            own = nearest(rows, centroids, product)
            lists.append(own.astype(np.int32))
            own = own[some]
        else:
            own = nearest(rows.take(some), centroids)
        measured.append(distances(rows.take(some), centroids, own))
    spread = spread_from(measured)
    return Placed(known.close(), np.concatenate(lists), known.labels, spread)


def _tables(store: Store, extents: Extents) -> Iterator[pa.Table]:
    for extent in extents:
        table = store.part_rows(extent.path, extent.first, extent.last)
        if len(table):
            yield table


def _fill(making: Making, index: Any, placed: Placed, name: Path) -> None:
    """Add the vectors in the order of their rows; to lists that have room where we decide them."""
    if making.codes:
        make_room(index, placed.lists)
    stored = np.dtype(making.store.dtype)
    dimension = making.store.dimension
    step = max(1, _FILL // (dimension * stored.itemsize))
    with open(name, "rb") as file:  # not mapped: pages that were read would count as ours
        for first in range(0, len(placed.rows), step):
            part = slice(first, first + step)
            values = np.fromfile(file, stored, step * dimension).reshape(-1, dimension)
            if making.codes:
                values = values.astype(making.codes, copy=False)
                add_codes(index, values, placed.rows[part], placed.lists[part])
            else:
                wide = quantized_codes.wide_of(values, making.metric)
                quantized_codes.add_rows(index, wide, placed.rows[part])


def make_room(index: Any, lists: NDArray[np.integer[Any]]) -> None:
    """Let each list hold what will come, so that none is moved as it grows."""
    sizes = np.bincount(lists, minlength=index.nlist)
    for number in np.flatnonzero(sizes):
        index.invlists.resize(int(number), int(sizes[number]))
        index.invlists.resize(int(number), 0)  # the room stays


def add_codes(
    index: Any, values: Vectors, rows: NDArray[np.int64], lists: NDArray[np.integer[Any]]
) -> None:
    """Add (n, d) vectors of the index's own dtype to the lists that were decided for them.

    They are the codes as they are: nothing is left for FAISS to encode or to decide. They are
    brought together list by list: all at once, memory that is new each time costs more than adding.
    """
    order = np.argsort(lists, kind="stable")
    sizes = np.bincount(lists, minlength=index.nlist)
    ends = np.cumsum(sizes)
    for number in np.flatnonzero(sizes).tolist():
        its = order[ends[number] - sizes[number] : ends[number]]
        codes, ids = values[its], rows[its]
        index.invlists.add_entries(
            number, len(its), faiss.swig_ptr(ids), faiss.swig_ptr(codes.view(np.uint8))
        )
    index.ntotal += len(order)


def _put(folder: Folder, path: str, write: Callable[[str], None], scratch: str) -> FileRecord:
    """Put a file that `write` makes; one that a killed run left is kept if it is the same."""
    made: list[FileRecord] = []

    def write_and_note(name: str) -> None:
        write(name)
        with open(name, "rb") as file:
            made.append(record_of(path, file))

    if not folder.put_new_file(path, write_and_note):
        if not made:
            write_and_note(os.path.join(scratch, "again"))
        with folder.open(path) as file:
            if record_of(path, file) != made[0]:
                raise _altered(folder, path)
    return made[0]
