"""A finished store, opened: its live rows streamed, part by part, in the order of their rows.

Where the files lie is said in `layout.py`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, ValuesView
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from retrieval.core.errors import Damaged
from retrieval.core.records import Chunk, FileRecord
from retrieval.core.schemas import FAILURES, LISTING, Vectors, further_columns, part_table
from retrieval.storage import finished_output, transaction
from retrieval.storage.checksum import is_sealed, sealed_parquet
from retrieval.storage.finished_output import Manifest
from retrieval.storage.local import Folder
from retrieval.store.finalize import read_deleted
from retrieval.store.layout import (
    Pieces,
    failures_path,
    listing_path,
    part_path,
    pieces_in,
    segment_json_path,
)
from retrieval.store.segment import Rows, Segment, by_segment, digest_of, segment_of


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
        """Count the images that are alive and have a vector."""
        return int(self.manifest.counts["rows"])

    @property
    def span(self) -> int:
        """Count the rows given out; failed and deleted ones are holes among them."""
        return int(self.manifest.counts["span"])

    @property
    def dimension(self) -> int:
        """Give the length of a vector."""
        return int(self.manifest.counts["dimension"])

    @property
    def dtype(self) -> str:
        """Give float16 or float32."""
        return str(self.settings["embedding_dtype"])

    @property
    def bundle(self) -> str | None:
        """Give the digest of the bundle that made the vectors; None where that was elsewhere."""
        found: str | None = self.settings["bundle"]
        return found

    @cached_property
    def segments(self) -> list[Segment]:
        """Give the segments that were whole when the manifest was put."""
        return [
            segment_of(number, self._bytes(segment_json_path(number)), self.folder)
            for number in range(int(self.manifest.counts["segments"]))
        ]

    @cached_property
    def chunks(self) -> list[Chunk]:
        """Give the chunks of all segments, in the order of their rows."""
        return [chunk for segment in self.segments for chunk in segment.chunks()]

    @cached_property
    def deleted(self) -> Rows:
        """Give the rows that are deleted, in their order."""
        return read_deleted(self.folder, self.segments)

    @cached_property
    def _pieces(self) -> Pieces:
        return pieces_in(self.manifest.files.paths)

    def blocks(self, first: int = 0, last: int | None = None) -> Iterator[pa.Table]:
        """Stream the live rows first <= row < last, a table a chunk, in order of row."""
        last = self.span if last is None else last
        for chunk in self.chunks:
            if chunk.base + chunk.first < last and chunk.base + chunk.last > first:
                table = self.chunk_rows(chunk)
                begin, end = np.searchsorted(table["row"].to_numpy(), [first, last])
                yield table.slice(int(begin), int(end - begin))

    def chunk_rows(self, chunk: Chunk) -> pa.Table:
        """Give the live rows of a chunk; what retries recovered is among them."""
        retries = self._pieces.parts_of(chunk)
        parts = [self._read(part_path(replace(chunk, retry=number))) for number in retries]
        whole = parts[0] if len(parts) == 1 else pa.concat_tables(parts).sort_by("row")
        return self._alive(whole, chunk)

    @cached_property
    def more(self) -> pa.Schema:
        """Give the further columns of its images, of all segments; one of two types is text."""
        found: dict[str, pa.Field] = {}
        for segment in self.segments:
            path = listing_path(segment.number)
            if digest_of(self.folder, path) != segment.files[path]:
                raise Damaged(f"{self.folder.uri(path)} was altered; remove it and run again")
            with self.folder.open(path) as file:
                schema = further_columns(pq.read_schema(file), LISTING)
            for field in schema:
                there = found.setdefault(field.name, field)
                if there.type != field.type:
                    found[field.name] = pa.field(field.name, pa.string())
        return pa.schema([field.with_nullable(True) for field in found.values()])

    @property
    def parts(self) -> list[ValuesView[FileRecord]]:
        """Give the parts in the order of their rows: those of first attempts, then of retries."""
        its = self._pieces.where(self._pieces.is_part)
        return [
            self.manifest.files.at(its.places[its.retries == retry]).values()
            for retry in range(int(its.retries.max(initial=-1)) + 1)
        ]

    def part_rows(self, path: str, first: int, last: int) -> pa.Table:
        """Give the live ones of the rows at some places of a part."""
        table = self._read(path).slice(first, last - first)
        if len(table) == 0:
            return table
        rows = table["row"]
        return self._without_deleted(table, rows[0].as_py(), rows[-1].as_py() + 1)

    def failures(self) -> Iterator[pa.Table]:
        """Stream the ledger's live lines, a table a chunk that has failures."""
        for segment, pieces in by_segment(self.segments, self._pieces):
            for number, retry in pieces.ledgers():
                chunk = replace(segment.chunk(number), retry=retry)
                yield self._alive(self._read(failures_path(chunk)), chunk)

    def _alive(self, table: pa.Table, chunk: Chunk) -> pa.Table:
        return self._without_deleted(table, chunk.base + chunk.first, chunk.base + chunk.last)

    def _without_deleted(self, table: pa.Table, first: int, last: int) -> pa.Table:
        begin, end = np.searchsorted(self.deleted, [first, last])
        if begin == end:
            return table
        gone = pc.is_in(table["row"], value_set=pa.array(self.deleted[begin:end]))
        return table.filter(pc.invert(gone))

    def _bytes(self, path: str) -> bytes:
        return finished_output.read_checked(self.folder, self.manifest.files[path])

    def _read(self, path: str) -> pa.Table:
        return pq.read_table(io.BytesIO(self._bytes(path)))


