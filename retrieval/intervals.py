"""Seeded bootstrap intervals.

The unit that is drawn again is a query, never one of its matches, since the matches of a query
stand and fall together. Source: Efron, "Bootstrap methods" (1979); percentile intervals.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

RESAMPLES = 1000
"""Enough that the ends of a 95 % interval move by less than a tenth of its width between seeds."""

CONFIDENCE = 0.95

_BLOCK = 1 << 22
"""Draws held at once (32 MiB of int64), so that memory is flat in the number of queries."""


def bootstrap_mean(values: Values, *, seed: int = 0) -> tuple[float, float]:
    """Give the ends of the 95 % interval of the mean of (n,) values.

    An empty input gives (nan, nan); a constant one gives a point.
    """
    low, high = bootstrap_means(values[:, None], seed=seed)
    return float(low[0]), float(high[0])


def bootstrap_means(values: Values, *, seed: int = 0) -> tuple[Values, Values]:
    """Give the ends, (m,) each, of the intervals of the means of m columns of (n, m) values.

    All columns share their draws, so that what is asked of several costs hardly more.
    """
    count, columns = values.shape
    if count == 0:
        return np.full(columns, np.nan), np.full(columns, np.nan)
    # where all n values are equal so is every mean of a draw, which rounding would blur
    means = resampled_sums(values - values[0], seed=seed) / count + values[0]
    return ends(means)


def bootstrap_ratios(over: Values, under: Values, *, seed: int = 0) -> tuple[Values, Values]:
    """Give the ends of the intervals of sum(over) / sum(under), for m columns of (n, m) each.

    Draws in which nothing is under the line say nothing and are left out.
    """
    sums = resampled_sums(np.concatenate([over, under], axis=1), seed=seed)
    above, below = np.split(sums, 2, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return ends(np.where(below > 0, above / below, np.nan))


def resampled_sums(values: Values, *, seed: int = 0) -> Values:
    """Draw n of n rows with replacement, RESAMPLES times: the (RESAMPLES, m) sums of the columns.

    How often each row was drawn, times the values, in one product a block of draws.
    """
    count = len(values)
    generator = np.random.default_rng(seed)
    sums = np.zeros((RESAMPLES, values.shape[1]))
    step = max(1, _BLOCK // max(1, count))
    for first in range(0, RESAMPLES, step):
        last = min(first + step, RESAMPLES)
        drawn = generator.integers(0, count, (last - first, count))
        drawn += np.arange(last - first)[:, None] * count
        often = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
        # not by BLAS, whose last bits may depend on the number of threads
        sums[first:last] = np.einsum("rn,nm->rm", often.astype(np.float64), values)
    return sums


def ends(draws: Values) -> tuple[Values, Values]:
    """Give the ends of the interval that holds the middle 95 % of each column of (r, m) draws."""
    tail = (1 - CONFIDENCE) / 2
    empty = np.isnan(draws).all(axis=0)
    with np.errstate(invalid="ignore"):
        low, high = np.nanquantile(np.where(empty, 0.0, draws), [tail, 1 - tail], axis=0)
    return np.where(empty, np.nan, low), np.where(empty, np.nan, high)
