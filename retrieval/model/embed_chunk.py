"""One chunk of images becomes one part of a store: the plain step that Ray, tests and loops call.

Every image of the chunk ends as exactly one row or one line of the ledger. Only what would fail
again is written there; errors that may pass stop the job (`storage/files.py`).
"""

from __future__ import annotations

import io
import time
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retrieval.embeddings import store
from retrieval.errors import Damaged
from retrieval.images.listing import read_chunk
from retrieval.model.embed_items import Decoding, Failure, embed_items
from retrieval.model.embedding import Embedder
from retrieval.storage import commit
from retrieval.storage.files import Folder
from retrieval.storage.seal import is_sealed, sealed_parquet
from retrieval.tables import FAILURES, Chunk, ChunkResult, part_table


def embed_chunk(
    chunk: Chunk, folder: Folder, embedder: Embedder, decoding: Decoding
) -> ChunkResult:
    """Read, decode and embed the images of a chunk and put its part; a part that is there stays."""
    started = time.perf_counter()
    done = _finished(folder, chunk)
    if done is not None:
        return done
    items = read_chunk(folder, store.LISTING, chunk.first, chunk.last).to_pylist()
    rows: list[dict[str, Any]] = []
    failures: list[Failure] = []
    vectors: list[NDArray[Any]] = []
    size = 0
    for batch in embed_items(items, embedder, decoding):
        rows += batch.rows
        failures += batch.failures
        vectors.append(batch.vectors)
        size += batch.size
    part = _part(rows, vectors, embedder.bundle.dimension, decoding.embedding_dtype)
    failed = sorted(failures, key=lambda failure: failure["row"])
    ledger = sealed_parquet(pa.Table.from_pylist(failed, FAILURES.schema)) if failed else None
    _drop_other_ledger(folder, chunk, ledger)
    records = store.put_part(folder, chunk, part, ledger)
    seconds = time.perf_counter() - started
    return ChunkResult(chunk.number, len(rows), len(failed), records, size, seconds)


def _finished(folder: Folder, chunk: Chunk) -> ChunkResult | None:
    """Give the result of a chunk whose part an earlier attempt has put."""
    path = store.part_path(chunk.number)
    try:
        part = folder.read(path)
    except FileNotFoundError:
        return None
    if not is_sealed(io.BytesIO(part)):
        raise Damaged(f"{folder.uri(path)} was altered; remove it and run again")
    record = commit.record(path, part)
    rows = record.rows or 0
    failures = chunk.last - chunk.first - rows
    return ChunkResult(chunk.number, rows, failures, (record,))


def _drop_other_ledger(folder: Folder, chunk: Chunk, ledger: bytes | None) -> None:
    """Remove the ledger of an attempt that was killed before its part, if other images fail now.

    An equal one stays, so that two runs at once never take each other's away.
    """
    path = store.failures_path(chunk.number)
    try:
        there = folder.read(path)
    except FileNotFoundError:
        return
    if there != ledger:
        folder.delete(path)


def _part(
    rows: list[dict[str, Any]], vectors: list[NDArray[Any]], dimension: int, dtype: str
) -> bytes:
    schema = part_table(dimension, dtype).schema
    plain = pa.Table.from_pylist(rows, schema.remove(schema.get_field_index("embedding")))
    stacked = np.concatenate([np.empty((0, dimension), dtype), *vectors])
    table = plain.append_column(schema.field("embedding"), store.embedding_column(stacked))
    return sealed_parquet(table.select(schema.names))
