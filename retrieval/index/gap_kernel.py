"""The compiled loop that selects the lists within a gap of each query's best centroid.

Imported where it is needed (`vectors/compiled.py`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retrieval.vectors.compiled import compiled, compiled_part
from retrieval.vectors.merge_kernel import sort_closest_first
from retrieval.vectors.pair_kernels import LANES, at_most, complete_keys, kth_lower_bound, reaches

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

_MARGIN = 1e-9  # relative margin of a proposal, above any rounding of a gap


@compiled_part
def _key_gap(key: float, best: float, norm: float, is_l2: bool) -> float:
    """Return the gap of a centroid: the expression of `probing.key_gaps`, to the last bit."""
    if is_l2:
        return float(np.sqrt(max(-key, 0.0)) - np.sqrt(max(-best, 0.0)))
    return (best - key) / norm


@compiled_part
def _lowest_key(best: float, gap: float, norm: float, is_l2: bool) -> float:
    """Return a key below which a centroid is outside of the gap, if the best key is `best`."""
    if is_l2:
        distance = np.sqrt(max(-best, 0.0)) + gap
        return float(-distance * distance * (1 + _MARGIN))
    return best - gap * norm * (1 + _MARGIN) - abs(best) * _MARGIN


@compiled_part
def _select_row(
    keys: Float32,
    count: int,
    error: float,
    norm: float,
    is_l2: bool,
    gap: float,
    offset: float,
    scratch: Float32,
    selected_keys: Float64,
    selected: Int64,
) -> int:
    """Write the lists within the gap of one query, and return how many, as `select_lists` does."""
    best = np.float64(kth_lower_bound(keys, 1, scratch)) - offset
    low = at_most(_lowest_key(best - error, gap, norm, is_l2) + offset - error)
    size, surely_within, limit = 0, 0, len(selected)
    for start in range(0, len(keys), LANES):
        group = keys[start : start + LANES]
        if not reaches(group, low):
            continue
        for lane in range(LANES):
            if group[lane] < low or start + lane >= count:
                continue
            key = np.float64(group[lane]) - offset
            if _key_gap(key + error, best - error, norm, is_l2) > gap:
                continue
            if _key_gap(key - error, best + error, norm, is_l2) <= gap:
                surely_within += 1
                if surely_within > limit:
                    return limit + 1
            if size < limit:
                selected_keys[size], selected[size] = key, start + lane
            size += 1
    return size if surely_within == size else -min(size, limit + 1)


@compiled(
    "void(f4[:, ::1], i8, f4[::1], f8[::1], f8[::1], f8[::1], b1, f8, i8[:, ::1], i8[::1], f4[::1],"
    " f8[::1], i8[::1], i8[::1])"
)
def select_lists(
    keys: Float32,
    count: int,
    squares: Float32,
    offsets: Float64,
    slack: Float64,
    norms: Float64,
    is_l2: bool,
    gap: float,
    lists: Int64,
    counts: Int64,
    scratch: Float32,
    selected_keys: Float64,
    selected: Int64,
    order: Int64,
) -> None:
    """Write the lists within the gap of each query, closest first, and their number.

    `keys` (b, n) are the dot products of queries with `count` centroids, padded to a multiple of
    `LANES`; they are changed. `squares` (count,) are the squared lengths of the centroids for l2,
    else empty. Minus `offsets` (b,) the keys are those of scores, and off by at most `slack` (b,).
    `norms` (b,) are the lengths of the queries, 1 for a zero vector. `lists` (b, limit) and
    `counts` (b,) are written. Where the error bound leaves a list undecided, the lists are those
    that may lie within the gap, and the count is their negative number. Where there are more lists
    than `limit`, the absolute count is limit + 1, and no lists are written. `scratch` holds n
    numbers, the last three arrays `limit`.
    """
    for i in range(len(keys)):
        complete_keys(keys[i], squares, count)
        size = _select_row(
            keys[i], count, slack[i], norms[i], is_l2, gap, offsets[i], scratch, selected_keys,
            selected,
        )  # fmt: skip
        counts[i] = size
        size = abs(size)
        if size > lists.shape[1]:
            continue
        for j in range(size):
            order[j] = j
        sort_closest_first(order, size, selected_keys, selected)
        for j in range(size):
            lists[i, j] = selected[order[j]]
