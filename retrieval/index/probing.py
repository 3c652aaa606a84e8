"""The lists that a query reads: those whose centroids score nearly as well as its best one.

The *gap* of a list is the difference between the best centroid's score and that of its own: for
cosine and ip of the dot products, divided by the length of the query; for l2 of the distances, not
squared. A constant gap reads few lists for a query that lies close to one centroid, and many for
one that lies between several.

A gap is a monotone function of two float64 keys, also after rounding. So a list whose gap is small
enough at the unfavourable ends of the error bound of a float32 product is surely read, and one
whose gap is too large at the favourable ends surely not (`gap_kernel.py`). A query with another
list is decided by `score_pairs`. Hence the lists do not depend on blocks or threads.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

import numpy as np

from retrieval.core.schemas import Metric
from retrieval.vectors.matmul import (
    FLOAT32_PRODUCT,
    choose_centre,
    fits_float32,
    key_offsets,
)
from retrieval.vectors.normalize import nonzero_lengths
from retrieval.vectors.pair_collector import PreparedRows, pad_rows, prepare_rows
from retrieval.vectors.scoring import (
    Float64,
    Int64,
    VectorBlock,
    score_pairs,
    scores_to_keys,
    split_range,
)
from retrieval.vectors.topk import top_k_positions

_PRODUCT_ELEMENTS = 1 << 20  # elements of one product: 4 MiB, which fits a core's caches
_MIN_QUERIES = 256  # minimum queries per product: 64 MiB at 2^16 lists


@dataclass(frozen=True)
class Probing:
    """Which lists a query reads: those with at most this gap, the `nprobe` closest of them.

    The closest list is always read. With an infinite gap a query reads `nprobe` lists.
    """

    nprobe: int
    gap: float = math.inf

    @property
    def name(self) -> str:
        """Return a name for files: the number of lists, and the gap as the bits of a float64."""
        number = f"{self.nprobe:07d}"
        return number if math.isinf(self.gap) else f"{number}-{struct.pack('>d', self.gap).hex()}"

    def reads_all(self, nlist: int) -> bool:
        """Return whether every query reads each of `nlist` lists."""
        return self.nprobe >= nlist and math.isinf(self.gap)


def key_gaps(keys: Float64, best: Float64, norms: Float64, metric: Metric) -> Float64:
    """Return the gaps of centroids by their keys; all arrays broadcast to each other.

    `best` are the keys of the closest centroids and `norms` the lengths of the queries; `metric` is
    that of the lists: ip or l2. A larger key never has a larger gap.
    """
    if metric == "l2":
        return np.sqrt(np.maximum(-keys, 0.0)) - np.sqrt(np.maximum(-best, 0.0))
    return (best - keys) / nonzero_lengths(norms)


def exact_keys(queries: VectorBlock, centroids: VectorBlock) -> Float64:
    """Return the float64 keys of all pairs, (q, nlist)."""
    q = np.repeat(np.arange(len(queries)), len(centroids))
    x = np.tile(np.arange(len(centroids)), len(queries))
    keys = scores_to_keys(score_pairs(queries, centroids, q, x), queries.metric)
    return keys.reshape(len(queries), len(centroids))


def choose_lists(queries: VectorBlock, centroids: VectorBlock, probing: Probing) -> Int64:
    """Return the lists that each query reads, (q, width), approximately closest first.

    Rows are padded with -1 at the end. Equally close lists at the limit of `nprobe` are chosen by
    the smaller number.
    """
    limit = min(probing.nprobe, len(centroids))
    if math.isinf(probing.gap) or len(queries) == 0:
        return top_k_positions(queries, centroids, limit)
    rows = prepare_rows(centroids, choose_centre(centroids))
    step = max(_MIN_QUERIES, _PRODUCT_ELEMENTS // len(centroids))
    memory = np.empty((min(step, len(queries)), limit), np.int64)
    parts = [
        _choose_within_gap(queries.take(part), rows, probing.gap, memory)
        for part in split_range(len(queries), step)
    ]
    width = max(lists.shape[1] for lists in parts)
    return np.concatenate(
        [
            np.pad(lists, ((0, 0), (0, width - lists.shape[1])), constant_values=-1)
            for lists in parts
        ]
    )


def _choose_within_gap(
    queries: VectorBlock, rows: PreparedRows, gap: float, memory: Int64
) -> Int64:
    """Return the lists of some queries within a finite gap, as `choose_lists` does.

    Where float32 leaves a list undecided, float64 decides. `memory` holds (q, limit) numbers: most
    queries read few lists, and writing all of fresh memory takes longer than the product.
    """
    lists, limit = memory[: len(queries)], memory.shape[1]
    counts = _select_in_float32(queries, rows, gap, lists)
    exceeding = np.flatnonzero(counts > limit)
    if len(exceeding):
        lists[exceeding] = top_k_positions(queries.take(exceeding), rows.rows, limit)
    unlisted = np.flatnonzero(counts < -limit)
    if len(unlisted):
        lists[unlisted] = top_k_positions(queries.take(unlisted), rows.rows, limit)
        counts[unlisted] = -limit
    width = min(limit, int(np.abs(counts).max()))
    lists = np.where(np.arange(width) < np.abs(counts)[:, None], lists[:, :width], -1)
    undecided = np.flatnonzero(counts < 0)
    if len(undecided):
        lists[undecided] = _decide_in_float64(
            queries.take(undecided), rows.rows, gap, lists[undecided]
        )
    return lists


def _select_in_float32(queries: VectorBlock, rows: PreparedRows, gap: float, lists: Int64) -> Int64:
    """Write the lists (q, limit) that each query reads, and return how many.

    The number is negative where they are those that it may read, and its absolute value above the
    limit where none are written (`gap_kernel.select_lists`).
    """
    from retrieval.index.gap_kernel import select_lists

    limit = lists.shape[1]
    counts = np.full(len(queries), -1 - limit)
    left, right = FLOAT32_PRODUCT.prepare(queries, rows.centre), rows.prepared
    if not (rows.fit_float32 and fits_float32(left).all()):
        return counts
    keys = left.matrix @ pad_rows(right.matrix, 0, len(rows)).T
    squares = np.empty(0, np.float32) if right.squares is None else right.squares
    select_lists(
        keys, len(rows), squares, key_offsets(left), FLOAT32_PRODUCT.key_error(left, right),
        nonzero_lengths(queries.norms), queries.metric == "l2", gap, lists, counts,
        np.empty(keys.shape[1], np.float32), np.empty(limit), np.empty(limit, np.int64),
        np.empty(limit, np.int64),
    )  # fmt: skip
    return counts


def _decide_in_float64(
    queries: VectorBlock, centroids: VectorBlock, gap: float, lists: Int64
) -> Int64:
    """Return which of the lists (q, n), padded with -1, are within the gap, closest first.

    They include each query's closest list.
    """
    query, column = np.nonzero(lists >= 0)
    scores = score_pairs(queries, centroids, query, lists[query, column])
    keys = np.full(lists.shape, -np.inf)
    keys[query, column] = scores_to_keys(scores, queries.metric)
    order = np.lexsort((lists, -keys))
    keys, lists = (np.take_along_axis(array, order, 1) for array in (keys, lists))
    gaps = key_gaps(keys, keys[:, :1], queries.norms[:, None], queries.metric)
    return np.where(gaps <= gap, lists, -1)
