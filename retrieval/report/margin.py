"""Compute the margin of each query: how far its first match is ahead of the next other answer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retrieval.core.schemas import Metric


def compute_margins(
    scores: NDArray[np.float64],
    classes: NDArray[np.int64],
    starts: NDArray[np.int64],
    metric: Metric,
) -> NDArray[np.float64]:
    """Return the margin of each of q queries, (q,) float64; larger is more certain, also for l2.

    `scores` and `classes` (class numbers, -1 where unknown) are those of all matches, best first;
    query i has the rows `starts[i]` to `starts[i + 1]`, at least one. The margin is the score
    difference of the first match to the first match of another known class, to the last match where
    all are of the same class, or to the second match where the class of the first is unknown. It is
    nan for a single match.
    """
    if len(starts) < 2:
        return np.empty(0)
    first, last = starts[:-1], starts[1:] - 1
    first_class = np.repeat(classes[first], np.diff(starts))
    another = (classes >= 0) & (classes != first_class)
    none = len(scores)
    nearest = np.minimum.reduceat(np.where(another, np.arange(none), none), first)
    reference = np.where(nearest < none, nearest, last)
    reference = np.where(classes[first] >= 0, reference, np.minimum(first + 1, last))
    margin = scores[first] - scores[reference]
    margin = -margin if metric == "l2" else margin
    return np.where((last > first) & np.isfinite(margin), margin + 0.0, np.nan)
