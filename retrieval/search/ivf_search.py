"""Search the inverted lists of one shard for a block of queries.

Each list is multiplied with all queries that read it in one cheap product with an error bound, and
compiled code keeps the pairs that the bound cannot exclude (`vectors/pair_collector.py`). The
closest lists of each query are searched first and set a lower limit, its *threshold*, that few rows
of the other lists reach. The remaining pairs are scored in float64 when all lists have been
searched. So the candidates do not depend on the product, the blocks or the order.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby, pairwise

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retrieval.core.schemas import CANDIDATES_SCHEMA
from retrieval.index.shard import Shard
from retrieval.search.exclusions import ExcludedPairs
from retrieval.search.shard_rows import ShardRows, equal_runs
from retrieval.vectors.matmul import FLOAT32_PRODUCT, Product, choose_centre
from retrieval.vectors.pair_collector import (
    MAX_PENDING,
    PairCollector,
    PreparedRows,
    prepare_rows,
)
from retrieval.vectors.scoring import Float32, Float64, Int64, VectorBlock, block
from retrieval.vectors.topk import TopK

_FIRST_LISTS = 4  # maximum number of lists per query that set its threshold
_FIRST_ROWS_PER_K = 2  # they hold about this many rows per match
_TILE_ROWS = 1 << 12  # rows of neighbouring lists that are prepared at once
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
    `max_pending` limits the (query, row) pairs that are held at once to be scored later.
    """

    def __init__(
        self,
        shard: Shard,
        product: Product = FLOAT32_PRODUCT,
        cache_bytes: int = 1 << 62,
        max_pending: int = MAX_PENDING,
    ) -> None:
        self.shard, self._product, self._max_pending = shard, product, max_pending
        self._centre = _estimate_centre(shard)
        self._rows = ShardRows(shard)
        self._cache: dict[tuple[int, int], PreparedRows] = {}
        self._free_bytes = (
            product.cache_bytes if product.name == "cuda" else min(product.cache_bytes, cache_bytes)
        )

    def search(self, batch: QueryBatch, probes: Int64 | None, k: int) -> pa.Table:
        """Return the k best candidates of the shard for each query: table CANDIDATES, unordered.

        `probes` (q, width) are the lists each query reads, closest first and padded with -1; None
        means all lists. Rows that are surely below a query's `known_min_keys` may be left out.
        """
        best = TopK(batch.queries, k, lambda positions: self.shard.image_id_ranks[positions])
        collector = self._collector(batch, best)
        if probes is None:
            self._add_all_lists(collector, len(batch.queries))
        else:
            is_first = _select_first_lists(self.shard, batch, probes[:, :_FIRST_LISTS], k)
            self._add_lists(collector, probes[:, :_FIRST_LISTS], is_first)
            collector.raise_thresholds()
            remaining = probes >= 0
            remaining[:, : is_first.shape[1]] &= ~is_first
            self._add_lists(collector, probes, remaining)
        collector.decide_pending()
        positions = np.where(best.keys >= batch.min_key, best.positions, -1)
        lists = self._rows.list_of_position[positions]
        return candidates_table(self.shard.metadata, best.keys, positions, lists, batch.rows)

    def _collector(self, batch: QueryBatch, best: TopK) -> PairCollector:
        """Return a collector of pairs, which are scored and merged into `best`."""
        rows = self._rows

        def decide(query: Int64, numbers: Int64) -> Float64:
            keys = rows.keys(batch.queries, query, numbers)
            best.merge(query, keys, rows.positions[numbers])
            return best.kth_keys(query)

        return PairCollector(
            batch.queries, best.k, len(rows.positions), decide,
            product=self._product, centre=self._centre, known_keys=batch.thresholds(),
            excluded=rows.excluded_numbers(batch.excluded), max_pending=self._max_pending,
        )  # fmt: skip

    def _add_lists(
        self, collector: PairCollector, probes: Int64, selected: NDArray[np.bool_]
    ) -> None:
        """Add the rows of the selected lists, (q, width), for the queries that read them."""
        starts = self._rows.starts
        groups = groupby(_group_by_list(probes, selected), lambda item: self._tile_of(item[0]))
        for (first, last), lists in groups:
            origin = int(starts[first])
            parts = [
                (slice(int(starts[number]) - origin, int(starts[number + 1]) - origin), positions)
                for number, positions in lists
            ]
            collector.multiply_parts(self._prepare_lists(first, last), origin, parts)

    def _add_all_lists(self, collector: PairCollector, queries: int) -> None:
        """Add the rows of all lists for all queries."""
        positions = np.arange(queries)
        for first, last in pairwise(self._tiles):
            rows = self._prepare_lists(first, last)
            collector.multiply(rows, int(self._rows.starts[first]), positions)

    @cached_property
    def _tiles(self) -> list[int]:
        """Return the first list of each tile, and the number of lists."""
        starts, tiles = self._rows.starts, [0]
        while tiles[-1] < len(starts) - 1:
            last = int(np.searchsorted(starts, starts[tiles[-1]] + _TILE_ROWS, side="right")) - 1
            tiles.append(max(tiles[-1] + 1, last))
        return tiles

    def _tile_of(self, number: int) -> tuple[int, int]:
        """Return the first list that is prepared together with a list, and the one after the last.

        Products that are not float32 multiply whole tiles, so a list is a tile there.
        """
        if self._product is not FLOAT32_PRODUCT:
            return number, number + 1
        tile = bisect.bisect_right(self._tiles, number) - 1
        return self._tiles[tile], self._tiles[tile + 1]

    def _prepare_lists(self, first: int, last: int) -> PreparedRows:
        """Return the rows of the lists first <= number < last for the product, from the cache."""
        prepared = self._cache.get((first, last))
        if prepared is None:
            rows = self._rows.block(first, last)
            prepared = prepare_rows(rows, self._centre, self._product)
            self._free_bytes -= prepared.prepared.matrix.nbytes
            if last - first > 1:  # the stored vectors of a single list are not copied
                self._free_bytes -= rows.values.nbytes
            if self._free_bytes >= 0:  # without the float32 copies that a block keeps
                rows = VectorBlock(rows.metric, rows.values, rows.squared_norms)
                self._cache[first, last] = replace(prepared, rows=rows)
        return prepared


def _estimate_centre(shard: Shard) -> Float32 | None:
    """Return the centre to subtract from a shard's vectors, (d,), estimated from some lists."""
    if shard.metric != "l2":
        return None
    filled = np.flatnonzero(shard.list_sizes)
    lists = filled[:: max(1, len(filled) // _SAMPLED_LISTS)][:_SAMPLED_LISTS].tolist()
    parts = [shard.list_vectors(number)[1] for number in lists]
    sampled_rows = [part[:: max(1, len(part) * len(lists) // _SAMPLED_LISTS)] for part in parts]
    return choose_centre(block(np.concatenate(sampled_rows), "l2")) if sampled_rows else None


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
    """Yield each list of the selected (query, list) pairs, and the queries that read it."""
    query, column = np.nonzero(selected)
    lists = probes[query, column]
    sortable = lists.astype(np.uint16) if lists.max(initial=0) < 1 << 16 else lists  # radix sort
    order = np.argsort(sortable, kind="stable")
    query, lists = query[order], lists[order]
    for number, run in equal_runs(lists):
        yield number, query[run]


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
