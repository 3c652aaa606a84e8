"""One chunk of a listing becomes one part of a store, wherever the vectors come from.

Every item of the chunk ends as exactly one row or one line of the ledger. Only what would fail
again is written there; errors that may pass stop the job (`storage/files.py`).
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

from retrieval.core.errors import Damaged
from retrieval.core.records import Chunk, ChunkResult, FileRecord, Rounding
from retrieval.embedding.outcome import Embedded, Failure
from retrieval.storage import transaction
from retrieval.storage.checksum import is_sealed
from retrieval.storage.finished_output import read_if_there
from retrieval.storage.local import Folder
from retrieval.storage.parquet import read_rows
from retrieval.store import layout, reader

Fetch = Callable[[list[dict[str, Any]]], Iterator[Embedded]]
"""Gives vectors for items (rows of a listing), batch after batch; each item is in one of them."""


def put_chunk(
    chunk: Chunk, folder: Folder, fetch: Fetch, dimension: int, dtype: str
) -> ChunkResult:
    """Fetch the vectors of a chunk and put its part; a part that is there stays.

    A retry does so with what the chunk's ledger lists, and puts nothing if nothing is recovered.
    """
    started = time.perf_counter()
    done = finished_chunk(folder, chunk)
    if done is not None:
        return done
    lines = _lines(folder, chunk)
    rows: list[dict[str, Any]] = []
    failures: list[Failure] = []
    vectors: list[NDArray[Any]] = []
    size, rounding = 0, Rounding()
    for batch in fetch(lines.to_pylist()):
        rows += batch.rows
        failures += batch.failures
        vectors.append(batch.vectors)
        size += batch.size
        rounding += batch.rounding
    if chunk.retry and not rows:
        return ChunkResult(chunk.number, 0, len(failures), ())
    part = _part(lines, rows, vectors, dimension, dtype)
    ledger = reader.ledger_bytes(failures)
    _drop_other_ledger(folder, chunk, ledger)
    records = reader.put_part(folder, chunk, part, ledger)
    seconds = time.perf_counter() - started
    return ChunkResult(chunk.number, len(rows), len(failures), records, size, seconds, rounding)


def _lines(folder: Folder, chunk: Chunk) -> pa.Table:
    """Read the lines of the listing that are to be embedded."""
    path = layout.listing_path(chunk.segment)
    lines = read_rows(folder, path, chunk.first, chunk.last)
    if not chunk.retry:
        return lines
    before = folder.read(layout.failures_path(replace(chunk, retry=chunk.retry - 1)))
    failed = pq.read_table(io.BytesIO(before), columns=["row"])["row"]
    return lines.filter(pc.is_in(lines["row"], value_set=failed.combine_chunks()))


def finished_chunk(folder: Folder, chunk: Chunk) -> ChunkResult | None:
    """Give the result of a chunk whose part an earlier attempt has put, its ledger with it.

    Else the driver would read the ledgers of all such chunks, one after another.
    """
    part = _vouched(folder, layout.part_path(chunk))
    if part is None:
        return None
    rows = part.rows or 0
    failures = chunk.last - chunk.first - rows
    ledger = _vouched(folder, layout.failures_path(chunk)) if failures else None
    return ChunkResult(chunk.number, rows, failures, (ledger, part) if ledger else (part,))


def _vouched(folder: Folder, path: str) -> FileRecord | None:
    """Give the record of a file that carries its own checksum; None where there is none."""
    data = read_if_there(folder, path)
    if data is None:
        return None
    if not is_sealed(io.BytesIO(data)):
        raise Damaged(f"{folder.uri(path)} was altered; remove it and run again")
    return transaction.record(path, data)


def _drop_other_ledger(folder: Folder, chunk: Chunk, ledger: bytes | None) -> None:
    """Remove the ledger of an attempt that was killed before its part, if other images fail now.

    An equal one stays, so that two runs at once never take each other's away.
    """
    path = layout.failures_path(chunk)
    try:
        there = folder.read(path)
    except FileNotFoundError:
        return
    if there != ledger:
        folder.delete(path)


def _part(
    lines: pa.Table,
    rows: list[dict[str, Any]],
    vectors: list[NDArray[Any]],
    dimension: int,
    dtype: str,
) -> bytes:
    at = {row: place for place, row in enumerate(lines["row"].to_pylist())}
    kept = lines.take(pa.array([at[row["row"]] for row in rows], pa.int64()))
    measured = pa.table({k: [row[k] for row in rows] for k in ("width", "height", "sha256")})
    stacked = np.concatenate([np.empty((0, dimension), dtype), *vectors])
    return reader.part_bytes(kept, measured, stacked)
