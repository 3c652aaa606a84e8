"""Order of the lists of an index, in which neighbouring lists have neighbouring centroids.

A shard holds a range of consecutive lists, so in this order the lists that a query reads fall into
few shards. The centroids are halved recursively along the axis in which they vary most. All numbers
are float64 sums in a fixed order (no BLAS), and equal projections are ordered by number, so that
the order depends on the centroids alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retrieval.vectors.float_conversions import to_float64
from retrieval.vectors.scoring import Float64, Int64

_SMALLEST = 8  # centroids that are only sorted: halving them further gains nothing
_ITERATIONS = 6  # of the power method: the axis need not be exact, only reproducible


def order_lists(centroids: NDArray[np.float32]) -> Int64:
    """Return the order of (n, d) centroids as their positions, (n,) int64.

    Neighbours in the order are close to each other, as far as one dimension can express it.
    """
    values = np.ascontiguousarray(to_float64(centroids))
    largest = float(np.abs(values).max(initial=0))
    if largest > 0:
        values = values / largest  # so that no square overflows
    order = np.arange(len(values))
    pending = [(0, len(values), np.zeros(values.shape[1]))]
    while pending:
        first, last, direction = pending.pop()
        members = order[first:last]
        centred = values[members] - values[members].mean(0)
        axis = _find_main_axis(centred)
        if np.einsum("d,d->", axis, direction) < 0:  # both halves in the direction of the whole
            axis = -axis
        members = members[np.lexsort((members, np.einsum("nd,d->n", centred, axis)))]
        order[first:last] = members
        if last - first > _SMALLEST:
            middle = (first + last) // 2
            pending += [(first, middle, axis), (middle, last, axis)]
    return order


def _find_main_axis(centred: Float64) -> Float64:
    """Return the first principal axis of (n, d) values of mean 0, (d,), of any length.

    It is approximated by the power method, which starts at the value farthest from the mean.
    """
    axis: Float64 = centred[np.argmax(np.einsum("nd,nd->n", centred, centred))]
    for _ in range(_ITERATIONS):
        length = float(np.sqrt(np.einsum("d,d->", axis, axis)))
        if length == 0.0:
            break
        axis = np.einsum("n,nd->d", np.einsum("nd,d->n", centred, axis / length), centred)
    return axis
