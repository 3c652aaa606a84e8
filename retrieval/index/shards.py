"""Shards of an index: stock FAISS IVF files with one quantizer, each some rows of a store.

    INDEX/ job.json manifest.json files.parquet run.json model/
           trained.faiss trained.json recall.parquet labels.parquet deleted.parquet
           shards/00000.faiss shards/00000.rows.parquet shards/00000.json

Where the plan says so the codes are the stored vectors (Flat for float32, SQfp16 without residual
for float16); ids are rows. A shard's .json is put last: it holds the checksums of the other two and
the extents of the store that they were made of. Shards never change: rows that were deleted since
stand in deleted.parquet, and are passed over when a shard is read.
"""

from __future__ import annotations

import io
import re
from dataclasses import asdict, astuple, dataclass
from functools import cached_property
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from retrieval.errors import Damaged
from retrieval.index.coverage import Extent, Extents
from retrieval.index.faiss_files import from_bytes
from retrieval.storage import finished
from retrieval.storage.files import Folder
from retrieval.storage.finished import Manifest
from retrieval.storage.seal import read_json, sealed_json
from retrieval.tables import Metric

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
    spread: float  # mean distance of its vectors to their centroids, from a sample of them
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
    return Note(extents, values["spread"], values["files"])


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

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """Give the rows of the metadata, ascending."""
        found: NDArray[np.int64] = self.metadata["row"].to_numpy()
        return found

    @cached_property
    def alive(self) -> NDArray[np.bool_]:
        """Tell which rows of the metadata are not deleted."""
        return ~np.isin(self.rows, self.deleted)

    def listed(self, number: int) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """Give the live rows of a list and their (n, d) vectors, as they were stored."""
        lists = self.index.invlists
        size = lists.list_size(number)
        if size == 0:
            return np.empty(0, np.int64), np.empty((0, self.index.d), self.codes)
        rows = faiss.rev_swig_ptr(lists.get_ids(number), size).copy()
        codes = faiss.rev_swig_ptr(lists.get_codes(number), size * lists.code_size)
        vectors = codes.view(str(self.codes)).reshape(-1, self.index.d)
        keep = self.alive[np.searchsorted(self.rows, rows)]
        return (rows, vectors) if keep.all() else (rows[keep], vectors[keep])


def read_deleted_rows(folder: Folder, manifest: Manifest) -> NDArray[np.int64]:
    """Read the rows of a finished index that no longer count."""
    record = manifest.files.get(DELETED_ROWS)
    if record is None:
        return np.empty(0, np.int64)
    table = pq.read_table(io.BytesIO(finished.read_checked(folder, record)))
    found: NDArray[np.int64] = table["row"].to_numpy()
    return found


def open_shard(
    folder: Folder, manifest: Manifest, number: int, metric: Metric, codes: str | None
) -> Shard:
    """Read a shard of a finished index; checksums are compared before FAISS parses a byte."""
    rows = finished.read_checked(folder, manifest.files[rows_path(number)])
    data = finished.read_checked(folder, manifest.files[shard_path(number)])
    return shard_of(folder, number, rows, data, metric, codes, read_deleted_rows(folder, manifest))


def shard_of(
    folder: Folder, number: int, rows: bytes, data: bytes, metric: Metric, codes: str | None,
    deleted: NDArray[np.int64],
) -> Shard:  # fmt: skip
    """Make a shard of the bytes of its two files, which were checked."""
    metadata = pq.read_table(io.BytesIO(rows))
    index = from_bytes(data)
    if index.ntotal != len(metadata):
        raise Damaged(f"{folder.uri(shard_path(number))} has {index.ntotal} rows, not "
                      f"{len(metadata)}; make the index again")  # fmt: skip
    return Shard(index, metadata, metric, codes, deleted)
