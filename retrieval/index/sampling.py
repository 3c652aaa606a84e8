"""Seeded sampling of a store's vectors by the hashes of their image_ids.

An image is drawn if its hash lies below a fraction of all hashes. So each part can be sampled by
itself, and a store that grew piece by piece has the same sample as one made at once. The sample
size is random, within some percent of the requested size; where it must be exact, the images of the
smallest hashes are drawn. Each purpose has independent hashes: otherwise recall of a store ranked
against itself would be measured on the very rows that started its centroids.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retrieval.core.records import Chunk
from retrieval.core.schemas import Vectors
from retrieval.index.workers import InProcessWorkers, Workers
from retrieval.store.reader import Store, read_vectors

Hashes = NDArray[np.uint64]
Purpose = Literal["training", "curve", "certificate", "compare", "report", "map", "calibrate"]
"""What a sample is drawn for; samples for different purposes are independent of each other."""

_ALL = 2.0**64
_GROUP = 64  # chunks per worker task


def hash_image_ids(image_ids: Iterable[str], seed: int, purpose: Purpose) -> Hashes:
    """Return the uint64 hash of each image_id, (n,), the same on every machine."""
    key, purpose_bytes = seed.to_bytes(16, "little"), purpose.encode()
    digests = (
        hashlib.blake2b(name.encode(), digest_size=8, key=key, person=purpose_bytes)
        for name in image_ids
    )
    return np.frombuffer(b"".join(digest.digest() for digest in digests), "<u8")


def sampling_fraction(count: int, rows: int) -> float:
    """Return the fraction of `rows` that samples about `count` of them; 1 means all."""
    return min(1.0, count / max(1, rows))


def sample_table(
    table: pa.Table, fraction: float, seed: int, purpose: Purpose
) -> tuple[pa.Table, Hashes]:
    """Return the sampled rows of a part's table, and their hashes."""
    hashes = hash_image_ids(table["image_id"].to_pylist(), seed, purpose)
    sampled_positions = np.flatnonzero(below_fraction(hashes, fraction))
    return table.take(sampled_positions), hashes[sampled_positions]


def below_fraction(hashes: Hashes, fraction: float) -> NDArray[np.bool_]:
    """Return a mask of the hashes within the smallest `fraction` of the hash range."""
    return np.ones(len(hashes), np.bool_) if fraction >= 1 else hashes < np.uint64(fraction * _ALL)


def draw_sample(
    store: Store, count: int, seed: int, purpose: Purpose, workers: Workers | None = None
) -> tuple[Vectors, NDArray[np.int64]]:
    """Return about `count` of a store's vectors, (n, d), and their rows, (n,) ascending.

    A store with vectors yields at least one: that of the smallest hash where chance draws none. All
    parts are read, by `workers` where there are many.
    """
    fraction = sampling_fraction(count, store.rows)
    groups = [store.chunks[n : n + _GROUP] for n in range(0, len(store.chunks), _GROUP)]
    workers = workers if workers and len(groups) > 1 else InProcessWorkers()
    shared_store = workers.broadcast(store)
    tables: list[pa.Table] = []
    smallest_rows: list[tuple[int, pa.Table]] = []
    for sample, smallest in workers.map(
        _sample_chunks, [(shared_store, group, fraction, seed, purpose) for group in groups]
    ):
        tables.append(sample)
        smallest_rows += smallest
    if smallest_rows and not any(len(table) for table in tables):
        tables = [min(smallest_rows, key=lambda entry: entry[0])[1]]
    vectors = np.concatenate([read_vectors(table) for table in tables])
    rows = np.concatenate([table["row"].to_numpy() for table in tables])
    return vectors, rows.astype(np.int64)


def rows_in_hash_order(store: Store, count: int, seed: int, purpose: Purpose) -> NDArray[np.int64]:
    """Return the rows of the `count` images with the smallest hashes, ordered by hash.

    The result, and each prefix of it, is a simple random sample, so that a sample can grow.
    """
    rows, hashes = np.empty(0, np.int64), np.empty(0, np.uint64)
    for chunk in store.chunks:
        table = store.chunk_rows(chunk, ["row", "image_id"])
        rows = np.concatenate([rows, table["row"].to_numpy().astype(np.int64)])
        image_ids = table["image_id"].to_pylist()
        hashes = np.concatenate([hashes, hash_image_ids(image_ids, seed, purpose)])
        smallest = np.argsort(hashes, kind="stable")[:count]
        rows, hashes = rows[smallest], hashes[smallest]
    return rows


def _sample_chunks(
    store: Store, chunks: Sequence[Chunk], fraction: float, seed: int, purpose: Purpose
) -> tuple[pa.Table, list[tuple[int, pa.Table]]]:
    """Return the sampled rows of some chunks, and the row of their smallest hash if any."""
    tables: list[pa.Table] = []
    smallest_row: tuple[int, pa.Table] | None = None
    for chunk in chunks:
        table = store.chunk_rows(chunk).select(["row", "image_id", "embedding"])
        hashes = hash_image_ids(table["image_id"].to_pylist(), seed, purpose)
        tables.append(table.take(np.flatnonzero(below_fraction(hashes, fraction))))
        if len(table) and (smallest_row is None or hashes.min() < smallest_row[0]):
            smallest_row = int(hashes.min()), table.take([int(hashes.argmin())])
    return pa.concat_tables(tables), [smallest_row] if smallest_row else []
