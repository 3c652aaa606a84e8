"""The sums of `scoring.score_pairs`, compiled: the same bits in half of the time.

numpy's summation order is repeated: blocks of up to 128 numbers with eight partial sums, and halves
of longer ones. `has_order_of_numpy` checks that this is what the installed numpy does.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from retrieval.vectors.compiled import compiled, compiled_part

_BLOCK = 128  # numbers up to which numpy adds with eight partial sums
_CHECKED_SUMS = 32  # sums compared with those of numpy


@compiled_part
def _sum_block(terms: NDArray[np.float64]) -> float:
    """Return the sum of up to `_BLOCK` terms."""
    groups = len(terms) // 8
    total = 0.0
    if groups:
        # rows of a matrix, because an index that may be negative keeps additions from being joined
        by_eight = terms[: 8 * groups].reshape(groups, 8)
        first = by_eight[0]
        r0, r1, r2, r3 = first[0], first[1], first[2], first[3]
        r4, r5, r6, r7 = first[4], first[5], first[6], first[7]
        for i in range(1, groups):
            r0 += by_eight[i, 0]
            r1 += by_eight[i, 1]
            r2 += by_eight[i, 2]
            r3 += by_eight[i, 3]
            r4 += by_eight[i, 4]
            r5 += by_eight[i, 5]
            r6 += by_eight[i, 6]
            r7 += by_eight[i, 7]
        total = ((r0 + r1) + (r2 + r3)) + ((r4 + r5) + (r6 + r7))
    for i in range(8 * groups, len(terms)):
        total += terms[i]
    return total


@compiled("f8(f8[::1])")
def _sum(terms: NDArray[np.float64]) -> float:
    """Return the sum of terms in the order of numpy."""
    if len(terms) <= _BLOCK:
        return _sum_block(terms)
    half = len(terms) // 2
    half -= half % 8
    return _sum(terms[:half]) + _sum(terms[half:])


@compiled(
    "void(Array(f4, 2, 'C', readonly=True), Array(f4, 2, 'C', readonly=True),"
    " Array(i8, 1, 'C', readonly=True), Array(i8, 1, 'C', readonly=True), b1, f8[::1])"
)
def sum_pairs(
    left: NDArray[np.float32],
    right: NDArray[np.float32],
    q: NDArray[np.int64],
    x: NDArray[np.int64],
    differences: bool,
    sums: NDArray[np.float64],
) -> None:
    """Write the dot product of left[q[i]] and right[x[i]] for each i, or their squared distance."""
    dimension = left.shape[1]
    terms = np.empty(dimension, np.float64)
    for i in range(len(q)):
        first, second = left[q[i]], right[x[i]]
        if differences:
            for j in range(dimension):
                difference = np.float64(first[j]) - np.float64(second[j])
                terms[j] = difference * difference
        else:
            for j in range(dimension):
                terms[j] = np.float64(first[j]) * np.float64(second[j])
        sums[i] = 0.0 + _sum(terms)


@functools.cache
def has_order_of_numpy(dimension: int) -> bool:
    """Return whether sums of `dimension` terms have the same bits as numpy's."""
    generator = np.random.default_rng(dimension)
    left, right = generator.normal(size=(2, _CHECKED_SUMS, dimension)).astype(np.float32)
    rows, sums = np.arange(_CHECKED_SUMS), np.empty(_CHECKED_SUMS)
    sum_pairs(left, right, rows, rows, False, sums)
    return np.array_equal(sums, (left.astype(np.float64) * right.astype(np.float64)).sum(-1))
