"""Reading shards of an index: stock FAISS IVF files of some lists.

    INDEX/ job.json manifest.json files.parquet run.json model/
           trained.faiss trained.json spread.json recall.parquet labels.parquet deleted.parquet
           generations/00000.parquet generations/00000.json
           shards/00000.faiss shards/00000.rows.parquet shards/00000.json shards/00000.vectors

A shard holds the rows of its generation in a range of consecutive lists. Its quantizer has the
centroids of these lists only, so FAISS numbers them from 0; `first_list` is the number of the first
one in the index. Ids are rows. Unless the plan chooses lossy codes, the codes are the stored
vectors (Flat for float32, SQfp16 without residual for float16); with lossy codes the stored vectors
are in the file .vectors, in the order of the lists. A shard's .json is written last and holds its
generation, its lists and the checksums of the other files. Shards never change: rows deleted later
are listed in deleted.parquet and skipped when a shard is read.
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, BinaryIO, TypeVar

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from retrieval.core.errors import Damaged
from retrieval.core.records import FileRecord, Spread
from retrieval.core.schemas import Metric
from retrieval.index.generations import MAX_GENERATIONS, ShardLists, generation_shards_path
from retrieval.index.quantized_codes import decode_list
from retrieval.storage import finished_output
from retrieval.storage.checksum import (
    checksummed_json,
    parse_checksummed_json,
    read_checksummed_json,
)
from retrieval.storage.finished_output import Manifest
from retrieval.storage.local import Folder, LocalFolder
from retrieval.storage.temporary import make_temp_dir
from retrieval.storage.transaction import read_file_record
from retrieval.vectors.scoring import VectorBlock, block

RECALL_TABLE, LABELS, DELETED_ROWS = "recall.parquet", "labels.parquet", "deleted.parquet"


def shard_path(number: int) -> str:
    """Return the path of a shard's FAISS file."""
    return f"shards/{number:05d}.faiss"


def shard_rows_path(number: int) -> str:
    """Return the path of a shard's table of rows."""
    return f"shards/{number:05d}.rows.parquet"


def shard_record_path(number: int) -> str:
    """Return the path of the record that marks a shard as complete."""
    return f"shards/{number:05d}.json"


def shard_vectors_path(number: int) -> str:
    """Return the path of the stored vectors of a shard, where its codes are lossy."""
    return f"shards/{number:05d}.vectors"


@dataclass(frozen=True)
class ShardRecord:
    """The JSON record of a complete shard: what it holds, and the checksums of its files."""

    generation: int
    parts_sha256: str  # of the file that lists the parts of the generation
    lists: ShardLists
    spread: Spread  # distances to centroids of a sample of its vectors
    files: dict[str, str]  # path -> sha256

    def to_json(self) -> bytes:
        """Return the record as checksummed JSON."""
        return checksummed_json(asdict(self))


def read_shard_record(folder: Folder, number: int) -> ShardRecord:
    """Read the record of a shard; raises FileNotFoundError where the shard is incomplete."""
    values = read_checksummed_json(folder, shard_record_path(number))
    return ShardRecord(
        values["generation"], values["parts_sha256"], ShardLists(**values["lists"]),
        Spread(**values["spread"]), values["files"],
    )  # fmt: skip


def read_lists_of_shard(folder: Folder, manifest: Manifest, number: int) -> ShardLists:
    """Return the lists of a shard of a finished index; raises Damaged as `open_shard` does."""
    record = manifest.files[shard_record_path(number)]
    values = parse_checksummed_json(finished_output.read_verified(folder, record))
    return ShardLists(**(values or {})["lists"])


def read_lists_of_shards(folder: Folder, manifest: Manifest) -> list[ShardLists]:
    """Return the lists of all shards of a finished index; raises Damaged as `open_shard` does."""
    shards: list[ShardLists] = []
    for number in range(MAX_GENERATIONS):
        record = manifest.files.get(generation_shards_path(number))
        if record is None:
            break
        values = parse_checksummed_json(finished_output.read_verified(folder, record))
        shards += [ShardLists(**lists) for lists in (values or {})["shards"]]
    return shards


@dataclass(frozen=True)
class VectorFile:
    """The stored vectors of a shard whose codes are lossy, in the order of its lists, on disk.

    They are read at their offsets: the pages of a mapped file would count as memory.
    """

    descriptor: BinaryIO  # kept open, since the file may be a temporary copy that is removed
    dtype: str
    dimension: int

    def read(self, first: int, last: int) -> NDArray[Any]:
        """Return the vectors first <= position < last, (n, d)."""
        row_bytes = np.dtype(self.dtype).itemsize * self.dimension
        if last == first:
            return np.empty((0, self.dimension), self.dtype)
        self.descriptor.seek(first * row_bytes)
        data = self.descriptor.read((last - first) * row_bytes)
        return np.frombuffer(data, self.dtype).reshape(-1, self.dimension)


