"""Search the inverted lists of one shard for a block of queries.

Each list is multiplied with all queries that probe it in one cheap product with an error bound
(`vectors/matmul.py`), and compiled code compares the keys (`pair_kernels.py`); where the bound
leaves too many pairs undecided, a float64 product replaces it. The closest lists of each query are
searched first and set a lower limit, its *threshold*, that few rows of the other lists reach. Pairs
that the bounds cannot exclude are scored in float64, so the candidates do not depend on the
product, the blocks or the order.
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
from retrieval.search.exclusions import ExcludedPairs
from retrieval.search.topk_accumulator import (
    MAX_UNDECIDED,
    ProductKeys,
    ShardRows,
    TopKAccumulator,
    equal_runs,
)
from retrieval.vectors.int8_matmul import suitable_product
from retrieval.vectors.matmul import (
    FLOAT32_PRODUCT,
    SAFE_LENGTH,
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
_PRODUCT_ELEMENTS = 1 << 17  # elements of one product: half a MiB, which stays in the L2 cache
_COARSE_ELEMENTS = 1 << 19  # the same for products whose calls cost more than float32's
_ROW_MULTIPLE = 16  # rows of a float32 list are padded to a multiple, which BLAS multiplies faster
_FLOAT64_QUERIES = 1 << 10  # queries whose pairs by float64 keys are held at once
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
        self.rows = ShardRows(shard)
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
            if self.product is FLOAT32_PRODUCT:
                prepared = _pad_rows(prepared)
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


def _pad_rows(rows: PreparedVectors) -> PreparedVectors:
    """Return float32 rows with zero rows at the end, up to a multiple of `_ROW_MULTIPLE`."""
    padding = -len(rows.matrix) % _ROW_MULTIPLE
    if padding == 0:
        return rows
    matrix = np.pad(rows.matrix, ((0, padding), (0, 0)))
    squares = None if rows.squares is None else np.pad(rows.squares, (0, padding))
    return replace(rows, matrix=matrix, squares=squares)


class _Search:
    """State of one search: the queries as the products read them, and the best rows so far."""

    def __init__(self, searcher: ShardSearcher, batch: QueryBatch, k: int) -> None:
        self._searcher, self._shard, self._k = searcher, searcher.shard, k
        self._queries = batch.queries
        self._prepared_queries = searcher.prepare_queries(batch.queries)
        self._product = searcher.product
        self._float32_queries = (
            self._prepared_queries
            if self._product is FLOAT32_PRODUCT
            else FLOAT32_PRODUCT.prepare(batch.queries, searcher.centre)
        )
        self._fits_float32 = fits_float32(self._float32_queries)
        self._error_terms = FLOAT32_PRODUCT.error_terms(self._float32_queries)
        shift = key_offsets(self._float32_queries)
        self.accumulator = TopKAccumulator(
            searcher.rows, batch.queries, k, batch.thresholds(), shift, batch.excluded,
            searcher.max_undecided,
        )  # fmt: skip
        self._searched_first: dict[int, Int64] = {}  # list -> queries that have read it already
        self._selected = np.empty(0, np.float32)  # memory for queries of a product
        self._keys = np.empty(0, np.float32)  # and for its keys

    def search_first(self, number: int, positions: Int64) -> None:
        """Search a list for queries at `positions` first, to raise their thresholds; once per list.

        A CPU multiplies in float32 here: there are few pairs, and a coarse product would leave most
        of them undecided.
        """
        self._searched_first[number] = positions
        if self._product.name == "cuda":
            rows = self._searcher.prepare_list(number)
            top = self._k + self.accumulator.max_excluded(number)
            self._add_coarse_pairs(number, positions, rows, top)
        elif self._product is FLOAT32_PRODUCT:
            self._multiply(number, positions, self._searcher.prepare_list(number))
        else:
            vectors = self._shard.list_block(number)
            rows = _pad_rows(FLOAT32_PRODUCT.prepare(vectors, self._searcher.centre))
            self._multiply(number, positions, rows)

    def search_list(self, number: int, positions: Int64) -> None:
        """Search a list for the queries at `positions`, skipping those that `search_first` covered.

        These may be among them: multiplying all queries costs less than selecting some.
        """
        rows = self._searcher.prepare_list(number)
        searched = self._searched_first.get(number, _NO_QUERIES)
        self.accumulator.skipped[searched] = True
        if self._product is FLOAT32_PRODUCT:
            self._multiply(number, positions, rows)
        else:
            self._add_coarse_pairs(number, positions, rows, None)
        self.accumulator.skipped[searched] = False

    def _multiply(self, number: int, positions: Int64, rows: PreparedVectors) -> None:
        """Multiply queries and padded rows in float32, and add the pairs that may be matches."""
        if len(rows.norms) == 0:
            return
        if rows.longest > SAFE_LENGTH / 2 and self._shard.metric != "cosine":
            self._multiply_in_float64(number, positions)
            return
        safe = self._fits_float32[positions]
        if not safe.all():
            self._multiply_in_float64(number, positions[~safe])
            positions = positions[safe]
        count, dimension = rows.matrix.shape
        overflowed = []
        for part in split_range(len(positions), max(_ROW_MULTIPLE, _PRODUCT_ELEMENTS // count)):
            selected = positions[part]
            queries = self._select(selected, dimension)
            keys = self._memory("_keys", len(selected), count)
            np.matmul(queries, rows.matrix.T, out=keys)
            pairs = ProductKeys(keys, selected, number, rows)
            overflowed.append(self.accumulator.add_product(pairs, self._error_terms))
        self._multiply_in_float64(number, np.concatenate([_NO_QUERIES, *overflowed]))

    def _select(self, positions: Int64, dimension: int) -> Float32:
        """Return the queries at ascending positions, a copy only where they are not contiguous."""
        matrix: Float32 = self._float32_queries.matrix
        if positions[-1] - positions[0] + 1 == len(positions):
            return matrix[positions[0] : positions[-1] + 1]
        selected = self._memory("_selected", len(positions), dimension)
        return np.take(matrix, positions, axis=0, out=selected, mode="clip")

    def _memory(self, name: str, count: int, width: int) -> Float32:
        """Return memory for a (count, width) float32 matrix, the same again if it is large enough.

        Fresh memory for each product would cost as much as the product of a short list.
        """
        memory: Float32 = getattr(self, name)
        if len(memory) < count * width:
            memory = np.empty(count * width, np.float32)
            setattr(self, name, memory)
        return memory[: count * width].reshape(count, width)

    def _multiply_in_float64(self, number: int, positions: Int64) -> None:
        """Add the pairs of a list that may be matches by float64 keys, and raise the thresholds."""
        positions = positions[~self.accumulator.skipped[positions]]
        if len(positions) == 0:
            return
        top = self._k + self.accumulator.max_excluded(number)
        for part in split_range(len(positions), _FLOAT64_QUERIES):
            pairs = self._propose_in_float64(number, positions[part], top)
            self.accumulator.add(number, *pairs)

    def _add_coarse_pairs(
        self, number: int, positions: Int64, rows: PreparedVectors, top: int | None
    ) -> None:
        """Add the pairs that may be matches by a product that is not float32 on the CPU."""
        if (count := len(rows.norms)) == 0:
            return
        safe = self._fits_float32[positions] & fits_float32(rows).all()
        self._multiply_in_float64(number, positions[~safe])
        positions = positions[safe]
        for part in split_range(len(positions), max(1, _COARSE_ELEMENTS // count)):
            pairs = self._propose(number, positions[part], rows, top)
            if pairs is None:
                self._multiply_in_float64(number, positions[part])
            else:
                self.accumulator.add(number, *pairs)

    def _propose(
        self, number: int, positions: Int64, rows: PreparedVectors, top: int | None
    ) -> tuple[Int64, Int64, Float32, Float64] | None:
        """Return the pairs of queries and rows of a list that may be among the k best.

        With `top`, also only those that may be among the `top` best of this list. The result is
        (query positions, row offsets, keys, error bounds), or None if too many pairs stay
        undecided.
        """
        queries, product = self._prepared_queries, self._product
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
        if len(q):
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


_NO_QUERIES = np.empty(0, np.int64)


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
