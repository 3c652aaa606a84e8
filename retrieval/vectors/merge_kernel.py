"""The compiled loops that select the k best rows of each query from scored pairs.

Imported where it is needed (`compiled.py`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retrieval.vectors.compiled import compiled, compiled_part

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]


@compiled_part
def _is_farther(a: int, b: int, keys: Float64, ties: Int64) -> bool:
    """Return whether pair a comes after pair b: by a smaller key, or a larger tie."""
    return bool(keys[a] < keys[b] or (keys[a] == keys[b] and ties[a] > ties[b]))


@compiled_part
def _sift_down(order: Int64, root: int, size: int, keys: Float64, ties: Int64) -> None:
    """Restore the heap below `root`; each pair of `order` is at least as far as its children."""
    while 2 * root + 1 < size:
        child = 2 * root + 1
        if child + 1 < size and _is_farther(order[child + 1], order[child], keys, ties):
            child += 1
        if not _is_farther(order[child], order[root], keys, ties):
            return
        order[root], order[child] = order[child], order[root]
        root = child


@compiled_part
def sort_closest_first(order: Int64, size: int, keys: Float64, ties: Int64) -> None:
    """Sort the first `size` pairs of `order` by descending key, then ascending tie (heapsort)."""
    for root in range(size // 2 - 1, -1, -1):
        _sift_down(order, root, size, keys, ties)
    for last in range(size - 1, 0, -1):
        order[0], order[last] = order[last], order[0]
        _sift_down(order, 0, last, keys, ties)


@compiled(
    "b1(i8[::1], f8[::1], i8[::1], i8[::1], f8[:, ::1], i8[:, ::1], i8[:, ::1],"
    " f8[::1], i8[::1], i8[::1], i8[::1])"
)
def merge_pairs(
    starts: Int64,
    keys: Float64,
    ties: Int64,
    positions: Int64,
    best_keys: Float64,
    best_ties: Int64,
    best_positions: Int64,
    all_keys: Float64,
    all_ties: Int64,
    all_positions: Int64,
    order: Int64,
) -> bool:
    """Merge pairs into the k best rows of n queries, and return whether some keys are equal.

    `keys`, `ties` and `positions` (p,) hold the pairs, those of query i at starts[i] : starts[i+1];
    `best_keys`, `best_ties` and `best_positions` (n, k) are changed, position -1 stands for no row.
    The last four arrays are memory for k pairs and the largest number of pairs of a query. Equal
    keys count where they decide what is returned, or their order.
    """
    tied, k = False, best_keys.shape[1]
    for i in range(len(best_keys)):
        size = 0
        for j in range(k):
            if best_positions[i, j] >= 0:
                all_keys[size], all_ties[size] = best_keys[i, j], best_ties[i, j]
                all_positions[size] = best_positions[i, j]
                size += 1
        for j in range(starts[i], starts[i + 1]):
            all_keys[size], all_ties[size] = keys[j], ties[j]
            all_positions[size] = positions[j]
            size += 1
        for j in range(size):
            order[j] = j
        sort_closest_first(order, size, all_keys, all_ties)
        for j in range(min(k, size)):
            pair = order[j]
            best_keys[i, j], best_ties[i, j] = all_keys[pair], all_ties[pair]
            best_positions[i, j] = all_positions[pair]
            if j + 1 < size and all_keys[pair] == all_keys[order[j + 1]]:
                tied = True
    return tied


@compiled("void(i8[::1], i8[::1], f8[::1], i8[::1], i8, i8[:, ::1], i8[::1], b1[::1])")
def select_best_pairs(
    order: Int64,
    starts: Int64,
    keys: Float64,
    ties: Int64,
    k: int,
    best: Int64,
    counts: Int64,
    is_tied: NDArray[np.bool_],
) -> None:
    """Write the k best pairs of each of n queries, closest first, and which have equal keys.

    The pairs of query i are order[starts[i] : starts[i + 1]], positions in `keys` and `ties` (p,).
    Row i of `best` (n, k) gets the positions of the counts[i] best ones. Equal keys count in
    `is_tied` (n,) where they decide what is returned, or its order.
    """
    for i in range(len(counts)):
        heap, size, next_key = best[i], 0, -np.inf  # next_key is the best key that is left out
        for j in range(starts[i], starts[i + 1]):
            pair = order[j]
            if size < k:
                heap[size] = pair
                size += 1
                if size == k:
                    for root in range(k // 2 - 1, -1, -1):
                        _sift_down(heap, root, k, keys, ties)
            else:
                if _is_farther(heap[0], pair, keys, ties):
                    pair, heap[0] = heap[0], pair
                    _sift_down(heap, 0, k, keys, ties)
                next_key = max(next_key, keys[pair])
        sort_closest_first(heap, size, keys, ties)
        counts[i] = size
        is_tied[i] = starts[i + 1] - starts[i] > k and keys[heap[k - 1]] == next_key
        for j in range(size - 1):
            if keys[heap[j]] == keys[heap[j + 1]]:
                is_tied[i] = True
