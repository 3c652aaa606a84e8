"""Compiled loops that collect the pairs of a query and a row which may be among the k best.

Each query has a buffer of a fixed number of pairs. For each pair it holds the lowest and the
highest key that the pair may have, and the number of its row. When the buffer is full, the query's
threshold rises to the k-th largest of the lowest keys, which k rows surely reach, and pairs whose
highest key lies below are dropped. A query whose buffer stays full gets none of the pairs that were
being added, and is reported: its pairs must be proposed more precisely, or scored.

Bounds are compared in float64 and stored in float32, rounded outwards. Imported where it is needed
(`vectors/compiled.py`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retrieval.vectors.compiled import compiled, compiled_part
from retrieval.vectors.scoring import Float32, Float64, Int64

Mask = NDArray[np.bool_]
Int32 = NDArray[np.int32]

LANES = 16
"""Keys that are compared at once: two or four vector registers."""

_ROUNDING = 2.0**-22  # more than the relative error of a conversion to float32
_SMALLEST = 2.0**-123  # more than float32 loses where it flushes subnormal numbers to zero


@compiled_part
def _at_most(value: float) -> np.float32:
    """Return a float32 number that is not greater than `value`."""
    return np.float32(value - abs(value) * _ROUNDING - _SMALLEST)


@compiled_part
def _at_least(value: float) -> np.float32:
    """Return a float32 number that is not less than `value`."""
    return np.float32(value + abs(value) * _ROUNDING + _SMALLEST)


@compiled_part
def _kth_largest(values: Float32, size: int, k: int, scratch: Float32) -> np.float32:
    """Return the k-th largest of the first `size` values, by quickselect in `scratch`."""
    for j in range(size):
        scratch[j] = values[j]
    left, right, target = 0, size - 1, k - 1
    while left < right:
        low, middle, high = scratch[left], scratch[(left + right) // 2], scratch[right]
        pivot = max(min(low, middle), min(max(low, middle), high))  # the median
        i, j = left, right
        while i <= j:
            while scratch[i] > pivot:
                i += 1
            while scratch[j] < pivot:
                j -= 1
            if i <= j:
                scratch[i], scratch[j] = scratch[j], scratch[i]
                i += 1
                j -= 1
        if target <= j:
            right = j
        elif target >= i:
            left = i
        else:
            break
    return np.float32(scratch[target])


@compiled_part
def _raise_threshold(
    q: int,
    size: int,
    k: int,
    thresholds: Float64,
    lows: Float32,
    highs: Float32,
    numbers: Int32,
    scratch: Float32,
) -> int:
    """Raise the threshold of a query, drop the pairs below it, and return how many are left."""
    if size >= k:
        thresholds[q] = max(thresholds[q], np.float64(_kth_largest(lows[q], size, k, scratch)))
    kept = 0
    for j in range(size):
        if highs[q, j] >= thresholds[q]:
            lows[q, kept], highs[q, kept] = lows[q, j], highs[q, j]
            numbers[q, kept] = numbers[q, j]
            kept += 1
    return kept


@compiled_part
def _is_excluded(q: int, number: int, starts: Int64, excluded: Int64) -> bool:
    """Return whether the row `number` is excluded for a query, by binary search."""
    first, last = starts[q], starts[q + 1]
    while first < last:
        middle = (first + last) // 2
        if excluded[middle] < number:
            first = middle + 1
        else:
            last = middle
    return bool(first < starts[q + 1] and excluded[first] == number)


_BUFFERS = "f8[::1], f4[:, ::1], f4[:, ::1], i4[:, ::1], i8[::1], f4[::1]"


@compiled(
    "i8(f4[:, :, ::1], i8[::1], i8, i8, f4[::1], f8[::1], f8, f8[:, ::1], b1[::1], i8[::1],"
    f" i8[::1], i8, {_BUFFERS}, b1[::1])"
)
def collect(  # noqa: C901, PLR0912  (one loop nest)
    keys: Float32,
    positions: Int64,
    first_number: int,
    count: int,
    squares: Float32,
    lengths: Float64,
    longest: float,
    error_terms: Float64,
    skipped: Mask,
    excluded_starts: Int64,
    excluded: Int64,
    k: int,
    thresholds: Float64,
    lows: Float32,
    highs: Float32,
    numbers: Int32,
    counts: Int64,
    scratch: Float32,
    overflowed: Mask,
) -> int:
    """Add the pairs of a product that may be among the k best; return how many queries overflow.

    `keys` (b, groups, LANES) are the dot products of the queries at `positions` (b,) with `count`
    rows, the first of which has the number `first_number`. `squares` are the squared lengths of the
    rows for l2, which are subtracted, else empty. `lengths` (count,) are those of the rows. A key
    is off by at most a + b |x| + c |x|^2, where `error_terms` (n, 3) holds a, b and c of each
    query. Queries marked in `skipped` (n,) get no pair. `overflowed` (b,) is written.
    """
    capacity, failures = lows.shape[1], 0
    for i in range(len(positions)):
        q = positions[i]
        overflowed[i] = False
        if skipped[q]:
            continue
        if len(squares):
            for group in range(keys.shape[1]):
                for lane in range(LANES):
                    x = group * LANES + lane
                    keys[i, group, lane] = np.float32(2) * keys[i, group, lane] - squares[x]
        constant, linear, square = error_terms[q, 0], error_terms[q, 1], error_terms[q, 2]
        largest_error = constant + longest * (linear + longest * square)
        low = _at_most(thresholds[q] - largest_error)
        size = counts[q]
        for group in range(keys.shape[1]):
            reached = np.int32(0)
            for lane in range(LANES):
                reached |= np.int32(keys[i, group, lane] >= low)
            if not reached:
                continue
            for lane in range(LANES):
                x = group * LANES + lane
                if x >= count or keys[i, group, lane] < low or overflowed[i]:
                    continue
                key = np.float64(keys[i, group, lane])
                slack = constant + lengths[x] * (linear + lengths[x] * square)
                number = first_number + x
                if _at_least(key + slack) < thresholds[q]:
                    continue
                if _is_excluded(q, number, excluded_starts, excluded):
                    continue
                if size == capacity:
                    size = _raise_threshold(q, size, k, thresholds, lows, highs, numbers, scratch)
                    low = _at_most(thresholds[q] - largest_error)
                    if size >= capacity - capacity // 8:
                        overflowed[i] = True
                        continue
                    if _at_least(key + slack) < thresholds[q]:
                        continue
                lows[q, size], highs[q, size] = _at_most(key - slack), _at_least(key + slack)
                numbers[q, size] = number
                size += 1
            if overflowed[i]:
                break
        if overflowed[i]:
            failures += 1
            kept = 0
            for j in range(size):
                if not first_number <= numbers[q, j] < first_number + count:
                    lows[q, kept], highs[q, kept] = lows[q, j], highs[q, j]
                    numbers[q, kept] = numbers[q, j]
                    kept += 1
            size = kept
        counts[q] = size
    return failures


@compiled(
    f"i8(i8[::1], i8[::1], f8[::1], f8[::1], b1[::1], i8[::1], i8[::1], i8, {_BUFFERS}, b1[::1])"
)
def add_pairs(
    queries: Int64,
    pair_numbers: Int64,
    keys: Float64,
    slack: Float64,
    skipped: Mask,
    excluded_starts: Int64,
    excluded: Int64,
    k: int,
    thresholds: Float64,
    lows: Float32,
    highs: Float32,
    numbers: Int32,
    counts: Int64,
    scratch: Float32,
    rejected: Mask,
) -> int:
    """Add single pairs, (p,) each, with their maximum errors; return how many were rejected.

    A pair is rejected, and marked in `rejected` (p,), if the buffer of its query stays full.
    """
    capacity, failures = lows.shape[1], 0
    for i in range(len(queries)):
        q = queries[i]
        rejected[i] = False
        high = _at_least(keys[i] + slack[i])
        if skipped[q] or high < thresholds[q]:
            continue
        if _is_excluded(q, pair_numbers[i], excluded_starts, excluded):
            continue
        if counts[q] == capacity:
            counts[q] = _raise_threshold(q, counts[q], k, thresholds, lows, highs, numbers, scratch)
            if high < thresholds[q]:
                continue
            if counts[q] == capacity:
                rejected[i] = True
                failures += 1
                continue
        size = counts[q]
        lows[q, size], highs[q, size] = _at_most(keys[i] - slack[i]), high
        numbers[q, size] = pair_numbers[i]
        counts[q] = size + 1
    return failures


@compiled(f"i8(i8, {_BUFFERS})")
def raise_thresholds(
    k: int,
    thresholds: Float64,
    lows: Float32,
    highs: Float32,
    numbers: Int32,
    counts: Int64,
    scratch: Float32,
) -> int:
    """Raise the thresholds of all queries, drop the pairs below, and return how many are left."""
    total = 0
    for q in range(len(counts)):
        if counts[q]:
            counts[q] = _raise_threshold(q, counts[q], k, thresholds, lows, highs, numbers, scratch)
        total += counts[q]
    return total
