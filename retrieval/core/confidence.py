"""95 % confidence intervals of means of bounded values.

`score_intervals` is Wilson's score interval where values are 0 or 1; for other values it uses the
effective sample size of survey statistics. It needs no resampling, stays within the bounds, and
never collapses to a point. Student's t and bootstrap intervals are too narrow where most values are
equal; docs/measures.md reports the measured coverage.

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

MIN_SAMPLE_SIZE = 10
"""Smallest number of queries, or classes, for which an interval is reported."""

CONFIDENCE = 0.95

_Z = 1.959963984540054
"""Normal quantile of `1 - (1 - CONFIDENCE) / 2`."""

_PSEUDO_COUNT = 0.5
"""Pseudo-observations added at each bound when the variance is estimated, so that it is never 0.
With 0.5 the measured coverage stays near 95 %; 1 widens all intervals."""

_UNCORRELATED_PAIRS = 2.0
"""Uncorrelated pairs added when the correlation is estimated, so that it is never 1. With 1 the
measured coverage falls to 86 %; 4 widens all intervals."""

_ROUNDING = 1e-12
"""Deviations from the mean below this are rounding errors and count as 0: otherwise two constant
columns would seem correlated."""

RESAMPLES = 1000
"""Bootstrap draws: the ends of an interval then vary by less than a tenth of its width between
seeds."""

_BLOCK = 1 << 22
"""Drawn indices held at once (32 MiB of int64), so that memory does not grow with the queries."""


def score_intervals(values: Values, weights: Values | None = None) -> tuple[Values, Values]:
    """Return the lower and upper ends, (m,) each, of the intervals of m weighted means.

    `values` is (n, m), between 0 and 1. Rows are independent observations: queries, or classes with
    the mean of their queries. `weights` is (n, 1) or (n, m), the weight of each row in the mean:
    the queries of a class, or the matches of a query; rows of weight 0 do not count. The ends are
    nan where fewer than `MIN_SAMPLE_SIZE` rows count. Formula: Wilson (1927), with the effective
    sample size of Korn and Graubard (1998).
    """
    shape = values.shape
    counted = np.ones(shape) if weights is None else np.broadcast_to(weights, shape)
    squares = np.square(counted)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.clip((counted * values).sum(0) / counted.sum(0), 0.0, 1.0)
        # Kish's effective number of rows: n where all weigh the same
        rows = np.square(counted.sum(0)) / squares.sum(0)
        variance = (squares * np.square(values - mean)).sum(0) / squares.sum(0)
        count = rows + 2 * _PSEUDO_COUNT
        center = (rows * mean + _PSEUDO_COUNT) / count
        second_moment = (rows * (variance + np.square(mean)) + _PSEUDO_COUNT) / count
        smoothed_variance = second_moment - np.square(center)
        # equals `rows` where all values are 0 or 1
        effective = rows * center * (1 - center) / smoothed_variance
        z2 = _Z**2 / effective
        middle = (mean + z2 / 2) / (1 + z2)
        half_width = np.sqrt(z2 * (mean * (1 - mean) + z2 / 4)) / (1 + z2)
        low, high = np.clip(middle - half_width, 0.0, mean), np.clip(middle + half_width, mean, 1.0)
    enough = np.count_nonzero(counted, axis=0) >= MIN_SAMPLE_SIZE
    return np.where(enough, low, np.nan), np.where(enough, high, np.nan)


def difference_intervals(
    first: Values, second: Values, weights: Values | None = None
) -> tuple[Values, Values]:
    """Return the ends, (m,) each, of the intervals of mean(first) - mean(second) of paired values.

    `first` and `second` are (n, m), `weights` as in `score_intervals`, whose intervals of the two
    means are combined by the correlation of the pairs (Newcombe 1998, method 10). The correlation
    is shrunk below 1, so that the interval does not collapse to a point where no pair differs.
    """
    counted = np.broadcast_to(1.0 if weights is None else weights, first.shape)
    squares = np.square(counted)
    with np.errstate(invalid="ignore", divide="ignore"):
        total = counted.sum(0)
        means = [(counted * values).sum(0) / total for values in (first, second)]
        deviations = [values - mean for values, mean in zip((first, second), means, strict=True)]
        deviations = [np.where(np.abs(delta) < _ROUNDING, 0.0, delta) for delta in deviations]
        variances = [(squares * np.square(delta)).sum(0) for delta in deviations]
        covariance = (squares * deviations[0] * deviations[1]).sum(0)
        correlation = covariance / np.sqrt(variances[0] * variances[1])
        rows = np.square(total) / squares.sum(0)
        correlation = np.nan_to_num(correlation) * rows / (rows + _UNCORRELATED_PAIRS)
    (low, high), (other_low, other_high) = (
        score_intervals(values, weights) for values in (first, second)
    )
    below, other_above = means[0] - low, other_high - means[1]
    above, other_below = high - means[0], means[1] - other_low
    difference = means[0] - means[1]
    return (
        difference - _combine_lengths(below, other_above, correlation),
        difference + _combine_lengths(above, other_below, correlation),
    )


def _combine_lengths(length: Values, other: Values, correlation: Values) -> Values:
    """Return the length of one side of the interval of a difference of two correlated means."""
    squared = np.square(length) + np.square(other) - 2 * correlation * length * other
    return np.sqrt(np.maximum(squared, 0.0))


def class_means(values: Values, classes: NDArray[np.int64]) -> tuple[Values, Values]:
    """Return the means of (n, m) values per class, (c, m), and the sizes of the classes, (c, 1).

    Pass both to `score_intervals` for an interval over classes. `classes` is (n,): class numbers
    from 0 to c - 1, each of which occurs.
    """
    sizes = np.bincount(classes).astype(np.float64)[:, None]
    sums = np.stack([np.bincount(classes, column) for column in values.T], axis=1)
    return sums / sizes, sizes


def bootstrap_mean(values: Values, *, seed: int = 0) -> tuple[float, float]:
    """Return the ends of the 95 % bootstrap interval of the mean of (n,) values.

    They are (nan, nan) for an empty input and equal for a constant one.
    """
    low, high = bootstrap_means(values[:, None], seed=seed)
    return float(low[0]), float(high[0])


def bootstrap_means(values: Values, *, seed: int = 0) -> tuple[Values, Values]:
    """Return the ends, (m,) each, of the bootstrap intervals of the column means of (n, m) values.

    All columns share the same draws.
    """
    count, columns = values.shape
    if count == 0:
        return np.full(columns, np.nan), np.full(columns, np.nan)
    # subtracted first, so that the interval of equal values is exactly a point despite rounding
    means = resampled_sums(values - values[0], seed=seed) / count + values[0]
    return percentile_interval(means)


def resampled_sums(values: Values, *, seed: int = 0) -> Values:
    """Return the (RESAMPLES, m) column sums of n rows drawn with replacement from (n, m) values.

    Each block of draws is one product: how often each row was drawn, times the values.
    """
    count = len(values)
    generator = np.random.default_rng(seed)
    sums = np.zeros((RESAMPLES, values.shape[1]))
    step = max(1, _BLOCK // max(1, count))
    for first in range(0, RESAMPLES, step):
        last = min(first + step, RESAMPLES)
        drawn = generator.integers(0, count, (last - first, count))
        drawn += np.arange(last - first)[:, None] * count
        counts = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
        # not by BLAS, whose last bits may depend on the number of threads
        sums[first:last] = np.einsum("rn,nm->rm", counts.astype(np.float64), values)
    return sums


def percentile_interval(draws: Values) -> tuple[Values, Values]:
    """Return the ends, (m,) each, of the middle 95 % of each column of (r, m) draws.

    Draws that are nan are skipped; the ends of a column without other draws are nan.
    """
    tail = (1 - CONFIDENCE) / 2
    empty = np.isnan(draws).all(axis=0)
    with np.errstate(invalid="ignore"):
        low, high = np.nanquantile(np.where(empty, 0.0, draws), [tail, 1 - tail], axis=0)
    return np.where(empty, np.nan, low), np.where(empty, np.nan, high)
