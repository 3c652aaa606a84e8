"""Who is closest: cheap products propose, float64 decides, whatever the blocks.

`TopK` takes rows block by block; `top_k`, `closest` and `nearest` are for rows that are there all
at once. A row is out only when the bound of a product excludes it: one in float32, and one in
float64 where that leaves much undecided or would overflow.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from retrieval.products import (
    SINGLE,
    Product,
    Proposed,
    centre_of,
    floor_of,
    is_safe,
    pair_keys,
    propose_finely,
    shift_of,
    too_doubtful,
)
from retrieval.scoring import Block, Float32, Float64, Int64, keys_of, pair_scores, slices

_PRODUCT = 1 << 23  # elements of one proposed product: 32 MiB
_NEAR = 1 << 20  # elements of one product of `nearest`: 4 MiB, which a core's caches hold
_FEW = 256  # queries, of fewer a product costs several times as much a query: 64 MiB at 2^16 lists
_NONE = np.iinfo(np.int64).max


class TopK:
    """The k closest rows so far of each of many queries; rows come block by block, in any order.

    A row is known by its `position` (any int64 >= 0) and its `tie` (int64, unique a query): of
    equal scores the smaller tie is closer. What comes out does not depend on the blocks.
    """

    def __init__(self, queries: Block, k: int) -> None:
        self.queries = queries
        self.k = k
        shape = (len(queries), k)
        self.keys = np.full(shape, -np.inf)
        self.ties = np.full(shape, _NONE)
        self.positions = np.full(shape, -1, np.int64)

    def push(self, rows: Block, ties: Int64, positions: Int64, which: Int64 | None = None) -> None:
        """Offer rows to all queries, or to those that `which` names (unique positions)."""
        queries = np.arange(len(self.queries)) if which is None else which
        if len(rows) == 0 or len(queries) == 0:
            return
        step = max(1, _PRODUCT // len(rows))
        near = _Rows(rows)
        for part in slices(len(queries), step):
            self._push(queries[part], near, ties, positions)

    def _push(self, which: Int64, near: _Rows, ties: Int64, positions: Int64) -> None:
        queries, rows = self.queries.take(which), near.rows
        q, x = _survivors(queries, near, self.keys[which, -1], self.k)
        keys = keys_of(pair_scores(queries, rows, q, x), queries.metric)
        self._merge(which, q, keys, ties[x], positions[x])

    def _merge(self, which: Int64, q: Int64, keys: Float64, ties: Int64, positions: Int64) -> None:
        old = np.repeat(np.arange(len(which)), self.k)
        owner = np.concatenate([old, q])
        all_keys = np.concatenate([self.keys[which].ravel(), keys])
        all_ties = np.concatenate([self.ties[which].ravel(), ties])
        all_positions = np.concatenate([self.positions[which].ravel(), positions])
        order = np.lexsort((all_ties, -all_keys, owner))
        starts = np.searchsorted(owner[order], np.arange(len(which)))
        best = order[(starts[:, None] + np.arange(self.k)).ravel()].reshape(-1, self.k)
        self.keys[which] = all_keys[best]
        self.ties[which] = all_ties[best]
        self.positions[which] = all_positions[best]

    def scores(self) -> Float64:
        """Give the (queries, k) float64 scores, closest first; infinite where there is no row."""
        return keys_of(self.keys, self.queries.metric)


class _Rows:
    """Rows, and what products read of them."""

    def __init__(self, rows: Block, product: Product = SINGLE) -> None:
        self.rows = rows
        self.centre = centre_of(rows)
        self.ready = product.ready(rows, self.centre)
        self.safe = bool(is_safe(self.ready).all())

    def finely(self, queries: Block, top: int, floors: Float64 | None = None) -> Proposed:
        """Return what `propose_finely` leaves of all pairs."""
        floors = np.full(len(queries), -np.inf) if floors is None else floors
        return propose_finely(queries, self.rows, floors, top, self.centre)


def _survivors(queries: Block, near: _Rows, kth: Float64, k: int) -> tuple[Int64, Int64]:
    """Find the pairs that the bound cannot exclude from the k closest.

    `kth` is the (b,) float64 key each query's next row must reach; -inf while it has fewer than k.
    A row is out when even at its best it lies below that, or below k rows of this block at their
    worst. Rows that just reach it stay, since ties are decided later.
    """
    left, right = SINGLE.ready(queries, near.centre), near.ready
    floors = kth + shift_of(left)
    if near.safe and is_safe(left).all():
        keys, slack = SINGLE.keys(left, right), SINGLE.error(left, right)
        low = floors - slack
        fresh = np.flatnonzero(np.isneginf(kth))
        if len(fresh) and len(near.rows) > k:
            low[fresh] = SINGLE.kth(keys[fresh], k).astype(np.float64) - 2 * slack[fresh]
        q, x = np.nonzero(keys >= floor_of(low)[:, None])
        undecided = np.count_nonzero(keys[q, x] < (low + 2 * slack)[q])
        if not too_doubtful(undecided, keys.size):
            return q, x
    proposed = near.finely(queries, k, floors)
    return proposed.q, proposed.x


def top_k(queries: Block, rows: Block, k: int, ties: Int64 | None = None) -> TopK:
    """Find the k closest of `rows` to each query; positions are places in `rows`.

    Without `ties` the smaller place is closer.
    """
    places = np.arange(len(rows))
    best = TopK(queries, k)
    for part in slices(len(rows), 1 << 16):
        best.push(rows.take(part), (places if ties is None else ties)[part], places[part])
    return best


def closest(queries: Block, rows: Block, k: int) -> Int64:
    """Give the places of each query's k closest rows, (n, k) with k <= rows.

    As `top_k`, ties to the smaller place, but only which they are is exact: they stand in the order
    of their cheap keys. So a float64 sum is needed for those alone that lie within the bound of the
    cut.
    """
    near = _Rows(rows)
    found = np.empty((len(queries), k), np.int64)
    for part in slices(len(queries), max(1, _PRODUCT // len(rows))):
        asked = queries.take(part)
        left, ready = SINGLE.ready(asked, near.centre), near.ready
        if not (near.safe and is_safe(left).all()):
            proposed = near.finely(asked, k)
            pairs = proposed.q, proposed.x, proposed.keys
            found[part] = _among(asked, rows, pairs, k)
            continue
        keys = SINGLE.keys(left, ready)
        places = np.argpartition(keys, len(rows) - k, axis=1)[:, len(rows) - k :]
        cheap = np.take_along_axis(keys, places, 1)
        order = np.argsort(-cheap, axis=1)
        found[part] = np.take_along_axis(places, order, 1)
        low = cheap.min(1).astype(np.float64) - 2 * SINGLE.error(left, ready)
        reached = np.count_nonzero(keys >= floor_of(low)[:, None], axis=1)
        if len(open_ := np.flatnonzero(reached > k)):  # the cut is within the bound
            some = asked.take(open_)
            if too_doubtful(int((reached - k)[open_].sum()), keys[open_].size):
                proposed = near.finely(some, k)
                pairs = proposed.q, proposed.x, proposed.keys
            else:
                pairs = SINGLE.reach(keys[open_], floor_of(low[open_]))
            found[part][open_] = _among(some, rows, pairs, k)
    return found


def _among(queries: Block, rows: Block, pairs: tuple[Int64, Int64, Float32], k: int) -> Int64:
    """Return the k closest of each query's pairs, decided in float64, in order of cheap keys."""
    q, x, cheap = pairs
    exact = keys_of(pair_scores(queries, rows, q, x), queries.metric)
    best = np.lexsort((x, -exact, q))
    starts = np.searchsorted(q, np.arange(len(queries)))
    keep = np.sort(best[(starts[:, None] + np.arange(k)).ravel()])
    order = np.lexsort((-cheap[keep], q[keep]))
    chosen: Int64 = x[keep][order].reshape(-1, k)
    return chosen


