"""Building one shard of an index: the rows of its lists are read out of every run.

FAISS' lists get their final sizes before they are filled, so that memory holds the shard once:
lists that grow row by row double their capacity. Runs are in the order of the store and each is
ordered by list, then row, so that the rows of a list ascend.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from retrieval.core.errors import Damaged
from retrieval.core.records import FileRecord, IndexPlan, Spread
from retrieval.core.schemas import Vectors
from retrieval.index import quantized_codes
from retrieval.index.drift import measure_spread
from retrieval.index.faiss_io import deserialize_index, make_index_of_lists, read_centroids
from retrieval.index.generations import (
    Generation,
    ShardLists,
    cut_lists,
    read_shard_lists,
    rows_per_run,
    write_shard_lists,
)
from retrieval.index.kmeans import assignment_metric, distances_to_centroids
from retrieval.index.plan import shard_capacity
from retrieval.index.rows_file import ShardRowsWriter, open_rows_file
from retrieval.index.runs import ShardBuildContext, read_run, rows_schema, run_path
from retrieval.index.shard import (
    Shard,
    ShardRecord,
    VectorFile,
    open_vector_file,
    read_faiss_index,
    read_shard_record,
    read_via_local_file,
    shard_path,
    shard_record_path,
    shard_rows_path,
    shard_vectors_path,
)
from retrieval.storage import transaction
from retrieval.storage.local import Folder
from retrieval.storage.transaction import read_file_record
from retrieval.store.reader import read_vectors
from retrieval.vectors.scoring import block

_SPREAD_STEP = 64  # every 64th row is measured for the spread around the centroids,
_SPREAD_ROWS = 4096  # but at least this many rows, or all


@dataclass(frozen=True)
class PlannedShard:
    """A shard to build: its number, its lists, and the runs of its generation in store order."""

    number: int
    generation: int
    parts_sha256: str  # of the file that lists the parts of the generation
    lists: ShardLists
    runs: tuple[str, ...] = ()  # paths; empty where the shard exists
    list_sizes: NDArray[np.int64] | None = None  # rows of each of its lists that are in it


def plan_shards(
    folder: Folder,
    generation: Generation,
    plan: IndexPlan,
    memory: int,
    first_number: int,
    assign: Callable[[Sequence[tuple[int, int]]], NDArray[np.int64]],
) -> list[PlannedShard]:
    """Return the shards of a generation, numbered from `first_number`.

    Where one of them is missing, `assign` is called first: it writes the runs, each of the parts at
    some positions of the generation, and returns the number of rows of each list, (nlist,).
    `memory` is what one task may use, in bytes.
    """
    shards = read_shard_lists(folder, generation)
    if shards is not None:
        planned = _number_shards(generation, shards, first_number)
        if all(folder.exists(shard_record_path(shard.number)) for shard in planned):
            return planned
    runs = generation.runs(rows_per_run(plan, memory, generation.rows))
    counts = assign(runs)
    if shards is None:
        shards = cut_lists(counts, plan.rows_per_shard, shard_capacity(plan, memory))
        shards = write_shard_lists(folder, generation, shards)
    paths = tuple(run_path(generation, run) for run in runs)
    planned = _number_shards(generation, shards, first_number)
    return [
        replace(shard, runs=paths, list_sizes=_list_sizes(counts, shard.lists)) for shard in planned
    ]


def _number_shards(
    generation: Generation, shards: Sequence[ShardLists], first_number: int
) -> list[PlannedShard]:
    return [
        PlannedShard(number, generation.number, generation.sha256, lists)
        for number, lists in enumerate(shards, first_number)
    ]


def _list_sizes(counts: NDArray[np.int64], lists: ShardLists) -> NDArray[np.int64]:
    """Return the rows of each list of a shard that are in it, from those of the generation."""
    sizes = counts[lists.first_list : lists.last_list].copy()
    sizes[:1] -= lists.skipped
    sizes[-1:] -= sizes.sum() - lists.rows  # the rest of a list that later shards continue
    return sizes


@dataclass(frozen=True)
class BuiltShard:
    """A shard that has been written and is still in memory."""

    files: tuple[FileRecord, ...]
    shard: Shard  # its metadata has only the column `row`
    labels: Counter[str]  # live images per label
    spread: Spread


def write_shard(context: ShardBuildContext, planned: PlannedShard) -> BuiltShard:
    """Build and write one shard, or return the one that an earlier run wrote."""
    existing = _read_existing(context, planned)
    if existing is not None:
        return existing
    number, lists = planned.number, planned.lists
    index = make_index_of_lists(
        deserialize_index(context.trained), lists.first_list, lists.last_list
    )
    with tempfile.TemporaryDirectory(dir=context.scratch) as scratch:
        vectors, rows = Path(scratch, "vectors"), Path(scratch, "rows")
        schema = rows_schema(context.store.metadata_columns)
        with open(vectors, "w+b") as file, open_rows_file(rows, schema) as table:
            filler = _Filler(context, planned, index, file)
            for run in planned.runs:
                context.on_part()
                filler.add_run(run, table)
            filler.finish()
        writers: list[tuple[str, Callable[[str], None]]] = [
            (shard_path(number), lambda name: faiss.write_index(index, name)),
            (shard_rows_path(number), lambda name: _copy(rows, name)),
        ]
        if context.codes is None:
            writers.append((shard_vectors_path(number), lambda name: _copy(vectors, name)))
        files = tuple(_write_once(context.folder, path, write, scratch) for path, write in writers)
        stored = (
            None if context.codes else open_vector_file(str(vectors), planned.lists.rows, index.d)
        )
    spread = measure_spread(filler.distances)
    digests = {file.path: file.sha256 for file in files}
    record = ShardRecord(planned.generation, planned.parts_sha256, lists, spread, digests)
    record_file = transaction.put_if_absent(
        context.folder, shard_record_path(number), record.to_json()
    )
    metadata = pa.table({"row": np.concatenate(filler.rows)})
    shard = _shard(context, planned, index, metadata, stored)
    return BuiltShard((*files, record_file), shard, filler.labels, spread)


def _shard(
    context: ShardBuildContext, planned: PlannedShard, index: Any, metadata: pa.Table,
    stored: VectorFile | None,
) -> Shard:  # fmt: skip
    return Shard(
        index, metadata, context.metric, context.codes, context.store.deleted,
        first_list=planned.lists.first_list, stored=stored,
    )  # fmt: skip


def _copy(source: Path, name: str) -> None:
    shutil.copyfile(source, name)


def _read_existing(context: ShardBuildContext, planned: PlannedShard) -> BuiltShard | None:
    """Return a shard that an earlier run completed, checked against its record, or None."""
    folder, number = context.folder, planned.number
    try:
        record = read_shard_record(folder, number)
    except FileNotFoundError:
        return None
    if (record.parts_sha256, record.lists) != (planned.parts_sha256, planned.lists):
        raise _altered(folder, shard_record_path(number))
    opened: dict[str, Any] = {}
    files = []
    readers: list[tuple[str, Callable[[str], Any]]] = [
        (shard_path(number), read_faiss_index),
        (shard_rows_path(number), _rows_and_labels),
    ]
    if context.codes is None:
        dimension = context.store.dimension
        readers.append(
            (
                shard_vectors_path(number),
                lambda name: open_vector_file(name, planned.lists.rows, dimension),
            )
        )
    for path, read in readers:
        opened[path], file_record = read_via_local_file(folder, path, read, context.scratch)
        if record.files.get(path) != file_record.sha256:
            raise _altered(folder, path)
        files.append(file_record)
    record_file = transaction.file_record(shard_record_path(number), record.to_json())
    table, stored = opened[shard_rows_path(number)], opened.get(shard_vectors_path(number))
    shard = _shard(context, planned, opened[shard_path(number)], table, stored)
    labels = _count_labels(table, context.store.deleted)
    return BuiltShard((*files, record_file), shard, labels, record.spread)


def _rows_and_labels(name: str) -> pa.Table:
    return pq.read_table(name, columns=["row", "label"])


def _altered(folder: Folder, path: str) -> Damaged:
    return Damaged(f"{folder.uri(path)} was altered; remove the index and run again")


def _count_labels(table: pa.Table, deleted: NDArray[np.int64]) -> Counter[str]:
    """Count the rows of each label that are not deleted."""
    is_deleted = pc.is_in(table["row"], value_set=pa.array(deleted, pa.int64()))
    labels = table["label"].filter(pc.invert(is_deleted)).drop_null()
    return Counter(str(label) for label in labels.to_pylist())


class _Filler:
    """Fills a shard run by run and collects what its record holds."""

    def __init__(
        self, context: ShardBuildContext, planned: PlannedShard, index: Any, vectors: BinaryIO
    ) -> None:
        assert planned.list_sizes is not None
        self._context, self._planned, self._index = context, planned, index
        self._vectors = vectors  # file of the stored vectors in list order, for lossy codes
        self._sizes = planned.list_sizes
        self._starts = np.cumsum(self._sizes) - self._sizes  # in the shard, of each list
        self._seen = np.zeros(len(self._sizes), np.int64)  # rows of the generation, of each list
        self._skipped = np.zeros(len(self._sizes), np.int64)
        self._skipped[:1] = planned.lists.skipped
        metric = assignment_metric(context.metric)
        self._centroids = block(read_centroids(index), metric)
        self._step = max(1, min(_SPREAD_STEP, planned.lists.rows // _SPREAD_ROWS))
        self._distances = np.zeros(-(-planned.lists.rows // self._step))
        self.rows: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
        self.labels: Counter[str] = Counter()  # live rows of each label
        self._packed: list[tuple[Any, NDArray[np.int64], NDArray[np.int64]]] = []
        if not quantized_codes.has_packed_lists(index):
            reserve_list_space(index, self._sizes)

    @property
    def distances(self) -> list[NDArray[np.float64]]:
        """Return the distances of the sampled rows to their centroids, in list order."""
        return [self._distances]

    def add_run(self, path: str, rows_writer: ShardRowsWriter) -> None:
        """Add the rows of the shard's lists in a run, and write their metadata in row order."""
        lists = self._planned.lists
        tables = [
            self._add_piece(piece)
            for piece in read_run(self._context.folder, path, lists.first_list, lists.last_list)
        ]
        if not tables:
            return
        table = pa.concat_tables(tables).combine_chunks()
        table = table.take(pa.array(np.argsort(table["row"].to_numpy())))
        self.rows.append(table["row"].to_numpy())
        self.labels.update(_count_labels(table, self._context.store.deleted))
        rows_writer.add(table)

    def _add_codes(
        self, codes: quantized_codes.Codes, rows: NDArray[np.int64], lists: NDArray[np.int64]
    ) -> None:
        """Append lossy codes to their lists; packed lists are filled at the end, each at once."""
        if quantized_codes.has_packed_lists(self._index):
            self._packed.append((codes, rows, lists))
        else:
            append_codes(self._index, codes, rows, lists)

    def finish(self) -> None:
        """Fill packed lists; raise RuntimeError if the runs held fewer rows than planned."""
        if self._packed:
            columns = (np.concatenate(column) for column in zip(*self._packed, strict=True))
            quantized_codes.fill_packed_lists(self._index, *columns)
        if self._index.ntotal != self._planned.lists.rows:
            raise RuntimeError(
                f"the runs of shard {self._planned.number} hold {self._index.ntotal} of its "
                f"{self._planned.lists.rows} rows; make the index again with --overwrite, and "
                "please report a bug"
            )

    def _add_piece(self, piece: pa.Table) -> pa.Table:
        """Add the rows of a piece to their lists; return the metadata of those in the shard."""
        lists = piece["list"].to_numpy().astype(np.int64) - self._planned.lists.first_list
        counts = np.bincount(lists, minlength=len(self._sizes))
        rank = np.arange(len(lists)) - (np.cumsum(counts) - counts)[lists]
        position = self._seen[lists] + rank - self._skipped[lists]
        self._seen += counts
        is_in_shard = (position >= 0) & (position < self._sizes[lists])
        if not is_in_shard.all():
            piece = piece.filter(pa.array(is_in_shard))
            lists, position = lists[is_in_shard], position[is_in_shard]
        values, rows = read_vectors(piece), piece["row"].to_numpy()
        if self._context.codes:
            append_codes(self._index, values.astype(self._context.codes, copy=False), rows, lists)
        else:
            codes = quantized_codes.encode_vectors(self._index, values, self._context.metric)
            self._add_codes(codes, rows, lists)
            self._write_vectors(values, self._starts[lists] + position)
        self._measure(values, lists, self._starts[lists] + position)
        return piece.drop_columns(["list", "embedding"])

    def _write_vectors(self, values: Vectors, positions: NDArray[np.int64]) -> None:
        """Write vectors at their positions in list order; they ascend by one within a list."""
        stored = np.ascontiguousarray(values)
        breaks = np.flatnonzero(np.diff(positions) != 1) + 1
        for part in np.split(np.arange(len(positions)), breaks):
            if len(part):
                self._vectors.seek(int(positions[part[0]]) * stored[0].nbytes)
                self._vectors.write(stored[part].tobytes())

    def _measure(
        self, values: Vectors, lists: NDArray[np.int64], positions: NDArray[np.int64]
    ) -> None:
        """Measure the distances of sampled rows, chosen by position in the order of the lists."""
        sampled = np.flatnonzero(positions % self._step == 0)
        rows = block(values[sampled], self._centroids.metric)
        distances = distances_to_centroids(rows, self._centroids, lists[sampled])
        self._distances[positions[sampled] // self._step] = distances


def reserve_list_space(index: Any, sizes: NDArray[np.int64]) -> None:
    """Reserve the final size of each list, so that none is reallocated as it grows."""
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
