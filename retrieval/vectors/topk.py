"""Exact top-k selection: fast products propose candidates, float64 scores decide.

`TopK` accepts rows block by block; `top_k`, `top_k_positions` and `nearest_centroids` take all rows
at once. A row is discarded only if the error bound of a product excludes it: in float32 first, then
in float64 where that leaves much undecided or would overflow. So results do not depend on blocks.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from retrieval.vectors.matmul import (
    FLOAT32_PRODUCT,
    Product,
    ProposedPairs,
    choose_centre,
    compute_pair_keys,
    fits_float32,
    key_offsets,
    propose_in_float64,
    round_down_to_float32,
    too_many_undecided,
)
from retrieval.vectors.scoring import (
    Float32,
    Float64,
    Int64,
    VectorBlock,
    keys_to_scores,
    score_pairs,
    scores_to_keys,
    split_range,
)

_PRODUCT_ELEMENTS = 1 << 23  # elements of one product: 32 MiB
_NEAREST_ELEMENTS = (
    1 << 20
)  # elements of one product of `nearest_centroids`: 4 MiB, which fits a core's caches
_MIN_QUERIES = (
    256  # minimum queries per product: fewer cost several times as much each; 64 MiB at 2^16 lists
)
_NO_TIE = np.iinfo(np.int64).max


class TopK:
    """Accumulator of the k closest rows of each query; rows are pushed in blocks, in any order.

    A row is identified by its `position` (any int64 >= 0) and ordered among equal scores by its
    `tie` (int64, unique per query): the smaller tie is closer. `keys`, `ties` and `positions` are
    (queries, k), closest first; position -1 and key -inf where there are fewer rows.
    """

    def __init__(self, queries: VectorBlock, k: int) -> None:
        self.queries = queries
        self.k = k
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
        step = max(1, _PRODUCT_ELEMENTS // len(rows))
        prepared_rows = _PreparedRows(rows)
        for part in split_range(len(queries), step):
            self._push(queries[part], prepared_rows, ties, positions)

    def _push(
        self, query_positions: Int64, prepared_rows: _PreparedRows, ties: Int64, positions: Int64
    ) -> None:
        queries, rows = self.queries.take(query_positions), prepared_rows.rows
        q, x = _survivors(queries, prepared_rows, self.keys[query_positions, -1], self.k)
        keys = scores_to_keys(score_pairs(queries, rows, q, x), queries.metric)
        self._merge(query_positions, q, keys, ties[x], positions[x])

    def _merge(
        self, query_positions: Int64, q: Int64, keys: Float64, ties: Int64, positions: Int64
    ) -> None:
        previous_owner = np.repeat(np.arange(len(query_positions)), self.k)
        owner = np.concatenate([previous_owner, q])
        all_keys = np.concatenate([self.keys[query_positions].ravel(), keys])
        all_ties = np.concatenate([self.ties[query_positions].ravel(), ties])
        all_positions = np.concatenate([self.positions[query_positions].ravel(), positions])
        order = np.lexsort((all_ties, -all_keys, owner))
        starts = np.searchsorted(owner[order], np.arange(len(query_positions)))
        best = order[(starts[:, None] + np.arange(self.k)).ravel()].reshape(-1, self.k)
        self.keys[query_positions] = all_keys[best]
        self.ties[query_positions] = all_ties[best]
        self.positions[query_positions] = all_positions[best]

    def scores(self) -> Float64:
        """Return the (queries, k) float64 scores, closest first; infinite where there is no row."""
        return keys_to_scores(self.keys, self.queries.metric)


class _PreparedRows:
    """Rows with their centre and their prepared form for one product."""

    def __init__(self, rows: VectorBlock, product: Product = FLOAT32_PRODUCT) -> None:
        self.rows = rows
        self.centre = choose_centre(rows)
        self.prepared = product.prepare(rows, self.centre)
        self.is_safe = bool(fits_float32(self.prepared).all())

    def propose_float64(
        self, queries: VectorBlock, top: int, floors: Float64 | None = None
    ) -> ProposedPairs:
        """Return the pairs that a float64 product cannot exclude."""
        floors = np.full(len(queries), -np.inf) if floors is None else floors
        return propose_in_float64(queries, self.rows, floors, top, self.centre)


def _survivors(
    queries: VectorBlock, prepared_rows: _PreparedRows, kth: Float64, k: int
) -> tuple[Int64, Int64]:
    """Return the pairs that the error bound cannot exclude from the k closest.

    `kth` is the (b,) float64 key each query's next row must reach; -inf while it has fewer than k.
    A row is excluded if its largest possible key is below that, or below the smallest possible keys
    of k rows of this block. Rows that just reach it stay, since ties are decided later.
    """
    left, right = FLOAT32_PRODUCT.prepare(queries, prepared_rows.centre), prepared_rows.prepared
    floors = kth + key_offsets(left)
    if prepared_rows.is_safe and fits_float32(left).all():
        keys, slack = FLOAT32_PRODUCT.keys(left, right), FLOAT32_PRODUCT.key_error(left, right)
        low = floors - slack
        unfilled = np.flatnonzero(np.isneginf(kth))
        if len(unfilled) and len(prepared_rows.rows) > k:
            low[unfilled] = (
                FLOAT32_PRODUCT.kth_key(keys[unfilled], k).astype(np.float64) - 2 * slack[unfilled]
            )
        q, x = np.nonzero(keys >= round_down_to_float32(low)[:, None])
        undecided = np.count_nonzero(keys[q, x] < (low + 2 * slack)[q])
        if not too_many_undecided(undecided, keys.size):
            return q, x
    proposed = prepared_rows.propose_float64(queries, k, floors)
    return proposed.q, proposed.x


def top_k(queries: VectorBlock, rows: VectorBlock, k: int, ties: Int64 | None = None) -> TopK:
    """Return the k closest of `rows` to each query; positions are indices into `rows`.

    Among equal scores the smaller of `ties` (n,) is closer, by default the smaller position.
    """
    positions = np.arange(len(rows))
    best = TopK(queries, k)
    for part in split_range(len(rows), 1 << 16):
        best.push(rows.take(part), (positions if ties is None else ties)[part], positions[part])
    return best


def top_k_positions(queries: VectorBlock, rows: VectorBlock, k: int) -> Int64:
    """Return the positions of each query's k closest rows, (n, k) with k <= rows.

    The set is exact and the same as that of `top_k`, but it is ordered by approximate float32 keys.
    So only rows within the error bound of the cut are scored in float64.
    """
    prepared_rows = _PreparedRows(rows)
    result = np.empty((len(queries), k), np.int64)
    for part in split_range(len(queries), max(1, _PRODUCT_ELEMENTS // len(rows))):
        block_queries = queries.take(part)
        left, prepared = (
            FLOAT32_PRODUCT.prepare(block_queries, prepared_rows.centre),
            prepared_rows.prepared,
        )
        if not (prepared_rows.is_safe and fits_float32(left).all()):
            proposed = prepared_rows.propose_float64(block_queries, k)
            pairs = proposed.q, proposed.x, proposed.keys
            result[part] = _closest_pairs(block_queries, rows, pairs, k)
            continue
        keys = FLOAT32_PRODUCT.keys(left, prepared)
        positions = np.argpartition(keys, len(rows) - k, axis=1)[:, len(rows) - k :]
        approximate_keys = np.take_along_axis(keys, positions, 1)
        order = np.argsort(-approximate_keys, axis=1)
        result[part] = np.take_along_axis(positions, order, 1)
        low = approximate_keys.min(1).astype(np.float64) - 2 * FLOAT32_PRODUCT.key_error(
            left, prepared
        )
        reached = np.count_nonzero(keys >= round_down_to_float32(low)[:, None], axis=1)
        if len(open_positions := np.flatnonzero(reached > k)):  # the cut is within the bound
            open_queries = block_queries.take(open_positions)
            if too_many_undecided(
                int((reached - k)[open_positions].sum()), keys[open_positions].size
            ):
                proposed = prepared_rows.propose_float64(open_queries, k)
                pairs = proposed.q, proposed.x, proposed.keys
            else:
                pairs = FLOAT32_PRODUCT.pairs_reaching(
                    keys[open_positions], round_down_to_float32(low[open_positions])
                )
            result[part][open_positions] = _closest_pairs(open_queries, rows, pairs, k)
    return result


def _closest_pairs(
    queries: VectorBlock, rows: VectorBlock, pairs: tuple[Int64, Int64, Float32], k: int
) -> Int64:
    """Return the k closest of each query's pairs, chosen in float64, ordered by float32 key."""
    q, x, approximate_keys = pairs
    exact = scores_to_keys(score_pairs(queries, rows, q, x), queries.metric)
    best = np.lexsort((x, -exact, q))
    starts = np.searchsorted(q, np.arange(len(queries)))
    keep = np.sort(best[(starts[:, None] + np.arange(k)).ravel()])
    order = np.lexsort((-approximate_keys[keep], q[keep]))
    chosen: Int64 = x[keep][order].reshape(-1, k)
    return chosen


