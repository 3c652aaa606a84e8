"""What a shard holds closest to the sample on which recall is measured.

    work/neighbours/SAMPLE/00000.parquet
    work/neighbours/SAMPLE/00000.codes.parquet   by the codes, where these are not the vectors

They are put beside the shard in the same task, while it is in memory.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from retrieval.core.errors import Damaged
from retrieval.core.records import Neighbours, ShardResult
from retrieval.core.schemas import WORK, Vectors
from retrieval.index.build_shard import Making, put_shard
from retrieval.index.coverage import Extents
from retrieval.index.quantized_codes import CANDIDATES_PER_MATCH, Codes
from retrieval.index.recall_curve import CURVE_K, DEEP_K, DEEP_SHARE
from retrieval.index.shard import Shard
from retrieval.storage.checksum import is_sealed, notes_of, sealed_parquet
from retrieval.storage.local import Folder
from retrieval.store.reader import Store, vectors_of
from retrieval.vectors.scoring import block
from retrieval.vectors.topk import TopK

_BLOCK = 1 << 13  # rows that meet the sample in one product


@dataclass(frozen=True)
class Sample:
    """Vectors of a store that stand for queries, (s, d), and their rows."""

    vectors: Vectors
    rows: NDArray[np.int64]
    ks: tuple[int, ...] = CURVE_K  # ascending: recall is measured at each

    @property
    def k(self) -> int:
        """Return how many neighbours are wanted, the sampled vector itself among them."""
        return self.ks[-1] + 1

    @cached_property
    def name(self) -> str:
        """Give what tells it from the sample of the same store before it grew."""
        digest = hashlib.sha256(np.ascontiguousarray(self.vectors).tobytes())
        digest.update(self.rows.tobytes() + repr(self.ks).encode())
        return digest.hexdigest()[:16]


def samples_of(
    vectors: Vectors, rows: NDArray[np.int64], gallery: int, codes: str | None
) -> list[Sample]:
    """Return the samples that recall is measured on: all vectors, and some of them for a large k.

    `gallery` are the rows there are; `codes` those of the index, None where they lose something.
    """
    samples, depth = [Sample(vectors, rows)], min(DEEP_K, gallery - 1)
    if codes and depth > CURVE_K[-1]:
        deep = slice(None, None, DEEP_SHARE)
        samples.append(Sample(vectors[deep], rows[deep], (depth,)))
    return samples


def neighbours_path(sample: Sample, number: int) -> str:
    """Give the path of what a shard holds closest to the sample."""
    return f"{WORK}neighbours/{sample.name}/{number:05d}.parquet"


def by_codes_path(sample: Sample, number: int) -> str:
    """Give the path of what a shard holds closest to the sample by its codes."""
    return f"{WORK}neighbours/{sample.name}/{number:05d}.codes.parquet"


def make_shard(
    making: Making, samples: Sequence[Sample], number: int, extents: Extents
) -> ShardResult:
    """Put a shard and its neighbours of the samples, or find them put; say what they came to."""
    put = put_shard(making, number, extents)
    codes = None if making.codes else Codes(put.shard)
    for sample in samples:
        path, by_codes = neighbours_path(sample, number), by_codes_path(sample, number)
        if not making.folder.exists(path):
            live = (
                blocks_of_shard(put.shard)
                if codes is None
                else _stored(making.store, extents, codes)
            )
            found = nearest_of(put.shard, live, sample)
            making.folder.put_new(path, neighbours_to_bytes(found))
        if codes and not making.folder.exists(by_codes):
            asked = codes.coarse.inside(sample.vectors, making.metric)
            found = codes.search(asked, codes.coarse.ivf.nlist, sample.k * CANDIDATES_PER_MATCH)
            making.folder.put_new(by_codes, neighbours_to_bytes(found))
    rows = int(put.shard.alive.sum())
    return ShardResult(number, rows, dict(put.labels), put.files, put.spread)


Listed = tuple[NDArray[np.int64], Vectors, NDArray[np.int64]]
"""Rows, their vectors, and the numbers of their lists."""


def nearest_of(shard: Shard, live: Iterable[Listed], sample: Sample) -> Neighbours:
    """Find a shard's live rows that are closest to the sample, exactly, and their lists."""
    best = TopK(block(sample.vectors, shard.metric), sample.k)
    lists = np.full(len(shard.rows), -1, np.int64)
    for rows, vectors, numbers in live:
        best.push(block(vectors, shard.metric), rows, rows)
        lists[np.searchsorted(shard.rows, rows)] = numbers
    if len(lists) == 0:
        return Neighbours(best.keys, best.positions, np.full(best.positions.shape, -1))
    place = np.minimum(np.searchsorted(shard.rows, best.positions), len(lists) - 1)
    own = np.where(best.positions < 0, -1, lists[place])
    return Neighbours(best.keys, best.positions, own.astype(np.int64))


def _stored(store: Store, extents: Extents, codes: Codes) -> Iterator[Listed]:
    """Give the live rows of a shard from the store it was made of."""
    for extent in extents:
        table = store.part_rows(extent.path, extent.first, extent.last)
        rows = table["row"].to_numpy()
        if len(rows):
            yield rows, vectors_of(table), codes.lists[np.searchsorted(codes.shard.rows, rows)]


def blocks_of_shard(shard: Shard) -> Iterator[Listed]:
    """Give the live rows of several lists at a time."""
    waiting: list[tuple[NDArray[np.int64], Any, NDArray[np.int64]]] = []
    for number in range(shard.index.nlist):
        rows, vectors = shard.listed(number)
        if len(rows):
            waiting.append((rows, vectors, np.full(len(rows), number)))
        last = number == shard.index.nlist - 1
        if waiting and (last or sum(len(one[0]) for one in waiting) >= _BLOCK):
            rows, vectors, numbers = (
                np.concatenate(column) for column in zip(*waiting, strict=True)
            )
            yield rows, vectors, numbers
            waiting = []


def neighbours_to_bytes(found: Neighbours) -> bytes:
    """Write neighbours as Parquet, sealed: three columns of (s, k) numbers, row by row."""
    columns = {"key": found.keys, "row": found.rows, "list": found.lists}
    table = pa.table({name: values.ravel() for name, values in columns.items()})
    return sealed_parquet(table, {"samples": str(len(found.keys))})


def read_neighbours(folder: Folder, path: str) -> Neighbours:
    """Read what `make_shard` put beside a shard."""
    data = folder.read(path)
    if not is_sealed(io.BytesIO(data)):
        raise Damaged(f"{folder.uri(path)} was altered; remove it and run again")
    table = pq.read_table(io.BytesIO(data))
    shape = (int(notes_of(data)["samples"]), -1)
    return Neighbours(*(table[name].to_numpy().reshape(shape) for name in ("key", "row", "list")))
