"""The lists that a query reads: those whose centroids score nearly as well as its best one.

The *gap* of a list is the difference between the best centroid's score and that of its own: for
cosine and ip of the dot products, divided by the length of the query; for l2 of the distances, not
squared. A constant gap reads few lists for a query that lies close to one centroid, and many for
one that lies between several.

A gap is a monotone function of a float64 key, also after rounding. So a list whose gap is small
enough at the lower end of the error bound of a float32 product is surely read, and one whose gap is
too large at the upper end surely not; the others are decided by `score_pairs`. Hence the lists do
not depend on blocks or threads.
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
    round_down_to_float32,
)
from retrieval.vectors.normalize import nonzero_lengths
from retrieval.vectors.scoring import (
    Float32,
    Float64,
    Int64,
    VectorBlock,
    score_pairs,
    scores_to_keys,
    split_range,
)
from retrieval.vectors.topk import top_k, top_k_positions

_PRODUCT_ELEMENTS = 1 << 20  # elements of one product: 4 MiB, which fits a core's caches
_MIN_QUERIES = 256  # minimum queries per product: 64 MiB at 2^16 lists
_MARGIN = 1e-9  # relative margin of a proposal, above any rounding of a gap


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
    centre = choose_centre(centroids)
    rows = FLOAT32_PRODUCT.prepare(centroids, centre)
    rows_fit = bool(fits_float32(rows).all())
    pairs = []
    for part in split_range(len(queries), max(_MIN_QUERIES, _PRODUCT_ELEMENTS // len(centroids))):
        part_queries = queries.take(part)
        left = FLOAT32_PRODUCT.prepare(part_queries, centre)
        if rows_fit and fits_float32(left).all():
            keys, slack = FLOAT32_PRODUCT.keys(left, rows), FLOAT32_PRODUCT.key_error(left, rows)
            q, x = _select_by_gap(
                part_queries, centroids, keys, slack, key_offsets(left), probing.gap
            )
        else:
            q, x = _select_exactly(part_queries, centroids, limit, probing.gap)
        q, x = _limit_lists(part_queries, centroids, q, x, limit)
        pairs.append((q + part.start, x))
    q, x = (np.concatenate(column) for column in zip(*pairs, strict=True))
    counts = np.bincount(q, minlength=len(queries))
    lists = np.full((len(queries), int(counts.max())), -1, np.int64)
    lists[q, np.arange(len(q)) - (np.cumsum(counts) - counts)[q]] = x
    return lists


def _select_by_gap(
    queries: VectorBlock,
    centroids: VectorBlock,
    keys: Float32,
    slack: Float64,
    offsets: Float64,
    gap: float,
) -> tuple[Int64, Int64]:
    """Return the pairs within the gap, closest first by their approximate keys (q, nlist)."""
    metric, norms = queries.metric, queries.norms
    best = _best_keys(queries, centroids, keys, slack)
    if metric == "l2":
        low = -((np.sqrt(-best) + gap) ** 2) * (1 + _MARGIN)
    else:
        low = best - gap * norms * (1 + _MARGIN) - np.abs(best) * _MARGIN
    q, x = np.nonzero(keys >= round_down_to_float32(low + offsets - slack)[:, None])
    approximate = keys[q, x].astype(np.float64) - offsets[q]
    is_within = key_gaps(approximate - slack[q], best[q], norms[q], metric) <= gap
    may_be_within = key_gaps(approximate + slack[q], best[q], norms[q], metric) <= gap
    undecided = np.flatnonzero(may_be_within & ~is_within)
    scores = score_pairs(queries, centroids, q[undecided], x[undecided])
    exact, owner = scores_to_keys(scores, metric), q[undecided]
    is_within[undecided] = key_gaps(exact, best[owner], norms[owner], metric) <= gap
    q, x, approximate = q[is_within], x[is_within], approximate[is_within]
    order = np.lexsort((x, -approximate, q))
    return q[order], x[order]


def _best_keys(
    queries: VectorBlock, centroids: VectorBlock, keys: Float32, slack: Float64
) -> Float64:
    """Return the float64 key of each query's closest centroid, (q,)."""
    low = keys.max(1).astype(np.float64) - 2 * slack
    q, x = np.nonzero(keys >= round_down_to_float32(low)[:, None])
    exact = scores_to_keys(score_pairs(queries, centroids, q, x), queries.metric)
    best: Float64 = np.maximum.reduceat(exact, np.flatnonzero(np.diff(q, prepend=-1)))
    return best


def _select_exactly(
    queries: VectorBlock, centroids: VectorBlock, limit: int, gap: float
) -> tuple[Int64, Int64]:
    """Return what `_select_by_gap` does by float64 keys, where float32 cannot hold the product."""
    order = top_k(queries, centroids, limit)
    gaps = key_gaps(order.keys, order.keys[:, :1], queries.norms[:, None], queries.metric)
    q, column = np.nonzero(gaps <= gap)
    return q, order.positions[q, column]


def _limit_lists(
    queries: VectorBlock, centroids: VectorBlock, q: Int64, x: Int64, limit: int
) -> tuple[Int64, Int64]:
    """Return the pairs, with the `limit` closest lists only of queries that have more."""
    counts = np.bincount(q, minlength=len(queries))
    exceeding = np.flatnonzero(counts > limit)
    if len(exceeding) == 0:
        return q, x
    closest = top_k_positions(queries.take(exceeding), centroids, limit)
    keep = (counts <= limit)[q]
    q = np.concatenate([q[keep], np.repeat(exceeding, limit)])
    x = np.concatenate([x[keep], closest.ravel()])
    order = np.argsort(q, kind="stable")
    return q[order], x[order]
