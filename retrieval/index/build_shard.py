"""A shard made of some parts of a store: two passes, so that it is in memory once.

First the parts are read one by one, each vector gets its list, and the vectors go to a file in a
scratch folder; then FAISS' lists are given their final sizes and filled from that file. (A list
that grows as rows come doubles, and so would the memory.) What is put was written straight to a
file.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from retrieval.embeddings.store import Store, vectors_of
from retrieval.errors import Damaged
from retrieval.index import lossy
from retrieval.index.coverage import Extents
from retrieval.index.faiss_files import centroids_of, from_bytes
from retrieval.index.kmeans import distances, list_metric
from retrieval.index.shards import Note, Shard, note_path, read_note, rows_path, shard_path
from retrieval.scoring import block, nearest, norms_of
from retrieval.storage import commit
from retrieval.storage.files import Folder
from retrieval.storage.seal import sealed_parquet
from retrieval.tables import SHARD_ROWS, FileRecord, Metric, further_columns, part_table


def _nothing() -> None:
    """Tell nobody."""


_FILL = 1 << 26  # bytes of vectors that are added to the lists at once
_SPREAD_STEP = 64  # of so many rows one tells how far the shard lies from its centroids


@dataclass(frozen=True)
class Making:
    """What every shard of an index is made with."""

    folder: Folder
    store: Store
    metric: Metric
    trained: bytes
    codes: str | None  # None: they are not the vectors, and FAISS adds
    scratch: str | None = None  # a folder for vectors on their way
    tell: Callable[[], None] = _nothing  # called for each part, as a sign of life


@dataclass(frozen=True)
class Placed:
    """Rows that have their lists: metadata ordered by row, vectors in a file of as many."""

    metadata: pa.Table
    lists: NDArray[np.int64]  # empty where FAISS adds
    spread: float  # 0 where lists are not those of the nearest vector


@dataclass(frozen=True)
class Put:
    """A shard that lies in its place, and that the task still holds."""

    files: tuple[FileRecord, ...]
    shard: Shard
    spread: float


def put_shard(making: Making, number: int, extents: Extents) -> Put:
    """Put one shard, or find it put by an earlier run."""
    there = _put_before(making, number, extents)
    if there is not None:
        return there
    index = from_bytes(making.trained)
    with tempfile.TemporaryDirectory(dir=making.scratch) as scratch:
        name = os.path.join(scratch, "vectors")
        with open(name, "wb") as file:
            placed = _place(making, extents, index, file)
        _fill(making, index, placed, name)
        os.truncate(name, 0)
        faiss_file = _put_faiss(making.folder, shard_path(number), index, scratch)
    rows = sealed_parquet(placed.metadata)
    files = faiss_file, commit.put_once(making.folder, rows_path(number), rows)
    if files[1] != commit.record(rows_path(number), rows):
        raise _altered(making.folder, rows_path(number))
    note = Note(extents, placed.spread, {file.path: file.sha256 for file in files})
    noted = commit.put_once(making.folder, note_path(number), note.to_json())
    return Put((*files, noted), _shard(making, index, placed.metadata), placed.spread)


def _shard(making: Making, index: Any, metadata: pa.Table) -> Shard:
    return Shard(index, metadata, making.metric, making.codes, making.store.deleted)


def _put_before(making: Making, number: int, extents: Extents) -> Put | None:
    """Find a shard that an earlier run put; its note vouches for the other two files."""
    folder = making.folder
    try:
        note = read_note(folder, number)
    except FileNotFoundError:
        return None
    if note.extents != extents:
        raise _altered(folder, note_path(number))
    data = {path: _read(folder, path) for path in (shard_path(number), rows_path(number))}
    files = [commit.record(path, content) for path, content in data.items()]
    for file in files:
        if note.files.get(file.path) != file.sha256:
            raise _altered(folder, file.path)
    metadata = pq.read_table(io.BytesIO(data[rows_path(number)]))
    noted = commit.record(note_path(number), note.to_json())
    shard = _shard(making, from_bytes(data[shard_path(number)]), metadata)
    return Put((*files, noted), shard, note.spread)


def _read(folder: Folder, path: str) -> bytes:
    try:
        return folder.read(path)
    except FileNotFoundError:
        raise Damaged(f"{folder.uri(path)} is missing; remove the index and run again") from None


def _altered(folder: Folder, path: str) -> Damaged:
    return Damaged(f"{folder.uri(path)} was altered; remove the index and run again")


def _place(making: Making, extents: Extents, index: Any, file: BinaryIO) -> Placed:
    """Give each row its list, decided by us, so that FAISS' own rounding has no say."""
    coarse = lossy.coarse_of(index)
    centroids = block(centroids_of(index), list_metric(making.metric)) if coarse.is_plain else None
    tables, lists, far = [], [np.empty(0, np.int64)], [np.empty(0)]
    for table in _tables(making.store, extents):
        making.tell()
        values = vectors_of(table)
        norms = norms_of(values)
        file.write(np.ascontiguousarray(values).tobytes())
        tables.append(_metadata(table, norms))
        if centroids is None:
            continue
        rows = block(values, centroids.metric, norms)
        few = np.arange(0, len(rows), _SPREAD_STEP)
        if making.codes:
            lists.append(nearest(rows, centroids))
            own = lists[-1][few]
        else:
            own = nearest(rows.take(few), centroids)
        far.append(distances(rows.take(few), centroids, own))
    found = np.concatenate(far)
    spread = float(found.mean()) if len(found) else 0.0
    return Placed(_joined(tables), np.concatenate(lists), spread)


