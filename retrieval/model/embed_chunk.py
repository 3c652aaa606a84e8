"""One chunk of images becomes one part of a store: the plain step that Ray, tests and loops call.

Every image of the chunk ends as exactly one row or one line of the ledger. Only what would fail
again is written there; errors that may pass stop the job (`storage/files.py`).
"""

from __future__ import annotations

import hashlib
import io
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from retrieval.embeddings import store
from retrieval.errors import Damaged, LookalikeError
from retrieval.images.decode import decode
from retrieval.images.listing import read_chunk
from retrieval.model.embedding import Embedder
from retrieval.storage import commit
from retrieval.storage.files import Folder
from retrieval.storage.reading import read_uri
from retrieval.storage.seal import is_sealed, sealed_parquet
from retrieval.tables import FAILURES, Chunk, ChunkResult, part_table

_MESSAGE = 300  # characters of an error kept in the ledger
_OBJECT = re.compile(r"<[^<>]* object at 0x[0-9a-f]+>")
"""What Pillow calls the bytes it was given; the place in memory differs from run to run."""


@dataclass(frozen=True)
class Decoding:
    """What embed_chunk needs beside the bundle."""

    max_pixels: int
    embedding_dtype: str
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class _Image:
    item: dict[str, Any]
    pixels: torch.Tensor
    width: int
    height: int
    sha256: str


def embed_chunk(
    chunk: Chunk, folder: Folder, embedder: Embedder, decoding: Decoding
) -> ChunkResult:
    """Read, decode and embed the images of a chunk and put its part; a part that is there stays."""
    started = time.perf_counter()
    done = _finished(folder, chunk)
    if done is not None:
        return done
    items = read_chunk(folder, store.LISTING, chunk.first, chunk.last).to_pylist()
    failures: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    vectors: list[np.ndarray[Any, Any]] = []
    size = 0
    for batch in _batches(items, embedder, decoding, failures):
        size += sum(image.item["size"] for image in batch)
        embedded = embedder.embed([image.pixels for image in batch])
        with np.errstate(over="ignore"):  # what float16 cannot hold is found below
            stored = embedded.astype(decoding.embedding_dtype)
        for image, vector in zip(batch, stored, strict=True):
            if problem := _unfit(vector):
                failures.append(_failure(image.item, "embed", ValueError(problem)))
            else:
                rows.append(_row(image))
                vectors.append(vector)
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


def _batches(
    items: list[dict[str, Any]],
    embedder: Embedder,
    decoding: Decoding,
    failures: list[dict[str, Any]],
) -> Iterator[list[_Image]]:
    """Decode one batch at a time, so that memory is one batch; failures go to the ledger."""
    batch: list[_Image] = []
    for item in items:
        image = _image(item, embedder, decoding, failures)
        if image is not None:
            batch.append(image)
        if len(batch) == embedder.batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def _image(
    item: dict[str, Any],
    embedder: Embedder,
    decoding: Decoding,
    failures: list[dict[str, Any]],
) -> _Image | None:
    stage = "read"
    try:
        data = read_uri(item["path"], decoding.options)
        stage = "decode"
        found = decode(data, embedder.bundle.transform, max_pixels=decoding.max_pixels)
    except LookalikeError:
        raise
    except (MemoryError, Exception) as error:  # noqa: BLE001 - decoders raise anything at all
        failures.append(_failure(item, stage, error))
        return None
    return _Image(item, found.pixels, found.width, found.height, hashlib.sha256(data).hexdigest())


def _failure(item: dict[str, Any], stage: str, error: BaseException) -> dict[str, Any]:
    message = " ".join(_OBJECT.sub("", str(error)).split())[:_MESSAGE] or type(error).__name__
    kept = {key: item[key] for key in ("row", "image_id", "path", "label")}
    return {**kept, "stage": stage, "error": type(error).__name__, "message": message}


def _unfit(vector: np.ndarray[Any, Any]) -> str | None:
    """Say why a vector cannot be searched for, or nothing."""
    if not np.isfinite(vector).all():
        return "the vector is not finite as stored"
    return None if vector.any() else "the vector has no length"


def _row(image: _Image) -> dict[str, Any]:
    kept = {key: image.item[key] for key in ("row", "image_id", "path", "label")}
    return {**kept, "width": image.width, "height": image.height, "sha256": image.sha256}


def _part(
    rows: list[dict[str, Any]], vectors: list[np.ndarray[Any, Any]], dimension: int, dtype: str
) -> bytes:
    schema = part_table(dimension, dtype).schema
    plain = pa.Table.from_pylist(rows, schema.remove(schema.get_field_index("embedding")))
    stacked = np.stack(vectors) if vectors else np.empty((0, dimension), dtype)
    table = plain.append_column(schema.field("embedding"), store.embedding_column(stacked))
    return sealed_parquet(table.select(schema.names))
