"""Shards of an index: stock FAISS IVF files with one quantizer, each a range of a store's rows.

    INDEX/ job.json manifest.json files.parquet run.json model/
           trained.faiss trained.json recall.parquet labels.parquet
           shards/00000.faiss shards/00000.rows.parquet

The codes are the stored vectors (Flat for float32, SQfp16 without residual for float16), ids are
rows. A shard's rows.parquet is put after its .faiss and notes the checksum of it.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from retrieval.embeddings.store import Store, vectors_of
from retrieval.errors import Damaged
from retrieval.index.kmeans import list_metric
from retrieval.scoring import Block, TopK, block, nearest, norms_of
from retrieval.storage import commit, finished
from retrieval.storage.files import Folder
from retrieval.storage.finished import Manifest
from retrieval.storage.seal import is_sealed, notes_of, sealed_parquet
from retrieval.tables import (
    SHARD_ROWS,
    WORK,
    FileRecord,
    IndexPlan,
    Metric,
    Neighbours,
    ShardResult,
)

TRAINED, TRAINED_JSON = "trained.faiss", "trained.json"
RECALL_TABLE, LABELS = "recall.parquet", "labels.parquet"


def shard_path(number: int) -> str:
    """Give the path of a shard's FAISS file."""
    return f"shards/{number:05d}.faiss"


def rows_path(number: int) -> str:
    """Give the path of a shard's table of rows."""
    return f"shards/{number:05d}.rows.parquet"


def neighbours_path(number: int) -> str:
    """Give the path of what a shard holds closest to the sample that recall is measured on."""
    return f"{WORK}neighbours/{number:05d}.parquet"


def empty_index(plan: IndexPlan, centroids: NDArray[np.float32], metric: Metric) -> Any:
    """Make a trained index without rows."""
    dimension = centroids.shape[1]
    measure = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
    index = faiss.index_factory(dimension, plan.factory, measure)
    if hasattr(index, "by_residual"):
        index.by_residual = False  # else the codes are differences and not the vectors
    index.quantizer.add(centroids)  # type: ignore[attr-defined]
    index.train(centroids)  # a quantizer that is full already is not trained again
    return index


def to_bytes(index: Any) -> bytes:
    """Write an index as FAISS does into a file."""
    return bytes(faiss.serialize_index(index))


def from_bytes(data: bytes) -> Any:
    """Read an index whose bytes were checked."""
    return faiss.deserialize_index(np.frombuffer(data, np.uint8))


def centroids_of(index: Any) -> NDArray[np.float32]:
    """Give the (nlist, d) float32 centroids."""
    found: NDArray[np.float32] = index.quantizer.reconstruct_n(0, index.nlist)
    return found


def sample_rows(store: Store, count: int, seed: int) -> tuple[Any, NDArray[np.int64]]:
    """Draw `count` of a store's vectors over all parts: (count, d) and their rows, ascending."""
    wanted = np.sort(np.random.default_rng(seed).choice(store.rows, count, replace=False))
    vectors, rows = [], []
    seen = 0
    for table in store.blocks():
        first, last = np.searchsorted(wanted, [seen, seen + len(table)])
        if first < last:
            taken = table.take(wanted[first:last] - seen)
            vectors.append(vectors_of(taken))
            rows.append(taken["row"].to_numpy())
        seen += len(table)
    return np.concatenate(vectors), np.concatenate(rows).astype(np.int64)


def build_shard(
    folder: Folder,
    store: Store,
    number: int,
    plan: IndexPlan,
    metric: Metric,
    trained: bytes,
    sample: Block,
    neighbours: int,
) -> ShardResult:
    """Put one shard, or find it put, and before it the rows of it that are closest to a sample.

    The peak is the shard once (in FAISS' lists) and one part of the store: it is written straight
    to a file.
    """
    if folder.exists(rows_path(number)) and folder.exists(neighbours_path(number)):
        return _put_before(folder, number)
    index = from_bytes(trained)
    centroids = block(centroids_of(index), list_metric(metric))
    first = number * plan.rows_per_shard
    best = TopK(sample, neighbours)
    tables, lists = [], []
    for table in store.blocks(first, first + plan.rows_per_shard):
        if len(table) == 0:
            continue
        values = vectors_of(table)
        rows = table["row"].to_numpy().astype(np.int64)
        own = nearest(block(values, centroids.metric), centroids)
        _add(index, values, rows, own)
        best.push(block(values, metric), rows, rows)
        tables.append(_metadata(table, norms_of(values)))
        lists.append(own)
    metadata = pa.concat_tables([SHARD_ROWS.schema.empty_table(), *tables])
    own_lists = np.concatenate([np.empty(0, np.int64), *lists])
    found = _neighbours(best, metadata["row"].to_numpy(), own_lists)
    folder.put_new(neighbours_path(number), neighbours_to_bytes(found))
    files = _put_shard(folder, number, index, metadata)
    return ShardResult(number, len(metadata), _labels(metadata), files)


