"""Runs: rows of some parts of the store, assigned to lists and grouped by list.

    work/runs/GENERATION/FIRST-LAST     of the parts FIRST <= position < LAST of a generation

The first phase of a build writes runs, one task for each; the second one reads the lists of a shard
out of every run (`build_shard.py`). They are files on the output's storage, so that a killed build
continues. A run is a sequence of pieces of whole lists, each a checksummed Parquet file: the list,
the columns of SHARD_ROWS, the metadata of the source and the vector of each row, by list, then row.
Two checksummed Parquet tables follow, the rows of each list and the place of each piece, and the
lengths of both tables.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from retrieval.core.schemas import SHARD_ROWS, WORK_FOLDER, Metric, Vectors
from retrieval.index.faiss_io import deserialize_index, read_centroids
from retrieval.index.generations import Generation
from retrieval.index.kmeans import assignment_metric
from retrieval.storage.checksum import checksummed_parquet, verify_checksum
from retrieval.storage.local import Folder
from retrieval.store.reader import Store, embedding_column, read_vectors
from retrieval.vectors.matmul import choose_product
from retrieval.vectors.scoring import block
from retrieval.vectors.topk import nearest_centroids

PIECE_BYTES = 1 << 18
"""Bytes of vectors of a piece, unless a list has more: a shard reads whole pieces at both ends."""

_LENGTHS = struct.Struct("<QQ")


def do_nothing() -> None:
    """Do nothing (default heartbeat)."""


@dataclass(frozen=True)
class ShardBuildContext:
    """The inputs that all runs and shards of an index share."""

    folder: Folder
    store: Store
    metric: Metric
    trained: bytes
    codes: str | None  # float16 or float32; None for lossy codes, which FAISS encodes
    scratch: str | None = None  # folder for temporary files
    on_part: Callable[[], None] = do_nothing  # called for each file that is read, as a heartbeat


def run_path(generation: Generation, run: tuple[int, int]) -> str:
    """Return the path of the run of some parts of a generation."""
    first, last = run
    return f"{WORK_FOLDER}runs/{generation.sha256[:16]}/{first:08d}-{last:08d}"


def write_run(
    context: ShardBuildContext, generation: Generation, run: tuple[int, int]
) -> NDArray[np.int64]:
    """Assign the rows of some parts to lists and write them as a run, unless it exists.

    The store of the context is that of `Generation.store_of`. Returns the number of rows of each
    list, (nlist,).
    """
    path = run_path(generation, run)
    try:
        return read_run_counts(context.folder, path)
    except FileNotFoundError:
        pass
    rows = _assign_parts(context, generation, run)
    nlist = deserialize_index(context.trained).nlist
    context.folder.put_new_file(path, lambda name: _write_pieces(name, rows, nlist))
    return np.bincount(rows.lists, minlength=nlist)


@dataclass(frozen=True)
class _AssignedRows:
    """Rows with their lists, (n,), metadata and vectors, (n, d), in any order."""

    lists: NDArray[np.int64]
    metadata: pa.Table  # SHARD_ROWS with further columns
    vectors: Vectors


def _assign_parts(
    context: ShardBuildContext, generation: Generation, run: tuple[int, int]
) -> _AssignedRows:
    store, metric = context.store, assignment_metric(context.metric)
    centroids = block(read_centroids(deserialize_index(context.trained)), metric)
    parts = generation.parts.slice(run[0], run[1] - run[0])
    pairs = float(sum(parts["rows"].to_pylist())) * len(centroids)
    product = choose_product("cpu", pairs * store.dimension)
    schema = rows_schema(store.metadata_columns)
    lists, vectors = [np.empty(0, np.int64)], [np.empty((0, store.dimension), store.dtype)]
    tables = [schema.empty_table()]
    for path in parts["path"].to_pylist():
        context.on_part()
        table = store.part_rows(path)
        if len(table) == 0:
            continue
        values = read_vectors(table)
        rows = block(values, metric)
        lists.append(nearest_centroids(rows, centroids, product))
        vectors.append(values)
        norms = pa.array(rows.squared_norms)
        tables.append(to_schema(table.append_column("squared_norm", norms), schema))
    return _AssignedRows(np.concatenate(lists), pa.concat_tables(tables), np.concatenate(vectors))


def rows_schema(metadata_columns: pa.Schema) -> pa.Schema:
    """Return the schema of the rows of a shard of a store with some metadata columns."""
    return pa.schema([*SHARD_ROWS.schema, *metadata_columns])


def to_schema(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return the columns of a schema; those that the table lacks are null."""
    columns = [
        table[field.name].cast(field.type)
        if field.name in table.column_names
        else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def _write_pieces(name: str, rows: _AssignedRows, nlist: int) -> None:
    """Write a run to a local file."""
    order = np.lexsort((rows.metadata["row"].to_numpy(), rows.lists))
    lists, metadata = rows.lists[order], rows.metadata.combine_chunks()
    counts = np.bincount(lists, minlength=nlist)
    row_bytes = max(1, rows.vectors.itemsize * rows.vectors.shape[1])
    pieces = []
    with open(name, "wb") as file:
        for part in _piece_rows(counts, max(1, PIECE_BYTES // row_bytes)):
            table = metadata.take(pa.array(order[part]))
            table = table.append_column("list", pa.array(lists[part], pa.int32()))
            table = table.append_column("embedding", embedding_column(rows.vectors[order[part]]))
            data = checksummed_parquet(table)
            pieces.append((int(lists[part][0]), int(lists[part][-1]) + 1, file.tell(), len(data)))
            file.write(data)
        names = ("first_list", "last_list", "offset", "size")
        columns = np.array(pieces, np.int64).reshape(-1, 4).T
        tables = (
            checksummed_parquet(pa.table({"rows": pa.array(counts, pa.int64())})),
            checksummed_parquet(pa.table(dict(zip(names, map(pa.array, columns), strict=True)))),
        )
        file.write(b"".join(tables))
        file.write(_LENGTHS.pack(*map(len, tables)))


def _piece_rows(counts: NDArray[np.int64], rows_per_piece: int) -> Iterator[slice]:
    """Iterate over the rows of each piece: whole lists, until it has `rows_per_piece` rows."""
    ends = np.cumsum(counts)
    ends = ends[counts > 0]
    first = 0
    while first < (ends[-1] if len(ends) else 0):
        position = int(np.searchsorted(ends, first + rows_per_piece))
        last = int(ends[min(position, len(ends) - 1)])
        yield slice(first, last)
        first = last


def read_run_counts(folder: Folder, path: str) -> NDArray[np.int64]:
    """Return the number of rows of each list of a run, (nlist,).

    Raises FileNotFoundError if there is no such run, Damaged if it was altered.
    """
    with folder.open(path) as file:
        counts: NDArray[np.int64] = _read_table(folder, path, file, 0)["rows"].to_numpy()
    return counts


def read_run(folder: Folder, path: str, first_list: int, last_list: int) -> Iterator[pa.Table]:
    """Iterate over the rows of some lists, first_list <= list < last_list, of a run, in its order.

    Only the pieces that hold them are read. Raises Damaged where a piece was altered.
    """
    with folder.open(path) as file:
        pieces = _read_table(folder, path, file, 1)
        columns = (pieces[name].to_pylist() for name in pieces.column_names)
        for first, last, offset, size in zip(*columns, strict=True):
            if first >= last_list or last <= first_list:
                continue
            file.seek(offset)
            table = _parse(folder, path, file.read(size))
            begin, end = np.searchsorted(table["list"].to_numpy(), [first_list, last_list])
            yield table.slice(int(begin), int(end - begin))


def _read_table(folder: Folder, path: str, file: BinaryIO, number: int) -> pa.Table:
    """Return one of the two tables at the end of a run."""
    end = file.seek(-_LENGTHS.size, io.SEEK_END)
    lengths = _LENGTHS.unpack(file.read(_LENGTHS.size))
    file.seek(max(0, end - sum(lengths[number:])))
    return _parse(folder, path, file.read(min(end, lengths[number])))


def _parse(folder: Folder, path: str, data: bytes) -> pa.Table:
    verify_checksum(data, folder.uri(path))
    return pq.read_table(pa.BufferReader(data))