def open_vector_file(name: str, rows: int, dimension: int) -> VectorFile:
    """Open the stored vectors of a shard of `rows` rows; their type follows from the size."""
    numbers = max(1, rows * dimension)
    dtype = f"float{8 * (os.path.getsize(name) // numbers or 4)}"
    return VectorFile(open(name, "rb"), dtype, dimension)


@dataclass(frozen=True)
class Shard:
    """A shard in memory: its inverted lists and the metadata of each row.

    Its methods number the lists from 0, as FAISS does; `first_list` is the number in the index of
    the first one.
    """

    index: Any
    metadata: pa.Table  # SHARD_ROWS, ordered by row; deleted ones too
    metric: Metric
    codes: str | None  # float16 or float32; None for lossy codes, which are decoded
    deleted: NDArray[np.int64]
    allowed: NDArray[np.bool_] | None = None  # rows of the metadata that may be a match; None: all
    first_list: int = 0
    stored: VectorFile | None = None  # where codes are lossy

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """Return the rows of the metadata, ascending."""
        rows: NDArray[np.int64] = self.metadata["row"].to_numpy()
        return rows

    @cached_property
    def alive(self) -> NDArray[np.bool_]:
        """Return a mask of the metadata rows that may be matches: not deleted, and allowed."""
        alive = ~np.isin(self.rows, self.deleted)
        return alive if self.allowed is None else alive & self.allowed

    @cached_property
    def all_alive(self) -> bool:
        """Return whether all rows are alive."""
        return bool(self.alive.all())

    def list_ids(self, number: int) -> NDArray[np.int64]:
        """Return the ids that FAISS stores for a list: its rows, deleted ones included."""
        lists = self.index.invlists
        size = lists.list_size(number)
        if size == 0:
            return np.empty(0, np.int64)
        ids: NDArray[np.int64] = faiss.rev_swig_ptr(lists.get_ids(number), size)
        return ids

    @cached_property
    def lists(self) -> NDArray[np.int64]:
        """Return the list of each metadata row, (n,); -1 where the row is not alive."""
        lists = np.full(len(self.rows), -1, np.int64)
        for number in range(self.index.nlist):
            lists[self.list_positions(number)] = number
        return lists

    def list_positions(self, number: int) -> NDArray[np.int64]:
        """Return the metadata positions of the live rows of a list, in list order."""
        if self.codes is None:
            positions = np.searchsorted(self.rows, self.list_ids(number))
            return positions[self.alive[positions]]
        return self._list(number)[0]

    def list_block(self, number: int) -> VectorBlock:
        """Return the live vectors of a list as a block."""
        if self.codes is None:  # decoded each time: all decoded vectors may exceed the memory
            return block(self.list_vectors(number)[1], self.metric)
        positions, vectors = self._list(number)
        return VectorBlock(self.metric, vectors, self.squared_norms[positions])

    def _list(self, number: int) -> tuple[NDArray[np.int64], NDArray[Any]]:
        cached = self._lists.get(number)
        if cached is None:
            rows, vectors = self.list_vectors(number)
            cached = self._lists[number] = np.searchsorted(self.rows, rows), vectors
        return cached

    @cached_property
    def _lists(self) -> dict[int, tuple[NDArray[np.int64], NDArray[Any]]]:
        return {}

    @cached_property
    def list_sizes(self) -> NDArray[np.int64]:
        """Return the number of rows of each list, deleted ones included."""
        lists = self.index.invlists
        return np.array([lists.list_size(number) for number in range(lists.nlist)], np.int64)

    @cached_property
    def squared_norms(self) -> NDArray[np.float64]:
        """Return the squared vector norms of the metadata rows."""
        squared_norms: NDArray[np.float64] = self.metadata["squared_norm"].to_numpy()
        return squared_norms

    @cached_property
    def image_id_ranks(self) -> NDArray[np.int64]:
        """Return the rank of each row's image_id in byte order, which breaks ties of scores."""
        order = pc.sort_indices(self.metadata["image_id"]).to_numpy()
        ranks = np.empty(len(order), np.int64)
        ranks[order] = np.arange(len(order))
        return ranks

    def list_vectors(self, number: int) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """Return the live rows of a list, (n,), and their vectors, (n, d): stored or decoded."""
        lists = self.index.invlists
        rows = self.list_ids(number)
        if self.codes is None:
            vectors: NDArray[Any] = decode_list(self.index, number)
        elif len(rows) == 0:
            return rows, np.empty((0, self.index.d), self.codes)
        else:
            codes = faiss.rev_swig_ptr(lists.get_codes(number), len(rows) * lists.code_size)
            vectors = codes.view(self.codes).reshape(-1, self.index.d)
        return self._keep_alive(rows, vectors)

    def stored_vectors(self, number: int) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """Return the live rows of a list, (n,), and their stored vectors, (n, d)."""
        if self.stored is None:
            return self.list_vectors(number)
        rows, first = self.list_ids(number), int(self.list_sizes[:number].sum())
        return self._keep_alive(rows, self.stored.read(first, first + len(rows)))

    def _keep_alive(
        self, rows: NDArray[np.int64], vectors: NDArray[Any]
    ) -> tuple[NDArray[np.int64], NDArray[Any]]:
        if self.all_alive:
            return rows, vectors
        keep = self.alive[np.searchsorted(self.rows, rows)]
        return rows[keep], vectors[keep]