def open_store(folder: Folder) -> Store:
    """Open a finished store; refusals as `finished.read_manifest` has them."""
    manifest = finished_output.read_manifest(folder, kind="store")
    return Store(folder, manifest, finished_output.read_settings(folder))


def sealed_parts(folder: Folder, chunk: Chunk) -> pa.Table:
    """Read the rows of a chunk, deleted ones too, of a store that may not be finished.

    Each part vouches for itself. FileNotFoundError where there is none.
    """
    tables = [read_sealed(folder, part_path(replace(chunk, retry=0)))]
    with suppress(FileNotFoundError):
        while True:
            tables.append(read_sealed(folder, part_path(replace(chunk, retry=len(tables)))))
    return tables[0] if len(tables) == 1 else pa.concat_tables(tables).sort_by("row")


def read_sealed(folder: Folder, path: str) -> pa.Table:
    """Read a Parquet file that must carry its own checksum."""
    data = folder.read(path)
    if not is_sealed(io.BytesIO(data)):
        raise Damaged(f"{folder.uri(path)} was altered; remove it and run again")
    return pq.read_table(io.BytesIO(data))


def part_bytes(lines: pa.Table, measured: pa.Table, vectors: Vectors) -> bytes:
    """Write a part: what the listing says of some images, what was measured, their vectors.

    `measured` has the columns width, height and sha256, a row for each of `lines`.
    """
    more = further_columns(lines.schema, LISTING)
    schema = part_table(vectors.shape[1], str(vectors.dtype), more).schema
    for name in ("width", "height", "sha256"):
        lines = lines.append_column(name, measured[name])
    table = lines.append_column(schema.field("embedding"), embedding_column(vectors))
    return sealed_parquet(table.select(schema.names).cast(schema))


def ledger_bytes(failures: list[dict[str, Any]]) -> bytes | None:
    """Write the ledger of a chunk, in the order of its rows; nothing if nothing failed."""
    if not failures:
        return None
    rows = sorted(failures, key=lambda failure: failure["row"])
    return sealed_parquet(pa.Table.from_pylist(rows, FAILURES.schema))


def put_part(
    folder: Folder, chunk: Chunk, part: bytes, failures: bytes | None
) -> tuple[FileRecord, ...]:
    """Put what a chunk came to, the part last; what is there already stays."""
    records = []
    if failures is not None:
        records.append(transaction.put_once(folder, failures_path(chunk), failures))
    records.append(transaction.put_once(folder, part_path(chunk), part))
    return tuple(records)
