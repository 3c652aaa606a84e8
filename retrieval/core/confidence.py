"""95 % confidence intervals of means of values that lie between two bounds.

`score_intervals` is Wilson's score interval where values are 0 or 1. Elsewhere it is Wilson's for
the number of such values that would leave their mean as uncertain as this one is: the effective
number of survey statistics. It needs no draws, stays within the bounds, and is never a point, since
what 15 queries of 15 had the next may lack. Student's t and bootstraps know only the values that
they saw, so they are far too sure where most are alike; docs/measures.md has the coverage measured.

Sources: Wilson, "Probable inference, the law of succession, and statistical inference" (1927);
Korn, Graubard, "Confidence intervals for proportions with small expected number of positive counts
estimated from survey data" (1998); Newcombe, "Improved confidence intervals for the difference
between binomial proportions based on paired data" (1998), method 10, which Zou and Donner (2008)
extend to other means; of the bootstrap: Efron, "Bootstrap methods" (1979).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

FEWEST = 10
"""Queries, or classes, below which no interval is told: a handful is not a sample of anything."""

CONFIDENCE = 0.95

_Z = 1.959963984540054
"""Normal deviate that leaves half of `1 - CONFIDENCE` above it."""

_UNSEEN = 0.5
"""Values that are added at each bound where the spread of values is measured, so that it is never
nothing. With 0.5 the measured coverage stays near 95 %; 1 makes all intervals wider."""

_UNPAIRED = 2.0
"""Pairs without any correlation that are added where it is measured, so that it is never 1. With 1
the measured coverage falls to 86 %, 4 makes all intervals wider."""

_EQUAL = 1e-12
"""Distance from the mean that is rounding alone: of equal values it would make a correlation."""

RESAMPLES = 1000
"""Draws of `bootstrap_mean`: the ends of an interval then move by less than a tenth of its width
between seeds."""

_BLOCK = 1 << 22
"""Draws held at once (32 MiB of int64), so that memory is flat in the number of queries."""


def score_intervals(values: Values, weights: Values | None = None) -> tuple[Values, Values]:
    """Return the ends, (m,) each, of the intervals of m weighted means of values in 0 to 1.

    `values` is (n, m). A row is what is drawn independently of the others: a query, or a class with
    the mean of its queries. `weights` is (n, 1) or (n, m), what each row counts in the mean: the
    queries of a class, the matches of a query; rows of weight 0 do not count. nan where fewer than
    `FEWEST` rows do.
    """
    shape = values.shape
    counted = np.ones(shape) if weights is None else np.broadcast_to(weights, shape)
    squares = np.square(counted)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.clip((counted * values).sum(0) / counted.sum(0), 0.0, 1.0)
        # Kish's effective number of rows: n where all weigh the same
        rows = np.square(counted.sum(0)) / squares.sum(0)
        variance = (squares * np.square(values - mean)).sum(0) / squares.sum(0)
        seen = rows + 2 * _UNSEEN
        center = (rows * mean + _UNSEEN) / seen
        spread = (rows * (variance + np.square(mean)) + _UNSEEN) / seen - np.square(center)
        effective = rows * center * (1 - center) / spread  # `rows` where all values are 0 or 1
        z2 = _Z**2 / effective
        middle = (mean + z2 / 2) / (1 + z2)
        half = np.sqrt(z2 * (mean * (1 - mean) + z2 / 4)) / (1 + z2)
        low, high = np.clip(middle - half, 0.0, mean), np.clip(middle + half, mean, 1.0)
    enough = np.count_nonzero(counted, axis=0) >= FEWEST
    return np.where(enough, low, np.nan), np.where(enough, high, np.nan)


def difference_intervals(
    first: Values, second: Values, weights: Values | None = None
) -> tuple[Values, Values]:
    """Return the ends of the intervals of mean(first) - mean(second) of values in 0 to 1, by pairs.

    Arguments as of `score_intervals`, whose intervals of the two means are combined by the
    correlation of the pairs, as Newcombe does for paired proportions: the closer rankings go
    together, the surer. The correlation is never taken for 1, so that this is no point where no
    pair differs.
    """
    counted = np.broadcast_to(1.0 if weights is None else weights, first.shape)
    squares = np.square(counted)
    with np.errstate(invalid="ignore", divide="ignore"):
        total = counted.sum(0)
        means = [(counted * values).sum(0) / total for values in (first, second)]
        apart = [values - mean for values, mean in zip((first, second), means, strict=True)]
        apart = [np.where(np.abs(each) < _EQUAL, 0.0, each) for each in apart]
        spreads = [(squares * np.square(each)).sum(0) for each in apart]
        correlation = (squares * apart[0] * apart[1]).sum(0) / np.sqrt(spreads[0] * spreads[1])
        rows = np.square(total) / squares.sum(0)
        correlation = np.nan_to_num(correlation) * rows / (rows + _UNPAIRED)
    (low, high), (other_low, other_high) = (
        score_intervals(values, weights) for values in (first, second)
    )
    below, other_above = means[0] - low, other_high - means[1]
    above, other_below = high - means[0], means[1] - other_low
    difference = means[0] - means[1]
    return (
        difference - _combined(below, other_above, correlation),
        difference + _combined(above, other_below, correlation),
    )


def _combined(length: Values, other: Values, correlation: Values) -> Values:
    """Return the length of one side of the interval of a difference."""
    squared = np.square(length) + np.square(other) - 2 * correlation * length * other
    return np.sqrt(np.maximum(squared, 0.0))


def class_means(values: Values, classes: NDArray[np.int64]) -> tuple[Values, Values]:
    """Return the means of (n, m) values by class, (c, m), and the size of each class, (c, 1).

    They are rows and weights of an interval that speaks of further classes. `classes` is (n,):
    numbers from 0, each of which occurs.
    """
    sizes = np.bincount(classes).astype(np.float64)[:, None]
    sums = np.stack([np.bincount(classes, column) for column in values.T], axis=1)
    return sums / sizes, sizes


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
