"""Reading of the parts of a store; `Store` streams the live rows of a finished one.

`layout` defines the paths of the files, `part_writer` writes them.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from retrieval.core.errors import Damaged
from retrieval.core.records import Chunk
from retrieval.core.schemas import LISTING, Vectors, extra_columns
from retrieval.storage import finished_output
from retrieval.storage.checksum import read_checksummed_parquet
from retrieval.storage.finished_output import Manifest
from retrieval.storage.local import Folder
from retrieval.store.finalize import read_deleted
from retrieval.store.layout import (
    CHUNKS_PER_SEGMENT,
    ChunkFiles,
    failures_path,
    find_chunk_files,
    listing_path,
    part_path,
    segment_json_path,
)
from retrieval.store.segment import Rows, Segment, group_by_segment, parse_segment


def embedding_column(vectors: Vectors) -> pa.FixedSizeListArray:
    """Return (n, d) vectors as the Arrow column `embedding`."""
    flat = pa.array(np.ascontiguousarray(vectors).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])


def read_vectors(table: pa.Table) -> Vectors:
    """Return the (n, d) vectors of a table with a column `embedding`, float16 or float32."""
    column = table["embedding"].combine_chunks()
    flat: Vectors = column.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), column.type.list_size)


@dataclass(frozen=True)
class Store:
    """A finished store, opened for reading; each part is verified when it is read.

    With `deleting_segments` only the deletions of the first that many segments count, as when the
    store had no more segments.
    """

    folder: Folder
    manifest: Manifest
    settings: dict[str, Any]
    deleting_segments: int | None = None

    @property
    def rows(self) -> int:
        """Return the number of live images that have a vector."""
        return int(self.manifest.counts["rows"])

    @property
    def span(self) -> int:
        """Return the number of rows assigned, failed and deleted ones included."""
        return int(self.manifest.counts["span"])

    @property
    def dimension(self) -> int:
        """Return the dimension of the vectors."""
        return int(self.manifest.counts["dimension"])

    @property
    def dtype(self) -> str:
        """Return the dtype of the vectors: float16 or float32."""
        return str(self.settings["embedding_dtype"])

    @property
    def bundle(self) -> str | None:
        """Return the digest of the bundle that made the vectors; None for precomputed vectors."""
        digest: str | None = self.settings["bundle"]
        return digest

    @cached_property
    def segments(self) -> list[Segment]:
        """Return the segments that were complete when the manifest was written."""
        return [
            parse_segment(number, self._bytes(segment_json_path(number)), self.folder)
            for number in range(int(self.manifest.counts["segments"]))
        ]

    @cached_property
    def chunks(self) -> list[Chunk]:
        """Return the chunks of all segments, in the order of their rows."""
        return [chunk for segment in self.segments for chunk in segment.chunks()]

    @cached_property
    def deleted(self) -> Rows:
        """Return the (n,) deleted rows, ascending."""
        return read_deleted(self.folder, self.segments[: self.deleting_segments])

    @cached_property
    def _chunk_files(self) -> ChunkFiles:
        return find_chunk_files(self.manifest.files.paths)

    def blocks(self, first: int = 0, last: int | None = None) -> Iterator[pa.Table]:
        """Iterate over the live rows first <= row < last in order, one table per chunk."""
        last = self.span if last is None else last
        for chunk in self.chunks:
            if chunk.base + chunk.first < last and chunk.base + chunk.last > first:
                table = self.chunk_rows(chunk)
                begin, end = np.searchsorted(table["row"].to_numpy(), [first, last])
                yield table.slice(int(begin), int(end - begin))

    def chunk_rows(self, chunk: Chunk, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the live rows of a chunk, including those that retries recovered.

        `columns` include `row`; None means all. Raises Damaged if a part was altered.
        """
        retries = self._chunk_files.part_retries(chunk)
        parts = [self._read(part_path(replace(chunk, retry=number)), columns) for number in retries]
        table = parts[0] if len(parts) == 1 else pa.concat_tables(parts).sort_by("row")
        return self._live_rows(table, chunk)

    @cached_property
    def metadata_columns(self) -> pa.Schema:
        """Return the metadata columns of the listings of all segments.

        A column that has different types in different segments becomes text.
        """
        columns: dict[str, pa.Field] = {}
        for segment in self.segments:
            path = listing_path(segment.number)
            if self.folder.sha256(path) != segment.files[path]:
                raise Damaged(f"{self.folder.uri(path)} was altered; remove it and run again")
            with self.folder.open(path) as file:
                schema = extra_columns(pq.read_schema(file), LISTING)
            for field in schema:
                existing = columns.setdefault(field.name, field)
                if existing.type != field.type:
                    columns[field.name] = pa.field(field.name, pa.string())
        return pa.schema([field.with_nullable(True) for field in columns.values()])

    @property
    def parts(self) -> pa.Table:
        """Return the records of all parts, ordered by chunk, then retry: table GENERATION.

        The rows of a chunk come before those of the next one; the parts of one chunk interleave.
        """
        parts = self._chunk_files.select(self._chunk_files.is_part)
        records = self.manifest.files.table.take(pa.array(parts.positions))
        chunks = parts.segments * np.int64(CHUNKS_PER_SEGMENT) + parts.numbers
        return records.select(["path", "sha256", "rows"]).append_column("chunk", pa.array(chunks))

    def part_rows(self, path: str) -> pa.Table:
        """Return the live rows of a part."""
        table = self._read(path)
        if len(table) == 0:
            return table
        rows = table["row"]
        return self._without_deleted(table, rows[0].as_py(), rows[-1].as_py() + 1)

    def failures(self) -> Iterator[pa.Table]:
        """Iterate over the ledger rows of live images, one table per chunk that has failures."""
        for segment, files in group_by_segment(self.segments, self._chunk_files):
            for number, retry in files.current_ledgers():
                chunk = replace(segment.chunk(number), retry=retry)
                yield self._live_rows(self._read(failures_path(chunk)), chunk)

    def _live_rows(self, table: pa.Table, chunk: Chunk) -> pa.Table:
        return self._without_deleted(table, chunk.base + chunk.first, chunk.base + chunk.last)

    def _without_deleted(self, table: pa.Table, first: int, last: int) -> pa.Table:
        begin, end = np.searchsorted(self.deleted, [first, last])
        if begin == end:
            return table
        is_deleted = pc.is_in(table["row"], value_set=pa.array(self.deleted[begin:end]))
        return table.filter(pc.invert(is_deleted))

    def _bytes(self, path: str) -> bytes:
        return finished_output.read_verified(self.folder, self.manifest.files[path])

    def _read(self, path: str, columns: Sequence[str] | None = None) -> pa.Table:
        return pq.read_table(io.BytesIO(self._bytes(path)), columns=columns)


def open_store(folder: Folder) -> Store:
    """Open a finished store; raise as `finished_output.read_manifest` does."""
    manifest = finished_output.read_manifest(folder, kind="store")
    return Store(folder, manifest, finished_output.read_settings(folder))


def read_unfinished_chunk(folder: Folder, chunk: Chunk) -> pa.Table:
    """Return the rows of a chunk, deleted ones included, of a store that need not be finished.

    Raises:
        FileNotFoundError: If the chunk has no part.
        Damaged: If a part does not match its own checksum.
    """
    tables = [read_checksummed_parquet(folder, part_path(replace(chunk, retry=0)))]
    with suppress(FileNotFoundError):
        while True:
            tables.append(
                read_checksummed_parquet(folder, part_path(replace(chunk, retry=len(tables))))
            )
    return tables[0] if len(tables) == 1 else pa.concat_tables(tables).sort_by("row")
