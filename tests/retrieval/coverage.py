"""Simulated coverage of 95 % confidence intervals: the score intervals, and Student's t.

`tests/generated.py` writes the table into docs/measures.md; `core/test_confidence.py` checks bounds
of it.
"""

from functools import cache

import numpy as np

from retrieval.core.confidence import difference_intervals, score_intervals

SIZES = (15, 50, 200)
RUNS = 4000
_T = {15: 2.1448, 50: 2.0096, 200: 1.9720}  # Student's t with n - 1 degrees of freedom, 97.5 %


def _proportion(probability):
    return lambda generator, shape: (generator.random(shape) < probability).astype(float)


def _mostly_near_one(generator, shape):
    """Draw average precisions of an easy gallery: 90 % above 0.95, the others uniform in [0, 1)."""
    uniform = generator.random(shape)
    return np.where(uniform < 0.9, 1 - 0.05 * generator.random(shape), generator.random(shape))


def _mostly_high_some_zero(generator, shape):
    return np.where(generator.random(shape) < 0.05, 0.0, 0.95 + 0.05 * generator.random(shape))


def _normal(generator, shape):
    return np.clip(0.7 + 0.1 * generator.standard_normal(shape), 0, 1)


def _paired(before, change):
    """Return a function that draws (2, ...) values of two rankings of the same queries."""

    def draw(generator, shape):
        first = before(generator, shape)
        return np.stack([np.clip(first + change(generator, first), 0, 1), first])

    return draw


def _gains(generator, first):
    return (generator.random(first.shape) < 0.1).astype(float)


def _swapped(generator, first):
    return np.where(generator.random(first.shape) < 0.1, 1 - 2 * first, 0.0)


def _losses(generator, first):
    noise = 0.01 * generator.standard_normal(first.shape)
    return np.where(generator.random(first.shape) < 0.04, -0.5, noise)


def _small_changes(generator, first):
    return 0.02 + 0.05 * generator.standard_normal(first.shape)


def _beta(generator, shape):
    return generator.beta(2, 2, shape)


CASES = {
    "0 or 1, half of them 1": (_proportion(0.5), score_intervals),
    "0 or 1, 90 % of them 1": (_proportion(0.9), score_intervals),
    "0 or 1, 95 % of them 1": (_proportion(0.95), score_intervals),
    "0 or 1, 98 % of them 1": (_proportion(0.98), score_intervals),
    "AP: 90 % above 0.95, the others uniform": (_mostly_near_one, score_intervals),
    "AP: beta distribution, most near 0 or 1": (
        lambda generator, shape: generator.beta(0.8, 0.5, shape), score_intervals,
    ),
    "AP: 95 % above 0.95, the others 0": (_mostly_high_some_zero, score_intervals),
    "AP: normal, mean 0.7, standard deviation 0.1": (_normal, score_intervals),
    "paired, 0 or 1: 10 % of the zeros become 1": (
        _paired(_proportion(0.6), _gains), difference_intervals,
    ),
    "paired, 0 or 1: 10 % are inverted": (
        _paired(_proportion(0.6), _swapped), difference_intervals,
    ),
    "paired AP: 4 % lose 0.5, the others change slightly": (
        _paired(_beta, _losses), difference_intervals,
    ),
    "paired AP: normal changes, mean 0.02, standard deviation 0.05": (
        _paired(_beta, _small_changes), difference_intervals,
    ),
}  # fmt: skip
"""Description of the values -> (function that draws them, or pairs of them; interval function)."""


def student(values):
    """Return both ends of Student's t interval of each column mean of (n, m) values: two (m,)."""
    half_width = _T[len(values)] * values.std(0, ddof=1) / np.sqrt(len(values))
    return values.mean(0) - half_width, values.mean(0) + half_width


@cache
def measured_coverage(case, size):
    """Return the share of intervals that contain the true mean: score intervals, Student's t."""
    draw, intervals = CASES[case]
    pairs = intervals is difference_intervals
    population = draw(np.random.default_rng(1), 400_000)
    mean = float(population[0].mean() - population[1].mean() if pairs else population.mean())
    mean = round(mean, 2) if "0 or 1" in case else mean
    values = draw(np.random.default_rng(0), (size, RUNS))
    shares = []
    for low, high in (
        intervals(*values) if pairs else intervals(values),
        student(values[0] - values[1] if pairs else values),
    ):
        shares.append(float(np.mean((low <= mean + 1e-12) & (mean <= high + 1e-12))))
    return shares
