"""Collect the k best rows of a shard for many queries while its lists are searched.

Pairs come with a cheap key and its maximum error. The *threshold* of a query is a key that its k
best rows surely reach; it rises as pairs are added, and pairs below it are dropped
(`pair_kernels.py`). The remaining pairs are scored in float64 when all lists have been searched, or
earlier where a query has too many.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from retrieval.index.shard import Shard
from retrieval.search.candidates import has_tied_keys
from retrieval.search.exclusions import ExcludedPairs
from retrieval.vectors.matmul import PreparedVectors
from retrieval.vectors.scoring import (
    Float32,
    Float64,
    Int64,
    VectorBlock,
    score_pairs,
    scores_to_keys,
)

MAX_UNDECIDED = 1 << 22
"""Maximum number of pending pairs, not yet scored in float64: 48 MiB, and 64 MiB to score them."""

_PENDING_PER_K = 4  # pending pairs of a query per match ...
_MIN_PENDING = 64  # ... and at least


class ShardRows:
    """The live rows of a shard in the order of its lists, numbered from 0.

    `starts` (nlist + 1,) are the numbers of the first rows of lists.
    """

    def __init__(self, shard: Shard) -> None:
        self.shard = shard
        parts = [shard.list_positions(number) for number in range(shard.index.nlist)]
        self.positions: Int64 = np.concatenate(parts) if parts else np.empty(0, np.int64)
        self.starts: Int64 = np.cumsum([0, *map(len, parts)])

    @cached_property
    def _number_of_position(self) -> Int64:
        """Return the number of each row of the metadata, or -1 where it is not live."""
        numbers = np.full(len(self.shard.metadata), -1)
        numbers[self.positions] = np.arange(len(self.positions))
        return numbers

    def excluded_numbers(self, excluded: ExcludedPairs | None) -> ExcludedPairs:
        """Return excluded pairs of live rows by their numbers, ordered by query and number."""
        if excluded is None:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        query, numbers = excluded[0], self._number_of_position[excluded[1]]
        order = np.lexsort((numbers, query))
        order = order[numbers[order] >= 0]
        return query[order].astype(np.int64), numbers[order]

    def lists_of(self, numbers: NDArray[np.integer]) -> NDArray[np.int32]:
        """Return the lists of rows."""
        return (np.searchsorted(self.starts, numbers, side="right") - 1).astype(np.int32)


@dataclass(frozen=True)
class ProductKeys:
    """Dot products of queries at `positions` (b,) and the rows of a list, (b, >= n) float32.

    Their rows are padded to a multiple of `LANES` keys, the squared lengths of the rows likewise.
    """

    values: Float32
    positions: Int64
    list: int
    rows: PreparedVectors


class TopKAccumulator:
    """Collects the k best rows of a shard for each query.

    A pair of a query and a row must be added once only. When more than about `max_undecided` pairs
    are pending, some are scored early, which affects memory and time, not the result.

    `keys` (n, k) float64 and `positions` (n, k) in the shard's metadata, best first; -inf and -1
    where there are fewer; `lists` (n, k) are the lists of the rows. Valid after `score_pending`.
    """

    def __init__(
        self,
        rows: ShardRows,
        queries: VectorBlock,
        k: int,
        thresholds: Float64,
        shift: Float64,
        excluded: ExcludedPairs | None = None,
        max_undecided: int = MAX_UNDECIDED,
    ) -> None:
        from retrieval.search import pair_kernels

        self._kernels = pair_kernels
        self._rows, self._shard, self._queries, self._k = rows, rows.shard, queries, k
        self._shift = shift  # cheap keys minus keys of scores (`matmul.key_offsets`)
        self.thresholds = thresholds + self._shift  # on the scale of cheap keys
        count = len(queries)
        self.skipped = np.zeros(count, np.bool_)
        """Queries for which pairs are ignored for now: those that have searched a list already."""
        self.excluded = rows.excluded_numbers(excluded)
        self._excluded_starts = np.searchsorted(self.excluded[0], np.arange(count + 1))
        capacity = min(max(_MIN_PENDING, _PENDING_PER_K * k), max_undecided // max(1, count))
        shape = (count, max(1, capacity))
        self._lows, self._highs = np.empty(shape, np.float32), np.empty(shape, np.float32)
        self._numbers, self._counts = np.empty(shape, np.int32), np.zeros(count, np.int64)
        self._scratch = np.empty(shape[1], np.float32)
        self.keys, self.positions = np.full((count, k), -np.inf), np.full((count, k), -1, np.int64)
        self.lists = np.full((count, k), -1, np.int32)

    @cached_property
    def _excluded_by_row(self) -> ExcludedPairs:
        """Return the excluded pairs ordered by the number of their row."""
        order = np.argsort(self.excluded[1], kind="stable")
        return self.excluded[0][order], self.excluded[1][order]

    @property
    def _buffers(self) -> tuple[Float64, Float32, Float32, NDArray[np.int32], Int64, Float32]:
        buffers = self._lows, self._highs, self._numbers, self._counts, self._scratch
        return self.thresholds, *buffers

    def add_product(self, keys: ProductKeys, error_terms: Float64) -> Int64:
        """Add the pairs of a product that may be among the k best.

        `error_terms` are those of `matmul.error_terms`. The keys are changed. Return the queries
        with more pairs than fit, of which none were added.
        """
        rows, squares = keys.rows, keys.rows.squares
        overflowed = np.empty(len(keys.positions), np.bool_)
        count = self._kernels.collect(
            keys.values.reshape(len(keys.positions), -1, self._kernels.LANES),
            keys.positions, int(self._rows.starts[keys.list]), len(rows.norms),
            _NO_SQUARES if squares is None else squares, rows.norms, rows.longest, error_terms,
            self.skipped, self._excluded_starts, self.excluded[1], self._k, *self._buffers,
            overflowed,
        )  # fmt: skip
        return keys.positions[overflowed] if count else keys.positions[:0]

    def add(self, number: int, q: Int64, x: Int64, keys: Float32, slack: Float64) -> None:
        """Add pairs of queries `q` and offsets `x` in list `number`; all arrays are (p,)."""
        if len(q) == 0:
            return
        rejected, numbers = np.empty(len(q), np.bool_), self._rows.starts[number] + x
        wide_keys = keys.astype(np.float64)
        q, slack = np.ascontiguousarray(q), np.ascontiguousarray(slack)
        count = self._kernels.add_pairs(
            q, numbers, wide_keys, slack, self.skipped, self._excluded_starts, self.excluded[1],
            self._k, *self._buffers, rejected,
        )  # fmt: skip
        if count:
            queries = np.unique(q[rejected])
            pending, pending_numbers = self._take_pending(queries)
            self._score_and_merge(
                np.concatenate([pending, q[rejected]]),
                np.concatenate([pending_numbers, numbers[rejected]]),
            )

    def raise_thresholds(self) -> int:
        """Raise the thresholds to keys that k pairs surely reach, and drop the pairs below.

        Return the number of pending pairs.
        """
        return self._kernels.raise_thresholds(self._k, *self._buffers)

    def max_excluded(self, number: int) -> int:
        """Return the largest number of rows of a list that are excluded for one query."""
        query, numbers = self._excluded_by_row
        first, last = np.searchsorted(numbers, self._rows.starts[number : number + 2])
        return int(np.unique(query[first:last], return_counts=True)[1].max(initial=0))

    def score_pending(self) -> None:
        """Score the pending pairs in float64, and merge them into the k best rows."""
        if self.raise_thresholds():
            self._score_and_merge(*self._take_pending(np.arange(len(self._queries))))

    def _take_pending(self, queries: Int64) -> tuple[Int64, Int64]:
        """Return queries and row numbers of the pending pairs of some queries, and remove these."""
        counts = self._counts[queries]
        filled = np.arange(self._numbers.shape[1]) < counts[:, None]
        numbers = self._numbers[queries][filled].astype(np.int64)
        self._counts[queries] = 0
        return np.repeat(queries, counts), numbers

    def _score_and_merge(self, query: Int64, numbers: Int64) -> None:
        order = np.argsort(numbers, kind="stable")
        query, numbers = query[order], numbers[order]
        lists = self._rows.lists_of(numbers)
        keys, positions = self._score(query, numbers, lists), self._rows.positions[numbers]
        changed = np.unique(query)
        self._merge(changed, np.searchsorted(changed, query), keys, positions, lists)
        kth = self.keys[changed, -1] + self._shift[changed]
        self.thresholds[changed] = np.maximum(self.thresholds[changed], kth)

    def _score(self, query: Int64, numbers: Int64, lists: NDArray[np.int32]) -> Float64:
        """Return the exact keys of pairs ordered by list, (p,)."""
        keys = np.empty(len(query))
        for number, run in equal_runs(lists):
            rows, offset = (
                self._shard.list_block(number),
                numbers[run] - self._rows.starts[number],
            )
            if len(offset) < len(rows) and rows.values.dtype == np.float16:  # convert those only
                needed = np.zeros(len(rows), np.int64)
                needed[offset] = 1
                rows = rows.take(np.flatnonzero(needed))
                offset = (np.cumsum(needed) - 1)[offset]
            scores = score_pairs(self._queries, rows, query[run], offset)
            keys[run] = scores_to_keys(scores, self._queries.metric)
        return keys

    def _merge(
        self,
        changed: Int64,
        query: Int64,
        keys: Float64,
        positions: Int64,
        lists: NDArray[np.int32],
    ) -> None:
        """Merge pairs into the k best rows; `query` (p,) are positions in `changed`."""
        kept_keys, kept_positions = self.keys[changed], self.positions[changed]
        filled = kept_positions >= 0
        query = np.concatenate([np.nonzero(filled)[0], query])
        keys = np.concatenate([kept_keys[filled], keys])
        positions = np.concatenate([kept_positions[filled], positions])
        lists = np.concatenate([self.lists[changed][filled], lists])
        order = np.lexsort((-keys, query))
        if has_tied_keys(query[order], keys[order]):  # ties are ordered by image_id
            order = np.lexsort((self._shard.image_id_ranks[positions], -keys, query))
        owner = query[order]
        counts = np.bincount(owner, minlength=len(changed))
        rank = np.arange(len(order)) - (np.cumsum(counts) - counts)[owner]
        keep = rank < self._k
        cell, order = (changed[owner[keep]], rank[keep]), order[keep]
        self.keys[changed], self.positions[changed], self.lists[changed] = -np.inf, -1, -1
        self.keys[cell], self.positions[cell] = keys[order], positions[order]
        self.lists[cell] = lists[order]


_NO_SQUARES = np.empty(0, np.float32)


def equal_runs(ordered: NDArray[np.integer]) -> Iterator[tuple[int, slice]]:
    """Yield each distinct number >= 0 of a sorted array, and the slice of its entries."""
    starts = np.flatnonzero(np.diff(ordered, prepend=-1)).tolist()
    for first, last in zip(starts, [*starts[1:], len(ordered)][: len(starts)], strict=True):
        yield int(ordered[first]), slice(first, last)