def _tables(store: Store, extents: Extents) -> Iterator[pa.Table]:
    for extent in extents:
        table = store.part_rows(extent.path, extent.first, extent.last)
        if len(table):
            yield table


def _metadata(table: pa.Table, norms: NDArray[np.float64]) -> pa.Table:
    """Give what is kept of each row; further columns of its source go along."""
    fixed = [name for name in SHARD_ROWS.schema.names if name != "norm"]
    dimension = table.schema.field("embedding").type.list_size
    more = further_columns(table.schema, part_table(dimension, "float32"))
    kept = table.select(fixed).append_column("norm", pa.array(norms))
    for name in more.names:
        kept = kept.append_column(more.field(name), table[name])
    return kept


def _joined(tables: list[pa.Table]) -> pa.Table:
    """Join what parts say; where one of them lacks a further column, it is null."""
    whole = pa.concat_tables([SHARD_ROWS.schema.empty_table(), *tables], promote_options="default")
    return whole.combine_chunks()


def _fill(making: Making, index: Any, placed: Placed, name: str) -> None:
    """Add the vectors in the order of their rows; to lists that have room where we decide them."""
    rows = placed.metadata["row"].to_numpy().astype(np.int64)
    if len(rows) == 0:
        return
    if making.codes:
        _make_room(index, placed.lists)
    vectors = np.memmap(name, making.store.dtype, "r", shape=(len(rows), index.d))
    step = max(1, _FILL // (4 * index.d))
    for first in range(0, len(rows), step):
        part = slice(first, first + step)
        if making.codes:
            add_rows(index, np.array(vectors[part], np.float32), rows[part], placed.lists[part])
        else:
            lossy.add_rows(index, lossy.wide_of(vectors[part], making.metric), rows[part])


def _make_room(index: Any, lists: NDArray[np.int64]) -> None:
    sizes = np.bincount(lists, minlength=index.nlist)
    for number in np.flatnonzero(sizes):
        index.invlists.resize(int(number), int(sizes[number]))
        index.invlists.resize(int(number), 0)  # the room stays


def add_rows(
    index: Any, wide: NDArray[np.float32], rows: NDArray[np.int64], lists: NDArray[np.int64]
) -> None:
    """Add (n, d) vectors to the lists that were decided for them."""
    rows, lists = np.ascontiguousarray(rows), np.ascontiguousarray(lists)
    index.add_core(len(wide), faiss.swig_ptr(wide), faiss.swig_ptr(rows), faiss.swig_ptr(lists))


def _put_faiss(folder: Folder, path: str, index: Any, scratch: str) -> FileRecord:
    """Put a FAISS file; one that a killed run left is kept if it is the same."""
    made: list[FileRecord] = []

    def write(name: str) -> None:
        faiss.write_index(index, name)
        with open(name, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        made.append(FileRecord(path, None, os.path.getsize(name), digest))

    if not folder.put_new_file(path, write):
        if not made:
            write(os.path.join(scratch, "again"))
        with folder.open(path) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
        if digest != made[0].sha256:
            raise _altered(folder, path)
    return made[0]
