"""A store: the vectors of one source, in parts of Parquet, streamed.

    STORE/ job.json manifest.json files.parquet run.json model/
           segments/00000/ listing.parquet segment.json parts/ failures/

Chunk n of a segment is parts/n and, if images of it failed, failures/n. A part is put after the
failures, so a chunk whose part is there is done.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from retrieval.storage import commit, finished
from retrieval.storage.files import Folder
from retrieval.storage.finished import Manifest
from retrieval.storage.seal import read_json
from retrieval.tables import Chunk, FileRecord, Vectors

SEGMENT = "segments/00000"
LISTING = f"{SEGMENT}/listing.parquet"
SEGMENT_JSON = f"{SEGMENT}/segment.json"


def part_path(chunk: int) -> str:
    """Give the path of a chunk's part."""
    return f"{SEGMENT}/parts/{chunk:08d}.parquet"


def failures_path(chunk: int) -> str:
    """Give the path of a chunk's failures."""
    return f"{SEGMENT}/failures/{chunk:08d}.parquet"


def embedding_column(vectors: Vectors) -> pa.FixedSizeListArray:
    """Turn (n, d) vectors into the column `embedding`."""
    flat = pa.array(np.ascontiguousarray(vectors).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])


def vectors_of(table: pa.Table) -> Vectors:
    """Give the (n, d) vectors of a part, float16 or float32."""
    column = table["embedding"].combine_chunks()
    flat: Vectors = column.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), column.type.list_size)


@dataclass(frozen=True)
class Store:
    """A finished store, opened; parts are checked when they are read."""

    folder: Folder
    manifest: Manifest
    settings: dict[str, Any]

    @property
    def rows(self) -> int:
        """Count the images that have a vector."""
        return int(self.manifest.counts["rows"])

    @property
    def dimension(self) -> int:
        """Give the length of a vector."""
        return int(self.manifest.counts["dimension"])

    @property
    def dtype(self) -> str:
        """Give float16 or float32."""
        return str(self.settings["embedding_dtype"])

    @property
    def bundle(self) -> str:
        """Give the digest of the bundle the vectors were made with."""
        return str(self.settings["bundle"])

    @cached_property
    def segment(self) -> dict[str, Any]:
        """Give what segment.json says: images, chunks, chunk_rows, digest of the listing."""
        data = finished.read_checked(self.folder, self.manifest.files[SEGMENT_JSON])
        return read_json(data) or {}

    def blocks(self, first: int = 0, last: int | None = None) -> Iterator[pa.Table]:
        """Stream the rows first <= row < last, a table a part, in order of row."""
        images, step = int(self.segment["images"]), int(self.segment["chunk_rows"])
        last = images if last is None else min(last, images)
        for number in range(first // step, -(-last // step)):
            table = self._read(part_path(number))
            row = table["row"].to_numpy()
            begin, end = np.searchsorted(row, [first, last])
            yield table.slice(int(begin), int(end - begin))

    def failures(self) -> Iterator[pa.Table]:
        """Stream the ledger, a table a chunk that has failures."""
        for path in sorted(self.manifest.files):
            if path.startswith(f"{SEGMENT}/failures/"):
                yield self._read(path)

    def _read(self, path: str) -> pa.Table:
        data = finished.read_checked(self.folder, self.manifest.files[path])
        return pq.read_table(io.BytesIO(data))


def open_store(folder: Folder) -> Store:
    """Open a finished store; refusals as `finished.read_manifest` has them."""
    manifest = finished.read_manifest(folder, kind="store")
    return Store(folder, manifest, finished.read_settings(folder))


def pending(folder: Folder, chunks: Iterator[Chunk]) -> list[Chunk]:
    """List the chunks whose part is not there yet, by one listing of the folder."""
    there = {entry.path for entry in folder.entries(f"{SEGMENT}/parts")}
    return [chunk for chunk in chunks if part_path(chunk.number) not in there]


def put_part(
    folder: Folder, chunk: Chunk, part: bytes, failures: bytes | None
) -> tuple[FileRecord, ...]:
    """Put what a chunk came to, the part last; what is there already stays."""
    records = []
    if failures is not None:
        records.append(commit.put_once(folder, failures_path(chunk.number), failures))
    records.append(commit.put_once(folder, part_path(chunk.number), part))
    return tuple(records)
