"""Collect the k best rows of a shard for many queries while its lists are searched.

Pairs come with a cheap key and its maximum error. The *threshold* of a query is a key that its k
best rows surely reach; it rises as pairs are added, and pairs below it are dropped. The remaining
pairs are scored in float64 when all lists have been searched, or earlier if there are too many.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.index.shard import Shard
from retrieval.search.candidates import has_tied_keys
from retrieval.vectors.matmul import round_down_to_float32
from retrieval.vectors.scoring import (
    Float32,
    Float64,
    Int64,
    VectorBlock,
    score_pairs,
    scores_to_keys,
)

MAX_UNDECIDED = 1 << 22
"""Maximum number of pending pairs, not yet scored in float64: 128 MiB."""


@dataclass(frozen=True)
class _Pairs:
    """Pairs of a query and the `offset`-th live row of a `list`; each array is (p,).

    `key` differs from the exact key by at most `slack`.
    """

    query: Int64
    list: NDArray[np.int32]
    offset: Int64
    key: Float32
    slack: Float64

    def take(self, selection: NDArray[np.bool_] | Int64 | slice) -> _Pairs:
        return _Pairs(*(getattr(self, name)[selection] for name in _COLUMNS))


_COLUMNS = ("query", "list", "offset", "key", "slack")


class TopKAccumulator:
    """Collects the k best rows of a shard for each query.

    A pair of a query and a row must be added once only. When more than `max_undecided` pairs are
    pending, they are scored early, which affects memory and time, not the result.

    `keys` (n, k) float64 and `positions` (n, k) in the shard's metadata, best first; -inf and -1
    where there are fewer; `lists` (n, k) are the lists of the rows. Valid after `score_pending`.
    """

    def __init__(
        self,
        shard: Shard,
        queries: VectorBlock,
        k: int,
        thresholds: Float64,
        shift: Float64,
        max_undecided: int = MAX_UNDECIDED,
    ) -> None:
        self._shard, self._queries, self._k = shard, queries, k
        self._max_undecided = max_undecided
        self._shift = shift  # cheap keys minus keys of scores (`matmul.key_offsets`)
        self.thresholds = thresholds + self._shift  # on the scale of cheap keys
        self._pairs: list[_Pairs] = []
        self._count = 0
        shape = (len(queries), k)
        self.keys, self.positions = np.full(shape, -np.inf), np.full(shape, -1, np.int64)
        self.lists = np.full(shape, -1, np.int32)

    def add(self, number: int, q: Int64, x: Int64, keys: Float32, slack: Float64) -> None:
        """Add pairs of queries `q` and offsets `x` in list `number`; all arrays are (p,)."""
        if len(q) == 0:
            return
        lists = np.full(len(q), number, np.int32)
        self._pairs.append(_Pairs(q, lists, x, keys, slack))
        self._count += len(q)
        if self._count > self._max_undecided:
            self.raise_thresholds()
            if self._count > self._max_undecided // 2:
                self.score_pending()

    def raise_thresholds(self) -> None:
        """Raise the thresholds to keys that k pairs surely reach, and drop the pairs below."""
        if self._count:
            self._keep(self._above_thresholds(self._all()))

    def _above_thresholds(self, pairs: _Pairs) -> _Pairs:
        low = round_down_to_float32(pairs.key - pairs.slack)
        order = np.argsort(_descending(pairs.query, low))
        starts, counts = _starts(pairs.query, len(self._queries))
        full = np.flatnonzero(counts >= self._k)
        kth = low[order[starts[full] + self._k - 1]]
        self.thresholds[full] = np.maximum(self.thresholds[full], kth)
        return self._reaching(pairs)

    def _reaching(self, pairs: _Pairs) -> _Pairs:
        return pairs.take(pairs.key + pairs.slack >= self.thresholds[pairs.query])

    def _all(self) -> _Pairs:
        if len(self._pairs) == 1:
            return self._pairs[0]
        columns = (np.concatenate([getattr(p, name) for p in self._pairs]) for name in _COLUMNS)
        return _Pairs(*columns)

    def _keep(self, pairs: _Pairs) -> None:
        self._pairs, self._count = [pairs], len(pairs.query)

    def score_pending(self) -> None:
        """Score the pending pairs in float64, and merge them into the k best rows."""
        if self._count:
            pairs = self._above_thresholds(self._reaching(self._all()))
            pairs = pairs.take(np.argsort(pairs.list, kind="stable"))
            self._merge(pairs, *self._score(pairs))
            self.thresholds = np.maximum(self.thresholds, self.keys[:, -1] + self._shift)
        self._pairs, self._count = [], 0

    def _rows_by_list(self, pairs: _Pairs) -> Iterator[tuple[int, slice, VectorBlock, Int64]]:
        """Yield per list: its number, the slice of its pairs, the rows needed, each pair's row."""
        for number, run in equal_runs(pairs.list):
            rows, offset = self._shard.list_block(number), pairs.offset[run]
            if len(offset) < len(rows):
                needed = np.zeros(len(rows), np.int64)
                needed[offset] = 1
                rows = rows.take(np.flatnonzero(needed))
                offset = (np.cumsum(needed) - 1)[offset]
            yield number, run, rows, offset

    def _score(self, pairs: _Pairs) -> tuple[Float64, Int64]:
        """Return the exact keys of pairs ordered by list, and the positions of their rows, (p,)."""
        keys, positions = np.empty(len(pairs.query)), np.empty(len(pairs.query), np.int64)
        for number, run, rows, row_of_pair in self._rows_by_list(pairs):
            scores = score_pairs(self._queries, rows, pairs.query[run], row_of_pair)
            keys[run] = scores_to_keys(scores, self._queries.metric)
            positions[run] = self._shard.list_positions(number)[pairs.offset[run]]
        return keys, positions

    def _merge(self, pairs: _Pairs, keys: Float64, positions: Int64) -> None:
        filled = self.positions >= 0
        previous_query, _ = np.nonzero(filled)
        query = np.concatenate([previous_query, pairs.query])
        keys = np.concatenate([self.keys[filled], keys])
        positions = np.concatenate([self.positions[filled], positions])
        lists = np.concatenate([self.lists[filled], pairs.list])
        order = np.lexsort((-keys, query))
        if has_tied_keys(query[order], keys[order]):  # ties are ordered by image_id
            order = np.lexsort((self._shard.image_id_ranks[positions], -keys, query))
        starts, _ = _starts(query, len(self._queries))
        owner = query[order]
        rank = np.arange(len(order)) - starts[owner]
        keep = rank < self._k
        cell = owner[keep], rank[keep]
        self.keys[:], self.positions[:], self.lists[:] = -np.inf, -1, -1
        self.keys[cell] = keys[order[keep]]
        self.positions[cell] = positions[order[keep]]
        self.lists[cell] = lists[order[keep]]


def _descending(owners: Int64, keys: Float32) -> NDArray[np.uint64]:
    """Return integers that sort by owner, then by descending key.

    The bits of positive floats sort like the floats, those of negative ones in reverse. One integer
    sort takes a tenth of the time of a sort by two columns.
    """
    bits = keys.view(np.int32)
    ordered = np.where(bits < 0, bits ^ np.int32(0x7FFFFFFF), bits).astype(np.int64)
    return (owners.astype(np.uint64) << np.uint64(32)) + (0x7FFFFFFF - ordered).astype(np.uint64)


def equal_runs(ordered: NDArray[np.integer]) -> Iterator[tuple[int, slice]]:
    """Yield each distinct number >= 0 of a sorted array, and the slice of its entries."""
    starts = np.flatnonzero(np.diff(ordered, prepend=-1)).tolist()
    for first, last in zip(starts, [*starts[1:], len(ordered)][: len(starts)], strict=True):
        yield int(ordered[first]), slice(first, last)


def _starts(owners: NDArray[np.integer], count: int) -> tuple[Int64, Int64]:
    """Return the start and the count of each owner's items once these are sorted by owner."""
    counts = np.bincount(owners, minlength=count)
    return np.cumsum(counts) - counts, counts