def nearest_centroids(
    queries: VectorBlock, centroids: VectorBlock, product: Product = FLOAT32_PRODUCT
) -> Int64:
    """Return the number of each query's closest centroid, (n,) int64, ties to the smaller number.

    The result is that of `top_k` with k = 1. A query with a single centroid within the error bound
    of the best is decided by the product alone.
    """
    prepared_rows = _PreparedRows(centroids, product)
    float32_rows = prepared_rows if product is FLOAT32_PRODUCT else _PreparedRows(centroids)
    pairs = [np.empty((2, 0), np.int64)]
    for part in split_range(len(queries), max(_MIN_QUERIES, _NEAREST_ELEMENTS // len(centroids))):
        q, x = _candidates(queries.take(part), prepared_rows, float32_rows, product)
        pairs.append(np.stack([q + part.start, x]))
    q, x = np.concatenate(pairs, axis=1)
    result: Int64 = x[_first_pairs(q)]
    is_ambiguous = np.bincount(q)[q] > 1
    q, x = q[is_ambiguous], x[is_ambiguous]
    result[q[_first_pairs(q)]] = _decide(queries, centroids, q, x)
    return result


def _candidates(
    queries: VectorBlock,
    prepared_rows: _PreparedRows,
    float32_rows: _PreparedRows,
    product: Product,
) -> tuple[Int64, Int64]:
    """Return the pairs that may be the closest by every error bound, ordered by query."""
    left, pairs = (
        product.prepare(queries, prepared_rows.centre),
        len(queries) * len(prepared_rows.rows),
    )
    if prepared_rows.is_safe and fits_float32(left).all():
        keys = product.keys(left, prepared_rows.prepared)
        q, x = _within_bound(product, keys, product.key_error(left, prepared_rows.prepared))
        if product is not FLOAT32_PRODUCT and len(q) <= pairs // 2:
            q, x = _exclude_by_float32(queries, float32_rows, q, x)
        if not too_many_undecided(len(q) - len(queries), pairs):
            return q, x
    proposed = prepared_rows.propose_float64(queries, 1)
    return proposed.q, proposed.x


def _within_bound(product: Product, keys: Any, slack: Float64) -> tuple[Int64, Int64]:
    """Return the pairs whose key lies within the error bound of the best, ordered by query."""
    if product is not FLOAT32_PRODUCT:
        q, x, _ = product.pairs_reaching(
            keys, round_down_to_float32(product.kth_key(keys, 1) - 2 * slack)
        )
        return q, x
    every_query = np.arange(len(keys))
    # few queries have a second candidate: two argmax passes are cheaper than comparing all keys
    best = keys.argmax(1)
    low = round_down_to_float32(keys[every_query, best] - 2 * slack)
    keys[every_query, best] = -np.inf
    open_positions = np.flatnonzero(keys[every_query, keys.argmax(1)] >= low)
    q, x, _ = FLOAT32_PRODUCT.pairs_reaching(keys[open_positions], low[open_positions])
    q, x = np.concatenate([every_query, open_positions[q]]), np.concatenate([best, x])
    order = np.argsort(q, kind="stable")
    return q[order], x[order]


def _exclude_by_float32(
    queries: VectorBlock, float32_rows: _PreparedRows, q: Int64, x: Int64
) -> tuple[Int64, Int64]:
    """Return the pairs that float32 keys cannot exclude from being the closest."""
    ambiguous = np.flatnonzero(np.bincount(q)[q] > 1)
    if len(ambiguous) == 0:
        return q, x
    left, right = FLOAT32_PRODUCT.prepare(queries, float32_rows.centre), float32_rows.prepared
    candidate_queries = q[ambiguous]
    keys = compute_pair_keys(left, right, candidate_queries, x[ambiguous]).astype(np.float64)
    starts = _first_pairs(candidate_queries)
    best = np.maximum.reduceat(keys, starts)
    slack = FLOAT32_PRODUCT.key_error(left, right)[candidate_queries]
    keep = np.ones(len(q), np.bool_)
    keep[ambiguous] = (
        keys >= np.repeat(best, np.diff(starts, append=len(candidate_queries))) - 2 * slack
    )
    return q[keep], x[keep]


def _decide(queries: VectorBlock, rows: VectorBlock, q: Int64, x: Int64) -> Int64:
    """Return the row of the closest pair, by float64, of each query that has pairs."""
    exact = np.zeros(len(q))
    ambiguous = np.flatnonzero(np.bincount(q)[q] > 1)
    scores = score_pairs(queries, rows, q[ambiguous], x[ambiguous])
    exact[ambiguous] = scores_to_keys(scores, queries.metric)
    order = np.lexsort((x, -exact, q))
    return x[order[_first_pairs(q)]]


def _first_pairs(q: Int64) -> Int64:
    """Return the index of each query's first pair; pairs are ordered by query."""
    return np.flatnonzero(np.diff(q, prepend=-1))
