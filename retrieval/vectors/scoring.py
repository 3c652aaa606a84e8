"""The one definition of the similarity score: a fixed numpy expression in float64.

The last bits of a matrix product depend on the library, the number of threads and the block size.
So products only propose candidates, with an error bound (`matmul.py`), and whatever lies within the
bound of a cut is scored by `score_pairs` (`topk.py`). Equal scores are ordered by a tie number of
the caller. Hence lists, candidates and ranks are the same for any block size and thread count.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from retrieval.core.schemas import Metric, Vectors
from retrieval.vectors.float_conversions import flushes_subnormals, to_float32, to_float64
from retrieval.vectors.normalize import nonzero_lengths

Float64 = NDArray[np.float64]
Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]

_SCORED_PAIRS = 128  # pairs scored at once: half a MiB at d = 512, which fits a core's cache
_MIN_COMPILED_PAIRS = 1 << 20  # pairs whose compiled sums make up for the import of numba
_NORM_ROWS = 128  # vectors whose norms are computed at once: the same size
_SHIFTED_BITS = np.int32(-0x70002000)  # the bits of float32 that a shifted float16 may have
_EXPONENT = np.float32(2.0**112)  # between the biases of float16 and float32
_INFINITE = 0xF800  # the bits of infinity in float16, without the sign; those of NaN are more


@dataclass(frozen=True)
class VectorBlock:
    """Vectors with the quantities that one metric needs; built by `block`.

    `values` is (n, d) float16 or float32 as stored, `squared_norms` (n,) float64 as
    `compute_squared_norms` returns them.
    """

    metric: Metric
    values: Vectors
    squared_norms: Float64

    @cached_property
    def norms(self) -> Float64:
        """Return the Euclidean lengths of the vectors, (n,)."""
        return np.sqrt(self.squared_norms)

    @cached_property
    def float32_values(self) -> Float32:
        """Return the vectors converted to float32, (n, d); all numbers are finite."""
        if self.values.dtype == np.float32:
            return self.values.astype(np.float32, copy=False)
        return _finite_to_float32(self.values)

    @cached_property
    def matmul_input(self) -> Float32:
        """Return the (n, d) float32 input of products: the vectors, of unit length for cosine."""
        return _unit_float32(self) if self.metric == "cosine" else self.float32_values

    def __len__(self) -> int:
        return len(self.values)

    def take(self, positions: Int64 | slice) -> VectorBlock:
        """Return the vectors at `positions`, in that order, with the values cached so far."""
        part = VectorBlock(self.metric, self.values[positions], self.squared_norms[positions])
        cached = {"norms", "float32_values"} | (
            {"matmul_input"} if self.metric == "cosine" else set()
        )
        for name in cached & self.__dict__.keys():
            part.__dict__[name] = self.__dict__[name][positions]
        return part


def block(values: Vectors, metric: Metric, squared_norms: Float64 | None = None) -> VectorBlock:
    """Build a VectorBlock of (n, d) float16 or float32 vectors.

    `squared_norms`, if not None, must be the result of `compute_squared_norms` for these vectors.
    Raises ValueError where a vector is not finite or the array has another shape or dtype.
    """
    if values.ndim != 2 or values.dtype not in (np.float16, np.float32):
        raise ValueError(f"vectors must be (n, d) float16 or float32, not {values.dtype}")
    values = np.ascontiguousarray(values)  # type: ignore[assignment]
    converted = float16_to_float32(values)
    if squared_norms is None:
        squared_norms = compute_squared_norms(converted)
    finite = np.isfinite(squared_norms)
    if not finite.all():
        raise ValueError(f"row {int(np.argmin(finite))} holds NaN or infinity")
    result = VectorBlock(metric, values, squared_norms)
    result.__dict__["float32_values"] = converted
    return result


def float16_to_float32(values: Vectors) -> Float32:
    """Convert (n, d) float16 or float32 vectors to float32 exactly, NaN and infinity included."""
    if values.dtype == np.float32 or values.size == 0:
        return values.astype(np.float32, copy=False)
    converted = _finite_to_float32(values)
    if (values.view(np.uint16) << 1).max() >= _INFINITE:  # the shift drops the sign bit
        not_finite = ~np.isfinite(values)
        converted[not_finite] = values[not_finite]
    return converted


def _finite_to_float32(values: Vectors) -> Float32:
    """Convert finite float16 numbers to float32, exactly.

    The bits of float16 are shifted to where float32 has them, and a factor corrects the exponent:
    a quarter of the time of numpy's conversion. Subnormal float16 numbers pass through subnormal
    float32 numbers, so numpy converts where the processor flushes these to zero.
    """
    if flushes_subnormals():
        return to_float32(values)
    converted = _shift_float16_bits(values)
    converted *= _EXPONENT
    return converted


def _shift_float16_bits(values: Vectors) -> Float32:
    """Return finite float16 numbers, divided by `_EXPONENT`, as float32."""
    bits = np.ascontiguousarray(values).view(np.int16).astype(np.int32)
    bits <<= 13
    bits &= _SHIFTED_BITS
    return bits.view(np.float32)


def _unit_float32(vectors: VectorBlock) -> Float32:
    """Return the vectors divided by their lengths, at most two roundings to float32 per number.

    Each result depends on its own row alone: numbers times a rounded factor, or a quotient in
    float64 where the factor or the numbers might leave the range of float32.
    """
    lengths = nonzero_lengths(vectors.norms)
    in_range = (lengths > 2.0**-14) & (lengths < 2.0**100)
    factors = np.where(in_range, 1 / lengths, 1.0).astype(np.float32)[:, None]
    if flushes_subnormals():  # the product of two float32 is exact in float64
        unit = to_float32(to_float64(vectors.values) * factors)
    elif "float32_values" in vectors.__dict__ or vectors.values.dtype == np.float32:
        unit = vectors.float32_values * factors
    else:
        unit = _shift_float16_bits(vectors.values)
        unit *= _EXPONENT * factors
    out_of_range = np.flatnonzero(~in_range)
    for part in split_range(len(out_of_range), _SCORED_PAIRS):
        rows = out_of_range[part]
        unit[rows] = to_float32(to_float64(vectors.values[rows]) / lengths[rows, None])
    return unit


def compute_squared_norms(values: Vectors) -> Float64:
    """Return the sums of squares of (n, d) vectors, (n,) float64, independent of blocking.

    The summation order is that of `score_pairs`, so the dot product of two equal vectors is their
    squared norm to the last bit.
    """
    squares = np.empty(len(values))
    for rows in split_range(len(values), _NORM_ROWS):
        numbers = to_float64(values[rows])
        numbers *= numbers
        squares[rows] = numbers.sum(-1)
    return squares


def score_pairs(queries: VectorBlock, rows: VectorBlock, q: Int64, x: Int64) -> Float64:
    """Return the score of queries[q[i]] and rows[x[i]] for each i, (p,) float64.

    cosine: dot over the root of the product of both squared norms (0 where one is a zero vector),
    within [-1, 1]; ip: dot; l2: the sum of the squared differences. The sum runs over the last axis
    of C-contiguous pairs, which numpy does in an order that depends on d alone.

    Equal vectors have the cosine 1 exactly: dot and both sums of squares are one number s then, and
    sqrt(s * s) is s in binary arithmetic (Boldo, "Stupid is as stupid does: taking the square root
    of the square of a floating-point number", 2015). No product leaves the range of float64, since
    squares of float32 lie between 2^-298 and 2^256. The clip keeps the rounded cosine of unequal
    vectors from exceeding that of a copy of the query.
    """
    scores = np.empty(len(q))
    compiled = _sum_compiled(queries, rows, q, x, scores)
    for part in split_range(0 if compiled else len(q), _SCORED_PAIRS):
        left = to_float64(queries.float32_values.take(q[part], axis=0))
        right = to_float64(rows.float32_values.take(x[part], axis=0))
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


def _sum_compiled(
    queries: VectorBlock, rows: VectorBlock, q: Int64, x: Int64, sums: Float64
) -> bool:
    """Write the sums of pairs with compiled code where it pays; return whether it did."""
    if flushes_subnormals() or (len(q) < _MIN_COMPILED_PAIRS and "numba" not in sys.modules):
        return False
    from retrieval.vectors import score_kernel

    left, right = queries.float32_values, rows.float32_values
    if not (_is_plain(left) and _is_plain(right)) or not (
        score_kernel.has_order_of_numpy(left.shape[1])
    ):
        return False
    q, x = (np.ascontiguousarray(positions, np.int64) for positions in (q, x))
    score_kernel.sum_pairs(left, right, q, x, queries.metric == "l2", sums)
    return True


def _is_plain(matrix: Float32) -> bool:
    """Return whether compiled code can read a matrix."""
    return bool(matrix.flags.c_contiguous and matrix.flags.aligned)


def scores_to_keys(scores: Float64, metric: Metric) -> Float64:
    """Convert scores to keys, where larger is closer for every metric."""
    return -scores if metric == "l2" else scores


def keys_to_scores(keys: Float64, metric: Metric) -> Float64:
    """Convert keys to scores; `scores_to_keys` is its own inverse, so this is the same function."""
    return scores_to_keys(keys, metric)


def split_range(count: int, step: int) -> list[slice]:
    """Return consecutive slices of at most `step` positions that cover range(count)."""
    return [slice(first, min(first + step, count)) for first in range(0, count, step)]
