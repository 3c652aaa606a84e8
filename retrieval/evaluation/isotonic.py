"""Isotonic regression: the increasing function of a value that best predicts right or wrong.

Source: Barlow, Bartholomew, Bremner, Brunk, "Statistical Inference under Order Restrictions"
(1972), pool adjacent violators.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


def pool_adjacent_violators(means: Float64, weights: Float64) -> tuple[Float64, NDArray[np.int64]]:
    """Return the non-decreasing fit of least weighted squares to n means, as blocks.

    Args:
        means: (n,) float64, in the order in which the fit must not decrease.
        weights: (n,) float64, above 0.

    Returns:
        The values of b blocks, (b,) float64, strictly increasing, and the position of the first
        mean of each block, (b,) int64.
    """
    starts = np.arange(len(means))
    sums, totals = means * weights, np.asarray(weights, np.float64)
    values = sums / totals
    # neighbours that do not increase have equal fits, so each run of them becomes one block
    while len(first := np.flatnonzero(np.diff(values, prepend=-np.inf) > 0)) < len(values):
        sums, totals = np.add.reduceat(sums, first), np.add.reduceat(totals, first)
        values, starts = sums / totals, starts[first]
    return values, starts


def fit_probabilities(values: Float64, right: NDArray[np.bool_]) -> tuple[Float64, Float64]:
    """Fit how likely an observation of a value is right, as knots of a function for `numpy.interp`.

    Between two blocks of the isotonic fit the function is linear. A right observation is added at
    the smallest value and a wrong one at the largest, so that no probability is 0 or 1: if all n
    observations are right, it is (n + 1) / (n + 2), Laplace's rule of succession.

    Args:
        values: (n,) float64, finite, n at least 1; larger values are right more often.
        right: (n,) bool.

    Returns:
        The values of the m knots, (m,) float64, strictly increasing, and their probabilities, (m,)
        float64, non-decreasing.
    """
    distinct, inverse = np.unique(values, return_inverse=True)
    counts = np.bincount(inverse).astype(np.float64)
    hits = np.bincount(inverse, right).astype(np.float64)
    hits = np.concatenate([[1.0], hits, [0.0]])
    counts = np.concatenate([[1.0], counts, [1.0]])
    places = np.concatenate([distinct[:1], distinct, distinct[-1:]])
    probabilities, starts = pool_adjacent_violators(hits / counts, counts)
    lasts = np.append(starts[1:], len(places)) - 1
    knots = np.stack([places[starts], places[lasts]], axis=1).ravel()
    heights = np.repeat(probabilities, 2)
    is_new = np.diff(knots, prepend=-np.inf) > 0
    return knots[is_new], heights[is_new]
