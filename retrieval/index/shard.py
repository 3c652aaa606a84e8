"""Shards of an index: stock FAISS IVF files with one quantizer, each some rows of a store.

    INDEX/ job.json manifest.json files.parquet run.json model/
           trained.faiss trained.json spread.json recall.parquet labels.parquet deleted.parquet
           shards/00000.faiss shards/00000.rows.parquet shards/00000.json

Where the plan says so the codes are the stored vectors (Flat for float32, SQfp16 without residual
for float16); ids are rows. A shard's .json is put last: it holds the checksums of the other two and
the extents of the store that they were made of. Shards never change: rows that were deleted since
stand in deleted.parquet, and are passed over when a shard is read.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass
from functools import cached_property
from typing import Any, TypeVar

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from retrieval.core.errors import Damaged
from retrieval.core.records import FileRecord, Spread
from retrieval.core.schemas import Metric
from retrieval.index.coverage import Extent, Extents
from retrieval.storage import finished_output
from retrieval.storage.checksum import read_json, sealed_json
from retrieval.storage.finished_output import Manifest
from retrieval.storage.local import Folder, LocalFolder
from retrieval.storage.temporary import make_scratch
from retrieval.storage.transaction import record_of
from retrieval.vectors.scoring import Block

RECALL_TABLE, LABELS, DELETED_ROWS = "recall.parquet", "labels.parquet", "deleted.parquet"

_NOTE = re.compile(r"shards/(\d{5})\.json")


def shard_path(number: int) -> str:
    """Give the path of a shard's FAISS file."""
    return f"shards/{number:05d}.faiss"


def rows_path(number: int) -> str:
    """Give the path of a shard's table of rows."""
    return f"shards/{number:05d}.rows.parquet"


def note_path(number: int) -> str:
    """Give the path of what says that a shard is whole, and what it was made of."""
    return f"shards/{number:05d}.json"


@dataclass(frozen=True)
class Note:
    """What is noted of a shard."""

    extents: Extents
    spread: Spread  # of a sample of its vectors
    files: dict[str, str]  # path -> sha256

    def to_json(self) -> bytes:
        """Write it, sealed."""
        return sealed_json({**asdict(self), "extents": [list(astuple(e)) for e in self.extents]})


def read_note(folder: Folder, number: int) -> Note:
    """Read what is noted of a shard; FileNotFoundError where it is not whole."""
    values = read_json(folder.read(note_path(number)))
    if values is None:
        raise Damaged(f"{folder.uri(note_path(number))} was altered; remove it and run again")
    extents = tuple(Extent(*extent) for extent in values["extents"])
    return Note(extents, Spread(**values["spread"]), values["files"])


def shards_there(folder: Folder) -> dict[int, Extents]:
    """Tell of each shard that is whole what it was made of."""
    found = [_NOTE.fullmatch(entry.path) for entry in folder.entries("shards")]
    numbers = sorted(int(match[1]) for match in found if match)
    return {number: read_note(folder, number).extents for number in numbers}


@dataclass(frozen=True)
class Shard:
    """One shard in memory: list by list its live vectors, and what is known of each row."""

    index: Any
    metadata: pa.Table  # SHARD_ROWS, ordered by row; deleted ones too
    metric: Metric
    codes: str | None  # float16 or float32; None: they are not the vectors (lossy.py)
    deleted: NDArray[np.int64]
    allowed: NDArray[np.bool_] | None = None  # rows of the metadata that may be a match; None: all

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """Give the rows of the metadata, ascending."""
        found: NDArray[np.int64] = self.metadata["row"].to_numpy()
        return found

    @cached_property
    def alive(self) -> NDArray[np.bool_]:
        """Tell which rows of the metadata may be found: not deleted, and allowed."""
        alive = ~np.isin(self.rows, self.deleted)
        return alive if self.allowed is None else alive & self.allowed

    @cached_property
    def whole(self) -> bool:
        """Tell whether all rows are alive."""
        return bool(self.alive.all())

    def ids(self, number: int) -> NDArray[np.int64]:
        """Give what FAISS holds as the ids of a list: the rows of it, deleted ones too."""
        lists = self.index.invlists
        size = lists.list_size(number)
        if size == 0:
            return np.empty(0, np.int64)
        found: NDArray[np.int64] = faiss.rev_swig_ptr(lists.get_ids(number), size)
        return found

    def places(self, number: int) -> NDArray[np.int64]:
        """Give the places, in the metadata, of the live rows of a list, in its order."""
        return self._list(number)[0]

    def list_block(self, number: int) -> Block:
        """Give the live vectors of a list, ready for the metric."""
        places, vectors = self._list(number)
        return Block(self.metric, vectors, self.squared_norms[places])

    def _list(self, number: int) -> tuple[NDArray[np.int64], NDArray[Any]]:
        found = self._lists.get(number)
        if found is None:
            rows, vectors = self.listed(number)
            found = self._lists[number] = np.searchsorted(self.rows, rows), vectors
        return found

    @cached_property
    def _lists(self) -> dict[int, tuple[NDArray[np.int64], NDArray[Any]]]:
        return {}

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """Give the number of rows of each list, deleted ones too."""
        lists = self.index.invlists
        return np.array([lists.list_size(number) for number in range(lists.nlist)], np.int64)

    @cached_property
    def squared_norms(self) -> NDArray[np.float64]:
        """Return the sums of squares of the rows of the metadata."""
        found: NDArray[np.float64] = self.metadata["squared_norm"].to_numpy()
        return found

    @cached_property
    def ties(self) -> NDArray[np.int64]:
        """Give the place of each row's image_id in the order of image_ids by bytes."""
        order = pc.sort_indices(self.metadata["image_id"]).to_numpy()
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        return place

    def listed(self, number: int) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """Give the live rows of a list and their (n, d) vectors, as they were stored."""
        lists = self.index.invlists
        rows = self.ids(number)
        if len(rows) == 0:
            return rows, np.empty((0, self.index.d), str(self.codes))
        codes = faiss.rev_swig_ptr(lists.get_codes(number), len(rows) * lists.code_size)
        vectors = codes.view(str(self.codes)).reshape(-1, self.index.d)
        if self.whole:
            return rows, vectors
        keep = self.alive[np.searchsorted(self.rows, rows)]
        return rows[keep], vectors[keep]


