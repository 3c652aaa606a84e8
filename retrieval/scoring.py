"""The one definition of score and of top-k: a cheap product proposes, float64 decides.

A float32 matrix product is fast, and its last bits depend on the library, the number of threads and
how the matrices were cut. So it never decides anything here. It only proposes, with a bound on its
error that holds for any order of summation, and whatever lies within the bound of the cut is scored
by one fixed numpy expression in float64. Equal scores are ordered by a tie number that the caller
gives. Hence lists, candidates and ranks are the same for any block size, thread count and product.

Sources of the bound: Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed., eq. 3.5:
|fl(x.y) - x.y| <= gamma_d |x||y| with gamma_d = d u / (1 - d u), here u = 2^-24, for any order.
"""

from __future__ import annotations

from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray

from retrieval.tables import Metric, Vectors

Float64 = NDArray[np.float64]
Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]

_U = 2.0**-24  # unit roundoff of float32
_PAIRS = 1024  # pairs scored at once: 2 x 8 MiB at d = 1024, inside the caches at d = 128
_LENGTHS = 128  # vectors measured at once: half a MiB at d = 512
_PRODUCT = 1 << 23  # elements of one proposed product: 32 MiB
_NEAR = 1 << 18  # elements of one product of `nearest`: 1 MiB, which stays in a core's cache
_SAFE = 1e18  # lengths up to which no product of two vectors leaves the range of float32
_NONE = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Block:
    """Vectors made ready for one metric.

    `values` is (n, d) float16 or float32 as stored, `norms` (n,) float64 their Euclidean lengths,
    `cheap` (n, d) float32 what the product reads: the vectors, of unit length for cosine.
    """

    metric: Metric
    values: Vectors
    norms: Float64
    cheap: Float32

    def __len__(self) -> int:
        return len(self.values)

    def take(self, which: Int64 | slice) -> Block:
        """Give some of the vectors, in the order of `which`."""
        return Block(self.metric, self.values[which], self.norms[which], self.cheap[which])


def block(values: Vectors, metric: Metric, norms: Float64 | None = None) -> Block:
    """Make (n, d) vectors ready; ValueError where one of them is not finite.

    `norms` are those that `norms_of` gave for the same vectors, where they are known.
    """
    if values.ndim != 2 or values.dtype not in (np.float16, np.float32):
        raise ValueError(f"vectors must be (n, d) float16 or float32, not {values.dtype}")
    values = np.ascontiguousarray(values)  # type: ignore[assignment]
    cheap = wide(values)
    if norms is None:
        norms = norms_of(cheap)
    if not np.isfinite(norms).all():
        raise ValueError(f"row {int(np.argmin(np.isfinite(norms)))} holds NaN or infinity")
    return Block(metric, values, norms, _unit(cheap, norms) if metric == "cosine" else cheap)


def wide(values: Vectors) -> Float32:
    """Give (n, d) float16 or float32 vectors as float32, exactly.

    FAISS' decoder of float16 takes a third of the time of numpy's conversion.
    """
    if values.dtype == np.float32 or values.size == 0:
        return values.astype(np.float32, copy=False)
    decoder = faiss.ScalarQuantizer(values.shape[1], faiss.ScalarQuantizer.QT_fp16)
    found: Float32 = decoder.decode(np.ascontiguousarray(values).view(np.uint8))
    return found


def _unit(values: Float32, norms: Float64) -> Float32:
    """Divide by the lengths with at most two roundings to float32 an element."""
    lengths = np.where(norms > 0, norms, 1.0)
    if len(norms) and lengths.min() > 2.0**-100 and lengths.max() < 2.0**100:
        return values * (1 / lengths).astype(np.float32)[:, None]
    unit = np.empty_like(values)  # the quotient itself would leave the range of float32
    for rows in _slices(len(values), _PAIRS):
        unit[rows] = values[rows].astype(np.float64) / lengths[rows, None]
    return unit


def norms_of(values: Vectors) -> Float64:
    """Give the Euclidean lengths of (n, d) vectors, (n,) float64, independent of blocking."""
    squares = np.empty(len(values))
    for rows in _slices(len(values), _LENGTHS):
        numbers = values[rows].astype(np.float64)
        numbers *= numbers
        squares[rows] = numbers.sum(-1)
    return np.sqrt(squares)


def pair_scores(queries: Block, rows: Block, q: Int64, x: Int64) -> Float64:
    """Score queries[q[i]] against rows[x[i]] for each i: THE score, (p,) float64.

    cosine: dot over the product of the lengths (0 where one has none); ip: dot; l2: the sum of the
    squared differences. The sum runs over the last axis of C-contiguous pairs, which numpy does in
    an order that depends on d alone.
    """
    scores = np.empty(len(q))
    for part in _slices(len(q), _PAIRS):
        left = queries.values[q[part]].astype(np.float64)
        right = rows.values[x[part]].astype(np.float64)
        if queries.metric == "l2":
            scores[part] = ((left - right) ** 2).sum(-1)
        else:
            scores[part] = (left * right).sum(-1)
    if queries.metric == "cosine":
        lengths = queries.norms[q] * rows.norms[x]
        scores /= np.where(lengths > 0, lengths, 1.0)
    return scores


