"""Exact top-k selection: fast products propose candidates, float64 scores decide.

`TopK` accepts rows block by block; `top_k`, `top_k_positions` and `nearest_centroids` take all rows
at once. A row is discarded only if the error bound of a product excludes it (`pair_collector.py`).
So results do not depend on blocks.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from retrieval.vectors.matmul import FLOAT32_PRODUCT, Product, choose_centre, fits_float32
from retrieval.vectors.pair_collector import (
    MAX_PENDING,
    PairCollector,
    PreparedRows,
    pad_rows,
    pending_per_query,
    prepare_rows,
)
from retrieval.vectors.scoring import (
    Float64,
    Int64,
    VectorBlock,
    keys_to_scores,
    score_pairs,
    scores_to_keys,
    split_range,
)

_BLOCK_QUERIES = 1 << 12  # queries whose pairs are collected at once
_PRODUCT_ELEMENTS = 1 << 18  # keys of a product of which only the largest counts: a MiB
_MIN_QUERIES = 64  # minimum number of queries in it: 16 MiB at 2^16 rows
_NO_TIE = np.iinfo(np.int64).max


class TopK:
    """Accumulator of the k closest rows of each query; rows are pushed in blocks, in any order.

    A row is identified by its `position` (any int64 >= 0) and ordered among equal scores by its
    `tie` (int64, unique per query): the smaller tie is closer. `keys`, `ties` and `positions` are
    (queries, k), closest first; position -1 and key -inf where there are fewer rows.

    `compute_ties` returns the ties of positions. It is called only if two keys are equal, and only
    for rows that are merged without ties.
    """

    def __init__(
        self, queries: VectorBlock, k: int, compute_ties: Callable[[Int64], Int64] | None = None
    ) -> None:
        self.queries = queries
        self.k = k
        self._compute_ties, self._has_ties = compute_ties, compute_ties is None
        shape = (len(queries), k)
        self.keys = np.full(shape, -np.inf)
        self.ties = np.full(shape, _NO_TIE)
        self.positions = np.full(shape, -1, np.int64)

    def push(
        self, rows: VectorBlock, ties: Int64, positions: Int64, query_positions: Int64 | None = None
    ) -> None:
        """Add rows for all queries, or for the `query_positions` (unique)."""
        queries = np.arange(len(self.queries)) if query_positions is None else query_positions
        if len(rows) == 0 or len(queries) == 0:
            return
        prepared = prepare_rows(rows, choose_centre(rows))
        for part in split_range(len(queries), _queries_per_block(self.k, len(rows))):
            selected = queries[part]
            values = self.queries.take(part if query_positions is None else selected)
            collector = _make_collector(self, selected, values, prepared, ties, positions)
            collector.multiply(prepared, 0, np.arange(len(selected)))
            collector.decide_pending()

    def merge(
        self, query: Int64, keys: Float64, positions: Int64, ties: Int64 | None = None
    ) -> None:
        """Add scored pairs, (p,) each, ordered such that those of a query are neighbours."""
        from retrieval.vectors.merge_kernel import merge_pairs

        if len(query) == 0:
            return
        if ties is None:
            ties = self._ties_of(positions)
        first = np.flatnonzero(np.diff(query, prepend=-1))
        starts, changed = np.append(first, len(query)), query[first]
        best = self.keys[changed], self.ties[changed], self.positions[changed]
        size = self.k + int(np.diff(starts).max())
        all_ties, all_positions, order = (np.empty(size, np.int64) for _ in range(3))
        has_equal_keys = merge_pairs(
            starts, keys, ties, positions, *best, np.empty(size), all_ties, all_positions, order
        )
        if has_equal_keys and not self._has_ties:
            self._has_ties = True
            self.ties = self._ties_of(self.positions)
            self.merge(query, keys, positions)
            return
        self.keys[changed], self.ties[changed], self.positions[changed] = best

    def _ties_of(self, positions: Int64) -> Int64:
        """Return the ties of positions, or the positions while no keys were equal."""
        if self._compute_ties is None or not self._has_ties:
            return positions
        return np.where(positions < 0, _NO_TIE, self._compute_ties(positions))

    def kth_keys(self, query: Int64) -> Float64:
        """Return the k-th best key of each distinct query (p,), whose equal ones are neighbours."""
        keys: Float64 = self.keys[query[np.flatnonzero(np.diff(query, prepend=-1))], -1]
        return keys

    def scores(self) -> Float64:
        """Return the (queries, k) float64 scores, closest first; infinite where there is no row."""
        return keys_to_scores(self.keys, self.queries.metric)


def _make_collector(
    best: TopK,
    queries: Int64,
    values: VectorBlock,
    rows: PreparedRows,
    ties: Int64,
    positions: Int64,
) -> PairCollector:
    """Return a collector of pairs of `rows` and some queries, which are scored and merged.

    `queries` (q,) are the positions in `best` of the queries with the vectors `values`; `ties` and
    `positions` (n,) are those of the rows.
    """

    def decide(q: Int64, x: Int64) -> Float64:
        keys = scores_to_keys(score_pairs(values, rows.rows, q, x), values.metric)
        best.merge(queries[q], keys, positions[x], ties[x])
        return best.kth_keys(queries[q])

    return PairCollector(
        values, best.k, len(rows), decide,
        product=rows.product, centre=rows.centre, known_keys=best.keys[queries, -1],
    )  # fmt: skip


def _queries_per_block(k: int, rows: int) -> int:
    return max(1, min(_BLOCK_QUERIES, MAX_PENDING // pending_per_query(k, rows)))


def top_k(queries: VectorBlock, rows: VectorBlock, k: int, ties: Int64 | None = None) -> TopK:
    """Return the k closest of `rows` to each query; positions are indices into `rows`.

    Among equal scores the smaller of `ties` (n,) is closer, by default the smaller position.
    """
    positions = np.arange(len(rows))
    best = TopK(queries, k)
    for part in split_range(len(rows), 1 << 16):
        best.push(rows.take(part), (positions if ties is None else ties)[part], positions[part])
    return best


def top_k_positions(
    queries: VectorBlock, rows: VectorBlock, k: int, product: Product = FLOAT32_PRODUCT
) -> Int64:
    """Return the positions of each query's k closest rows, (n, k) with k <= rows.

    The set is exact and the same as that of `top_k`, but it is ordered by approximate keys. So only
    queries with a row within the error bound of the cut are scored in float64.
    """
    prepared, positions = prepare_rows(rows, choose_centre(rows), product), np.arange(len(rows))
    result = np.empty((len(queries), k), np.int64)
    for part in split_range(len(queries), _queries_per_block(k, len(rows))):
        best = TopK(queries.take(part), k)
        every_query = np.arange(len(best.queries))
        collector = _make_collector(best, every_query, best.queries, prepared, positions, positions)
        collector.multiply(prepared, 0, every_query)
        collector.raise_thresholds()
        is_certain, certain = collector.certain_rows()
        collector.decide_pending(np.flatnonzero(~is_certain))
        result[part] = best.positions
        result[part][is_certain] = certain
    return result


def nearest_centroids(
    queries: VectorBlock, centroids: VectorBlock, product: Product = FLOAT32_PRODUCT
) -> Int64:
    """Return the number of each query's closest centroid, (n,) int64, ties to the smaller number.

    The result is that of `top_k` with k = 1. A query with a single centroid within the error bound
    of the best is decided by the product alone.
    """
    if product is not FLOAT32_PRODUCT:
        return top_k_positions(queries, centroids, 1, product)[:, 0]
    rows, nearest = prepare_rows(centroids, choose_centre(centroids)), np.full(len(queries), -1)
    if rows.fit_float32:
        for part in split_range(
            len(queries), max(_MIN_QUERIES, _PRODUCT_ELEMENTS // max(1, len(rows)))
        ):
            _select_nearest(queries.take(part), rows, nearest[part])
    undecided = np.flatnonzero(nearest < 0)
    if len(undecided):
        nearest[undecided] = top_k_positions(queries.take(undecided), centroids, 1)[:, 0]
    return nearest


def _select_nearest(queries: VectorBlock, rows: PreparedRows, nearest: Int64) -> None:
    """Write the closest row of each query, (q,), where a float32 product leaves a single one."""
    from retrieval.vectors.nearest_kernel import select_nearest
    from retrieval.vectors.pair_kernels import LANES

    left, right = FLOAT32_PRODUCT.prepare(queries, rows.centre), rows.prepared
    if not fits_float32(left).all():
        return
    keys = left.matrix @ pad_rows(right.matrix, 0, len(rows)).T
    squares = np.empty(0, np.float32) if right.squares is None else right.squares
    slack = FLOAT32_PRODUCT.key_error(left, right)
    select_nearest(keys, len(rows), squares, slack, np.empty(LANES, np.float32), nearest)
