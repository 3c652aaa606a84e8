"""The one definition of score: a fixed numpy expression in float64.

Products of matrices are fast, and their last bits depend on the library, the number of threads and
how the matrices were cut. So they never decide anything here: they propose (`products.py`), with a
bound on their error, and whatever lies within the bound of a cut is scored by this expression
(`closest.py`). Equal scores are ordered by a tie number that the caller gives. Hence lists,
candidates and ranks are the same for any block size, thread count and product.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from retrieval.conversions import flushes_subnormals, to_float32, to_float64
from retrieval.tables import Metric, Vectors

Float64 = NDArray[np.float64]
Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]

_PAIRS = 128  # pairs scored at once: half a MiB at d = 512, which stays in a core's cache
_NORMS = 128  # vectors measured at once: the same
_SIGN_AND_REST = np.int32(-0x70002000)  # the bits of float32 that a shifted float16 may have
_EXPONENT = np.float32(2.0**112)  # between the biases of float16 and float32
_INFINITE = 0xF800  # the bits of infinity in float16, without the sign; those of NaN are more


@dataclass(frozen=True)
class Block:
    """Vectors made ready for one metric.

    `values` is (n, d) float16 or float32 as stored, `squared_norms` (n,) float64 their sums of
    squares, as `squared_norms_of` makes them.
    """

    metric: Metric
    values: Vectors
    squared_norms: Float64

    @cached_property
    def norms(self) -> Float64:
        """Return the Euclidean lengths of the vectors, (n,)."""
        return np.sqrt(self.squared_norms)

    @cached_property
    def wide(self) -> Float32:
        """Give the same numbers as float32; all are finite, or have been refused by `block`."""
        if self.values.dtype == np.float32:
            return self.values.astype(np.float32, copy=False)
        return _finite_wide(self.values)

    @cached_property
    def cheap(self) -> Float32:
        """Give what products read, (n, d) float32: the vectors, of unit length for cosine."""
        return _unit(self) if self.metric == "cosine" else self.wide

    def __len__(self) -> int:
        return len(self.values)

    def take(self, which: Int64 | slice) -> Block:
        """Give some of the vectors, in the order of `which`; what was computed goes along."""
        part = Block(self.metric, self.values[which], self.squared_norms[which])
        known = {"norms", "wide"} | ({"cheap"} if self.metric == "cosine" else set())
        for name in known & self.__dict__.keys():
            part.__dict__[name] = self.__dict__[name][which]
        return part


def block(values: Vectors, metric: Metric, squared_norms: Float64 | None = None) -> Block:
    """Make (n, d) vectors ready; ValueError where one of them is not finite.

    `squared_norms` are those that `squared_norms_of` gave for the same vectors, where they are
    known.
    """
    if values.ndim != 2 or values.dtype not in (np.float16, np.float32):
        raise ValueError(f"vectors must be (n, d) float16 or float32, not {values.dtype}")
    values = np.ascontiguousarray(values)  # type: ignore[assignment]
    same = wide(values)
    if squared_norms is None:
        squared_norms = squared_norms_of(same)
    finite = np.isfinite(squared_norms)
    if not finite.all():
        raise ValueError(f"row {int(np.argmin(finite))} holds NaN or infinity")
    made = Block(metric, values, squared_norms)
    made.__dict__["wide"] = same
    return made


def wide(values: Vectors) -> Float32:
    """Convert (n, d) float16 or float32 vectors to float32, exactly; NaN and infinity stay."""
    if values.dtype == np.float32 or values.size == 0:
        return values.astype(np.float32, copy=False)
    made = _finite_wide(values)
    if (values.view(np.uint16) << 1).max() >= _INFINITE:  # without the sign: half the bytes
        beyond = ~np.isfinite(values)
        made[beyond] = values[beyond]
    return made


def _finite_wide(values: Vectors) -> Float32:
    """Convert finite float16 numbers to float32, exactly.

    The bits of float16 are shifted to where float32 has them, and the exponent is set right by a
    factor: a quarter of the time of numpy's own conversion. On the way the subnormal numbers of
    float16 are some of float32, so not where these are taken for zero.
    """
    if flushes_subnormals():
        return to_float32(values)
    made = _shifted(values)
    made *= _EXPONENT
    return made


def _shifted(values: Vectors) -> Float32:
    """Give finite float16 numbers as float32 that are smaller by `_EXPONENT`."""
    bits = np.ascontiguousarray(values).view(np.int16).astype(np.int32)
    bits <<= 13
    bits &= _SIGN_AND_REST
    return bits.view(np.float32)


def _unit(vectors: Block) -> Float32:
    """Divide by the lengths with at most two roundings to float32 an element.

    What a row becomes depends on that row alone: numbers times a rounded factor, or, where factor
    or numbers might leave the range of float32, a quotient in float64.
    """
    norms = vectors.norms
    lengths = np.where(norms > 0, norms, 1.0)
    plain = (lengths > 2.0**-14) & (lengths < 2.0**100)
    factors = np.where(plain, 1 / lengths, 1.0).astype(np.float32)[:, None]
    if flushes_subnormals():  # the product of two float32 is exact in float64
        unit = to_float32(to_float64(vectors.values) * factors)
    elif "wide" in vectors.__dict__ or vectors.values.dtype == np.float32:
        unit = vectors.wide * factors
    else:
        unit = _shifted(vectors.values)
        unit *= _EXPONENT * factors
    others = np.flatnonzero(~plain)
    for part in slices(len(others), _PAIRS):
        rows = others[part]
        unit[rows] = to_float32(to_float64(vectors.values[rows]) / lengths[rows, None])
    return unit


def squared_norms_of(values: Vectors) -> Float64:
    """Return the sums of squares of (n, d) vectors, (n,) float64, independent of blocking.

    They are summed as the products in `pair_scores` are, so that a vector's product with an equal
    one is its sum of squares to the last bit.
    """
    squares = np.empty(len(values))
    for rows in slices(len(values), _NORMS):
        numbers = to_float64(values[rows])
        numbers *= numbers
        squares[rows] = numbers.sum(-1)
    return squares


def pair_scores(queries: Block, rows: Block, q: Int64, x: Int64) -> Float64:
    """Score queries[q[i]] against rows[x[i]] for each i: THE score, (p,) float64.

    cosine: dot over the root of the product of both sums of squares (0 where one has no length),
    within [-1, 1]; ip: dot; l2: the sum of the squared differences. The sum runs over the last axis
    of C-contiguous pairs, which numpy does in an order that depends on d alone.

    Equal vectors have the cosine 1 exactly: dot and both sums of squares are one number s then, and
    sqrt(s * s) is s in binary arithmetic (Boldo, "Stupid is as stupid does: taking the square root
    of the square of a floating-point number", 2015). No product leaves the range of float64, since
    squares of float32 lie between 2^-298 and 2^256. Others than equal ones may come to 1, never
    beyond: without the clip one could pass a copy of the query by a rounding.
    """
    scores = np.empty(len(q))
    for part in slices(len(q), _PAIRS):
        left = to_float64(queries.wide.take(q[part], axis=0))
        right = to_float64(rows.wide.take(x[part], axis=0))
        if queries.metric == "l2":
            left -= right
            left *= left
        else:
            left *= right
        scores[part] = left.sum(-1)
    if queries.metric == "cosine":
        squares = queries.squared_norms[q] * rows.squared_norms[x]
        scores /= np.sqrt(np.where(squares > 0, squares, 1.0))
        np.clip(scores, -1.0, 1.0, out=scores)
    return scores


def keys_of(scores: Float64, metric: Metric) -> Float64:
    """Turn scores into keys, of which more is always closer, or keys back into scores."""
    return -scores if metric == "l2" else scores


def slices(count: int, step: int) -> list[slice]:
    """Cut `count` things into slices of `step`, the last one shorter."""
    return [slice(first, min(first + step, count)) for first in range(0, count, step)]