def keys_of(scores: Float64, metric: Metric) -> Float64:
    """Turn scores into keys, of which more is always closer, or keys back into scores."""
    return -scores if metric == "l2" else scores


def propose(queries: Block, rows: Block) -> tuple[Float32, Float64]:
    """Give cheap keys (b, n) float32 and, a query, the most they can be wrong by, (b,) float64.

    For l2 the keys lack the square of the query's length, which is the same for all its rows:
    2 q.x - |x|^2. Keys may be infinite or NaN where float32 overflows; such pairs are undecided.
    """
    dimension = queries.values.shape[1]
    gamma = dimension * _U / (1 - dimension * _U)
    # underflowing products, and the rounding of the float64 score that is being approximated
    tiny = dimension * 2.0**-125
    wide = (dimension + 8) * 2.0**-52
    with np.errstate(over="ignore", invalid="ignore"):
        keys = queries.cheap @ rows.cheap.T
        if queries.metric == "cosine":  # each side is rounded twice on its way to unit length
            return keys, np.full(len(queries), 1.001 * (gamma + 5 * _U) + tiny + wide)
        longest = rows.norms.max(initial=0.0)
        product = queries.norms * longest
        if queries.metric == "ip":
            return keys, 1.001 * (gamma + wide) * product + tiny
        keys *= np.float32(2)
        keys -= (rows.norms**2).astype(np.float32)
    # twice the product's error, one rounding of |x|^2, one of the difference, underflow of both
    rounding = _U * (2 * longest**2 + 2 * product)
    return keys, 1.001 * (2 * gamma * product + rounding) + tiny + wide * (
        queries.norms + longest
    ) ** 2


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
        for part in _slices(len(queries), step):
            self._push(queries[part], rows, ties, positions)

    def _push(self, which: Int64, rows: Block, ties: Int64, positions: Int64) -> None:
        queries = self.queries.take(which)
        q, x = _survivors(queries, rows, self.keys[which, -1], self.k)
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


def _survivors(queries: Block, rows: Block, kth: Float64, k: int) -> tuple[Int64, Int64]:
    """Find the pairs that the bound cannot exclude from the k closest.

    `kth` is the (b,) float64 key each query's next row must reach; -inf while it has fewer than k.
    A row is out when even at its best it lies below that, or below k rows of this block at their
    worst. Rows that just reach it stay, since ties are decided later.
    """
    keys, slack = propose(queries, rows)
    undecided = ~np.isfinite(keys)
    if undecided.any():
        keys[undecided] = -np.inf
    floor = kth + queries.norms**2 if queries.metric == "l2" else kth
    floor = floor - slack
    fresh = np.flatnonzero(np.isneginf(kth))
    if len(fresh) and len(rows) > k:
        worst = np.partition(keys[fresh], len(rows) - k, axis=1)[:, len(rows) - k]
        floor[fresh] = worst.astype(np.float64) - 2 * slack[fresh]
    with np.errstate(over="ignore"):
        low = np.nextafter(floor.astype(np.float32), np.float32(-np.inf))
    q, x = np.nonzero((keys >= low[:, None]) | undecided)
    return q, x


def top_k(queries: Block, rows: Block, k: int, ties: Int64 | None = None) -> TopK:
    """Find the k closest of `rows` to each query; positions are places in `rows`.

    Without `ties` the smaller place is closer.
    """
    places = np.arange(len(rows))
    best = TopK(queries, k)
    for part in _slices(len(rows), 1 << 16):
        best.push(rows.take(part), (places if ties is None else ties)[part], places[part])
    return best


def nearest(queries: Block, centroids: Block) -> Int64:
    """Give the number of each query's closest centroid, (n,) int64, ties to the smaller number.

    As `top_k` with k = 1, at the cost of the product and two looks at it: a query for which a
    single centroid lies within the bound of the best is decided without another sum.
    """
    longest = queries.norms.max(initial=0.0) + centroids.norms.max(initial=0.0)
    if queries.metric != "cosine" and longest > _SAFE:
        return top_k(queries, centroids, 1).positions[:, 0]
    found = np.empty(len(queries), np.int64)
    for part in _slices(len(queries), max(1, _NEAR // len(centroids))):
        found[part] = _nearest(queries.take(part), centroids)
    return found


def _nearest(queries: Block, centroids: Block) -> Int64:
    keys, slack = propose(queries, centroids)
    floor = keys.max(1).astype(np.float64) - 2 * slack
    low = np.nextafter(floor.astype(np.float32), np.float32(-np.inf))
    q, x = np.divmod(np.flatnonzero(keys >= low[:, None]), len(centroids))
    if len(q) == len(queries):
        return x
    exact = np.zeros(len(q))
    close = np.flatnonzero(np.bincount(q)[q] > 1)
    scores = pair_scores(queries, centroids, q[close], x[close])
    exact[close] = keys_of(scores, queries.metric)
    order = np.lexsort((x, -exact, q))
    return x[order[np.searchsorted(q, np.arange(len(queries)))]]


def _slices(count: int, step: int) -> list[slice]:
    return [slice(first, min(first + step, count)) for first in range(0, count, step)]