def nearest(queries: Block, centroids: Block, product: Product = SINGLE) -> Int64:
    """Give the number of each query's closest centroid, (n,) int64, ties to the smaller number.

    As `top_k` with k = 1, at the cost of the product and two looks at it: a query for which a
    single centroid lies within the bound of the best is decided without another sum.
    """
    near = _Rows(centroids, product)
    single = near if product is SINGLE else _Rows(centroids)
    pairs = [np.empty((2, 0), np.int64)]
    for part in slices(len(queries), max(_FEW, _NEAR // len(centroids))):
        q, x = _candidates(queries.take(part), near, single, product)
        pairs.append(np.stack([q + part.start, x]))
    q, x = np.concatenate(pairs, axis=1)
    found: Int64 = x[_starts(q)]
    several = np.bincount(q)[q] > 1
    q, x = q[several], x[several]
    found[q[_starts(q)]] = _decided(queries, centroids, q, x)
    return found


def _candidates(
    queries: Block, near: _Rows, single: _Rows, product: Product
) -> tuple[Int64, Int64]:
    """Return the pairs that no bound excludes from being the closest, ordered by query."""
    left, pairs = product.ready(queries, near.centre), len(queries) * len(near.rows)
    if near.safe and is_safe(left).all():
        keys = product.keys(left, near.ready)
        q, x = _close(product, keys, product.error(left, near.ready))
        if product is not SINGLE and len(q) <= pairs // 2:
            q, x = _finer(queries, single, q, x)
        if not too_doubtful(len(q) - len(queries), pairs):
            return q, x
    proposed = near.finely(queries, 1)
    return proposed.q, proposed.x


def _close(product: Product, keys: Any, slack: Float64) -> tuple[Int64, Int64]:
    """Give the pairs that the bound cannot exclude from being the closest, ordered by query."""
    if product is not SINGLE:
        q, x, _ = product.reach(keys, floor_of(product.kth(keys, 1) - 2 * slack))
        return q, x
    every = np.arange(len(keys))  # few have a second one: looking for it is cheaper than for all
    best = keys.argmax(1)
    low = floor_of(keys[every, best] - 2 * slack)
    keys[every, best] = -np.inf
    open_ = np.flatnonzero(keys[every, keys.argmax(1)] >= low)
    q, x, _ = SINGLE.reach(keys[open_], low[open_])
    q, x = np.concatenate([every, open_[q]]), np.concatenate([best, x])
    order = np.argsort(q, kind="stable")
    return q[order], x[order]


def _finer(queries: Block, single: _Rows, q: Int64, x: Int64) -> tuple[Int64, Int64]:
    """Leave of each query's pairs those that float32 cannot exclude from being the closest."""
    several = np.flatnonzero(np.bincount(q)[q] > 1)
    if len(several) == 0:
        return q, x
    left, right = SINGLE.ready(queries, single.centre), single.ready
    some = q[several]
    keys = pair_keys(left, right, some, x[several]).astype(np.float64)
    starts = _starts(some)
    best = np.maximum.reduceat(keys, starts)
    slack = SINGLE.error(left, right)[some]
    keep = np.ones(len(q), np.bool_)
    keep[several] = keys >= np.repeat(best, np.diff(starts, append=len(some))) - 2 * slack
    return q[keep], x[keep]


def _decided(queries: Block, rows: Block, q: Int64, x: Int64) -> Int64:
    """Give the closest of each query's pairs, by float64; of the queries that have any."""
    exact = np.zeros(len(q))
    close = np.flatnonzero(np.bincount(q)[q] > 1)
    scores = pair_scores(queries, rows, q[close], x[close])
    exact[close] = keys_of(scores, queries.metric)
    order = np.lexsort((x, -exact, q))
    return x[order[_starts(q)]]


def _starts(q: Int64) -> Int64:
    """Give the place of each query's first pair; pairs are ordered by query."""
    return np.flatnonzero(np.diff(q, prepend=-1))