def read_deleted_rows(folder: Folder, manifest: Manifest) -> NDArray[np.int64]:
    """Read the rows of a finished index that no longer count."""
    record = manifest.files.get(DELETED_ROWS)
    if record is None:
        return np.empty(0, np.int64)
    table = pq.read_table(io.BytesIO(finished_output.read_checked(folder, record)))
    found: NDArray[np.int64] = table["row"].to_numpy()
    return found


Read = TypeVar("Read")


def read_rows(folder: Folder, manifest: Manifest, number: int) -> pa.Table:
    """Read what is known of the live rows of a shard of a finished index."""
    rows, _ = _checked(folder, manifest, rows_path(number), pq.read_table)
    deleted = pa.array(read_deleted_rows(folder, manifest))
    return rows.filter(pc.invert(pc.is_in(rows["row"], value_set=deleted)))


def open_shard(
    folder: Folder, manifest: Manifest, number: int, metric: Metric, codes: str | None,
    scratch: str | None = None,
) -> Shard:  # fmt: skip
    """Read a shard of a finished index; checksums are compared before anything is parsed.

    Of a bucket's shard `scratch` holds one file at a time, for as long as it is read.
    """
    metadata, _ = _checked(folder, manifest, rows_path(number), pq.read_table, scratch)
    index, _ = _checked(folder, manifest, shard_path(number), read_index, scratch)
    if "squared_norm" not in metadata.column_names:
        raise Damaged(f"{folder.uri(rows_path(number))} was written by another version of "
                      "lookalike; make the index again")  # fmt: skip
    if index.ntotal != len(metadata):
        raise Damaged(f"{folder.uri(shard_path(number))} has {index.ntotal} rows, not "
                      f"{len(metadata)}; make the index again")  # fmt: skip
    return Shard(index, metadata, metric, codes, read_deleted_rows(folder, manifest))


def _checked(
    folder: Folder, manifest: Manifest, path: str, read: Callable[[str], Read],
    scratch: str | None = None,
) -> tuple[Read, FileRecord]:  # fmt: skip
    return read_streamed(folder, path, read, scratch, sha256=manifest.files[path].sha256)


def read_streamed(
    folder: Folder, path: str, read: Callable[[str], Read], scratch: str | None = None,
    *, sha256: str | None = None,
) -> tuple[Read, FileRecord]:  # fmt: skip
    """Let `read` read a file by its name, so that its bytes are never in memory beside what it is.

    Of a file in a bucket that is a copy, removed afterwards. Its record is given too; a `sha256`
    that is given must be that, which is compared before anything is read.
    """
    make_scratch(scratch)
    with tempfile.TemporaryDirectory(dir=scratch) as place:
        local = isinstance(folder, LocalFolder)
        name = folder.uri(path) if local else os.path.join(place, "file")
        try:
            with folder.open(path) as file:
                if local:
                    record = record_of(path, file)
                else:
                    with open(name, "w+b") as copy:
                        shutil.copyfileobj(file, copy, 1 << 22)
                        record = record_of(path, copy)
        except FileNotFoundError:
            raise Damaged(f"{folder.uri(path)} is missing; make the index again") from None
        if sha256 not in (None, record.sha256):
            raise Damaged(f"{folder.uri(path)} was altered; make the index again")
        return read(name), record


def read_index(name: str) -> Any:
    """Read a FAISS file whose bytes were checked."""
    return faiss.read_index(name)
