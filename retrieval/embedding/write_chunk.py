"""Write one chunk of a listing as one part of a store, for any source of vectors.

Every item of the chunk ends as exactly one row of the part or one row of the ledger. The ledger
holds permanent failures; temporary errors stop the job.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from retrieval.core.records import Chunk, ChunkResult, FileRecord, Rounding
from retrieval.embedding.outcome import EmbeddedBatch, Failure
from retrieval.storage import transaction
from retrieval.storage.checksum import verify_checksum
from retrieval.storage.finished_output import read_if_exists
from retrieval.storage.local import Folder
from retrieval.storage.parquet import read_rows
from retrieval.store import layout, part_writer

FetchVectors = Callable[[pa.Table], Iterator[EmbeddedBatch]]
"""Yields batches of vectors for lines of a listing; each line is in exactly one batch."""


def write_chunk(
    chunk: Chunk, folder: Folder, fetch: FetchVectors, dimension: int, dtype: str
) -> ChunkResult:
    """Fetch the vectors of a chunk and write its part and ledger; an existing part is kept.

    A retry (`chunk.retry` > 0) fetches what the previous ledger of the chunk lists, and writes
    nothing if it recovers nothing.

    Args:
        chunk: The lines of a segment to process.
        folder: The store.
        fetch: Function that yields the vectors of the lines.
        dimension: Dimension of the vectors.
        dtype: Type of the stored vectors.
    """
    started = time.perf_counter()
    finished = read_finished_chunk(folder, chunk)
    if finished is not None:
        return finished
    lines = read_lines(folder, chunk)
    rows: list[dict[str, Any]] = []
    failures: list[Failure] = []
    vectors: list[NDArray[Any]] = []
    size, rounding = 0, Rounding()
    for batch in fetch(lines):
        rows += batch.rows
        failures += batch.failures
        vectors.append(batch.vectors)
        size += batch.size
        rounding += batch.rounding
    if chunk.retry and not rows:
        return ChunkResult(chunk.number, 0, len(failures), ())
    part = _encode_part(lines, rows, vectors, dimension, dtype)
    ledger = part_writer.encode_ledger(failures)
    _drop_other_ledger(folder, chunk, ledger)
    records = part_writer.put_part(folder, chunk, part, ledger)
    seconds = time.perf_counter() - started
    return ChunkResult(chunk.number, len(rows), len(failures), records, size, seconds, rounding)


def read_lines(folder: Folder, chunk: Chunk) -> pa.Table:
    """Read the lines of the listing that this attempt must embed."""
    path = layout.listing_path(chunk.segment)
    lines = read_rows(folder, path, chunk.first, chunk.last)
    if not chunk.retry:
        return lines
    previous = folder.read(layout.failures_path(replace(chunk, retry=chunk.retry - 1)))
    failed = pq.read_table(io.BytesIO(previous), columns=["row"])["row"]
    return lines.filter(pc.is_in(lines["row"], value_set=failed.combine_chunks()))


def read_finished_chunk(folder: Folder, chunk: Chunk) -> ChunkResult | None:
    """Return the result of a chunk whose part exists already; None if it does not.

    Workers do this so that the driver need not read the ledgers of all chunks one after another.
    """
    part = _read_record(folder, layout.part_path(chunk))
    if part is None:
        return None
    rows = part.rows or 0
    failures = chunk.last - chunk.first - rows
    ledger = _read_record(folder, layout.failures_path(chunk)) if failures else None
    return ChunkResult(chunk.number, rows, failures, (ledger, part) if ledger else (part,))


def _read_record(folder: Folder, path: str) -> FileRecord | None:
    """Return the record of a file after checking its own checksum; None if it does not exist."""
    data = read_if_exists(folder, path)
    if data is None:
        return None
    verify_checksum(data, folder.uri(path))
    return transaction.file_record(path, data)


def _drop_other_ledger(folder: Folder, chunk: Chunk, ledger: bytes | None) -> None:
    """Remove the ledger of an attempt that was killed before it wrote the part, if it differs.

    An equal ledger is kept, so that two concurrent runs never delete each other's.
    """
    path = layout.failures_path(chunk)
    try:
        existing = folder.read(path)
    except FileNotFoundError:
        return
    if existing != ledger:
        folder.delete(path)


def _encode_part(
    lines: pa.Table,
    rows: list[dict[str, Any]],
    vectors: list[NDArray[Any]],
    dimension: int,
    dtype: str,
) -> bytes:
    positions = {row: position for position, row in enumerate(lines["row"].to_pylist())}
    embedded_lines = lines.take(pa.array([positions[row["row"]] for row in rows], pa.int64()))
    measured = pa.table({k: [row[k] for row in rows] for k in ("width", "height", "sha256")})
    stacked = np.concatenate([np.empty((0, dimension), dtype), *vectors])
    return part_writer.encode_part(embedded_lines, measured, stacked)