def read_deleted_rows(folder: Folder, manifest: Manifest) -> NDArray[np.int64]:
    """Read the deleted rows of a finished index, (n,)."""
    record = manifest.files.get(DELETED_ROWS)
    if record is None:
        return np.empty(0, np.int64)
    table = pq.read_table(io.BytesIO(finished_output.read_verified(folder, record)))
    rows: NDArray[np.int64] = table["row"].to_numpy()
    return rows


Read = TypeVar("Read")


def read_live_rows(folder: Folder, manifest: Manifest, number: int) -> pa.Table:
    """Read the metadata of the live rows of a shard of a finished index."""
    rows, _ = _checked(folder, manifest, shard_rows_path(number), pq.read_table)
    deleted = pa.array(read_deleted_rows(folder, manifest))
    return rows.filter(pc.invert(pc.is_in(rows["row"], value_set=deleted)))


def count_live_rows(
    folder: Folder, manifest: Manifest, number: int, columns: Iterable[str],
    matches: Callable[[pa.Table], NDArray[np.bool_]],
) -> int:  # fmt: skip
    """Return how many live rows of a shard `matches` selects, a batch of the `columns` at a time.

    `matches` returns a mask of the rows of a table.
    """
    deleted = read_deleted_rows(folder, manifest)

    def count(name: str) -> int:
        selected = 0
        with pq.ParquetFile(name) as file:
            for batch in file.iter_batches(columns=sorted({"row", *columns})):
                alive = ~np.isin(batch["row"].to_numpy(), deleted)
                selected += int((matches(pa.Table.from_batches([batch])) & alive).sum())
        return selected

    return _checked(folder, manifest, shard_rows_path(number), count)[0]


def open_shard(
    folder: Folder, manifest: Manifest, number: int, metric: Metric, codes: str | None,
    scratch: str | None = None,
) -> Shard:  # fmt: skip
    """Read a shard of a finished index; files are checked against their checksums before parsing.

    `scratch` is a folder for temporary copies of files in a bucket, one at a time. Raises Damaged
    where a file is missing, altered or from another version.
    """
    metadata, _ = _checked(folder, manifest, shard_rows_path(number), pq.read_table, scratch)
    index, _ = _checked(folder, manifest, shard_path(number), read_faiss_index, scratch)
    if "squared_norm" not in metadata.column_names:
        raise Damaged(f"{folder.uri(shard_rows_path(number))} was written by another version of "
                      "lookalike; make the index again")  # fmt: skip
    if index.ntotal != len(metadata):
        raise Damaged(f"{folder.uri(shard_path(number))} has {index.ntotal} rows, not "
                      f"{len(metadata)}; make the index again")  # fmt: skip
    stored = None
    if codes is None:
        stored, _ = _checked(
            folder, manifest, shard_vectors_path(number),
            lambda name: open_vector_file(name, len(metadata), index.d), scratch,
        )  # fmt: skip
    return Shard(
        index, metadata, metric, codes, read_deleted_rows(folder, manifest),
        first_list=read_lists_of_shard(folder, manifest, number).first_list, stored=stored,
    )  # fmt: skip


def _checked(
    folder: Folder, manifest: Manifest, path: str, read: Callable[[str], Read],
    scratch: str | None = None,
) -> tuple[Read, FileRecord]:  # fmt: skip
    return read_via_local_file(folder, path, read, scratch, sha256=manifest.files[path].sha256)


def read_via_local_file(
    folder: Folder, path: str, read: Callable[[str], Read], scratch: str | None = None,
    *, sha256: str | None = None,
) -> tuple[Read, FileRecord]:  # fmt: skip
    """Return `read(name)` of a local file, or of a copy of a remote file, and its record.

    Reading by name avoids holding the bytes and the parsed content at once. Raises Damaged where
    the file is missing or, before it is read, does not match `sha256`.
    """
    make_temp_dir(scratch)
    with tempfile.TemporaryDirectory(dir=scratch) as temporary:
        local = isinstance(folder, LocalFolder)
        name = folder.uri(path) if local else os.path.join(temporary, "file")
        try:
            with folder.open(path) as file:
                if local:
                    record = read_file_record(path, file)
                else:
                    with open(name, "w+b") as copy:
                        shutil.copyfileobj(file, copy, 1 << 22)
                        record = read_file_record(path, copy)
        except FileNotFoundError:
            raise Damaged(f"{folder.uri(path)} is missing; make the index again") from None
        if sha256 not in (None, record.sha256):
            raise Damaged(f"{folder.uri(path)} was altered; make the index again")
        return read(name), record


def read_faiss_index(name: str) -> Any:
    """Read a FAISS index file whose checksum has been compared."""
    return faiss.read_index(name)
