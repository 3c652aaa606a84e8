"""What a shard holds for many queries, while its lists pass: pairs that may be among the k best.

Pairs come with a cheap key and what that can be wrong by. A query's *floor* is a key that its k
best surely reach; it rises as pairs come. Who lies below it is forgotten; the rest is scored in
float64 when all lists have passed, or before, when there are too many.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.index.shard import Shard
from retrieval.search.candidates import has_ties
from retrieval.vectors.matmul import floor_of
from retrieval.vectors.scoring import Block, Float32, Float64, Int64, keys_of, pair_scores

UNDECIDED = 1 << 22
"""Pairs that wait to be decided, at most: 128 MiB."""


@dataclass(frozen=True)
class _Pairs:
    """Pairs of a query and the `offset`-th live row of a `list`.

    The true key differs from `key` by at most `slack`.
    """

    query: Int64
    list: NDArray[np.int32]
    offset: Int64
    key: Float32
    slack: Float64

    def take(self, which: NDArray[np.bool_] | Int64 | slice) -> _Pairs:
        return _Pairs(*(getattr(self, name)[which] for name in _COLUMNS))


_COLUMNS = ("query", "list", "offset", "key", "slack")


class Found:
    """The k best rows of a shard for each query, so far.

    A pair of a query and a row may be added once only; `_Search` sees to that. When more than
    `undecided` pairs wait, they are decided before the other lists pass, which changes nothing
    but the memory and the time that it takes.

    `keys` (n, k) float64 and `places` (n, k) in the shard's metadata, best first; -inf and -1 where
    there are fewer; `lists` (n, k) are those that the rows lie in. Valid after `settle`.
    """

    def __init__(
        self,
        shard: Shard,
        queries: Block,
        k: int,
        floors: Float64,
        shift: Float64,
        undecided: int = UNDECIDED,
    ) -> None:
        self._shard, self._queries, self._k = shard, queries, k
        self._undecided = undecided
        self._shift = shift  # what cheap keys lack of the keys of scores (`products.shift_of`)
        self.floors = floors + self._shift  # in terms of cheap keys
        self._pairs: list[_Pairs] = []
        self._count = 0
        shape = (len(queries), k)
        self.keys, self.places = np.full(shape, -np.inf), np.full(shape, -1, np.int64)
        self.lists = np.full(shape, -1, np.int32)

    def add(self, number: int, q: Int64, x: Int64, keys: Float32, slack: Float64) -> None:
        """Take pairs of some queries and rows of a list."""
        if len(q) == 0:
            return
        lists = np.full(len(q), number, np.int32)
        self._pairs.append(_Pairs(q, lists, x, keys, slack))
        self._count += len(q)
        if self._count > self._undecided:
            self.tighten()
            if self._count > self._undecided // 2:
                self.settle()

    def tighten(self) -> None:
        """Raise the floors to what the pairs surely reach, and leave out what lies below."""
        if self._count:
            self._keep(self._tightened(self._all()))

    def _tightened(self, pairs: _Pairs) -> _Pairs:
        low = floor_of(pairs.key - pairs.slack)
        order = np.argsort(_descending(pairs.query, low))
        starts, counts = _starts(pairs.query, len(self._queries))
        full = np.flatnonzero(counts >= self._k)
        kth = low[order[starts[full] + self._k - 1]]
        self.floors[full] = np.maximum(self.floors[full], kth)
        return self._reaching(pairs)

    def _reaching(self, pairs: _Pairs) -> _Pairs:
        return pairs.take(pairs.key + pairs.slack >= self.floors[pairs.query])

    def _all(self) -> _Pairs:
        if len(self._pairs) == 1:
            return self._pairs[0]
        columns = (np.concatenate([getattr(p, name) for p in self._pairs]) for name in _COLUMNS)
        return _Pairs(*columns)

    def _keep(self, pairs: _Pairs) -> None:
        self._pairs, self._count = [pairs], len(pairs.query)

    def settle(self) -> None:
        """Score what is left in float64, and keep the k best of it and of what was there."""
        if self._count:
            pairs = self._tightened(self._reaching(self._all()))
            pairs = pairs.take(np.argsort(pairs.list, kind="stable"))
            self._merge(pairs, *self._scored(pairs))
            self.floors = np.maximum(self.floors, self.keys[:, -1] + self._shift)
        self._pairs, self._count = [], 0

    def _rows(self, pairs: _Pairs) -> Iterator[tuple[int, slice, Block, Int64]]:
        """Give, list by list, the pairs of it, the rows that they need, and which row is whose."""
        for number, run in runs(pairs.list):
            rows, offset = self._shard.list_block(number), pairs.offset[run]
            if len(offset) < len(rows):
                needed = np.zeros(len(rows), np.int64)
                needed[offset] = 1
                rows = rows.take(np.flatnonzero(needed))
                offset = (np.cumsum(needed) - 1)[offset]
            yield number, run, rows, offset

    def _scored(self, pairs: _Pairs) -> tuple[Float64, Int64]:
        """Give the keys of pairs that are ordered by list, and the places of their rows."""
        keys, places = np.empty(len(pairs.query)), np.empty(len(pairs.query), np.int64)
        for number, run, rows, which in self._rows(pairs):
            scores = pair_scores(self._queries, rows, pairs.query[run], which)
            keys[run] = keys_of(scores, self._queries.metric)
            places[run] = self._shard.places(number)[pairs.offset[run]]
        return keys, places

    def _merge(self, pairs: _Pairs, keys: Float64, places: Int64) -> None:
        there = self.places >= 0
        old, _ = np.nonzero(there)
        query = np.concatenate([old, pairs.query])
        keys = np.concatenate([self.keys[there], keys])
        places = np.concatenate([self.places[there], places])
        lists = np.concatenate([self.lists[there], pairs.list])
        order = np.lexsort((-keys, query))
        if has_ties(query[order], keys[order]):  # equal scores: the order of names decides
            order = np.lexsort((self._shard.ties[places], -keys, query))
        starts, _ = _starts(query, len(self._queries))
        owner = query[order]
        rank = np.arange(len(order)) - starts[owner]
        keep = rank < self._k
        line = owner[keep], rank[keep]
        self.keys[:], self.places[:], self.lists[:] = -np.inf, -1, -1
        self.keys[line] = keys[order[keep]]
        self.places[line] = places[order[keep]]
        self.lists[line] = lists[order[keep]]


def _descending(owners: Int64, keys: Float32) -> NDArray[np.uint64]:
    """Give numbers that order things by owner, and of one owner the greatest key first.

    Bits of positive floats are ordered as they are, of negative ones the other way round. One sort
    of whole numbers takes a tenth of the time of one by two columns.
    """
    bits = keys.view(np.int32)
    ordered = np.where(bits < 0, bits ^ np.int32(0x7FFFFFFF), bits).astype(np.int64)
    return (owners.astype(np.uint64) << np.uint64(32)) + (0x7FFFFFFF - ordered).astype(np.uint64)


def runs(ordered: NDArray[np.integer]) -> Iterator[tuple[int, slice]]:
    """Give each number >= 0 in a list of them that is in order, and the places it takes."""
    starts = np.flatnonzero(np.diff(ordered, prepend=-1)).tolist()
    for first, last in zip(starts, [*starts[1:], len(ordered)][: len(starts)], strict=True):
        yield int(ordered[first]), slice(first, last)


def _starts(owners: NDArray[np.integer], count: int) -> tuple[Int64, Int64]:
    """Give where each owner's things start once they are sorted by owner, and how many they are."""
    counts = np.bincount(owners, minlength=count)
    return np.cumsum(counts) - counts, counts
