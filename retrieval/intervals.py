"""Seeded bootstrap intervals of a mean."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
"""Enough that the ends of a 95 % interval move by less than a tenth of its width between seeds."""

_BLOCK = 1 << 22
"""Draws held at once (32 MiB of int64), so that memory is flat in the number of queries."""


def bootstrap_mean(
    values: NDArray[np.float64], *, seed: int = 0, confidence: float = 0.95
) -> tuple[float, float]:
    """Give the ends of the percentile bootstrap interval of the mean of `values`.

    The unit that is drawn again is one entry of `values`: a query, never one of its matches, since
    the matches of a query stand and fall together. Shape (n,), float64. An empty input gives
    (nan, nan); a constant one gives a point. Source: Efron, "Bootstrap methods" (1979).
    """
    count = len(values)
    if count == 0:
        return float("nan"), float("nan")
    generator = np.random.default_rng(seed)
    means = np.empty(RESAMPLES)
    step = max(1, _BLOCK // count)
    for first in range(0, RESAMPLES, step):
        last = min(first + step, RESAMPLES)
        means[first:last] = values[generator.integers(0, count, (last - first, count))].mean(1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)
