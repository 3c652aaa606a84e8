"""Compiled loops that keep, for each query, the pairs that may be among its k best rows.

A pair has a cheap key and a bound of its error, so its true key lies between `low` and `high`. The
*threshold* of a query is a key that its k best rows surely reach: a row whose `high` is below it is
not among them. A threshold is the k-th largest `low` of the pairs of the query, which are held in a
buffer of fixed size until they are scored.

Bounds are compared in float64 and stored in float32, rounded outwards. Imported where it is needed
(`compiled.py`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retrieval.vectors.compiled import compiled, compiled_part

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Mask = NDArray[np.bool_]

LANES = 16
"""Keys that are compared at once: two or four vector registers."""

_MAXIMA_PER_RANK = 4  # maxima that are compared for a first threshold, per rank that it asks for
_ROUNDING = 2.0**-22  # more than the relative error of a conversion to float32
_SMALLEST = 2.0**-123  # more than float32 loses where it flushes subnormal numbers to zero


@compiled_part
def at_most(value: float) -> np.float32:
    """Return a float32 number that is not greater than `value`."""
    return np.float32(value - abs(value) * _ROUNDING - _SMALLEST)


@compiled_part
def at_least(value: float) -> np.float32:
    """Return a float32 number that is not less than `value`."""
    return np.float32(value + abs(value) * _ROUNDING + _SMALLEST)


@compiled_part
def _kth_largest(values: Float32, size: int, k: int) -> np.float32:
    """Return the k-th largest of the first `size` values, which are reordered (quickselect)."""
    left, right, target = 0, size - 1, k - 1
    while left < right:
        low, middle, high = values[left], values[(left + right) // 2], values[right]
        pivot = max(min(low, middle), min(max(low, middle), high))  # the median
        i, j = left, right
        while i <= j:
            while values[i] > pivot:
                i += 1
            while values[j] < pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if target <= j:
            right = j
        elif target >= i:
            left = i
        else:
            break
    return np.float32(values[target])


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
        for j in range(size):
            scratch[j] = lows[q, j]
        thresholds[q] = max(thresholds[q], np.float64(_kth_largest(scratch, size, k)))
    kept = 0
    for j in range(size):
        if highs[q, j] >= thresholds[q]:
            lows[q, kept], highs[q, kept] = lows[q, j], highs[q, j]
            numbers[q, kept] = numbers[q, j]
            kept += 1
    return kept


@compiled_part
def _first_position(q: int, number: int, starts: Int64, excluded: Int64) -> int:
    """Return the position of the first excluded row of a query that is not below `number`."""
    first, last = int(starts[q]), int(starts[q + 1])
    while first < last:
        middle = (first + last) // 2
        if excluded[middle] < number:
            first = middle + 1
        else:
            last = middle
    return int(first)


@compiled_part
def _is_excluded(q: int, number: int, starts: Int64, excluded: Int64) -> bool:
    """Return whether the row `number` is excluded for a query."""
    position = _first_position(q, number, starts, excluded)
    return bool(position < starts[q + 1] and excluded[position] == number)


@compiled_part
def complete_keys(keys: Float32, squares: Float32, count: int) -> None:
    """Subtract the squared lengths for l2, and make the keys of padding smaller than all others."""
    if len(squares):
        for x in range(count):
            keys[x] = np.float32(2) * keys[x] - squares[x]
    for x in range(count, len(keys)):
        keys[x] = -np.inf


@compiled_part
def kth_lower_bound(keys: Float32, k: int, scratch: Float32) -> np.float32:
    """Return a key that at least k of the keys (n,) reach, close to the k-th largest.

    Maxima of disjoint sets of keys are as good as the keys where there are many more than k: at
    least k keys reach the k-th largest maximum. A set holds one lane of neighbouring groups.
    """
    groups = len(keys) // LANES
    parts = min(groups, (_MAXIMA_PER_RANK * k + LANES - 1) // LANES)
    if k > parts * LANES:
        return np.float32(-np.inf)
    for part in range(parts):
        first, last = part * groups // parts, (part + 1) * groups // parts
        maxima = scratch[part * LANES : (part + 1) * LANES]
        for lane in range(LANES):
            maxima[lane] = keys[first * LANES + lane]
        for group in range(first + 1, last):
            row = keys[group * LANES : (group + 1) * LANES]
            for lane in range(LANES):
                maxima[lane] = row[lane] if row[lane] > maxima[lane] else maxima[lane]
    return _kth_largest(scratch, parts * LANES, k)


@compiled_part
def reaches(keys: Float32, low: np.float32) -> bool:
    """Return whether one of `LANES` keys reaches `low`; compiled to vector instructions."""
    reached = np.int32(0)
    for lane in range(LANES):
        reached |= np.int32(keys[lane] >= low)
    return bool(reached)


@compiled_part
def _drop_rows(
    q: int,
    size: int,
    first: int,
    last: int,
    lows: Float32,
    highs: Float32,
    numbers: Int32,
) -> int:
    """Drop the pairs of a query with rows first <= number < last; return how many are left."""
    kept = 0
    for j in range(size):
        if not first <= numbers[q, j] < last:
            lows[q, kept], highs[q, kept] = lows[q, j], highs[q, j]
            numbers[q, kept] = numbers[q, j]
            kept += 1
    return kept


_BUFFERS = "f8[::1], f4[:, ::1], f4[:, ::1], i4[:, ::1], i8[::1], f4[::1]"


@compiled_part
def _collect_query(
    keys: Float32,
    q: int,
    first_number: int,
    count: int,
    lengths: Float64,
    longest: float,
    terms: Float64,
    excluded_starts: Int64,
    excluded: Int64,
    k: int,
    thresholds: Float64,
    lows: Float32,
    highs: Float32,
    numbers: Int32,
    counts: Int64,
    scratch: Float32,
) -> bool:
    """Add the pairs of one query, whose complete keys are (n,); return False if it overflows."""
    constant, linear, square = terms[0], terms[1], terms[2]
    largest_error = constant + longest * (linear + longest * square)
    if thresholds[q] == -np.inf:
        last = _first_position(q, first_number + count, excluded_starts, excluded)
        hidden = last - _first_position(q, first_number, excluded_starts, excluded)
        kth = np.float64(kth_lower_bound(keys, k + hidden, scratch))
        thresholds[q] = np.float64(at_most(kth - largest_error))
    low = at_most(thresholds[q] - largest_error)
    capacity, size = lows.shape[1], counts[q]
    limit = min(capacity, max(2 * k, size + k))  # pairs at which the threshold is raised
    for start in range(0, len(keys), LANES):
        group = keys[start : start + LANES]
        if not reaches(group, low):
            continue
        for lane in range(LANES):
            x = start + lane
            if group[lane] < low or x >= count:
                continue
            key = np.float64(group[lane])
            slack = constant + lengths[x] * (linear + lengths[x] * square)
            high, number = at_least(key + slack), first_number + x
            if high < thresholds[q] or _is_excluded(q, number, excluded_starts, excluded):
                continue
            if size >= limit:
                size = _raise_threshold(q, size, k, thresholds, lows, highs, numbers, scratch)
                if size >= capacity - capacity // 8:
                    counts[q] = _drop_rows(
                        q, size, first_number, first_number + count, lows, highs, numbers
                    )
                    return False
                limit = min(capacity, size + k)
                low = at_most(thresholds[q] - largest_error)
                if high < thresholds[q]:
                    continue
            lows[q, size], highs[q, size], numbers[q, size] = at_most(key - slack), high, number
            size += 1
    counts[q] = size
    return True


@compiled(
    "i8(f4[::1], i8[::1], i8[:, ::1], i8, f4[::1], f8[::1], f8[:, ::1], i8[::1], i8[::1], i8,"
    f" {_BUFFERS}, b1[::1])"
)
def collect(
    keys: Float32,
    positions: Int64,
    runs: Int64,
    first_number: int,
    squares: Float32,
    lengths: Float64,
    error_terms: Float64,
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
    """Add the pairs of some products that may be among the k best; return how many overflow.

    Each product is one of `runs` (r, 3): the next so many of the `positions` (b,) of queries, the
    first of n rows, and their count. `keys` hold the dot products one after the other, those of a
    query with the n rows padded to a multiple of `LANES`; they are changed. Row 0 has the number
    `first_number`. `squares` (n,) are the squared lengths of all rows for l2, which are subtracted,
    else empty. `lengths` (n,) are those of all rows. A key is off by at most a + b |x| + c |x|^2,
    where `error_terms` (q, 3) holds a, b and c of each query (`matmul.error_terms`). Rows at
    excluded[excluded_starts[q] : excluded_starts[q + 1]], ascending, are not matches of query q.
    `scratch` holds at least as many numbers as the longest product has rows, and those of a buffer.
    `overflowed` (b,) is written: such a query has more pairs in its product than fit, of which none
    were added.
    """
    failures = i = offset = 0
    for r in range(len(runs)):
        queries, first, count = runs[r, 0], runs[r, 1], runs[r, 2]
        width = (count + LANES - 1) // LANES * LANES
        run_squares, run_lengths = squares[first : first + count], lengths[first : first + count]
        longest = 0.0
        for x in range(count):
            longest = max(longest, run_lengths[x])
        for _ in range(queries):
            q, run_keys = positions[i], keys[offset : offset + width]
            complete_keys(run_keys, run_squares, count)
            added = _collect_query(
                run_keys, q, first_number + first, count, run_lengths, longest, error_terms[q],
                excluded_starts, excluded, k, thresholds, lows, highs, numbers, counts, scratch,
            )  # fmt: skip
            overflowed[i] = not added
            failures += not added
            i += 1
            offset += width
    return failures


@compiled(f"i8(i8[::1], i8[::1], f8[::1], f8[::1], i8[::1], i8[::1], i8, {_BUFFERS}, b1[::1])")
def add_pairs(
    queries: Int64,
    pair_numbers: Int64,
    keys: Float64,
    slack: Float64,
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
        high = at_least(keys[i] + slack[i])
        if high < thresholds[q]:
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
        lows[q, size], highs[q, size] = at_most(keys[i] - slack[i]), high
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
