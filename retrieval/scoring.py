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

from retrieval.tables import Metric, Vectors

Float64 = NDArray[np.float64]
Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]

_PAIRS = 128  # pairs scored at once: half a MiB at d = 512, which stays in a core's cache
_LENGTHS = 128  # vectors measured at once: the same
_SIGN_AND_REST = np.int32(-0x70002000)  # the bits of float32 that a shifted float16 may have
_EXPONENT = np.float32(2.0**112)  # between the biases of float16 and float32
_INFINITE = 0xF800  # the bits of infinity in float16, without the sign; those of NaN are more


@dataclass(frozen=True)
class Block:
    """Vectors made ready for one metric.

    `values` is (n, d) float16 or float32 as stored, `norms` (n,) float64 their Euclidean lengths.
    """

    metric: Metric
    values: Vectors
    norms: Float64

    @cached_property
    def wide(self) -> Float32:
        """Give the same numbers as float32; all are finite, or have been refused by `block`."""
        if self.values.dtype == np.float32:
            return self.values.astype(np.float32, copy=False)
        made = _shifted(self.values)
        made *= _EXPONENT
        return made

    @cached_property
    def cheap(self) -> Float32:
        """Give what products read, (n, d) float32: the vectors, of unit length for cosine."""
        return _unit(self) if self.metric == "cosine" else self.wide

    def __len__(self) -> int:
        return len(self.values)

    def take(self, which: Int64 | slice) -> Block:
        """Give some of the vectors, in the order of `which`; what was computed goes along."""
        part = Block(self.metric, self.values[which], self.norms[which])
        known = {"wide", "cheap"} if self.metric == "cosine" else {"wide"}
        for name in known & self.__dict__.keys():
            part.__dict__[name] = self.__dict__[name][which]
        return part


def block(values: Vectors, metric: Metric, norms: Float64 | None = None) -> Block:
    """Make (n, d) vectors ready; ValueError where one of them is not finite.

    `norms` are those that `norms_of` gave for the same vectors, where they are known.
    """
    if values.ndim != 2 or values.dtype not in (np.float16, np.float32):
        raise ValueError(f"vectors must be (n, d) float16 or float32, not {values.dtype}")
    values = np.ascontiguousarray(values)  # type: ignore[assignment]
    same = wide(values)
    if norms is None:
        norms = norms_of(same)
    if not np.isfinite(norms).all():
        raise ValueError(f"row {int(np.argmin(np.isfinite(norms)))} holds NaN or infinity")
    made = Block(metric, values, norms)
    made.__dict__["wide"] = same
    return made


def wide(values: Vectors) -> Float32:
    """Give (n, d) float16 or float32 vectors as float32, exactly; NaN and infinity stay so.

    The bits of float16 are shifted to where float32 has them, and the exponent is set right by a
    factor: a quarter of the time of numpy's own conversion.
    """
    if values.dtype == np.float32 or values.size == 0:
        return values.astype(np.float32, copy=False)
    made = _shifted(values)
    made *= _EXPONENT
    if (values.view(np.uint16) << 1).max() >= _INFINITE:  # without the sign: half the bytes
        beyond = ~np.isfinite(values)
        made[beyond] = values[beyond]
    return made


def _shifted(values: Vectors) -> Float32:
    """Give finite float16 numbers as float32 that are smaller by `_EXPONENT`."""
    bits = np.ascontiguousarray(values).view(np.int16).astype(np.int32)
    bits <<= 13
    bits &= _SIGN_AND_REST
    return bits.view(np.float32)


def _unit(vectors: Block) -> Float32:
    """Divide by the lengths with at most two roundings to float32 an element."""
    norms = vectors.norms
    lengths = np.where(norms > 0, norms, 1.0)
    if len(norms) and lengths.min() > 2.0**-14 and lengths.max() < 2.0**100:
        factors = (1 / lengths).astype(np.float32)[:, None]
        if "wide" in vectors.__dict__ or vectors.values.dtype == np.float32:
            return vectors.wide * factors
        made = _shifted(vectors.values)
        made *= _EXPONENT * factors
        return made
    unit = np.empty_like(vectors.wide)  # the quotient itself would leave the range of float32
    for rows in slices(len(norms), _PAIRS):
        unit[rows] = vectors.wide[rows].astype(np.float64) / lengths[rows, None]
    return unit


def norms_of(values: Vectors) -> Float64:
    """Give the Euclidean lengths of (n, d) vectors, (n,) float64, independent of blocking."""
    squares = np.empty(len(values))
    for rows in slices(len(values), _LENGTHS):
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
    for part in slices(len(q), _PAIRS):
        left = queries.wide.take(q[part], axis=0).astype(np.float64)
        right = rows.wide.take(x[part], axis=0)
        if queries.metric == "l2":
            left -= right
            left *= left
        else:
            left *= right
        scores[part] = left.sum(-1)
    if queries.metric == "cosine":
        lengths = queries.norms[q] * rows.norms[x]
        scores /= np.where(lengths > 0, lengths, 1.0)
    return scores


def keys_of(scores: Float64, metric: Metric) -> Float64:
    """Turn scores into keys, of which more is always closer, or keys back into scores."""
    return -scores if metric == "l2" else scores


def slices(count: int, step: int) -> list[slice]:
    """Cut `count` things into slices of `step`, the last one shorter."""
    return [slice(first, min(first + step, count)) for first in range(0, count, step)]
