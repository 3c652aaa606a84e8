"""Each shard's nearest neighbours of the sample on which recall is measured.

    work/neighbours/SAMPLE/00000.parquet
    work/neighbours/SAMPLE/00000.codes.parquet   by the codes, where these are lossy

They are written in the task that builds the shard, while it is in memory.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from retrieval.core.records import Neighbours, ShardResult
from retrieval.core.schemas import WORK_FOLDER, Vectors
from retrieval.index.build_shard import PlannedShard, write_shard
from retrieval.index.kmeans import assignment_metric
from retrieval.index.quantized_codes import CANDIDATES_PER_MATCH
from retrieval.index.recall_curve import CURVE_K, DEEP_K, DEEP_SHARE
from retrieval.index.runs import ShardBuildContext
from retrieval.index.shard import Shard
from retrieval.storage.checksum import checksummed_parquet, parquet_metadata, verify_checksum
from retrieval.storage.local import Folder
from retrieval.vectors.scoring import block
from retrieval.vectors.topk import TopK

_BLOCK = 1 << 13  # rows compared with the sample in one product


@dataclass(frozen=True)
class RecallSample:
    """Sampled vectors of a store that serve as queries, (s, d), and their rows, (s,)."""

    vectors: Vectors
    rows: NDArray[np.int64]
    ks: tuple[int, ...] = CURVE_K  # ascending: recall is measured at each

    @property
    def k(self) -> int:
        """Return the number of neighbours to find, including the sampled vector itself."""
        return self.ks[-1] + 1

    @cached_property
    def name(self) -> str:
        """Return a digest that identifies the sample, in contrast to that of a smaller store."""
        digest = hashlib.sha256(np.ascontiguousarray(self.vectors).tobytes())
        digest.update(self.rows.tobytes() + repr(self.ks).encode())
        return digest.hexdigest()[:16]


def make_recall_samples(
    vectors: Vectors, rows: NDArray[np.int64], gallery: int, codes: str | None
) -> list[RecallSample]:
    """Return the samples that recall is measured on: all vectors, and a part for a large k.

    `gallery` is the number of rows in the store; `codes` is the dtype of the codes, None if lossy.
    """
    samples, depth = [RecallSample(vectors, rows)], min(DEEP_K, gallery - 1)
    if codes and depth > CURVE_K[-1]:
        deep = slice(None, None, DEEP_SHARE)
        samples.append(RecallSample(vectors[deep], rows[deep], (depth,)))
    return samples


def neighbours_path(sample: RecallSample, number: int) -> str:
    """Return the path of a shard's exact neighbours of the sample."""
    return f"{WORK_FOLDER}neighbours/{sample.name}/{number:05d}.parquet"


def code_neighbours_path(sample: RecallSample, number: int) -> str:
    """Return the path of a shard's neighbours of the sample by its lossy codes."""
    return f"{WORK_FOLDER}neighbours/{sample.name}/{number:05d}.codes.parquet"


def build_measured_shard(
    context: ShardBuildContext, samples: Sequence[RecallSample], planned: PlannedShard
) -> ShardResult:
    """Write a shard and its neighbours of the samples, unless they exist; return its counts."""
    built, number = write_shard(context, planned), planned.number
    shard = built.shard
    for sample in samples:
        path, by_codes = neighbours_path(sample, number), code_neighbours_path(sample, number)
        if not context.folder.exists(path):
            neighbours = nearest_in_shard(shard, iterate_stored_blocks(shard), sample)
            context.folder.put_new(path, serialize_neighbours(neighbours))
        if context.codes is None and not context.folder.exists(by_codes):
            decoded = replace(shard, metric=assignment_metric(context.metric))
            neighbours = nearest_in_shard(
                decoded, iterate_list_blocks(decoded), sample, CANDIDATES_PER_MATCH
            )
            context.folder.put_new(by_codes, serialize_neighbours(neighbours))
    rows = int(shard.alive.sum())
    return ShardResult(number, rows, dict(built.labels), built.files, built.spread)


ListRows = tuple[NDArray[np.int64], Vectors, NDArray[np.int64]]
"""Rows, their vectors, and the numbers of their lists."""


def nearest_in_shard(
    shard: Shard, blocks: Iterable[ListRows], sample: RecallSample, per_match: int = 1
) -> Neighbours:
    """Return the nearest of a shard's live rows for the sample, `per_match` times k, with lists."""
    best = TopK(block(sample.vectors, shard.metric), sample.k * per_match)
    lists = np.full(len(shard.rows), -1, np.int64)
    for rows, vectors, numbers in blocks:
        best.push(block(vectors, shard.metric), rows, rows)
        lists[np.searchsorted(shard.rows, rows)] = numbers
    if len(lists) == 0:
        return Neighbours(best.keys, best.positions, np.full(best.positions.shape, -1))
    positions = np.minimum(np.searchsorted(shard.rows, best.positions), len(lists) - 1)
    neighbour_lists = np.where(best.positions < 0, -1, lists[positions])
    return Neighbours(best.keys, best.positions, neighbour_lists.astype(np.int64))


def iterate_list_blocks(shard: Shard) -> Iterator[ListRows]:
    """Iterate over the live rows of a shard with their vectors, stored or decoded.

    They come several lists at a time; lists are numbered as in the index.
    """
    return _iterate_blocks(shard, shard.list_vectors)


def iterate_stored_blocks(shard: Shard) -> Iterator[ListRows]:
    """Iterate over the live rows of a shard with their stored vectors, as `iterate_list_blocks`."""
    return _iterate_blocks(shard, shard.stored_vectors)


def _iterate_blocks(
    shard: Shard, read_list: Callable[[int], tuple[NDArray[np.int64], Any]]
) -> Iterator[ListRows]:
    pending: list[tuple[NDArray[np.int64], Any, NDArray[np.int64]]] = []
    for number in range(shard.index.nlist):
        rows, vectors = read_list(number)
        if len(rows):
            pending.append((rows, vectors, np.full(len(rows), shard.first_list + number)))
        last = number == shard.index.nlist - 1
        if pending and (last or sum(len(rows) for rows, _, _ in pending) >= _BLOCK):
            rows, vectors, numbers = (
                np.concatenate(column) for column in zip(*pending, strict=True)
            )
            yield rows, vectors, numbers
            pending = []


def serialize_neighbours(neighbours: Neighbours) -> bytes:
    """Return neighbours as checksummed Parquet: three columns of (s, k) numbers in row order."""
    columns = {"key": neighbours.keys, "row": neighbours.rows, "list": neighbours.lists}
    table = pa.table({name: values.ravel() for name, values in columns.items()})
    return checksummed_parquet(table, {"samples": str(len(neighbours.keys))})


def read_neighbours(folder: Folder, path: str) -> Neighbours:
    """Read neighbours that `build_measured_shard` wrote; raises Damaged where altered."""
    data = folder.read(path)
    verify_checksum(data, folder.uri(path))
    table = pq.read_table(io.BytesIO(data))
    shape = (int(parquet_metadata(data)["samples"]), -1)
    return Neighbours(*(table[name].to_numpy().reshape(shape) for name in ("key", "row", "list")))
