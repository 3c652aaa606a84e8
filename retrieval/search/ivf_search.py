"""Search the inverted lists of one shard for a block of queries.

Each list is multiplied with all queries that probe it in one cheap product with an error bound
(`vectors/matmul.py`); where the bound leaves too many pairs undecided, a float64 product replaces
it. The closest lists of each query are searched first and set a lower limit, its *threshold*, that
few rows of the other lists reach. Pairs that the bounds cannot exclude are scored in float64, so
the candidates do not depend on the product, the blocks or the order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retrieval.core.schemas import CANDIDATES_SCHEMA
from retrieval.index.faiss_io import read_centroids
from retrieval.index.kmeans import assignment_metric
from retrieval.index.shard import Shard
from retrieval.search.exclusions import ExcludedPairs, is_excluded, max_excluded_per_query
from retrieval.search.topk_accumulator import MAX_UNDECIDED, TopKAccumulator, equal_runs
from retrieval.vectors.int8_matmul import suitable_product
from retrieval.vectors.matmul import (
    FLOAT32_PRODUCT,
    PreparedVectors,
    Product,
    choose_centre,
    compute_pair_keys,
    fits_float32,
    key_offsets,
    propose_in_float64,
    round_down_to_float32,
    too_many_undecided,
)
from retrieval.vectors.scoring import Float32, Float64, Int64, VectorBlock, block, split_range
from retrieval.vectors.topk import top_k_positions

_FIRST_LISTS = 4  # maximum number of lists per query that set its threshold
_FIRST_ROWS_PER_K = 2  # they hold about this many rows per match
_PRODUCT_ELEMENTS = 1 << 19  # elements of one product: 2 MiB, which fits into the L2 cache
_SAMPLED_LISTS = 33  # from which the centre of a shard is estimated


@dataclass(frozen=True)
class QueryBatch:
    """A block of queries to search one shard for."""

    queries: VectorBlock
    rows: Int64  # (q,) their rows in the query store, the column `query` of candidates
    known_min_keys: Float64 | None = None  # (q,) lower limits of the k-th best keys, or -inf
    excluded: ExcludedPairs | None = None  # pairs that are not matches
    min_key: float = -np.inf  # rows with a smaller key are not matches

    def thresholds(self) -> Float64:
        """Return the keys that a match must reach before anything is searched, (q,)."""
        min_keys = self.known_min_keys
        if min_keys is None:
            min_keys = np.full(len(self.queries), -np.inf)
        return np.maximum(min_keys, self.min_key)


class ShardSearcher:
    """Searches one shard, with a cache of the lists prepared for its matrix product.

    `cache_bytes` limits the cache in main memory; on a GPU the product sets the limit.
    `max_undecided` limits the pending (query, row) pairs, which are scored in float64 later.
    """

    def __init__(
        self,
        shard: Shard,
        product: Product = FLOAT32_PRODUCT,
        cache_bytes: int = 1 << 62,
        max_undecided: int = MAX_UNDECIDED,
    ) -> None:
        self.shard, self.product, self.max_undecided = shard, product, max_undecided
        self.centre = _estimate_centre(shard)
        self._cache: dict[int, PreparedVectors] = {}
        self._free_bytes = (
            product.cache_bytes if product.name == "cuda" else min(product.cache_bytes, cache_bytes)
        )

    def prepare_queries(self, queries: VectorBlock) -> PreparedVectors:
        """Return queries as the matrix product reads them.

        If they need a finer product, the searcher uses that one from here on. The first block of
        queries decides, since queries and rows come from the same model.
        """
        prepared = self.product.prepare(queries, self.centre)
        finer = suitable_product(self.product, prepared)
        if finer is self.product:
            return prepared
        self.product, self._cache = finer, {}
        return finer.prepare(queries, self.centre)

    def prepare_list(self, number: int) -> PreparedVectors:
        """Return the rows of a list as the matrix product reads them, cached if possible."""
        prepared = self._cache.get(number)
        if prepared is None:
            prepared = self.product.prepare(self.shard.list_block(number), self.centre)
            self._free_bytes -= prepared.matrix.nbytes
            if self._free_bytes >= 0:
                self._cache[number] = prepared
        return prepared

    def search(self, batch: QueryBatch, probes: Int64 | None, k: int) -> pa.Table:
        """Return the k best candidates of the shard for each query: table CANDIDATES, unordered.

        `probes` (q, width) are the lists each query reads, closest first and padded with -1; None
        means all lists.
        Rows that are surely below a query's `known_min_keys` may be left out.
        """
        shard, search = self.shard, _Search(self, batch, k)
        first = _closest_lists(shard, batch.queries) if probes is None else probes
        is_first = _select_first_lists(shard, batch, first[:, :_FIRST_LISTS], k)
        for number, positions in _group_by_list(first[:, :_FIRST_LISTS], is_first):
            search.search_first(number, positions)
        search.accumulator.raise_thresholds()
        if probes is None:
            all_queries = np.arange(len(batch.queries))
            for number in range(shard.index.nlist):
                search.search_list(number, all_queries)
        else:
            remaining = probes >= 0
            remaining[:, : is_first.shape[1]] &= ~is_first
            for number, positions in _group_by_list(probes, remaining):
                search.search_list(number, positions)
        accumulator = search.accumulator
        accumulator.score_pending()
        positions = np.where(accumulator.keys >= batch.min_key, accumulator.positions, -1)
        return candidates_table(
            shard.metadata, accumulator.keys, positions, accumulator.lists, batch.rows
        )


def _estimate_centre(shard: Shard) -> Float32 | None:
    """Return the centre to subtract from a shard's vectors, (d,), estimated from some lists."""
    if shard.metric != "l2":
        return None
    filled = np.flatnonzero(shard.list_sizes)
    lists = filled[:: max(1, len(filled) // _SAMPLED_LISTS)][:_SAMPLED_LISTS].tolist()
    parts = [shard.list_vectors(number)[1] for number in lists]
    sampled_rows = [part[:: max(1, len(part) * len(lists) // _SAMPLED_LISTS)] for part in parts]
    return choose_centre(block(np.concatenate(sampled_rows), "l2")) if sampled_rows else None


def _closest_lists(shard: Shard, queries: VectorBlock) -> Int64:
    measure = assignment_metric(shard.metric)
    centroids = block(read_centroids(shard.index), measure)
    vectors = block(queries.values, measure, queries.squared_norms)
    return top_k_positions(vectors, centroids, min(_FIRST_LISTS, len(centroids)))


def _select_first_lists(shard: Shard, batch: QueryBatch, first: Int64, k: int) -> NDArray[np.bool_]:
    """Return which of its closest lists each query reads first to set its threshold, (q, lists).

    A query whose threshold is known already reads none of them first.
    """
    sizes = np.append(shard.list_sizes, 0)[first]  # -1 is the appended empty list
    rows_before = np.cumsum(sizes, axis=1) - sizes
    is_first = (rows_before < _FIRST_ROWS_PER_K * k) & (first >= 0)
    selected: NDArray[np.bool_] = is_first & np.isneginf(batch.thresholds())[:, None]
    return selected


def _group_by_list(probes: Int64, selected: NDArray[np.bool_]) -> Iterator[tuple[int, Int64]]:
    """Yield each list of the wanted (query, list) pairs, and the queries that read it."""
    query, column = np.nonzero(selected)
    lists = probes[query, column]
    sortable = lists.astype(np.uint16) if lists.max(initial=0) < 1 << 16 else lists  # radix sort
    order = np.argsort(sortable, kind="stable")
    query, lists = query[order], lists[order]
    for number, run in equal_runs(lists):
        yield number, query[run]


class _Search:
    """State of one search: the queries as the products read them, and the best rows so far."""

    def __init__(self, searcher: ShardSearcher, batch: QueryBatch, k: int) -> None:
        self._searcher, self._shard, self._k = searcher, searcher.shard, k
        self._queries, self._prepared_queries = (
            batch.queries,
            searcher.prepare_queries(batch.queries),
        )
        self._product = searcher.product
        self._excluded = _split_by_list(self._shard, batch.excluded)
        self._float32_queries = FLOAT32_PRODUCT.prepare(batch.queries, searcher.centre)
        self._fits_float32 = fits_float32(self._float32_queries)
        shift = key_offsets(self._float32_queries)
        self.accumulator = TopKAccumulator(
            self._shard, batch.queries, k, batch.thresholds(), shift, searcher.max_undecided
        )
        self._searched_first: dict[int, Int64] = {}  # list -> queries that have read it already

    def search_first(self, number: int, positions: Int64) -> None:
        """Search a list for queries at `positions` first, to raise their thresholds; once per list.

        A CPU multiplies in float32 here: there are few pairs, and a coarse product would leave most
        of them undecided.
        """
        excluded, product = self._excluded.get(number, _NO_PAIRS), self._product
        self._searched_first[number] = positions
        vectors = self._shard.list_block(number)
        if product.name == "cuda":
            sides = self._prepared_queries, self._searcher.prepare_list(number)
        else:
            product = FLOAT32_PRODUCT
            sides = self._float32_queries, FLOAT32_PRODUCT.prepare(vectors, self._searcher.centre)
        self._add_pairs(
            number, positions, product, sides, self._k + max_excluded_per_query(excluded)
        )

    def search_list(self, number: int, positions: Int64) -> None:
        """Search a list for the queries at `positions`, skipping those that `search_first` covered.

        These may be among them: multiplying all queries costs less than selecting some.
        """
        rows = self._searcher.prepare_list(number)
        searched = self._searched_first.get(number)
        self._add_pairs(
            number, positions, self._product, (self._prepared_queries, rows), None, searched
        )

    def _add_pairs(
        self,
        number: int,
        positions: Int64,
        product: Product,
        sides: tuple[PreparedVectors, PreparedVectors],
        top: int | None,
        searched: Int64 | None = None,
    ) -> None:
        if (count := len(sides[1].norms)) == 0:
            return
        excluded = self._excluded.get(number, _NO_PAIRS)
        not_searched = _not_searched(searched, len(self._queries))
        safe = self._fits_float32[positions] & fits_float32(sides[1]).all()
        parts = [
            (group[part], trusted)
            for group, trusted in ((positions[safe], True), (positions[~safe], False))
            for part in split_range(len(group), max(1, _PRODUCT_ELEMENTS // count))
        ]
        for queries, trusted in parts:
            pairs = self._propose(number, queries, product, sides, top) if trusted else None
            if pairs is None:
                pairs = self._propose_in_float64(number, queries, top)
            q, x, keys, slack = pairs
            if not_searched is not None:
                keep = not_searched[q]
                q, x, keys, slack = q[keep], x[keep], keys[keep], slack[keep]
            if len(excluded[0]):
                keep = ~is_excluded(excluded, q, x)
                q, x, keys, slack = q[keep], x[keep], keys[keep], slack[keep]
            self.accumulator.add(number, q, x, keys, slack)

    def _propose(
        self,
        number: int,
        positions: Int64,
        product: Product,
        sides: tuple[PreparedVectors, PreparedVectors],
        top: int | None,
    ) -> tuple[Int64, Int64, Float32, Float64] | None:
        """Return the pairs of queries and rows of a list that may be among the k best.

        With `top`, also only those that may be among the `top` best of this list. The result is
        (query positions, row offsets, keys, error bounds), or None if too many pairs stay
        undecided.
        """
        queries, rows = sides
        if len(positions) < len(queries.norms):
            queries = product.select(queries, positions)
        keys, slack = product.keys(queries, rows), product.key_error(queries, rows)
        low = self.accumulator.thresholds[positions] - slack
        if top is not None and top < len(rows.norms):
            low = np.maximum(low, product.kth_key(keys, top).astype(np.float64) - 2 * slack)
        q, x, values = product.pairs_reaching(keys, round_down_to_float32(low))
        pairs = len(positions) * len(rows.norms)
        undecided = np.count_nonzero(values < (low + 2 * slack)[q])
        q, slack = positions[q], slack[q]
        if product is not FLOAT32_PRODUCT and len(q):
            if 2 * undecided > pairs and too_many_undecided(undecided, pairs):
                return None
            q, x, values, slack = self._check_in_float32(number, q, x)
            undecided = np.count_nonzero(values - slack < self.accumulator.thresholds[q])
        return None if too_many_undecided(undecided, pairs) else (q, x, values, slack)

    def _propose_in_float64(
        self, number: int, positions: Int64, top: int | None
    ) -> tuple[Int64, Int64, Float32, Float64]:
        """Return what `_propose` does, by a float64 product, and raise the thresholds."""
        rows, centre = self._shard.list_block(number), self._searcher.centre
        thresholds = self.accumulator.thresholds[positions]
        proposed = propose_in_float64(self._queries.take(positions), rows, thresholds, top, centre)
        self.accumulator.thresholds[positions] = proposed.floors
        return positions[proposed.q], proposed.x, proposed.keys, proposed.slack

    def _check_in_float32(
        self, number: int, q: Int64, x: Int64
    ) -> tuple[Int64, Int64, Float32, Float64]:
        """Return those of the pairs that still may be among the k best by float32 keys."""
        rows = FLOAT32_PRODUCT.prepare(self._shard.list_block(number), self._searcher.centre)
        keys = compute_pair_keys(self._float32_queries, rows, q, x)
        slack = FLOAT32_PRODUCT.key_error(
            replace(self._float32_queries, norms=self._float32_queries.norms[q]), rows
        )
        keep = np.flatnonzero(keys + slack >= self.accumulator.thresholds[q])
        return q[keep], x[keep], keys[keep], slack[keep]


_NO_PAIRS = np.empty(0, np.int64), np.empty(0, np.int64)


def _not_searched(searched: Int64 | None, count: int) -> NDArray[np.bool_] | None:
    """Return which of `count` queries have not searched a list yet; None if none of them has."""
    if searched is None:
        return None
    not_searched = np.ones(count, np.bool_)
    not_searched[searched] = False
    return not_searched


def _split_by_list(
    shard: Shard, excluded: tuple[Int64, Int64] | None
) -> dict[int, tuple[Int64, Int64]]:
    """Return for each list its excluded pairs: queries, and offsets among its live rows."""
    if excluded is None or len(excluded[0]) == 0:
        return {}
    query, excluded_position = excluded
    pairs_of_list = {}
    for number in range(shard.index.nlist):
        positions = shard.list_positions(number)
        order = np.argsort(positions)
        sorted_index = np.minimum(
            np.searchsorted(positions, excluded_position, sorter=order), len(positions) - 1
        )
        in_list = (
            np.flatnonzero(positions[order[sorted_index]] == excluded_position)
            if len(positions)
            else sorted_index[:0]
        )
        if len(in_list):
            pairs_of_list[number] = query[in_list], order[sorted_index[in_list]]
    return pairs_of_list


def candidates_table(
    metadata: pa.Table,
    keys: Float64,
    positions: Int64,
    lists: NDArray[np.integer],
    query_rows: Int64,
) -> pa.Table:
    """Return the rows at `positions` of a shard as a table CANDIDATES; position -1 is skipped.

    `keys`, `positions` and `lists` are (q, k); `query_rows` (q,) are the rows of the queries.
    """
    query, rank = np.nonzero(positions >= 0)
    rows = metadata.select(["row", "image_id", "path", "label"]).take(positions[query, rank])
    columns = {
        "query": query_rows[query],
        "key": keys[query, rank],
        "row": rows["row"],
        "list": lists[query, rank],
        "image_id": rows["image_id"],
        "path": rows["path"],
        "label": rows["label"],
    }
    return pa.table(columns).cast(CANDIDATES_SCHEMA)
