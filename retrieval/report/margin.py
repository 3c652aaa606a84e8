"""How sure is the answer to a query? The lead of its first match over the next other answer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retrieval.core.schemas import Metric


def margins(
    scores: NDArray[np.float64],
    classes: NDArray[np.int64],
    starts: NDArray[np.int64],
    metric: Metric,
) -> NDArray[np.float64]:
    """Give each of q queries the lead of its first match; more is surer, also for l2.

    `scores` and `classes` (a number a class, -1 where it is not known) are those of all matches,
    best first; query i has the rows `starts[i]` to `starts[i + 1]`, at least one. The lead is over
    the first match of another known class; over the last match where all are of the first one's;
    over the second where the class of the first is not known. A single match leads nothing: nan.
    """
    if len(starts) < 2:
        return np.empty(0)
    first, last = starts[:-1], starts[1:] - 1
    own = np.repeat(classes[first], np.diff(starts))
    another = (classes >= 0) & (classes != own)
    none = len(scores)
    nearest = np.minimum.reduceat(np.where(another, np.arange(none), none), first)
    against = np.where(nearest < none, nearest, last)
    against = np.where(classes[first] >= 0, against, np.minimum(first + 1, last))
    lead = scores[first] - scores[against]
    lead = -lead if metric == "l2" else lead
    return np.where((last > first) & np.isfinite(lead), lead + 0.0, np.nan)