def _put_before(folder: Folder, number: int) -> ShardResult:
    """Find a shard that an earlier run put; its rows.parquet vouches for its FAISS file."""
    rows = folder.read(rows_path(number))
    try:
        data = folder.read(shard_path(number))
    except FileNotFoundError:
        raise Damaged(f"{folder.uri(shard_path(number))} is missing; remove the index and run "
                      "again") from None  # fmt: skip
    record = commit.record(shard_path(number), data)
    sealed = is_sealed(io.BytesIO(rows))
    if not sealed or notes_of(rows)["faiss_sha256"] != record.sha256:
        raise Damaged(f"{folder.uri(shard_path(number))} was altered; remove the index and run "
                      "again")  # fmt: skip
    metadata = pq.read_table(io.BytesIO(rows))
    files = (record, commit.record(rows_path(number), rows))
    return ShardResult(number, len(metadata), _labels(metadata), files)


def _labels(metadata: pa.Table) -> dict[str, int]:
    return dict(Counter(str(label) for label in metadata["label"].drop_null().to_pylist()))


def _add(index: Any, values: Any, rows: NDArray[np.int64], lists: NDArray[np.int64]) -> None:
    """Add vectors to lists that we decided, so that FAISS' own rounding has no say."""
    wide = np.ascontiguousarray(values, np.float32)
    lists = np.ascontiguousarray(lists)
    pointers = (faiss.swig_ptr(wide), faiss.swig_ptr(rows), faiss.swig_ptr(lists))
    index.add_core(len(wide), *pointers)


def _metadata(table: pa.Table, norms: NDArray[np.float64]) -> pa.Table:
    names = [name for name in SHARD_ROWS.schema.names if name != "norm"]
    return table.select(names).append_column("norm", pa.array(norms))


def _put_shard(
    folder: Folder, number: int, index: Any, metadata: pa.Table
) -> tuple[FileRecord, FileRecord]:
    path = shard_path(number)
    made: list[FileRecord] = []

    def write(name: str) -> None:
        faiss.write_index(index, name)
        made.append(_file_record(path, name))

    if not folder.put_new_file(path, write):
        made = [commit.record(path, to_bytes(index))]
        if commit.record(path, folder.read(path)) != made[0]:
            raise Damaged(f"{folder.uri(path)} was altered; remove the index and run again")
    note = {"faiss_sha256": made[0].sha256}
    return made[0], commit.put_once(folder, rows_path(number), sealed_parquet(metadata, note))


def _file_record(path: str, name: str) -> FileRecord:
    digest = hashlib.sha256()
    size = 0
    with open(name, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
            size += len(piece)
    return FileRecord(path, None, size, digest.hexdigest())


def _neighbours(best: TopK, rows: NDArray[np.int64], lists: NDArray[np.int64]) -> Neighbours:
    """Tell the list of each row that was found."""
    if len(rows) == 0:
        return Neighbours(best.keys, best.positions, np.full(best.positions.shape, -1))
    place = np.minimum(np.searchsorted(rows, best.positions), len(rows) - 1)
    return Neighbours(
        best.keys, best.positions, np.where(best.positions < 0, -1, lists[place]).astype(np.int64)
    )


def neighbours_to_bytes(found: Neighbours) -> bytes:
    """Write neighbours as Parquet, sealed: three columns of (s, k) numbers, row by row."""
    columns = {"key": found.keys, "row": found.rows, "list": found.lists}
    table = pa.table({name: values.ravel() for name, values in columns.items()})
    return sealed_parquet(table, {"samples": str(len(found.keys))})


def read_neighbours(folder: Folder, number: int) -> Neighbours:
    """Read what `build_shard` put beside a shard."""
    path = neighbours_path(number)
    data = folder.read(path)
    if not is_sealed(io.BytesIO(data)):
        raise Damaged(f"{folder.uri(path)} was altered; remove it and run again")
    table = pq.read_table(io.BytesIO(data))
    shape = (int(notes_of(data)["samples"]), -1)
    return Neighbours(*(table[name].to_numpy().reshape(shape) for name in ("key", "row", "list")))


@dataclass(frozen=True)
class Shard:
    """One shard in memory: list by list its vectors, and what is known of each row."""

    index: Any
    metadata: pa.Table  # SHARD_ROWS, ordered by row
    metric: Metric
    dtype: str

    def list_rows(self, number: int) -> NDArray[np.int64]:
        """Give the rows of a list, in the order of its vectors."""
        lists = self.index.invlists
        size = lists.list_size(number)
        if size == 0:
            return np.empty(0, np.int64)
        ids: NDArray[np.int64] = faiss.rev_swig_ptr(lists.get_ids(number), size).copy()
        return ids

    def list_vectors(self, number: int) -> NDArray[Any]:
        """Give the (n, d) vectors of a list, as they were stored."""
        lists = self.index.invlists
        size = lists.list_size(number) * lists.code_size
        if size == 0:
            return np.empty((0, self.index.d), self.dtype)
        codes = faiss.rev_swig_ptr(lists.get_codes(number), size)
        vectors: NDArray[Any] = codes.view(self.dtype).reshape(-1, self.index.d)
        return vectors


def open_shard(
    folder: Folder, manifest: Manifest, number: int, metric: Metric, dtype: str
) -> Shard:
    """Read a shard of a finished index; checksums are compared before FAISS parses a byte."""
    data = finished.read_checked(folder, manifest.files[rows_path(number)])
    metadata = pq.read_table(io.BytesIO(data))
    index = from_bytes(finished.read_checked(folder, manifest.files[shard_path(number)]))
    if index.ntotal != len(metadata):
        raise Damaged(f"{folder.uri(shard_path(number))} has {index.ntotal} rows, not "
                      f"{len(metadata)}; make the index again")  # fmt: skip
    return Shard(index, metadata, metric, dtype)
