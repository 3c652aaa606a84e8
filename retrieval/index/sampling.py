"""Which vectors stand for all: a seeded sample that depends on the names of the images alone.

An image is drawn if the hash of its image_id lies below a share of all hashes. So each part can be
looked at by itself, wherever it is read, and a store that grew piece by piece has the same sample
as one that was made at once. The size is random, within some percent of what is asked for; where it
must be exact, the images of the smallest hashes are drawn.

Each purpose has hashes of its own: were the queries that recall is measured on drawn by the hashes
that chose the centroids, a store ranked against itself would be judged by its centroids.
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
from retrieval.index.workers import Here, Workers
from retrieval.store.reader import Store, vectors_of

Hashes = NDArray[np.uint64]
Purpose = Literal["training", "curve", "certificate", "compare", "report", "map"]
"""What a sample is drawn for; samples for different purposes are independent of each other."""

_ALL = 2.0**64
_GROUP = 64  # chunks that a worker draws from at once


def hashes_of(image_ids: Iterable[str], seed: int, purpose: Purpose) -> Hashes:
    """Return a number below 2^64 for each name, the same on every machine."""
    key, person = seed.to_bytes(16, "little"), purpose.encode()
    digests = (
        hashlib.blake2b(name.encode(), digest_size=8, key=key, person=person) for name in image_ids
    )
    return np.frombuffer(b"".join(digest.digest() for digest in digests), "<u8")


def share_for(count: int, rows: int) -> float:
    """Give the share of `rows` vectors that makes a sample of about `count`; 1 is all of them."""
    return min(1.0, count / max(1, rows))


def drawn(table: pa.Table, share: float, seed: int, purpose: Purpose) -> tuple[pa.Table, Hashes]:
    """Return the rows of a part that belong to the sample, and their hashes."""
    hashes = hashes_of(table["image_id"].to_pylist(), seed, purpose)
    which = np.flatnonzero(within(hashes, share))
    return table.take(which), hashes[which]


def within(hashes: Hashes, share: float) -> NDArray[np.bool_]:
    """Tell which hashes belong to the smallest `share` of all there can be."""
    return np.ones(len(hashes), np.bool_) if share >= 1 else hashes < np.uint64(share * _ALL)


def sample_of(
    store: Store, count: int, seed: int, purpose: Purpose, workers: Workers | None = None
) -> tuple[Vectors, NDArray[np.int64]]:
    """Draw about `count` of a store's vectors: (n, d) and their rows, ascending.

    At least one, if the store has any: where chance would draw none, that of the smallest hash.
    All parts are read: by `workers`, where there are many.
    """
    share = share_for(count, store.rows)
    groups = [store.chunks[n : n + _GROUP] for n in range(0, len(store.chunks), _GROUP)]
    workers = workers if workers and len(groups) > 1 else Here()
    kept = workers.keep(store)
    found: list[pa.Table] = []
    least: list[tuple[int, pa.Table]] = []
    for sample, smallest in workers.map(
        _drawn, [(kept, group, share, seed, purpose) for group in groups]
    ):
        found.append(sample)
        least += smallest
    if least and not any(len(table) for table in found):
        found = [min(least, key=lambda one: one[0])[1]]
    vectors = np.concatenate([vectors_of(table) for table in found])
    rows = np.concatenate([table["row"].to_numpy() for table in found])
    return vectors, rows.astype(np.int64)


def rows_in_hash_order(store: Store, count: int, seed: int, purpose: Purpose) -> NDArray[np.int64]:
    """Return the rows of the `count` images of the smallest hashes, or of all, in their order.

    A simple random sample; its first rows are one too, so that a sample can grow.
    """
    rows, hashes = np.empty(0, np.int64), np.empty(0, np.uint64)
    for chunk in store.chunks:
        table = store.chunk_rows(chunk)
        rows = np.concatenate([rows, table["row"].to_numpy().astype(np.int64)])
        names = table["image_id"].to_pylist()
        hashes = np.concatenate([hashes, hashes_of(names, seed, purpose)])
        smallest = np.argsort(hashes, kind="stable")[:count]
        rows, hashes = rows[smallest], hashes[smallest]
    return rows


def _drawn(
    store: Store, chunks: Sequence[Chunk], share: float, seed: int, purpose: Purpose
) -> tuple[pa.Table, list[tuple[int, pa.Table]]]:
    """Draw from some chunks; also give the row of their smallest hash, if they have rows."""
    found: list[pa.Table] = []
    least: tuple[int, pa.Table] | None = None
    for chunk in chunks:
        table = store.chunk_rows(chunk).select(["row", "image_id", "embedding"])
        hashes = hashes_of(table["image_id"].to_pylist(), seed, purpose)
        found.append(table.take(np.flatnonzero(within(hashes, share))))
        if len(table) and (least is None or hashes.min() < least[0]):
            least = int(hashes.min()), table.take([int(hashes.argmin())])
    return pa.concat_tables(found), [least] if least else []
